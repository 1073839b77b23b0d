"""Figures of reports as cells of text, in the order in which they are read."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hicmae.report.comparison import Comparison, Difference
from hicmae.report.scores import Report, Row

METRIC_NAMES = {
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
}


class Table(NamedTuple):
    """Cells, heading first, the first column holding names; `rules`: rows with a line above."""

    caption: str
    cells: list[list[str]]
    rules: tuple[int, ...]


class Section(NamedTuple):
    """A heading, its tables, remarks below them, and what they describe, for pictures of it."""

    heading: str
    tables: list[Table]
    notes: list[str]
    report: Report | None = None
    comparisons: Sequence[Comparison] = ()


def document(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> list[Section]:
    """Lay out everything: the comparison first where there is one, then report by report."""
    sections = []
    if len(reports) > 1:
        sections.append(Section("Runs side by side", [summary_table(reports)], _method(reports[0])))
    if comparisons:
        tables, notes = [comparison_table(comparisons)], _comparison_notes(comparisons)
        sections.append(Section("Differences", tables, notes, None, comparisons))
    for report in reports:
        tables = [main_table(report), detail_table(report)]
        notes = [*report.notes, *([] if len(reports) > 1 else _method(report))]
        sections.append(Section(report.title, tables, notes, report))
    return sections


def _method(report: Report) -> list[str]:
    """Say in words how intervals and deviations were computed."""
    notes = []
    if report.spread(report.kinds[0], report.metrics[0]):
        notes.append("mean and std: over folds, sample standard deviation (n - 1)")
    plan = report.plan
    if plan.resamples:
        unit = "clips" if plan.speakers is None else f"speakers ({_num_speakers(report)})"
        notes.append(
            f"{interval_name(report)}: percentile bootstrap of Total, {plan.resamples} resamples "
            f"of {unit} within folds, seed {plan.seed}"
        )
    return notes


def _num_speakers(report: Report) -> int:
    table = report.pooled[report.kinds[0]].table
    return len({(report.plan.speakers or {})[clip] for clip in table.clips})


def interval_name(report: Report) -> str:
    """Return e.g. "95% CI"."""
    return f"{100 * report.plan.confidence:g}% CI"


def metric_name(metric: str, names: Sequence[str] = ()) -> str:
    """Return how a metric is written, e.g. "UAR" or, for "ccc 0", "CCC valence"."""
    base, _, number = metric.partition(" ")
    shown = METRIC_NAMES.get(base, base.upper())
    return f"{shown} {names[int(number)]}" if number else shown


def percent(value: float | None) -> str:
    """Return a fraction in percent with two digits, "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100.0 * value:.2f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """Return an interval in percent, "-" where there is none."""
    if bounds is None or math.isnan(bounds[0]):
        return "-"
    return f"[{percent(bounds[0])}, {percent(bounds[1])}]"


def main_table(report: Report) -> Table:
    """Lay out one row a fold, mean and deviation, Total with its interval, and references."""
    columns = [(kind, metric) for kind in report.kinds for metric in report.metrics]
    heading = ["fold", "clips", *(f"{metric_name(m)} {kind}" for kind, m in columns)]
    cells = [heading, *(_score_row(report, row, columns) for row in report.rows)]
    rules = [1]
    spreads = [report.spread(*column) for column in columns]
    if any(spreads):
        rules.append(len(cells))
        for k, name in enumerate(("mean", "std")):
            cells.append([name, "", *(percent(pair[k] if pair else None) for pair in spreads)])
    rules.append(len(cells))
    cells.append(_score_row(report, report.total, columns))
    if report.plan.resamples:
        bounds = (report.pooled[kind].intervals[metric] for kind, metric in columns)
        cells.append([interval_name(report), "", *map(interval, bounds)])
    if report.references:
        rules.append(len(cells))
    for name, value in report.references.items():
        shown = [f"{value:.2f}" if metric == report.metrics[0] else "" for _, metric in columns]
        cells.append([name, "", *shown])
    return Table("Scores in percent; Total: all clips pooled.", cells, tuple(rules))


def _score_row(report: Report, row: Row, columns: Sequence[tuple[str, str]]) -> list[str]:
    count = (row.last or row.best or {"count": "-"})["count"]
    return [row.name, str(count), *(percent(report.value(row, *column)) for column in columns)]


def detail_table(report: Report) -> Table:
    """Lay out the pooled scores of every class (recall) or output, with their intervals."""
    metrics = report.metrics if report.is_regression else ("recall",)
    columns: list[list[str]] = []
    for kind in report.kinds:
        scores, bounds = getattr(report.total, kind), report.pooled[kind].intervals
        for metric in metrics:
            found = scores[metric]["per_output"] if report.is_regression else scores[metric]
            name = metric_name(metric) if report.is_regression else metric
            columns.append([f"{name} {kind}", *map(percent, found)])
            if bounds:
                pairs = [interval(bounds[f"{metric} {k}"]) for k in range(len(report.names))]
                columns.append([interval_name(report), *pairs])
    first = ["output" if report.is_regression else "class", *report.names]
    if not report.is_regression:
        confusion = getattr(report.total, report.kinds[0])["confusion"]
        columns.insert(0, ["clips", *(str(sum(row)) for row in confusion)])
    cells = [list(row) for row in zip(first, *columns, strict=True)]
    what = "Outputs" if report.is_regression else "Recall of the classes"
    return Table(f"{what}, all folds pooled, in percent.", cells, (1,))


def summary_table(reports: Sequence[Report]) -> Table:
    """Lay out Total of every run with its interval, the last epoch where all have it."""
    kinds = [kind for kind in reports[0].kinds if all(kind in r.kinds for r in reports)]
    columns = [(kind, metric) for kind in kinds for metric in reports[0].metrics]
    with_interval = reports[0].plan.resamples > 0
    heading = ["run", "clips"]
    for kind, metric in columns:
        heading.append(f"{metric_name(metric)} {kind}")
        heading += [interval_name(reports[0])] * with_interval
    cells = [heading]
    for report in reports:
        row = [report.title, str(len(report.pooled[report.kinds[0]].table.clips))]
        for kind, metric in columns:
            row.append(percent(report.value(report.total, kind, metric)))
            if with_interval:
                row.append(interval(report.pooled[kind].intervals[metric]))
        cells.append(row)
    return Table("Total of every run, in percent.", cells, (1,))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Lay out every difference to the first run with its interval and p-value."""
    several = len({c.title for c in comparisons}) > 1
    adjusted = ["p (Holm)"] if several else []
    heading = ["run", "score", "first", "value", "difference", "CI", "p", *adjusted, "test"]
    cells = [heading]
    rules = [1]
    for comparison in comparisons:
        if len(cells) > 1:
            rules.append(len(cells))
        for number, difference in enumerate(comparison.differences):
            title = comparison.title if number == 0 else ""
            cells.append([title, *_difference_cells(comparison, difference, several)])
    caption = f"Differences to '{comparisons[0].baseline}', in percentage points."
    return Table(caption, cells, tuple(rules))


