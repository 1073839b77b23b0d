"""Read annotation files as people write them; errors name file and line."""

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path


def read_text(path: str) -> str:
    """Read a text of UTF-8, with a BOM or without; bytes that are not UTF-8 survive."""
    data = Path(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}:1: expected UTF-8, got UTF-16; save the file as UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")


def read_table(path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, values by column) of a comma-separated table with a header.

    ValueError where one of `columns` is missing, or a row is not as long as its header.
    """
    rows: list[tuple[str, list[str]]] = []
    reader, end = csv.reader(io.StringIO(read_text(path), newline=""), strict=True), 0
    try:
        for row in reader:
            rows.append((f"{path}:{end + 1}", [value.strip() for value in row]))
            end = reader.line_num  # a quoted value may hold several lines
    except csv.Error as error:
        raise ValueError(f"{path}:{end + 1}: expected a table with commas, got: {error}") from None
    header = rows.pop(0)[1] if rows else []
    if missing := [name for name in columns if name not in header]:
        text = f"expected the columns {', '.join(columns)}, got '{', '.join(header)[:200]}'"
        raise ValueError(f"{path}:1: {text}; missing: {', '.join(missing)}")
    for where, fields in rows:
        if any(fields):
            if len(fields) < len(header) or any(fields[len(header) :]):
                text = f"{where}: expected {len(header)} fields as in the header, got {len(fields)}"
                raise ValueError(f"{text}: '{','.join(fields)[:200]}'; quote what holds a comma")
            yield where, dict(zip(header, fields, strict=False))  # blank fields may follow


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yield (file:line, text) of the lines that are not blank."""
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1):
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
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise ValueError(f"{where}: expected a finite number, got '{text[:100]}'")
