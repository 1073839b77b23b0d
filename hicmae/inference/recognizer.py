"""EmotionRecognizer: a trained model that answers about videos, sounds and arrays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hicmae.data.media import Arrays, open_source
from hicmae.inference import forward
from hicmae.inference.clips import Options, PreparedClip, check_choice
from hicmae.inference.forward import BatchRunner, Compute, OpenClip, Rows
from hicmae.inference.model import ModelConfig, load_model
from hicmae.io import UnreadableClip, choose_device
from hicmae.training.run import Precision, choose_precision

PRETRAINED_FEATURES = ("video_layers", "audio_layers", "fusion_video", "fusion_audio")
NamedClip = tuple[str, OpenClip]
File = str | Path | tuple[str | Path, str | Path | None]  # a clip, or a clip and its sound


@dataclass(frozen=True)
class WindowResult:
    """What is said about a stretch of a clip.

    Attributes:
        start, end: seconds from the first frame.
        scores: probability by class, or value by output; {} where nothing can be said.
        status: why not, or what was missing; "" where nothing was.
    """

    start: float
    end: float
    scores: dict[str, float]
    status: str = ""

    @property
    def label(self) -> str | None:
        """The likeliest class; for values the one that is largest."""
        return max(self.scores, key=self.scores.__getitem__) if self.scores else None


@dataclass(frozen=True)
class Prediction:
    """What a model says about one face, or the voice, of a clip.

    Attributes:
        file: the clip.
        task: "classification" or "regression".
        scores: mean over the windows: probability by class name, or value by output name.
        windows: in order of time; they overlap.
        person: 0 for the main face; others with faces="all".
        notes: what the user should know, e.g. that there was no sound.
        boxes: (n, 5) seconds, left, top, right, bottom of the face in pixels; (0, 5) without.
    """

    file: str
    task: str
    scores: dict[str, float]
    windows: tuple[WindowResult, ...]
    person: int = 0
    notes: tuple[str, ...] = ()
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 5)), repr=False, compare=False)

    @property
    def label(self) -> str | None:
        """The likeliest class; None in regression."""
        return max(self.scores, key=self.scores.__getitem__) if self.probabilities else None

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability by class; {} in regression."""
        return {} if self.task == "regression" else self.scores

    @property
    def values(self) -> dict[str, float]:
        """Value by output; {} in classification."""
        return self.scores if self.task == "regression" else {}

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last window."""
        return self.windows[-1].end

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        kind = "values" if self.task == "regression" else "probabilities"
        windows = [
            {"start": round(w.start, 3), "end": round(w.end, 3), kind: w.scores, "status": w.status}
            for w in self.windows
        ]
        return {
            "file": self.file,
            "status": "done",
            "person": self.person,
            "duration": round(self.duration, 3),
            "label": self.label,
            kind: self.scores,
            "notes": list(self.notes),
            "windows": windows,
        }


@dataclass(frozen=True)
class Failure:
    """Why nothing can be said about a clip."""

    file: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"file": self.file, "status": "failed", "reason": self.reason}


@dataclass(frozen=True)
class Features:
    """Features of a clip's windows.

    Attributes:
        file: the clip.
        start, end: (W,) seconds of each window.
        arrays: by name of the level, float32 (W, L, D) for every block of an encoder, else (W, D);
            see `EmotionRecognizer.features`.
    """

    file: str
    start: np.ndarray
    end: np.ndarray
    arrays: dict[str, np.ndarray] = field(repr=False)

    def mean(self) -> dict[str, np.ndarray]:
        """Return the mean over the windows by level, (L, D) or (D,)."""
        return {name: array.mean(axis=0) for name, array in self.arrays.items()}


Result = Prediction | Failure


@dataclass
class EmotionRecognizer:
    """A model, and all it needs to read clips.

    Make one with `from_checkpoint`. It can be used from one thread at a time.
    """

    model: nn.Module
    config: ModelConfig
    precision: Precision
    streams: str
    missing_modality: str = "error"
    batch_size: int = 8
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "auto",
        modality: str | None = None,
        missing_modality: str = "error",
        batch_size: int = 8,
        progress: bool = False,
    ) -> "EmotionRecognizer":
        """Load a model; everything else it needs stands beside its weights.

        Args:
            path: export folder (config.json and model.safetensors), the output folder of a run, a
                model.safetensors, or a .pth of this project or of the original authors.
            device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", "mps".
            precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".
            modality: None reads what the model was trained on; "a" or "v" reads one stream of a
                model of both, which `missing_modality` must then allow.
            missing_modality: what a model of both streams does without one: "error" refuses;
                "zeros" puts black frames or silence in its place; "drop" leaves it out.
            batch_size: windows that go through the model at once.
            progress: show progress bars.

        Raises:
            FileNotFoundError, ValueError: in one line.
        """
        Options(missing_modality=missing_modality)  # checks the name
        place = choose_device(device)
        # With "zeros" the other stream is silent or black, but goes through its encoder.
        model, config = load_model(path, None if missing_modality == "zeros" else modality, place)
        streams = _streams(config, modality, missing_modality)
        arithmetic = choose_precision(precision, place)
        return cls(model, config, arithmetic, streams, missing_modality, batch_size, progress)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes or regression outputs."""
        return self.config.names

    def predict(
        self,
        video: str | Path,
        *,
        audio: str | Path | None = None,
        faces: str = "auto",
        window: float | None = None,
        overlap: float | None = None,
        protocol: str = "windows",
    ) -> Prediction:
        """Answer about one clip: its main face and its sound.

        Args:
            video: video file; sound file where only sound is read; or folder of face frames.
            audio: sound file to hear instead of the video's own.
            faces: "auto" cuts faces out of videos and takes a folder's frames as they are;
                "largest" always cuts out the main face: large, near the middle, there for long;
                "cut" takes all frames as they are.
            window: seconds of a sliding window; None: what the model saw at once in training.
            overlap: seconds that neighbouring windows share; None: half a window.
            protocol: "windows", or "test" for the views of run_finetuning.py's test, whose numbers
                it gives.

        Raises:
            UnreadableClip: no such file, no face, no sound, ...; the message is one line.
            ValueError: an option that does not exist.
        """
        if faces == "all":
            raise ValueError("faces='all' gives an answer for each person: use predict_people")
        return self.predict_people(
            video, audio=audio, faces=faces, window=window, overlap=overlap, protocol=protocol
        )[0]

    def predict_people(
        self,
        video: str | Path,
        *,
        audio: str | Path | None = None,
        faces: str = "all",
        **options: Any,
    ) -> list[Prediction]:
        """Answer about everybody in a clip, the main one first; arguments as in `predict`.

        All of them are judged with the same sound.
        """
        chosen = self._options(faces=faces, **options)
        return next(self._predictions([self._file(video, audio)], chosen))

    def predict_arrays(
        self,
        frames: np.ndarray | None,
        fps: float = 25.0,
        waveform: np.ndarray | None = None,
        sample_rate: float = 16000,
        **options: Any,
    ) -> Prediction:
        """Answer about a clip in memory.

        Args:
            frames: (T, H, W, 3) uint8 RGB; None where only sound is read.
            fps: frames a second.
            waveform: (S,) or (channels, S), floats in [-1, 1] or int16; None where only the picture
                is read. It begins with the first frame.
            sample_rate: of the waveform in Hz; other rates than 16000 are resampled.
            options: as in `predict`.
        """
        clip = "arrays", partial(Arrays, frames, fps, waveform, sample_rate)
        return next(self._predictions([clip], self._options(**options)))[0]

    def predict_batch(
        self, files: Iterable[File], *, on_error: str = "raise", **options: Any
    ) -> list[Any]:
        """Answer about many clips; windows of different clips go through the model together.

        Args:
            files: as `video` of `predict`; pairs (video, audio) name the sound too.
            on_error: "raise" stops at the first clip that cannot be read; "return" puts a `Failure`
                in its place.
            options: as in `predict`; with faces="all" there is a list for each clip.

        Returns:
            An answer for each file, in order.
        """
        return list(self.predict_each(files, on_error=on_error, **options))

    def predict_each(
        self, files: Iterable[File], *, on_error: str = "raise", **options: Any
    ) -> Iterator[Any]:
        """Yield the answers of `predict_batch` one by one, as soon as each is known."""
        chosen = self._options(**options)
        for people in self._predictions(self._files(files), chosen, on_error):
            several = isinstance(people, Failure) or chosen.faces == "all"
            yield people if several else people[0]

    def features_each(
        self, files: Iterable[File], *, on_error: str = "raise", **options: Any
    ) -> Iterator[Features | Failure]:
        """Yield the features of many clips; arguments as in `predict_batch`."""
        return self._features(self._files(files), self._options(**options), on_error)

    def features(
        self, video: str | Path, *, audio: str | Path | None = None, **options: Any
    ) -> Features:
        """Return the features of a clip; arguments as in `predict`.

        Levels: video_layers and audio_layers (W, L, D), the output of every block of an encoder,
        averaged over its tokens; video and audio (W, D), their mix by the learned layer weights;
        fusion_video and fusion_audio (W, D), of the fusion encoder; fused (W, 4D), what the head
        reads. A pre-training checkpoint has the layers and the fusion only, a model of one stream
        no fusion, and its fused is (W, 2D). Without hierarchical feature fusion video and audio are
        the last layer, and the fused of one stream is (W, D).
        """
        return next(self._features([self._file(video, audio)], self._options(**options)))

    def features_arrays(
        self,
        frames: np.ndarray | None,
        fps: float = 25.0,
        waveform: np.ndarray | None = None,
        sample_rate: float = 16000,
        **options: Any,
    ) -> Features:
        """Return the features of a clip in memory; arguments as in `predict_arrays`."""
        clip = "arrays", partial(Arrays, frames, fps, waveform, sample_rate)
        return next(self._features([clip], self._options(**options)))

    def _options(self, **options: Any) -> Options:
        return Options(**options, missing_modality=self.missing_modality)

    def _file(self, video: str | Path, audio: str | Path | None = None) -> NamedClip:
        rate = self.config.preprocessing.frame_rate
        return str(video), partial(open_source, video, audio, rate)

    def _files(self, files: Iterable[File]) -> list[NamedClip]:
        return [
            self._file(*file) if isinstance(file, tuple) else self._file(file) for file in files
        ]

    def _predictions(
        self, clips: Sequence[NamedClip], options: Options, on_error: str = "raise"
    ) -> Iterator[Any]:
        if self.config.task == "pretraining":
            raise ValueError(
                "this is a pre-training checkpoint, which knows no emotions; fine-tune it first "
                "(run_finetuning.py), or ask for features"
            )
        return self._each(clips, options, on_error, self._scores, predictions_of)

    def _features(
        self, clips: Sequence[NamedClip], options: Options, on_error: str = "raise"
    ) -> Iterator[Any]:
        if options.faces == "all":
            raise ValueError("features are those of one face; choose faces='largest' or 'cut'")
        return self._each(clips, options, on_error, self._levels, features_of)

    def _each(
        self,
        clips: Sequence[NamedClip],
        options: Options,
        on_error: str,
        compute: Compute,
        finish: Callable[[PreparedClip, Rows, ModelConfig], Any],
    ) -> Iterator[Any]:
        """Yield what `finish` makes of each clip, or a Failure in its place."""
        check_choice("on_error", on_error, ("raise", "return"))
        place, size = self.precision.device, self.batch_size
        runner = BatchRunner(self.config, self.streams, compute, place, size, self.progress)
        results = runner.run([open_clip for _, open_clip in clips], options)
        for (name, _), (clip, rows) in zip(clips, results, strict=True):
            try:
                if isinstance(clip, UnreadableClip):
                    raise clip
                yield finish(clip, rows, self.config)
            except UnreadableClip as error:
                if on_error == "raise":
                    raise
                yield Failure(name, str(error))

    def _scores(self, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        with self.precision.autocast():
            scores = forward.scores(self.model, *self._filled(video, audio)).float()
        return {"scores": scores.softmax(-1) if self.config.task == "classification" else scores}

    def _levels(self, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        with self.precision.autocast():
            found = forward.features(self.model, *self._filled(video, audio))
        if self.config.task == "pretraining":
            found = {name: found[name] for name in PRETRAINED_FEATURES if name in found}
        return found

    def _filled(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """With missing_modality "zeros", put black frames or silence where a stream is missing."""
        if self.missing_modality == "zeros" and self.config.modality == "av":
            clip, device = self.config.preprocessing, self.precision.device
            if video is None and audio is not None:
                video = forward.stand_in("v", len(audio), clip, device)
            elif audio is None and video is not None:
                audio = forward.stand_in("a", len(video), clip, device)
        return video, audio


def _streams(config: ModelConfig, modality: str | None, missing_modality: str) -> str:
    """Return which streams are read, and refuse what the model cannot do."""
    modality = config.modality if modality is None else modality
    check_choice("modality", modality, ("av", "a", "v"))
    if not set(modality) <= set(config.modality):
        raise ValueError(
            f"the model reads '{config.modality}' only; modality '{modality}' was asked"
        )
    may_miss = missing_modality != "error" or config.task == "pretraining"
    if modality != config.modality and not may_miss:
        raise ValueError(
            f"the model was trained on both streams; modality '{modality}' alone needs "
            "missing_modality 'zeros' or 'drop'"
        )
    return modality


def predictions_of(clip: PreparedClip, rows: Rows, config: ModelConfig) -> list[Prediction]:
    """Average the views of each window, and the windows, for each person.

    Raises:
        UnreadableClip: no window could be answered.
    """

    def named(scores: np.ndarray) -> dict[str, float]:
        return dict(zip(config.names, scores.tolist(), strict=True))

    answers = []
    for person in range(clip.num_people):
        windows, means = [], []
        for number, window in enumerate(clip.windows):
            views = [row["scores"].astype(float) for row in rows.get((person, number), [])]
            means += [np.mean(views, axis=0)] if views else []
            scores, status = named(means[-1]) if views else {}, clip.missing.get((person, number))
            windows.append(WindowResult(window.start, window.end, scores, status or ""))
        if means:
            answers.append(
                Prediction(
                    file=clip.source.path,
                    task=config.task,
                    scores=named(np.mean(means, axis=0)),
                    windows=tuple(windows),
                    person=person,
                    notes=tuple(clip.notes),
                    boxes=_boxes(clip, person),
                )
            )
    if not answers:
        raise _nothing_seen(clip)
    return answers


def features_of(clip: PreparedClip, rows: Rows, config: ModelConfig) -> Features:
    """Average the views of each window.

    Raises:
        UnreadableClip: no window has all that is needed.
    """
    if not rows:
        raise _nothing_seen(clip)
    keys = sorted(rows)
    windows = [clip.windows[number] for _, number in keys]
    # Levels that all windows have: in some a stream may be missing.
    names = [name for name in rows[keys[0]][0] if all(name in views[0] for views in rows.values())]
    arrays = {
        name: np.stack([np.mean([row[name] for row in rows[key]], axis=0) for key in keys])
        for name in names
    }
    start, end = (np.array([getattr(w, side) for w in windows]) for side in ("start", "end"))
    return Features(clip.source.path, start, end, arrays)


def _nothing_seen(clip: PreparedClip) -> UnreadableClip:
    reasons = ", ".join(sorted(set(clip.missing.values()))) or "it has no window"
    return UnreadableClip(
        f"'{clip.source.path}' has no window with all that the model reads: {reasons}; "
        "missing_modality 'zeros' or 'drop' lets a model of both streams answer from one"
    )


def _boxes(clip: PreparedClip, person: int) -> np.ndarray:
    """Return the (n, 5) times and boxes at which a person was seen."""
    if clip.people is None or clip.looked_at is None:
        return np.empty((0, 5))
    found = clip.people[person]
    times = clip.source.times[clip.looked_at.indices]
    return np.column_stack([times, found.boxes])[found.seen]
