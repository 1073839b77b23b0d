"""Clips of a list that a pre-training model is shown; and as it rebuilds them."""

from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor, nn

from hicmae.config import ClipConfig, MaskConfig, PretrainLossConfig, PretrainModelConfig
from hicmae.config.flags import from_flags
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import AnyClip, decide_source_crop, read_pretrain_list
from hicmae.data.dataset import PretrainClips
from hicmae.inference.style import styled_images
from hicmae.io import choose_device
from hicmae.models.layers import TokenSplit, cut_patches, join_patches, split_tokens, token_grid
from hicmae.models.losses import TARGET_EPS, frame_differences, unnormalize
from hicmae.models.pretrain import HiCMAE
from hicmae.training import trained
from hicmae.training.run import Precision, choose_precision
from hicmae.visualize import Clips

HOP_SECONDS = 0.01  # between two spectrogram steps
MOST_FRAMES = 6
ROWS = ("original", "masked", "rebuilt")


class Opened(NamedTuple):
    """A pre-training model with its decoders, and the clips that it is shown."""

    model: HiCMAE
    settings: dict[str, Any]  # of its training, by flag
    device: torch.device
    clips: Sequence[AnyClip]  # the whole list
    lines: Sequence[int]  # which of them are shown
    seed: int  # of windows, crops and masks


class Reconstruction(NamedTuple):
    """One clip three times: as it was, as the encoder saw it, and rebuilt."""

    video: Tensor  # (3, T, H, W) in [0, 1]
    video_masked: Tensor  # masked patches grey
    video_rebuilt: Tensor  # visible patches as they were
    audio: Tensor  # (T, F), normalised log-mel
    audio_masked: Tensor  # masked patches nan
    audio_rebuilt: Tensor


def open_clips(asked: Clips) -> Opened:
    """Load a pre-training checkpoint, and choose lines of a list, or of train.csv in a folder."""
    device, found = choose_device(asked.device), trained.read(asked.checkpoint)
    lacks = "decoders" if "mask_token" not in found.weights else "settings"
    if lacks == "decoders" or "mask_ratio" not in found.told:
        text = f"'{asked.checkpoint}' has no {lacks}, but this picture needs a pre-trained"
        raise ValueError(f"{text} one that has them; give a checkpoint of run_pretraining.py")
    settings = found.told
    options = vars(from_flags(settings, PretrainModelConfig))
    model = timm.create_model(**options, **from_flags(settings, ClipConfig).of_model())
    model.load_state_dict(found.weights)
    model = cast(HiCMAE, model.eval().to(device))
    seed = settings.get("seed", 0) if asked.seed is None else asked.seed
    listed = read_pretrain_list(asked.data_path, asked.data_root)
    lines = choose_lines(len(listed), asked.num_clips, seed)
    return Opened(model, settings, device, listed, lines, seed)


def choose_lines(count: int, num_clips: int, seed: int) -> Sequence[int]:
    """Choose some lines of a list of `count` at random, in order, or all for 0."""
    if not 0 < num_clips < count:
        return range(count)
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(count, num_clips, replace=False).tolist())


def batches(opened: Opened, batch_size: int = 16, **options: Any) -> Iterator[PretrainBatch]:
    """Yield the shown clips; the options are those of the data set.

    ValueError: a clip cannot be read; it is named.
    """
    settings, clip = opened.settings, from_flags(opened.settings, ClipConfig)
    choice, path = settings.get("source_crop", "auto"), settings.get("data_path", "")
    options |= vars(from_flags(settings, MaskConfig)) | vars(clip)
    options["source_crop"] = decide_source_crop(choice, path, opened.clips, clip.input_size)
    dataset = PretrainClips(opened.clips, seed=opened.seed, **options)
    for start in range(0, len(opened.lines), batch_size):
        lines = opened.lines[start : start + batch_size]
        batch = dataset.collate([dataset[ClipIndex(0, line)] for line in lines])
        if batch.skipped:  # another clip stands in for it, which would be its twin
            raise ValueError(f"a clip cannot be read: {batch.skipped[0].reason}")
        yield batch.to(opened.device)


def grid_of_clips(
    titles: Sequence[str], length: int, has_sound: bool = True, **look: Any
) -> tuple[Figure, np.ndarray, np.ndarray]:
    """Make a picture of clips of `length` frames, with a row a title, also of their sound.

    Returns the figure, its axes (rows, frames and spectrogram), and which frames are drawn (n,).
    """
    frames = np.linspace(0, length - 1, min(MOST_FRAMES, length)).round().astype(int)
    widths = [1.0] * len(frames) + [2.2] * has_sound
    figure = Figure((1.05 * sum(widths) + 1.8, 1.1 * len(titles) + 0.5), **look)
    grid = figure.subplots(len(titles), len(widths), width_ratios=widths, squeeze=False)
    place: Any = {"xytext": (-6, 0), "textcoords": "offset points", "va": "center", "ha": "right"}
    for axes, title in zip(grid, titles, strict=True):
        axes[0].annotate(title, (0, 0.5), xycoords="axes fraction", **place)
        for panel in axes[: len(frames)]:
            panel.set(xticks=[], yticks=[])
    for panel in grid[-1, len(frames) :]:
        panel.set_xlabel("time (s)")
    return figure, grid, frames


