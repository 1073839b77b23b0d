"""Reports as one HTML page that needs nothing else: pictures are inside it."""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay

from hicmae.inference.style import DARK, MARKERS, OKABE_ITO, STYLE, colour, figure_to_png
from hicmae.report.scores import TOTAL, Report
from hicmae.report.tables import WORDS, Section, interval_name, metric_name

FEW_CLASSES = 7  # whose confusion matrix can be read at half the width of the page
MANY_CLASSES = 20  # whose small confusion matrix has no figures
MANY_POINTS = 2000  # above which their density is drawn instead
NAN = float("nan")


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
    return environment.get_template("page.html").render(
        title=" / ".join(titles) or "report",
        parts=[(s, [_picture(*found) for found in _pictures(s)]) for s in sections],
        words=WORDS,
    )


def _pictures(section: Section) -> Iterator[tuple[str, Callable[[], Figure], bool]]:
    """Yield title, what draws it, and whether it needs a row of its own."""
    if section.report:
        yield from _report_pictures(section.report)
    points = {}
    for compared in section.comparisons:
        for shown in compared.differences:
            name = f"{metric_name(shown.metric, compared.names)} {compared.kind}"
            gap = (shown.value - shown.baseline, shown.low, shown.high)
            points[f"{compared.title}: {name}"] = gap
    if any(not math.isnan(low) for _, low, _ in points.values()):
        label = f"difference to {section.comparisons[0].baseline} (percentage points)"
        gaps = {"": list(points.values())}
        draw = partial(intervals_figure, list(points), gaps, label, {"": 0.0})
        yield "Differences with their intervals", draw, False


def _report_pictures(report: Report) -> Iterator[tuple[str, Callable[[], Figure], bool]]:
    none, series, recalls = (NAN, NAN), {}, {}
    for kind in report.kinds:
        bounds, total = report.pooled[kind].intervals, report.scores[kind][TOTAL]
        for metric in report.metrics:
            points = [(report.value(row, kind, metric), *none) for row in report.rows]
            pooled = (report.value(TOTAL, kind, metric), *bounds.get(metric, none))
            series[f"{metric_name(metric)} {kind}"] = [*points, pooled]
        recalls[f"{kind} epoch"] = [
            (value, *bounds.get(f"recall {k}", none))
            for k, value in enumerate(total.get("recall", ()))
        ]
    if len(report.rows) > 1:
        # The reference figures belong to the first metric.
        first = metric_name(report.metrics[0])
        lines = {f"{name} ({first})": value for name, value in report.references.items()}
        names = [*report.rows, TOTAL]
        draw = partial(intervals_figure, names, series, "score (%)", lines)
        yield "Scores of the folds", draw, False
    if not report.is_regression:
        title = f"Recall of the classes with {interval_name(report)}"
        yield title, partial(intervals_figure, report.names, recalls, "recall (%)"), False
    count = len(report.names)
    for kind in report.kinds:
        if report.is_regression:
            _, truth, guess, _ = report.pooled[kind].table
            draw = partial(scatter_figure, truth, guess, report.names)
            yield f"Predictions, {kind} epoch", draw, count > 1
        else:
            counts = report.scores[kind][TOTAL]["confusion"]
            draw = partial(confusion_figure, counts, report.names)
            yield f"Confusion matrix, {kind} epoch", draw, count > FEW_CLASSES


def _picture(title: str, draw: Callable[[], Figure], is_wide: bool) -> dict[str, Any]:
    """Draw a picture for light and for dark pages, as data URIs."""

    def address(scheme: dict[Any, Any]) -> str:
        with rc_context(scheme):
            data = base64.b64encode(figure_to_png(draw())).decode("ascii")
        return f"data:image/png;base64,{data}"

    return {"title": title, "light": address({}), "dark": address(DARK), "is_wide": is_wide}


def intervals_figure(
    names: Sequence[str],
    series: Mapping[str, Sequence[tuple[float | None, float, float]]],
    label: str,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw points with their intervals, a row a name, a colour and marker a series.

    The series hold value, lower and upper bound of every row, first on top, as fractions; a missing
    value is left out, and so is the interval of a bound that is nan. Positions of the vertical
    reference lines are in percent, as the axis is; an empty name has no legend entry.
    """
    rows = np.arange(len(names))
    with rc_context(STYLE):
        figure = Figure((4.4, 0.75 + len(names) * max(0.28, 0.17 * len(series))))
        axes = figure.subplots()
        for number, (name, points) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * 0.6 / max(len(series), 2)
            value, low, high = 100 * np.array(points, dtype=float).T
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
        for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
            both = np.concatenate((truth[:, k], predicted[:, k]))
            pad = 0.04 * float(np.ptp(both)) or 0.5
            limits = (float(both.min()) - pad, float(both.max()) + pad)
            if len(truth) > MANY_POINTS:
                axes.hexbin(truth[:, k], predicted[:, k], gridsize=40, bins="log", cmap="viridis")
            else:
                axes.plot(truth[:, k], predicted[:, k], "o", color=OKABE_ITO[0], ms=2.5, alpha=0.5)
            axes.plot(limits, limits, "--", color="#888888", linewidth=1)
            axes.set(xlim=limits, ylim=limits, aspect="equal", title=name, xlabel="true value")
        panels[0].set_ylabel("predicted value")
    return figure


def confusion_figure(
    confusion: ArrayLike, names: Sequence[str], title: str = "", small: bool = False
) -> Figure:
    """Draw (K, K) counts, row = true class, coloured by the share of each true class.

    A small matrix is for a screen and drawn quickly: shares without counts and scale, and with
    many classes colours only.
    """
    counts, num = np.asarray(confusion), len(names)
    if counts.shape != (num, num):
        raise ValueError(f"{num} class names for a confusion matrix of {counts.shape}")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    longest, many = max(map(len, names)), small and num > MANY_CLASSES
    side = (0.14 if many else 0.32) * num + 0.3 + 0.07 * longest if small else 0.52 * num + 1.9
    size = (max(side, 2.6), side + 0.3) if small else (side + 0.5, side)
    fonts = {"font.size": 6 if many else 8, "axes.titlesize": 8} if small else {}
    with rc_context(STYLE | {"axes.grid": False} | fonts):
        figure = Figure(size)
        axes = figure.subplots()
        display = ConfusionMatrixDisplay(share, display_labels=names)
        display.plot(
            ax=axes, include_values=not many, colorbar=False, im_kw={"vmin": 0.0, "vmax": 1.0}
        )
        for (row, column), text in () if many else np.ndenumerate(display.text_):
            percent, count = 100 * share[row, column], counts[row, column]
            shown = f"{percent:.0f}%\n{count}" if count else "0"
            text.set_text((f"{percent:.0f}" if count else "") if small else shown)
            text.set(color="black" if percent > 60 else "white", fontsize=7, linespacing=1.3)
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
