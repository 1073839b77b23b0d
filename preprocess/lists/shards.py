"""Split work over a cluster's job array, and pick up the results of runs that were stopped."""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from preprocess.lists.clips import whole_file

END = "."  # last field of a stored line; a line cut off by a crash has none


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every count-th item, so no job needs to know the others."""

    index: int
    count: int

    def takes(self, position: int) -> bool:
        """Tell whether the item at a position, from 0, belongs to this part."""
        return position % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read "i/n", for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, as in 3/64, got '{text}'")
    return Shard(int(match[1]), int(match[2]))


class Record(NamedTuple):
    """What was found out about one clip.

    Attributes:
        video: mp4 file or folder of frames, as opened.
        audio: wav, as opened.
        stamp: changes when one of the files does.
        problems: kinds of problems, separated by "; ", "" for a good clip.
        detail: what exactly is wrong.
        seconds: of the wav, 0 where it cannot be read.
        frames: of the video, 0 where it cannot be read.
        sound: hash of the samples, "" where there are none.
        pictures: hash of the video file, or of the frames' files.
    """

    video: str
    audio: str
    stamp: str
    problems: str
    detail: str
    seconds: float
    frames: int
    sound: str
    pictures: str


class RecordStore:
    """Records in a folder: a file a shard, which grows under a temporary name until it is whole."""

    def __init__(self, folder: Path, shard: Shard | None) -> None:
        name = "records" if shard is None else f"records-{shard.index}-of-{shard.count}"
        self.folder = folder
        self.path = folder / f"{name}.csv"
        self.part = folder / f"{name}.part"
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, wanted: Container[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """Return what any shard found out about the wanted (video, audio) pairs."""
        paths = [*self.folder.glob("records*.csv"), *self.folder.glob("records*.part")]
        return {
            (record.video, record.audio): record
            for path in sorted(paths, key=lambda path: path.stat().st_mtime)  # the newest wins
            for record in _read(path)
            if (record.video, record.audio) in wanted
        }

    def extend(self, records: Iterable[Record]) -> Iterator[Record]:
        """Store records as they come, pass them on, and give the file its name at the end."""
        if self.part.exists():
            _write(self.part, _read(self.part))  # without a line that a crash has cut off
        # Opened per record: a lost network mount or a kill costs one line, and 1 ms of 100 a clip.
        for record in records:
            with open(
                self.part, "a", newline="", encoding="utf-8", errors="surrogateescape"
            ) as file:
                csv.writer(file, lineterminator="\n").writerow([*record, END])
            yield record
        if self.part.exists():
            stored = {(r.video, r.audio): r for path in (self.path, self.part) for r in _read(path)}
            _write(self.path, stored.values())
            os.unlink(self.part)


def _read(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            if len(row) == len(Record._fields) + 1 and row[-1] == END:
                video, audio, stamp, problems, detail, seconds, frames, sound, pictures, _ = row
                yield Record(
                    video,
                    audio,
                    stamp,
                    problems,
                    detail,
                    float(seconds),
                    int(frames),
                    sound,
                    pictures,
                )


def _write(path: Path, records: Iterable[Record]) -> None:
    rows = [[*record, END] for record in records]
    with whole_file(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
