"""Scores of several methods on several data sets, as polygons."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from hicmae.report.resampling import Plan
from hicmae.report.scores import build
from hicmae.report.tables import metric_name
from hicmae.visualize.style import MARKERS, OKABE_ITO, STYLE, check_format, save_figure

COLUMNS = ("dataset", "metric", "method", "value")
FEWEST_AXES = 3
FULL_CIRCLE = 2 * math.pi


class Score(NamedTuple):
    """One figure in percent; `metric` and `dataset` name an axis together."""

    dataset: str
    metric: str
    method: str
    value: float


def read_scores(path: str | Path) -> list[Score]:
    """Read a csv file with the columns dataset, metric, method, value (percent)."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"'{path}' does not exist; expected a csv file with the columns {','.join(COLUMNS)}"
        ) from error
    if not rows or not set(COLUMNS) <= rows[0].keys():
        header = ",".join(rows[0]) if rows else ""
        raise ValueError(f"{path}:1: expected the columns {','.join(COLUMNS)}, got '{header[:80]}'")
    return [_score_of(path, line, row) for line, row in enumerate(rows, 2)]


def _score_of(path: str | Path, line: int, row: dict[str, str]) -> Score:
    try:
        value = float(row["value"])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}:{line}: expected a number as value, got '{row['value']}'")
    return Score(row["dataset"], row["metric"], row["method"], value)


def scores_of_folders(
    entries: Sequence[str], metrics: Sequence[str] = (), kind: str = "last"
) -> list[Score]:
    """Score the finished folds of experiments.

    Args:
        entries: "DATASET=FOLDER", or "DATASET/METHOD=FOLDER".
        metrics: of `hicmae.report`; UAR or CCC if empty; "recall" is one axis a class.
        kind: "last" or "best" epoch.
    """
    scores = []
    for entry in entries:
        name, separator, folder = entry.partition("=")
        if not separator or not name or not folder:
            raise ValueError(
                f"expected one csv file, or DATASET=FOLDER or DATASET/METHOD=FOLDER, got '{entry}'"
            )
        dataset, _, method = name.partition("/")
        named = [metric for metric in metrics if metric != "recall"]
        report = build(folder, plan=Plan(resamples=0), metrics=named)
        if kind not in report.kinds:
            raise ValueError(f"'{folder}' has no predictions of its {kind} epoch")
        shown = named or ([] if "recall" in metrics else list(report.metrics[-1:]))
        for metric in shown:
            value = report.value(report.total, kind, metric)
            scores.append(Score(dataset, metric_name(metric), method, 100 * (value or 0.0)))
        if "recall" in metrics:
            scores += _recalls(dataset, method, report.names, getattr(report.total, kind), folder)
    return scores


def _recalls(
    dataset: str, method: str, names: Sequence[str], total: dict, folder: str
) -> list[Score]:
    if "recall" not in total:
        raise ValueError(f"'{folder}' is a regression; it has no recall of classes")
    return [
        Score(dataset, name, method, 100 * (value or 0.0))
        for name, value in zip(names, total["recall"], strict=True)
    ]


def radar_figure(scores: Sequence[Score], start: float = 0.0, relative: bool = False) -> Figure:
    """Draw one polygon a method; every data set and metric is an axis.

    Args:
        scores: every method has one on every axis.
        start: percent in the middle.
        relative: measure each axis by its best method instead of 100 %.
    """
    axes_names = list(dict.fromkeys((score.dataset, score.metric) for score in scores))
    methods = list(dict.fromkeys(score.method for score in scores))
    values = _matrix(scores, axes_names, methods)
    best = values.max(0)
    radii = 100 * values / np.where(best > 0, best, 1.0) if relative else values
    if start >= radii.max():
        raise ValueError(
            f"--start {start:g} is not below the scores, which reach {radii.max():.1f}"
        )
    top = 10 * math.ceil((radii.max() - 1e-9) / 10)
    angles = np.linspace(0, FULL_CIRCLE, len(axes_names), endpoint=False)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            figsize=(4.0, 3.7), subplot_kw={"projection": "polar"}, layout="constrained"
        )
        assert isinstance(axes, PolarAxes)
        axes.set_theta_offset(math.pi / 2)  # the first axis points up, the others go clockwise
        axes.set_theta_direction(-1)
        for number, (method, row) in enumerate(zip(methods, radii, strict=True)):
            colour = OKABE_ITO[number % len(OKABE_ITO)]
            closed = np.append(angles, angles[0]), np.append(row, row[0]).clip(min=start)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(*closed, color=colour, marker=marker, ms=4, lw=1.4, label=method)
            axes.fill(*closed, color=colour, alpha=0.08)
        _label(axes, axes_names, angles, best if relative else None)
        axes.set_ylim(start, top)
        steps = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(start, top)
        ticks = [tick for tick in steps if start < tick <= top]
        axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks], fontsize=8, color="#555555")
        axes.set_rlabel_position(180 / len(axes_names))
        axes.spines["polar"].set_color("#aaaaaa")
        if any(methods):
            figure.legend(loc="outside lower center", ncols=min(len(methods), 3))
    return figure


def _matrix(
    scores: Sequence[Score], axes: Sequence[tuple[str, str]], methods: Sequence[str]
) -> np.ndarray:
    """Return (methods, axes) values; refuse too few axes and gaps."""
    if len(axes) < FEWEST_AXES:
        raise ValueError(
            f"a radar plot needs at least {FEWEST_AXES} axes (data sets times metrics), got "
            f"{len(axes)}; add some, or use the tables of python -m hicmae.report"
        )
    found = {(score.method, score.dataset, score.metric): score.value for score in scores}
    if len(found) < len(scores):
        raise ValueError("a method has two values on one axis; name the methods apart")
    for method in methods:
        for axis in axes:
            if (method, *axis) not in found:
                raise ValueError(f"method '{method}' has no value of {' '.join(axis)}")
    return np.array([[found[method, name, metric] for name, metric in axes] for method in methods])


def _label(
    axes: PolarAxes, names: Sequence[tuple[str, str]], angles: np.ndarray, best: np.ndarray | None
) -> None:
    one_set = len({dataset for dataset, _ in names}) == 1
    one_metric = len({metric for _, metric in names}) == 1
    texts = []
    for number, (dataset, metric) in enumerate(names):
        text = metric if one_set else dataset if one_metric else f"{dataset}\n{metric}"
        texts.append(text if best is None else f"{text}\n{best[number]:.1f}%")
    axes.set_xticks(angles, texts)
    axes.tick_params(axis="x", pad=6)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)  # clockwise from the top: positive on the right
        label.set_horizontalalignment(
            "center" if abs(side) < 0.1 else "left" if side > 0 else "right"
        )
    title = [dataset for dataset, _ in names[:1] if one_set and dataset]
    title += [metric for _, metric in names[:1] if one_metric]
    axes.set_title(" ".join(title), pad=16)


def radar(
    sources: Sequence[str],
    output: str | Path,
    metrics: Sequence[str] = (),
    kind: str = "last",
    start: float = 0.0,
    relative: bool = False,
) -> Path:
    """Draw scores of a csv file or of report folders; arguments as for the functions above."""
    check_format(output)
    if len(sources) == 1 and sources[0].endswith(".csv"):
        scores = read_scores(sources[0])
    else:
        scores = scores_of_folders(sources, metrics, kind)
    return save_figure(radar_figure(scores, start, relative), output)
