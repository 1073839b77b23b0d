"""Turn and scale a face so that its five points come to rest where OpenFace puts them.

From the faces found in each frame to one face's points in every frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from hicmae.faces.detector import ACCEPTED, Detector, Face, overlap

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
        image, matrix = _shrunk_image(image, matrix, 2 * scale)
    return cv2.warpAffine(image, matrix, (img_size, img_size), flags=cv2.INTER_LINEAR)


def _shrunk_image(
    image: np.ndarray, matrix: np.ndarray, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image by area, and the matrix so that it maps the result as it did the image."""
    height, width = image.shape[:2]
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    ratio = np.array([width / size[0], height / size[1]])
    grown = matrix.copy()
    grown[:, :2] = matrix[:, :2] * ratio
    # Pixel centres: (x + 0.5) * ratio - 0.5 in the large image is x in the small one.
    grown[:, 2] += matrix[:, :2] @ (ratio / 2 - 0.5)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), grown


SEARCH_SIZE = 640  # pixels of the longer side; larger frames are shrunk to find faces


SAME_TRACK = 0.3  # intersection over union of one face in neighbouring frames


LONGEST_PAUSE = 25  # frames after which a lost face is not the same track any more


CUT = 0.5  # a face that moves or grows by more than this share between frames: another shot


def search(
    frames: Iterable[np.ndarray], detector: Detector, detect_every: int = 5
) -> tuple[list[list[Face]], tuple[int, int]]:
    """Find the faces of each frame of a clip in frames shrunk to SEARCH_SIZE.

    Args:
        frames: (H, W, 3) uint8 RGB, all of one size.
        detector: finds and places faces.
        detect_every: see `find_faces`.

    Returns:
        The faces in pixels of the frames as they came, and the frames' width and height.
    """
    shape: tuple[int, ...] = (0, 0)

    def shrunk() -> Iterator[np.ndarray]:
        nonlocal shape
        for frame in frames:
            shape = frame.shape
            yield _shrunk(frame)

    found = find_faces(shrunk(), detector, detect_every)
    height, width = shape[:2]
    scale = max(height, width, SEARCH_SIZE) / SEARCH_SIZE
    grown = [[face.scaled(scale) for face in faces] for faces in found]
    return grown, (width, height)


