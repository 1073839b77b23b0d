"""What the pictures of models share, a checkpoint and the clips it is shown; and clips rebuilt."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike
from torch import nn

from hicmae.config import ClipConfig, MaskConfig, PretrainLossConfig, PretrainModelConfig
from hicmae.config.flags import from_flags
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import (
    AnyClip,
    decide_source_crop,
    find_list,
    read_labelled_list,
    read_pretrain_list,
)
from hicmae.data.dataset import PretrainClips, TestClips
from hicmae.inference.model import load_model
from hicmae.inference.style import STYLE
from hicmae.io import choose_device
from hicmae.models.reconstruct import Reconstruction, reconstruct
from hicmae.training import trained
from hicmae.training.run import Precision, choose_precision

HOP_SECONDS = 0.01  # between two spectrogram steps
MOST_FRAMES = 6
SCRIPTS = {"pre-trained": "run_pretraining.py", "fine-tuned": "run_finetuning.py"}


class Opened(NamedTuple):
    """A model of either stage, on its device, and the clips that it is shown."""

    model: nn.Module
    settings: dict[str, Any]  # by flag: what it was trained with, as far as its file says
    names: Sequence[str]  # of the classes or outputs; none in pre-training
    device: torch.device
    clips: Sequence[AnyClip]  # the whole list
    lines: Sequence[int]  # which of them are shown
    seed: int  # of windows, crops and masks


def open_model(
    path: str | Path, device: str = "auto", stage: str = ""
) -> tuple[nn.Module, dict[str, Any], Sequence[str], torch.device]:
    """Load a checkpoint; return the model, its settings by flag, its names and the device.

    The stage "fine-tuned" or "pre-trained" refuses the other one.
    """
    chosen = choose_device(device)
    model, config = load_model(path, device=chosen)
    found = "pre-trained" if config.task == "pretraining" else "fine-tuned"
    if stage and stage != found:
        raise ValueError(
            f"checkpoint '{path}' is {found}, but this picture needs a {stage} one; give a "
            f"checkpoint of {SCRIPTS[stage]}"
        )
    told = {"task": config.task, "modality": config.modality}
    settings = config.training.get("settings", {}) | asdict(config.preprocessing) | told
    return model, settings, config.names, chosen


def open_whole(path: str | Path, device: str) -> tuple[nn.Module, dict[str, Any], torch.device]:
    """Load a pre-training checkpoint with its decoders; return it, its settings and the device."""
    chosen, found = choose_device(device), trained.read(path)
    settings = found.told | {"task": found.settings.get("task")}
    lacks = "" if "mask_token" in found.weights else "has no decoders"
    if "mask_ratio" not in settings:
        lacks = "holds no settings"
    if settings["task"] != "pretraining":
        lacks = "is fine-tuned and has no decoders"
    if lacks:
        raise ValueError(
            f"checkpoint '{path}' {lacks}, but this picture needs a pre-trained one with decoders "
            "and settings; give a checkpoint of run_pretraining.py"
        )
    clip = from_flags(settings, ClipConfig)
    model = timm.create_model(**vars(from_flags(settings, PretrainModelConfig)), **clip.of_model())
    model.load_state_dict(found.weights)
    return model.eval().to(chosen), settings, chosen


def open_clips(
    stage: str,
    checkpoint: str | Path,
    data_path: str | Path,
    data_root: str = "",
    device: str = "auto",
    clip: int | None = None,
    num_clips: int = 0,
    seed: int | None = None,
    rebuilds: bool = False,
) -> Opened:
    """Load a model, see `open_model`, and choose clips, see `choose_lines`.

    They are of the list, or of test.csv (pre-training: train.csv) in a folder; relative names start
    at `data_root`. Without a seed it is 0. A model that `rebuilds` is that of `open_whole`, and its
    seed that of its training.
    """
    names: Sequence[str] = ()
    if rebuilds:
        model, settings, chosen = open_whole(checkpoint, device)
    else:
        model, settings, names, chosen = open_model(checkpoint, device, stage)
    listed: Sequence[AnyClip]
    if settings["task"] == "pretraining":
        listed = read_pretrain_list(data_path, data_root)
    else:
        is_folder = Path(data_path).is_dir() and not find_list(data_path)
        path = Path(data_path, "test.csv") if is_folder else data_path
        listed = read_labelled_list(path, settings["task"], len(names), data_root)
    if seed is None:
        seed = settings.get("seed", 0) if rebuilds else 0
    lines = choose_lines(len(listed), clip, num_clips, seed)
    return Opened(model, settings, names, chosen, listed, lines, seed)


def choose_lines(length: int, clip: int | None, num_clips: int, seed: int) -> list[int]:
    """Choose one line of a list, or draw some without replacement (0: all), in the list's order."""
    if clip is not None:
        if num_clips not in (0, 1):
            raise ValueError(f"give --clip {clip} or --num_clips {num_clips}, not both")
        if not 0 <= clip < length:
            raise ValueError(f"--clip {clip} is not in the list of {length} clips")
        return [clip]
    if num_clips < 0:
        raise ValueError(f"--num_clips must not be negative, got {num_clips}")
    if not 0 < num_clips < length:
        return list(range(length))
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(length, num_clips, replace=False).tolist())


