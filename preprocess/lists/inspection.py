"""Open one clip, both halves, and say everything that is wrong with it."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hicmae.data.audio import read_span
from hicmae.data.media import FrameFolder, open_video
from hicmae.io import UnreadableClip
from preprocess.lists.probe import SAMPLE_RATE, audio_problem, bounded_map, count_frames
from preprocess.lists.shards import Record, RecordStore, Shard

LOGGER = logging.getLogger(__name__)
BLOCK = 1 << 20  # bytes read at a time
FRAMES_AT_ONCE = 64

Problem = tuple[str, str]  # kind, detail
Key = tuple[str, str]  # video, audio


def inspect_all(
    clips: Iterable[Key], folder: Path, shard: Shard | None, num_workers: int, decode: str = "ends"
) -> dict[Key, Record]:
    """Inspect the clips that no run has inspected since they changed; return all records.

    Args:
        clips: (video, audio) paths; with a shard, the same list in every shard.
        folder: place of the records.
        shard: the part to do; only its records are returned. None does and returns everything.
        num_workers: processes.
        decode: "ends" decodes the first, middle and last frame, "all" every frame.
    """
    unique = dict.fromkeys(clips)
    mine = [clip for k, clip in enumerate(unique) if shard is None or shard.takes(k)]
    store = RecordStore(folder, shard)
    records = store.load(set(mine))
    todo = [c for c in mine if c not in records or records[c].stamp != stamp_of(*c, decode)]
    if len(todo) < len(mine):
        LOGGER.info("%d of %d clips are checked already", len(mine) - len(todo), len(mine))
    found = store.extend(_inspected(todo, num_workers, decode))
    for record in tqdm(found, total=len(mine), initial=len(mine) - len(todo), unit="clip"):
        records[record.video, record.audio] = record
    return records


def _inspected(todo: list[Key], num_workers: int, decode: str) -> Iterator[Record]:
    work = partial(inspect, decode=decode)
    if num_workers <= 1 or len(todo) <= 1:
        yield from map(work, todo)
        return
    # Not fork, which copies whatever threads hold; a fork server imports torch only once.
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if "forkserver" in known:
        context.set_forkserver_preload([__name__])
    workers = min(num_workers, len(todo))
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as executor:
            yield from bounded_map(executor, work, todo, 8 * workers)
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died, expected it to report a broken clip; it ran out of memory or a "
            "decoder crashed: start again with --num_workers 1, the last clip started is the one"
        ) from None


def inspect(clip: Key, decode: str = "ends") -> Record:
    """Open both halves of a clip, decode frames, read all samples, hash both."""
    video, audio = clip
    stamp = stamp_of(video, audio, decode)
    frames, pictures, video_problem = inspect_video(video, decode)
    seconds, sound, audio_problem_found = inspect_audio(audio)
    problems = [problem for problem in (video_problem, audio_problem_found) if problem]
    kinds = "; ".join(kind for kind, _ in problems)
    detail = "; ".join(detail for _, detail in problems)
    return Record(video, audio, stamp, kinds, detail, seconds, frames, sound, pictures)


def inspect_audio(path: str) -> tuple[float, str, Problem | None]:
    """Return seconds, hash of the samples, and what is wrong."""
    seconds = audio_problem(path)
    if isinstance(seconds, tuple):
        return 0.0, "", seconds
    try:
        samples = read_span(path, 0, round(seconds * SAMPLE_RATE))
    except UnreadableClip as error:
        kind = "audio silent" if " is silent" in str(error) else "audio unreadable"
        return seconds, "", (kind, str(error))
    return seconds, hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest(), None


def inspect_video(path: str, decode: str = "ends") -> tuple[int, str, Problem | None]:
    """Return the number of frames, the hash of their bytes, and what is wrong."""
    try:
        os.stat(path)
        if os.path.isdir(path):
            counted = count_frames(path)
            if isinstance(counted, tuple):
                return 0, "", counted
        video = open_video(path)
        total = len(video)
        wanted = range(total) if decode == "all" else sorted({0, total // 2, total - 1})
        for start in range(0, len(wanted), FRAMES_AT_ONCE):
            video.read(wanted[start : start + FRAMES_AT_ONCE])
        files = (
            [os.path.join(path, name) for name in video.names]
            if isinstance(video, FrameFolder)
            else [path]
        )
        return total, _hash_files(files), None
    except FileNotFoundError:
        return 0, "", ("video missing", f"'{path}' does not exist")
    except OSError as error:
        return 0, "", ("video unreadable", f"'{path}': {error.strerror}")
    except UnicodeError:  # decord and soundfile take names as UTF-8
        return 0, "", ("video unreadable", f"name {ascii(path)} is not UTF-8; rename it")
    except UnreadableClip as error:
        return 0, "", ("video unreadable", str(error))


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
            while block := file.read(BLOCK):
                digest.update(block)
                size += len(block)
        if size == 0:
            raise UnreadableClip(f"frame '{path}' is an empty file")
        digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()
