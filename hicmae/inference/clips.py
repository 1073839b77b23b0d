"""What a model reads of a clip: windows, the faces seen in them, and these as tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hicmae.config import Options
from hicmae.data.audio import HOP, SAMPLE_RATE, WINDOW, fbank, frames_to_samples, span_or_whole
from hicmae.data.clip_list import PackedClip, name_of, source_crop_of
from hicmae.data.film import FRAME_RATE
from hicmae.data.media import NoPicture, NoSound, Sound
from hicmae.data.video import NOT_READ, LookedAt, resize, source_box, test_windows, to_tensor
from hicmae.faces import SMOOTHING, align
from hicmae.faces.detector import Detector
from hicmae.faces.tracking import fill_gaps, follow, main_face, search, smooth
from hicmae.inference.model import FACE_SIZE, ModelConfig, Preprocessing
from hicmae.inference.sources import Asked, FaceFrames, File, Source, open_source
from hicmae.io import UnreadableClip

UNSURE = "unsure"  # the answer below the confidence that was asked for
SEARCH_EVERY = 6  # of the frames looked at, a second; in the others faces are only followed
CROWDED = 0.2  # share of frames with several faces from which the user is told
SEEN = 0.5  # share of a window's frames that must show the face


@dataclass(frozen=True)
class Window:
    """A stretch of a clip, in seconds from the first frame, and what is said about it."""

    start: float
    end: float
    scores: dict[str, float] = field(default_factory=dict)  # as of `Prediction`; {}: none
    status: str = ""  # why there are none, or what was missing
    min_confidence: float = 0.0  # probability that an answer needs
    speaker: bool | None = None  # whether the sound is this person's; None: that was not asked
    # What is read of it: (T,) indices of frames; the first sample and one past the last.
    frames: np.ndarray | None = field(default=None, repr=False, compare=False)
    samples: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str | None:
        """The likeliest class or "unsure"; for values the one that is largest."""
        return likeliest(self.scores, self.min_confidence) if self.scores else None


def likeliest(scores: Mapping[str, float], min_confidence: float) -> str:
    """Return the name with the highest score, "unsure" where that is below `min_confidence`."""
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= min_confidence or not min_confidence else UNSURE


def sound_of(source: Source) -> np.ndarray | Sound:
    """Return the sound of a source; NoSound where it is too short, or all its samples are equal."""
    waveform = source.sound
    if len(waveform) < WINDOW:
        length, least = (1000 * n / SAMPLE_RATE for n in (len(waveform), WINDOW))
        text = f"{length:.0f} ms of sound, expected at least {least:.0f} ms"
        raise NoSound(f"'{source.heard}' is too short: {text}")
    first, step = waveform[:1], 60 * SAMPLE_RATE  # a long sound is read in parts
    parts = (waveform[start : start + step] for start in range(0, len(waveform), step))
    if all((part == first).all() for part in parts):
        raise NoSound(f"'{source.heard}' is silent: all its samples are {first[0]:g}")
    return waveform


def sliding(
    times: np.ndarray | None, num_samples: int | None, clip: Preprocessing, options: Options
) -> list[Window]:
    """Slide a window over a clip; the last one ends where the clip does.

    All frames lie on one grid in time, `num_frames` a window, so that neighbouring windows share
    what they read. `times` (n,) are seconds of the frames; None reads no picture, or no sound. The
    options say the window and the overlap.
    """
    window = clip.clip_seconds if options.window is None else options.window
    overlap = window / 2 if options.overlap is None else options.overlap
    if overlap >= window:
        text = f"overlap must be shorter than the window of {window:g} s, got {overlap:g}"
        raise ValueError(text)
    step = window / clip.num_frames
    hop = max(round((window - overlap) / step), 1) * step
    length = (num_samples or 0) / SAMPLE_RATE
    if times is not None:
        length = float(times[-1]) + frame_step(times)
    starts = [0.0]
    while starts[-1] + window < length - step / 2:
        last = max(int((length - window) / step + 1e-6) * step, starts[-1] + step)
        starts.append(min(starts[-1] + hop, last))
    windows = []
    for start in starts:
        frames = samples = None
        if times is not None:
            # The frame shown at each moment; a quarter of a frame more, as files round their times.
            moments = start + step * np.arange(clip.num_frames) + frame_step(times) / 4
            frames = (np.searchsorted(times, moments, side="right") - 1).clip(0)
        if num_samples is not None:
            first, stop = (round(t * SAMPLE_RATE) for t in (start, start + window))
            samples = min(first, num_samples), min(stop, num_samples)
        windows.append(Window(start, min(start + window, length), frames=frames, samples=samples))
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
        first, samples = int(frames[0]), None
        last = min(first + clip.num_frames * clip.sampling_rate, count - 1)
        if num_samples is not None:
            span = frames_to_samples(first, last, count, num_samples)
            samples = span_or_whole(source, *span, num_samples, clip.input_size_audio[0])
        seen = None if times is None else frames
        start, end = float(moments[first]), float(moments[last])
        windows.append(Window(start, end, frames=seen, samples=samples))
    return windows


def stand_ins(clip: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return black frames, uint8 (3, T, H, W), and digital silence, (1, T, F)."""
    side, size = clip.input_size, clip.input_size_audio
    black = torch.zeros((3, clip.num_frames, side, side), dtype=torch.uint8)
    return black, fbank(torch.zeros(size[0] * HOP + WINDOW), size)


