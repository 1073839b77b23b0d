"""Frames of one clip: a plain drawn head of flat shapes, back to front, and its landmarks.

Shapes are computed for all frames at once; a frame is then a few calls of OpenCV.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from preprocess.toy.plan import Clip, make_tracks

FRAME_SIZE = 96
SCALE, ORIGIN = 0.5, (48.0, 44.0)  # pixels per face unit, and where the face's origin rests
DETECTOR_JITTER = 0.15  # pixels; landmarks of a real detector are never still
SUBPIXEL = 4  # bits: polygons are placed to 1/16 of a pixel
EYES = (-25.0, 25.0)  # x of their middles

ALONG = np.linspace(-1, 1, 13)  # across an eye or the mouth, left to right
ARCH = 1 - ALONG**2
OUTWARD = np.linspace(0, 1, 8)  # along a brow, from the nose outwards
TURN = np.linspace(0, 2 * np.pi, 20, endpoint=False)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], -1)
GUMS, TEETH, TONGUE = np.array([(74, 22, 34), (240, 236, 226), (196, 92, 98)], float)
DARK = np.array([34.0, 30.0, 32.0])


def draw_frames(clip: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each frame, (96, 96, 3) uint8 RGB, and its landmarks, (5, 2) in pixels, to align it."""
    painter = Painter(clip)
    painter.draw()
    points, rng, wall = painter.landmarks(), clip.key.rng("wall"), np.array(clip.scene.wall)
    background: np.ndarray = np.full((FRAME_SIZE, FRAME_SIZE, 3), wall, np.uint8)
    for _ in range(4):  # soft shapes
        x, y, wide, high = rng.integers((-10, -10, 14, 14), (80, 80, 50, 60)).tolist()
        colour = np.clip(wall * rng.uniform(0.65, 1.25) + rng.uniform(-18, 18, 3), 10, 245)
        cv2.rectangle(background, (x, y), (x + wide, y + high), colour.tolist(), -1)
    background = cv2.GaussianBlur(background, (0, 0), 3)
    across = np.linspace(-1, 1, FRAME_SIZE, dtype=np.float32) * clip.scene.light
    light = clip.scene.brightness * (1 + 0.22 * across - 0.05 * np.abs(clip.scene.light))
    shade = np.ascontiguousarray(np.broadcast_to(light[None, :, None], background.shape))
    for index in range(clip.speech.frames):
        frame = background.copy()
        for shape, paint, thickness in painter.shapes:
            at = [shape[index]]
            if thickness:
                cv2.polylines(frame, at, False, paint, thickness, cv2.LINE_AA, SUBPIXEL)
            else:
                cv2.fillPoly(frame, at, paint, cv2.LINE_AA, SUBPIXEL)
        yield cv2.multiply(frame, shade, dtype=cv2.CV_8U), points[index]


