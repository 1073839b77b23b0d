"""Which frames and which samples each window of a clip reads.

Who is seen in the frames that a model wants to look at, and the faces cut out of them.

Windows of a clip as tensors, one after the other, holding few frames at a time.

Views of many clips through a model, in batches across clips; each clip given back when done.

Scores and features of a batch of views, also where one stream is missing.

A model of both streams that gets one only answers in one of two ways:

- "zeros": black frames or digital silence take the place of what is missing;
- "drop": the missing stream is left out: the fusion blocks of the other one skip their cross
  attention, and the head reads zeros for the missing features. Only one encoder is needed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from hicmae.data import audio as wav
from hicmae.data import video as film
from hicmae.data.audio import HOP, SAMPLE_RATE, WINDOW, fbank, frames_to_samples, span_or_whole
from hicmae.data.dataset import FRAME_RATE
from hicmae.data.media import Folder, NoPicture, NoSound, Source
from hicmae.data.video import normalise, test_windows
from hicmae.faces.detector import Detector, Face
from hicmae.faces.tracking import align, fill_gaps, main_face, search, smooth, tracks_of
from hicmae.inference.model import FACE_SIZE, ModelConfig, Preprocessing
from hicmae.io import UnreadableClip
from hicmae.models.finetune import ACTIVATIONS, HiCMAEClassifier
from hicmae.models.layers import CSBlock

logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """A stretch of a clip: seconds, and what of it the model reads.

    Attributes:
        start, end: seconds from the first frame.
        frames: (T,) indices of frames; None where no picture is read.
        samples: first sample and one past the last; None where no sound is read.
    """

    start: float
    end: float
    frames: np.ndarray | None
    samples: tuple[int, int] | None


def check_lengths(window: float, overlap: float) -> None:
    """Refuse lengths in seconds that make no windows."""
    if not window > 0:
        raise ValueError(f"window must be longer than 0 seconds, got {window:g}")
    if not 0 <= overlap < window:
        raise ValueError(
            f"overlap must be at least 0 and shorter than the window of {window:g} s, "
            f"got {overlap:g}"
        )


def sliding(
    times: np.ndarray | None,
    num_samples: int | None,
    clip: Preprocessing,
    window: float | None = None,
    overlap: float | None = None,
) -> list[Window]:
    """Slide a window over a clip; the last one ends where the clip does.

    All frames lie on one grid in time, `num_frames` a window, so that neighbouring windows share
    what they read.

    Args:
        times: (n,) seconds of the frames; None reads no picture.
        num_samples: of the sound; None reads no sound.
        clip: sizes of the model's input.
        window: seconds; None takes what the model saw at once in training.
        overlap: seconds; None takes half the window.
    """
    window = clip.clip_seconds if window is None else window
    overlap = window / 2 if overlap is None else overlap
    check_lengths(window, overlap)
    step = window / clip.num_frames
    hop = max(round((window - overlap) / step), 1) * step
    length = _length(times, num_samples)
    starts = [0.0]
    while starts[-1] + window < length - step / 2:
        last = max(int((length - window) / step + 1e-6) * step, starts[-1] + step)
        starts.append(min(starts[-1] + hop, last))
    return [
        Window(
            start,
            min(start + window, length),
            None if times is None else _shown(times, start + step * np.arange(clip.num_frames)),
            None if num_samples is None else _samples(start, start + window, num_samples),
        )
        for start in starts
    ]


def as_tested(
    times: np.ndarray | None,
    num_samples: int | None,
    clip: Preprocessing,
    num_segments: int,
    source: str,
) -> list[Window]:
    """Return the temporal views of the test protocol.

    Args:
        times: as in `sliding`.
        num_samples: likewise.
        clip: likewise.
        num_segments: views, spread evenly.
        source: name of the clip, for messages.
    """
    if times is None:
        seconds = (num_samples or 0) / SAMPLE_RATE
        times = np.arange(max(round(seconds * FRAME_RATE), 1)) / FRAME_RATE
        has_picture = False
    else:
        has_picture = True
    count = len(times)
    windows = []
    for frames in test_windows(count, num_segments, clip.num_frames, clip.sampling_rate):
        first = int(frames[0])
        last = min(first + clip.num_frames * clip.sampling_rate, count - 1)
        samples = None
        if num_samples is not None:
            span = frames_to_samples(first, last, count, num_samples)
            samples = span_or_whole(source, *span, num_samples, clip.input_size_audio[0])
        windows.append(
            Window(
                float(times[first]), float(times[last]), frames if has_picture else None, samples
            )
        )
    return windows


def _length(times: np.ndarray | None, num_samples: int | None) -> float:
    """Return the seconds of a clip: of its picture where that is read."""
    if times is None:
        return (num_samples or 0) / SAMPLE_RATE
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / FRAME_RATE
    return float(times[-1]) + step


def _shown(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the frame shown at each moment, the last one after the end."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    # A quarter of a frame more: files round their times.
    return (np.searchsorted(times, moments + step / 4, side="right") - 1).clip(0)


def _samples(start: float, end: float, num_samples: int) -> tuple[int, int]:
    first = min(round(start * SAMPLE_RATE), num_samples)
    return first, min(round(end * SAMPLE_RATE), num_samples)


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


# From batches of video (B, 3, T, H, W) and audio (B, 1, T, F), None where missing, to results.
Compute = Callable[[Tensor | None, Tensor | None], dict[str, Tensor]]


Rows = dict[tuple[int, int], list[dict[str, np.ndarray]]]  # of each view, by (person, window)


OpenClip = Callable[[], Source]


class Computed(NamedTuple):
    """A clip with what was computed of its views, or the reason why it cannot be read."""

    clip: PreparedClip | UnreadableClip
    rows: Rows


class BatchRunner:
    """Fills batches with views of clips that come one after the other.

    Args:
        config: of the model.
        streams: what is read.
        compute: what the model does with a batch.
        device: where it does so.
        batch_size: views of a batch.
        progress: show progress bars.
    """

    def __init__(
        self,
        config: ModelConfig,
        streams: str,
        compute: Compute,
        device: torch.device,
        batch_size: int,
        progress: bool = False,
    ) -> None:
        self.config, self.streams, self.compute = config, streams, compute
        self.device, self.batch_size, self.progress = device, batch_size, progress
        self.rows: dict[int, Rows] = {}  # of clips that are not given back yet
        self.outstanding: dict[int, int] = {}  # their views that wait for a batch
        # Views of one batch have the same streams.
        self.waiting: dict[tuple[bool, bool], list[tuple[int, View]]] = {}

    def run(self, opens: Sequence[OpenClip], options: Options) -> Iterator[Computed]:
        """Yield each clip, in order, as soon as all its views are computed."""
        read: dict[int, PreparedClip | UnreadableClip] = {}  # and not given back yet
        given = 0
        several = self.progress and len(opens) > 1
        for place, open_clip in enumerate(tqdm(opens, "clips", disable=not several)):
            self.rows[place], self.outstanding[place] = {}, 0
            read[place] = self._read(place, open_clip, options)
            while given in read and not self.outstanding[given]:
                yield Computed(read.pop(given), self.rows.pop(given))
                given += 1
        for batch in self.waiting.values():
            self._compute(batch)
        for place in sorted(read):
            yield Computed(read.pop(place), self.rows.pop(place))

    def _read(
        self, place: int, open_clip: OpenClip, options: Options
    ) -> PreparedClip | UnreadableClip:
        """Prepare a clip and hand its views to the batches."""
        try:
            clip = prepare(open_clip(), self.config, self.streams, options)
            views = views_of(clip, self.config, self.streams, options.missing_modality != "error")
            total = len(clip.windows) * clip.num_people * clip.num_crops
            quiet = not self.progress
            for view in tqdm(views, "windows", total, leave=False, disable=quiet):
                self._add(place, view)
        except UnreadableClip as error:
            return error
        clip.waveform = None  # heard to its end; many clips may wait for their batch
        return clip

    def _add(self, place: int, view: View) -> None:
        kind = view.video is None, view.audio is None
        batch = self.waiting.setdefault(kind, [])
        batch.append((place, view))
        self.outstanding[place] += 1
        if len(batch) == self.batch_size:
            self._compute(self.waiting.pop(kind))

    @torch.inference_mode()
    def _compute(self, batch: list[tuple[int, View]]) -> None:
        views = [view for _, view in batch]
        video = audio = None
        if views[0].video is not None:
            pixels = [view.video for view in views if view.video is not None]
            video = normalise(torch.stack(pixels).to(self.device))
        if views[0].audio is not None:
            features = [view.audio for view in views if view.audio is not None]
            audio = torch.stack(features).to(self.device)
        computed = self.compute(video, audio)
        arrays = {name: value.float().cpu().numpy() for name, value in computed.items()}
        for index, (place, view) in enumerate(batch):
            row = {name: array[index] for name, array in arrays.items()}
            self.rows[place].setdefault((view.person, view.window), []).append(row)
            self.outstanding[place] -= 1


def scores(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> Tensor:
    """Return (B, K) logits or regression outputs.

    Args:
        model: classifier.
        video: (B, 3, T, H, W) normalised; None where it is missing or not read.
        audio: (B, 1, T, F) normalised; None likewise.
    """
    model = cast(HiCMAEClassifier, model)
    given = ("v" if video is not None else "") + ("a" if audio is not None else "")
    if set(given) == set(model.modality):
        return model(video, audio)
    fused = features(model, video, audio)["fused"]
    return ACTIVATIONS[model.head_activation](model.head(fused))


def features(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    """Return the features of each level.

    Returns:
        video_layers (B, L, D), audio_layers (B, L, D): every block's output, after the encoder's
        norm, averaged over its tokens; video (B, D), audio (B, D): their mix by the learned layer
        weights, or the last layer where the model has none; fusion_video (B, D), fusion_audio
        (B, D): averaged tokens of the fusion encoder; fused: what the head reads. Those of a stream
        that is missing or not read are left out.
    """
    if video is None and audio is None:
        raise ValueError("neither video nor audio is given")
    lacks_one = model.modality == "av" and (video is None or audio is None)
    outputs = _one_stream(model, video, audio) if lacks_one else _observed(model, video, audio)
    found: dict[str, Tensor] = {}
    for stream, name in (("video", "encoder"), ("audio", "encoder_audio")):
        if name in outputs:
            layers = torch.stack(outputs[name].levels, dim=1)
            found[f"{stream}_layers"] = layers
            found[stream] = _mixed(model, stream, layers)
    for stream, tokens in outputs.get("encoder_fusion", {}).items():
        found[f"fusion_{stream}"] = tokens.mean(dim=1)
    found["fused"] = outputs["fc_norm"]
    return found


def _observed(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the model as it is and keep what its parts return, by their names."""
    seen: dict[str, Any] = {}
    names = [
        n
        for n in ("encoder", "encoder_audio", "encoder_fusion", "fc_norm")
        if getattr(model, n, None) is not None
    ]
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        cast(HiCMAEClassifier, model).forward_features(video, audio)
    finally:
        for handle in handles:
            handle.remove()
    if "encoder_fusion" in seen:
        seen["encoder_fusion"] = dict(zip(("video", "audio"), seen["encoder_fusion"], strict=True))
    return seen