def frame_step(times: np.ndarray) -> float:
    """Return the median seconds from one frame, of times (n,), to the next."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 1 / FRAME_RATE


class NoFace(UnreadableClip):
    """No face was found."""


def detector() -> Detector:
    """Load the face detector; FileNotFoundError says how to install it."""
    try:
        return Detector()
    except FileNotFoundError as error:
        text = "or cut the faces out before and say so: faces='cut' (--faces cut)"
        raise FileNotFoundError(f"{error}; {text}") from None


def find_people(
    frames: LookedAt, times: np.ndarray, everyone: bool, least: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Find the main face in frames at times (n,) in seconds; NoFace where there is none.

    With `everyone` find all that are seen in at least `least` frames, the main one first.

    Returns:
        points (P, n, 5, 2) of each person in pixels, where the face is not found those of the
        nearest time; boxes (P, n, 4), nan where it is not found; and the share of the frames that
        show several faces.
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
    none, sigma = np.full(4, np.nan), SMOOTHING / frame_step(times)
    points = [smooth(fill_gaps(path)[0], sigma) for path in paths]
    boxes = [[none if face is None else face.box for face in path] for path in paths]
    crowded = float(np.mean([len(found) > 1 for found in faces]))
    return np.stack(points), np.array(boxes, float), crowded


class View(NamedTuple):
    """One input of the model, as uint8 video (3, T, H, W) and audio (1, T, F); None is missing."""

    person: int
    window: int
    video: Tensor | None
    audio: Tensor | None


# Of the number of a window, its pictures (None: not seen) and its sound: who speaks, None: nobody.
Chooser = Callable[[int, Sequence[Tensor | None], Tensor], int | None]


@dataclass
class Clip:
    """A clip on its way through a model. The keys of dicts are (person, window)."""

    video: Asked
    audio: File  # to be heard instead of the video's own sound
    config: ModelConfig
    streams: str  # what is read of it, a part of the model's modality
    options: Options
    windows: list[Window] = field(default_factory=list)  # as they are planned
    frames: LookedAt | None = None  # of all windows; None: no picture is read
    times: np.ndarray | None = None  # of these frames
    points: np.ndarray | None = None  # of the people's faces; None takes frames as they are
    boxes: np.ndarray | None = None  # likewise, see `find_people`
    num_people: int = 1  # with an answer of their own
    waveform: np.ndarray | Sound | None = None  # (S,); None: no sound is read
    notes: list[str] = field(default_factory=list)  # what the user should know
    seen: dict[tuple[int, int], Window] = field(default_factory=dict)  # what is missing, who speaks
    rows: dict[tuple[int, int], dict[str, np.ndarray]] = field(default_factory=dict)  # {}: not yet
    error: UnreadableClip | None = None  # why nothing can be said

    @property
    def file(self) -> str:
        """Name of the clip."""
        clip: Any = self.video
        if clip == NOT_READ:
            return str(self.audio)
        return name_of(clip) if isinstance(clip, PackedClip) else str(getattr(clip, "path", clip))

    @property
    def may_miss(self) -> bool:
        """Tell whether one of the streams may be missing."""
        return self.options.missing_modality != "error" and len(self.streams) > 1

    def prepare(self) -> int:
        """Plan the windows and find the faces; UnreadableClip where there is nothing to read.

        Returns the number of views, less those that will be missing.
        """
        rate = self.config.preprocessing.frame_rate
        source = open_source(self.video, self.audio, rate, self.streams)
        try:
            self.waveform = sound_of(source) if "a" in self.streams else None
        except NoSound as error:
            if not (self.may_miss and source.has_picture):
                raise
            self.notes.append(f"{error}; answered by the picture alone")
        try:
            self._plan(source, "v" in self.streams)
        except (NoPicture, NoFace) as error:
            if not self.may_miss or self.waveform is None:  # one of the two must be there
                raise
            self.notes.append(f"{error}; answered by the sound alone")
            self.frames = None
            self._plan(source, False)
        return len(self.windows) * self.num_people

    def _plan(self, source: Source, is_seen: bool) -> None:
        """Plan the windows; where pictures are read, whose faces are cut out of which frames."""
        if is_seen and not source.has_picture:
            raise NoPicture(f"'{source.path}' has no picture, only sound")
        times = source.times if is_seen else None
        num_samples = None if self.waveform is None else len(self.waveform)
        clip, options = self.config.preprocessing, self.options
        if options.protocol == "test":
            self.windows = as_tested(times, num_samples, self.config, source.path)
        else:
            self.windows = sliding(times, num_samples, clip, options)
        if times is None:
            return
        frames = [window.frames for window in self.windows if window.frames is not None]
        wanted = np.unique(np.concatenate(frames))
        self.frames, self.times = LookedAt(source, wanted.tolist()), times[wanted]
        if options.faces == "cut" or (options.faces == "auto" and isinstance(source, FaceFrames)):
            return
        everyone, least = options.faces == "all", max(clip.num_frames // 2, 1)
        self.points, self.boxes, crowded = find_people(self.frames, self.times, everyone, least)
        self.num_people = len(self.points)
        if crowded > CROWDED and not everyone:
            text = "of the frames show several faces; this is about the main one"
            self.notes.append(f"{100 * crowded:.0f} % {text}")

    def views(self, choose: Chooser | None = None) -> Iterator[View]:
        """Yield the views, by window, once it is prepared.

        All that are `seen` are noted; where a stream that the model reads is missing, only what
        `may_miss` one is yielded. With `choose` only the speaker of a window has its sound.
        """
        for number, pictures in enumerate(self._pictures()):
            window = self.windows[number]
            audio, speaker = self._sound(window), None
            if choose is not None and audio is not None:
                speaker = choose(number, pictures, audio)
            for person, video in enumerate(pictures):
                speaks = None if choose is None else person == speaker
                heard, silence = audio, "no sound"
                if speaks is False and audio is not None:  # the sound is another's
                    heard = None
                    silence = "speaker unclear" if speaker is None else "another speaks"
                parts = (("v", video, "no face"), ("a", heard, silence))
                lacking = [text for s, part, text in parts if s in self.streams and part is None]
                status, least = " and ".join(lacking), self.options.min_confidence
                noted = replace(window, status=status, speaker=speaks, min_confidence=least)
                self.seen[person, number] = noted
                may_miss = self.may_miss or heard is not audio
                if not lacking or (may_miss and len(lacking) < len(self.streams)):
                    self.rows[person, number] = {}
                    yield View(person, number, video, heard)

    def _sound(self, window: Window) -> Tensor | None:
        """Return the spectrogram of a window, (1, T, F); None where there is too little sound."""
        if self.waveform is None or window.samples is None:
            return None
        size, (start, stop) = self.config.preprocessing.input_size_audio, window.samples
        with suppress(UnreadableClip):  # a short clip is heard whole, as trained; a long one not
            start, stop = span_or_whole(self.file, start, stop, len(self.waveform), size[0])
        return fbank(self.waveform[start:stop], size) if stop - start >= WINDOW else None

    def _pictures(self) -> Iterator[Sequence[Tensor | None]]:
        """Yield the pixels of each window for each person: (3, T, H, W), or None unseen."""
        if self.frames is None:
            yield from ([None] * self.num_people for _ in self.windows)
            return
        frames = enumerate(self.frames)
        size, crop = (self.config.preprocessing.input_size,) * 2, "none"
        if self.config.task == "pretraining":  # frames that are taken as they are are cut as there
            told = self.config.training.get("settings", {})
            crop = told.get("source_crop", "auto")
            # "auto": of the authors, or from before runs kept what was decided
            crop = source_crop_of(told.get("data_path")) if crop == "auto" else crop
        held: dict[int, list[np.ndarray]] = {}  # views of each person, by place among the frames
        for window in self.windows:
            places = np.searchsorted(self.frames.indices, np.asarray(window.frames))
            held = {place: views for place, views in held.items() if place >= places[0]}
            while max(held, default=-1) < places[-1]:
                place, frame = next(frames)
                if self.points is None:
                    height, width = frame.shape[:2]
                    left, top, right, bottom = source_box(crop, size[0], width, height)
                    images = [frame[top:bottom, left:right]]
                else:
                    images = [align(frame, points[place], FACE_SIZE) for points in self.points]
                # squashed to a square, as in training
                held[place] = [np.asarray(resize(Image.fromarray(image), size)) for image in images]
            pictures: list[Tensor | None] = [None] * self.num_people
            for number in range(self.num_people):
                if self.boxes is None or np.isfinite(self.boxes[number, places, 0]).mean() >= SEEN:
                    pictures[number] = to_tensor([held[place][number] for place in places])
            yield pictures
