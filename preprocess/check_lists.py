"""Open every clip of lists and say what is wrong with them; write cleaned lists.

    python preprocess/check_lists.py saved/data/mafw/audio_visual/single/split0*/*.csv
    python preprocess/check_lists.py train.csv --shard 3/64       one job of an array
    python preprocess/check_lists.py train.csv                    afterwards: does what is missing

Reports clips that are missing, unreadable, silent or too short (1024 samples, no frame), of another
rate than 16 kHz or several channels, twice in a list, or in train.csv and in another list of its
folder, by name and by content (bytes of the frames, samples of the sound). Warns where film and wav
differ by more than 0.1 s in length or beginning (of face frames the extract_face.csv above them
tells), and where frames are read in another order (2.jpg before 10.jpg) than that of their letters.
What a list is for shows in most of its lines; the others are reported. "-" stands for a stream that
is not read, a folder for the lists in it. A run that was stopped goes on; clips whose files changed
are checked again. Written:

    x.cleaned.csv beside every x.csv, or below --cleaned DIR: the list without these clips; of clips
                                     that occur twice the first stays, of those in training and
                                     test the tested; clips out of step stay
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
import math
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from hicmae.config.flags import option
from hicmae.data.audio import WavFile
from hicmae.data.clip_list import Clip, Label, is_packed, wav_of, write_list
from hicmae.data.film import open_video
from hicmae.data.media import VIDEO_SUFFIXES
from hicmae.data.video import MODALITIES, NOT_READ, FrameFolder, Video
from hicmae.io import UnreadableClip, check_writable, whole_file
from preprocess.command_line import WHOLE, Parts, Shard, command
from preprocess.face_and_audio.batch import Job, outcomes_of
from preprocess.face_and_audio.timing import out_of_step
from preprocess.lists.clips import Problem, check_frames, check_wav, reading, write_csv

logger = logging.getLogger("check_lists")

OUT_OF_STEP, ORDER = WARNINGS = "out of step", "order of frames"  # such clips stay
EVALUATION = {"test", "val"}  # the same clips in both is the original's habit, not a leak
CLEANED = ".cleaned"  # in the names of lists that this tool has written
END = "."  # last field of a stored record; a line cut off by a crash has none
FORMS = {
    "pre-training": "'<video.mp4> <int>'",
    "classification": "'<video> <audio.wav> <class index>'",
    "regression": "'<video> <audio.wav> <number> ...'",
}
Key = tuple[str, str]  # video, audio


class Record(NamedTuple):
    """What was found out about one clip.

    `video` (mp4 or folder of frames) and `audio` are as opened; `stamp` changes when a file does.
    `problems` are kinds of problems, separated by "; ", "" for a good clip. `sound` is a hash of
    the samples, `pictures` of the video file or the frames' files, "" where there are none. `step`
    says how the wav does not fit the film, `order` where frames are in another order than that of
    their names' letters.
    """

    video: str
    audio: str
    stamp: str
    problems: str
    detail: str
    sound: str = ""
    pictures: str = ""
    step: str = ""
    order: str = ""


class ListFile(NamedTuple):
    """A list: its clips as written in it, the files to open, and what is wrong.

    Lines count from 1, without blank ones. `findings` are line, kind and detail.
    """

    path: Path
    folder: Path  # absolute
    kind: str  # of `kinds_of` its lines
    lines: list[list[str]]
    clips: dict[int, Clip]
    files: dict[int, Key]
    findings: list[tuple[int, str, str]]


@dataclass(frozen=True)
class Options(Parts):
    """What to check, and how."""

    data_root: str = option("", "folder that relative names start from")
    cleaned: Path | None = option(None, "folder for the cleaned lists (default: beside the lists)")
    output_dir: Path | None = option(None, "(default: check/ beside the lists)")
    modality: str = option(
        "av", "open the sounds only (a) or the pictures only (v), for training", choices=MODALITIES
    )


def check(args: argparse.Namespace) -> int:
    """Check the lists; return the exit code."""
    lists = find_lists(args.lists, args.data_root, args.modality)
    parent = os.path.commonpath([one.folder for one in lists])
    output = args.output_dir or Path(parent) / "check"
    cleaned = {
        one.path: args.cleaned / one.folder.relative_to(parent) / one.path.name
        if args.cleaned
        else one.path.with_name(f"{one.path.stem}{CLEANED}{one.path.suffix}")
        for one in lists
    }
    for path in (output / "report.csv", *(cleaned.values() if args.shard == WHOLE else ())):
        check_writable(path)  # said before hours of work
    clips = [clip for one in lists for clip in one.files.values()]
    records = inspect_all(clips, output, args.shard, args.num_workers)
    if args.shard != WHOLE:
        bad = sum(bool(record.problems) for record in records.values())
        logger.info("shard %s: %d of %d clips are broken", args.shard, bad, len(records))
        return int(bad > 0)
    compare(lists, records)
    rows: list[list[object]] = []
    for one in sorted(lists, key=lambda one: str(one.path)):
        for number, kind, detail in sorted(one.findings, key=lambda finding: finding[0]):
            files = one.files.get(number, (one.lines[number - 1][0], ""))
            rows.append([str(one.path), number, *files, kind, detail])
    columns = ["list", "clip", "video", "audio", "kind", "detail"]
    write_csv(output / "report.csv", columns, rows)
    for one in lists:
        write_cleaned(one, cleaned[one.path])
        kinds = Counter(kind for _, kind, _ in one.findings).most_common()
        wrong = ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing is wrong"
        print(f"{one.path}, for {one.kind}, {len(one.lines)} clips: {wrong}")
    logger.info("details are in %s", output / "report.csv")
    return int(bool(rows))


# The lists


def find_lists(given: list[str], data_root: str, modality: str) -> list[ListFile]:
    """Read the lists, but not those that an earlier run has written and *.csv gives as well.

    Other tables in a folder of lists, such as left_out.csv, are passed over.
    """
    found: dict[Path, ListFile] = {}
    for path in map(Path, given):
        if is_packed(path):
            raise ValueError(f"'{path}' holds shards; check them with pack_clips.py --verify")
        for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
            try:
                if not file.stem.endswith(CLEANED):
                    found[file] = read_list(file, data_root, modality)
            except ValueError:
                if file == path:
                    raise
                logger.info("passed over, as it is no list: %s", file)
    if not found:
        raise ValueError(
            f"found no list in {' '.join(given)}, but what this tool has written ({CLEANED}); name "
            "others"
        )
    return list(found.values())


def read_list(path: Path, data_root: str, modality: str) -> ListFile:
    """Read a list of any kind, the one that most of its lines belong to; others are findings.

    Of each clip the streams of the `modality` will be opened.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=" ", strict=True)
        try:
            rows = ([field for field in row if field] for row in reader)  # blanks may be repeated
            lines = [row for row in rows if row]
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: got {error}; check the quotes") from None
    every = [
        kinds_of(os.path.splitext(line[0])[1], len(line), tuple(line[2 if len(line) > 2 else 1 :]))
        for line in lines
    ]
    counts = Counter(kinds[0] for kinds in every if kinds)
    if not counts:
        got = f"got {' '.join(lines[0])[:200]!r}" if lines else "got an empty list"
        raise ValueError(
            f"{path}:1: expected {' or '.join(FORMS.values())}, {got}; blanks separate the fields, "
            "quote names that hold some"
        )
    ((kind, _),) = counts.most_common(1)
    one = ListFile(path, Path(os.path.abspath(path.parent)), kind, lines, {}, {}, [])
    expected = f"expected {FORMS[kind.split()[0]]}, as {counts[kind]} of {len(lines)} lines have"
    for number, (line, kinds) in enumerate(zip(lines, every, strict=True), 1):
        if kind not in kinds:
            one.findings.append((number, "line", f"{expected}, got {' '.join(line)[:200]!r}"))
            continue
        video, *sound = line[: 1 if len(line) == 2 else 2]
        values = line[1 + len(sound) :]
        is_regression = kind.startswith("regression")
        label: Label = tuple(map(float, values)) if is_regression else int(values[0])
        one.clips[number] = Clip(video, sound[0] if sound else None, label)
        film = os.path.join(data_root, video)
        wav = os.path.join(data_root, sound[0]) if sound else wav_of(film)
        reads_video = "v" in modality and video != NOT_READ
        reads_audio = "a" in modality and sound != [NOT_READ]
        one.files[number] = film if reads_video else NOT_READ, wav if reads_audio else NOT_READ
        if not (reads_video or reads_audio):
            one.findings.append((number, "line", f"names no stream of --modality {modality}"))
    return one


