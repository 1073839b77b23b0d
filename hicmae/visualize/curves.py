"""Losses and scores over the epochs of one or several runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hicmae.folds import natural_key
from hicmae.training.logs import read_lines
from hicmae.visualize.style import OKABE_ITO, STYLE, check_format, save_figure

# What log.txt holds beside curves worth drawing.
NOT_CURVES = ("epoch", "n_parameters", "step", "count", "clips", "memory_mib", "weight_decay")
ONLY_IF_ANY = ("bad_steps",)  # nothing to see where it is zero throughout
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def curves_figure(logs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw every figure of the epochs: one panel a quantity, one colour a run.

    Args:
        logs: name of a run -> its log.txt, one dictionary an epoch. Keys `train_x`, `val_x` and
            `test_x` share the panel x, with solid, dashed and dotted lines.
    """
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(k for records in logs.values() for record in records for k in record):
        quantity = key.split("_", 1)[1] if key.split("_")[0] in SPLITS else key
        values = {r[key] for records in logs.values() for r in records if _is_number(r.get(key))}
        drawable = values - {0} if quantity in ONLY_IF_ANY else values
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
    name = quantity.upper() if quantity in ("uar", "war") else quantity.replace("_", " ")
    split = SPLITS.get(keys[0].split("_")[0], "") if len(keys) == 1 else ""
    axes.set_title(f"{split} {name}".strip())
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if "lr" in quantity.split("_"):
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    if len(keys) > 1:
        lines = [Line2D([], [], color="#555555", linestyle=_dashes(key, keys)) for key in keys]
        axes.legend(lines, [SPLITS.get(key.split("_")[0], key) for key in keys], fontsize=8)


def _dashes(key: str, keys: list[str]) -> Any:
    """Tell splits of one quantity apart; a single one needs no dashes."""
    return {"val": "--", "test": ":"}.get(key.split("_")[0], "-") if len(keys) > 1 else "-"


def _colour(number: int) -> str:
    return OKABE_ITO[number % len(OKABE_ITO)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def curves(output_dirs: Sequence[str | Path], output: str | Path) -> Path:
    """Draw the log.txt of one or several runs."""
    check_format(output)
    logs = {}
    for folder in sorted(map(Path, output_dirs), key=lambda path: natural_key(path.name)):
        records = [r for r in read_lines(folder / "log.txt") if _is_number(r.get("epoch"))]
        if not records:
            raise FileNotFoundError(f"'{folder / 'log.txt'}' holds no finished epoch yet")
        logs[folder.name if folder.name not in logs else str(folder)] = records
    return save_figure(curves_figure(logs), output)
