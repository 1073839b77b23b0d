"""Pictures of results: `python -m hicmae.visualize curves|confusion ... --out FILE`.

Colours are told apart by colour-blind readers (Okabe-Ito for lines, viridis for values), text is
readable at column width, and bitmaps have 200 dpi; `--out` may also end in .pdf or .svg.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from hicmae.folds import natural_key, pool, read_predictions
from hicmae.report import read_names
from hicmae.training.logger import read_lines

DPI = 200
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
}
HOP_SECONDS = 0.01  # between two spectrogram steps
# What log.txt holds beside curves worth drawing.
NOT_CURVES = ("epoch", "n_parameters", "step", "count", "clips", "memory_mib", "weight_decay")


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


def figure_to_image(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Render a figure to (H, W, 3) uint8, for TensorBoard, and close it."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    plt.close(figure)
    return pixels


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, by the ending of the name as bitmap (200 dpi) or vectors, and close it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.04)
    plt.close(figure)
    return path


def curves_figure(logs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw every figure of the epochs: one panel a quantity, one colour a run.

    Args:
        logs: name of a run -> its log.txt, one dictionary an epoch. Keys `train_x`, `val_x` and
            `test_x` share the panel x, with solid, dashed and dotted lines.
    """
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(k for records in logs.values() for record in records for k in record):
        quantity = key.split("_", 1)[1] if key.split("_")[0] in ("train", "val", "test") else key
        drawable = any(_is_number(r.get(key)) for records in logs.values() for r in records)
        if quantity not in NOT_CURVES and key not in NOT_CURVES and drawable:
            panels.setdefault(quantity, []).append(key)
    if not panels:
        raise ValueError("the logs hold no numbers to draw; is one epoch finished?")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.9 * columns, 2.1 * rows), squeeze=False, layout="constrained"
        )
        for axes, (quantity, keys) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, quantity, keys, logs)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for column in range(columns):
            grid[(len(panels) - 1 - column) // columns, column].set_xlabel("epoch")
        if len(logs) > 1:
            lines = [Line2D([], [], color=_colour(number)) for number in range(len(logs))]
            figure.legend(lines, list(logs), loc="outside lower center", ncols=min(len(logs), 6))
    return figure


def _draw_panel(
    axes: Axes, quantity: str, keys: list[str], logs: dict[str, list[dict[str, Any]]]
) -> None:
    for number, records in enumerate(logs.values()):
        for key in keys:
            points = [(r["epoch"], r[key]) for r in records if _is_number(r.get(key))]
            axes.plot(
                *np.array(points).reshape(-1, 2).T,
                _dashes(key, keys),
                color=_colour(number),
                linewidth=1.3,
                marker="o" if len(points) < 3 else None,
                markersize=3,
            )
    axes.set_title(quantity.upper() if quantity in ("uar", "war") else quantity.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if "lr" in quantity.split("_"):
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    if len(keys) > 1:
        lines = [Line2D([], [], color="#555555", linestyle=_dashes(key, keys)) for key in keys]
        axes.legend(lines, [key.split("_")[0] for key in keys], fontsize=8)


def _dashes(key: str, keys: list[str]) -> Any:
    """Tell splits of one quantity apart; a single one needs no dashes."""
    return {"val": "--", "test": ":"}.get(key.split("_")[0], "-") if len(keys) > 1 else "-"


def _colour(number: int) -> str:
    return OKABE_ITO[number % len(OKABE_ITO)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def confusion_figure(confusion: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix, coloured by the share of each true class, with the counts.

    Args:
        confusion: (K, K) counts, row = true class.
        names: K class names.
        title: written above.
    """
    counts = np.asarray(confusion)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} class names for a confusion matrix of {counts.shape}")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 1.9 + 0.52 * len(names)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(size + 0.5, size), layout="constrained")
        image = axes.imshow(share, vmin=0.0, vmax=1.0, cmap="viridis")
        for (row, column), count in np.ndenumerate(counts):
            colour = "black" if share[row, column] > 0.6 else "white"
            text = f"{100 * share[row, column]:.0f}%\n{count}" if count else "0"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
                linespacing=1.3,
            )
        ticks = range(len(names))
        long = max(map(len, names)) > 4
        axes.set_xticks(ticks, names, rotation=40 if long else 0, ha="right" if long else "center")
        axes.set_yticks(ticks, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class", title=title)
        bar = figure.colorbar(image, label="share of the true class", fraction=0.046, pad=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        bar.outline.set_visible(False)
    return figure


def curves(output_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw the log.txt of one or several runs."""
    logs = {}
    for folder in sorted(map(Path, output_dirs), key=lambda path: natural_key(path.name)):
        records = [r for r in read_lines(folder / "log.txt") if _is_number(r.get("epoch"))]
        if not records:
            raise FileNotFoundError(f"'{folder / 'log.txt'}' holds no finished epoch yet")
        logs[folder.name if folder.name not in logs else str(folder)] = records
    return save_figure(curves_figure(logs), out)


def confusion(
    pred_files: Sequence[str | Path], out: str | Path, class_names: Sequence[str] = ()
) -> Path:
    """Draw the confusion matrix of the clips of all given prediction files together."""
    pooled = pool([read_predictions(path) for path in pred_files])
    if pooled.is_regression:
        raise ValueError(f"'{pred_files[0]}' is of a regression; it has no confusion matrix")
    if class_names and len(class_names) != pooled.num_outputs:
        raise ValueError(
            f"got {len(class_names)} class names for {pooled.num_outputs} classes of "
            f"'{pred_files[0]}'; expected one a line, in the order of the labels"
        )
    scores = pooled.scores()
    names = list(class_names) or [str(k) for k in range(pooled.num_outputs)]
    title = f"{len(pooled.clips)} clips, UAR {scores['uar']:.2%}, WAR {scores['war']:.2%}"
    return save_figure(confusion_figure(scores["confusion"], names, title), out)


def add_curves(commands: Any) -> None:
    """Add the sub-command `curves`."""
    parser = commands.add_parser("curves", help="losses and scores over the epochs")
    parser.add_argument("output_dirs", nargs="+", metavar="OUTPUT_DIR", help="run with a log.txt")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.set_defaults(draw=lambda args: curves(args.output_dirs, args.out))


def add_confusion(commands: Any) -> None:
    """Add the sub-command `confusion`."""
    parser = commands.add_parser("confusion", help="confusion matrix, pooled over the files")
    parser.add_argument("pred_files", nargs="+", metavar="PRED.csv", help="predictions of a test")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--out", required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.set_defaults(
        draw=lambda args: confusion(
            args.pred_files, args.out, read_names(args.classes) if args.classes else ()
        )
    )


# A sub-command is a function that adds its parser, with `draw` set to what makes the picture.
COMMANDS: tuple[Callable[[Any], None], ...] = (add_curves, add_confusion)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m hicmae.visualize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="PICTURE")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        path = args.draw(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"written: {path}\n")


if __name__ == "__main__":
    main()
