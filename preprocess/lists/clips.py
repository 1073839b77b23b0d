"""Clips on their way into lists: files found by name and looked at without decoding, then written.

Beside the lists stand a table of speakers, and the reasons for leaving out.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from hicmae.data.audio import SHORTEST_SPAN, WavFile
from hicmae.data.clip_list import Clip, write_list
from hicmae.data.media import walk
from hicmae.data.splits import SPEAKER_FILE
from hicmae.data.video import FRAME_EXTENSIONS
from hicmae.io import UnreadableClip, describe, write_csv, write_whole

logger = logging.getLogger(__name__)

ALIGNED = "_aligned"  # OpenFace's and extract_face's ending of a folder of faces
KINDS = {  # of what is wrong with video or audio, by words of the readers' messages
    "does not exist": "{} missing",
    "No such file": "{} missing",
    "holds no frame": "no face frames",
    "sample rate": "{} sample rate",
    "channels": "{} channels",
    "samples, expected": "{} too short",
    "is silent": "{} silent",
}

Label = int | tuple[float, ...]
Problem = tuple[str, str]  # one of few kinds, and the details


class Candidate(NamedTuple):
    """A clip that a list may hold; with a `reason`, one of few kinds, it is in none.

    `name` is what its data set calls it, unique in a list. `label` is a class index or a tuple of
    regression targets. `speaker` is None where nobody knows. `video` is a folder of face frames or
    a video file, `audio` a wav; before files are looked for, `audio` is the wav's name where that
    is not the clip's.
    """

    name: str
    label: Label = 0
    speaker: str | None = None
    video: str = ""
    audio: str = ""
    reason: str = ""
    detail: str = ""


Lists = Mapping[str, Sequence[Candidate]]  # by name, such as "split01/train" or "test"


# Which files


def find_halves(root: str, wanted: Literal["faces", "wavs"]) -> dict[str, list[str]]:
    """Find the wavs or the folders of pictures under a folder, by the names of their clips.

    `x/x_aligned/` and `x/` are both the pictures of clip x. Of a folder that holds none, or cannot
    be read, there is the name only.
    """
    found = defaultdict[str, list[str]](list)

    def clip_of(folder: str) -> list[str]:
        return found[os.path.basename(folder).removesuffix(ALIGNED)]

    def note(error: OSError) -> None:
        if error.filename == root:
            raise error
        logger.warning("'%s' cannot be read: %s", error.filename, error.strerror)
        clip_of(error.filename)

    for folder, subfolders, names in walk(root, note):
        if wanted == "wavs":
            for wav in (name for name in names if name.lower().endswith(".wav")):
                found[wav[:-4]].append(os.path.join(folder, wav))
        elif any(name.lower().endswith(FRAME_EXTENSIONS) for name in names):
            subfolders.clear()  # frames lie in a folder of their own
            clip_of(folder).append(folder)
        elif not subfolders and folder != root:
            clip_of(folder)
    return dict(found)


# What is in them


@contextmanager
def reading(kind: str, path: str, problems: list[Problem]) -> Iterator[None]:
    """Note what goes wrong while a file is read, and go on; `kind` is video or audio."""
    try:
        yield
    except (OSError, UnreadableClip) as error:
        words = str(error).replace(path, "")
        found = (what for said, what in KINDS.items() if said in words)
        problems.append((next(found, "{} unreadable").format(kind), describe(error)))


def open_wav(path: str) -> WavFile:
    """Open a mono 16 kHz wav; UnreadableClip where a file is none, or too short for a list."""
    wav = WavFile(path)
    if len(wav) <= SHORTEST_SPAN:
        text = f"audio '{path}' has {len(wav)} samples, expected more than {SHORTEST_SPAN}"
        raise UnreadableClip(text)
    return wav


def checked(clips: Iterable[Candidate], num_workers: int) -> list[Candidate]:
    """Return clips, those whose wavs cannot be used with the reason."""

    def check(clip: Candidate) -> Candidate:
        problems: list[Problem] = []
        if not clip.reason:
            with reading("audio", clip.audio, problems):
                open_wav(clip.audio)
        for reason, detail in problems[:1]:
            clip = clip._replace(reason=reason, detail=detail)
        return clip

    every = list(clips)
    with ThreadPoolExecutor(num_workers) as executor:  # the time goes to the file system
        return list(tqdm(executor.map(check, every), "reading headers", len(every), unit="clip"))


# What is written


def in_list(clip: Candidate, relative_to: str | None) -> Clip:
    """Return a clip as a list holds it: with absolute paths, or relative to training's --data_root.

    `relative_to` is that folder; None for absolute ones.
    """
    name = os.path.abspath if relative_to is None else partial(os.path.relpath, start=relative_to)
    return Clip(name(clip.video), name(clip.audio), clip.label)


def write_lists(
    output: Path, lists: Lists, labels: Sequence[str], relative_to: str | None = None
) -> None:
    """Write NAME.csv of each list, the names of its labels, and clip_speakers.csv.

    Nothing is written where a list is empty or repeats a clip, or where it shares a clip or a
    speaker with another one of its folder. `labels` go to classes.txt, or targets.txt of a
    regression. The speakers serve --val_split speaker. For `relative_to` see `in_list`.
    """
    check_lists(output, lists)
    speakers: dict[str, str] = {}
    for name, clips in lists.items():
        lines = [in_list(clip, relative_to) for clip in clips]
        write_list(output / f"{name}.csv", lines)
        known = zip(lines, clips, strict=True)
        speakers |= {line.video: clip.speaker for line, clip in known if clip.speaker is not None}
        logger.info("%s: %s", output / f"{name}.csv", contents_of(clips, labels))
    if speakers:
        write_csv(output / SPEAKER_FILE, ["clip", "speaker"], speakers.items())
    else:
        (output / SPEAKER_FILE).unlink(missing_ok=True)
    if labels:
        kind = "targets" if isinstance(lines[0].label, tuple) else "classes"
        write_whole(output / f"{kind}.txt", "".join(f"{label}\n" for label in labels))


def contents_of(clips: Sequence[Candidate], labels: Sequence[str]) -> str:
    """Say what a list holds: clips, speakers, the clips of each class or the means of targets."""
    values, speakers = [clip.label for clip in clips], {clip.speaker for clip in clips} - {None}
    of_each: list[str] = [str(values.count(k)) for k in range(len(labels))]
    if isinstance(values[0], tuple):
        of_each = [f"{mean:.3f}" for mean in np.mean(np.array(values), axis=0)]
    told = (f"{name!r} {value}" for name, value in zip(labels, of_each, strict=True))
    people = f" of {len(speakers)} speakers" if speakers else ""
    return f"{len(clips)} clips{people}" + "".join(f", {text}" for text in told)


def check_lists(output: Path, lists: Lists) -> None:
    """Refuse lists that are empty, repeat a clip, or share a clip or a speaker in one folder."""
    for name, clips in lists.items():
        path = f"'{output / name}.csv'"
        if not clips:
            raise ValueError(f"no clip is left for {path}, expected at least one; see left_out.csv")
        twice = [clip for clip, count in Counter(c.name for c in clips).items() if count > 1]
        if twice:
            raise ValueError(
                f"{len(twice)} clips are twice in {path}, expected each once: {some(twice)}; "
                "check the files named so"
            )
    for one, other in combinations(lists, 2):
        for things, trait in (("clips", "name"), ("speakers", "speaker")):
            first, second = ({getattr(c, trait) for c in lists[name]} for name in (one, other))
            shared = (first & second) - {None}
            if shared and os.path.dirname(one) == os.path.dirname(other):
                raise ValueError(
                    f"{output}: {len(shared)} {things} are in {one}.csv and in {other}.csv, "
                    f"expected none: {some(shared)}; check the split and the names"
                )


def some(names: Iterable[str], shown: int = 5) -> str:
    """Name a few of many, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(map(repr, ordered[:shown])) + more


def write_left_out(output: Path, clips: Iterable[Candidate]) -> bool:
    """Write left_out.csv, also where nothing was left out, and log how many for which reason.

    Returns whether something was left out.
    """
    path, left_out = output / "left_out.csv", [clip for clip in clips if clip.reason]
    rows = ((clip.name, clip.reason, clip.detail) for clip in left_out)
    write_csv(path, ["clip", "reason", "detail"], rows)
    for reason, count in Counter(clip.reason for clip in left_out).most_common():
        logger.info("left out: %d for %r, see %s", count, reason, path)
    return bool(left_out)
