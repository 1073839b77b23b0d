"""Read official annotation files; what does not fit is an error with file and line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence


def read_columns(path: str, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (file:line, values of `columns`) of a comma-separated table with a header.

    Raises:
        ValueError: a column is missing, or a row is shorter than its header.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{path}:1: expected the columns {', '.join(columns)}, got "
                f"'{', '.join(header)[:200]}'; missing: {', '.join(missing)}"
            )
        places = [header.index(name) for name in columns]
        for row in reader:
            if not any(row):
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) < len(header):
                raise ValueError(
                    f"{where}: expected {len(header)} fields as in the header, got {len(row)}: "
                    f"'{','.join(row)[:200]}'"
                )
            yield where, [row[place].strip() for place in places]


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yield (file:line, text) of the lines that are not blank."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line.strip()


def matched(pattern: str, text: str, where: str, expected: str) -> re.Match[str]:
    """Match a whole text, or say what was expected there."""
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{where}: expected {expected}, got '{text[:200]}'")
    return match


def class_index(name: str, classes: Sequence[str], where: str) -> int:
    """Return the index of a class name, whatever its case."""
    lowered = [known.lower() for known in classes]
    if name.lower() not in lowered:
        raise ValueError(f"{where}: expected one of {', '.join(classes)}, got '{name[:100]}'")
    return lowered.index(name.lower())


def number(text: str, where: str) -> float:
    """Return a finite number."""
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text) is None:
        raise ValueError(f"{where}: expected a number, got '{text[:100]}'")
    return float(text)
