"""Masked clips beside what a pre-training checkpoint makes of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from hicmae.data.batches import ClipIndex
from hicmae.inference.model import find_weights, flat_settings
from hicmae.inference.style import STYLE, check_format, save_figure
from hicmae.io import choose_device
from hicmae.training import checkpoint
from hicmae.training.pretraining import PretrainConfigs, make_dataset, make_model, rebuild_clips
from hicmae.training.run import choose_precision
from hicmae.visualize.attention import HOP_SECONDS
from hicmae.visualize.features import Source


class Drawn(NamedTuple):
    """The original, the masked and the rebuilt clip as arrays."""

    videos: list[np.ndarray]  # (3, T, H, W) each
    audios: list[np.ndarray]  # (T, F) each


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
    clip = _drawn(
        (video_original, video_masked, video_rebuilt), (audio_original, audio_masked, audio_rebuilt)
    )
    return reconstructions_figure([clip], frames, title)


def _drawn(videos: Sequence[ArrayLike], audios: Sequence[ArrayLike]) -> Drawn:
    clip = Drawn([_to_array(v) for v in videos], [_to_array(a) for a in audios])
    for arrays, axes in ((clip.videos, 4), (clip.audios, 2)):
        if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != axes:
            raise ValueError(
                "original, masked and rebuilt must have one shape, (3, T, H, W) for video and "
                f"(T, F) for audio, got {[array.shape for array in arrays]}"
            )
    return clip


def _to_array(value: Any) -> np.ndarray:
    """Accept numpy arrays and tensors of any device and precision."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, dtype=np.float32)


def reconstructions_figure(
    clips: Sequence[Drawn], frames: Sequence[int] | None = None, title: str = ""
) -> Figure:
    """Draw clips of one shape, one below the other; `frames` as in `reconstruction_figure`."""
    length = clips[0].videos[0].shape[1]
    if frames is None:
        frames = np.linspace(0, length - 1, min(6, length)).round().astype(int).tolist()
    widths = [1.0] * len(frames) + [2.0]
    size = (1.05 * sum(widths) + 1.0, (3.55 + 0.25 * bool(title)) * len(clips))
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout=tight)
        parts = figure.subfigures(len(clips), 1, squeeze=False)[:, 0]
        for part, clip in zip(parts, clips, strict=True):
            grid = part.subplots(3, len(widths), width_ratios=widths)
            rows = zip(grid[:, :-1], ("original", "masked", "rebuilt"), clip.videos, strict=True)
            for row, name, video in rows:
                row[0].set_ylabel(name)
                _draw_frames(row, video, frames)
            for axes, frame in zip(grid[0, :-1], frames, strict=True):
                axes.set_title(f"frame {frame}")
            _draw_spectrograms(part, grid[:, -1], clip.audios)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def _draw_frames(row: Sequence[Axes], video: np.ndarray, frames: Sequence[int]) -> None:
    for axes, frame in zip(row, frames, strict=True):
        picture = np.moveaxis(video[:, frame], 0, -1)  # (H, W, 3)
        axes.imshow(np.where(np.isnan(picture), 0.5, np.clip(picture, 0.0, 1.0)))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _draw_spectrograms(figure: SubFigure, column: Sequence[Axes], audios: list[np.ndarray]) -> None:
    low, high = np.nanpercentile(audios[0], (1, 99))
    steps, bins = audios[0].shape
    look: dict[str, Any] = {
        "cmap": matplotlib.colormaps["viridis"].with_extremes(bad="#808080"),
        "extent": (0.0, steps * HOP_SECONDS, 0.0, float(bins)),
        "vmin": low,
        "vmax": max(high, low + 1e-6),
    }
    for axes, audio in zip(column, audios, strict=True):
        image = axes.imshow(audio.T, origin="lower", aspect="auto", interpolation="nearest", **look)
        axes.grid(False)
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.set_ylabel("mel bin")
        axes.tick_params(labelbottom=axes is column[-1])
    column[0].set_title("log-mel spectrogram")
    column[-1].set_xlabel("time (s)")
    bar = figure.colorbar(image, ax=list(column), fraction=0.06, pad=0.02)
    bar.set_label("normalised log energy")


def settings_of(state: Mapping[str, Any], source: str | Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a pre-training checkpoint in the groups of `PretrainConfigs`.

    Args:
        state: content of the file. The original authors' files hold flags in a Namespace.
        source: its name, for messages.

    Raises:
        ValueError: no settings, or those of fine-tuning.
    """
    args = state.get("args")
    flat = flat_settings(args)
    if not flat:
        raise ValueError(
            f"checkpoint '{source}' holds no settings of run_pretraining.py, so model and masks "
            "are unknown; use one with its settings under 'args'"
        )
    if "mask_ratio" not in flat:
        raise ValueError(
            f"checkpoint '{source}' is fine-tuned and has no decoders, but this picture needs a "
            "pre-trained one; give a checkpoint of run_pretraining.py"
        )
    if isinstance(args, Mapping) and set(PretrainConfigs._fields) <= args.keys():
        return {name: dict(args[name]) for name in PretrainConfigs._fields}
    return {
        name: {
            f.name: _flag(flat, f) for f in dataclasses.fields(kind) if _flag(flat, f) is not None
        }
        for name, kind in PretrainConfigs.__annotations__.items()
    }


def _flag(flat: Mapping[str, Any], field: dataclasses.Field) -> Any:
    """Return a flag of the original under its name here; a single size where several belong."""
    names = (field.name, *field.metadata["aliases"])
    value = next((flat[name] for name in names if flat.get(name) is not None), None)
    several = isinstance(field.default, tuple)
    return (value,) if several and isinstance(value, (int, float)) else value


def reconstruction(source: Source, output: str | Path) -> Path:
    """Rebuild clips of a list with a checkpoint of `run_pretraining.py` and draw them.

    Its settings say the model, the clip geometry, the masks and, where the source has none, the
    seed. Without a number of clips the first of the list is drawn.
    """
    check_format(output)
    state = checkpoint.load(find_weights(Path(source.checkpoint)))
    settings = settings_of(state, source.checkpoint)
    if source.seed is not None:
        settings["run"]["seed"] = source.seed
    settings["data"]["num_samples"] = 1
    configs = PretrainConfigs.from_settings(
        settings, data_path=str(source.data_path), data_root=source.data_root
    )
    dataset = make_dataset(configs)
    clip = source.clip if source.num_clips or source.clip is not None else 0
    lines = dataclasses.replace(source, clip=clip, seed=configs.run.seed).lines(len(dataset))
    precision = choose_precision("fp32", choose_device(source.device))
    model = make_model(configs)
    model.load_state_dict(state["model"])
    items = [dataset[ClipIndex(0, line)] for line in lines]
    rebuilt = rebuild_clips(model.to(precision.device), items, configs.loss, precision)
    clips = [_drawn(parts[:3], parts[3:]) for parts in rebuilt]
    return save_figure(reconstructions_figure(clips), output)
