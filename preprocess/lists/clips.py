"""Clips on their way into a list, and clips that are left out of it."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO


class ListedClip(NamedTuple):
    """A clip that has all it needs for one line of a list.

    `name` is what its data set calls it, unique in a list. `video` is a folder of face frames or a
    video file, `audio` a wav; both as found, absolute or from the current folder. `label` is a
    class index or a tuple of regression targets. `speaker` is None where nobody knows.
    """

    name: str
    video: str
    audio: str
    label: int | tuple[float, ...]
    speaker: str | None = None


class LeftOut(NamedTuple):
    """A clip that is in no list: its name, one of few kinds of reason, and the details."""

    clip: str
    reason: str
    detail: str = ""


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing that gets its final name only when it is complete.

    Names may hold bytes that are not UTF-8; they are written as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with open(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from colleagues
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a comma-separated table with a header, whole or not at all."""
    with whole_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_left_out(path: Path, left_out: Iterable[LeftOut]) -> None:
    """Write left_out.csv (clip, reason, detail), also when nothing was left out."""
    write_csv(path, LeftOut._fields, left_out)
