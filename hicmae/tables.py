"""Figures as plain text and as Markdown."""

from collections.abc import Sequence
from typing import Any

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def readable(number: float) -> str:
    """Shorten a number: 1234567 -> 1.23 M."""
    for size, letter in UNITS:
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns, the first one to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))


def describe(figures: dict[str, Any]) -> str:
    """Show every plain figure on a line of its own."""
    plain = {n: v for n, v in figures.items() if isinstance(v, (int, float, str)) and v != ""}
    return aligned([(n, f"{v:.4g}" if isinstance(v, float) else str(v)) for n, v in plain.items()])
