"""What the pictures of features, attention and retrieval share: a model, and clips as its input."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hicmae.data.clip_list import AnyClip, read_labelled_list, read_pretrain_list
from hicmae.data.dataset import PretrainClips, TestClips
from hicmae.data.loader import ClipIndex, PretrainBatch, ViewBatch
from hicmae.inference import clips as forward
from hicmae.inference.model import ModelConfig, Preprocessing, load_model


class Opened(NamedTuple):
    """A model of either stage, on its device, and its description."""

    model: nn.Module
    config: ModelConfig
    device: torch.device


def open_model(path: str | Path, device: str = "auto", stage: str | None = None) -> Opened:
    """Load a checkpoint.

    Args:
        path: .pth of this project or of the original authors, or an export.
        device: "auto", "cuda" or "cpu".
        stage: "fine-tuned" or "pre-trained" refuses the other one; None takes both.
    """
    chosen = choose_device(device)
    model, config = load_model(path, device=chosen)
    found = "pre-trained" if config.task == "pretraining" else "fine-tuned"
    if stage is not None and found != stage:
        scripts = {"pre-trained": "run_pretraining.py", "fine-tuned": "run_finetuning.py"}
        raise ValueError(
            f"checkpoint '{path}' is {found}, but this picture needs a {stage} one; give a "
            f"checkpoint of {scripts[stage]}"
        )
    return Opened(model, config, chosen)


def choose_device(device: str) -> torch.device:
    """Return the GPU if there is one and none was named."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but no GPU is usable here; use --device cpu")
    return torch.device(device)


def read_clips(
    config: ModelConfig, data_path: str | Path, data_root: str = ""
) -> Sequence[AnyClip]:
    """Read the list that fits a model, or test.csv (pre-training: train.csv) in a folder."""
    path = Path(data_path)
    if config.task == "pretraining":
        return read_pretrain_list(path / "train.csv" if path.is_dir() else path, data_root)
    path = path / "test.csv" if path.is_dir() else path
    return read_labelled_list(path, config.task, len(config.names), data_root)


def draw_lines(length: int, num_clips: int, seed: int) -> list[int]:
    """Draw lines of a list without replacement, in its order; 0 takes all."""
    if num_clips < 0:
        raise ValueError(f"--num_clips must not be negative, got {num_clips}")
    if num_clips == 0 or num_clips >= length:
        return list(range(length))
    chosen = np.random.default_rng(seed).choice(length, num_clips, replace=False)
    return sorted(chosen.tolist())


def pick_lines(length: int, line: int | None, num_clips: int, seed: int) -> list[int]:
    """Return the line that was asked for, or some drawn ones."""
    if line is None:
        if num_clips < 1:
            raise ValueError(f"--num_clips must be at least 1 here, got {num_clips}")
        return draw_lines(length, num_clips, seed)
    if not 0 <= line < length:
        raise ValueError(f"--clip {line} is not in the list of {length} clips")
    return [line]


class Inputs(NamedTuple):
    """Clips as the model's input, on its device; masks only where the checkpoint is pre-trained."""

    video: Tensor | None
    audio: Tensor | None
    target: Tensor | None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None


def batches(
    opened: Opened, clips: Sequence[AnyClip], batch_size: int = 16, seed: int = 0
) -> Iterator[Inputs]:
    """Yield clips in batches: their centre windows, in pre-training the crops of that.

    Raises:
        ValueError: naming a clip that cannot be read.
    """
    config = opened.config
    pretrained = config.task == "pretraining"
    dataset = _pretrain_dataset(config, clips, seed) if pretrained else _dataset(config, clips)
    for start in range(0, len(clips), batch_size):
        stop = min(start + batch_size, len(clips))
        try:
            items = [dataset[ClipIndex(0, k)] for k in range(start, stop)]
        except RuntimeError as error:
            raise ValueError(f"{error}") from error
        collate: Callable[[list[Any]], PretrainBatch | ViewBatch] = dataset.collate
        batch = collate(items).to(opened.device)
        if batch.skipped:  # in pre-training another clip stands in for it, which would be its twin
            raise ValueError(f"a clip cannot be read: {batch.skipped[0].reason}")
        if isinstance(batch, PretrainBatch):
            yield Inputs(batch.video, batch.audio, None, batch.video_mask, batch.audio_mask)
        else:
            yield Inputs(batch.video, batch.audio, batch.target)


def _dataset(config: ModelConfig, clips: Sequence[AnyClip]) -> TestClips:
    return TestClips(
        clips,
        task=config.task,
        centre=True,
        modality=config.modality,
        **_sizes(config.preprocessing),
    )


def _pretrain_dataset(config: ModelConfig, clips: Sequence[AnyClip], seed: int) -> PretrainClips:
    settings = config.training.get("settings", {})
    return PretrainClips(
        clips,
        tubelet_size=config.preprocessing.tubelet_size,
        mask_ratio=settings.get("mask_ratio", 0.9),
        mask_ratio_audio=settings.get("mask_ratio_audio", 0.8),
        seed=seed,
        **_sizes(config.preprocessing),
    )


def _sizes(clip: Preprocessing) -> dict[str, Any]:
    return {
        "num_frames": clip.num_frames,
        "sampling_rate": clip.sampling_rate,
        "input_size": clip.input_size,
        "input_size_audio": clip.input_size_audio,
    }


class Features(NamedTuple):
    """Features of labelled clips."""

    values: dict[str, np.ndarray]  # name of a part, see `feature_names` -> (n, D), fused (n, 4D)
    labels: np.ndarray  # (n,) classes or (n, K) targets


def feature_names(modality: str) -> tuple[str, ...]:
    """Name the parts of a model's features; `fused` is all of them, as the head reads it."""
    if modality == "av":
        return ("video", "audio", "fusion_video", "fusion_audio", "fused")
    return ("video" if modality == "v" else "audio", "fused")


@torch.inference_mode()
def features(opened: Opened, clips: Sequence[AnyClip]) -> Features:
    """Compute the features of `hicmae.inference` for the centre window of every clip."""
    names = feature_names(opened.config.modality)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    targets: list[Tensor] = []
    for batch in batches(opened, clips):
        parts = forward.features(opened.model, batch.video, batch.audio)
        for name in names:
            found[name].append(parts[name].float().cpu())
        assert batch.target is not None  # a labelled list
        targets.append(batch.target.cpu())
    values = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return Features(values, torch.cat(targets).numpy())