@lru_cache(maxsize=4096)  # most lines of a list end alike
def kinds_of(suffix: str, count: int, label: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds of lists that a line may stand in, the likeliest first.

    It has `count` fields, the first one of which ends in `suffix`, the last ones are the `label`.
    """
    try:
        values = [float(text) for text in label]
    except ValueError:
        return ()
    if not values or not all(map(math.isfinite, values)):
        return ()
    is_integer = len(values) == 1 and re.fullmatch(r"[+-]?\d+", label[0]) is not None
    if count == 2:
        return ("pre-training",) * is_integer
    kinds = ["classification"] * (is_integer and values[0] >= 0) + [f"regression of {len(values)}"]
    if is_integer:  # films whose wav is named
        is_film = label == ("0",) and suffix.lower() in VIDEO_SUFFIXES
        kinds.insert(0 if is_film else 2, "pre-training")
    return tuple(kinds)


def compare(lists: list[ListFile], records: dict[Key, Record]) -> None:
    """Note everything that is wrong with the lists; of repeated clips, the later ones."""
    for one in lists:
        first: dict[tuple[str, str], Key] = {}
        for number, clip in one.files.items():
            record = records[clip]
            notes = (record.problems, record.detail), (OUT_OF_STEP, record.step)
            for kind, detail in (*notes, (ORDER, record.order)):
                if detail:
                    one.findings.append((number, kind, detail))
            if same := shared(record, first):
                one.findings.append((number, "in the list twice", same))
            for trait in traits(record):
                first.setdefault(trait, clip)
    for one, other in combinations(lists, 2):
        if one.folder == other.folder and not {one.path.stem, other.path.stem} <= EVALUATION:
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
    clips: Iterable[Key], folder: Path, shard: Shard, num_workers: int
) -> dict[Key, Record]:
    """Inspect the clips of a shard that no run has inspected since they changed; returns records.

    `folder` keeps the records.
    """
    mine = shard.take(dict.fromkeys(clips))
    wanted = set(mine)
    paths = sorted(folder.glob("records*"), key=lambda path: path.stat().st_mtime)
    stored = (record for path in paths for record in read_records(path))  # the newest wins
    records = {record[:2]: record for record in stored if record[:2] in wanted}
    todo = [clip for clip in mine if clip not in records or records[clip].stamp != stamp_of(*clip)]
    if len(todo) < len(mine):
        logger.info("%d of %d clips are checked already", len(mine) - len(todo), len(mine))
    if not todo:
        return records
    part = "" if shard == WHOLE else f"-{shard.part}-of-{shard.parts}"
    path = folder / f"records{part}.csv"
    if path.exists():  # anew, without what will be inspected again and what a crash has cut off
        known, again = {record[:2]: record for record in read_records(path)}, set(todo)
        with whole_file(path) as whole:
            append(whole, (known[key] for key in known if key not in again))
    jobs = deque(Job(video, audio, str(path)) for video, audio in todo)
    with closing(outcomes_of(jobs, inspect, num_workers, "checking", in_order=True)) as found:
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
                yield Record(*row[:-1])


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file and close it: a lost network mount or a kill costs one line."""
    with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([*record, END] for record in records)


def inspect(job: Job) -> dict[str, Record]:
    """Open both halves of a clip, decode some frames, read all samples, hash both."""
    video, audio, _ = job
    film, pictures, sound, step, order = None, "", "", "", ""
    stamp, problems = stamp_of(video, audio), list[Problem]()
    if video != NOT_READ:
        with reading("video", video, problems):
            os.stat(video)
            if os.path.isdir(video):
                check_frames(video)
            film = open_video(video)
            pictures, order = read_video(film), order_of(film)
    if audio != NOT_READ:
        with reading("audio", audio, problems):
            check_wav(audio)
            wav = WavFile(audio)
            samples = wav.sound(0, len(wav))
            sound = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
    if not problems and film and sound:
        with reading("video", video, problems):
            step = out_of_step(film, wav)
    kinds, details = ("; ".join(problem[k] for problem in problems) for k in (0, 1))
    found = Record(video, audio, stamp, kinds, details, sound, pictures, step, order)
    return {"record": found}


def order_of(film: Video) -> str:
    """Say where frames are read in another order than that of their letters; "" where they are not.

    The original reads them in the order of letters.
    """
    names = film.names if isinstance(film, FrameFolder) else []
    for own, other in zip(names, sorted(names), strict=True):
        if own != other:
            return f"{own!r} is read where letters would have {other!r}"
    return ""


def read_video(film: Video) -> str:
    """Decode the first, middle and last frame, and return the hash of their files' bytes."""
    total, files = len(film), [film.path]
    if isinstance(film, FrameFolder):
        files = [os.path.join(film.path, name) for name in film.names]
    film.read(sorted({0, total // 2, total - 1}))
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


def stamp_of(video: str, audio: str) -> str:
    """Return a text that changes when a file of the clip does."""
    parts = []
    for path in (video, audio):
        try:
            status = os.stat(path)
        except OSError as error:
            parts.append(f"no {error.errno}")
        else:
            parts.append(f"{status.st_size:x} {status.st_mtime_ns:x}")
    return " ".join(parts)


LISTS = {"lists": {"nargs": "+", "metavar": "LIST", "help": "lists, or folders of lists"}}
main = command(__doc__, check, Options, flags=LISTS)

if __name__ == "__main__":
    sys.exit(main())
