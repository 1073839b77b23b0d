"""Where each modality looks, drawn over the frames and the spectrogram."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hicmae.data.clip_list import AnyClip
from hicmae.models.encoder import ModalityEncoder
from hicmae.models.losses import unnormalize
from hicmae.visualize.attention_maps import looks, recorded_attention
from hicmae.visualize.features import Opened, batches, open_model, pick_lines, read_clips
from hicmae.visualize.style import STYLE, check_format, save_figure

HOP_SECONDS = 0.01  # between two spectrogram steps
MOST_FRAMES = 6
METHODS = ("rollout", "last")
# Rows of the picture: label, map over the frames, map over the spectrogram. Cross-attention is
# drawn over what is read: over the frames, what the audio reads in them.
ROWS = (
    ("input", "", ""),
    ("self-\nattention", "video", "audio"),
    ("cross-\nattention", "video by audio", "audio by video"),
)


class Looked(NamedTuple):
    """A clip and where a model looks in it."""

    title: str
    video: np.ndarray | None  # (3, T, H, W) in 0..1
    audio: np.ndarray | None  # (T, F)
    maps: dict[str, np.ndarray]  # of `attention_maps.looks`, on the grid of tokens


@torch.inference_mode()
def look(
    opened: Opened, clips: Sequence[AnyClip], method: str = "rollout", seed: int = 0
) -> list[Looked]:
    """Run a model over clips and see where it looks."""
    results = []
    for batch in batches(opened, clips, batch_size=1, seed=seed):
        with recorded_attention(opened.model) as maps:
            scores = opened.model(batch.video, batch.audio)
        grids = {}
        for name, weights in looks(maps, method).items():
            encoder = "encoder" if name.startswith("video") else "encoder_audio"
            grid = cast(ModalityEncoder, opened.model.get_submodule(encoder)).patch_embed.grid
            grids[name] = weights[0].reshape(grid).float().cpu().numpy()
        video, audio = batch.video, batch.audio
        results.append(
            Looked(
                _title(opened, batch.target, scores),
                None if video is None else unnormalize(video)[0].clamp(0, 1).cpu().numpy(),
                None if audio is None else audio[0, 0].cpu().numpy(),
                grids,
            )
        )
    return results


def _title(opened: Opened, target: torch.Tensor | None, scores: torch.Tensor) -> str:
    """Say what the clip shows and what the model takes it for."""
    if opened.config.task != "classification" or target is None:
        return ""
    names, truth = opened.config.names, int(target[0])
    return f"{names[truth]}\npredicted\n{names[int(scores[0].argmax())]}"


def attention_figure(clips: Sequence[Looked]) -> Figure:
    """Draw clips of one shape, each with its maps below it."""
    first = clips[0]
    rows = [row for row in ROWS if not row[1] or {row[1], row[2]} & first.maps.keys()]
    frames = len(_chosen(first))
    # Frames and a scale, then the spectrogram and a scale, as far as the model reads them.
    widths = [1.0] * frames + [0.07] * (frames > 0) + [2.3, 0.07] * (first.audio is not None)
    if frames and first.audio is not None:  # room for the labels between the two
        widths.insert(frames + 1, 0.3)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, grid = plt.subplots(
            len(rows) * len(clips),
            len(widths),
            figsize=(0.98 * sum(widths) + 2.0, 1.02 * len(rows) * len(clips) + 0.55),
            width_ratios=widths,
            squeeze=False,
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01),
        )
        for line, (clip, (label, *names)) in enumerate(itertools.product(clips, rows)):
            axes, is_first = grid[line], line == 0
            shown = clip.title or label if not names[0] else label
            axes[0].set_ylabel(shown, rotation=0, ha="right", va="center", labelpad=6)
            if clip.video is not None:
                _draw_video(axes[: frames + 1], clip, names[0], is_first)
            for empty in axes[frames + 1 : -2]:
                empty.set_axis_off()
            if clip.audio is not None:
                _draw_audio(axes[-2], axes[-1], clip, names[1], is_first)
        if first.audio is not None:
            grid[-1, -2].set_xlabel("time (s)")
            grid[-1, -2].tick_params(labelbottom=True)
    return figure


def _chosen(clip: Looked) -> np.ndarray:
    """Return the positions in time, in tubelets, that are shown."""
    if clip.video is None:
        return np.zeros(0, dtype=int)
    length = clip.maps["video"].shape[0]
    return np.linspace(0, length - 1, min(MOST_FRAMES, length)).round().astype(int)


def _draw_video(row: Sequence[Axes], clip: Looked, name: str, heading: bool) -> None:
    """Draw one frame of each chosen tubelet, grey below a map, and the map's scale."""
    assert clip.video is not None
    heat = clip.maps.get(name)
    tubelet = clip.video.shape[1] // clip.maps["video"].shape[0]
    image: Any = None
    for axes, place in zip(row, _chosen(clip), strict=False):
        picture = np.moveaxis(clip.video[:, place * tubelet], 0, -1)
        extent = (0, picture.shape[1], picture.shape[0], 0)
        axes.set(xticks=[], yticks=[], title=f"frame {place * tubelet}" if heading else "")
        axes.spines[:].set_visible(False)
        if heat is None:
            axes.imshow(picture, extent=extent)
        else:
            axes.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1, extent=extent)
            image = axes.imshow(heat[place], extent=extent, **_colours(heat))
    _scale(row[-1], image)


