"""What a model reads of a clip: windows, the faces seen in them, and these as tensors."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from hicmae.data.audio import (
    HOP,
    SAMPLE_RATE,
    SHORTEST_SPAN,
    WINDOW,
    fbank,
    frames_to_samples,
    span_or_whole,
)
from hicmae.data.film import FRAME_RATE
from hicmae.data.media import NoPicture, NoSound
from hicmae.data.video import resize, test_windows, view_crops
from hicmae.faces.detector import Detector
from hicmae.faces.tracking import SMOOTHING, align, fill_gaps, follow, main_face, search, smooth
from hicmae.inference.model import FACE_SIZE, ModelConfig, Preprocessing
from hicmae.inference.sources import Folder, Source
from hicmae.io import UnreadableClip

logger = logging.getLogger(__name__)

FACES = ("auto", "largest", "all", "cut")
PROTOCOLS = ("windows", "test")
MISSING = ("error", "zeros", "drop")
SEARCH_EVERY = 2  # of the frames looked at; a face is placed in the others on the way between two
CROWDED = 0.2  # share of frames with several faces from which the user is told
SEEN = 0.5  # share of a window's frames that must show the face
MEMORY = 256 * 1024**2  # bytes of frames that are kept instead of being decoded twice


@dataclass(frozen=True)
class Options:
    """How a clip is read.

    Attributes:
        faces: "auto" cuts faces out of videos and takes a folder's frames as they are; "largest"
            always cuts out the main face: large, near the middle, there for long; "all" cuts out
            each; "cut" takes all frames as they are.
        window: seconds of a sliding window; None: what the model saw at once in training.
        overlap: seconds that neighbouring windows share; None: half a window.
        protocol: "windows", or "test" for the views of run_finetuning.py's test, whose numbers it
            gives.
        missing_modality: what a model of both streams does without one: "error" refuses; "zeros"
            puts black frames or silence in its place; "drop" leaves it out.
    """

    faces: str = "auto"
    window: float | None = None
    overlap: float | None = None
    protocol: str = "windows"
    missing_modality: str = "error"

    def __post_init__(self) -> None:
        check_choice("faces", self.faces, FACES)
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_choice("missing_modality", self.missing_modality, MISSING)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


# Windows


class Window(NamedTuple):
    """A stretch of a clip, in seconds from the first frame, and what of it the model reads."""

    start: float
    end: float
    frames: np.ndarray | None  # (T,) indices; None where no picture is read
    samples: tuple[int, int] | None  # first and one past the last; None where no sound is read


def sliding(
    times: np.ndarray | None,
    num_samples: int | None,
    clip: Preprocessing,
    window: float | None = None,
    overlap: float | None = None,
) -> list[Window]:
    """Slide a window over a clip; the last one ends where the clip does.

    All frames lie on one grid in time, `num_frames` a window, so that neighbouring windows share
    what they read. `times` (n,) are seconds of the frames; None reads no picture, or no sound. For
    window and overlap see `Options`.
    """
    window = clip.clip_seconds if window is None else window
    overlap = window / 2 if overlap is None else overlap
    if not window > 0:
        raise ValueError(f"window must be longer than 0 seconds, got {window:g}")
    if not 0 <= overlap < window:
        raise ValueError(
            f"overlap must be at least 0 and shorter than the window of {window:g} s, "
            f"got {overlap:g}"
        )
    step = window / clip.num_frames
    hop = max(round((window - overlap) / step), 1) * step
    length = (num_samples or 0) / SAMPLE_RATE
    if times is not None:
        length = float(times[-1]) + _frame_step(times)
    starts = [0.0]
    while starts[-1] + window < length - step / 2:
        last = max(int((length - window) / step + 1e-6) * step, starts[-1] + step)
        starts.append(min(starts[-1] + hop, last))
    windows = []
    for start in starts:
        frames = samples = None
        if times is not None:
            # The frame shown at each moment; a quarter of a frame more, as files round their times.
            moments = start + step * np.arange(clip.num_frames) + _frame_step(times) / 4
            frames = (np.searchsorted(times, moments, side="right") - 1).clip(0)
        if num_samples is not None:
            first, stop = (round(t * SAMPLE_RATE) for t in (start, start + window))
            samples = min(first, num_samples), min(stop, num_samples)
        windows.append(Window(start, min(start + window, length), frames, samples))
    return windows


def as_tested(
    times: np.ndarray | None, num_samples: int | None, config: ModelConfig, source: str
) -> list[Window]:
    """Return the temporal views of the test protocol; arguments as in `sliding`."""
    clip, moments = config.preprocessing, times
    if moments is None:
        seconds = (num_samples or 0) / SAMPLE_RATE
        moments = np.arange(max(round(seconds * FRAME_RATE), 1)) / FRAME_RATE
    count = len(moments)
    windows = []
    for frames in test_windows(count, config.test_num_segment, clip.num_frames, clip.sampling_rate):
        first = int(frames[0])
        last = min(first + clip.num_frames * clip.sampling_rate, count - 1)
        samples = None
        if num_samples is not None:
            span = frames_to_samples(first, last, count, num_samples)
            samples = span_or_whole(source, *span, num_samples, clip.input_size_audio[0])
        shown = None if times is None else frames
        windows.append(Window(float(moments[first]), float(moments[last]), shown, samples))
    return windows


def _frame_step(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 1 / FRAME_RATE


# Faces


class NoFace(UnreadableClip):
    """No face was found."""


class Person(NamedTuple):
    """One face through the frames looked at."""

    seen: np.ndarray  # (n,) bool, whether it was found in each of them
    points: np.ndarray  # (n, 5, 2) in pixels; where it was not found, those of the nearest time
    boxes: np.ndarray  # (n, 4) left, top, right, bottom; nan where it was not found


class LookedAt:
    """The frames of a source at some indices, decoded once if they fit into memory."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.kept: list[np.ndarray] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[np.ndarray] = []
        size = 0
        for frame in self.source.frames(self.indices):
            size += frame.nbytes
            if size <= MEMORY:
                kept.append(frame)
            else:
                kept.clear()
            yield frame
        if size <= MEMORY:
            self.kept = kept


