"""Follow faces through the frames of a clip."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Sequence
from itertools import chain, islice, pairwise
from typing import Any

import cv2
import numpy as np

from hicmae.faces.detector import ACCEPTED, SAME_FACE, Detector, Face, overlaps

SEARCH_SIZE = 640  # pixels of the longer side; larger frames are shrunk to find faces
SEARCHED_TOGETHER = 4  # frames, as the nets take a batch in less time
SAME_TRACK = 0.3  # intersection over union of one face in neighbouring frames
LONGEST_PAUSE = 25  # frames after which a lost face is not the same track any more
CUT = 0.5  # a face that moves or grows by more than this share between frames: another shot

Track = dict[int, Face]  # a face by frame


def search(
    frames: Iterable[np.ndarray], detector: Detector, detect_every: int
) -> tuple[list[list[Face]], tuple[int, int]]:
    """Find the faces of each frame of a clip.

    Every `detect_every`-th frame and the last one are searched, shrunk to SEARCH_SIZE. Faces found
    in two of them are placed in the middle frame by the last net alone, half-way between their
    boxes, and so on; where that fails, or faces came or went, the middle frame is searched too. So
    a face is found from its first frame on, unless it is gone before the next searched one. Frames
    are (H, W, 3) uint8 RGB, all of one size; those of a few searched ones are held at a time.

    Returns:
        The faces in pixels of the frames as they came, and the frames' width and height.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return [], (0, 0)
    height, width = first.shape[:2]
    longer = max(height, width, SEARCH_SIZE)
    scale, small = longer / SEARCH_SIZE, chain([first], frames)
    if scale > 1:
        sides = [max(round(side * (SEARCH_SIZE / longer)), 1) for side in (width, height)]
        small = chain(cv2.resize(f, sides, interpolation=cv2.INTER_AREA) for f in small)
    faces, chunk = list[list[Face]](), list[np.ndarray]()
    while new := list(islice(small, SEARCHED_TOGETHER * detect_every + (not faces))):
        chunk = [*chunk[-1:], *new]
        faces[-1:] = _search_chunk(chunk, faces[-1:], detector, detect_every)
    return [[face.scaled(scale) for face in found] for found in faces], (width, height)


