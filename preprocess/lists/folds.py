"""Check the parts of a fold against each other, and write their lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from preprocess.lists.clips import ListedClip, write_csv

MANY = 5  # names shown in a message


def some(names: Iterable[str]) -> str:
    """Name a few of many, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MANY} more" if len(ordered) > MANY else ""
    return ", ".join(repr(name) for name in ordered[:MANY]) + more


def check_fold(
    where: str, parts: Mapping[str, Sequence[ListedClip]], shared_speakers: bool = False
) -> None:
    """Refuse a fold whose parts are empty, repeat a clip, or share a clip or a speaker.

    Args:
        where: the fold, for the message.
        parts: clips of "train", "test" and so on.
        shared_speakers: allow the same speaker in two parts, where the official protocol does.
    """
    for part, clips in parts.items():
        if not clips:
            raise ValueError(
                f"{where}: no clip is left for {part}.csv, expected at least one; see left_out.csv"
            )
        twice = [name for name, count in Counter(c.name for c in clips).items() if count > 1]
        if twice:
            raise ValueError(
                f"{where}: {len(twice)} clips are twice in {part}.csv, expected each once: "
                f"{some(twice)}; check the files named so"
            )
    for one, other in combinations(parts, 2):
        names = ({c.name for c in parts[p]} for p in (one, other))
        _refuse_shared(where, one, other, "clips", *names)
        if not shared_speakers:
            speakers = ({c.speaker for c in parts[p] if c.speaker} for p in (one, other))
            _refuse_shared(where, one, other, "speakers", *speakers)


def _refuse_shared(
    where: str, one: str, other: str, things: str, first: set[str], second: set[str]
) -> None:
    shared = first & second
    if shared:
        raise ValueError(
            f"{where}: {len(shared)} {things} are in {one}.csv and in {other}.csv, expected none: "
            f"{some(shared)}; check the split and the names"
        )


def write_fold(
    folder: str | Path,
    parts: Mapping[str, Sequence[ListedClip]],
    relative_to: str | Path | None = None,
    shared_speakers: bool = False,
) -> None:
    """Check a fold, then write one list for each part: FOLDER/train.csv, FOLDER/test.csv.

    Nothing is written when the check fails (ValueError); each list appears whole or not at all.

    Args:
        folder: made where it is missing.
        parts: clips of "train", "test" and so on, in the order to write them.
        relative_to: write names relative to this folder (training's --data_root joins them again);
            None writes absolute ones.
        shared_speakers: allow the same speaker in two parts.
    """
    # imported here, not above: hicmae brings torch, which nothing else of a list script needs
    from hicmae.data.clip_list import Clip, write_list

    check_fold(str(folder), parts, shared_speakers)
    for part, clips in parts.items():
        lines = (
            Clip(path_in_list(c.video, relative_to), path_in_list(c.audio, relative_to), c.label)
            for c in clips
        )
        write_list(Path(folder) / f"{part}.csv", lines)


def write_clip_speakers(
    folder: str | Path, clips: Iterable[ListedClip], relative_to: str | Path | None = None
) -> None:
    """Write clip_speakers.csv (clip, speaker), by which --val_split speaker knows who is in a clip.

    Args:
        folder: of the lists, or the one above its folds.
        clips: of all lists; where the speaker is unknown, a clip is left out, and without any known
            speaker there is no file.
        relative_to: as in `write_fold`.
    """
    path = Path(folder) / "clip_speakers.csv"
    rows = {path_in_list(c.video, relative_to): c.speaker for c in clips if c.speaker is not None}
    if rows:
        write_csv(path, ["clip", "speaker"], rows.items())
    else:
        path.unlink(missing_ok=True)


def path_in_list(path: str, relative_to: str | Path | None) -> str:
    """Return a path the way a list holds it: absolute, or relative to a folder."""
    return os.path.abspath(path) if relative_to is None else os.path.relpath(path, relative_to)
