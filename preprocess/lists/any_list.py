"""Read lists of any kind, as people write them: what a list is for shows in most of its lines."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hicmae.data.clip_list import Clip, Label, is_packed, wav_of
from hicmae.data.media import VIDEO_SUFFIXES
from hicmae.data.video import NOT_READ

logger = logging.getLogger(__name__)

FORMS = {
    "pre-training": "'<video.mp4> <int>'",
    "classification": "'<video> <audio.wav> <class index>'",
    "regression": "'<video> <audio.wav> <number> ...'",
}

Key = tuple[str, str]  # video, audio


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


def find_lists(given: list[str], cleaned: str, data_root: str, modality: str) -> list[ListFile]:
    """Read the lists, but not those that an earlier run has written and *.csv gives as well.

    Other tables in a folder of lists, such as left_out.csv, are passed over.
    """
    found: dict[Path, ListFile] = {}
    others = []
    for path in map(Path, given):
        if is_packed(path):
            raise ValueError(f"'{path}' holds shards; check them with pack_clips.py --verify")
        for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
            if is_suffix(cleaned) and file.stem.endswith(cleaned):
                continue
            try:
                found[file] = read_list(file, data_root, modality)
            except ValueError:
                if file == path:
                    raise
                others.append(str(file))
    if others:
        logger.info("passed over as no lists: %s", ", ".join(others))
    if not found:
        raise ValueError(
            f"found no list in {' '.join(given)}, but what this tool has written ({cleaned}); name "
            "others"
        )
    return list(found.values())


def is_suffix(cleaned: str) -> bool:
    """Tell a suffix from a folder."""
    return cleaned.startswith(".") and os.sep not in cleaned


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
    labels = (tuple(line[2 if len(line) > 2 else 1 :]) for line in lines)
    every = [
        kinds_of(os.path.splitext(line[0])[1], len(line), label)
        for line, label in zip(lines, labels, strict=True)
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