@styled_images
def reconstruction_figure(clips: Sequence[Reconstruction]) -> Figure:
    """Draw clips of one shape as they are, as the model sees them, and as it rebuilds them.

    The spectrogram of a clip as it is sets the range of its colours.
    """
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    titles, length = ROWS * len(clips), clips[0].video.shape[1]
    figure, grid, frames = grid_of_clips(titles, length, layout=tight)
    for axes, (clip, part) in zip(grid, product(clips, range(len(ROWS))), strict=True):
        for panel, frame in zip(axes, frames, strict=False):
            panel.imshow(np.moveaxis(clip[part][:, frame].numpy(), 0, -1))
            panel.spines[:].set_visible(False)
        _draw_spectrogram(axes[-1], clip[len(ROWS) + part].numpy(), clip.audio.numpy())
    for axes, frame in zip(grid[0], frames, strict=False):
        axes.set_title(f"frame {frame}")
    grid[0, -1].set_title("spectrogram (mel bins)")
    grid[-1, -1].tick_params(labelbottom=True)
    return figure


def _draw_spectrogram(axes: Axes, audio: np.ndarray, whole: np.ndarray) -> None:
    """Draw (T, F), nan grey, in the range of colours of the whole one."""
    low, high = np.nanpercentile(whole, (1, 99))
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#808080")
    look: Any = {"vmin": low, "vmax": max(high, low + 1e-6), "interpolation": "nearest"}
    look |= {"extent": (0, len(audio) * HOP_SECONDS, 0, audio.shape[1]), "origin": "lower"}
    image = axes.imshow(audio.T, colours, aspect="auto", **look)
    axes.tick_params(labelbottom=False, right=True, labelright=True, left=False, labelleft=False)
    bar = axes.figure.colorbar(image, ax=[axes], fraction=0.06, pad=0.02)
    bar.set_label("log energy", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.spines["outline"].set_visible(False)


@torch.inference_mode()
def rebuild_clips(
    model: nn.Module, batch: PretrainBatch, loss: PretrainLossConfig, precision: Precision
) -> list[Reconstruction]:
    """Rebuild the masked patches of the clips of a batch, which its loss compares."""
    video, video_mask, audio, audio_mask, *_ = batch.to(precision.device)
    split = split_tokens(video_mask, None, "video_mask").to(video.device)
    split_audio = split_tokens(audio_mask, None, "audio_mask").to(audio.device)
    whole = cast(HiCMAE, model.eval())
    with precision.autocast():
        output = whole(video, split, audio, split_audio)
    size, size_audio = (e.patch_embed.patch_size for e in (whole.encoder, whole.encoder_audio))
    pixels, audio = unnormalize(video.float()), audio.float()
    group_size = loss.frame_diff_group_size if loss.frame_diff else None
    how = pixels, split, size, loss.normalize_target, group_size
    how_audio = audio, split_audio, size_audio, loss.normalize_target_audio
    shown = pixels.clamp(0, 1)
    clips = zip(
        shown,
        replace_patches(shown, split.masked, size, 0.5),
        rebuild(output.video.float(), *how).clamp(0, 1),
        audio[:, 0],
        replace_patches(audio, split_audio.masked, size_audio, float("nan"))[:, 0],
        rebuild(output.audio.float(), *how_audio)[:, 0],
        strict=True,
    )
    return [Reconstruction(*(part.cpu() for part in clip)) for clip in clips]


def rebuild(
    predicted: Tensor,
    clip: Tensor,
    split: TokenSplit,
    patch_size: Sequence[int],
    normalize: bool = True,
    frame_diff_group_size: int | None = None,
) -> Tensor:
    """Put predictions (B, M, P) in the place of masked patches, undoing what targets undergo.

    The clip is (B, 3, T, H, W) pixels or a (B, 1, T, F) spectrogram, and so is the result. A
    normalised patch gets the mean and deviation of the true one, which the model does not predict.
    With perfect predictions the result is the clip itself.
    """
    patches = cut_patches(clip, patch_size)
    grid = token_grid(clip.shape[2:], patch_size, "clip")
    std, mean = torch.std_mean(patches, dim=tuple(range(3, patches.dim())), keepdim=True)
    scale, offset = (std + TARGET_EPS, mean) if normalize else (1.0, 0.0)
    target, group_size = join_patches((patches - offset) / scale, grid), frame_diff_group_size
    if group_size is not None:
        target = frame_differences(target, group_size)
    values = predicted.unflatten(2, (*patch_size, clip.shape[1])).movedim(-1, 2)
    target = replace_patches(target, split.masked, patch_size, values)
    if group_size is not None:  # each group's first frame comes back to its later ones
        first, later = target.unflatten(2, (-1, group_size)).split((1, group_size - 1), dim=3)
        target = torch.cat((first, later + first), dim=3).flatten(2, 3)
    return join_patches(cut_patches(target, patch_size) * scale + offset, grid)


def replace_patches(
    clip: Tensor, index: Tensor, patch_size: Sequence[int], values: Tensor | float
) -> Tensor:
    """Return the clip with other values, (B, M, C, *patch_size), in the patches at `index`."""
    patches = cut_patches(clip, patch_size).clone()
    patches[torch.arange(len(clip), device=clip.device)[:, None], index] = values
    return join_patches(patches, token_grid(clip.shape[2:], patch_size, "clip"))


def reconstruction(asked: Clips) -> Figure:
    """Draw clips of the list of `open_clips`, rebuilt by a pre-training checkpoint.

    Without a number of clips the first of the list is drawn. A rebuilt patch has the mean and
    deviation of the true one, which the model does not predict.
    """
    opened = open_clips(asked)
    opened = opened if asked.num_clips else opened._replace(lines=[0])
    loss = from_flags(opened.settings, PretrainLossConfig)
    precision = choose_precision("fp32", opened.device)
    shown = batches(opened, roll_mag_aug=bool(opened.settings.get("roll_mag_aug")))
    rebuilt = (rebuild_clips(opened.model, batch, loss, precision) for batch in shown)
    return reconstruction_figure(list(chain.from_iterable(rebuilt)))
