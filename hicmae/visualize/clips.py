"""What the pictures of models share, a checkpoint and the clips it is shown; and clips rebuilt."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
# A map from 0 to its strongest point, the picture shining through.
HEAT: dict[str, Any] = {"cmap": "inferno", "alpha": 0.6, "vmin": 0.0, "interpolation": "bilinear"}


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
    if stage not in ("", found):
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
    """Load a model, see `open_model`, and choose one clip, or some, or all for 0.

    They are of the list, or of test.csv (pre-training: train.csv) in a folder; relative names start
    at `data_root`. Without a seed it is 0. A model that `rebuilds` is that of `open_whole`, and its
    seed that of its training.
    """
    names: Sequence[str] = ()
    if rebuilds:
        model, settings, chosen = open_whole(checkpoint, device)
        seed = settings.get("seed", 0) if seed is None else seed
    else:
        model, settings, names, chosen = open_model(checkpoint, device, stage)
    listed: Sequence[AnyClip]
    if settings["task"] == "pretraining":
        listed = read_pretrain_list(data_path, data_root)
    else:
        is_folder = Path(data_path).is_dir() and not find_list(data_path)
        path = Path(data_path, "test.csv") if is_folder else data_path
        listed = read_labelled_list(path, settings["task"], len(names), data_root)
    lines: Sequence[int] = range(len(listed))
    if clip is not None:
        if clip not in lines:
            raise ValueError(f"--clip {clip} is not in the list of {len(listed)} clips")
        lines = [clip]
    elif 0 < num_clips < len(listed):
        rng = np.random.default_rng(seed or 0)
        lines = sorted(rng.choice(len(listed), num_clips, replace=False).tolist())
    return Opened(model, settings, names, chosen, listed, lines, seed or 0)


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
        batch = dataset.collate([dataset[ClipIndex(0, line)] for line in lines])
        if batch.skipped:  # in pre-training another clip stands in for it, which would be its twin
            raise ValueError(f"a clip cannot be read: {batch.skipped[0].reason}")
        yield batch.to(opened.device)


class Row(NamedTuple):
    """A clip as one row of a picture shows it, with maps of its tokens to lay over it."""

    label: str
    video: ArrayLike | None  # (3, T, H, W) in 0..1
    audio: ArrayLike | None  # (T, F), normalised log-mel; nan is grey
    heat: np.ndarray | None = None  # (t, h, w)
    heat_audio: np.ndarray | None = None  # (t, f)


def clips_figure(clips: Sequence[Sequence[Row]]) -> Figure:
    """Draw clips of one shape, each as rows of frames and of spectrograms.

    The first spectrogram of a clip sets the range of its colours.
    """
    first, num_rows = clips[0][0], sum(map(len, clips))
    length = 0 if first.video is None else np.shape(first.video)[1]
    frames = np.linspace(0, length - 1, min(MOST_FRAMES, length)).round().astype(int)
    widths = [1.0] * len(frames) + [2.2] * (first.audio is not None)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure((1.05 * sum(widths) + 1.8, 1.1 * num_rows + 0.5), layout=tight)
        grid = figure.subplots(num_rows, len(widths), width_ratios=widths, squeeze=False)
        rows = ((clip[0].audio, row) for clip in clips for row in clip)
        for axes, (audio, row) in zip(grid, rows, strict=True):
            look: Any = {"xytext": (-6, 0), "textcoords": "offset points", "va": "center"}
            axes[0].annotate(row.label, (0, 0.5), xycoords="axes fraction", ha="right", **look)
            if row.video is not None:
                _draw_frames(axes[: len(frames)], np.asarray(row.video), frames, row.heat)
            if row.audio is not None:
                _draw_spectrogram(
                    axes[-1], np.asarray(row.audio), np.asarray(audio), row.heat_audio
                )
        for axes, frame in zip(grid[0], frames, strict=False):
            axes.set_title(f"frame {frame}")
        if first.audio is not None:
            grid[0, -1].set_title("spectrogram (mel bins)")
            grid[-1, -1].set_xlabel("time (s)")
            grid[-1, -1].tick_params(labelbottom=True)
    return figure


def _draw_frames(
    panels: np.ndarray, video: np.ndarray, frames: np.ndarray, heat: np.ndarray | None
) -> None:
    for axes, frame in zip(panels, frames, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        picture = np.moveaxis(video[:, frame], 0, -1)  # (H, W, 3)
        if heat is None:
            axes.imshow(picture)
            continue
        axes.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1)
        place: Any = {"vmax": heat.max(), "extent": (0, *picture.shape[1::-1], 0)}
        image = axes.imshow(heat[frame * len(heat) // video.shape[1]], **place, **HEAT)
    if heat is not None:
        _draw_scale(image, list(panels), "× uniform")


def _draw_spectrogram(
    axes: Axes, audio: np.ndarray, first: np.ndarray, heat: np.ndarray | None
) -> None:
    low, high = np.nanpercentile(first, (1, 99))
    extent = (0.0, len(audio) * HOP_SECONDS, 0.0, float(audio.shape[1]))
    place: Any = {"origin": "lower", "aspect": "auto", "extent": extent}
    colours = matplotlib.colormaps["viridis" if heat is None else "gray"]
    look = {"cmap": colours.with_extremes(bad="#808080"), "interpolation": "nearest", **place}
    image, label = axes.imshow(audio.T, vmin=low, vmax=max(high, low + 1e-6), **look), "log energy"
    if heat is not None:
        image, label = axes.imshow(heat.T, vmax=heat.max(), **place, **HEAT), "× uniform"
    axes.tick_params(labelbottom=False, right=True, labelright=True, left=False, labelleft=False)
    _draw_scale(image, [axes], label)


def _draw_scale(image: AxesImage, panels: list[Axes], label: str) -> None:
    bar = panels[0].figure.colorbar(image, ax=panels, fraction=0.06, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def reconstruction_figure(clips: Sequence[Reconstruction]) -> Figure:
    """Draw clips of one shape as they are, as the model sees them, and as it rebuilds them."""
    names = ("original", "masked", "rebuilt")
    return clips_figure([list(map(Row, names, clip[:3], clip[3:])) for clip in clips])


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
    precision = choose_precision("fp32", opened.device)
    rebuilt: list[Reconstruction] = []
    for batch in batches(opened, roll_mag_aug=bool(opened.settings.get("roll_mag_aug"))):
        rebuilt += rebuild_clips(opened.model, batch, loss, precision)
    return reconstruction_figure(rebuilt)
