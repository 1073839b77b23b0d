"""Confusion matrices, pooled over folds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from hicmae.data.clip_list import checked
from hicmae.folds import pool, read_predictions
from hicmae.visualize.style import STYLE, check_format, figure_to_image, new_figure, save_figure


def confusion_figure(confusion: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix, coloured by the share of each true class, with the counts.

    Args:
        confusion: (K, K) counts, row = true class.
        names: K class names.
        title: written above.
    """
    counts, share = _shares(confusion, names)
    size = 1.9 + 0.52 * len(names)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = new_figure(size + 0.5, size)
        axes = figure.subplots()
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
        _label(axes, names, title)
        bar = figure.colorbar(image, label="share of the true class", fraction=0.046, pad=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        bar.outline.set_visible(False)
    return figure


def small_confusion_figure(
    confusion: ArrayLike, names: Sequence[str], title: str = "", written: int = 20
) -> Figure:
    """Draw a confusion matrix for a screen, quickly: percent of each true class, without a scale.

    Args:
        confusion: (K, K) counts, row = true class.
        names: K class names.
        title: written above.
        written: with more classes than these, cells are coloured only.
    """
    _, share = _shares(confusion, names)
    many = len(names) > written
    size = (0.14 if many else 0.32) * len(names)
    labels = 0.3 + 0.07 * max(map(len, names))  # inches the names take
    style = {"axes.grid": False, "font.size": 6 if many else 8, "axes.titlesize": 8}
    with rc_context(STYLE | style):
        figure = new_figure(max(size + labels, 2.6), size + labels + 0.3)
        axes = figure.subplots()
        axes.imshow(share, vmin=0.0, vmax=1.0, cmap="viridis")
        for (row, column), value in () if many else np.ndenumerate(share):
            text = f"{100 * value:.0f}" if value else ""
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        _label(axes, names, title)
    return figure


def confusion_image(metrics: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix among the metrics of a classifier, (H, W, 3) uint8."""
    title = f"UAR {metrics['uar']:.1%}, WAR {metrics['war']:.1%}"
    return figure_to_image(small_confusion_figure(metrics["confusion"], names, title))


def _shares(confusion: ArrayLike, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts, and the share of each in the clips of its true class."""
    counts = np.asarray(confusion)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} class names for a confusion matrix of {counts.shape}")
    return counts, counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _label(axes: Axes, names: Sequence[str], title: str) -> None:
    ticks = range(len(names))
    long = max(map(len, names)) > 4
    axes.set_xticks(ticks, names, rotation=40 if long else 0, ha="right" if long else "center")
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)


def confusion(
    pred_files: Sequence[str | Path], output: str | Path, class_names: Sequence[str] = ()
) -> Path:
    """Draw the confusion matrix of the clips of all given prediction files together."""
    check_format(output)
    pooled = pool([read_predictions(path) for path in pred_files])
    if pooled.is_regression:
        raise ValueError(f"'{pred_files[0]}' is of a regression; it has no confusion matrix")
    scores = pooled.scores()
    numbers = [str(k) for k in range(pooled.num_outputs)]
    names = checked(class_names or numbers, pooled.num_outputs, "--classes")
    title = f"{len(pooled.clips)} clips, UAR {scores['uar']:.2%}, WAR {scores['war']:.2%}"
    return save_figure(confusion_figure(scores["confusion"], names, title), output)