def _draw_audio(axes: Axes, scale: Axes, clip: Looked, name: str, heading: bool) -> None:
    """Draw the spectrogram, grey below a map, and the map's scale."""
    assert clip.audio is not None
    heat = clip.maps.get(name)
    extent = (0.0, len(clip.audio) * HOP_SECONDS, 0.0, float(clip.audio.shape[1]))
    low, high = np.percentile(clip.audio, (1, 99))
    shape: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": extent}
    colours = "viridis" if heat is None else "gray"
    axes.imshow(clip.audio.T, vmin=low, vmax=high, cmap=colours, **shape)
    image = None if heat is None else axes.imshow(heat.T, **shape, **_colours(heat))
    axes.set(ylabel="mel bin", title="log-mel spectrogram" if heading else "")
    axes.tick_params(labelbottom=False)
    _scale(scale, image)


def _colours(heat: np.ndarray) -> dict[str, Any]:
    """Return the look of a map: from 0 to its strongest point, the picture shining through."""
    return {
        "cmap": "inferno",
        "alpha": 0.6,
        "vmin": 0.0,
        "vmax": float(heat.max()),
        "interpolation": "bilinear",
    }


def _scale(axes: Axes, image: Any) -> None:
    """Draw the scale of a map; where there is no map, its place stays empty."""
    if image is None:
        axes.set_axis_off()
        return
    bar = plt.colorbar(image, cax=axes)
    bar.set_label("× uniform", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def attention(
    checkpoint_file: str | Path,
    data_path: str | Path,
    output: str | Path,
    method: str = "rollout",
    clip: int | None = None,
    num_clips: int = 1,
    data_root: str = "",
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Draw where a checkpoint looks in clips of a list.

    Args:
        checkpoint_file: fine-tuned or pre-trained; all tokens are visible.
        data_path: list that fits it, or its folder.
        output: picture to write.
        method: "rollout" or "last", see `attention_maps.looks`.
        clip: line of the list, from 0; None: draw `num_clips` of them.
        num_clips: how many.
        data_root: folder that relative paths in the list start from.
        device: where to compute.
        seed: of the draw.
    """
    check_format(output)
    opened = open_model(checkpoint_file, device)
    listed = read_clips(opened.config, data_path, data_root)
    clips = [listed[k] for k in pick_lines(len(listed), clip, num_clips, seed)]
    return save_figure(attention_figure(look(opened, clips, method, seed)), output)