def _shrunk(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = SEARCH_SIZE / max(height, width, SEARCH_SIZE)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return frame if scale == 1 else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def find_faces(
    frames: Iterable[np.ndarray], detector: Detector, detect_every: int = 5
) -> list[list[Face]]:
    """Find the faces of each frame of a clip.

    Every `detect_every`-th frame is searched. A face found in two such frames is placed in those
    between by the last net alone, on the way from one box to the other; where that fails, or
    faces came or went, the frames between are searched too.

    Args:
        frames: (H, W, 3) uint8 RGB, all of one size; only a few are held at a time.
        detector: finds and places faces.
        detect_every: frames from one search to the next.
    """
    faces: list[list[Face]] = []
    before: list[Face] = []
    for chunk in _chunks(frames, detect_every):
        (after,) = detector.detect(chunk[-1:])
        faces += _between(chunk[:-1], before, after, detector) + [after]
        before = after
    return faces


def main_face(faces: Sequence[Sequence[Face]], size: tuple[int, int]) -> list[Face | None]:
    """Follow the main face of a clip.

    Faces that overlap from frame to frame are a track. The main one is large, near the middle and
    there for long. In frames without it the best of the other tracks is taken, so that a face that
    was lost, or is shown in another shot, goes on.

    Args:
        faces: the faces of each frame.
        size: width and height of the frames.

    Returns:
        A face for each frame, None where there is none.
    """
    chosen: list[Face | None] = [None] * len(faces)
    for track in sorted(tracks_of(faces), key=lambda track: -_weight(track, size)):
        for frame, face in track.items():
            if chosen[frame] is None:
                chosen[frame] = face
    return chosen


def fill_gaps(chosen: Sequence[Face | None]) -> tuple[np.ndarray, int]:
    """Give frames without a face the points of the nearest frame that has one.

    Returns:
        points (T, 5, 2), and the length of the longest gap in frames.
    """
    good = np.array([frame for frame, face in enumerate(chosen) if face is not None])
    if not len(good):
        raise ValueError("expected a face in at least one frame, got none")
    points = np.stack([face.points for face in chosen if face is not None])
    frames = np.arange(len(chosen))
    after = np.searchsorted(good, frames).clip(max=len(good) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(frames - good[before] <= np.abs(good[after] - frames), before, after)
    ends = np.concatenate([[-1], good, [len(chosen)]])
    return points[nearest], int(np.diff(ends).max()) - 1


def smooth(points: np.ndarray, sigma: float) -> np.ndarray:
    """Average points over neighbouring frames with Gaussian weights, but not across a cut.

    Args:
        points: (T, N, 2) x, y.
        sigma: of the weights, in frames; 0 leaves the points as they are.

    Returns:
        (T, N, 2).
    """
    if sigma <= 0:
        return points
    middle = points.mean(1)
    spread = np.linalg.norm(points - middle[:, None], axis=2).mean(1)  # about half a face
    moved = np.linalg.norm(np.diff(middle, axis=0), axis=1) / (2 * spread[:-1])
    grown = np.abs(np.log(spread[1:] / spread[:-1]))
    cuts = np.flatnonzero((moved > CUT) | (grown > CUT)) + 1
    return np.concatenate([_smooth_shot(shot, sigma) for shot in np.split(points, cuts)])


def _smooth_shot(points: np.ndarray, sigma: float) -> np.ndarray:
    """Fit a line to the neighbours of each frame, so that motion does not lag at the ends."""
    length, radius = len(points), int(np.ceil(3 * sigma))
    values = np.pad(points.reshape(length, -1), ((radius, radius), (0, 0)))
    there = np.pad(np.ones((length, 1)), ((radius, radius), (0, 0)))
    sums = [np.zeros(1)] * 5  # of weight times 1, offset, offset squared, value, offset times value
    for start, offset in enumerate(range(-radius, radius + 1)):
        weight = np.exp(-0.5 * (offset / sigma) ** 2)
        known, value = there[start : start + length], values[start : start + length]
        terms = (known, offset * known, offset**2 * known, value, offset * value)
        sums = [total + weight * term for total, term in zip(sums, terms, strict=True)]
    one, first, second, value, moment = sums
    second = second + 1e-9  # a single frame has no line, only its value
    smoothed = (second * value - first * moment) / (one * second - first**2)
    return smoothed.reshape(points.shape)


def _chunks(frames: Iterable[np.ndarray], length: int) -> Iterator[list[np.ndarray]]:
    """Yield frame 0, then groups of `length` frames; the last may be shorter."""
    chunk: list[np.ndarray] = []
    for index, frame in enumerate(frames):
        chunk.append(frame)
        if index % length == 0:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _between(
    frames: list[np.ndarray], before: list[Face], after: list[Face], detector: Detector
) -> list[list[Face]]:
    """Return the faces of the frames between two searched ones."""
    if not frames:
        return []
    pairs = _pairs(before, after)
    if len(pairs) < max(len(before), len(after)):
        return detector.detect(frames)
    steps = np.arange(1, len(frames) + 1)[:, None] / (len(frames) + 1)
    found: list[list[Face]] = [[] for _ in frames]
    for i, j in pairs:
        boxes = before[i].box + steps * (after[j].box - before[i].box)
        for faces, face in zip(found, detector.locate(frames, boxes), strict=True):
            faces += [face] if face.score >= ACCEPTED else []
    lost = [index for index, faces in enumerate(found) if len(faces) < len(pairs)]
    if lost:
        searched = detector.detect([frames[index] for index in lost])
        for index, faces in zip(lost, searched, strict=True):
            found[index] = faces
    return found


def _pairs(before: Sequence[Face], after: Sequence[Face]) -> list[tuple[int, int]]:
    """Match the faces of two frames: indices of those that overlap, the largest overlap first."""
    overlaps = np.array([[overlap(a, b) for b in after] for a in before])
    pairs = []
    while overlaps.size and overlaps.max() > SAME_TRACK:
        i, j = np.unravel_index(overlaps.argmax(), overlaps.shape)
        pairs.append((int(i), int(j)))
        overlaps[i, :] = overlaps[:, j] = 0
    return pairs


def tracks_of(faces: Sequence[Sequence[Face]]) -> list[dict[int, Face]]:
    """Link faces through the frames; a track maps frames to faces."""
    tracks: list[dict[int, Face]] = []
    open_tracks: list[dict[int, Face]] = []
    for frame, found in enumerate(faces):
        open_tracks = [t for t in open_tracks if frame - next(reversed(t)) <= LONGEST_PAUSE]
        last_seen = [track[next(reversed(track))] for track in open_tracks]
        matched = {j: i for i, j in _pairs(last_seen, found)}
        for index, face in enumerate(found):
            if index in matched:
                open_tracks[matched[index]][frame] = face
            else:
                tracks.append({frame: face})
                open_tracks.append(tracks[-1])
    return tracks


def _weight(track: dict[int, Face], size: tuple[int, int]) -> float:
    """Sum over frames of a face's share of the frame, halved for one in a corner."""
    middle = np.array(size) / 2
    return sum(
        face.size
        / min(size)
        * (1 - 0.5 * np.linalg.norm(face.centre - middle) / np.linalg.norm(middle))
        for face in track.values()
    )
