"""Confusion matrices, pooled over folds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from hicmae.folds import pool, read_predictions
from hicmae.inference.names import checked
from hicmae.visualize.style import STYLE, check_format, save_figure


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
