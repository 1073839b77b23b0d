"""Find the face folders and wavs of the clips by name, and measure them without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import soundfile
from tqdm import tqdm

from preprocess.lists.clips import LeftOut, ListedClip

SAMPLE_RATE = 16000
LEAST = 1024  # samples; a wav must be longer
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # what hicmae.data.video reads
ALIGNED = "_aligned"  # OpenFace's and extract_face's ending of a folder of faces
CONVERT = "convert it with preprocess/face_and_audio/extract_audio.py"
TWO = "two of one name"


class Halves(NamedTuple):
    """Files of one kind by the name of their clip; those that cannot serve have a reason."""

    paths: dict[str, str]
    unusable: dict[str, tuple[str, str]]  # kind of reason, detail

    def add(self, name: str, path: str) -> None:
        """Note a file under its clip's name; of two with one name, neither can be chosen."""
        if name in self.paths:
            self.unusable[name] = (TWO, f"'{self.paths.pop(name)}' and '{path}'")
        elif self.unusable.get(name, ("",))[0] != TWO:
            self.paths[name] = path


class UnusableClip(Exception):
    """One half of a clip cannot be used: one of few kinds of problem, and the details."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def frame_folders(root: str) -> Halves:
    """Find folders that directly hold pictures; `x/x_aligned/` and `x/` are both clip x."""
    found = Halves({}, {})
    for folder, subfolders, names in _walk(root, found):
        clip = os.path.basename(folder).removesuffix(ALIGNED)
        if any(map(is_frame, names)):
            subfolders.clear()  # frames lie in a folder of their own
            found.add(clip, folder)
        elif not subfolders and folder != root:
            found.unusable.setdefault(clip, ("no face frames", f"'{folder}' holds no picture"))
    for name in found.paths:
        found.unusable.pop(name, None)
    return found


def wav_files(root: str) -> Halves:
    """Find the wavs under a folder; the name of the clip is the name of the file."""
    found = Halves({}, {})
    for folder, _, names in _walk(root, found):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() == ".wav" and not name.startswith("."):
                found.add(stem, os.path.join(folder, name))
    return found


def _walk(root: str, found: Halves) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk in order of names, each folder once as links may form circles; note unreadable ones."""

    def report(error: OSError) -> None:
        if error.filename == root:
            raise error
        clip = os.path.basename(error.filename).removesuffix(ALIGNED)
        found.unusable[clip] = ("cannot be read", f"'{error.filename}': {error.strerror}")

    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=report, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        yield folder, subfolders, sorted(names)


def find(root: str, remedy: str, *candidates: str) -> str:
    """Return the first file or folder there is of some below a root; FileNotFoundError if none."""
    for candidate in candidates:
        path = os.path.normpath(os.path.join(root, candidate))
        if os.path.exists(path):
            return path
    expected = " or ".join(f"'{name}'" for name in candidates)
    raise FileNotFoundError(f"expected {expected} in '{root}', found {contents(root)}; {remedy}")


def contents(folder: str, shown: int = 8) -> str:
    """Name what is in a folder, shortened."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name + ("/" if e.is_dir() else "") for e in entries)
    except OSError as error:
        return f"that it cannot be read ({error.strerror})"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more if names else "nothing"


def is_frame(name: str) -> bool:
    """Tell whether a file of this name is a frame; names with a dot first are copies of macOS."""
    return name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")


@contextmanager
def reading(kind: str, path: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into UnusableClip; `kind` is video or audio."""
    try:
        yield
        return
    except FileNotFoundError:
        problem, detail = "missing", f"'{path}' does not exist"
    except OSError as error:
        problem, detail = "unreadable", f"'{path}': {error.strerror}"
    except (UnicodeError, TypeError):  # decord and soundfile take names as UTF-8
        problem, detail = "unreadable", f"name {ascii(path)} is not UTF-8; rename it"
    except soundfile.LibsndfileError as error:
        problem, detail = "unreadable", f"'{path}': {' '.join(str(error).split())[:200]}"
    except RuntimeError as error:  # UnreadableClip of our readers; they name the file
        problem = "silent" if " is silent" in str(error) else "unreadable"
        detail = str(error)
    raise UnusableClip(f"{kind} {problem}", detail)


def wav_seconds(path: str) -> float:
    """Return the length of a mono 16 kHz wav; UnusableClip where it is anything else."""
    with reading("audio", path):
        if os.path.getsize(path) == 0:
            raise UnusableClip("audio unreadable", f"'{path}' is an empty file")
        with open(path, "rb"):  # for the system's own words on what is wrong
            info = soundfile.info(path)
    rate, channels, samples = info.samplerate, info.channels, info.frames
    for kind, fits, detail in (
        ("audio sample rate", rate == SAMPLE_RATE, f"{rate} Hz, expected {SAMPLE_RATE}; {CONVERT}"),
        ("audio channels", channels == 1, f"{channels} channels, expected 1; {CONVERT}"),
        ("audio too short", samples > LEAST, f"{samples} samples, expected more than {LEAST}"),
    ):
        if not fits:
            raise UnusableClip(kind, f"'{path}' has {detail}")
    return samples / SAMPLE_RATE


def count_frames(folder: str) -> int:
    """Return how many pictures a folder holds; UnusableClip where there is none."""
    with reading("video", folder):
        frames = sum(map(is_frame, os.listdir(folder)))
    if not frames:
        raise UnusableClip("no face frames", f"'{folder}' holds no picture")
    return frames


def measure_all(clips: Sequence[ListedClip], num_workers: int) -> Iterator[ListedClip | LeftOut]:
    """Yield each clip with its length, or why it must be left out."""

    def measure(clip: ListedClip) -> ListedClip | LeftOut:
        try:
            return clip._replace(seconds=wav_seconds(clip.audio), frames=count_frames(clip.video))
        except UnusableClip as problem:
            return LeftOut(clip.name, problem.kind, problem.detail)

    # Threads: the time goes to the file system.
    with ThreadPoolExecutor(max(num_workers, 1)) as executor:
        results = executor.map(measure, clips)
        yield from tqdm(results, total=len(clips), unit="clip", desc="reading headers")
