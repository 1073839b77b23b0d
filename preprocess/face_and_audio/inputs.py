"""Which clips a tool works on: from a folder, a list or one file to jobs, and their shares."""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from preprocess.lists import shards

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .flv .mpg .mpeg .wmv .3gp .ts .mts".split()
)
AUDIO_SUFFIXES = frozenset(".wav .m4a .aac .mp3 .flac .ogg .opus .wma".split())
LIST_SUFFIXES = frozenset((".csv", ".txt", ".list"))


class ClipError(RuntimeError):
    """One clip cannot be done; the message is one line."""


class Job(NamedTuple):
    """One clip: its name below the input folder, the file to read, the file or folder to make."""

    name: str
    source: str
    output: str


class AnyJob(Protocol):
    """What the ledger knows of a `Job` or of a tool's own kind of job."""

    @property
    def name(self) -> str: ...

    @property
    def output(self) -> str: ...


class Outcome(NamedTuple):
    """What became of a job. `details` are more columns of the summary; failed ones have none."""

    job: AnyJob
    reason: str  # empty when done
    seconds: float
    details: Mapping[str, object]
    stops: bool = False  # no use in going on: the disk is full


def parse_shard(text: str) -> tuple[int, int]:
    """Read `3/8` as (3, 8)."""
    shard = shards.parse_shard(text)
    return shard.index, shard.count


def find_jobs(
    source: str,
    output: str,
    suffixes: Iterable[str],
    output_suffix: str,
    data_root: str = "",
    shard: tuple[int, int] = (1, 1),
) -> tuple[list[Job], list[Outcome]]:
    """Return the jobs of this shard, and what is wrong with the input itself.

    Args:
        source: folder, list or file, as --input.
        output: folder.
        suffixes: kinds of files to take from a folder.
        output_suffix: what replaces a file's suffix in the name of what is made of it.
        data_root: folder that relative names in a list start from.
        shard: part and number of parts.
    """
    problems: list[Outcome] = []
    if os.path.isdir(source):
        root, files = source, sorted(_walk(source, frozenset(suffixes), output, problems))
    elif not os.path.isfile(source):
        raise FileNotFoundError(f"--input '{source}' does not exist")
    elif Path(source).suffix.lower() in LIST_SUFFIXES:
        files = list(dict.fromkeys(_read_names(source, data_root)))
        folders = [os.path.dirname(os.path.abspath(file)) for file in files]
        inside = data_root and all(_is_inside(folder, data_root) for folder in folders)
        root = data_root if inside else os.path.commonpath(folders)
    else:
        root, files = os.path.dirname(source) or ".", [source]
    if not files and not problems:
        kinds = " ".join(sorted(suffixes))
        raise FileNotFoundError(f"--input '{source}' holds no file of these kinds: {kinds}")
    by_output: dict[str, list[Job]] = {}
    for file in files:
        name = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
        made = os.path.join(output, os.path.splitext(name)[0] + output_suffix)
        by_output.setdefault(made, []).append(Job(name, file, made))
    part, parts = shard
    jobs = []
    for made, rivals in by_output.items():
        if zlib.crc32(os.fsencode(os.path.relpath(made, output))) % parts == part - 1:
            jobs += _one_of(rivals, problems)
    return jobs, problems


def _walk(
    folder: str, suffixes: frozenset[str], output: str, problems: list[Outcome]
) -> Iterator[str]:
    """Yield the files of a folder and its subfolders, following links but never in circles."""

    def report(error: OSError) -> None:
        job = Job(str(error.filename), str(error.filename), "")
        problems.append(Outcome(job, f"folder cannot be read: {error.strerror}", 0.0, {}))

    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True, onerror=report):
        status = os.stat(path)
        is_output = path != folder and os.path.abspath(path) == os.path.abspath(output)
        if (status.st_dev, status.st_ino) in seen or is_output:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield os.path.join(path, name)


def _read_names(path: str, data_root: str) -> Iterator[str]:
    """Yield the files named in a list: a whole line where that is a file, else its first field."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            for fields in csv.reader(file, delimiter=" ", strict=True):
                if fields:
                    whole = os.path.join(data_root, " ".join(fields))
                    yield whole if os.path.isfile(whole) else os.path.join(data_root, fields[0])
        except csv.Error as error:
            raise ValueError(f"list '{path}' cannot be read: {error}") from None


def _is_inside(path: str, folder: str) -> bool:
    folder = os.path.abspath(folder)
    return os.path.commonpath([os.path.abspath(path), folder]) == folder


def _one_of(rivals: list[Job], problems: list[Outcome]) -> list[Job]:
    """Return the one job that may make a file; others that want to make the same are problems."""
    rivals = [job for job in rivals if os.path.abspath(job.source) != os.path.abspath(job.output)]
    for job in rivals[1:]:
        reason = f"'{rivals[0].name}' becomes the same '{job.output}'; keep one of the two"
        problems.append(Outcome(job, reason, 0.0, {}))
    return rivals[:1]
