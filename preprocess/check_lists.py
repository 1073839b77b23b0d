"""Open every clip of lists and say what is wrong with them; write cleaned lists.

    python preprocess/check_lists.py saved/data/mafw/audio_visual/single/split0*/*.csv
    python preprocess/check_lists.py train.csv --shard 3/64       one job of an array
    python preprocess/check_lists.py train.csv                    afterwards: does what is missing

Reports clips that are missing, unreadable, silent or too short (1024 samples, no frame), that have
another rate than 16 kHz or several channels, that are twice in a list, and that are in train.csv
and in another list of its folder, by name and by content (bytes of the frames, samples of the
sound). A folder stands for the lists in it. A run that was stopped goes on; clips whose files
changed are checked again. Written:

    x.cleaned.csv beside every x.csv (--cleaned): the list without these clips; of clips that occur
                                     twice the first stays, of those in training and test the tested
    check/report.csv (--output_dir)  list, number of the clip in it, video, audio, kind, detail
    check/records*.csv               what is known of each clip, and the only file of a --shard run

Exit code: 0 nothing is wrong, 1 something is, 2 the lists cannot be checked.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import pandas as pd

from hicmae.data.clip_list import Clip, read_labelled_list, read_pretrain_list, wav_of, write_list
from preprocess.command_line import WHOLE, add_num_workers, add_shard, exit_code, make_parser
from preprocess.lists.clips import table_text, write_csv
from preprocess.lists.inspection import Key, Record, inspect_all

logger = logging.getLogger("check_lists")

EVALUATION = {"test", "val"}  # the same clips in both is the original's habit, not a leak

Records = dict[Key, Record]


class ListFile(NamedTuple):
    """A list: its clips as written in it, and the files to open."""

    path: str
    clips: list[Clip]
    files: list[Key]

    @property
    def stem(self) -> str:
        """The name of the list, such as "train"."""
        return Path(self.path).stem

    @property
    def folder(self) -> str:
        """The folder of the list."""
        return os.path.dirname(os.path.abspath(self.path))


class Finding(NamedTuple):
    """Something wrong with one line of a list; `place` counts its clips from 0."""

    list: str
    place: int
    kind: str
    detail: str


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("lists", nargs="+", metavar="LIST", help="lists, or folders of lists")
    parser.add_argument("--data_root", default="", help="folder that relative names start from")
    parser.add_argument(
        "--cleaned",
        default=".cleaned",
        metavar="SUFFIX|DIR",
        help="a suffix (with its dot) or a folder for the cleaned lists (%(default)s)",
    )
    parser.add_argument("--output_dir", type=Path, help="(default: check/ beside the lists)")
    parser.add_argument(
        "--decode",
        choices=("ends", "all"),
        default="ends",
        help="decode the first, middle and last frame, or all of them (%(default)s)",
    )
    parser.add_argument(
        "--across",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compare all lists with each other, not only those in one folder",
    )
    add_shard(parser)
    add_num_workers(parser)
    args = parser.parse_args(arguments)
    return exit_code(lambda: check(args))


def check(args: argparse.Namespace) -> int:
    """Check the lists; return the exit code."""
    lists = [read_list(path, args.data_root) for path in find_lists(args.lists, args.cleaned)]
    parent = os.path.commonpath([one.folder for one in lists])
    output = args.output_dir or Path(parent) / "check"
    clips = [clip for one in lists for clip in one.files]
    records = inspect_all(clips, output, args.shard, args.num_workers, args.decode)
    if args.shard != WHOLE:
        bad = sum(bool(record.problems) for record in records.values())
        logger.info("shard %s: %d of %d clips are broken", args.shard, bad, len(records))
        return int(bad > 0)
    findings = list(find(lists, records, args.across))
    write_report(output / "report.csv", lists, findings)
    write_cleaned(lists, findings, args.cleaned, parent)
    print(summary(lists, findings))
    logger.info("details are in %s", output / "report.csv")
    return int(bool(findings))


def find_lists(given: list[str], cleaned: str) -> list[str]:
    """Return the lists, without those that an earlier run has written and *.csv gives as well."""
    paths: dict[str, None] = {}
    for path in given:
        inside = sorted(map(str, Path(path).glob("*.csv"))) if os.path.isdir(path) else [path]
        paths |= dict.fromkeys(inside)
    found = [p for p in paths if not (is_suffix(cleaned) and Path(p).stem.endswith(cleaned))]
    if not found:
        raise ValueError(
            f"got only lists that this tool has written ({cleaned}), or none; expected others"
        )
    return found


def is_suffix(cleaned: str) -> bool:
    """Tell a suffix from a folder."""
    return cleaned.startswith(".") and os.sep not in cleaned


def read_list(path: str, data_root: str) -> ListFile:
    """Read a list of either stage; which one it is shows in its first line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"list '{path}' does not exist")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = next((row for row in csv.reader(file, delimiter=" ") if row), [])
    if len(first) == 2:
        clips = [
            Clip(video, None if audio == wav_of(video) else audio, label)
            for video, audio, label, *_ in read_pretrain_list(path)
        ]
    else:
        try:
            found = read_labelled_list(path)
        except ValueError:  # other than one class index: numbers, or an error of this reader's
            found = read_labelled_list(path, "regression")
        clips = [Clip(*clip[:3]) for clip in found]
    files = []
    for clip in clips:
        video = os.path.join(data_root, clip.video)
        audio = wav_of(video) if clip.audio is None else os.path.join(data_root, clip.audio)
        files.append((video, audio))
    return ListFile(path, clips, files)