@lru_cache(maxsize=1)
def detector() -> Detector:
    """Load the face detector of this process; FileNotFoundError says how to install it."""
    try:
        return Detector()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or cut the faces out before and say so: faces='cut' (--faces cut)"
        ) from None


def find_people(
    frames: LookedAt, times: np.ndarray, everyone: bool, least: int
) -> tuple[list[Person], float]:
    """Find the main face in frames at times (n,) in seconds; NoFace where there is none.

    With `everyone` find all that are seen in at least `least` frames, the main one first. Also
    return the share of the frames that show several faces.
    """
    faces, size = search(frames, detector(), SEARCH_EVERY)
    if not any(faces):
        raise NoFace(
            f"'{frames.source.path}' shows no face in {len(faces)} frames looked at; if its frames "
            "are cut-out faces already, say so: faces='cut' (--faces cut)"
        )
    paths = [main_face(faces, size)]
    if everyone:
        tracks = follow(faces, size)
        kept = [track for track in tracks if len(track) >= least] or tracks[:1]
        paths = [[track.get(k) for k in range(len(faces))] for track in kept]
    none, sigma = np.full(4, np.nan), SMOOTHING / _frame_step(times)
    people = [
        Person(
            seen=np.array([face is not None for face in path]),
            points=smooth(fill_gaps(path)[0], sigma),
            boxes=np.stack([none if face is None else face.box for face in path]),
        )
        for path in paths
    ]
    return people, float(np.mean([len(found) > 1 for found in faces]))


# A clip


