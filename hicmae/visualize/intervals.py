"""Values with their intervals, one row a class, fold or run."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hicmae.visualize.style import MARKERS, OKABE_ITO, STYLE

Bounded = tuple[float, float, float]  # value, lower and upper bound; nan: no interval


def intervals_figure(
    names: Sequence[str],
    series: Mapping[str, Sequence[Bounded]],
    label: str,
    lines: Mapping[str, float] | None = None,
    width: float = 4.4,
) -> Figure:
    """Draw points with their intervals, a row a name, a colour and marker a series.

    Args:
        names: of the rows, first on top.
        series: name -> a value with its bounds for every row; nan values are left out.
        label: of the horizontal axis, with the unit.
        lines: name -> position of vertical reference lines; an empty name has no legend entry.
        width: of the figure in inches.
    """
    rows = np.arange(len(names))
    with plt.rc_context(STYLE):
        height = 0.75 + len(names) * max(0.28, 0.17 * len(series))
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        for number, (name, values) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * 0.6 / max(len(series), 2)
            value, low, high = np.array(values, dtype=float).reshape(-1, 3).T
            reach = np.nan_to_num(np.stack((value - low, high - value))).clip(min=0)
            known = ~np.isnan(value)
            axes.errorbar(
                value[known],
                (rows + shift)[known],
                xerr=reach[:, known],
                fmt=MARKERS[number % len(MARKERS)],
                color=_colour(number),
                markersize=4,
                elinewidth=1.2,
                label=name,
            )
        for number, (name, position) in enumerate((lines or {}).items()):
            axes.axvline(
                position, color="#888888", linewidth=1, linestyle=("--", ":", "-.")[number % 3],
                label=name or None,
            )  # fmt: skip
        axes.set_yticks(rows, names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        if len(series) > 1 or any(lines or {}):
            figure.legend(loc="outside upper center", ncols=4)
    return figure


def _colour(number: int) -> str:
    return OKABE_ITO[number % len(OKABE_ITO)]


def finite(values: Sequence[float | None]) -> list[float]:
    """Replace what is missing by nan."""
    return [math.nan if value is None else float(value) for value in values]
