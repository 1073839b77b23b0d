"""Open every clip of lists and say what is wrong with them; write cleaned lists.

    python preprocess/check_lists.py saved/data/mafw/audio_visual/single/split0*/*.csv
    python preprocess/check_lists.py train.csv --shard 3/64       one job of an array
    python preprocess/check_lists.py train.csv                    afterwards: does what is missing

Reports clips that are missing, unreadable, silent or too short (1024 samples, no frame), that have
another rate than 16 kHz or several channels, that are twice in a list, and that are in train.csv
and in another list of its folder, by name and by content (bytes of the frames, samples of the
sound). Warns where film and wav differ by more than 0.1 s in length or beginning; of face frames
extract_face.csv above them tells, and without it nobody knows. Warns where frames are read in
another order (2.jpg before 10.jpg) than that of their letters. What a list is for shows in most of
its lines; the others are reported. "-" stands for a stream that is not read. A folder stands for
the lists in it. A run that was stopped goes on; clips whose files changed are checked again.
Written:

    x.cleaned.csv beside every x.csv (--cleaned): the list without these clips; of clips that occur
                                     twice the first stays, of those in training and test the
                                     tested; clips out of step stay
    check/report.csv (--output_dir)  list, number of the clip in it, video, audio, kind, detail
    check/records*.csv               what is known of each clip, and the only file of a --shard run

Exit code: 0 nothing is wrong, 1 something is, 2 the lists cannot be checked, 3 the run was stopped
by hand.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from hicmae.config.flags import option
from hicmae.data.audio import WavFile
from hicmae.data.clip_list import write_list
from hicmae.data.film import open_video
from hicmae.data.video import MODALITIES, NOT_READ, FrameFolder, Video
from hicmae.io import UnreadableClip, check_writable, whole_file
from preprocess.command_line import WHOLE, Parts, Shard, command, flag
from preprocess.face_and_audio.batch import Job, outcomes_of
from preprocess.face_and_audio.timing import out_of_step
from preprocess.lists.any_list import Key, ListFile, find_lists, is_suffix
from preprocess.lists.clips import (
    Problem,
    count_frames,
    reading,
    table_text,
    wav_seconds,
    write_csv,
)

logger = logging.getLogger("check_lists")

OUT_OF_STEP, ORDER = WARNINGS = "out of step", "order of frames"  # such clips stay
EVALUATION = {"test", "val"}  # the same clips in both is the original's habit, not a leak
FRAMES_AT_ONCE = 64
END = "."  # last field of a stored record; a line cut off by a crash has none


class Record(NamedTuple):
    """What was found out about one clip.

    `video` (mp4 or folder of frames) and `audio` are as opened; `stamp` changes when a file does.
    `problems` are kinds of problems, separated by "; ", "" for a good clip. `seconds` and `frames`
    are 0 where they cannot be read; `sound` is a hash of the samples, `pictures` of the video file
    or the frames' files, "" where there are none. `step` says how the wav does not fit the film,
    `order` where frames are in another order than that of their names' letters.
    """

    video: str
    audio: str
    stamp: str
    problems: str
    detail: str
    seconds: float = 0.0
    frames: int = 0
    sound: str = ""
    pictures: str = ""
    step: str = ""
    order: str = ""


@dataclass(frozen=True)
class Options(Parts):
    """What to check, and how."""

    data_root: str = option("", "folder that relative names start from")
    cleaned: str = option(
        ".cleaned", "a suffix (with its dot) or a folder for the cleaned lists", metavar="NAME"
    )
    output_dir: Path | None = option(None, "(default: check/ beside the lists)")
    decode: str = option(
        "ends", "decode the first, middle and last frame, or all", choices=("ends", "all")
    )
    modality: str = option(
        "av", "open the sounds only (a) or the pictures only (v), for training", choices=MODALITIES
    )
    across: bool = option(False, "compare all lists with each other, not only those in one folder")


def check(args: argparse.Namespace) -> int:
    """Check the lists; return the exit code."""
    lists = find_lists(args.lists, args.cleaned, args.data_root, args.modality)
    parent = os.path.commonpath([one.folder for one in lists])
    output = args.output_dir or Path(parent) / "check"
    cleaned = {one.path: cleaned_path(one, args.cleaned, parent) for one in lists}
    for path in (output / "report.csv", *(cleaned.values() if args.shard == WHOLE else ())):
        check_writable(path)  # said before hours of work
    clips = [clip for one in lists for clip in one.files.values()]
    records = inspect_all(clips, output, args.shard, args.num_workers, args.decode)
    if args.shard != WHOLE:
        bad = sum(bool(record.problems) for record in records.values())
        logger.info("shard %s: %d of %d clips are broken", args.shard, bad, len(records))
        return int(bad > 0)
    compare(lists, records, args.across)
    rows = [
        [
            str(one.path),
            number,
            *one.files.get(number, (one.lines[number - 1][0], "")),
            kind,
            detail,
        ]
        for one in sorted(lists, key=lambda one: str(one.path))
        for number, kind, detail in sorted(one.findings, key=lambda finding: finding[0])
    ]
    columns = ["list", "clip", "video", "audio", "kind", "detail"]
    write_csv(output / "report.csv", columns, rows)
    for one in lists:
        write_cleaned(one, cleaned[one.path])
    counts = [Counter(kind for _, kind, _ in one.findings) for one in lists]
    import pandas as pd

    table = pd.DataFrame(
        {"list for": [one.kind for one in lists], "clips": [len(one.lines) for one in lists]}
        | {kind: [count[kind] for count in counts] for kind in sorted(set().union(*counts))},
        index=pd.Index([str(one.path) for one in lists], dtype=object),
    )
    print(table_text(table))
    if not rows:
        print("\nnothing is wrong")
    logger.info("details are in %s", output / "report.csv")
    return int(bool(rows))


# The lists


def compare(lists: list[ListFile], records: dict[Key, Record], across: bool) -> None:
    """Note everything that is wrong with the lists; of repeated clips, the later ones."""
    for one in lists:
        first: dict[tuple[str, str], Key] = {}
        for number, clip in one.files.items():
            record = records[clip]
            if record.problems:
                one.findings.append((number, record.problems, record.detail))
            if record.step:
                one.findings.append((number, OUT_OF_STEP, record.step))
            if record.order:
                one.findings.append((number, ORDER, record.order))
            if same := shared(record, first):
                one.findings.append((number, "in the list twice", same))
            for trait in traits(record):
                first.setdefault(trait, clip)
    for one, other in combinations(lists, 2):
        together = across or one.folder == other.folder
        if together and not {one.path.stem, other.path.stem} <= EVALUATION:
            train, test = (other, one) if one.path.stem in EVALUATION else (one, other)
            tested = {
                trait: clip for clip in test.files.values() for trait in traits(records[clip])
            }
            for number, clip in train.files.items():
                if same := shared(records[clip], tested):
                    detail = f"{test.path}: {same}"
                    train.findings.append((number, "in training and test", detail))


def traits(record: Record) -> list[tuple[str, str]]:
    """Return what no two clips should share; contents only of good clips, as silence is alike."""
    files = [("video file", record.video), ("audio file", record.audio)]
    found = [(kind, os.path.abspath(path)) for kind, path in files if path != NOT_READ]
    if not record.problems:
        contents = [("frames", record.pictures), ("sound", record.sound)]
        found += [(kind, digest) for kind, digest in contents if digest]
    return found


def shared(record: Record, owners: dict[tuple[str, str], Key]) -> str:
    """Say what a clip shares with the owner of its first known trait; "" if nothing is known."""
    same = [trait for trait in traits(record) if trait in owners]
    if not same:
        return ""
    video, audio = owners[same[0]]
    return f"same {' and '.join(kind for kind, _ in same)} as '{video}', '{audio}'"


def cleaned_path(one: ListFile, cleaned: str, parent: str) -> Path:
    """Return where the cleaned list goes: beside the list, or below a folder as it is in parent."""
    if is_suffix(cleaned):
        return one.path.with_name(f"{one.path.stem}{cleaned}{one.path.suffix}")
    return Path(cleaned) / one.folder.relative_to(parent) / one.path.name


def write_cleaned(one: ListFile, path: Path) -> None:
    """Write a list without the clips that something is wrong with."""
    dropped = {number for number, kind, _ in one.findings if kind not in WARNINGS}
    kept = [clip for number, clip in one.clips.items() if number not in dropped]
    if kept:
        write_list(path, kept)
        logger.info("%s: %d of %d clips", path, len(kept), len(one.lines))
    else:
        logger.warning("%s is not written: no clip of %s is left", path, one.path)


# The clips


def inspect_all(
    clips: Iterable[Key], folder: Path, shard: Shard, num_workers: int, decode: str = "ends"
) -> dict[Key, Record]:
    """Inspect the clips of a shard that no run has inspected since they changed; returns records.

    `folder` keeps the records. `decode` "ends" decodes the first, middle and last frame, "all"
    every frame.
    """
    mine = shard.take(dict.fromkeys(clips))
    wanted = set(mine)
    paths = sorted(folder.glob("records*"), key=lambda path: path.stat().st_mtime)
    stored = (record for path in paths for record in read_records(path))  # the newest wins
    records = {record[:2]: record for record in stored if record[:2] in wanted}
    todo = [c for c in mine if c not in records or records[c].stamp != stamp_of(*c, decode)]
    if len(todo) < len(mine):
        logger.info("%d of %d clips are checked already", len(mine) - len(todo), len(mine))
    if not todo:
        return records
    part = "" if shard == WHOLE else f"-{shard.part}-of-{shard.parts}"
    path = folder / f"records{part}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # anew, without what will be inspected again and what a crash has cut off
        known, again = {record[:2]: record for record in read_records(path)}, set(todo)
        with whole_file(path) as whole:
            append(whole, (known[key] for key in known if key not in again))
    jobs = deque(Job(video, audio, str(path)) for video, audio in todo)
    before = len(mine) - len(todo)
    inspecting = partial(work, decode=decode)
    found = outcomes_of(jobs, inspecting, num_workers, "checking", before, in_order=True)
    with closing(found):
        for outcome in found:
            video, audio, _ = outcome.job
            died = Record(video, audio, "", "cannot be checked", outcome.reason)  # its process did
            records[video, audio] = outcome.details.get("record", died)
            append(path, [records[video, audio]])
    return records


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, without a line that a crash has cut off."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            if len(row) == len(Record._fields) + 1 and row[-1] == END:
                video, audio, stamp, problems, detail, seconds, frames, *hashes = row[:-1]
                numbers = float(seconds), int(frames)
                yield Record(video, audio, stamp, problems, detail, *numbers, *hashes)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file and close it: a lost network mount or a kill costs one line."""
    with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([*record, END] for record in records)


