"""Scores of several methods on several data sets, as polygons."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from hicmae.inference.style import MARKERS, STYLE, colour
from hicmae.report.resampling import Plan
from hicmae.report.scores import TOTAL, build
from hicmae.report.tables import metric_name

COLUMNS = ["dataset", "metric", "method", "value"]  # data set and metric name an axis together
FEWEST_AXES = 3


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read a csv file with COLUMNS, values in percent."""
    try:
        scores = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        scores = pd.DataFrame()
    if not set(COLUMNS) <= set(scores) or scores.empty:
        header = ",".join(scores)[:80]
        raise ValueError(f"{path}:1: expected the columns {','.join(COLUMNS)}, got '{header}'")
    values = pd.to_numeric(scores["value"], errors="coerce").replace([-np.inf, np.inf], np.nan)
    if values.isna().any():
        line = int(values.isna().argmax())
        got = scores["value"][line]
        raise ValueError(f"{path}:{line + 2}: expected a number as value, got '{got}'")
    return scores[COLUMNS].assign(value=values)


def scores_of_folders(
    entries: Sequence[str], metrics: Sequence[str] = (), kind: str = "last"
) -> pd.DataFrame:
    """Score the finished folds of experiments; returns COLUMNS, as in a csv file.

    Entries are "DATASET=FOLDER", or "DATASET/METHOD=FOLDER"; metrics those of `hicmae.report`, WAR
    or CCC if empty; "recall" is one axis a class.
    """
    rows = []
    named = [metric for metric in metrics if metric != "recall"]
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise ValueError(
                f"expected one csv file, or DATASET=FOLDER or DATASET/METHOD=FOLDER, got '{entry}'"
            )
        dataset, _, method = name.partition("/")
        report = build(folder, plan=Plan(resamples=0), metrics=named)
        if kind not in report.kinds:
            raise ValueError(f"'{folder}' has no predictions of its {kind} epoch")
        shown = named or ([] if metrics else report.metrics[-1:])
        values = [(metric_name(m), report.value(TOTAL, kind, m)) for m in shown]
        if "recall" in metrics:
            if report.is_regression:
                raise ValueError(f"'{folder}' is a regression; it has no recall of classes")
            values += zip(report.names, report.scores[kind][TOTAL]["recall"], strict=True)
        rows += [(dataset, metric, method, 100 * (value or 0.0)) for metric, value in values]
    return pd.DataFrame(rows, columns=COLUMNS)


def radar_figure(scores: pd.DataFrame, start: float = 0.0, relative: bool = False) -> Figure:
    """Draw one polygon a method; every data set and metric of the COLUMNS is an axis.

    The middle is at `start` percent; `relative` measures an axis by its best method, not 100 %.
    """
    names = pd.MultiIndex.from_frame(scores[["dataset", "metric"]].drop_duplicates())
    if len(names) < FEWEST_AXES:
        raise ValueError(
            f"a radar plot needs at least {FEWEST_AXES} axes (data sets times metrics), got "
            f"{len(names)}; add some, or use the tables of python -m hicmae.report"
        )
    if scores.duplicated(["method", "dataset", "metric"]).any():
        raise ValueError("a method has two values on one axis; name the methods apart")
    values = scores.pivot(index="method", columns=["dataset", "metric"], values="value")
    values = values.reindex(index=scores["method"].unique(), columns=names)
    for method, row in values[values.isna().any(axis=1)].iterrows():
        raise ValueError(f"method '{method}' has no value of {' '.join(row.isna().idxmax())}")
    best = values.max()
    radii = 100 * values / best.where(best > 0, 1.0) if relative else values
    highest = radii.max(axis=None)
    if start >= highest:
        raise ValueError(f"--start {start:g} is not below the scores, which reach {highest:.1f}")
    top = 10 * math.ceil((highest - 1e-9) / 10)
    angles = np.linspace(0, 2 * math.pi, values.shape[1], endpoint=False)
    with rc_context(STYLE):
        figure = Figure((4.0, 3.7))
        axes = cast(PolarAxes, figure.add_subplot(projection="polar"))
        axes.set_theta_offset(math.pi / 2)  # the first axis points up, the others go clockwise
        axes.set_theta_direction(-1)
        for number, (method, row) in enumerate(radii.iterrows()):
            closed = np.append(angles, angles[0]), np.append(row, row.iloc[0]).clip(min=start)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(*closed, color=colour(number), marker=marker, ms=4, lw=1.4, label=method)
            axes.fill(*closed, color=colour(number), alpha=0.08)
        _label(axes, names, angles, best if relative else None)
        axes.set_ylim(start, top)
        steps = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(start, top)
        ticks = [tick for tick in steps if start < tick <= top]
        axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks], fontsize=8, color="#555555")
        axes.set_rlabel_position(180 / len(angles))
        axes.spines["polar"].set_color("#aaaaaa")
        if any(radii.index):
            figure.legend(loc="outside lower center", ncols=min(len(radii), 3))
    return figure


def _label(
    axes: PolarAxes, names: pd.MultiIndex, angles: np.ndarray, best: pd.Series | None
) -> None:
    """Name the axes by what differs between them; what they share becomes the title."""
    one_set, one_metric = (names.get_level_values(level).nunique() == 1 for level in (0, 1))
    texts = []
    for number, (dataset, metric) in enumerate(names):
        text = metric if one_set else dataset if one_metric else f"{dataset}\n{metric}"
        texts.append(text if best is None else f"{text}\n{best.iloc[number]:.1f}%")
    axes.set_xticks(angles, texts)
    axes.tick_params(axis="x", pad=6)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)  # clockwise from the top: positive on the right
        label.set(ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    dataset, metric = names[0]
    axes.set_title(f"{dataset if one_set else ''} {metric if one_metric else ''}".strip(), pad=16)


def radar(
    sources: Sequence[str],
    metrics: Sequence[str] = (),
    kind: str = "last",
    start: float = 0.0,
    relative: bool = False,
) -> Figure:
    """Draw scores of a csv file or of report folders; arguments as for the functions above."""
    if len(sources) == 1 and sources[0].endswith(".csv"):
        scores = read_scores(sources[0])
    else:
        scores = scores_of_folders(sources, metrics, kind)
    return radar_figure(scores, start, relative)
