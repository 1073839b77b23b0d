"""Open every clip of lists and say what is wrong with them; write cleaned lists.

    python preprocess/check_lists.py saved/data/mafw/audio_visual/single/split0*/*.csv
    python preprocess/check_lists.py train.csv --shard 3/64       one job of an array
    python preprocess/check_lists.py train.csv                    afterwards: does what is missing

Reports clips that are missing, unreadable, silent or too short (1024 samples, no frame), that have
another rate than 16 kHz or several channels, that are twice in a list, and that are in train.csv
and in another list of its folder, by name and by content (bytes of the frames, samples of the
sound). A run that was stopped goes on; clips whose files changed are checked again. Written:

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
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from hicmae.data.clip_list import Clip, read_labelled_list, read_pretrain_list, wav_of, write_list
from preprocess.face_and_audio.batch import usable_cores  # noqa: E402
from preprocess.lists.clips import write_csv  # noqa: E402
from preprocess.lists.inspection import inspect_all  # noqa: E402
from preprocess.lists.leaks import Finding, broken, leaked, repeated  # noqa: E402
from preprocess.lists.shards import Record, parse_shard  # noqa: E402
from preprocess.lists.tables import ascii_table  # noqa: E402

LOGGER = logging.getLogger("check_lists")
EVALUATION = {"test", "val"}  # the same clips in both is the original's habit, not a leak

Key = tuple[str, str]


class ListFile(NamedTuple):
    """A list: its clips as written in it, and the files to open."""

    path: str
    clips: list[Clip]
    files: list[Key]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", nargs="+", metavar="LIST")
    parser.add_argument("--data_root", default="", help="folder that relative names start from")
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help="check only this part")
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="processes (%(default)s)"
    )
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
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = make_parser().parse_args(arguments)
    try:
        return check(args)
    except (ValueError, OSError, RuntimeError) as error:
        LOGGER.error("error: %s", error)
        return 2


def check(args: argparse.Namespace) -> int:
    """Check the lists; return the exit code."""
    paths = [path for path in dict.fromkeys(args.lists) if not is_cleaned(path, args.cleaned)]
    if not paths:
        raise ValueError(
            f"got only lists that this tool has written ({args.cleaned}), expected others"
        )
    lists = [read_list(path, args.data_root) for path in paths]
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(one.path)) for one in lists])
    output = args.output_dir or Path(parent) / "check"
    clips = [clip for one in lists for clip in one.files]
    records = inspect_all(clips, output, args.shard, args.num_workers, args.decode)
    if args.shard is not None:
        bad = sum(bool(record.problems) for record in records.values())
        LOGGER.info("shard %s: %d of %d clips are broken", args.shard, bad, len(records))
        return int(bad > 0)
    findings = list(find(lists, records, args.across))
    write_report(output / "report.csv", lists, findings)
    write_cleaned(lists, findings, args.cleaned, parent)
    print(summary(lists, findings))
    LOGGER.info("details are in %s", output / "report.csv")
    return int(bool(findings))


def is_cleaned(path: str, cleaned: str) -> bool:
    """Tell whether an earlier run wrote this list, which *.csv of the shell gives as well."""
    return is_suffix(cleaned) and Path(path).stem.endswith(cleaned)


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
        found = [
            clip._replace(audio=None) if clip.audio == wav_of(clip.video) else clip
            for clip in read_pretrain_list(path)
        ]
    else:
        try:
            found = [*read_labelled_list(path)]
        except ValueError:  # other than one class index: numbers, or an error of this reader's
            found = [*read_labelled_list(path, "regression")]
    clips = [Clip(*clip[:3]) for clip in found]
    files = []
    for clip in clips:
        video = os.path.join(data_root, clip.video)
        audio = wav_of(video) if clip.audio is None else os.path.join(data_root, clip.audio)
        files.append((video, audio))
    return ListFile(path, clips, files)


def find(lists: list[ListFile], records: dict[Key, Record], across: bool) -> Iterator[Finding]:
    """Yield everything that is wrong with the lists."""
    for one in lists:
        yield from broken(one.path, one.files, records)
        yield from repeated(one.path, one.files, records)
    for one, other in combinations(lists, 2):
        together = os.path.dirname(os.path.abspath(one.path)) == os.path.dirname(
            os.path.abspath(other.path)
        )
        stems = {Path(one.path).stem, Path(other.path).stem}
        if not (together or across) or stems <= EVALUATION:
            continue
        train, test = (other, one) if Path(one.path).stem in EVALUATION else (one, other)
        yield from leaked(train.path, train.files, test.path, test.files, records)


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
    dropped = {(finding.list, finding.place) for finding in findings}
    for one in lists:
        kept = [clip for k, clip in enumerate(one.clips) if (one.path, k) not in dropped]
        if is_suffix(cleaned):
            stem, extension = os.path.splitext(one.path)
            path = stem + cleaned + extension
        else:
            path = os.path.join(cleaned, os.path.relpath(os.path.abspath(one.path), parent))
        if kept:
            write_list(path, kept)
            LOGGER.info("%s: %d of %d clips", path, len(kept), len(one.clips))
        else:
            LOGGER.warning("%s is not written: no clip of %s is left", path, one.path)


def summary(lists: list[ListFile], findings: list[Finding]) -> str:
    """Return the table of findings by list and kind."""
    kinds = sorted({finding.kind for finding in findings})
    counts = Counter((finding.list, finding.kind) for finding in findings)
    rows: list[list[object]] = [["list", "clips", *kinds]]
    rows += [[one.path, len(one.clips), *(counts[one.path, k] for k in kinds)] for one in lists]
    return ascii_table(rows) + ("" if findings else "\n\nnothing is wrong")


if __name__ == "__main__":
    raise SystemExit(main())
