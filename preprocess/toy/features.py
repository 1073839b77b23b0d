"""The parts of a face that move: eyes, brows, folds and mouth, drawn onto the head texture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.toy.canvas import (
    SUBPIXEL,
    TEXTURE_SCALE,
    band,
    blend,
    box_of,
    curve,
    fill,
    line,
    pixel_of,
)
from preprocess.toy.clips import Expression
from preprocess.toy.portrait import Portrait
from preprocess.toy.speakers import FaceTraits

ALONG = np.linspace(-1, 1, 17)  # across an eye or the mouth, left to right
ARCH = 1 - ALONG**2
OUTWARD = np.linspace(0, 1, 12)  # along a brow, from the nose outwards
BROW_ARCH = 2.6 * np.sin(np.pi * (0.08 + 0.85 * OUTWARD) ** 1.25)
BROW_TAPER = (0.75 + 0.45 * np.sin(np.pi * OUTWARD**0.7)) * (1 - 0.75 * OUTWARD**3)
FOLD = np.linspace(0, 1, 9)  # from the nose to the mouth corner
LIP_UPPER_SHAPE = ARCH**0.75 * (1 - 0.28 * np.exp(-0.5 * (ALONG / 0.13) ** 2))  # with Cupid's bow
EYE_BOX = (20, 13)  # half width and height of the region around an eye, face units
EYES = (-25.0, 25.0)
TEETH = np.array([214.0, 224.0, 228.0])
GUMS = np.array([38.0, 24.0, 66.0])
TONGUE = np.array([92.0, 84.0, 172.0])
FRAMES = np.array([40.0, 34.0, 34.0])
TURN = np.linspace(0, 2 * np.pi, 28)
LENS = np.stack(
    [np.sign(wave) * np.abs(wave) ** 0.7 for wave in (np.cos(TURN), np.sin(TURN))], axis=1
)


@dataclass(frozen=True)
class Pose:
    """The moving parts at one moment."""

    opening: float
    rounding: float
    intensity: float
    eyelids: float
    gaze_x: float
    gaze_y: float


class FeaturePainter:
    """Draws the features of one clip; colours take the light that falls where they sit."""

    def __init__(self, face: FaceTraits, expression: Expression, portrait: Portrait) -> None:
        self.face = face
        self.expression = expression
        self.shade = portrait.shade
        self.texture = portrait.texture.copy()
        self.skin = np.array(face.skin)
        self.lips = np.array(face.lips)
        self.lash = 0.16 * self.skin + 8
        self.mouth_light = self.light(0, face.mouth_y)
        self.eye_boxes = {eye: box_of(eye, 0, *EYE_BOX) for eye in EYES}
        self.eye_skin = {eye: self.skin * self.light(eye, -8) for eye in EYES}
        ball = draw_eyeball(face)
        self.eyeballs = {eye: ball * min(1.0, 0.25 + 0.75 * self.light(eye, 0)) for eye in EYES}
        self.brow_boxes = {eye: box_of(eye, face.brow_y, 24, 12) for eye in EYES}
        self.brow_colours = {eye: self.brow_colour(eye) for eye in EYES}
        self.draw_folds()  # lines that hardly move are drawn once, into the clip's own texture
        self.draw_furrow()
        self.draw_crows_feet()

    def light(self, x: float, y: float) -> float:
        """The shading at a point in face units."""
        return float(self.shade[pixel_of(x, y)])

    def colour_at(self, x: float, y: float) -> np.ndarray:
        """The colour of the still texture (skin or beard) at a point in face units."""
        return self.texture[pixel_of(x, y)].astype(float)

    def brow_colour(self, eye: float) -> np.ndarray:
        """Hair colour, darkened, and never lighter than the skin around it."""
        colour = (0.62 * np.array(self.face.hair) + 0.12 * self.skin) * (
            0.4 + 0.6 * self.light(eye, self.face.brow_y)
        )
        return np.minimum(colour, 0.72 * self.eye_skin[eye]).astype(np.float32)

    def draw(self, pose: Pose) -> np.ndarray:
        """The head texture with all features: (rows, columns, 3) uint8."""
        image = self.texture.copy()
        for eye in EYES:
            self.draw_eye(image, eye, pose)
            self.draw_brow(image, eye, pose)
        if self.face.glasses:
            self.draw_glasses(image)
        self.draw_mouth(image, pose)
        return image

    def draw_eye(self, image: np.ndarray, eye: float, pose: Pose) -> None:
        """Eyeball behind an almond opening, lashes, lid crease."""
        face, show = self.face, self.expression
        side = np.sign(eye)
        height = face.eye_height * (1 + show.upper_lid * pose.intensity)
        raised = face.rest_lid + show.lower_lid * pose.intensity
        x = eye + face.eye_width * ALONG
        slant = -face.eye_slant * side * ALONG
        low = slant + (0.78 * face.eye_height - raised) * ARCH
        high = slant - height * (1 + 0.12 * side * ALONG) * ARCH
        upper = low + (high - low) * pose.eyelids
        box = self.eye_boxes[eye]
        blend(image, box, band(x, upper, low), 255, self.eyeball_at(eye, pose))
        tint = self.eye_skin[eye]
        line(image, curve(x, high - 2.6 - 0.8 * ARCH), 0.72 * tint, 1)
        line(image, curve(x, low + 0.4), 0.62 * tint, 1)
        line(image, curve(x, upper - 0.3), self.lash, 2)
        if raised > 0.8:  # the lower lid pushed up makes a soft pouch
            line(
                image,
                curve(x, low + 3.0 + 0.6 * ARCH)[3:-3],
                (0.94 - 0.06 * min(raised, 2)) * tint,
                1,
            )

    def eyeball_at(self, eye: float, pose: Pose) -> np.ndarray:
        """The eyeball moved by the gaze, cut to the eye's box: float32."""
        ball, (rows, columns) = self.eyeballs[eye], self.eye_boxes[eye]
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        down = (ball.shape[0] - high) // 2 - round(pose.gaze_y * TEXTURE_SCALE)
        right = (ball.shape[1] - wide) // 2 - round(pose.gaze_x * TEXTURE_SCALE)
        return ball[down : down + high, right : right + wide]

    def draw_brow(self, image: np.ndarray, eye: float, pose: Pose) -> None:
        """A tapered soft stroke from the nose outwards."""
        face, show = self.face, self.expression
        inner = face.rest_brow_inner + show.brow_inner * pose.intensity
        outer = face.rest_brow_outer + show.brow_outer * pose.intensity
        start = abs(eye) - 0.95 * face.brow_length + 1.0 - show.knit * pose.intensity
        x = np.sign(eye) * (start + OUTWARD * (2.0 * face.brow_length))
        y = face.brow_y - inner * (1 - OUTWARD) ** 1.3 - outer * OUTWARD - BROW_ARCH
        half = 0.5 * face.brow_thickness * BROW_TAPER
        blend(image, self.brow_boxes[eye], band(x, y - half, y + half), 225, self.brow_colours[eye])

    def crease(self, points: np.ndarray, depth: float, pieces: int) -> None:
        """A soft dark line on skin or beard, piece by piece in the colour below it."""
        step = (len(points) - 1) // pieces
        for first in range(0, pieces * step, step):
            part = points[first : first + step + 1]
            tint = self.colour_at(*part[step // 2])
            line(self.texture, part, (1 - 0.12 * depth) * tint, 3)
            line(self.texture, part, (1 - 0.32 * depth) * tint, 1)

    def draw_furrow(self) -> None:
        """Two short upright lines between the brows."""
        face, show = self.face, self.expression
        depth = min(face.lines + show.furrow, 1)
        down = face.brow_y + np.linspace(-4.5, 5, 7) - 0.5 * show.brow_inner
        across = 3.6 + 0.12 * (down - face.brow_y) - 0.4 * show.knit
        for side in (-1, 1):
            self.crease(curve(side * across, down), depth, 2)

    def draw_crows_feet(self) -> None:
        """Three short lines that fan out from the outer corner of each eye."""
        face = self.face
        depth = min(face.lines + self.expression.crows_feet, 1)
        for eye in EYES:
            side = np.sign(eye)
            start = abs(eye) + face.eye_width + 2
            tint = (1 - 0.26 * depth) * self.colour_at(side * (start + 2), 1)
            for rise in (-2.6, 0.2, 3.0):
                ends = np.array([[side * start, 0.4 * rise], [side * (start + 5.5), 1.6 * rise]])
                line(self.texture, ends, tint, 1)

    def draw_folds(self) -> None:
        """The lines from the wings of the nose to beside the mouth corners."""
        face, show = self.face, self.expression
        reach = 0.95 * face.mouth_width + 5 + show.stretch
        start = face.nose_width + 2
        end = face.mouth_y - face.rest_corner - show.corner - 3
        across = start + (reach - start) * FOLD**0.8
        down = face.nose_length - 1 + (end + 1 - face.nose_length) * FOLD
        for side in (-1, 1):
            self.crease(curve(side * across, down), 0.75 * show.fold, 4)

    def draw_mouth(self, image: np.ndarray, pose: Pose) -> None:
        """Lips around a dark opening with teeth and tongue, softened a little."""
        face, show, light = self.face, self.expression, self.mouth_light
        corner = face.rest_corner + show.corner * pose.intensity
        width = face.mouth_width + show.stretch * pose.intensity
        width *= 1 - 0.13 * max(pose.rounding, 0) - 0.05 * min(pose.rounding, 0)
        gap = 14.0 * pose.opening * (1 - 0.15 * abs(pose.rounding))
        x = width * ALONG
        middle = face.mouth_y + 0.25 * corner - corner * np.abs(ALONG) ** 1.7
        inner_top = middle - 0.28 * gap * ARCH
        inner_low = middle + 0.72 * gap * ARCH**0.8
        top = inner_top - face.lip_upper * LIP_UPPER_SHAPE - 0.3
        low = inner_low + face.lip_lower * ARCH**0.7 * (1 - 0.1 * pose.opening) + 0.3
        lower = self.lips * min(1.1 * light, 1.25)
        fill(image, band(x, top, inner_top), self.lips * light * 0.84)
        fill(image, band(x, inner_low, low), lower)
        shine = curve(0.5 * x, inner_low + 0.45 * (low - inner_low))[3:-3]
        line(image, shine, np.minimum(lower * 1.16 + 8, 250), 2)
        if gap > 0.8:
            self.draw_inside(image, x, inner_top, inner_low)
        else:
            line(image, curve(x, middle), self.lips * 0.42 * light, 2)
        for end in (0, -1):
            tip = np.array([x[end] * 1.04, middle[end]])
            line(image, np.stack([tip, tip * [0.93, 1]]), self.skin * 0.55 * light, 2)
        box = box_of(0, face.mouth_y + 4, 32, 20)
        image[box] = cv2.GaussianBlur(image[box], (3, 3), 0)

    def draw_inside(
        self, image: np.ndarray, x: np.ndarray, top: np.ndarray, low: np.ndarray
    ) -> None:
        """The dark of the mouth between the lips, tongue below, teeth above."""
        gap = low - top
        fill(image, band(x, top, low), GUMS)
        tongue = 0.8 * self.mouth_light * TONGUE
        fill(image, band(0.72 * x, low - np.minimum(0.42 * gap, 5), low), tongue)
        teeth = min(self.mouth_light, 1.05) * TEETH
        fill(
            image,
            band(
                0.86 * x, top, top + np.clip(0.5 * gap - 0.8, 0, 3.4 * (1 + self.expression.teeth))
            ),
            teeth,
        )

    def draw_glasses(self, image: np.ndarray) -> None:
        """Thin dark frames."""
        radius = self.face.glasses
        for eye in EYES:
            side = np.sign(eye)
            line(image, [eye, 1.5] + LENS * [radius, 0.78 * radius], FRAMES, 2)
            arm = np.array([[eye + side * radius, -1.0], [side * (self.face.face_width + 1), -3.0]])
            line(image, arm, FRAMES, 2)
        line(image, np.array([[-25 + radius, 0], [0, -2.0], [25 - radius, 0]]), FRAMES, 2)


def draw_eyeball(face: FaceTraits) -> np.ndarray:
    """Sclera, iris, pupil and a highlight, larger than the eye box: (rows, columns, 3) float32."""
    rows = int(2 * EYE_BOX[1] * TEXTURE_SCALE) + 16
    columns = int(2 * EYE_BOX[0] * TEXTURE_SCALE) + 16
    ball = np.full((rows, columns, 3), (222, 226, 230), np.uint8)
    middle = (columns * 8, rows * 8)
    iris = np.array(face.iris)
    radius = int(5.0 * TEXTURE_SCALE * 16)
    for size, colour in (
        (1.0, 0.45 * iris),
        (0.86, iris),
        (0.6, 1.2 * iris),
        (0.45, np.full(3, 14.0)),
    ):
        cv2.circle(
            ball,
            middle,
            int(size * radius),
            tuple(np.minimum(colour, 250)),
            -1,
            cv2.LINE_AA,
            SUBPIXEL,
        )
    shine = (middle[0] + int(np.sign(face.light) * 0.3 * radius), middle[1] - int(0.35 * radius))
    cv2.circle(ball, shine, int(0.2 * radius), (245, 248, 250), -1, cv2.LINE_AA, SUBPIXEL)
    shadow = np.linspace(0.62, 1.1, rows, dtype=np.float32).clip(0, 1)[:, None, None]
    return cv2.GaussianBlur(ball, (3, 3), 0).astype(np.float32) * shadow
