"""Masked clips beside what a pre-training checkpoint makes of them."""

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike
from torch import nn

from hicmae.config import PretrainLossConfig
from hicmae.config.flags import from_flags
from hicmae.data.batches import PretrainBatch
from hicmae.inference.style import STYLE
from hicmae.models.reconstruct import Reconstruction, reconstruct
from hicmae.training.run import Precision, choose_precision
from hicmae.visualize.clips import batches, draw_frame, draw_spectrogram, evenly, open_clips


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
