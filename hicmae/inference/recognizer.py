"""From what was computed of a clip's views to its predictions or features.

EmotionRecognizer: a trained model that answers about videos, sounds and arrays.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hicmae.data.media import Arrays, Source, open_source
from hicmae.inference import clips as forward
from hicmae.inference.clips import BatchRunner, Compute, Computed, Options, PreparedClip
from hicmae.inference.model import ModelConfig, load_model
from hicmae.inference.results import Failure, Prediction, WindowResult
from hicmae.io import UnreadableClip
from hicmae.training.run import Precision, choose_precision


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


def predictions_of(computed: Computed, config: ModelConfig) -> list[Prediction]:
    """Average the views of each window, and the windows, for each person.

    Raises:
        UnreadableClip: the clip could not be read, or no window could be answered.
    """
    clip = _readable(computed)
    answers = []
    for person in range(clip.num_people):
        windows, means = [], []
        for number, window in enumerate(clip.windows):
            views = [row["scores"].astype(float) for row in computed.rows.get((person, number), [])]
            if views:
                means.append(np.mean(views, axis=0))
            scores = _named(config, means[-1]) if views else {}
            status = clip.missing.get((person, number), "")
            windows.append(WindowResult(window.start, window.end, scores, status))
        if means:
            answers.append(
                Prediction(
                    file=clip.source.path,
                    task=config.task,
                    scores=_named(config, np.mean(means, axis=0)),
                    windows=tuple(windows),
                    person=person,
                    notes=tuple(clip.notes),
                    boxes=_boxes(clip, person),
                )
            )
    if not answers:
        raise _nothing_seen(clip)
    return answers


def features_of(computed: Computed) -> Features:
    """Average the views of each window.

    Raises:
        UnreadableClip: the clip could not be read, or no window has all that is needed.
    """
    clip = _readable(computed)
    keys = sorted(computed.rows)
    if not keys:
        raise _nothing_seen(clip)
    views = [computed.rows[key] for key in keys]
    # Levels that all windows have: in some a stream may be missing.
    names = [name for name in views[0][0] if all(name in rows[0] for rows in views)]
    windows = [clip.windows[window] for _, window in keys]
    return Features(
        file=clip.source.path,
        start=np.array([window.start for window in windows]),
        end=np.array([window.end for window in windows]),
        arrays={
            name: np.stack([np.mean([row[name] for row in rows], axis=0) for rows in views])
            for name in names
        },
    )


def _readable(computed: Computed) -> PreparedClip:
    if isinstance(computed.clip, UnreadableClip):
        raise computed.clip
    return computed.clip


def _nothing_seen(clip: PreparedClip) -> UnreadableClip:
    reasons = ", ".join(sorted(set(clip.missing.values()))) or "it has no window"
    return UnreadableClip(
        f"'{clip.source.path}' has no window with all that the model reads: {reasons}; "
        "missing_modality 'zeros' or 'drop' lets a model of both streams answer from one"
    )


def _named(config: ModelConfig, scores: np.ndarray) -> dict[str, float]:
    return dict(zip(config.names, scores.tolist(), strict=True))


def _boxes(clip: PreparedClip, person: int) -> np.ndarray:
    """Return the (n, 5) times and boxes at which a person was seen."""
    if clip.people is None or clip.looked_at is None:
        return np.empty((0, 5))
    found = clip.people[person]
    times = clip.source.times[clip.looked_at.indices]
    return np.column_stack([times, found.boxes])[found.seen]


PRETRAINED_FEATURES = ("video_layers", "audio_layers", "fusion_video", "fusion_audio")


File = str | Path | tuple[str | Path, str | Path | None]  # a clip, or a clip and its sound


class EmotionRecognizer:
    """A model, and all it needs to read clips.

    Make one with `from_checkpoint`. It can be used from one thread at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        precision: Precision,
        streams: str,
        missing_modality: str = "error",
        batch_size: int = 8,
        progress: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.config, self.precision = model, config, precision
        self.streams, self.missing_modality = streams, missing_modality
        self.batch_size, self.progress = batch_size, progress

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
            device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1".
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
        options = Options(missing_modality=missing_modality)  # checks the name
        place = _device(device)
        # With "zeros" the other stream is silent or black, but goes through its encoder.
        model, config = load_model(path, None if missing_modality == "zeros" else modality, place)
        streams = _streams(config, modality, options.missing_modality)
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
        """Answer about everybody in a clip, the one seen most first; arguments as in `predict`.

        All of them are judged with the same sound.
        """
        source = open_source(video, audio, self.config.preprocessing.frame_rate)
        return self._predict_source(source, self._options(faces=faces, **options))

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
        source = Arrays(frames, fps, waveform, sample_rate)
        return self._predict_source(source, self._options(**options))[0]

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
        _check_choice("on_error", on_error, ("raise", "return"))
        self._check_classifier()
        pairs = [file if isinstance(file, tuple) else (file, None) for file in files]
        chosen = self._options(**options)
        computed = self._runner(self._scores).run([self._opener(*pair) for pair in pairs], chosen)
        for (video, _), item in zip(pairs, computed, strict=True):
            try:
                people = predictions_of(item, self.config)
                yield people if chosen.faces == "all" else people[0]
            except UnreadableClip as error:
                if on_error == "raise":
                    raise
                yield Failure(str(video), str(error))

    def features_each(
        self, files: Iterable[File], *, on_error: str = "raise", **options: Any
    ) -> Iterator[Features | Failure]:
        """Yield the features of many clips; arguments as in `predict_batch`."""
        _check_choice("on_error", on_error, ("raise", "return"))
        chosen = self._options(**options)
        _check_one_face(chosen)
        pairs = [file if isinstance(file, tuple) else (file, None) for file in files]
        computed = self._runner(self._levels).run([self._opener(*pair) for pair in pairs], chosen)
        for (video, _), item in zip(pairs, computed, strict=True):
            try:
                yield features_of(item)
            except UnreadableClip as error:
                if on_error == "raise":
                    raise
                yield Failure(str(video), str(error))

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
        results = self.features_each([(video, audio)], **options)
        return next(iter(results))  # type: ignore[return-value]  # no failure: errors are raised

    def features_arrays(
        self,
        frames: np.ndarray | None,
        fps: float = 25.0,
        waveform: np.ndarray | None = None,
        sample_rate: float = 16000,
        **options: Any,
    ) -> Features:
        """Return the features of a clip in memory; arguments as in `predict_arrays`."""
        source = Arrays(frames, fps, waveform, sample_rate)
        chosen = self._options(**options)
        _check_one_face(chosen)
        return features_of(next(self._runner(self._levels).run([lambda: source], chosen)))

    def _options(self, **options: Any) -> Options:
        try:
            return Options(**options, missing_modality=self.missing_modality)
        except TypeError as error:
            known = ", ".join(n for n in Options.__annotations__ if n != "missing_modality")
            raise TypeError(f"{error}; the options are {known}") from None

    def _opener(self, video: str | Path, audio: str | Path | None) -> partial[Source]:
        return partial(open_source, video, audio, self.config.preprocessing.frame_rate)

    def _runner(self, compute: Compute) -> BatchRunner:
        return BatchRunner(
            self.config,
            self.streams,
            compute,
            self.precision.device,
            self.batch_size,
            self.progress,
        )

    def _check_classifier(self) -> None:
        if self.config.task == "pretraining":
            raise ValueError(
                "this is a pre-training checkpoint, which knows no emotions; fine-tune it first "
                "(run_finetuning.py), or ask for features"
            )

    def _predict_source(self, source: Source, options: Options) -> list[Prediction]:
        self._check_classifier()
        computed = self._runner(self._scores).run([lambda: source], options)
        return predictions_of(next(computed), self.config)

    def _filled(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """With missing_modality "zeros", put black frames or silence where a stream is missing."""
        if self.missing_modality != "zeros":
            return video, audio
        clip, modality, device = self.config.preprocessing, self.config.modality, self.precision
        given = video if video is not None else audio
        assert given is not None
        if video is None and "v" in modality:
            video = forward.stand_in("v", len(given), clip, device.device)
        if audio is None and "a" in modality:
            audio = forward.stand_in("a", len(given), clip, device.device)
        return video, audio

    def _scores(self, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        with self.precision.autocast():
            scores = forward.scores(self.model, *self._filled(video, audio)).float()
        if self.config.task == "classification":
            scores = scores.softmax(dim=-1)
        return {"scores": scores}

    def _levels(self, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        with self.precision.autocast():
            found = forward.features(self.model, *self._filled(video, audio))
        if self.config.task == "pretraining":
            found = {name: found[name] for name in PRETRAINED_FEATURES if name in found}
        return found


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<n>, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}, but torch sees no GPU; use cpu or auto")
    return device


def _streams(config: ModelConfig, modality: str | None, missing_modality: str) -> str:
    """Return which streams are read, and refuse what the model cannot do."""
    if modality is None or modality == config.modality:
        return config.modality
    if modality not in ("av", "a", "v"):
        raise ValueError(f"modality must be av, a or v, got {modality!r}")
    if not set(modality) <= set(config.modality):
        raise ValueError(
            f"the model reads '{config.modality}' only; modality '{modality}' was asked"
        )
    if missing_modality == "error" and config.task != "pretraining":
        raise ValueError(
            f"the model was trained on both streams; modality '{modality}' alone needs "
            "missing_modality 'zeros' or 'drop'"
        )
    return modality


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_one_face(options: Options) -> None:
    if options.faces == "all":
        raise ValueError("features are those of one face; choose faces='largest' or 'cut'")
