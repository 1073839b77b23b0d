"""The head texture that everything is drawn on, and drawing in face units."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

TEXTURE_SCALE = 1.5  # texture pixels per face unit: finer than the frame, which gives smooth edges
ORIGIN = np.array([135.0, 132.0])  # of the face, in texture pixels
TEXTURE_SIZE = (276, 270)  # rows, columns
SUBPIXEL = 4  # bits: polygons are placed to 1/16 of a pixel
FIXED_SCALE = TEXTURE_SCALE * (1 << SUBPIXEL)
FIXED_ORIGIN = ORIGIN * (1 << SUBPIXEL) + 0.5  # rounds, since the texture has no negative positions
ROWS, COLUMNS = np.mgrid[: TEXTURE_SIZE[0], : TEXTURE_SIZE[1]].astype(np.float32)
GRID_X = (COLUMNS - float(ORIGIN[0])) / TEXTURE_SCALE  # face units, float32
GRID_Y = (ROWS - float(ORIGIN[1])) / TEXTURE_SCALE


def to_texture(points: np.ndarray) -> np.ndarray:
    """Face units (n, 2) -> fixed-point texture pixels for OpenCV."""
    return (points * FIXED_SCALE + FIXED_ORIGIN).astype(np.int32)


def pixel_of(x: float, y: float) -> tuple[int, int]:
    """Row and column of the texture at a point in face units."""
    return round(y * TEXTURE_SCALE + float(ORIGIN[1])), round(x * TEXTURE_SCALE + float(ORIGIN[0]))


def fill(image: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon given in face units."""
    cv2.fillPoly(image, [to_texture(points)], colour.tolist(), cv2.LINE_AA, SUBPIXEL)


def mask_of(points: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """A polygon in face units as (rows, columns) float32 0..1, edge softened by `blur` pixels."""
    mask: np.ndarray = np.zeros(TEXTURE_SIZE, np.uint8)
    fill(mask, points, np.array([255]))
    if blur:
        mask = cv2.GaussianBlur(mask, (0, 0), blur)
    return mask.astype(np.float32) / 255


def closed_curve(control: list[tuple[float, float]], count: int) -> np.ndarray:
    """A smooth closed curve through the control points: (count, 2)."""
    points = np.array([*control, control[0]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1) ** 0.7)])
    return CubicSpline(along, points, bc_type="periodic")(
        np.linspace(0, along[-1], count, endpoint=False)
    )


def bump(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """A Gaussian hill on the texture grid: (rows, columns) float32."""
    across = np.exp(-0.5 * ((GRID_X[0] - float(x)) / radius_x) ** 2)
    down = np.exp(-0.5 * ((GRID_Y[:, 0] - float(y)) / radius_y) ** 2)
    return np.outer(down, across)


def paint(texture: np.ndarray, alpha: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour` over the texture where the mask is; the outline alpha grows with it.

    Colours stay unmixed with the black of an empty texture, so the head has no dark rim.
    """
    share = np.where(alpha > 0.02, mask, np.minimum(1, mask * 50))[..., None]
    texture += share * (colour - texture)
    np.maximum(alpha, mask, out=alpha)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, count: int = 32) -> np.ndarray:
    """An ellipse as (count, 2) points."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)], axis=1)


def line_mask(points: np.ndarray, thickness: int, blur: float) -> np.ndarray:
    """A line through points in face units as (rows, columns) float32 0..1."""
    mask = np.zeros(TEXTURE_SIZE, np.uint8)
    cv2.polylines(mask, [to_texture(points)], False, 255, thickness, cv2.LINE_AA, SUBPIXEL)
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255


def curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two (n,) coordinates as one line (n, 2)."""
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def band(x: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The polygon between two curves over the same x: (2n, 2)."""
    count = len(x)
    points = np.empty((2 * count, 2))
    points[:count, 0], points[:count, 1] = x, upper
    points[count:, 0], points[count:, 1] = x[::-1], lower[::-1]
    return points


def line(image: np.ndarray, points: np.ndarray, colour: np.ndarray, thickness: int) -> None:
    """An anti-aliased line through points in face units."""
    cv2.polylines(
        image, [to_texture(points)], False, colour.tolist(), thickness, cv2.LINE_AA, SUBPIXEL
    )


def box_of(x: float, y: float, half_width: float, half_height: float) -> tuple[slice, slice]:
    """Rows and columns of the texture around a point in face units."""
    left, top = np.rint(
        np.array([x - half_width, y - half_height]) * TEXTURE_SCALE + ORIGIN
    ).astype(int)
    wide, high = int(2 * half_width * TEXTURE_SCALE), int(2 * half_height * TEXTURE_SCALE)
    return slice(top, top + high), slice(left, left + wide)


def blend(
    image: np.ndarray, box: tuple[slice, slice], shape: np.ndarray, opacity: int, paint: np.ndarray
) -> None:
    """Lay `paint`, a colour or an image of the box, over `image` within a soft-edged polygon."""
    part = image[box]
    mask = np.zeros(part.shape[:2], np.uint8)
    corner = np.array([box[1].start, box[0].start]) * (1 << SUBPIXEL)
    cv2.fillPoly(mask, [to_texture(shape) - corner], opacity, cv2.LINE_AA, SUBPIXEL)
    share = cv2.GaussianBlur(mask, (3, 3), 0)[..., None] * np.float32(1 / 255)
    part[:] = part + share * (paint - part)
