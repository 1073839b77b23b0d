"""What the pictures of models share: a checkpoint and the clips it is shown, drawn as they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import nn

from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import (
    AnyClip,
    decide_source_crop,
    find_list,
    read_labelled_list,
    read_pretrain_list,
)
from hicmae.data.dataset import PretrainClips, TestClips
from hicmae.data.video import ClipSettings
from hicmae.inference.model import ModelConfig, load_model
from hicmae.io import choose_device

HOP_SECONDS = 0.01  # between two spectrogram steps
MOST_FRAMES = 6
SCRIPTS = {"pre-trained": "run_pretraining.py", "fine-tuned": "run_finetuning.py"}


class Opened(NamedTuple):
    """A model of either stage, on its device, and the clips that it is shown."""

    model: nn.Module
    config: ModelConfig
    device: torch.device
    clips: Sequence[AnyClip]
    seed: int  # of windows, crops and masks


def open_model(
    path: str | Path, device: str = "auto", stage: str = ""
) -> tuple[nn.Module, ModelConfig, torch.device]:
    """Load a checkpoint; the stage "fine-tuned" or "pre-trained" refuses the other one."""
    chosen = choose_device(device)
    model, config = load_model(path, device=chosen)
    found = "pre-trained" if config.task == "pretraining" else "fine-tuned"
    if stage and stage != found:
        raise ValueError(
            f"checkpoint '{path}' is {found}, but this picture needs a {stage} one; give a "
            f"checkpoint of {SCRIPTS[stage]}"
        )
    return model, config, chosen


def open_clips(
    stage: str,
    checkpoint: str | Path,
    data_path: str | Path,
    data_root: str = "",
    device: str = "auto",
    clip: int | None = None,
    num_clips: int = 0,
    seed: int | None = None,
) -> Opened:
    """Load a model, see `open_model`, and choose clips, see `choose_lines`; the seed is 0 if None.

    They are of the list, or of test.csv (pre-training: train.csv) in a folder; relative names start
    at `data_root`.
    """
    model, config, chosen = open_model(checkpoint, device, stage)
    listed: Sequence[AnyClip]
    if config.task == "pretraining":
        listed = read_pretrain_list(data_path, data_root)
    else:
        is_folder = Path(data_path).is_dir() and not find_list(data_path)
        path = Path(data_path, "test.csv") if is_folder else data_path
        listed = read_labelled_list(path, config.task, len(config.names), data_root)
    clips = [listed[k] for k in choose_lines(len(listed), clip, num_clips, seed or 0)]
    return Opened(model, config, chosen, clips, seed or 0)


def choose_lines(length: int, clip: int | None, num_clips: int, seed: int) -> list[int]:
    """Choose one line of a list, or draw some without replacement (0: all), in the list's order."""
    if clip is not None:
        if not 0 <= clip < length:
            raise ValueError(f"--clip {clip} is not in the list of {length} clips")
        return [clip]
    if num_clips < 0:
        raise ValueError(f"--num_clips must not be negative, got {num_clips}")
    if not 0 < num_clips < length:
        return list(range(length))
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(length, num_clips, replace=False).tolist())


def batches(opened: Opened, batch_size: int = 16) -> Iterator[Any]:
    """Yield a `ViewBatch` of centre windows, or in pre-training a `PretrainBatch` of crops.

    ValueError or RuntimeError: a clip cannot be read; it is named.
    """
    config, clips, clip = opened.config, opened.clips, opened.config.preprocessing
    settings = ClipSettings(
        clip.num_frames, clip.sampling_rate, clip.input_size, clip.input_size_audio
    )
    dataset: TestClips | PretrainClips
    if config.task == "pretraining":
        trained, tubelets = config.training.get("settings", {}), clip.tubelet_size
        ratios = {n: trained[n] for n in ("mask_ratio", "mask_ratio_audio") if n in trained}
        crop = decide_source_crop(
            *(trained.get("source_crop", "auto"), trained.get("data_path", "")),
            *(clips, clip.input_size),
        )
        dataset = PretrainClips(
            *(clips, settings),
            tubelet_size=tubelets,
            seed=opened.seed,
            source_crop=crop,
            **ratios,
        )
    else:
        kind: dict[str, Any] = {"task": config.task, "modality": config.modality}
        dataset = TestClips(clips, settings, centre=True, **kind)
    for start in range(0, len(clips), batch_size):
        chosen = range(start, min(start + batch_size, len(clips)))
        items: list[Any] = [dataset[ClipIndex(0, k)] for k in chosen]
        batch = dataset.collate(items).to(opened.device)
        if batch.skipped:  # in pre-training another clip stands in for it, which would be its twin
            raise ValueError(f"a clip cannot be read: {batch.skipped[0].reason}")
        yield batch


def evenly(length: int) -> list[int]:
    """Choose some of so many places in time, as far apart as they can be."""
    return np.linspace(0, length - 1, min(MOST_FRAMES, length)).round().astype(int).tolist()


def draw_frame(axes: Axes, picture: np.ndarray, **look: Any) -> AxesImage:
    """Draw a frame (H, W, 3), or a map over one, without ticks."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(picture, **look)


def draw_spectrogram(
    axes: Axes, values: np.ndarray, size: tuple[int, ...], **look: Any
) -> AxesImage:
    """Draw a log-mel spectrogram of a size (T, F), or a map (t, f) over one."""
    extent = (0.0, size[0] * HOP_SECONDS, 0.0, float(size[1]))
    axes.set_ylabel("mel bin")
    return axes.imshow(values.T, origin="lower", aspect="auto", extent=extent, **look)