def _one_stream(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the parts of a model of both streams that one stream alone needs."""
    model = cast(HiCMAEClassifier, model)
    stream, name, clip = ("video", "encoder", video)
    if clip is None:
        stream, name, clip = ("audio", "encoder_audio", audio)
    encoder, fusion = getattr(model, name), model.encoder_fusion
    output = encoder(clip, None, range(len(encoder.blocks)), pool=True)
    tokens = output.tokens
    for block in fusion.blocks if stream == "video" else fusion.blocks_audio:
        tokens = _without_context(cast(CSBlock, block), tokens)
    tokens = (fusion.norm if stream == "video" else fusion.norm_audio)(tokens)
    weighted = _mixed(model, stream, torch.stack(output.levels, dim=1))
    mean = tokens.mean(dim=1)
    nothing = torch.zeros_like(mean)
    parts = [weighted, nothing, mean, nothing]  # video, audio, fused video, fused audio
    if stream == "audio":
        parts = [nothing, weighted, nothing, mean]
    fused = model.fc_norm(torch.cat(parts, dim=-1))
    return {name: output, "encoder_fusion": {stream: tokens}, "fc_norm": fused}


def _mixed(model: nn.Module, stream: str, layers: Tensor) -> Tensor:
    """Mix layers (B, L, D) by the model's weights of a stream, if it has any, to (B, D)."""
    weights = getattr(model, f"{stream}_layer_weights")
    if weights is None:  # without hierarchical feature fusion
        return layers[:, -1]
    return torch.einsum("bld,l->bd", layers, weights.softmax(dim=0))


def stand_in(stream: str, count: int, clip: Preprocessing, device: torch.device) -> Tensor:
    """Return black frames or digital silence in place of a missing stream, normalised."""
    if stream == "v":
        size = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
        return normalise(torch.zeros(size, dtype=torch.uint8, device=device))
    steps, mel_bins = clip.input_size_audio
    silence = fbank(torch.zeros(steps * HOP + WINDOW), SAMPLE_RATE, mel_bins, steps)
    return silence.to(device).expand(count, -1, -1, -1)


def _without_context(block: CSBlock, tokens: Tensor) -> Tensor:
    """Run a block of the fusion encoder without its cross attention."""
    attended = block.attn(block.norm1(tokens))
    tokens = tokens + (attended if block.gamma_1 is None else block.gamma_1 * attended)
    mapped = block.mlp(block.norm2(tokens))
    return tokens + (mapped if block.gamma_2 is None else block.gamma_2 * mapped)