def _search_chunk(
    frames: list[np.ndarray], known: list[list[Face]], detector: Detector, detect_every: int
) -> list[list[Face]]:
    """Return the faces of each frame; those of the first are `known` unless the list is empty."""
    found = dict(enumerate(known))
    searched = sorted({*range(0, len(frames), detect_every), len(frames) - 1})
    gaps, lost = list(pairwise(searched)), [frame for frame in searched if frame not in found]
    while lost or gaps:
        if lost:
            found |= zip(lost, detector.detect([frames[k] for k in lost]), strict=True)
        halves = [((a + b) // 2, a, b) for a, b in gaps if b - a > 1]
        owners, boxes, lost = [], [], []
        for middle, a, b in halves:
            pairs, share = _pairs(found[a], found[b]), (middle - a) / (b - a)
            found[middle] = []
            if len(pairs) < max(len(found[a]), len(found[b])):
                lost.append(middle)
                continue
            owners += [middle] * len(pairs)
            boxes += [(1 - share) * found[a][i].box + share * found[b][j].box for i, j in pairs]
        if owners:
            placed = detector.locate([frames[k] for k in owners], np.stack(boxes))
            for middle, face in zip(owners, placed, strict=True):
                found[middle].append(face)
        lost += [k for k in dict.fromkeys(owners) if not _are_apart(found[k])]
        gaps = [half for middle, a, b in halves for half in ((a, middle), (middle, b))]
    return [found[frame] for frame in range(len(frames))]


def _are_apart(faces: list[Face]) -> bool:
    """Tell whether what was placed are faces, and each another one."""
    boxes = np.stack([face.box for face in faces])
    shared = overlaps(boxes, boxes, of_smaller=True)
    np.fill_diagonal(shared, 0)
    return all(face.score >= ACCEPTED for face in faces) and bool((shared < SAME_FACE).all())


def _pairs(before: Sequence[Face], after: Sequence[Face]) -> list[tuple[int, int]]:
    """Match the faces of two frames so that the pairs overlap most; returns their indices."""
    if not before or not after:
        return []
    first, second = (np.stack([face.box for face in faces]) for faces in (before, after))
    shared = overlaps(first, second)
    if shared.size == 1:
        return [(0, 0)] if shared[0, 0] > SAME_TRACK else []
    from scipy.optimize import linear_sum_assignment  # takes a third of a second to import

    shared[shared <= SAME_TRACK] = 0
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if shared[i, j]]


def follow(faces: Sequence[Sequence[Face]], size: tuple[int, int]) -> list[Track]:
    """Link faces that overlap from frame to frame; the main one comes first.

    It is large, near the middle and there for long. `size` is width and height of the frames.
    """
    tracks, going_on = list[Track](), list[Track]()
    for frame, found in enumerate(faces):
        going_on = [t for t in going_on if frame - next(reversed(t)) <= LONGEST_PAUSE]
        last_seen = [track[next(reversed(track))] for track in going_on]
        matched = {j: i for i, j in _pairs(last_seen, found)}
        for index, face in enumerate(found):
            if index in matched:
                going_on[matched[index]][frame] = face
            else:
                tracks.append({frame: face})
                going_on.append(tracks[-1])
    middle = np.array(size) / 2

    def weight(track: Track) -> float:
        """Sum over frames of a face's share of the frame, halved for one in a corner."""
        centres = np.stack([face.centre for face in track.values()])
        away = np.linalg.norm(centres - middle, axis=1) / np.linalg.norm(middle)
        shares = np.array([face.size for face in track.values()]) / min(size)
        return float(np.sum(shares * (1 - 0.5 * away)))

    return sorted(tracks, key=weight, reverse=True)


def main_face(faces: Sequence[Sequence[Face]], size: tuple[int, int]) -> list[Face | None]:
    """Return the main face in each frame, None where there is none; arguments as in `follow`.

    In frames without it the best of the other tracks is taken, so that a face that was lost, or is
    shown in another shot, goes on.
    """
    chosen = ChainMap(*follow(faces, size))
    return [chosen.get(frame) for frame in range(len(faces))]


def fill_gaps(chosen: Sequence[Face | None]) -> tuple[np.ndarray, int]:
    """Return points (T, 5, 2), and the length of the longest gap in frames.

    Frames without a face have the points of the nearest frame that has one.
    """
    good = np.array([frame for frame, face in enumerate(chosen) if face is not None])
    if not len(good):
        raise ValueError("expected a face in at least one frame, got none")
    points = np.stack([face.points for face in chosen if face is not None])
    nearest = np.searchsorted((good[1:] + good[:-1]) / 2, np.arange(len(chosen)))
    ends = np.concatenate([[-1], good, [len(chosen)]])
    return points[nearest], int(np.diff(ends).max()) - 1


def smooth(points: np.ndarray, sigma: float) -> np.ndarray:
    """Average points over neighbouring frames with Gaussian weights, but not across a cut.

    Points are (T, N, 2); `sigma` of the weights is in frames, 0 leaves the points as they are. A
    line is fitted to the neighbours of each frame, so that motion does not lag at the ends.
    """
    if sigma <= 0:
        return points
    middle = points.mean(1)
    spread = np.linalg.norm(points - middle[:, None], axis=2).mean(1)  # about half a face
    moved = np.linalg.norm(np.diff(middle, axis=0), axis=1) / (2 * spread[:-1])
    grown = np.abs(np.log(spread[1:] / spread[:-1]))
    cuts = np.flatnonzero((moved > CUT) | (grown > CUT)) + 1
    offsets = range(-(radius := int(np.ceil(3 * sigma))), radius + 1)

    def total(series: np.ndarray, power: int) -> Any:
        """Sum weight x offset ** power x value over each frame's neighbours, in their order."""
        padded = np.pad(series, ((radius, radius), (0, 0)))
        return sum(
            np.exp(-0.5 * (offset / sigma) ** 2) * (offset**power * padded[start:][: len(series)])
            for start, offset in enumerate(offsets)
        )

    shots = []
    for shot in np.split(points.reshape(len(points), -1), cuts):
        one, first, second = (total(np.ones((len(shot), 1)), power) for power in range(3))
        value, moment = (total(shot, power) for power in range(2))
        second = second + 1e-9  # a single frame has no line, only its value
        shots.append((second * value - first * moment) / (one * second - first**2))
    return np.concatenate(shots).reshape(points.shape)
