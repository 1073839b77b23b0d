"""Who is seen in the frames that a model wants to look at, and the faces cut out of them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hicmae.data.clip_list import UnreadableClip
from hicmae.faces.alignment import align
from hicmae.faces.detector import Detector, Face
from hicmae.faces.tracking import fill_gaps, main_face, search, smooth, tracks_of
from hicmae.inference.media import Source
from hicmae.inference.model_config import FACE_SIZE

SEARCH_EVERY = 2  # of the frames looked at; a face is placed in the others on the way between two
SMOOTHING = 0.08  # seconds, as preprocess/face_and_audio/extract_face.py has it
MEMORY = 256 * 1024**2  # bytes of frames that are kept instead of being decoded twice


class NoFace(UnreadableClip):
    """No face was found."""


class Person(NamedTuple):
    """One face through the frames looked at.

    Attributes:
        seen: (n,) bool, whether the face was found in each of them.
        points: (n, 5, 2) of the face in pixels, where it was not found those of the nearest time.
        boxes: (n, 4) left, top, right, bottom; nan where it was not found.
    """

    seen: np.ndarray
    points: np.ndarray
    boxes: np.ndarray


class LookedAt:
    """The frames of a source at some indices, decoded once if they fit into memory."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.kept: list[np.ndarray] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[np.ndarray] | None = []
        room = MEMORY
        for frame in self.source.frames(self.indices):
            room -= frame.nbytes
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(frame)
            yield frame
        self.kept = kept

    def forget(self) -> None:
        """Free the memory."""
        self.kept = None


def find_people(
    frames: LookedAt, times: np.ndarray, everyone: bool, least: int
) -> tuple[list[Person], float]:
    """Find the main face, or every face, in frames.

    Args:
        frames: to look at.
        times: (n,) their seconds.
        everyone: return all that are seen in at least `least` frames, the main one first.
        least: frames.

    Returns:
        The people, and the share of the frames that show several faces.

    Raises:
        NoFace: there is none.
    """
    faces, size = search(frames, detector(), SEARCH_EVERY)
    if not any(faces):
        raise NoFace(
            f"'{frames.source.path}' shows no face in {len(faces)} frames looked at; if its frames "
            "are cut-out faces already, say so: faces='cut' (--faces cut)"
        )
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    paths = [main_face(faces, size)]
    if everyone:
        tracks = sorted(tracks_of(faces), key=_weight, reverse=True)
        kept = [track for track in tracks if len(track) >= least] or tracks[:1]
        paths = [[track.get(k) for k in range(len(faces))] for track in kept]
    crowded = float(np.mean([len(found) > 1 for found in faces]))
    return [_person(path, SMOOTHING / step) for path in paths], crowded


def cut_out(frame: np.ndarray, person: Person, position: int) -> np.ndarray:
    """Cut a person's face out of the frame at a position among those looked at."""
    return align(frame, person.points[position], FACE_SIZE)


@lru_cache(maxsize=1)
def detector() -> Detector:
    """Load the face detector of this process; FileNotFoundError says how to install it."""
    try:
        return Detector()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or cut the faces out before and say so: faces='cut' (--faces cut)"
        ) from None


def _person(path: Sequence[Face | None], sigma: float) -> Person:
    points, _ = fill_gaps(path)
    none = np.full(4, np.nan)
    return Person(
        seen=np.array([face is not None for face in path]),
        points=smooth(points, sigma),
        boxes=np.stack([none if face is None else face.box for face in path]),
    )


def _weight(track: dict[int, Face]) -> float:
    return sum(face.size for face in track.values())
