"""Reports as one HTML page that needs nothing else: pictures are inside it."""

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hicmae.report.comparison import Comparison
from hicmae.report.scores import Report
from hicmae.report.tables import Section, interval_name, metric_name
from hicmae.visualize.confusion import confusion_figure
from hicmae.visualize.intervals import Bounded, finite, intervals_figure
from hicmae.visualize.scatter import scatter_figure
from hicmae.visualize.style import DARK, figure_to_png

FEW_CLASSES = 7  # whose confusion matrix can be read at half the width of the page


class Picture(NamedTuple):
    """A picture for light and for dark pages, as data URIs; a wide one has a row of its own."""

    title: str
    light: str
    dark: str
    is_wide: bool


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
    pictures = [list(_pictures(section)) for section in sections]
    return environment.get_template("page.html").render(
        title=" / ".join(titles) or "report",
        parts=list(zip(sections, pictures, strict=True)),
        words=("score", "test"),
    )


def _pictures(section: Section) -> Iterator[Picture]:
    if section.report:
        yield from _report_pictures(section.report)
    if any(not math.isnan(d.low) for c in section.comparisons for d in c.differences):
        yield _picture("Differences with their intervals", lambda: _gaps(section.comparisons))


def _report_pictures(report: Report) -> Iterator[Picture]:
    if len(report.rows) > 1:
        yield _picture("Scores of the folds", lambda: _folds_figure(report))
    if report.is_regression:
        for kind in report.kinds:
            table = report.pooled[kind].table
            yield _picture(
                f"Predictions, {kind} epoch",
                partial(scatter_figure, table.labels, table.predictions, report.names),
                len(report.names) > 1,
            )
        return
    yield _picture(f"Recall of the classes with {interval_name(report)}", lambda: _recalls(report))
    for kind in report.kinds:
        counts = getattr(report.total, kind)["confusion"]
        yield _picture(
            f"Confusion matrix, {kind} epoch",
            partial(confusion_figure, counts, report.names),
            len(report.names) > FEW_CLASSES,
        )


def _picture(title: str, draw: Callable[[], Figure], is_wide: bool = False) -> Picture:
    addresses = []
    for scheme in ({}, DARK):
        with plt.rc_context(scheme):
            data = base64.b64encode(figure_to_png(draw())).decode("ascii")
        addresses.append(f"data:image/png;base64,{data}")
    light, dark = addresses
    return Picture(title, light, dark, is_wide)


def _folds_figure(report: Report) -> Figure:
    rows = [*report.rows, report.total]
    series = {}
    for kind in report.kinds:
        for metric in report.metrics:
            bounds = report.pooled[kind].intervals.get(metric, (float("nan"),) * 2)
            values = finite([report.value(row, kind, metric) for row in rows])
            points = [(value, float("nan"), float("nan")) for value in values[:-1]]
            series[f"{metric_name(metric)} {kind}"] = _in_percent([*points, (values[-1], *bounds)])
    return intervals_figure([row.name for row in rows], series, "score (%)", _lines(report))


def _lines(report: Report) -> dict[str, float]:
    """Return the reference figures, which belong to the first metric."""
    return {
        f"{name} ({metric_name(report.metrics[0])})": v for name, v in report.references.items()
    }


def _recalls(report: Report) -> Figure:
    series = {}
    for kind in report.kinds:
        values, bounds = (
            finite(getattr(report.total, kind)["recall"]),
            report.pooled[kind].intervals,
        )
        pairs = [bounds.get(f"recall {k}", (float("nan"),) * 2) for k in range(len(values))]
        series[f"{kind} epoch"] = _in_percent(
            [(value, *pair) for value, pair in zip(values, pairs, strict=True)]
        )
    return intervals_figure(report.names, series, "recall (%)")


def _gaps(comparisons: Sequence[Comparison]) -> Figure:
    names, points = [], []
    for compared in comparisons:
        for shown in compared.differences:
            metric = metric_name(shown.metric, compared.names)
            names.append(f"{compared.title}: {metric} {compared.kind}")
            points.append((shown.value - shown.baseline, shown.low, shown.high))
    label = f"difference to {comparisons[0].baseline} (percentage points)"
    return intervals_figure(names, {"": _in_percent(points)}, label, {"": 0.0})


def _in_percent(points: Sequence[Bounded]) -> list[Bounded]:
    return [(100 * value, 100 * low, 100 * high) for value, low, high in points]
