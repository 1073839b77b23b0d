"""Read the header of every wav and count the frames of every face folder, several at a time."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import soundfile
from tqdm import tqdm

from preprocess.lists.clips import LeftOut, ListedClip
from preprocess.lists.files import FRAME_EXTENSIONS

SAMPLE_RATE = 16000
SHORTEST = 1024  # samples; a wav must be longer
CONVERT = "convert it with preprocess/face_and_audio/extract_audio.py"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Measured(NamedTuple):
    """A clip with its length: seconds of sound and number of frames."""

    clip: ListedClip
    seconds: float
    frames: int


def bounded_map(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], window: int
) -> Iterator[Result]:
    """Yield function(item) in order, with at most `window` items under way: any number of items."""
    running: deque = deque()
    for item in items:
        running.append(executor.submit(function, item))
        if len(running) >= window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def audio_problem(path: str) -> tuple[str, str] | float:
    """Return the seconds of a mono 16 kHz wav, or (kind of problem, detail)."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "audio unreadable", f"'{path}' is no file"
        if status.st_size == 0:
            return "audio unreadable", f"'{path}' is an empty file"
        if not os.access(path, os.R_OK):
            return "audio unreadable", f"'{path}': no permission"
        info = soundfile.info(path)
    except FileNotFoundError:
        return "audio missing", f"'{path}' does not exist"
    except OSError as error:
        return "audio unreadable", f"'{path}': {error.strerror}"
    except UnicodeError:
        return "audio unreadable", f"name {ascii(path)} is not UTF-8; rename it"
    except (soundfile.LibsndfileError, TypeError) as error:
        return "audio unreadable", f"'{path}': {' '.join(str(error).split())[:200]}"
    if info.samplerate != SAMPLE_RATE:
        rate = f"'{path}' has {info.samplerate} Hz, expected {SAMPLE_RATE}; {CONVERT}"
        return "audio sample rate", rate
    if info.channels != 1:
        return "audio channels", f"'{path}' has {info.channels} channels, expected 1; {CONVERT}"
    if info.frames <= SHORTEST:
        short = f"'{path}' has {info.frames} samples, expected more than {SHORTEST}"
        return "audio too short", short
    return info.frames / SAMPLE_RATE


def count_frames(folder: str) -> tuple[str, str] | int:
    """Return how many pictures a folder holds, or (kind of problem, detail)."""
    try:
        with os.scandir(folder) as entries:
            frames = sum(
                entry.name.lower().endswith(FRAME_EXTENSIONS) and not entry.name.startswith(".")
                for entry in entries
            )
    except OSError as error:
        return "video unreadable", f"'{folder}': {error.strerror}"
    return frames if frames else ("no face frames", f"'{folder}' holds no picture")


def probe(clip: ListedClip) -> Measured | LeftOut:
    """Measure one clip, or say why it must be left out."""
    seconds = audio_problem(clip.audio)
    if isinstance(seconds, tuple):
        return LeftOut(clip.name, *seconds)
    frames = count_frames(clip.video)
    if isinstance(frames, tuple):
        return LeftOut(clip.name, *frames)
    return Measured(clip, seconds, frames)


def probe_all(clips: list[ListedClip], num_workers: int) -> Iterator[Measured | LeftOut]:
    """Measure all clips, in order. Threads: the time goes to the file system."""
    with ThreadPoolExecutor(max(num_workers, 1)) as executor:
        results = bounded_map(executor, probe, clips, 64 * max(num_workers, 1))
        yield from tqdm(results, total=len(clips), unit="clip", desc="reading headers")
