"""EmotionRecognizer: a trained model that answers about videos, sounds and arrays."""

import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import HfApi
from torch import nn
from tqdm import tqdm

from hicmae.config import Options, check_choice
from hicmae.data.video import MODALITIES, normalise
from hicmae.inference.clips import Clip, View, Window, likeliest, stand_ins
from hicmae.inference.formats import Graph, open_onnx
from hicmae.inference.model import ModelConfig, load_model
from hicmae.inference.sources import Arrays, Asked, AskedClip, File, clip_and_sound
from hicmae.inference.speaker import Contrast, chooser, load_contrast
from hicmae.io import UnreadableClip, choose_device, hub_error, hub_folder
from hicmae.models.encoder import HUB_OPTIONS
from hicmae.training.checkpoint import BUNDLED
from hicmae.training.run import Precision, choose_precision

logger = logging.getLogger(__name__)

PRETRAINED_FEATURES = ("video_layers", "audio_layers", "fusion_video", "fusion_audio")


@dataclass(frozen=True)
class Prediction:
    """What a model says about one face, or the voice, of a clip.

    `scores` is the mean over the windows: probability by class name, or value by output name;
    `boxes` (n, 5) are seconds, left, top, right, bottom of the face in pixels, (0, 5) without.
    """

    file: str
    task: str  # "classification" or "regression"
    scores: dict[str, float]
    windows: tuple[Window, ...]  # in order of time; they overlap
    person: int = 0  # the main face; others with faces="all"
    notes: tuple[str, ...] = ()  # what the user should know, e.g. that there was no sound
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 5)), repr=False, compare=False)
    min_confidence: float = 0.0  # probability that an answer needs

    @property
    def label(self) -> str | None:
        """The likeliest class, "unsure" below `min_confidence`; None in regression."""
        return likeliest(self.scores, self.min_confidence) if self.probabilities else None

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability by class; {} in regression."""
        return {} if self.task == "regression" else self.scores

    @property
    def values(self) -> dict[str, float]:
        """Value by output; {} in classification."""
        return self.scores if self.task == "regression" else {}

    @property
    def speaker(self) -> float | None:
        """Share of the windows in which this person speaks; None where that was not asked."""
        spoken = [w.speaker for w in self.windows if w.speaker is not None]
        return sum(spoken) / len(spoken) if spoken else None

    @property
    def answer(self) -> str:
        """What is said, in one line, e.g. "glad 63 %, speaks 80 %"."""
        text = self.said(self.scores)
        return text if self.speaker is None else f"{text}, speaks {100 * self.speaker:.0f} %"

    def said(self, scores: Mapping[str, float]) -> str:
        """Return scores of a window or a moment in one line, e.g. "glad 63 %" or "pain +0.21"."""
        if self.task == "regression":
            return "  ".join(f"{name} {value:+.2f}" for name, value in scores.items())
        label = likeliest(scores, self.min_confidence)
        return f"{label} {100 * max(scores.values()):.0f} %"

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last window."""
        return self.windows[-1].end

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        kind = "values" if self.task == "regression" else "probabilities"
        windows = [
            {"start": round(w.start, 3), "end": round(w.end, 3), kind: w.scores, "status": w.status}
            | ({} if w.speaker is None else {"speaker": w.speaker})
            for w in self.windows
        ]
        told = {"file": self.file, "status": "done", "person": self.person}
        told |= {"duration": round(self.duration, 3), "label": self.label}
        told |= {} if self.speaker is None else {"speaker": round(self.speaker, 3)}
        return {**told, kind: self.scores, "notes": list(self.notes), "windows": windows}


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

    Levels, (W, ...): those of `HiCMAEClassifier.features`. A pre-training checkpoint has the layers
    and the fusion only, a model of one stream no fusion.
    """

    file: str
    start: np.ndarray  # (W,) seconds
    end: np.ndarray  # (W,) seconds
    arrays: dict[str, np.ndarray] = field(repr=False)  # float32, by level

    def mean(self) -> dict[str, np.ndarray]:
        """Return the mean over the windows by level, (L, D) or (D,)."""
        return {name: array.mean(axis=0) for name, array in self.arrays.items()}


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
    contrast: Contrast | None = None  # that tells who speaks

    def __post_init__(self) -> None:
        """Refuse what does not go together, in one line."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        trained, asked = self.config.modality, self.streams
        check_choice("modality", asked, MODALITIES)
        if not set(asked) <= set(trained):
            raise ValueError(f"the model reads '{trained}' only; modality '{asked}' was asked")
        may_miss = self.missing_modality != "error" or self.config.task == "pretraining"
        if asked != trained and not may_miss:
            raise ValueError(
                f"the model was trained on both streams; modality '{asked}' alone needs "
                "missing_modality 'zeros' or 'drop'"
            )

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
        speaker_checkpoint: str | Path | None = None,
    ) -> "EmotionRecognizer":
        """Load a model; everything else it needs is beside its weights.

        Args:
            path: export folder, the output folder of a run, a model.safetensors, an .onnx of
                hicmae-export, or a .pth of this project or of the original authors.
            device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", "mps".
            precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".
            modality: None reads what the model was trained on; "a" or "v" reads one stream of a
                model of both, which `missing_modality` must then allow.
            missing_modality: see `Options`.
            batch_size: windows that go through the model at once.
            progress: show progress bars.
            speaker_checkpoint: the pre-training whose contrast tells who speaks.

        Raises:
            FileNotFoundError, ValueError: in one line.
        """
        Options(missing_modality=missing_modality)  # checks the name
        model: nn.Module
        if Path(path).suffix.lower() == ".onnx" and Path(path).is_file():
            check_choice("device of an .onnx", device, ("auto", "cpu"))
            check_choice("precision of an .onnx", precision, ("auto", "fp32"))
            check_choice("missing_modality of an .onnx", missing_modality, ("error", "zeros"))
            (model, config), device, precision = open_onnx(path), "cpu", "fp32"
        else:
            # With "zeros" the other stream is silent or black, but goes through its encoder.
            read = None if missing_modality == "zeros" else modality
            model, config = load_model(path, choose_device(device), read)
        arithmetic, contrast = choose_precision(precision, choose_device(device)), None
        if speaker_checkpoint:
            contrast = load_contrast(speaker_checkpoint, config.preprocessing, arithmetic)
        how = missing_modality, batch_size, progress, contrast
        return cls(model, config, arithmetic, modality or config.modality, *how)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "EmotionRecognizer":
        """Load what `from_checkpoint` does, or a model by its name on huggingface.co.

        The options are those of `from_checkpoint`, and of the hub `revision`, `token`, `cache_dir`,
        `force_download` and `local_files_only`. OSError, in one line: it cannot be reached.
        """
        where = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        is_here = os.path.exists(name) or str(name) in BUNDLED
        return cls.from_checkpoint(name if is_here else hub_folder(name, **where), **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and README.md, the model card, to a folder."""
        parts = {"v": "encoder", "a": "encoder_audio"}
        if any(getattr(self.model, parts[s], None) is None for s in self.config.modality):
            raise ValueError(
                "this recognizer holds a part of its network, expected all of it: load the "
                "checkpoint without modality, and not an .onnx, to save it"
            )
        weights = self.model.state_dict()
        if self.config.task == "pretraining":  # its head was never trained
            weights = {name: w for name, w in weights.items() if name.startswith("encoder")}
        from hicmae.inference.export import write_export  # brings scipy and pandas

        write_export(folder, self.config, weights)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        commit_message: str = "Export of HiCMAE",
    ) -> str:
        """Put an export on huggingface.co, and return the commit's address; OSError in one line."""
        told: Any = {"revision": branch, "commit_message": commit_message}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api = HfApi(token=token)
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **told))
            except Exception as error:  # of requests or httpx, by version
                raise hub_error(repo_id, error) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes or regression outputs."""
        return self.config.names

    def predict(self, video: Asked, *, audio: File = None, **options: Any) -> Prediction:
        """Answer about one clip: its main face and its sound.

        Args:
            video: video file; sound file where only sound is read; folder of face frames; `Arrays`.
            audio: sound file to hear instead of the video's own.
            options: faces, window, overlap and protocol, see `Options`.

        Raises:
            UnreadableClip: no such file, no face, no sound, ...; the message is one line.
        """
        if options.get("faces") == "all":
            raise ValueError("faces='all' gives an answer for each person: use predict_people")
        return next(self.each([(video, audio)], **options))

    def predict_people(self, video: Asked, *, audio: File = None, **kw: Any) -> list[Prediction]:
        """Answer about everybody in a clip, the main one first; arguments as in `predict`.

        All of them are judged with the same sound, but see `Options.speaker`.
        """
        return next(self.each([(video, audio)], **{**kw, "faces": "all"}))

    def predict_arrays(
        self,
        frames: np.ndarray | None,
        fps: float = 25.0,
        waveform: np.ndarray | None = None,
        sample_rate: float = 16000,
        **options: Any,
    ) -> Prediction:
        """Answer about frames and a waveform, see `Arrays`; the options are those of `predict`."""
        return self.predict(Arrays(frames, fps, waveform, sample_rate), **options)

    def features(self, video: Asked, *, audio: File = None, **options: Any) -> Features:
        """Return the features of a clip; arguments as in `predict`."""
        return next(self.each([(video, audio)], features=True, **options))

    def each(
        self,
        files: Iterable[AskedClip],
        *,
        features: bool = False,
        on_error: str = "raise",
        on_view: Callable[[Clip, View], object] | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Yield the answers about many clips in order, each as soon as it is known.

        Windows of different clips go through the model together.

        Args:
            files: as `video` of `predict`; or pairs (video, audio), or clips of a list.
            features: give `Features` instead of predictions.
            on_error: "raise" stops at an unreadable clip; "return" puts a `Failure` in its place.
            on_view: called with all that the model reads, before it does.
            options: see `Options`; with faces="all" there is a list of predictions for each clip.
        """
        chosen = Options(**options, missing_modality=self.missing_modality)
        check_choice("on_error", on_error, ("raise", "return"))
        self._check(chosen, features)
        heard = self.config.preprocessing.input_size_audio[0] / 100
        if "a" in self.streams and (chosen.window or 0) > 1.1 * heard:
            text = "the model hears only the first %.2f s of each window of %.2f s"
            logger.warning(f"{text}; choose a shorter one", heard, chosen.window)
        finish = partial(_finished, features=features, on_error=on_error)
        files = list(files)
        queue: deque[Clip] = deque()
        batches: dict[tuple[bool, bool], list[tuple[Clip, View]]] = defaultdict(list)
        hidden = not self.progress
        for file in tqdm(files, "clips", disable=hidden or len(files) < 2):
            clip = Clip(*clip_and_sound(file), self.config, self.streams, chosen)
            queue.append(clip)
            try:
                views = clip.views(chooser(clip, chosen.speaker, self.contrast))
                for view in tqdm(views, "windows", clip.prepare(), leave=False, disable=hidden):
                    if on_view:
                        on_view(clip, view)
                    batch = batches[view.video is None, view.audio is None]  # of the same streams
                    batch.append((clip, view))
                    if len(batch) == self.batch_size:
                        self._compute(batch, features)
            except UnreadableClip as error:
                clip.error = error
            clip.waveform = clip.frames = None  # many clips may wait for their batch
            while queue and all(queue[0].rows.values()):
                yield finish(queue.popleft())
        for batch in batches.values():
            self._compute(batch, features)
        yield from map(finish, queue)

    def _check(self, chosen: Options, features: bool) -> None:
        """Refuse what this model cannot be asked."""
        is_graph, speaker = isinstance(self.model, Graph), chosen.speaker
        wrong = ""
        if features and is_graph:
            wrong = "an .onnx answers only; features need the checkpoint it was made of"
        elif features and chosen.faces == "all":
            wrong = "features are those of one face; choose faces='largest' or 'cut'"
        elif self.config.task == "pretraining" and not features:
            wrong = "this is a pre-training checkpoint, which knows no emotions; fine-tune it "
            wrong += "first (run_finetuning.py), or ask for features"
        elif speaker != "none" and self.streams != "av":
            wrong = f"--speaker {speaker} says who has the sound, but only '{self.streams}' is "
            wrong += "read, expected 'av'; leave it out"
        elif speaker == "contrast" and self.contrast is None:
            wrong = "--speaker contrast needs a pre-training checkpoint, got none; name it with "
            wrong += "--speaker_checkpoint, or use --speaker lips"
        if wrong:
            raise ValueError(wrong)
        if speaker != "none" and is_graph:
            what = "missing_modality of an .onnx that is told who speaks"
            check_choice(what, self.missing_modality, ("zeros",))

    @torch.inference_mode()
    def _compute(self, batch: list[tuple[Clip, View]], features: bool) -> None:
        """Give the views of a batch their rows, and empty it."""
        if not batch:
            return
        model, device = cast(Any, self.model), self.precision.device
        videos = [view.video for _, view in batch if view.video is not None]
        audios = [view.audio for _, view in batch if view.audio is not None]
        is_av, stands_in = self.config.modality == "av", self.missing_modality == "zeros"
        if is_av and stands_in and not (videos and audios):
            black, silence = stand_ins(self.config.preprocessing)
            videos, audios = videos or [black] * len(batch), audios or [silence] * len(batch)
        video = normalise(torch.stack(videos).to(device)) if videos else None
        audio = torch.stack(audios).to(device) if audios else None
        with self.precision.autocast():
            if features:
                rows = model.features(video, audio)
            elif is_av and (video is None or audio is None):
                rows = {"scores": model.score(model.features(video, audio)["fused"]).float()}
            else:
                rows = {"scores": model(video, audio).float()}
        if self.config.task == "pretraining":
            rows = {name: rows[name] for name in PRETRAINED_FEATURES if name in rows}
        elif self.config.task == "classification" and not features:
            # The test's numbers are those of the test, not calibrated.
            tests = batch[0][0].options.protocol == "test"  # all clips have the same options
            temperature = 1.0 if tests else self.config.temperature
            rows = {"scores": (rows["scores"] / temperature).softmax(-1)}
        arrays = {name: value.float().cpu().numpy() for name, value in rows.items()}
        for index, (clip, view) in enumerate(batch):
            row = {name: array[index] for name, array in arrays.items()}
            clip.rows[view.person, view.window] = row
        batch.clear()


