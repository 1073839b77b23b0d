"""Figures of reports as tables: plain text, Markdown, LaTeX; and as JSON."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.report.comparison import Comparison
from hicmae.report.scores import KINDS, TOTAL, Report

METRIC_NAMES = {"weighted_f1": "weighted F1", "macro_f1": "macro F1", "micro_f1": "micro F1"}
WORDS = ("score", "test")  # columns that do not hold figures
# What Markdown would read as a table border, emphasis or markup, and LaTeX as a command; a bracket
# at the start of a row would be an argument of the row above.
_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_`<"})
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "{}$&#_%"}
    | {sign: f"${sign}$" for sign in "<>|"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"[": "{}["}
)


class Table(NamedTuple):
    """Cells of text."""

    caption: str
    frame: pd.DataFrame  # the index holds names, and `columns.name` says of what
    rules: Sequence[int] = ()  # rows with a line above


class Section(NamedTuple):
    """A heading, its tables, remarks below them, and what they describe, for pictures of it."""

    heading: str
    tables: list[Table]
    notes: list[str]
    report: Report | None = None
    comparisons: Sequence[Comparison] = ()


def document(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> list[Section]:
    """Lay out everything: the comparison first where there is one, then report by report.

    The notes say how intervals, deviations and tests were computed.
    """
    first, method = reports[0], []
    if first.spread(first.kinds[0], first.metrics[0]):
        method.append("mean and std: over folds, sample standard deviation (n - 1)")
    plan, unit = first.plan, "clips"
    if plan.speakers is not None:
        clips = first.pooled[first.kinds[0]].table.clips
        unit = f"speakers ({len({plan.speakers[clip] for clip in clips})})"
    if plan.resamples:
        method.append(
            f"{interval_name(first)}: percentile bootstrap of Total, {plan.resamples} resamples "
            f"of {unit} within folds, seed {plan.seed}"
        )
    sections = []
    if len(reports) > 1:
        sections.append(Section("Runs side by side", [summary_table(reports)], method))
        method = []
    if comparisons:
        tables, notes = [comparison_table(comparisons)], _comparison_notes(comparisons)
        sections.append(Section("Differences", tables, notes, None, comparisons))
    for report in reports:
        tables = [main_table(report), detail_table(report)]
        sections.append(Section(report.title, tables, [*report.notes, *method], report))
    return sections


def interval_name(report: Report) -> str:
    """Return e.g. "95% CI"."""
    return f"{100 * report.plan.confidence:g}% CI"


def metric_name(metric: str, names: Sequence[str] = ()) -> str:
    """Return how a metric is written, e.g. "UAR" or, for "ccc 0", "CCC valence"."""
    base, _, number = metric.partition(" ")
    shown = METRIC_NAMES.get(base, base.upper())
    return f"{shown} {names[int(number)]}" if number else shown


def percent(value: float | None, signs: str = ".2f") -> str:
    """Return a fraction in percent with two digits, "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100.0 * value:{signs}}"


def interval(bounds: tuple[float, float]) -> str:
    """Return an interval in percent, "-" where there is none."""
    return "-" if math.isnan(bounds[0]) else f"[{percent(bounds[0])}, {percent(bounds[1])}]"


def chance(p_value: float) -> str:
    """Return a p-value with four digits."""
    if math.isnan(p_value):
        return "-"
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _table(caption: str, cells: Sequence[Sequence[str]], rules: Sequence[int] = ()) -> Table:
    """Make a table of cells, heading first, the first column holding names."""
    heading, *rows = cells
    frame = pd.DataFrame(rows, columns=heading, dtype=object).set_index(heading[0])
    return Table(caption, frame.rename_axis(index=None, columns=heading[0]), rules)


def main_table(report: Report) -> Table:
    """Lay out one row a fold, mean and deviation, Total with its interval, and references."""
    columns = [(kind, metric) for kind in report.kinds for metric in report.metrics]
    groups: list[list[list[str]]] = [[], [], [], []]  # with a line between them
    for name in (*report.rows, TOTAL):
        count = next(s[name]["count"] for s in report.scores.values() if name in s)
        shown = [percent(report.value(name, *column)) for column in columns]
        groups[2 if name == TOTAL else 0].append([name, str(count), *shown])
    spreads = [report.spread(*column) for column in columns]
    if any(spreads):
        for k, name in enumerate(("mean", "std")):
            shown = [percent(pair[k] if pair else None) for pair in spreads]
            groups[1].append([name, "", *shown])
    if report.plan.resamples:
        bounds = (report.pooled[kind].intervals[metric] for kind, metric in columns)
        groups[2].append([interval_name(report), "", *map(interval, bounds)])
    for name, value in report.references.items():
        shown = [f"{value:.2f}" if metric == report.metrics[0] else "" for _, metric in columns]
        groups[3].append([name, "", *shown])
    heading = ["fold", "clips", *(f"{metric_name(m)} {kind}" for kind, m in columns)]
    rules = np.cumsum([len(group) for group in groups if group])[:-1].tolist()
    return _table("Scores in percent; Total: all clips pooled.", [heading, *sum(groups, [])], rules)


def detail_table(report: Report) -> Table:
    """Lay out the pooled scores of every class (recall) or output, with their intervals."""
    columns = [["output" if report.is_regression else "class", *report.names]]
    if not report.is_regression:
        confusion = report.scores[report.kinds[0]][TOTAL]["confusion"]
        columns.append(["clips", *(str(sum(row)) for row in confusion)])
    for kind in report.kinds:
        bounds = report.pooled[kind].intervals
        for metric in report.metrics if report.is_regression else ("recall",):
            found = report.scores[kind][TOTAL][metric]
            values = found["per_output"] if report.is_regression else found
            name = metric_name(metric) if report.is_regression else metric
            columns.append([f"{name} {kind}", *map(percent, values)])
            if bounds:
                pairs = [interval(bounds[f"{metric} {k}"]) for k in range(len(report.names))]
                columns.append([interval_name(report), *pairs])
    what = "Outputs" if report.is_regression else "Recall of the classes"
    return _table(f"{what}, all folds pooled, in percent.", list(zip(*columns, strict=True)))