def batches(opened: Opened, batch_size: int = 16, **options: Any) -> Iterator[Any]:
    """Yield a `ViewBatch` of centre windows, or in pre-training a `PretrainBatch` of crops.

    The options are those of the data set. ValueError or RuntimeError: a clip cannot be read; it is
    named.
    """
    settings, clip = opened.settings, from_flags(opened.settings, ClipConfig)
    dataset: TestClips | PretrainClips
    if settings["task"] == "pretraining":
        options |= vars(from_flags(settings, MaskConfig)) | {"tubelet_size": clip.tubelet_size}
        choice, path = settings.get("source_crop", "auto"), settings.get("data_path", "")
        crop = decide_source_crop(choice, path, opened.clips, clip.input_size)
        dataset = PretrainClips(opened.clips, clip, source_crop=crop, seed=opened.seed, **options)
    else:
        options |= {name: settings[name] for name in ("task", "modality")}
        dataset = TestClips(opened.clips, clip, centre=True, **options)
    for start in range(0, len(opened.lines), batch_size):
        lines = opened.lines[start : start + batch_size]
        items: list[Any] = [dataset[ClipIndex(0, line)] for line in lines]
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


# Masked clips beside what a pre-training checkpoint makes of them


def reconstruction_figure(*parts: ArrayLike) -> Figure:
    """Draw clips as they are, as the model sees them, and as the model rebuilds them.

    The parts are six arrays or tensors a clip, all clips of one shape: (3, T, H, W) pixels in 0..1,
    clipped, as they are, masked and rebuilt; likewise the (T, F) log-mel spectrogram. What is nan
    is drawn in grey. The first spectrogram of a clip sets the range of its colours.
    """
    arrays = [torch.as_tensor(part).detach().float().cpu().numpy() for part in parts]
    for first, axes in ((0, 4), (3, 2)):
        same = [array for k, array in enumerate(arrays) if k % 6 in range(first, first + 3)]
        if len({array.shape for array in same}) != 1 or same[0].ndim != axes:
            raise ValueError(
                "original, masked and rebuilt must have one shape, (3, T, H, W) for video and "
                f"(T, F) for audio, got {[array.shape for array in same]}"
            )
    frames, num_clips = evenly(arrays[0].shape[1]), len(arrays) // 6
    widths = [1.0] * len(frames) + [2.0]
    size = (1.05 * sum(widths) + 1.0, 3.55 * num_clips)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout=tight)
        for number, part in enumerate(figure.subfigures(num_clips, 1, squeeze=False)[:, 0]):
            clip = arrays[6 * number : 6 * number + 6]
            grid = part.subplots(3, len(widths), width_ratios=widths)
            names = ("original", "masked", "rebuilt")
            for row, name, video in zip(grid, names, clip, strict=False):
                row[0].set_ylabel(name)
                for axes, frame in zip(row, frames, strict=False):
                    picture = np.moveaxis(video[:, frame], 0, -1)  # (H, W, 3)
                    draw_frame(axes, np.where(np.isnan(picture), 0.5, np.clip(picture, 0.0, 1.0)))
            for axes, frame in zip(grid[0], frames, strict=False):
                axes.set_title(f"frame {frame}")
            _draw_spectrograms(part, grid[:, -1], clip[3:])
    return figure


def _draw_spectrograms(figure: SubFigure, column: Sequence[Axes], audios: list[np.ndarray]) -> None:
    low, high = np.nanpercentile(audios[0], (1, 99))
    look: dict[str, Any] = {
        "cmap": matplotlib.colormaps["viridis"].with_extremes(bad="#808080"),
        "interpolation": "nearest",
        "vmin": low,
        "vmax": max(high, low + 1e-6),
    }
    for axes, audio in zip(column, audios, strict=True):
        image = draw_spectrogram(axes, audio, audio.shape, **look)
        axes.grid(False)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.tick_params(labelbottom=axes is column[-1])
    column[0].set_title("log-mel spectrogram")
    column[-1].set_xlabel("time (s)")
    bar = figure.colorbar(image, ax=list(column), fraction=0.06, pad=0.02)
    bar.set_label("normalised log energy")


def rebuild_clips(
    model: nn.Module, batch: PretrainBatch, loss: PretrainLossConfig, precision: Precision
) -> list[Reconstruction]:
    """Rebuild the masked patches of the clips of a batch, as their loss has it."""
    return reconstruct(
        model,
        *batch.to(precision.device)[:4],
        precision.autocast(),
        loss.frame_diff_group_size if loss.frame_diff else None,
        loss.normalize_target,
        loss.normalize_target_audio,
    )


def reconstruction(clip: int | None = None, num_clips: int = 0, **source: Any) -> Figure:
    """Draw clips of the list of `open_clips`, rebuilt by a pre-training checkpoint.

    Its settings say the model, the clip geometry, the masks and, where none is given, the seed.
    Without a number of clips the first of the list is drawn. A rebuilt patch has the mean and
    deviation of the true one, which the model does not predict.
    """
    clip = 0 if clip is None and not num_clips else clip
    opened = open_clips("pre-trained", clip=clip, num_clips=num_clips, rebuilds=True, **source)
    loss = from_flags(opened.settings, PretrainLossConfig)
    gain = bool(opened.settings.get("roll_mag_aug"))
    precision = choose_precision("fp32", opened.device)
    rebuilt = [
        rebuild_clips(opened.model, batch, loss, precision)
        for batch in batches(opened, roll_mag_aug=gain)
    ]
    return reconstruction_figure(*itertools.chain(*itertools.chain(*rebuilt)))