def work(job: Job, decode: str) -> dict[str, Record]:
    """Inspect a clip in a process of the pool."""
    return {"record": inspect(job.name, job.source, decode)}


def inspect(video: str, audio: str, decode: str = "ends") -> Record:
    """Open both halves of a clip, decode frames, read all samples, hash both."""
    frames, pictures, seconds, sound, step, order = 0, "", 0.0, "", "", ""
    stamp, problems = stamp_of(video, audio, decode), list[Problem]()
    if video != NOT_READ:
        with reading("video", video, problems):
            os.stat(video)
            if os.path.isdir(video):
                count_frames(video)
            film = open_video(video)
            frames, pictures, order = len(film), read_video(film, decode), order_of(film)
    if audio != NOT_READ:
        with reading("audio", audio, problems):
            seconds, wav = wav_seconds(audio), WavFile(audio)
            samples = wav.sound(0, len(wav))
            sound = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
    if not problems and frames and sound:
        with reading("video", video, problems):
            step = out_of_step(film, wav)
    kinds, details = ("; ".join(problem[k] for problem in problems) for k in (0, 1))
    found = seconds, frames, sound, pictures, step, order
    return Record(video, audio, stamp, kinds, details, *found)


def order_of(film: Video) -> str:
    """Say where frames are read in another order than that of their letters; "" where they are not.

    The original reads them in the order of letters.
    """
    pairs = (
        zip(film.names, sorted(film.names), strict=True) if isinstance(film, FrameFolder) else ()
    )
    told = (
        f"{own!r} is read where letters would have {other!r}"
        for own, other in pairs
        if own != other
    )
    return next(told, "")