def _finished(clip: Clip, features: bool, on_error: str) -> Any:
    """Return what is known of a clip, or why nothing is."""
    if not clip.error and not clip.rows:
        reasons = ", ".join(sorted({window.status for window in clip.seen.values()}))
        clip.error = UnreadableClip(
            f"'{clip.file}' has no window with all that the model reads: {reasons}; "
            "missing_modality 'zeros' or 'drop' lets a model of both streams answer from one"
        )
    if clip.error and on_error == "raise":
        raise clip.error
    if clip.error:
        return Failure(clip.file, str(clip.error))
    if not features:
        people = [_prediction_of(clip, person) for person in sorted({p for p, _ in clip.rows})]
        return people if clip.options.faces == "all" else people[0]
    rows, windows = list(clip.rows.values()), [clip.seen[key] for key in clip.rows]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    arrays = {name: np.stack([row[name] for row in rows]) for name in names}
    start, end = (np.array([getattr(w, side) for w in windows]) for side in ("start", "end"))
    return Features(clip.file, start, end, arrays)


def _prediction_of(clip: Clip, person: int) -> Prediction:
    """Put what is known of the windows into them, and average it."""

    def named(scores: np.ndarray) -> dict[str, float]:
        return dict(zip(clip.config.names, scores.tolist(), strict=True))

    rows = {key: row["scores"].astype(float) for key, row in clip.rows.items() if key[0] == person}
    seen = {key: window for key, window in clip.seen.items() if key[0] == person}
    seen |= {key: replace(seen[key], scores=named(row)) for key, row in rows.items()}
    boxes = np.empty((0, 5))
    if clip.boxes is not None and clip.times is not None:
        boxes = np.column_stack([clip.times, clip.boxes[person]])
        boxes = boxes[np.isfinite(boxes[:, 1])]
    mean, least = named(np.mean([*rows.values()], axis=0)), clip.options.min_confidence
    windows, notes = tuple(seen.values()), tuple(clip.notes)
    return Prediction(clip.file, clip.config.task, mean, windows, person, notes, boxes, least)
