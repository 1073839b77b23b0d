"""Frames of one clip: the moving parts on the head, the head in the picture, the aligned faces."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import cv2
import numpy as np

from preprocess.toy.clips import Clip, make_tracks
from preprocess.toy.portrait import (
    EYES,
    FRAME_SIZE,
    ORIGIN,
    SUBPIXEL,
    TEXTURE_SCALE,
    Portrait,
    band,
    blend,
    box_of,
    curve,
    fill,
    line,
    make_portrait,
    pixel_of,
)

CELL = 8  # frame pixels between the points where the head's turn is computed
ALIGNED_SIZE = 112
ALIGNED_SCALE = 0.8  # pixels of a 112-pixel aligned face per face unit
ALIGNED_ORIGIN = (56.0, 43.0)
DETECTOR_JITTER = 0.25  # frame pixels; landmarks of a real detector are never still

ALONG = np.linspace(-1, 1, 17)  # across an eye or the mouth, left to right
ARCH = 1 - ALONG**2
OUTWARD = np.linspace(0, 1, 12)  # along a brow, from the nose outwards
BROW_ARCH = 2.6 * np.sin(np.pi * (0.08 + 0.85 * OUTWARD) ** 1.25)
BROW_TAPER = (0.75 + 0.45 * np.sin(np.pi * OUTWARD**0.7)) * (1 - 0.75 * OUTWARD**3)
FOLD = np.linspace(0, 1, 9)  # from the nose to the mouth corner
LIP_UPPER_SHAPE = ARCH**0.75 * (1 - 0.28 * np.exp(-0.5 * (ALONG / 0.13) ** 2))  # with Cupid's bow
EYE_BOX = (20, 13)  # half width and height of the region around an eye, face units
TEETH = np.array([214.0, 224.0, 228.0])
GUMS = np.array([38.0, 24.0, 66.0])
TONGUE = np.array([92.0, 84.0, 172.0])
GLASSES = np.array([40.0, 34.0, 34.0])
TURN = np.linspace(0, 2 * np.pi, 28)
CIRCLE = curve(np.cos(TURN), np.sin(TURN))
LENS = np.sign(CIRCLE) * np.abs(CIRCLE) ** 0.7


def draw_frames(clip: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw a clip frame by frame.

    Yields:
        frame: (224, 224, 3) uint8 BGR.
        aligned: (2, 3) transform from the frame to a 112-pixel aligned face, for `align`.
    """
    portrait, tracks = make_portrait(clip), make_tracks(clip)
    painter = FeaturePainter(clip, portrait)
    maps = warp_maps(clip.face, tracks)
    cells = cells_with_head(maps, portrait.alpha)
    rows, columns = (slice(part.start * CELL, part.stop * CELL) for part in cells)
    behind = np.ascontiguousarray(portrait.background[rows, columns])
    transforms = alignments(clip, tracks)
    for index in range(clip.speech.frames):
        pose = {name: float(track[index]) for name, track in vars(tracks).items()}
        texture = painter.draw(SimpleNamespace(**pose))
        warp = cv2.resize(maps[index][cells], behind.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        head = _remap(texture, warp, borderMode=cv2.BORDER_REPLICATE)
        share = _remap(portrait.alpha, warp)
        frame = portrait.background.copy()
        frame[rows, columns] = cv2.blendLinear(head, behind, share, 1 - share)
        yield frame, transforms[index]


def align(frame: np.ndarray, transform: np.ndarray, size: int = ALIGNED_SIZE) -> np.ndarray:
    """Cut the aligned face out of a frame: (size, size, 3) uint8."""
    scale = size / ALIGNED_SIZE
    matrix = transform * scale
    matrix[:, 2] += 0.5 * (scale - 1)  # pixel centres
    return cv2.warpAffine(
        frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _remap(image: np.ndarray, warp: np.ndarray, **options: int) -> np.ndarray:
    # OpenCV's stubs do not know that the second map may be None.
    return cv2.remap(image, warp, None, cv2.INTER_LINEAR, **options)  # type: ignore[call-overload]


# The parts that move


class FeaturePainter:
    """Draws the features of one clip; colours take the light that falls where they sit."""

    def __init__(self, clip: Clip, portrait: Portrait) -> None:
        self.face = face = clip.face
        self.expression, self.shade = clip.expression, portrait.shade
        self.texture = portrait.texture.copy()
        self.skin, self.lips = np.array(face.skin), np.array(face.lips)
        self.lash = 0.16 * self.skin + 8
        self.mouth_light = self.light(0, face.mouth_y)
        self.eye_boxes = {eye: box_of(eye, 0, *EYE_BOX) for eye in EYES}
        self.eye_skin = {eye: self.skin * self.light(eye, -8) for eye in EYES}
        ball = draw_eyeball(face)
        self.eyeballs = {eye: ball * min(1.0, 0.25 + 0.75 * self.light(eye, 0)) for eye in EYES}
        self.brow_boxes = {eye: box_of(eye, face.brow_y, 24, 12) for eye in EYES}
        self.brow_colours = {eye: self.brow_colour(eye) for eye in EYES}
        self.draw_lines()  # they hardly move, and are drawn once, into the clip's own texture

    def light(self, x: float, y: float) -> float:
        """The shading at a point in face units."""
        return float(self.shade[pixel_of(x, y)])

    def colour_at(self, x: float, y: float) -> np.ndarray:
        """The colour of the still texture (skin or beard) at a point in face units."""
        return self.texture[pixel_of(x, y)].astype(float)

    def brow_colour(self, eye: float) -> np.ndarray:
        """Hair colour, darkened, and never lighter than the skin around it."""
        light = 0.4 + 0.6 * self.light(eye, self.face.brow_y)
        colour = (0.62 * np.array(self.face.hair) + 0.12 * self.skin) * light
        return np.minimum(colour, 0.72 * self.eye_skin[eye]).astype(np.float32)

    def draw(self, pose: SimpleNamespace) -> np.ndarray:
        """The head texture with all features at one moment: (rows, columns, 3) uint8."""
        image = self.texture.copy()
        for eye in EYES:
            self.draw_eye(image, eye, pose)
            self.draw_brow(image, eye, pose)
        if self.face.glasses:
            self.draw_glasses(image)
        self.draw_mouth(image, pose)
        return image

    def draw_eye(self, image: np.ndarray, eye: float, pose: SimpleNamespace) -> None:
        """Eyeball behind an almond opening, lashes, lid crease."""
        face, show, side = self.face, self.expression, np.sign(eye)
        height = face.eye_height * (1 + show.upper_lid * pose.intensity)
        raised = face.rest_lid + show.lower_lid * pose.intensity
        x = eye + face.eye_width * ALONG
        slant = -face.eye_slant * side * ALONG
        low = slant + (0.78 * face.eye_height - raised) * ARCH
        high = slant - height * (1 + 0.12 * side * ALONG) * ARCH
        upper = low + (high - low) * pose.eyelids
        ball = self.eyeball_at(eye, pose)
        blend(image, self.eye_boxes[eye], band(x, upper, low), 255, ball)
        tint = self.eye_skin[eye]
        line(image, curve(x, high - 2.6 - 0.8 * ARCH), 0.72 * tint, 1)
        line(image, curve(x, low + 0.4), 0.62 * tint, 1)
        line(image, curve(x, upper - 0.3), self.lash, 2)
        if raised > 0.8:  # the lower lid pushed up makes a soft pouch
            pouch = curve(x, low + 3.0 + 0.6 * ARCH)[3:-3]
            line(image, pouch, (0.94 - 0.06 * min(raised, 2)) * tint, 1)

    def eyeball_at(self, eye: float, pose: SimpleNamespace) -> np.ndarray:
        """The eyeball moved by the gaze, cut to the eye's box: float32."""
        ball, (rows, columns) = self.eyeballs[eye], self.eye_boxes[eye]
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        down = (ball.shape[0] - high) // 2 - round(pose.gaze_y * TEXTURE_SCALE)
        right = (ball.shape[1] - wide) // 2 - round(pose.gaze_x * TEXTURE_SCALE)
        return ball[down : down + high, right : right + wide]

    def draw_brow(self, image: np.ndarray, eye: float, pose: SimpleNamespace) -> None:
        """A tapered soft stroke from the nose outwards."""
        face, show = self.face, self.expression
        inner = face.rest_brow_inner + show.brow_inner * pose.intensity
        outer = face.rest_brow_outer + show.brow_outer * pose.intensity
        start = abs(eye) - 0.95 * face.brow_length + 1.0 - show.knit * pose.intensity
        x = np.sign(eye) * (start + OUTWARD * (2.0 * face.brow_length))
        y = face.brow_y - inner * (1 - OUTWARD) ** 1.3 - outer * OUTWARD - BROW_ARCH
        half = 0.5 * face.brow_thickness * BROW_TAPER
        blend(image, self.brow_boxes[eye], band(x, y - half, y + half), 225, self.brow_colours[eye])

    def draw_lines(self) -> None:
        """Folds from the nose to the mouth corners, the furrow between the brows, crow's feet."""
        face, show = self.face, self.expression
        reach, start = 0.95 * face.mouth_width + 5 + show.stretch, face.nose_width + 2
        end = face.mouth_y - face.rest_corner - show.corner - 3
        across = start + (reach - start) * FOLD**0.8
        down = face.nose_length - 1 + (end + 1 - face.nose_length) * FOLD
        for side in (-1, 1):
            self.crease(curve(side * across, down), 0.75 * show.fold, 4)
        down = face.brow_y + np.linspace(-4.5, 5, 7) - 0.5 * show.brow_inner
        across = 3.6 + 0.12 * (down - face.brow_y) - 0.4 * show.knit
        for side in (-1, 1):
            self.crease(curve(side * across, down), min(face.lines + show.furrow, 1), 2)
        depth = min(face.lines + show.crows_feet, 1)
        for eye in EYES:
            side, start = int(np.sign(eye)), abs(eye) + face.eye_width + 2
            tint = (1 - 0.26 * depth) * self.colour_at(side * (start + 2), 1)
            for rise in (-2.6, 0.2, 3.0):
                ends = np.array([[side * start, 0.4 * rise], [side * (start + 5.5), 1.6 * rise]])
                line(self.texture, ends, tint, 1)

    def crease(self, points: np.ndarray, depth: float, pieces: int) -> None:
        """A soft dark line on skin or beard, piece by piece in the colour below it."""
        step = (len(points) - 1) // pieces
        for first in range(0, pieces * step, step):
            part = points[first : first + step + 1]
            tint = self.colour_at(*part[step // 2])
            line(self.texture, part, (1 - 0.12 * depth) * tint, 3)
            line(self.texture, part, (1 - 0.32 * depth) * tint, 1)

    def draw_mouth(self, image: np.ndarray, pose: SimpleNamespace) -> None:
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
        gap, light = low - top, self.mouth_light
        fill(image, band(x, top, low), GUMS)
        fill(image, band(0.72 * x, low - np.minimum(0.42 * gap, 5), low), 0.8 * light * TONGUE)
        edge = top + np.clip(0.5 * gap - 0.8, 0, 3.4 * (1 + self.expression.teeth))
        fill(image, band(0.86 * x, top, edge), min(light, 1.05) * TEETH)

    def draw_glasses(self, image: np.ndarray) -> None:
        """Thin dark frames."""
        radius = self.face.glasses
        for eye in EYES:
            side = np.sign(eye)
            line(image, [eye, 1.5] + LENS * [radius, 0.78 * radius], GLASSES, 2)
            arm = np.array([[eye + side * radius, -1.0], [side * (self.face.face_width + 1), -3.0]])
            line(image, arm, GLASSES, 2)
        line(image, np.array([[-25 + radius, 0], [0, -2.0], [25 - radius, 0]]), GLASSES, 2)


def draw_eyeball(face: SimpleNamespace) -> np.ndarray:
    """Sclera, iris, pupil and a highlight, larger than the eye box: (rows, columns, 3) float32."""
    columns, rows = (int(2 * half * TEXTURE_SCALE) + 16 for half in EYE_BOX)
    ball = np.full((rows, columns, 3), (222, 226, 230), np.uint8)
    middle, radius = (columns * 8, rows * 8), int(5.0 * TEXTURE_SCALE * 16)
    iris = np.array(face.iris)
    rings = [(1.0, 0.45 * iris), (0.86, iris), (0.6, 1.2 * iris), (0.45, np.full(3, 14.0))]
    for size, colour in rings:
        paint = np.minimum(colour, 250).tolist()
        cv2.circle(ball, middle, int(size * radius), paint, -1, cv2.LINE_AA, SUBPIXEL)
    shine = (middle[0] + int(np.sign(face.light) * 0.3 * radius), middle[1] - int(0.35 * radius))
    cv2.circle(ball, shine, int(0.2 * radius), (245, 248, 250), -1, cv2.LINE_AA, SUBPIXEL)
    shadow = np.linspace(0.62, 1.1, rows, dtype=np.float32).clip(0, 1)[:, None, None]
    return cv2.GaussianBlur(ball, (3, 3), 0).astype(np.float32) * shadow


# The head in the picture


def cells_with_head(maps: np.ndarray, alpha: np.ndarray) -> tuple[slice, slice]:
    """The block of coarse cells that the head ever touches; the rest stands still."""
    near = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((25, 25), np.uint8))
    looked_at = np.rint(maps).astype(int)
    x, y = (np.clip(looked_at[..., k], 0, alpha.shape[1 - k] - 1) for k in (0, 1))
    touched = near[y, x].any(axis=0)
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def depth(x: np.ndarray, y: np.ndarray, face: SimpleNamespace) -> np.ndarray:
    """How far the face stands out at (x, y), face units: an ellipsoid with a nose."""
    inside = np.clip(1 - (x / face.face_width) ** 2 - ((y - 10) / 78) ** 2, 0, 1)
    nose = 9 * np.exp(-0.5 * ((x / 7) ** 2 + ((y - face.nose_length + 4) / 9) ** 2))
    return 46 * inside**0.8 + nose


def warp_maps(face: SimpleNamespace, tracks: SimpleNamespace) -> np.ndarray:
    """Where each coarse cell of each frame looks in the texture: (n, 28, 28, 2) float32.

    Roll, zoom and shift are exact; yaw and pitch shift a point by its depth (small turns); the jaw
    drops with the mouth. Maps this smooth lose nothing on a grid of CELL pixels.
    """
    at = SimpleNamespace(**{name: track[:, None, None] for name, track in vars(tracks).items()})
    middles = np.arange(FRAME_SIZE // CELL) * CELL + 0.5 * (CELL - 1)
    across, down = np.meshgrid(middles, middles)
    x, y = across - at.x, down - at.y
    cos, sin = np.cos(at.roll) / at.zoom, np.sin(at.roll) / at.zoom
    x, y = cos * x + sin * y, cos * y - sin * x
    stands_out = depth(x, y, face)
    drop = np.clip((y - face.mouth_y) / 22, 0, 1)
    jaw = 4.0 * at.opening * drop * np.clip(1.4 - np.abs(x) / 50, 0, 1)
    source = [x - at.yaw * stands_out, y - at.pitch * stands_out - jaw]
    return (np.stack(source, axis=-1) * TEXTURE_SCALE + ORIGIN).astype(np.float32)


def alignments(clip: Clip, tracks: SimpleNamespace) -> np.ndarray:
    """Similarity transforms frame -> aligned face from the rigid landmarks: (n, 2, 3) float64.

    Eye corners and nose tip, where the renderer put them plus a detector's jitter, are laid on the
    mean face by least squares, as OpenFace -simalign does with its rigid points.
    """
    seen = project(landmarks(clip.face.eye_width, clip.face.nose_length), clip.face, tracks)
    noise = clip.key.rng("detector").standard_normal((len(seen) + 4, *seen.shape[1:]))
    noise = sum(noise[k : k + len(seen)] for k in range(5)) / np.sqrt(5)
    mean_face = landmarks(12.2, 28.0) * ALIGNED_SCALE + ALIGNED_ORIGIN
    return similarity(seen + DETECTOR_JITTER * noise, mean_face)


def landmarks(eye_width: float, nose_length: float) -> np.ndarray:
    """Eye corners and nose tip in face units: (5, 2)."""
    corners = [(eye + side * eye_width, 0.0) for eye in EYES for side in (-1, 1)]
    return np.array([*corners, (0.0, nose_length)])


def project(points: np.ndarray, face: SimpleNamespace, tracks: SimpleNamespace) -> np.ndarray:
    """Where points of the face (p, 2) are in every frame: (n, p, 2) pixels."""
    at = SimpleNamespace(**{name: track[:, None] for name, track in vars(tracks).items()})
    out = depth(points[:, 0], points[:, 1], face)
    x, y = points[:, 0] + at.yaw * out, points[:, 1] + at.pitch * out
    cos, sin = np.cos(at.roll), np.sin(at.roll)
    across = at.zoom * (cos * x - sin * y) + at.x
    return np.stack([across, at.zoom * (sin * x + cos * y) + at.y], axis=-1)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares scale, rotation and shift from (n, p, 2) to (p, 2): (n, 2, 3)."""
    start, goal = source.mean(axis=1, keepdims=True), target.mean(axis=0)
    a, b = source - start, target - goal
    size = (a**2).sum(axis=(1, 2))
    real = (a * b).sum(axis=(1, 2)) / size
    turn = (a[..., 0] * b[:, 1] - a[..., 1] * b[:, 0]).sum(axis=1) / size
    matrix = np.stack([np.stack([real, -turn], -1), np.stack([turn, real], -1)], axis=1)
    shift = goal[:, None] - matrix @ start.transpose(0, 2, 1)
    return np.concatenate([matrix, shift], axis=2)