@dataclass
class Clip:
    """A clip on its way through a model. The keys of dicts are (person, window)."""

    file: str
    windows: list[Window] = field(default_factory=list)
    num_crops: int = 1  # spatial views of a window
    looked_at: LookedAt | None = None  # the frames of all windows; None: no picture is read
    people: list[Person] | None = None  # whose faces are cut out; None takes frames as they are
    waveform: np.ndarray | None = None  # (S,); None: no sound is read
    notes: list[str] = field(default_factory=list)  # what the user should know
    missing: dict[tuple[int, int], str] = field(default_factory=dict)  # what cannot be read whole
    # What the model said of each view.
    rows: dict[tuple[int, int], list[dict[str, np.ndarray]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    waiting: int = 0  # views without a row
    error: UnreadableClip | None = None  # why nothing can be said

    @property
    def num_people(self) -> int:
        """Number of people with an answer of their own."""
        return 1 if self.people is None else len(self.people)

    def boxes(self, person: int) -> np.ndarray:
        """Return (n, 5) seconds, left, top, right, bottom where a person was seen."""
        if self.people is None or self.looked_at is None:
            return np.empty((0, 5))
        times, seen = self.looked_at.source.times[self.looked_at.indices], self.people[person].seen
        return np.column_stack([times, self.people[person].boxes])[seen]

    def release(self) -> None:
        """Free the memory of pictures and sound."""
        self.waveform = None
        if self.looked_at is not None:
            self.looked_at.kept = None


def prepare(
    clip: Clip, source: Source, config: ModelConfig, streams: str, options: Options
) -> None:
    """Plan the windows of a clip and find the faces in it; UnreadableClip where there is nothing.

    `streams` is what is read of the source, a part of the model's modality.
    """
    may_miss = options.missing_modality != "error" and len(streams) > 1
    try:
        waveform = source.sound() if "a" in streams else None
        if waveform is not None and len(waveform) < WINDOW:
            heard, least = (1000 * n / SAMPLE_RATE for n in (len(waveform), WINDOW))
            raise NoSound(
                f"'{source.heard}' is too short: {heard:.0f} ms of sound, expected at least "
                f"{least:.0f} ms"
            )
        if waveform is not None and (waveform == waveform[0]).all():
            raise NoSound(f"'{source.heard}' is silent: all its samples are {waveform[0]:g}")
        clip.waveform = waveform
    except NoSound as error:
        if not (may_miss and source.has_picture):
            raise
        clip.notes.append(f"{error}; answered by the picture alone")

    def plan(times: np.ndarray | None) -> list[Window]:
        num_samples = None if clip.waveform is None else len(clip.waveform)
        if options.protocol == "test":
            clip.num_crops = config.test_num_crop
            return as_tested(times, num_samples, config, source.path)
        return sliding(times, num_samples, config.preprocessing, options.window, options.overlap)

    try:
        if "v" in streams and not source.has_picture:
            raise NoPicture(f"'{source.path}' has no picture, only sound")
        clip.windows = plan(source.times if "v" in streams else None)
        if "v" in streams:
            _look(clip, source, config, options)
    except (NoPicture, NoFace) as error:
        if not may_miss or clip.waveform is None:  # one of the two must be there
            raise
        clip.notes.append(f"{error}; answered by the sound alone")
        clip.windows, clip.looked_at = plan(None), None
    if clip.waveform is not None and options.window is not None:
        _warn_of_long_windows(options.window, config.preprocessing.input_size_audio[0] / 100)


def _look(clip: Clip, source: Source, config: ModelConfig, options: Options) -> None:
    """Note the frames of all windows, and whose faces are to be cut out of them."""
    frames = [window.frames for window in clip.windows if window.frames is not None]
    wanted = np.unique(np.concatenate(frames))
    clip.looked_at = LookedAt(source, wanted.tolist())
    if options.faces == "cut" or (options.faces == "auto" and isinstance(source, Folder)):
        return
    everyone, least = options.faces == "all", max(config.preprocessing.num_frames // 2, 1)
    clip.people, crowded = find_people(clip.looked_at, source.times[wanted], everyone, least)
    if crowded > CROWDED and not everyone:
        clip.notes.append(
            f"{100 * crowded:.0f} % of the frames show several faces; this is about the main one"
        )


@lru_cache(maxsize=8)  # once
def _warn_of_long_windows(window: float, heard: float) -> None:
    if window > 1.1 * heard:
        text = (
            "the model hears only the first %.2f s of each window of %.2f s; choose a shorter one"
        )
        logger.warning(text, heard, window)


# Views


class View(NamedTuple):
    """One input of the model, as uint8 video (3, T, H, W) and audio (1, T, F); None is missing."""

    person: int
    window: int
    video: Tensor | None
    audio: Tensor | None


def views_of(clip: Clip, config: ModelConfig, streams: str, may_miss: bool) -> Iterator[View]:
    """Yield the views of a prepared clip, by window.

    A window without a stream that the model reads is noted in `clip.missing`; only where it
    `may_miss` it is not left out.
    """
    size = config.preprocessing.input_size_audio
    seen = _pictures(clip, config.preprocessing.input_size)
    for number, (window, pictures) in enumerate(zip(clip.windows, seen, strict=True)):
        audio = None
        if clip.waveform is not None and window.samples is not None:
            start, stop = window.samples
            if stop - start <= SHORTEST_SPAN and len(clip.waveform) < size[0] * HOP:
                start, stop = 0, len(clip.waveform)  # a short clip is heard whole, as in training
            if stop - start >= WINDOW:
                audio = fbank(clip.waveform[start:stop], size)
        for person, crops in enumerate(pictures):
            parts = (("v", crops, "no face"), ("a", audio, "no sound"))
            lacking = [why for stream, part, why in parts if stream in streams and part is None]
            if lacking:
                clip.missing[person, number] = " and ".join(lacking)
            if lacking and (not may_miss or len(lacking) == len(streams)):
                continue
            for crop in [None] if crops is None else crops:
                yield View(person, number, crop, audio)


def _pictures(clip: Clip, input_size: int) -> Iterator[list[Tensor | None]]:
    """Yield the pixels of each window for each person: (crops, 3, T, H, W), or None unseen."""
    if clip.looked_at is None:
        for _ in clip.windows:
            yield [None] * clip.num_people
        return
    frames = enumerate(clip.looked_at)
    held: dict[int, list[np.ndarray]] = {}  # views of each person, by place among the frames
    for window in clip.windows:
        places = np.searchsorted(clip.looked_at.indices, np.asarray(window.frames))
        held = {place: views for place, views in held.items() if place >= places[0]}
        while max(held, default=-1) < places[-1]:
            place, frame = next(frames)
            faces = [align(frame, person.points[place], FACE_SIZE) for person in clip.people or ()]
            held[place] = []
            for image in faces or [frame]:
                # The short side fits, and crops (n, size, size, 3) are cut of the long one.
                height, width = image.shape[:2]
                size, boxes = view_crops(width, height, input_size, clip.num_crops)
                small = np.asarray(resize(Image.fromarray(image), size))
                crops = [small[top:bottom, left:right] for left, top, right, bottom in boxes]
                held[place].append(np.stack(crops))
        pictures: list[Tensor | None] = []
        for number in range(clip.num_people):
            if clip.people is not None and clip.people[number].seen[places].mean() < SEEN:
                pictures.append(None)
                continue
            pixels = torch.from_numpy(np.stack([held[place][number] for place in places]))
            pictures.append(rearrange(pixels, "t n h w c -> n c t h w"))
        yield pictures
