"""Open every clip of lists and say what is wrong with them; write cleaned lists.

    python preprocess/check_lists.py saved/data/mafw/audio_visual/single/split0*/*.csv
    python preprocess/check_lists.py train.csv --shard 3/64       one job of an array
    python preprocess/check_lists.py train.csv                    afterwards: does what is missing

Reports clips that are missing, unreadable, silent or too short (1024 samples, no frame), of another
rate than 16 kHz or several channels, twice in a list, or in train.csv and in another list of its
folder, by name and by content (bytes of the frames, samples of the sound). Warns where film and wav
differ by more than 0.1 s in length or beginning (of face frames the extract_face.csv above them
tells), and where frames are read in another order (2.jpg before 10.jpg) than that of their letters,
in which the original reads them. "-" stands for a stream that is not read, a folder for the lists
in it. A run that was stopped goes on; broken clips, and those whose files changed, are checked
again. Written:

    x.cleaned.csv beside every x.csv, or below --cleaned DIR: the list without these clips; of clips
                                     that occur twice the first stays, of those in training and
                                     test the tested; clips out of step stay
    check/report.csv (--output_dir)  list, number of the clip in it, video, audio, kind, detail
    check/check_lists*.csv           what is known of each clip, and the only file of a --shard run

Exit code: 0 nothing is wrong, 1 something is, 2 the lists cannot be checked, 3 the run was stopped,
by hand or by a full disk.
"""

import argparse
import hashlib
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from hicmae.config.flags import option
from hicmae.data.clip_list import ClipList, find_list, indexes_of, read_any_list, write_list
from hicmae.data.film import open_video
from hicmae.data.video import MODALITIES, NOT_READ, FrameFolder, Video
from hicmae.io import UnreadableClip, check_writable, write_csv
from preprocess.command_line import STOPPED, WHOLE, Parts, command
from preprocess.face_and_audio.batch import Job, Ledger, read_summary
from preprocess.face_and_audio.timing import out_of_step
from preprocess.lists import Problem, open_wav, reading

logger = logging.getLogger("check_lists")

OUT_OF_STEP, ORDER = WARNINGS = "out of step", "order of frames"  # such clips stay
EVALUATION = {"test", "val"}  # the same clips in both is the original's habit, not a leak
CLEANED = ".cleaned"  # in the names of lists that this tool has written
Row = Mapping[str, object]  # what is known of a clip: why it is broken, or what `inspect` returns


class ListFile(NamedTuple):
    """A list: its clips as written in it, those to open, and what is wrong: number, kind, detail.

    Numbers count from 1, without blank lines.
    """

    path: Path
    folder: Path  # absolute
    clips: ClipList
    jobs: list[Job]
    findings: list[tuple[int, str, str]]


class Options(Parts):
    """What to check, and how."""

    data_root: str = option("", "folder that relative names start from")
    cleaned: Path | None = option(None, "folder for the cleaned lists (default: beside the lists)")
    output_dir: Path | None = option(None, "(default: check/ beside the lists)")
    modality: str = option("av", "open only the sounds (a) or pictures (v)", choices=MODALITIES)


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
    ledger = Ledger(output, "check_lists", args)
    known: dict[str, dict[str, object]] = {}
    for path in output.glob("check_lists*.csv"):  # of parts, too
        known |= read_summary(path)
    jobs = args.shard.take({job for one in lists for job in one.jobs})
    good = {name: row["stamp"] for name, row in known.items() if row["status"] == "done"}
    done = {job for job in jobs if job.name in good and good[job.name] == stamp_of(job)}
    ledger.rows |= {job.name: known[job.name] for job in done}
    code = ledger.run([job for job in jobs if job not in done], inspect, done)
    if code == STOPPED or args.shard != WHOLE:
        return code
    compare(lists, ledger.rows)
    rows: list[list[object]] = []
    for one in sorted(lists, key=lambda one: str(one.path)):
        for number, kind, detail in sorted(one.findings, key=lambda finding: finding[0]):
            job = one.jobs[number - 1]
            rows.append([str(one.path), number, job.source, job.audio, kind, detail])
    write_csv(output / "report.csv", ["list", "clip", "video", "audio", "kind", "detail"], rows)
    for one in lists:
        write_cleaned(one, cleaned[one.path])
        kinds = Counter(kind for _, kind, _ in one.findings).most_common()
        wrong = ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing is wrong"
        print(f"{one.path}, {len(one.clips)} clips: {wrong}")
    logger.info("details are in %s", output / "report.csv")
    return int(bool(rows))


def find_lists(given: list[str], data_root: str, modality: str) -> list[ListFile]:
    """Read the lists, but not those that an earlier run has written and *.csv gives as well.

    Other tables in a folder of lists, such as left_out.csv, are passed over.
    """
    found: dict[Path, ListFile] = {}
    for path in map(Path, given):
        if indexes_of(find_list(path) or path):
            raise ValueError(f"'{path}' holds shards; name the list that they were packed from")
        for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
            try:
                if not file.stem.endswith(CLEANED):
                    found[file] = find_jobs(file, data_root, modality)
            except ValueError:
                if file == path:
                    raise
                logger.info("passed over, as it is no list: %s", file)
    if not found:
        names = " ".join(given)
        raise ValueError(f"no list but what this tool has written ({CLEANED}) in {names}; add one")
    return list(found.values())