def find(lists: list[ListFile], records: Records, across: bool) -> Iterator[Finding]:
    """Yield everything that is wrong with the lists."""
    for one in lists:
        for place, clip in enumerate(one.files):
            if records[clip].problems:
                yield Finding(one.path, place, records[clip].problems, records[clip].detail)
        yield from repeated(one, records)
    for one, other in combinations(lists, 2):
        if (across or one.folder == other.folder) and not {one.stem, other.stem} <= EVALUATION:
            train, test = (other, one) if one.stem in EVALUATION else (one, other)
            yield from leaked(train, test, records)


def repeated(one: ListFile, records: Records) -> Iterator[Finding]:
    """Yield the later ones of clips that share a file or its content within a list."""
    first: dict[tuple[str, str], Key] = {}
    for place, clip in enumerate(one.files):
        found = traits(records[clip])
        if same := [trait for trait in found if trait in first]:
            yield Finding(one.path, place, "in the list twice", shared(same, first))
        for trait in found:
            first.setdefault(trait, clip)


def leaked(train: ListFile, test: ListFile, records: Records) -> Iterator[Finding]:
    """Yield the clips of the training list that share a file or its content with the test list."""
    tested = {trait: clip for clip in test.files for trait in traits(records[clip])}
    for place, clip in enumerate(train.files):
        if same := [trait for trait in traits(records[clip]) if trait in tested]:
            detail = f"{test.path}: {shared(same, tested)}"
            yield Finding(train.path, place, "in training and test", detail)


def traits(record: Record) -> list[tuple[str, str]]:
    """Return what no two clips should share; contents only of good clips, as silence is alike."""
    files = [("video file", record.video), ("audio file", record.audio)]
    found = [(kind, os.path.abspath(path)) for kind, path in files]
    if not record.problems:
        found += [("frames", record.pictures), ("sound", record.sound)]
    return found


def shared(same: list[tuple[str, str]], owners: dict[tuple[str, str], Key]) -> str:
    """Say what a clip shares, and with which."""
    video, audio = owners[same[0]]
    return f"same {' and '.join(kind for kind, _ in same)} as '{video}', '{audio}'"


def write_report(path: Path, lists: list[ListFile], findings: list[Finding]) -> None:
    """Write report.csv, also when nothing was found."""
    files = {one.path: one.files for one in lists}
    rows = (
        [f.list, f.place + 1, *files[f.list][f.place], f.kind, f.detail]
        for f in sorted(findings, key=lambda finding: finding[:2])
    )
    write_csv(path, ["list", "clip", "video", "audio", "kind", "detail"], rows)


def write_cleaned(
    lists: list[ListFile], findings: list[Finding], cleaned: str, parent: str
) -> None:
    """Write every list without the clips of its findings, to a suffix or below a folder."""
    dropped = {finding[:2] for finding in findings}
    for one in lists:
        kept = [clip for k, clip in enumerate(one.clips) if (one.path, k) not in dropped]
        path = os.path.join(cleaned, os.path.relpath(os.path.abspath(one.path), parent))
        if is_suffix(cleaned):
            path = cleaned.join(os.path.splitext(one.path))
        if kept:
            write_list(path, kept)
            logger.info("%s: %d of %d clips", path, len(kept), len(one.clips))
        else:
            logger.warning("%s is not written: no clip of %s is left", path, one.path)


def summary(lists: list[ListFile], findings: list[Finding]) -> str:
    """Return the table of findings by list and kind."""
    table = pd.DataFrame(
        {"clips": [len(one.clips) for one in lists]},
        pd.Index([one.path for one in lists], dtype=object),
    )
    found = pd.DataFrame(findings, columns=Finding._fields, dtype=object)
    counts = pd.crosstab(found["list"], found["kind"])
    table = table.join(counts).fillna(0).astype(int)
    return table_text(table) + ("" if findings else "\n\nnothing is wrong")


if __name__ == "__main__":
    sys.exit(main())
