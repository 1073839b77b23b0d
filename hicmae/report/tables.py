"""Figures of reports as tables: plain text, Markdown, LaTeX; and as JSON."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.report.comparison import Comparison
from hicmae.report.scores import HIGH, KINDS, LOW, TOTAL, Report, metric_name

WORDS = ("score", "test")  # columns that do not hold figures
# What Markdown would read as a table border, emphasis or markup, and LaTeX as a command; a bracket
# at the start of a row would be an argument of the row above.
SIGNS: dict[str, Any] = {
    "text": {},
    "markdown": str.maketrans({sign: f"\\{sign}" for sign in "\\|*_`<"}),
    "latex": str.maketrans(
        {sign: f"\\{sign}" for sign in "{}$&#_%"}
        | {sign: f"${sign}$" for sign in "<>|"}
        | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
        | {"[": "{}["}
    ),
}
Cells = list[tuple[str, list[str]]]  # columns of a table: heading and cells


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
    first, method, sections = reports[0], list[str](), list[Section]()
    plan, kind = first.plan, first.kinds[0]
    if first.spread(kind, first.metrics[0]):
        method.append("mean and std: over folds, sample standard deviation (n - 1)")
    if plan.resamples:
        speakers = len(set(first.pooled[kind].speakers))
        method.append(
            f"{interval_name(first)}: percentile bootstrap of Total, {plan.resamples} resamples of "
            f"{f'speakers ({speakers})' if speakers else 'clips'} within folds, seed {plan.seed}"
        )
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
    return f"{report.plan.confidence:g}% CI"


def percent(value: float, signs: str = ".2f") -> str:
    """Return a fraction in percent with two digits, "-" where there is none."""
    return "-" if math.isnan(value) else f"{100.0 * value:{signs}}"


def interval(low: float, high: float) -> str:
    """Return an interval in percent, "-" where there is none."""
    return "-" if math.isnan(low) else f"[{percent(low)}, {percent(high)}]"


def chance(p_value: float) -> str:
    """Return a p-value with four digits."""
    if math.isnan(p_value):
        return "-"
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _table(caption: str, cells: Cells, rules: Sequence[int] = ()) -> Table:
    """Make a table of columns, the first one holding names."""
    (heading, names), *columns = cells
    frame = pd.DataFrame(dict(enumerate(column for _, column in columns)), names, dtype=object)
    frame.columns = pd.Index([name for name, _ in columns], name=heading)
    return Table(caption, frame, rules)


def main_table(report: Report) -> Table:
    """Lay out one row a fold, mean and deviation, Total with its interval, and references."""
    columns = [(kind, metric) for kind in report.kinds for metric in report.metrics]
    spreads = {column: report.spread(*column) or (math.nan, math.nan) for column in columns}
    groups = [  # with a line between them
        report.rows,
        ["mean", "std"] * bool(np.isfinite(list(spreads.values())).any()),
        [TOTAL, *[interval_name(report)] * bool(report.plan.resamples)],
        list(report.references),
    ]
    names = sum(groups, [])
    counts = {n: str(found["count"]) for s in report.scores.values() for n, found in s.items()}
    cells: Cells = [("fold", names), ("clips", [counts.get(name, "") for name in names])]
    for kind, metric in columns:
        values = map(percent, report.frame.loc[report.rows, (kind, metric)])
        spread = map(percent, spreads[kind, metric] if groups[1] else ())
        (total, *bounds), first = report.total(kind, metric)[0], metric == report.metrics[0]
        pooled = [percent(total), interval(*bounds)][: len(groups[2])]
        references = (f"{value:.2f}" if first else "" for value in report.references.values())
        column = [*values, *spread, *pooled, *references]
        cells.append((f"{metric_name(metric)} {kind}", column))
    rules = np.cumsum([len(group) for group in groups if group])[:-1].tolist()
    return _table("Scores in percent; Total: all clips pooled.", cells, rules)


def _with_intervals(scores: dict[str, np.ndarray], report: Report) -> Cells:
    """Return columns of scores and of their intervals, from (rows, 3) each."""
    cells: Cells = []
    for name, values in scores.items():
        cells.append((name, [percent(value) for value, _, _ in values]))
        if report.plan.resamples:
            cells.append((interval_name(report), [interval(*bounds) for _, *bounds in values]))
    return cells


def detail_table(report: Report) -> Table:
    """Lay out the pooled scores of every class (recall) or output, with their intervals."""
    what, metrics, cells = "Outputs", report.metrics, Cells([("output", report.names)])
    if not report.is_regression:
        confusion = np.array(report.scores[report.kinds[0]][TOTAL]["confusion"])
        counts = list(map(str, confusion.sum(1)))
        what, metrics = "Recall of the classes", ("recall",)
        cells = [("class", report.names), ("clips", counts)]
    scores = {
        f"{metric_name(m)} {kind}": report.parts(kind, m) for kind in report.kinds for m in metrics
    }
    caption = f"{what}, all folds pooled, in percent."
    return _table(caption, cells + _with_intervals(scores, report))


def summary_table(reports: Sequence[Report]) -> Table:
    """Lay out Total of every run with its interval, for the epochs that all have."""
    first, counts = reports[0], [str(len(r.pooled[r.kinds[0]].clips)) for r in reports]
    scores = {
        f"{metric_name(metric)} {kind}": np.vstack([r.total(kind, metric) for r in reports])
        for kind in first.kinds
        if all(kind in report.kinds for report in reports)
        for metric in first.metrics
    }
    cells: Cells = [("run", [report.title for report in reports]), ("clips", counts)]
    return _table("Total of every run, in percent.", cells + _with_intervals(scores, first))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Lay out every difference to the first run with its interval and p-value."""
    found = pd.concat([compared.differences for compared in comparisons])
    gaps, count = found["value"] - found["baseline"], len(comparisons[0].differences)
    columns = {
        "run": [c.title * (k == 0) for c in comparisons for k in range(count)],
        "score": [name for c in comparisons for name in c.scores()],
        "first": found["baseline"].map(percent),
        "value": found["value"].map(percent),
        "difference": [percent(gap, "+.2f") for gap in gaps],
        "CI": map(interval, found["low"], found["high"]),
        "p": found["p_value"].map(chance),
        "p (Holm)": found["p_adjusted"].map(chance),
        "test": found["test"],
    }
    if len({compared.title for compared in comparisons}) == 1:
        del columns["p (Holm)"]
    caption = f"Differences to '{comparisons[0].baseline}', in percentage points."
    cells = [(name, list(column)) for name, column in columns.items()]
    return _table(caption, cells, range(count, len(found), count))