def _difference_cells(comparison: Comparison, shown: Difference, adjusted: bool) -> list[str]:
    gap = shown.value - shown.baseline
    return [
        f"{metric_name(shown.metric, comparison.names)} {comparison.kind}",
        percent(shown.baseline),
        percent(shown.value),
        "-" if math.isnan(gap) else f"{100 * gap:+.2f}",
        interval((shown.low, shown.high)),
        chance(shown.p_value),
        *([chance(shown.p_adjusted)] if adjusted else []),
        shown.test,
    ]


def chance(p_value: float) -> str:
    """Return a p-value with four digits."""
    if math.isnan(p_value):
        return "-"
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    first = comparisons[0]
    tests = " ".join(difference.test for difference in first.differences)
    notes = [f"the same {first.num_clips} clips in all runs; CI: paired bootstrap; p: two-sided"]
    if "McNemar" in tests:
        notes.append("McNemar exact, a : b: clips that only the run, or only the first, gets right")
    if "permutation" in tests:
        unit = "speaker by speaker" if first.by_speaker else "clip by clip"
        notes.append(
            f"permutation: the predictions of both runs are swapped at random, {unit}, "
            f"{first.resamples} times, so p is at least 1 / {first.resamples + 1}"
        )
    return notes + list(dict.fromkeys(note for c in comparisons for note in c.notes))
