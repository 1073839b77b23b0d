"""Turn and scale a face so that its five points come to rest where OpenFace puts them."""

from __future__ import annotations

import cv2
import numpy as np

# OpenFace aligns to the mean shape of its point distribution model, which is in millimetres around
# an origin that it puts in the middle of the square, and draws it at 0.7 pixels a millimetre in 112
# pixels (-simsize 256: 1.6). These are the points of that shape that MTCNN also finds: the means of
# the six points around each eye, the tip of the nose and the corners of the mouth (36-41, 42-47,
# 30, 48 and 54 of its 68). In 256 pixels: eyes (75, 67) and (180, 66), mouth (82, 174) and
# (174, 173); brows near the top, chin at the bottom edge.
MEAN_SHAPE = np.array(
    [[-32.93, -38.29], [32.79, -38.76], [1.23, -8.41], [-28.92, 28.61], [28.79, 28.08]]
)
SIDE = 112 / 0.7  # millimetres across the square


def template(img_size: int) -> np.ndarray:
    """Return where the five points belong in a square of `img_size` pixels: (5, 2) x, y."""
    return (MEAN_SHAPE / SIDE + 0.5) * img_size


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the turn, scale and shift that bring points closest to a target, least squares.

    Args:
        points: (N, 2) x, y.
        target: (N, 2) x, y.

    Returns:
        (2, 3) float64 matrix: target is about matrix[:, :2] @ point + matrix[:, 2].
    """
    middle, goal = points.mean(0), target.mean(0)
    # In the complex plane turn and scale are one factor.
    source = (points - middle) @ [1, 1j]
    wanted = (target - goal) @ [1, 1j]
    factor = (source.conj() @ wanted) / max((source.conj() @ source).real, 1e-12)
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, goal - turn @ middle])


def align(image: np.ndarray, points: np.ndarray, img_size: int) -> np.ndarray:
    """Cut the square around a face.

    Args:
        image: (H, W, 3) uint8.
        points: (5, 2) x, y of the face in it.
        img_size: side of the square in pixels.

    Returns:
        (img_size, img_size, 3) uint8, black where the square leaves the image, as in OpenFace.
    """
    matrix = similarity(points, template(img_size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:  # bilinear sampling would skip pixels: average them first
        image, matrix = _shrunk(image, matrix, 2 * scale)
    return cv2.warpAffine(image, matrix, (img_size, img_size), flags=cv2.INTER_LINEAR)


def _shrunk(image: np.ndarray, matrix: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image by area, and the matrix so that it maps the result as it did the image."""
    height, width = image.shape[:2]
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    ratio = np.array([width / size[0], height / size[1]])
    grown = matrix.copy()
    grown[:, :2] = matrix[:, :2] * ratio
    # Pixel centres: (x + 0.5) * ratio - 0.5 in the large image is x in the small one.
    grown[:, 2] += matrix[:, :2] @ (ratio / 2 - 0.5)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), grown