def _comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    first = comparisons[0]
    tests = " ".join(first.differences["test"])
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


def as_text(sections: Sequence[Section], form: str = "text") -> str:
    r"""Return aligned "text" for terminals and logs, "markdown" with pipe tables, or "latex".

    LaTeX is to be read by \input; its tables need the package booktabs.
    """
    signs = SIGNS[form]

    def escape(text: str) -> str:
        return text.translate(signs)

    blocks = [r"% needs \usepackage{booktabs}"] if form == "latex" else []
    for section in sections:
        heading = escape(section.heading)
        if form != "latex":
            underline = "\n" + "=" * len(heading)
            blocks.append(f"# {heading}" if form == "markdown" else heading + underline)
        for caption, frame, rules in section.tables:
            frame = frame.map(escape).rename(index=escape, columns=escape)
            sides = ["left", *("left" if name in WORDS else "right" for name in frame)]
            if form == "latex":
                text = frame.style.to_latex(
                    hrules=True,
                    position="t",
                    position_float="centering",
                    caption=f"{heading}: {escape(caption)}",
                    column_format="".join(side[0] for side in sides),
                )
            else:
                style: dict[str, Any] = {"tablefmt": "pipe" if form == "markdown" else "simple"}
                frame = frame.rename_axis(index=frame.columns.name)
                text = frame.to_markdown(disable_numparse=True, colalign=sides, **style)
                blocks.append(escape(caption))
            lines = [line.rstrip() for line in text.splitlines()]
            rule = lines.index(r"\midrule") if form == "latex" else 1
            for row in () if form == "markdown" else sorted(rules, reverse=True):
                lines.insert(rule + 1 + row, lines[rule])
            blocks.append("\n".join(lines))
        bullet = {"text": "note: ", "markdown": "- ", "latex": "% "}[form]
        notes = section.notes if form == "latex" else map(escape, section.notes)
        blocks.append("\n".join(bullet + note for note in notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def as_json(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> str:
    """Return everything, scores as fractions; of one run without the list around it."""
    runs = []
    for report in reports:
        plan = report.plan
        *folds, total = (
            {"name": name} | {kind: report.scores.get(kind, {}).get(name) for kind in KINDS}
            for name in (*report.rows, TOTAL)
        )
        spreads = {k: {m: report.spread(k, m) for m in report.metrics} for k in report.kinds}
        bounds = {k: report.frame[k].loc[[LOW, HIGH]].to_dict("list") for k in report.kinds}
        bootstrap = {"resamples": plan.resamples, "confidence": plan.confidence / 100}
        runs.append(
            {
                "folder": str(report.folder),
                "title": report.title,
                "names": report.names,
                "folds": folds,
                "total": total,
                "mean_and_std_over_folds": spreads,
                "intervals": bounds if plan.resamples else dict.fromkeys(report.kinds, {}),
                "bootstrap": bootstrap | {"seed": plan.seed, "speakers": plan.draws_speakers},
                "references_percent": report.references,
                "notes": report.notes,
            }
        )
    compared = [
        c._asdict() | {"differences": c.differences.to_dict("records")} for c in comparisons
    ]
    content = runs[0] if len(runs) == 1 else {"runs": runs, "comparisons": compared}
    # JSON has no nan.
    plain = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2) + "\n"