def summary_table(reports: Sequence[Report]) -> Table:
    """Lay out Total of every run with its interval, for the epochs that all have."""
    first = reports[0]
    columns = [["run", *(report.title for report in reports)], ["clips"]]
    columns[1] += [str(len(report.pooled[report.kinds[0]].table.clips)) for report in reports]
    for kind in [kind for kind in first.kinds if all(kind in r.kinds for r in reports)]:
        for metric in first.metrics:
            values = [percent(report.value(TOTAL, kind, metric)) for report in reports]
            columns.append([f"{metric_name(metric)} {kind}", *values])
            if first.plan.resamples:
                pairs = [interval(report.pooled[kind].intervals[metric]) for report in reports]
                columns.append([interval_name(first), *pairs])
    return _table("Total of every run, in percent.", list(zip(*columns, strict=True)))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Lay out every difference to the first run with its interval and p-value."""
    adjusted = ["p (Holm)"] * (len({c.title for c in comparisons}) > 1)
    rows = [["run", "score", "first", "value", "difference", "CI", "p", *adjusted, "test"]]
    rules = []
    for compared in comparisons:
        rules.append(len(rows) - 1)
        for number, shown in enumerate(compared.differences):
            rows.append(
                [
                    "" if number else compared.title,
                    f"{metric_name(shown.metric, compared.names)} {compared.kind}",
                    percent(shown.baseline),
                    percent(shown.value),
                    percent(shown.value - shown.baseline, "+.2f"),
                    interval((shown.low, shown.high)),
                    *map(chance, (shown.p_value, shown.p_adjusted)[: 1 + len(adjusted)]),
                    shown.test,
                ]
            )
    caption = f"Differences to '{comparisons[0].baseline}', in percentage points."
    return _table(caption, rows, rules[1:])


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


def as_text(sections: Sequence[Section], markdown: bool = False) -> str:
    """Return plain aligned text, for terminals and log files, or Markdown with pipe tables."""
    style, bullet, signs = ("pipe", "- ", _MARKDOWN) if markdown else ("simple", "note: ", {})
    blocks = []
    for section in sections:
        heading = section.heading.translate(signs)
        blocks.append(f"# {heading}" if markdown else f"{heading}\n{'=' * len(heading)}")
        for table in [_escaped(table, signs) for table in section.tables]:
            sides = ["left" if name in WORDS else "right" for name in table.frame]
            frame = table.frame.rename_axis(index=table.frame.columns.name)
            options: dict[str, Any] = {"disable_numparse": True, "colalign": ("left", *sides)}
            lines = frame.to_markdown(tablefmt=style, **options).splitlines()
            rules = () if markdown else table.rules
            blocks += [table.caption, _ruled(lines, 2, rules, lines[1])]
        if section.notes:
            blocks.append("\n".join(bullet + note.translate(signs) for note in section.notes))
    return "\n\n".join(blocks) + "\n"


def _ruled(lines: list[str], start: int, rules: Sequence[int], rule: str) -> str:
    """Insert a rule above some rows; the first row is the line `start`."""
    for row in sorted(rules, reverse=True):
        lines.insert(start + row, rule)
    return "\n".join(line.rstrip() for line in lines)


def _escaped(table: Table, signs: dict[int, str]) -> Table:
    def escape(text: str) -> str:
        return text.translate(signs)

    frame = table.frame.map(escape).rename(index=escape, columns=escape)
    return table._replace(caption=escape(table.caption), frame=frame)


def as_latex(sections: Sequence[Section]) -> str:
    r"""Return LaTeX tables, to be read by \input; they need the package booktabs."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        for table in section.tables:
            shown = _escaped(table, _LATEX)
            text = shown.frame.style.to_latex(
                hrules=True,
                position="t",
                position_float="centering",
                caption=f"{section.heading.translate(_LATEX)}: {shown.caption}",
                column_format="l" + "".join("l" if name in WORDS else "r" for name in table.frame),
            )
            lines = text.splitlines()
            blocks.append(_ruled(lines, lines.index(r"\midrule") + 1, table.rules, r"\midrule"))
        blocks.append("\n".join(f"% {note}" for note in section.notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def as_data(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Return everything for JSON, scores as fractions; of one run without the list around it."""
    runs = []
    for report in reports:
        *folds, total = (
            {"name": name} | {kind: report.scores.get(kind, {}).get(name) for kind in KINDS}
            for name in (*report.rows, TOTAL)
        )
        spreads = {
            kind: {metric: report.spread(kind, metric) for metric in report.metrics}
            for kind in report.kinds
        }
        runs.append(
            {
                "folder": str(report.folder),
                "title": report.title,
                "names": report.names,
                "folds": folds,
                "total": total,
                "mean_and_std_over_folds": spreads,
                "intervals": {kind: pooled.intervals for kind, pooled in report.pooled.items()},
                "bootstrap": report.plan._asdict() | {"speakers": report.plan.speakers is not None},
                "references_percent": report.references,
                "notes": report.notes,
            }
        )
    compared = [
        c._asdict() | {"differences": [d._asdict() for d in c.differences]} for c in comparisons
    ]
    return _plain(runs[0] if len(runs) == 1 else {"runs": runs, "comparisons": compared})


def _plain(value: Any) -> Any:
    """Replace nan, which JSON lacks, by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
