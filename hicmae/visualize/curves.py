"""Losses and scores over the epochs of one or several runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hicmae.inference.style import STYLE, colour
from hicmae.report.scores import natural_key
from hicmae.training.logs import read_lines

# What log.txt holds beside curves worth drawing.
NOT_CURVES = ("n_parameters", "step", "count", "clips", "memory_mib", "weight_decay")
ONLY_IF_ANY = ("bad_steps",)  # nothing to see where it is zero throughout
SPLITS: dict[str, tuple[str, Any]] = {
    "train": ("training", "-"),
    "val": ("validation", "--"),
    "test": ("test", ":"),
}


def curves_figure(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the log.txt of runs, a dictionary an epoch: one panel a quantity, one colour a run.

    Keys `train_x`, `val_x` and `test_x` share the panel x, with solid, dashed and dotted lines.
    """
    runs = [pd.DataFrame(log).set_index("epoch").select_dtypes("number") for log in logs.values()]
    runs = [run.where(np.isfinite(run)) for run in runs]
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        split, _, rest = key.partition("_")
        quantity = rest if split in SPLITS else key
        values = pd.concat([run[key] for run in runs if key in run]).dropna()
        drawable = values.any() if quantity in ONLY_IF_ANY else len(values)
        if drawable and not {quantity, key} & set(NOT_CURVES):
            panels.setdefault(quantity, []).append(key)
    if not panels:
        raise ValueError("the logs hold no numbers to draw; is one epoch finished?")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    with rc_context(STYLE):
        figure = Figure((2.9 * columns, 2.1 * rows))
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (quantity, keys) in zip(grid.flat, panels.items(), strict=False):
            _draw_panel(axes, quantity, keys, runs)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for column in range(columns):
            grid[(len(panels) - 1 - column) // columns, column].set_xlabel("epoch")
        if len(runs) > 1:
            lines = [Line2D([], [], color=colour(number)) for number in range(len(runs))]
            figure.legend(lines, list(logs), loc="outside lower center", ncols=min(len(runs), 6))
    return figure


def _draw_panel(axes: Axes, quantity: str, keys: list[str], runs: Sequence[pd.DataFrame]) -> None:
    """Draw one quantity; splits of it are told apart by dashes, a single one needs none."""
    splits = [SPLITS.get(key.split("_")[0], ("", "-")) for key in keys]
    dashes: list[Any] = [dash if len(keys) > 1 else "-" for _, dash in splits]
    for number, run in enumerate(runs):
        for key, dash in zip(keys, dashes, strict=True):
            points = run[key].dropna() if key in run else pd.Series(dtype=float)
            (line,) = axes.plot(points.index, points, dash, color=colour(number), linewidth=1.3)
            line.set(marker="o" if len(points) < 3 else "", markersize=3)
    name = quantity.upper() if quantity in ("uar", "war") else quantity.replace("_", " ")
    axes.set_title(f"{splits[0][0]} {name}".strip() if len(keys) == 1 else name)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if "lr" in quantity.split("_"):
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    if len(keys) > 1:
        lines = [Line2D([], [], color="#555555", linestyle=dash) for dash in dashes]
        axes.legend(lines, [s or k for (s, _), k in zip(splits, keys, strict=True)], fontsize=8)


def curves(output_dirs: Sequence[str | Path]) -> Figure:
    """Draw the log.txt of one or several runs."""
    logs = {}
    for folder in sorted(map(Path, output_dirs), key=lambda path: natural_key(path.name)):
        records = [record for record in read_lines(folder / "log.txt") if "epoch" in record]
        if not records:
            raise FileNotFoundError(f"'{folder / 'log.txt'}' holds no finished epoch yet")
        logs[folder.name if folder.name not in logs else str(folder)] = records
    return curves_figure(logs)
