"""A clip on its way into a list: its files, found by name and measured without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, NamedTuple

import soundfile
from tqdm import tqdm

from hicmae.data.audio import SAMPLE_RATE, SHORTEST_SPAN
from hicmae.data.media import walk
from hicmae.data.video import FRAME_EXTENSIONS

ALIGNED = "_aligned"  # OpenFace's and extract_face's ending of a folder of faces
CONVERT = "convert it with preprocess/face_and_audio/extract_audio.py"
TWO = "two of one name"

Label = int | tuple[float, ...]
Problem = tuple[str, str]  # one of few kinds, and the details
Half = str | Problem  # a path, or why there is none


class Candidate(NamedTuple):
    """A clip that a list may hold; with a `reason`, one of few kinds, it is in none.

    `name` is what its data set calls it, unique in a list. `label` is a class index or a tuple of
    regression targets. `speaker` is None where nobody knows. `video` is a folder of face frames or
    a video file, `audio` a wav; before files are looked for, `audio` is the wav's name where that
    is not the clip's. `seconds` of sound and the number of `frames` are 0 until they are read.
    """

    name: str
    label: Label = 0
    speaker: str | None = None
    video: str = ""
    audio: str = ""
    seconds: float = 0.0
    frames: int = 0
    reason: str = ""
    detail: str = ""


# Which files


def find_halves(root: str, wanted: Literal["faces", "wavs"]) -> dict[str, Half]:
    """Find the wavs or the folders of pictures under a folder, by the names of their clips.

    `x/x_aligned/` and `x/` are both the pictures of clip x. Of two files with one name neither can
    be chosen.
    """
    found: dict[str, Half] = {}

    def note(error: OSError) -> None:
        if error.filename == root:
            raise error
        clip = os.path.basename(error.filename).removesuffix(ALIGNED)
        found.setdefault(clip, ("cannot be read", f"'{error.filename}': {error.strerror}"))

    for folder, subfolders, names in walk(root, note):
        here: list[tuple[str, str]] = []
        clip = os.path.basename(folder).removesuffix(ALIGNED)
        if wanted == "wavs":
            wavs = (name for name in names if name.lower().endswith(".wav"))
            here = [(wav[:-4], os.path.join(folder, wav)) for wav in wavs]
        elif any(map(is_frame, names)):
            subfolders.clear()  # frames lie in a folder of their own
            here = [(clip, folder)]
        elif not subfolders and folder != root:
            found.setdefault(clip, ("no face frames", f"'{folder}' holds no picture"))
        for name, path in here:
            known = found.get(name, ("", ""))
            if isinstance(known, str):
                found[name] = TWO, f"'{known}' and '{path}'"
            elif known[0] != TWO:
                found[name] = path
    return found


def is_frame(name: str) -> bool:
    """Tell whether a file of this name is a frame; names with a dot first are copies of macOS."""
    return name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith(".")


def is_utf8(text: str) -> bool:
    """Tell whether a text holds no bytes that are not UTF-8, as names may."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


# What is in them


class Unusable(Exception):
    """One half of a clip cannot be used; the arguments are a `Problem`."""


@contextmanager
def reading(kind: str, path: str, problems: list[Problem]) -> Iterator[None]:
    """Note what goes wrong while a file is read, and go on; `kind` is video or audio."""
    try:
        yield
    except Unusable as error:
        what, detail = error.args
        problems.append((what, detail))
    except FileNotFoundError:
        why = "" if is_utf8(path) else ", and its name in the list is not UTF-8"
        problems.append((f"{kind} missing", f"'{path}' does not exist{why}"))
    except OSError as error:
        problems.append((f"{kind} unreadable", f"'{path}': {error.strerror}"))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless, e.g. .raw
        words = " ".join(str(error).split())[:200]
        problems.append((f"{kind} unreadable", f"'{path}': {words}"))
    except RuntimeError as error:  # UnreadableClip of our readers; they name the file
        silent = " is silent" in str(error)
        problems.append((f"{kind} {'silent' if silent else 'unreadable'}", str(error)))


def wav_seconds(path: str) -> float:
    """Return the length of a mono 16 kHz wav; Unusable where it is anything else."""
    with open(path, "rb") as file:  # for the system's own words on what is wrong
        if not file.read(1):
            raise Unusable("audio unreadable", f"'{path}' is an empty file")
    info = soundfile.info(os.fsencode(path))  # bytes: a name need not be UTF-8
    kind, got = "", ""
    if info.samplerate != SAMPLE_RATE:
        kind, got = "sample rate", f"{info.samplerate} Hz, expected {SAMPLE_RATE}; {CONVERT}"
    elif info.channels != 1:
        kind, got = "channels", f"{info.channels} channels, expected 1; {CONVERT}"
    elif info.frames <= SHORTEST_SPAN:
        kind, got = "too short", f"{info.frames} samples, expected more than {SHORTEST_SPAN}"
    if kind:
        raise Unusable(f"audio {kind}", f"'{path}' has {got}")
    return info.frames / SAMPLE_RATE


def count_frames(folder: str) -> int:
    """Return how many pictures a folder holds; Unusable where there is none."""
    frames = sum(map(is_frame, os.listdir(folder)))
    if not frames:
        raise Unusable("no face frames", f"'{folder}' holds no picture")
    return frames


def measured(clips: Iterable[Candidate], num_workers: int) -> list[Candidate]:
    """Return clips with their lengths, or with the reason why they must be left out."""

    def measure(clip: Candidate) -> Candidate:
        if clip.reason:
            return clip
        problems: list[Problem] = []
        with reading("audio", clip.audio, problems):
            clip = clip._replace(seconds=wav_seconds(clip.audio))
        with reading("video", clip.video, problems):
            clip = clip._replace(frames=count_frames(clip.video))
        reason, detail = problems[0] if problems else ("", "")
        return clip._replace(reason=reason, detail=detail)

    every = list(clips)
    with ThreadPoolExecutor(max(num_workers, 1)) as executor:  # the time goes to the file system
        return list(tqdm(executor.map(measure, every), "reading headers", len(every), unit="clip"))
