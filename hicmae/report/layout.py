"""Reports as plain text, Markdown, LaTeX and JSON."""

import math
from collections.abc import Sequence
from typing import Any

from hicmae.report.comparison import Comparison
from hicmae.report.scores import Report
from hicmae.report.tables import Section, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
}


def as_text(sections: Sequence[Section]) -> str:
    """Return plain aligned text, for terminals and log files alike."""
    blocks = []
    for section in sections:
        blocks.append(f"{section.heading}\n{'=' * len(section.heading)}")
        blocks += [f"{table.caption}\n\n" + "\n".join(_aligned(table)) for table in section.tables]
        if section.notes:
            blocks.append("\n".join(f"note: {note}" for note in section.notes))
    return "\n\n".join(blocks) + "\n"


def _aligned(table: Table) -> list[str]:
    """Lay cells out in columns, the first and a column of words flush left."""
    widths = [max(map(len, column)) for column in zip(*table.cells, strict=True)]
    left = _words(table)
    lines = []
    for number, row in enumerate(table.cells):
        if number in table.rules:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        cells = zip(row, widths, left, strict=True)
        lines.append("  ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in cells))
    return [line.rstrip() for line in lines]


def _words(table: Table) -> list[bool]:
    """Say which columns hold words: the first, and those named after words."""
    return [k == 0 or name in ("score", "test") for k, name in enumerate(table.cells[0])]


def as_markdown(sections: Sequence[Section]) -> str:
    """Return Markdown with pipe tables."""
    blocks = []
    for section in sections:
        blocks.append(f"# {_markdown(section.heading)}")
        for table in section.tables:
            blocks += [_markdown(table.caption), _pipes(table)]
        if section.notes:
            blocks.append("\n".join(f"- {_markdown(note)}" for note in section.notes))
    return "\n\n".join(blocks) + "\n"


def _pipes(table: Table) -> str:
    rows = [f"| {' | '.join(map(_markdown, row))} |" for row in table.cells]
    marks = ["---" if to_left else "---:" for to_left in _words(table)]
    return "\n".join([rows[0], f"| {' | '.join(marks)} |", *rows[1:]])


def _markdown(text: str) -> str:
    """Escape what Markdown would read as a table border, emphasis or markup."""
    return "".join(f"\\{sign}" if sign in "\\|*_`<" else sign for sign in text)


def as_latex(sections: Sequence[Section]) -> str:
    r"""Return LaTeX tables, to be read by \input; they need the package booktabs."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        for table in section.tables:
            blocks.append(_latex_table(table, f"{section.heading}: {table.caption}"))
        blocks.append("\n".join(f"% {note}" for note in section.notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _latex_table(table: Table, caption: str) -> str:
    columns = "".join("l" if to_left else "r" for to_left in _words(table))
    lines = [r"\begin{table}[t]", r"  \centering", rf"  \caption{{{latex(caption)}}}"]
    lines += [rf"  \begin{{tabular}}{{{columns}}}", r"    \toprule"]
    for number, row in enumerate(table.cells):
        if number in table.rules:
            lines.append(r"    \midrule")
        # A row that starts with a bracket would be read as the length argument of the row above.
        cells = [f"{{}}{cell}" if cell.startswith("[") else cell for cell in map(latex, row)]
        lines.append(f"    {' & '.join(cells)} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def latex(text: str) -> str:
    """Escape the characters that LaTeX reads as commands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def as_data(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Return everything for JSON, scores as fractions; of one run without the list around it."""
    runs = [_report_data(report) for report in reports]
    if len(runs) == 1:
        return runs[0]
    compared = [
        c._asdict() | {"differences": [d._asdict() for d in c.differences]} for c in comparisons
    ]
    return _plain({"runs": runs, "comparisons": compared})


def _report_data(report: Report) -> dict[str, Any]:
    spreads = {
        kind: {metric: report.spread(kind, metric) for metric in report.metrics}
        for kind in report.kinds
    }
    plan = report.plan._asdict() | {"speakers": report.plan.speakers is not None}
    return _plain(
        {
            "folder": str(report.folder),
            "title": report.title,
            "names": report.names,
            "folds": [row._asdict() for row in report.rows],
            "total": report.total._asdict(),
            "mean_and_std_over_folds": spreads,
            "intervals": {kind: pooled.intervals for kind, pooled in report.pooled.items()},
            "bootstrap": plan,
            "references_percent": report.references,
            "notes": report.notes,
        }
    )


def _plain(value: Any) -> Any:
    """Replace nan, which JSON lacks, by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
