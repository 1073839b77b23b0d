"""Windows of a clip as tensors, one after the other, holding few frames at a time."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hicmae.data import audio as wav
from hicmae.data import video as film
from hicmae.inference.decoding import NoPicture, NoSound
from hicmae.inference.faces import LookedAt, NoFace, Person, cut_out, find_people
from hicmae.inference.media import Folder, Source
from hicmae.inference.model_config import ModelConfig
from hicmae.inference.windows import Window, as_tested, sliding

logger = logging.getLogger(__name__)

FACES = ("auto", "largest", "all", "cut")
PROTOCOLS = ("windows", "test")
MISSING = ("error", "zeros", "drop")
NO_FACE, NO_SOUND = "no face", "no sound"
CROWDED = 0.2  # share of frames with several faces from which the user is told
SEEN = 0.5  # share of a window's frames that must show the face


@dataclass(frozen=True)
class Options:
    """How a clip is read; `EmotionRecognizer.predict` says what they mean."""

    faces: str = "auto"
    window: float | None = None
    overlap: float | None = None
    protocol: str = "windows"
    missing_modality: str = "error"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("faces", FACES),
            ("protocol", PROTOCOLS),
            ("missing_modality", MISSING),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


class View(NamedTuple):
    """One input of the model, as uint8 video (3, T, H, W) and audio (1, T, F); None is missing."""

    person: int
    window: int
    video: Tensor | None
    audio: Tensor | None


@dataclass
class PreparedClip:
    """A clip whose windows and faces are known.

    Attributes:
        source: where frames and sound come from.
        windows: what is to be read.
        looked_at: the frames of all windows; None where no picture is read.
        people: whose faces are cut out; None takes frames as they are.
        waveform: (S,) the sound; None where none is read.
        num_crops: spatial views of a window.
        missing: (person, window) of what cannot be read whole, with the reason.
        notes: what the user should know.
    """

    source: Source
    windows: list[Window]
    looked_at: LookedAt | None
    people: list[Person] | None
    waveform: np.ndarray | None
    num_crops: int
    notes: list[str]
    missing: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def num_people(self) -> int:
        """Number of people with an answer of their own."""
        return 1 if self.people is None else len(self.people)


def prepare(source: Source, config: ModelConfig, streams: str, options: Options) -> PreparedClip:
    """Plan the windows of a clip and find the faces in it.

    Args:
        source: the clip.
        config: of the model.
        streams: what is read, a part of the model's modality.
        options: of the user.

    Raises:
        UnreadableClip: nothing can be said about this clip.
    """
    notes: list[str] = []
    may_miss = options.missing_modality != "error" and len(streams) > 1
    waveform = _sound(source, may_miss, notes) if "a" in streams else None
    may_miss &= waveform is not None  # one of the two must be there
    times = _times(source, may_miss, notes) if "v" in streams else None
    windows = _plan(source, config, options, times, waveform)
    looked_at = people = None
    if times is not None:
        wanted = np.unique(np.concatenate([window.frames for window in windows]))
        looked_at = LookedAt(source, wanted.tolist())
        try:
            people = _people(looked_at, times[wanted], config, options, notes)
        except NoFace as error:
            if not may_miss:
                raise
            notes.append(f"{error}; answered by the sound alone")
            windows, looked_at = _plan(source, config, options, None, waveform), None
    if waveform is not None:
        _warn_of_long_windows(options.window, config.preprocessing.audio_seconds)
    crops = config.test_num_crop if options.protocol == "test" else 1
    return PreparedClip(source, windows, looked_at, people, waveform, crops, notes)


def _plan(
    source: Source,
    config: ModelConfig,
    options: Options,
    times: np.ndarray | None,
    waveform: np.ndarray | None,
) -> list[Window]:
    """Return the windows of the chosen protocol."""
    clip, num_samples = config.preprocessing, None if waveform is None else len(waveform)
    if options.protocol == "test":
        return as_tested(times, num_samples, clip, config.test_num_segment, source.path)
    return sliding(times, num_samples, clip, options.window, options.overlap)


def _people(
    looked_at: LookedAt,
    times: np.ndarray,
    config: ModelConfig,
    options: Options,
    notes: list[str],
) -> list[Person] | None:
    """Find whose faces are to be cut out; None where the frames are faces already."""
    is_folder = isinstance(looked_at.source, Folder)
    if options.faces == "cut" or (options.faces == "auto" and is_folder):
        return None
    least = max(config.preprocessing.num_frames // 2, 1)
    everyone = options.faces == "all"
    people, crowded = find_people(looked_at, times, everyone, least)
    if crowded > CROWDED and not everyone:
        notes.append(
            f"{100 * crowded:.0f} % of the frames show several faces; this is about the main one"
        )
    return people


def views_of(
    clip: PreparedClip, config: ModelConfig, streams: str, may_miss: bool
) -> Iterator[View]:
    """Yield the views of a prepared clip, by window.

    A window that lacks a stream which the model reads is noted in `clip.missing`; it is left out
    unless `may_miss`.
    """
    size = config.preprocessing.input_size_audio
    for number, window, pixels in _pictures(clip, config):
        audio = None
        if clip.waveform is not None and window.samples is not None:
            audio = _features(clip.waveform, window.samples, size)
        for person in range(clip.num_people):
            crops = pixels[person]
            lacking = [
                reason
                for stream, reason, part in (("v", NO_FACE, crops), ("a", NO_SOUND, audio))
                if stream in streams and part is None
            ]
            if lacking:
                clip.missing[person, number] = " and ".join(lacking)
            if lacking and (not may_miss or len(lacking) == len(streams)):
                continue
            for crop in [None] if crops is None else crops:
                yield View(person, number, crop, audio)


def _pictures(
    clip: PreparedClip, config: ModelConfig
) -> Iterator[tuple[int, Window, list[Tensor | None]]]:
    """Yield each window with its pixels for each person: (crops, 3, T, H, W), or None unseen."""
    if clip.looked_at is None:
        for number, window in enumerate(clip.windows):
            yield number, window, [None] * clip.num_people
        return
    indices = clip.looked_at.indices
    positions = [np.searchsorted(indices, np.asarray(window.frames)) for window in clip.windows]
    held: dict[int, list[np.ndarray]] = {}
    boxes: list[film.Box] = []
    number = 0
    for position, frame in enumerate(clip.looked_at):
        held[position] = []
        seen = [cut_out(frame, person, position) for person in clip.people or ()]
        for image in seen or [frame]:
            pixels, boxes = _resized(image, config.preprocessing.input_size, clip.num_crops)
            held[position].append(pixels)
        while number < len(positions) and positions[number][-1] <= position:
            yield number, clip.windows[number], _stacked(clip, positions[number], held, boxes)
            number += 1
            needed = positions[number][0] if number < len(positions) else position + 1
            for old in [key for key in held if key < needed]:
                del held[old]
    clip.looked_at.forget()


def _stacked(
    clip: PreparedClip,
    positions: np.ndarray,
    held: dict[int, list[np.ndarray]],
    boxes: Sequence[film.Box],
) -> list[Tensor | None]:
    """Return the pixels of one window for each person."""
    pixels: list[Tensor | None] = []
    for number in range(clip.num_people):
        if clip.people is not None and clip.people[number].seen[positions].mean() < SEEN:
            pixels.append(None)
            continue
        frames = torch.from_numpy(np.stack([held[p][number] for p in positions]))
        frames = frames.permute(3, 0, 1, 2)
        pixels.append(torch.stack([frames[..., t:b, left:r] for left, t, r, b in boxes]))
    return pixels


def _resized(
    image: np.ndarray, input_size: int, num_crops: int
) -> tuple[np.ndarray, list[film.Box]]:
    """Resize a frame so that its short side fits, and say which squares of it are views."""
    height, width = image.shape[:2]
    size, boxes = film.view_crops(width, height, input_size, num_crops)
    return np.asarray(film.resize(Image.fromarray(image), size)), boxes


def _features(
    waveform: np.ndarray, samples: tuple[int, int], size: tuple[int, int]
) -> Tensor | None:
    """Return the filter bank (1, T, F) of a stretch of sound, None where it is too short."""
    start, stop = samples
    if stop - start <= wav.SHORTEST_SPAN and len(waveform) < size[0] * wav.HOP:
        start, stop = 0, len(waveform)  # a short clip is heard whole, as in training
    if stop - start < wav.WINDOW:
        return None
    return wav.fbank(waveform[start:stop], wav.SAMPLE_RATE, size[1], size[0])


def _sound(source: Source, may_miss: bool, notes: list[str]) -> np.ndarray | None:
    """Return the sound of a clip; None and a note where it is missing and may be."""
    try:
        waveform = source.sound()
        if len(waveform) < wav.WINDOW:
            heard, least = (1000 * n / wav.SAMPLE_RATE for n in (len(waveform), wav.WINDOW))
            raise NoSound(
                f"'{source.heard}' is too short: {heard:.0f} ms of sound, expected at least "
                f"{least:.0f} ms"
            )
        if (waveform == waveform[0]).all():
            raise NoSound(f"'{source.heard}' is silent: all its samples are {waveform[0]:g}")
    except NoSound as error:
        if not (may_miss and source.has_picture):
            raise
        notes.append(f"{error}; answered by the picture alone")
        return None
    return waveform


def _times(source: Source, may_miss: bool, notes: list[str]) -> np.ndarray | None:
    """Return the times of a clip's frames; None and a note where they are missing and may be."""
    try:
        if not source.has_picture:
            raise NoPicture(f"'{source.path}' has no picture, only sound")
        return source.times
    except NoPicture as error:
        if not may_miss:
            raise
        notes.append(f"{error}; answered by the sound alone")
        return None


@lru_cache(maxsize=8)  # once
def _warn_of_long_windows(window: float | None, heard: float) -> None:
    if window is not None and window > 1.1 * heard:
        logger.warning(
            "the model hears only the first %.2f s of each window of %.2f s; choose a shorter one",
            heard,
            window,
        )