def read_video(film: Video, decode: str) -> str:
    """Decode frames, and return the hash of their files' bytes."""
    total, files = len(film), [film.path]
    if isinstance(film, FrameFolder):
        files = [os.path.join(film.path, name) for name in film.names]
    wanted = range(total) if decode == "all" else sorted({0, total // 2, total - 1})
    for start in range(0, len(wanted), FRAMES_AT_ONCE):
        film.read(wanted[start : start + FRAMES_AT_ONCE])
    digest = hashlib.blake2b(digest_size=16)
    for name in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            size = file.tell()
        if size == 0:
            raise UnreadableClip(f"frame '{name}' is an empty file")
        digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()


def stamp_of(video: str, audio: str, decode: str) -> str:
    """Return a text that changes when a file of the clip does, or what is checked of it."""
    parts = [decode]
    for path in (video, audio):
        try:
            status = os.stat(path)
        except OSError as error:
            parts.append(f"no {error.errno}")
        else:
            parts.append(f"{status.st_size:x} {status.st_mtime_ns:x}")
    return " ".join(parts)


LISTS = flag("lists", None, "lists, or folders of lists", nargs="+", metavar="LIST")
main = command(__doc__, check, Options, flags=[LISTS])

if __name__ == "__main__":
    sys.exit(main())
