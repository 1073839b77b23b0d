"""Open clips, say everything that is wrong with them, and keep what was found out in files."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hicmae.data.audio import WavFile
from hicmae.data.film import open_video
from hicmae.data.video import FrameFolder
from hicmae.io import UnreadableClip, whole_file
from preprocess.command_line import WHOLE, Shard
from preprocess.face_and_audio.batch import Job, Outcome, outcomes_of
from preprocess.lists.files import SAMPLE_RATE, UnusableClip, count_frames, reading, wav_seconds

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 64
END = "."  # last field of a stored line; a line cut off by a crash has none

Key = tuple[str, str]  # video, audio: the first two fields of a record


class Record(NamedTuple):
    """What was found out about one clip.

    `video` (mp4 or folder of frames) and `audio` are as opened; `stamp` changes when a file does.
    `problems` are kinds of problems, separated by "; ", "" for a good clip. `seconds` and `frames`
    are 0 where they cannot be read; `sound` is a hash of the samples, `pictures` of the video file
    or the frames' files, "" where there are none.
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


def inspect_all(
    clips: Iterable[Key], folder: Path, shard: Shard, num_workers: int, decode: str = "ends"
) -> dict[Key, Record]:
    """Inspect the clips of a shard that no run has inspected since they changed; returns records.

    `folder` keeps the records. `decode` "ends" decodes the first, middle and last frame, "all"
    every frame.
    """
    mine = shard.take(dict.fromkeys(clips))
    records = load_records(folder, set(mine))
    todo = [c for c in mine if c not in records or records[c].stamp != stamp_of(*c, decode)]
    if len(todo) < len(mine):
        logger.info("%d of %d clips are checked already", len(mine) - len(todo), len(mine))
    if not todo:
        return records
    name = "records" if shard == WHOLE else f"records-{shard.part}-of-{shard.parts}"
    path = folder / f"{name}.csv"
    jobs = deque(Job(video, audio, str(path)) for video, audio in todo)
    with closing(outcomes_of(jobs, partial(_work, decode=decode), num_workers)) as outcomes:
        found = stored((_record_of(outcome) for outcome in outcomes), path)
        for record in tqdm(found, total=len(mine), initial=len(mine) - len(todo), unit="clip"):
            records[record[:2]] = record
    return records


def _record_of(outcome: Outcome) -> Record:
    """Return the record of a clip; one that kills its process has one as well."""
    job = outcome.job
    failed = Record(job.name, job.source, "", "cannot be checked", outcome.reason, 0.0, 0, "", "")
    return outcome.details.get("record", failed)


def _work(job: Job, decode: str) -> dict[str, Record]:
    return {"record": inspect((job.name, job.source), decode)}


def inspect(clip: Key, decode: str = "ends") -> Record:
    """Open both halves of a clip, decode frames, read all samples, hash both."""
    frames, pictures, seconds, sound = 0, "", 0.0, ""
    stamp, problems = stamp_of(*clip, decode), []
    try:
        frames, pictures = read_video(clip[0], decode)
    except UnusableClip as problem:
        problems.append(problem)
    try:
        seconds = wav_seconds(clip[1])
        with reading("audio", clip[1]):
            samples = WavFile(clip[1]).sound(0, round(seconds * SAMPLE_RATE))
        sound = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
    except UnusableClip as problem:
        problems.append(problem)
    kinds, details = ("; ".join(getattr(p, what) for p in problems) for what in ("kind", "detail"))
    return Record(*clip, stamp, kinds, details, seconds, frames, sound, pictures)


def read_video(path: str, decode: str) -> tuple[int, str]:
    """Return the number of frames and the hash of their bytes; UnusableClip where it fails."""
    with reading("video", path):
        os.stat(path)
        if os.path.isdir(path):
            count_frames(path)
        video = open_video(path)
        total, files = len(video), [path]
        if isinstance(video, FrameFolder):
            files = [os.path.join(path, name) for name in video.names]
        wanted = range(total) if decode == "all" else sorted({0, total // 2, total - 1})
        for start in range(0, len(wanted), FRAMES_AT_ONCE):
            video.read(wanted[start : start + FRAMES_AT_ONCE])
        return total, _hash_files(files)


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


def _hash_files(paths: list[str]) -> str:
    """Hash the bytes of files; an empty one among frames is an error of the clip."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            size = 0
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        if size == 0:
            raise UnreadableClip(f"frame '{path}' is an empty file")
        digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()


def load_records(folder: Path, wanted: Container[Key]) -> dict[Key, Record]:
    """Return what any run or shard has found out about the wanted clips."""
    paths = sorted(folder.glob("records*"), key=lambda path: path.stat().st_mtime)
    return {r[:2]: r for path in paths for r in _read(path) if r[:2] in wanted}  # the newest wins


def stored(records: Iterable[Record], path: Path) -> Iterator[Record]:
    """Add records to a file as they come, and pass them on; older ones of a clip go at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _write(path)  # without a line that a crash has cut off
    # Opened per record: a lost network mount or a kill costs one line, and 1 ms of 100 a clip.
    for record in records:
        with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerow([*record, END])
        yield record
    if path.exists():
        _write(path)


def _read(path: Path) -> Iterator[Record]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.reader(file):
            if len(row) == len(Record._fields) + 1 and row[-1] == END:
                video, audio, stamp, problems, detail, seconds, frames, *hashes = row[:-1]
                numbers = float(seconds), int(frames)
                yield Record(video, audio, stamp, problems, detail, *numbers, *hashes)


def _write(path: Path) -> None:
    """Write a file of records anew, each clip once."""
    records = {record[:2]: record for record in _read(path)}
    with (
        whole_file(path) as part,
        open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([*r, END] for r in records.values())
