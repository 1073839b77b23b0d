"""Reports as one HTML page that needs nothing else: pictures are inside it."""

import base64
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay

from hicmae.inference.style import MARKERS, OKABE_ITO, STYLE, colour, figure_to_png
from hicmae.report.scores import TOTAL, Report, metric_name
from hicmae.report.tables import WORDS, Section, interval_name

FEW_CLASSES = 7  # whose confusion matrix can be read at half the width of the page


def as_html(sections: Sequence[Section]) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("hicmae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles = [section.report.title for section in sections if section.report]
    parts = [
        (section, [(title, _address(figure), wide) for title, figure, wide in _figures(section)])
        for section in sections
    ]
    return environment.get_template("page.html").render(
        title=" / ".join(titles) or "report",
        parts=parts,
        words=WORDS,
    )


def _address(figure: Figure) -> str:
    data = base64.b64encode(figure_to_png(figure)).decode("ascii")
    return f"data:image/png;base64,{data}"


def _figures(section: Section) -> Iterator[tuple[str, Figure, bool]]:
    """Draw what a section says: titles, pictures, and whether they take the width of the page."""
    if section.report:
        yield from _figures_of_report(section.report)
    if section.comparisons:
        names = [f"{c.title}: {name}" for c in section.comparisons for name in c.scores()]
        found = pd.concat([c.differences for c in section.comparisons])
        gaps = np.column_stack((found["value"] - found["baseline"], found[["low", "high"]]))
        if not found["low"].isna().all():
            label = f"difference to {section.comparisons[0].baseline} (percentage points)"
            figure = intervals_figure(names, {"": gaps}, label, {"": 0.0})
            yield "Differences with their intervals", figure, False


def _figures_of_report(report: Report) -> Iterator[tuple[str, Figure, bool]]:
    count, first, rows = len(report.names), report.metrics[0], [*report.rows, TOTAL]
    if len(report.rows) > 1:
        series = {}
        for kind in report.kinds:
            for metric in report.metrics:
                values = report.frame.loc[rows, (kind, metric)].to_numpy()
                bounds = np.full((len(rows), 2), np.nan)
                bounds[-1] = report.total(kind, metric)[0, 1:]
                series[f"{metric_name(metric)} {kind}"] = np.column_stack((values, bounds))
        # The reference figures belong to the first metric.
        lines = {f"{n} ({metric_name(first)})": value for n, value in report.references.items()}
        yield "Scores of the folds", intervals_figure(rows, series, "score (%)", lines), False
    if not report.is_regression:
        recalls = {f"{kind} epoch": report.parts(kind, "recall") for kind in report.kinds}
        figure = intervals_figure(report.names, recalls, "recall (%)")
        yield f"Recall of the classes with {interval_name(report)}", figure, False
    for kind, table in report.pooled.items():
        if report.is_regression:
            figure = scatter_figure(table.labels, table.predictions, report.names)
            yield f"Predictions, {kind} epoch", figure, count > 1
        else:
            figure = confusion_figure(report.scores[kind][TOTAL]["confusion"], report.names)
            yield f"Confusion matrix, {kind} epoch", figure, count > FEW_CLASSES


def intervals_figure(
    names: Sequence[str],
    series: Mapping[str, np.ndarray],
    label: str,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw points with their intervals, a row a name, a colour and marker a series.

    The series (rows, 3) hold value, lower and upper bound, first row on top, as fractions; a value
    of nan is left out, and so is the interval of a bound that is nan. Positions of the vertical
    reference lines are in percent, as the axis is; an empty name has no legend entry.
    """
    rows = np.arange(len(names))
    with rc_context(STYLE):
        figure = Figure((4.4, 0.75 + len(names) * max(0.28, 0.17 * len(series))))
        axes = figure.subplots()
        for number, (name, points) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * 0.6 / max(len(series), 2)
            value, low, high = 100 * points.T
            reach = np.nan_to_num(np.stack((value - low, high - value))).clip(min=0)
            known = ~np.isnan(value)
            axes.errorbar(
                value[known],
                (rows + shift)[known],
                xerr=reach[:, known],
                fmt=MARKERS[number % len(MARKERS)],
                color=colour(number),
                markersize=4,
                elinewidth=1.2,
                label=name,
            )
        for number, (name, position) in enumerate((lines or {}).items()):
            dashes = ("--", ":", "-.")[number % 3]
            axes.axvline(position, color="#888888", lw=1, linestyle=dashes, label=name or None)
        axes.set_yticks(rows, names)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=label)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if len(series) > 1 or any(lines or {}):
            figure.legend(loc="outside upper center", ncols=4)
    return figure


def scatter_figure(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw one panel an output, (n, K) against (n, K), with the line of right predictions."""
    with rc_context(STYLE):
        figure = Figure((2.5 * len(names), 2.7))
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name, *both in zip(panels, names, truth.T, predicted.T, strict=True):
            pad = 0.04 * float(np.ptp(both)) or 0.5
            limits = (float(np.min(both)) - pad, float(np.max(both)) + pad)
            axes.plot(*both, "o", color=OKABE_ITO[0], ms=2.5, alpha=0.5)
            axes.plot(limits, limits, "--", color="#888888", linewidth=1)
            axes.set(xlim=limits, ylim=limits, aspect="equal", title=name, xlabel="true value")
        panels[0].set_ylabel("predicted value")
    return figure


def confusion_figure(
    confusion: ArrayLike, names: Sequence[str], title: str = "", small: bool = False
) -> Figure:
    """Draw (K, K) counts, row = true class, coloured by the share of each true class.

    The row of a class without clips has no colour. A small matrix is for a screen and drawn
    quickly: shares without counts and scale.
    """
    counts, num, longest = np.asarray(confusion), len(names), max(map(len, names))
    if counts.shape != (num, num):
        raise ValueError(f"{num} class names for a confusion matrix of {counts.shape}")
    clips = counts.sum(1, keepdims=True)
    share = counts / np.where(clips > 0, clips, np.nan)
    side = 0.32 * num + 0.3 + 0.07 * longest if small else 0.52 * num + 1.9
    size = (max(side, 2.6), side + 0.3) if small else (side + 0.5, side)
    with rc_context(STYLE | {"axes.grid": False} | ({"font.size": 8} if small else {})):
        figure = Figure(size)
        axes = figure.subplots()
        display = ConfusionMatrixDisplay(share, display_labels=names)
        display.plot(ax=axes, colorbar=False, im_kw={"vmin": 0.0, "vmax": 1.0})
        for place, text in np.ndenumerate(display.text_):
            shown = f"{100 * share[place]:.0f}" + ("" if small else f"%\n{counts[place]}")
            text.set_text(shown if counts[place] else "" if small else "0")
            colour_of_text = "white" if share[place] <= 0.6 else "black"
            if not clips[place[0]]:
                colour_of_text = "#888888"
            text.set(color=colour_of_text, fontsize=7, linespacing=1.3)
        if longest > 4:
            axes.set_xticks(range(num), names, rotation=40, ha="right")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class", title=title)
        if not small:
            bar = figure.colorbar(
                display.im_, label="share of the true class", fraction=0.046, pad=0.03
            )
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            bar.outline.set_visible(False)
    return figure
