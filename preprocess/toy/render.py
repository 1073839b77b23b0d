"""Frames of one clip: the head, turned and moved into the picture, and the aligned faces."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from preprocess.toy.canvas import ORIGIN, TEXTURE_SCALE
from preprocess.toy.clips import Clip, Tracks, make_tracks
from preprocess.toy.features import EYES, FeaturePainter, Pose
from preprocess.toy.portrait import FRAME_SIZE, make_portrait
from preprocess.toy.speakers import FaceTraits

CELL = 8  # frame pixels between the points where the head's turn is computed
ALIGNED_SIZE = 112
ALIGNED_SCALE = 0.8  # pixels of a 112-pixel aligned face per face unit
ALIGNED_ORIGIN = (56.0, 43.0)
DETECTOR_JITTER = 0.25  # frame pixels; landmarks of a real detector are never still


def draw_frames(clip: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw a clip frame by frame.

    Yields:
        frame: (224, 224, 3) uint8 BGR.
        aligned: (2, 3) transform from the frame to a 112-pixel aligned face, for `align`.
    """
    portrait = make_portrait(clip)
    tracks = make_tracks(clip)
    painter = FeaturePainter(clip.speaker.face, clip.expression, portrait)
    maps = warp_maps(clip.speaker.face, tracks)
    cells = cells_with_head(maps, portrait.alpha)
    rows, columns = (slice(part.start * CELL, part.stop * CELL) for part in cells)
    behind = np.ascontiguousarray(portrait.background[rows, columns])
    transforms = alignments(clip, tracks)
    for index in range(clip.speech.frames):
        texture = painter.draw(pose_at(tracks, index))
        warp = cv2.resize(maps[index][cells], behind.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        head = _remap(texture, warp, borderMode=cv2.BORDER_REPLICATE)
        share = _remap(portrait.alpha, warp)
        frame = portrait.background.copy()
        frame[rows, columns] = cv2.blendLinear(head, behind, share, 1 - share)
        yield frame, transforms[index]


def _remap(image: np.ndarray, warp: np.ndarray, **options: int) -> np.ndarray:
    # OpenCV's stubs do not know that the second map may be None.
    return cv2.remap(image, warp, None, cv2.INTER_LINEAR, **options)  # type: ignore[call-overload]


def cells_with_head(maps: np.ndarray, alpha: np.ndarray) -> tuple[slice, slice]:
    """The block of coarse cells that the head ever touches; the rest stands still."""
    near = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((25, 25), np.uint8))
    looked_at = np.rint(maps).astype(int)
    x, y = (np.clip(looked_at[..., k], 0, alpha.shape[1 - k] - 1) for k in (0, 1))
    touched = near[y, x].any(axis=0)
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def pose_at(tracks: Tracks, index: int) -> Pose:
    """The moving parts of one frame."""
    return Pose(
        opening=float(tracks.opening[index]),
        rounding=float(tracks.rounding[index]),
        intensity=float(tracks.intensity[index]),
        eyelids=float(tracks.eyelids[index]),
        gaze_x=float(tracks.gaze_x[index]),
        gaze_y=float(tracks.gaze_y[index]),
    )


def depth(x: np.ndarray, y: np.ndarray, face: FaceTraits) -> np.ndarray:
    """How far the face stands out at (x, y), face units: an ellipsoid with a nose."""
    inside = np.clip(1 - (x / face.face_width) ** 2 - ((y - 10) / 78) ** 2, 0, 1)
    nose = 9 * np.exp(-0.5 * ((x / 7) ** 2 + ((y - face.nose_length + 4) / 9) ** 2))
    return 46 * inside**0.8 + nose


def warp_maps(face: FaceTraits, tracks: Tracks) -> np.ndarray:
    """Where each coarse cell of each frame looks in the texture: (n, 28, 28, 2) float32.

    Roll, zoom and shift are exact; yaw and pitch shift a point by its depth (small turns); the jaw
    drops with the mouth. Maps this smooth lose nothing on a grid of CELL pixels.
    """
    middles = np.arange(FRAME_SIZE // CELL) * CELL + 0.5 * (CELL - 1)
    across, down = np.meshgrid(middles, middles)
    column = (slice(None), None, None)
    x, y = across - tracks.x[column], down - tracks.y[column]
    cos, sin = (
        np.cos(tracks.roll)[column] / tracks.zoom[column],
        np.sin(tracks.roll)[column] / tracks.zoom[column],
    )
    x, y = cos * x + sin * y, cos * y - sin * x
    stands_out = depth(x, y, face)
    jaw = (
        4.0
        * tracks.opening[column]
        * np.clip((y - face.mouth_y) / 22, 0, 1)
        * np.clip(1.4 - np.abs(x) / 50, 0, 1)
    )
    source_x = x - tracks.yaw[column] * stands_out
    source_y = y - tracks.pitch[column] * stands_out - jaw
    maps = np.stack([source_x, source_y], axis=-1) * TEXTURE_SCALE + ORIGIN
    return maps.astype(np.float32)


def alignments(clip: Clip, tracks: Tracks) -> np.ndarray:
    """Similarity transforms frame -> aligned face from the rigid landmarks: (n, 2, 3) float64.

    Eye corners and nose tip, where the renderer put them plus a detector's jitter, are laid on the
    mean face by least squares, as OpenFace -simalign does with its rigid points.
    """
    face = clip.speaker.face
    width = face.eye_width
    points = [(eye + side * width, 0.0) for eye in EYES for side in (-1, 1)] + [
        (0.0, face.nose_length)
    ]
    mean_face = [(eye + side * 12.2, 0.0) for eye in EYES for side in (-1, 1)] + [(0.0, 28.0)]
    seen = project(np.array(points), face, tracks)
    rng = clip.key.rng(31)
    noise = rng.standard_normal((len(seen) + 4, *seen.shape[1:]))
    noise = sum(noise[k : k + len(seen)] for k in range(5)) / np.sqrt(5)
    return similarity(
        seen + DETECTOR_JITTER * noise, np.array(mean_face) * ALIGNED_SCALE + ALIGNED_ORIGIN
    )


def project(points: np.ndarray, face: FaceTraits, tracks: Tracks) -> np.ndarray:
    """Where points of the face (p, 2) are in every frame: (n, p, 2) pixels."""
    out = depth(points[:, 0], points[:, 1], face)
    x = points[:, 0] + tracks.yaw[:, None] * out
    y = points[:, 1] + tracks.pitch[:, None] * out
    cos, sin = np.cos(tracks.roll)[:, None], np.sin(tracks.roll)[:, None]
    zoom = tracks.zoom[:, None]
    return np.stack(
        [
            zoom * (cos * x - sin * y) + tracks.x[:, None],
            zoom * (sin * x + cos * y) + tracks.y[:, None],
        ],
        axis=-1,
    )


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


def align(frame: np.ndarray, transform: np.ndarray, size: int = ALIGNED_SIZE) -> np.ndarray:
    """Cut the aligned face out of a frame: (size, size, 3) uint8."""
    scale = size / ALIGNED_SIZE
    matrix = transform * scale
    matrix[:, 2] += 0.5 * (scale - 1)  # pixel centres
    return cv2.warpAffine(
        frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
