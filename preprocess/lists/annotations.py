"""Read official annotation files and one's own labels.csv; errors name file and line."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from preprocess.lists.clips import Candidate, is_utf8

PARTS = ("train", "val", "test")


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
        raise ValueError(
            f"{path}:1: expected the columns {', '.join(columns)}, got "
            f"'{', '.join(header)[:200]}'; missing: {', '.join(missing)}"
        )
    for where, fields in rows:
        if any(fields):
            if len(fields) < len(header) or any(fields[len(header) :]):
                raise ValueError(
                    f"{where}: expected {len(header)} fields as in the header, got {len(fields)}: "
                    f"'{','.join(fields)[:200]}'; quote what holds a comma"
                )
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


# One's own videos


class Labelled(NamedTuple):
    """What labels.csv says of a video; `speaker` and `split` are None without such a column."""

    label: str | tuple[float, ...]  # a class name, or numbers
    speaker: str | None = None
    split: str | None = None


def read_labels(
    path: str, videos: Iterable[str], task: str
) -> tuple[dict[str, Labelled], list[str], list[Candidate]]:
    """Read labels.csv and match it with the videos.

    Returns the labelled videos by name; the names of the columns of numbers, or "label"; and the
    lines without a video.
    """
    classes = task == "classification"
    lines = list(read_table(path, ["video", "label"] if classes else ["video"]))
    columns, names = ["label"], ["label", "speaker", "split"]
    if not classes:
        header = lines[0][1] if lines else {}
        names = names[1:]
        columns = [column for column in header if column not in ("", "video", *names)]
        if not columns:
            raise ValueError(f"{path}:1: expected the column video and one for each target")
    known = _spellings(videos)
    labels: dict[str, Labelled] = {}
    unknown = []
    for where, row in lines:
        for column in names:
            expected = "train, val or test" if column == "split" else "a name"
            text = row.get(column, "train")
            if not text or (column == "split" and text not in PARTS):
                raise ValueError(f"{where}, column '{column}': expected {expected}, got {text!r}")
            if not is_utf8(text):
                raise ValueError(f"{where}, column '{column}': {text!r} is not UTF-8; save it so")
        label: str | tuple[float, ...] = row.get("label", "")
        if not classes:
            label = tuple(number(row[c], f"{where}, column '{c}'") for c in columns)
        matches = known.get(os.path.normpath(row["video"]), [])
        if len(matches) > 1 or set(matches) & labels.keys():
            problem = "several videos" if len(matches) > 1 else "a video that has a label already"
            raise ValueError(f"{where}: {row['video']!r} names {problem}, expected one of its own")
        elif matches:
            labels[matches[0]] = Labelled(label, row.get("speaker"), row.get("split"))
        else:
            unknown.append(Candidate(row["video"], reason="no such video", detail=where))
    return labels, columns, unknown


def _spellings(videos: Iterable[str]) -> dict[str, list[str]]:
    """Return what a name in labels.csv may mean: whole, without suffix, folder or both."""
    known: dict[str, list[str]] = {}
    paths = {video: PurePath(video) for video in videos}
    for spell in (str, lambda p: str(p.with_suffix("")), lambda p: p.name, lambda p: p.stem):
        meant: dict[str, list[str]] = {}
        for video, path in paths.items():
            meant.setdefault(spell(path).strip(), []).append(video)  # as tables are read
        known = meant | known  # a fuller name comes first
    return known