class Painter:
    """Places the shapes of a clip, those behind first; curves are (n,) or, moving, (frames, n)."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.face, self.expression = clip, clip.face, clip.expression
        self.at = make_tracks(clip)
        self.skin, self.hair = np.array(clip.face.skin), np.array(clip.face.hair)
        self.intensity = self.at.intensity[:, None]
        self.jaw = 7.0 * self.at.opening[:, None]  # how far the chin drops
        # points (frames, n, 2) int32 in 1/16 pixels, colour, thickness of a line or 0
        self.shapes: list[tuple[np.ndarray, tuple[float, ...], int]] = []

    def place(self, x: Any, y: Any, depth: float) -> np.ndarray:
        """Return (frames, n, 2) pixels; yaw and pitch move points that stand out by `depth`."""
        at, scene = self.at, self.clip.scene
        x = x + np.sin(at.yaw)[:, None] * depth
        y = y + np.sin(at.pitch)[:, None] * depth
        cos, sin = (SCALE * scene.zoom * f(at.roll)[:, None] for f in (np.cos, np.sin))
        across = cos * x - sin * y + (ORIGIN[0] + at.x)[:, None]
        return np.stack([across, sin * x + cos * y + (ORIGIN[1] + at.y)[:, None]], -1)

    def add(self, x: Any, y: Any, depth: float, colour: np.ndarray, thickness: int = 0) -> None:
        """Add a shape of the head."""
        fixed = np.rint(self.place(x, y, depth) * (1 << SUBPIXEL)).astype(np.int32)
        self.shapes.append((fixed, tuple(np.clip(colour, 0, 255).tolist()), thickness))

    def band(self, x: Any, upper: Any, lower: Any, depth: float, colour: np.ndarray) -> None:
        """Add the shape between two curves over the same x."""
        x, upper, lower = np.broadcast_arrays(x, upper, lower)
        across = np.concatenate([x, x[..., ::-1]], -1)
        self.add(across, np.concatenate([upper, lower[..., ::-1]], -1), depth, colour)

    def ellipse(self, x: Any, y: Any, wide: Any, high: Any, depth: float, colour: Any) -> None:
        """Add an ellipse; each number may be (frames, 1)."""
        self.add(x + wide * CIRCLE[:, 0], y + high * CIRCLE[:, 1], depth, colour)

    def draw(self) -> None:
        """Add all shapes, from the shoulders to the mouth."""
        face = self.face
        neck, wide = face.neck, 2 * face.neck + 16
        x = np.array([-wide - 12, -wide, -neck - 8, neck + 8, wide, wide + 12])  # shoulders
        self.add(x, np.array([140, 112, 92, 92, 112, 140]), -20, np.array(face.clothes))
        self.band(neck * np.array([-1, 1]), 40, np.array([102, 102]), -20, self.skin * 0.76)
        if face.hair_end > 40:
            end, top = face.hair_end, face.top_y - face.hair_volume
            x = np.array([0.55, 1.0, 1.1, 1.12, 1.08, 0.7, 0]) * (face.width + face.hair_volume)
            y = np.array([end, end, 0.6 * end, 0, 0.45 * top, 0.96 * top, top - 8])
            x, y = np.append(x, -x[-2::-1]), np.append(y, y[-2::-1])
            self.add(x, y, -16, self.hair * 0.75)
        for side in (-1, 1):
            self.ellipse(side * (face.width + 2), 6, 7, 12, -14, self.skin * 0.86)
        self.draw_head()
        for eye in EYES:
            self.draw_eye(eye)
            self.draw_brow(eye)
        nose, wide = face.nose_length, face.nose_width
        self.band(wide * ALONG, nose - 5 * ARCH, nose + 2.5 * ARCH, 26, self.skin * 0.78)
        self.add(np.array([0.1, -0.25]) * wide, np.array([4, nose - 4]), 24, self.skin * 0.86, 1)
        self.draw_mouth()

    def draw_head(self) -> None:
        """Skull and jaw, cheeks, beard, lines of age and the hair over the forehead."""
        face, jaw = self.face, self.jaw
        half = [*(share * face.width for share in (0.6, 0.93, 1, 0.98)), face.jaw, face.chin_width]
        y = [face.top_y + 6, face.top_y + 30, 2, 26, 0.68 * face.chin_y, face.chin_y - 3]
        x, y, drop = symmetric(half, y, [0, 0, 0, 0, 0.5, 1])
        self.add(x, y + np.clip(drop, 0, 1) * jaw, 0, self.skin)
        blush = self.skin * (1 - 0.25 * self.expression.cheeks * np.array([0.1, 1, 0.9]))
        for side in (-1, 1):
            self.ellipse(side * 30, 27, 10, 7, 14, blush)
        if face.beard:
            across = np.linspace(-1, 1, 15)
            top = face.mouth_y - 8 - 0.6 * (face.mouth_y - 20) * np.abs(across) ** 3
            low = np.interp(np.abs(across) * face.jaw, [0, face.chin_width, face.jaw],
                            [face.chin_y + 2, face.chin_y - 1, 0.66 * face.chin_y])  # fmt: skip
            low = low + jaw * (1 - 0.5 * across**2)
            colour = self.skin + (0.3 + 0.7 * face.beard) * (0.7 * self.hair - self.skin)
            self.band(1.02 * face.jaw * across, top, low, 4, colour)
        if face.lines > 0.1:
            tint = self.skin * (1 - 0.35 * face.lines)
            for y_line in (-33, -27):
                self.add(20 * ALONG, y_line - 2 * ARCH, 10, tint, 1)
            for side in (-1, 1):
                self.add(side * np.array([15, 22, 25]), np.array([26, 34, 42]), 16, tint, 1)
        if face.hair_style != "bald":
            self.draw_hair()

    def draw_hair(self) -> None:
        """Hair over the forehead, between its outer arc and the hairline."""
        face, turn = self.face, np.linspace(-1.75, 1.75, 25)
        line = np.full(25, -42.0)
        across = np.sin(turn)
        if face.hair_style == "fringe":
            line = line + 16 - 2 * np.cos(12 * across)
        elif face.hair_style != "short":  # parted
            line = line + 14 * np.abs(across - face.hair_part) ** 1.2 - 4
        inner = np.where(np.abs(turn) > 1.2, 14 * np.abs(turn) - 20, line)
        x = (face.width + 6 + face.hair_volume) * across
        outer = 4 - (13 + face.hair_volume - face.top_y) * np.cos(turn)
        self.band(x, outer, np.maximum(inner, outer), 2, self.hair)

    def draw_eye(self, eye: float) -> None:
        """White, iris and pupil behind the lids, and lashes."""
        face, show, at = self.face, self.expression, self.at
        x = eye + face.eye_width * ALONG
        tall = face.eye_height * (1 + 0.35 * self.clip.scene.energy)
        low = (0.8 * tall - np.clip(show.lower_lid * self.intensity, -1, 4)) * ARCH
        high = -(tall - np.clip(show.upper_lid * self.intensity, -1, 4)) * ARCH
        upper = low + (high - low) * at.eyelids[:, None]
        self.band(x, upper, low, 16, np.array([246.0, 244, 240]))
        middle = ALONG.size // 2
        for radius, colour in ((5.6, np.array(face.iris)), (2.8, DARK)):
            centre = np.clip(at.gaze_y[:, None] - 0.5, -1, 1)
            top = np.maximum(centre - radius, upper[:, middle, None])
            bottom = np.maximum(np.minimum(centre + radius, low[:, middle, None]), top)
            y, half = (top + bottom) / 2, (bottom - top) / 2
            self.ellipse(eye + at.gaze_x[:, None], y, radius, half, 17, colour)
        self.add(x, upper, 16, 0.25 * self.skin, 1)
        self.add(x[2:-2], low[:, 2:-2] + 1, 16, 0.8 * self.skin, 1)

    def draw_brow(self, eye: float) -> None:
        """A tapered stroke from the nose outwards."""
        face, show = self.face, self.expression
        inner = face.rest_brow + show.brow_inner * self.intensity
        outer = face.rest_brow + show.brow_outer * self.intensity
        x = np.sign(eye) * (11 + 28 * OUTWARD - 0.3 * min(show.brow_inner, 0) * (OUTWARD - 1))
        y = face.brow_y - inner * (1 - OUTWARD) - outer * OUTWARD - 3.5 * np.sin(np.pi * OUTWARD)
        half = 0.5 * face.brow_thickness * (1 - 0.6 * OUTWARD**2)
        colour = np.minimum(0.8 * self.hair, 0.75 * self.skin)
        self.band(x, y - half, y + half, 18, colour)

    def lips(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the line between shut lips: (frames, 13) each."""
        face, show = self.face, self.expression
        corner = face.rest_corner + show.corner * self.intensity
        width = face.mouth_width + show.stretch * self.intensity
        x = width * (1 - 0.25 * self.at.rounding[:, None]) * ALONG
        return x, face.mouth_y + 0.35 * corner - corner * ALONG**2

    def draw_mouth(self) -> None:
        """Lips around a dark opening with teeth and tongue."""
        face, gap, (x, middle) = self.face, 17 * self.at.opening[:, None], self.lips()
        top, low = middle - 0.25 * gap * ARCH, middle + 0.75 * gap * ARCH**0.8
        lips = 0.3 + 0.6 * face.lips
        red = (1 - lips) * self.skin + lips * np.array([186.0, 40, 60])
        upper = top - (3 + 2 * face.lips) * ARCH**0.7
        self.band(1.06 * x, upper, low + (4 + 3 * face.lips) * ARCH**0.7, 20, red)
        self.band(x, top - 0.6, low + 0.6, 20, GUMS)
        self.band(0.6 * x, low - 0.4 * gap * ARCH, low, 20, TONGUE)
        self.band(0.85 * x, top, top + 0.3 * gap * ARCH, 20, TEETH)
        self.band(x, upper, top - 1.0, 20, red * 0.9)
        self.add(x, top, 20, GUMS, 1)

    def landmarks(self) -> np.ndarray:
        """Eyes, tip of the nose, corners of the mouth, plus a detector's jitter: (frames, 5, 2)."""
        x, y = (line[:, [0, -1]] for line in self.lips())
        nose = np.zeros(1), np.array([self.face.nose_length])
        places = (np.array(EYES), np.zeros(2), 16), (*nose, 26), (x, y, 20)
        found = np.concatenate([self.place(*place) for place in places], 1)
        noise = self.clip.key.rng("detector").standard_normal((len(found) + 4, 5, 2))
        smooth = sum(noise[k : k + len(found)] for k in range(5)) / np.sqrt(5)
        return found + DETECTOR_JITTER * smooth


def symmetric(x: Any, *others: Any) -> np.ndarray:
    """A smooth closed curve of 48 points through those given and, with -x, mirrored: (n, 48)."""
    from scipy.interpolate import CubicSpline  # here, as no --help should wait for it

    right, left = np.array([x, *others]), np.array([np.negative(x), *others])
    points = np.concatenate([right, left[:, ::-1], right[:, :1]], axis=1)
    corners = np.arange(points.shape[1])
    moments = np.linspace(0, corners[-1], 48, endpoint=False)
    return CubicSpline(corners, points, axis=1, bc_type="periodic")(moments)
