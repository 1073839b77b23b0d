"""Read official annotation files; what does not fit is an error with file and line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


def read_table(path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, values by column) of a comma-separated table with a header.

    ValueError where one of `columns` is missing, or a row is shorter than its header.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{path}:1: expected the columns {', '.join(columns)}, got "
                f"'{', '.join(header)[:200]}'; missing: {', '.join(missing)}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            values = [value for value in row.values() if value is not None]
            if not any(values):
                continue
            if len(values) < len(header):
                raise ValueError(
                    f"{where}: expected {len(header)} fields as in the header, got {len(values)}: "
                    f"'{','.join(values)[:200]}'"
                )
            yield where, {name: row[name].strip() for name in header}


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
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got '{text[:100]}'")
    return value


class Utterance(NamedTuple):
    """What one actor of IEMOCAP says, from `start` to `end` in seconds of the dialogue.

    `marked` tells the actor with the face markers, after whom the dialogue is named.
    """

    name: str
    start: float
    end: float
    emotion: str
    speaker: str  # "Ses01F" and so on
    marked: bool


def read_utterances(path: str) -> Iterator[Utterance]:
    """Yield the utterances of one of IEMOCAP's label files, without headings and single votes."""
    pattern = r"\[([\d.]+) - ([\d.]+)\]\s+(Ses0([1-5])([FM])_\w+_([FM])\w+)\s+(\w+)\s+\[.*\]"
    form = "'[<start> - <end>] <utterance> <emotion> [<v>, <a>, <d>]'"
    for where, line in read_lines(path):
        if line.startswith("["):
            match = matched(pattern, line, where, form)
            start, end, name, session, marked, gender, emotion = match.groups()
            times = float(start), float(end)
            yield Utterance(name, *times, emotion, f"Ses0{session}{gender}", marked == gender)
