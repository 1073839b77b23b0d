"""Masked clips beside what a pre-training checkpoint makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from hicmae.data.loading import ClipIndex
from hicmae.training import checkpoint
from hicmae.training.precision import choose_precision
from hicmae.training.pretraining import (
    PretrainConfigs,
    make_dataset,
    make_model,
    rebuild_clips,
)
from hicmae.visualize.style import STYLE, save_figure

HOP_SECONDS = 0.01  # between two spectrogram steps


def reconstruction_figure(
    video_original: ArrayLike,
    video_masked: ArrayLike,
    video_rebuilt: ArrayLike,
    audio_original: ArrayLike,
    audio_masked: ArrayLike,
    audio_rebuilt: ArrayLike,
    frames: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Draw a clip as it is, as the model sees it, and as the model rebuilds it.

    Args:
        video_original: (3, T, H, W) pixels in 0..1; values outside are clipped.
        video_masked: the same with hidden patches painted over; nan is drawn in grey.
        video_rebuilt: the same with hidden patches as predicted.
        audio_original: (T, F) log-mel spectrogram; sets the colour range of all three.
        audio_masked: the same; nan is drawn in grey.
        audio_rebuilt: the same as predicted.
        frames: which of the T frames to draw; None: up to six, evenly spaced.
        title: written above.
    """
    videos = [_to_array(v) for v in (video_original, video_masked, video_rebuilt)]
    audios = [_to_array(a) for a in (audio_original, audio_masked, audio_rebuilt)]
    for arrays, axes in ((videos, 4), (audios, 2)):
        if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != axes:
            raise ValueError(
                "original, masked and rebuilt must have one shape, (3, T, H, W) for video and "
                f"(T, F) for audio, got {[array.shape for array in arrays]}"
            )
    length = videos[0].shape[1]
    if frames is None:
        frames = np.linspace(0, length - 1, min(6, length)).round().astype(int).tolist()
    with plt.rc_context(STYLE):
        widths = [1.0] * len(frames) + [2.0]
        size = (1.05 * sum(widths) + 1.0, 3.55 + 0.25 * bool(title))
        figure, grid = plt.subplots(
            3, len(widths), figsize=size, width_ratios=widths, layout=_tight()
        )
        for row, name in enumerate(("original", "masked", "rebuilt")):
            _draw_frames(grid[row, :-1], videos[row], frames, heading=row == 0)
            grid[row, 0].set_ylabel(name)
        _draw_spectrograms(figure, grid[:, -1], audios)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def _tight() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)


def _to_array(value: Any) -> np.ndarray:
    """Accept numpy arrays and tensors of any device and precision."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, dtype=np.float32)


def _draw_frames(
    row: Sequence[Axes], video: np.ndarray, frames: Sequence[int], heading: bool
) -> None:
    for axes, frame in zip(row, frames, strict=True):
        picture = np.moveaxis(video[:, frame], 0, -1)  # (H, W, 3)
        axes.imshow(np.where(np.isnan(picture), 0.5, np.clip(picture, 0.0, 1.0)))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if heading:
            axes.set_title(f"frame {frame}")


def _draw_spectrograms(figure: Figure, column: Sequence[Axes], audios: list[np.ndarray]) -> None:
    low, high = np.nanpercentile(audios[0], (1, 99))
    colours = plt.get_cmap("viridis").with_extremes(bad="#808080")
    extent = (0.0, len(audios[0]) * HOP_SECONDS, 0.0, float(audios[0].shape[1]))
    for axes, audio in zip(column, audios, strict=True):
        image = axes.imshow(
            audio.T,
            origin="lower",
            aspect="auto",
            extent=extent,
            cmap=colours,
            vmin=low,
            vmax=max(high, low + 1e-6),
            interpolation="nearest",
        )
        axes.grid(False)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.set_ylabel("mel bin")
        if axes is not column[-1]:
            axes.tick_params(labelbottom=False)
    column[0].set_title("log-mel spectrogram")
    column[-1].set_xlabel("time (s)")
    bar = figure.colorbar(image, ax=list(column), fraction=0.06, pad=0.02)
    bar.set_label("normalised log energy")


def reconstruction(
    checkpoint_file: str | Path,
    data_path: str | Path,
    out: str | Path,
    clip: int = 0,
    data_root: str = "",
) -> Path:
    """Rebuild one clip of a list with a checkpoint of `run_pretraining.py` and draw it.

    Args:
        checkpoint_file: its settings say the model, the clip geometry and the masks.
        data_path: pre-training list, or its folder.
        out: picture to write.
        clip: line of the list, from 0.
        data_root: folder that relative paths in the list start from.
    """
    state = checkpoint.load(checkpoint_file)
    if not isinstance(state.get("args"), dict):
        raise ValueError(
            f"checkpoint '{checkpoint_file}' holds no settings of run_pretraining.py, "
            "so model and masks are unknown; use one that this project trained"
        )
    configs = PretrainConfigs.from_settings(
        state["args"], data_path=str(data_path), data_root=data_root
    )
    dataset = make_dataset(configs)
    if not 0 <= clip < len(dataset):
        raise ValueError(f"--clip {clip} is not in the list of {len(dataset)} clips")
    model = make_model(configs)
    model.load_state_dict(state["model"])
    precision = choose_precision("fp32", torch.device("cpu"))
    rebuilt = rebuild_clips(model, [dataset[ClipIndex(0, clip)]], configs.loss, precision)
    return save_figure(reconstruction_figure(*rebuilt[0]), out)
