"""Faces in videos: cut out as OpenFace does (here), found (detector) and followed (tracking)."""

import cv2
import numpy as np

SMOOTHING = 0.08  # seconds; deviation of the weights with which points are averaged over time
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
    """Return the turn, scale and shift that bring points (N, 2) closest to a target, least squares.

    In the (2, 3) float64 matrix, target is about matrix[:, :2] @ point + matrix[:, 2].
    """
    middle, goal = points.mean(0), target.mean(0)
    # In the complex plane turn and scale are one factor.
    source, wanted = (points - middle) @ [1, 1j], (target - goal) @ [1, 1j]
    factor = (source.conj() @ wanted) / max((source.conj() @ source).real, 1e-12)
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, goal - turn @ middle])


def align(image: np.ndarray, points: np.ndarray, img_size: int) -> np.ndarray:
    """Cut the square of `img_size` pixels around a face with points (5, 2) out of (H, W, 3) uint8.

    It is black where it leaves the image, as in OpenFace.
    """
    matrix = similarity(points, template(img_size))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:  # bilinear sampling would skip pixels: average them first
        height, width = image.shape[:2]
        size = max(round(width * 2 * scale), 1), max(round(height * 2 * scale), 1)
        ratio = np.array([width / size[0], height / size[1]])
        # Pixel centres: (x + 0.5) * ratio - 0.5 in the large image is x in the small one.
        shift = matrix[:, 2] + matrix[:, :2] @ (ratio / 2 - 0.5)
        matrix = np.column_stack([matrix[:, :2] * ratio, shift])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(image, matrix, (img_size, img_size), flags=cv2.INTER_LINEAR)