def find_jobs(path: Path, data_root: str, modality: str) -> ListFile:
    """Read a list; of each clip the streams of the `modality` will be opened."""
    clips, jobs = read_any_list(path), list[Job]()
    for clip in read_any_list(path, data_root) if data_root else clips:
        video = clip.video if "v" in modality else NOT_READ
        audio = clip.audio if "a" in modality else NOT_READ
        name = f"{video} {shlex.quote(audio)}"  # so that no two clips have one name
        jobs.append(Job(name, video, "", audio))
    return ListFile(path, Path(os.path.abspath(path.parent)), clips, jobs, [])


def compare(lists: list[ListFile], rows: Mapping[str, Row]) -> None:
    """Note everything that is wrong with the lists; of repeated clips, the later ones."""
    for one in lists:
        first: dict[tuple[str, str], Job] = {}
        for number, job in enumerate(one.jobs, 1):
            row = rows[job.name]
            if row["reason"]:
                kind, _, detail = str(row["reason"]).partition(": ")
                one.findings.append((number, kind, detail))
            told = {OUT_OF_STEP: row.get("step"), ORDER: row.get("order")}
            told["in the list twice"] = shared(job, row, first)
            one.findings.extend((number, kind, str(said)) for kind, said in told.items() if said)
            for trait in traits(job, row):
                first.setdefault(trait, job)
    for one, other in combinations(lists, 2):
        if one.folder == other.folder and not {one.path.stem, other.path.stem} <= EVALUATION:
            train, test = (other, one) if one.path.stem in EVALUATION else (one, other)
            tested = {trait: job for job in test.jobs for trait in traits(job, rows[job.name])}
            for number, job in enumerate(train.jobs, 1):
                if same := shared(job, rows[job.name], tested):
                    train.findings.append((number, "in training and test", f"{test.path}: {same}"))


def traits(job: Job, row: Row) -> list[tuple[str, str]]:
    """Return what no two clips should share; contents only of good clips, as silence is alike."""
    files = [("video file", job.source), ("audio file", job.audio)]
    found = [(kind, os.path.abspath(path)) for kind, path in files if path != NOT_READ]
    contents = [("frames", row.get("pictures")), ("sound", row.get("sound"))]
    return found + [(kind, str(digest)) for kind, digest in contents if digest]


def shared(job: Job, row: Row, owners: Mapping[tuple[str, str], Job]) -> str:
    """Say what a clip shares with the owner of its first known trait; "" if nothing is known."""
    if same := [trait for trait in traits(job, row) if trait in owners]:
        owner = owners[same[0]]
        return f"same {' and '.join(kind for kind, _ in same)} as '{owner.source}', '{owner.audio}'"
    return ""


def write_cleaned(one: ListFile, path: Path) -> None:
    """Write a list without the clips that something is wrong with."""
    dropped = {number for number, kind, _ in one.findings if kind not in WARNINGS}
    kept = [clip for number, clip in enumerate(one.clips, 1) if number not in dropped]
    if kept:
        write_list(path, kept)
        logger.info("%s: %d of %d clips", path, len(kept), len(one.clips))
    else:
        logger.warning("%s is not written: no clip of %s is left", path, one.path)


def inspect(job: Job) -> dict[str, Any]:
    """Open both halves of a clip, decode some frames, read all samples, hash both.

    Returns columns of the summary; UnreadableClip: kinds of problems, and after ": " the details.
    `stamp` changes when a file does. `sound` is a hash of the samples, `pictures` of the video file
    or the frames' files, "" of what is not read. `step` says how the wav does not fit the film,
    `order` where frames are read in another order than that of their names' letters.
    """
    film, problems = None, list[Problem]()
    found = {"stamp": stamp_of(job), "sound": "", "pictures": "", "step": "", "order": ""}
    if job.source != NOT_READ:
        with reading("video", job.source, problems):
            film = open_video(job.source)
            found["pictures"] = read_video(film)
            names = film.names if isinstance(film, FrameFolder) else []
            for own, other in zip(names, sorted(names), strict=True):
                if own != other and not found["order"]:
                    found["order"] = f"{own!r} is read where letters would have {other!r}"
    if job.audio != NOT_READ:
        with reading("audio", job.audio, problems):
            wav = open_wav(job.audio)
            samples = wav.sound(0, len(wav))
            found["sound"] = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
    if film and found["sound"] and not problems:
        with reading("video", job.source, problems):
            found["step"] = out_of_step(film, wav)
    if job.source == job.audio == NOT_READ:
        problems.append(("line", "names no stream of --modality"))
    if problems:
        raise UnreadableClip(": ".join(map("; ".join, zip(*problems, strict=True))))
    return found


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


def stamp_of(job: Job) -> str:
    """Return a text that changes when a file of the clip does."""
    found = [os.stat(path) for path in (job.source, job.audio) if os.path.exists(path)]
    return " ".join(f"{status.st_size:x} {status.st_mtime_ns:x}" for status in found)


LISTS = {"lists": {"nargs": "+", "metavar": "LIST", "help": "lists, or folders of lists"}}
main = command(__doc__, check, Options, flags=LISTS)

if __name__ == "__main__":
    sys.exit(main())
