"""Clips on their way into lists: the checks of a fold, and all files that are written."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd

Label = int | tuple[float, ...]


class ListedClip(NamedTuple):
    """A clip that has all it needs for one line of a list.

    `name` is what its data set calls it, unique in a list. `video` is a folder of face frames or a
    video file, `audio` a wav; both as found, absolute or from the current folder. `label` is a
    class index or a tuple of regression targets. `speaker` is None where nobody knows. `seconds` of
    sound and the number of `frames` are 0 until they are read.
    """

    name: str
    video: str
    audio: str
    label: Label
    speaker: str | None = None
    seconds: float = 0.0
    frames: int = 0


class LeftOut(NamedTuple):
    """A clip that is in no list: its name, one of few kinds of reason, and the details."""

    clip: str
    reason: str
    detail: str = ""


Parts = Mapping[str, Sequence[ListedClip]]  # "train", "test" and so on, in the order of the lists


def in_list(clip: ListedClip, relative_to: str | Path | None) -> ListedClip:
    """Return a clip with its paths as a list holds them, see `path_in_list`."""
    video, audio = (path_in_list(path, relative_to) for path in (clip.video, clip.audio))
    return clip._replace(video=video, audio=audio)


def path_in_list(path: str, relative_to: str | Path | None) -> str:
    """Return an absolute path, or one relative to a folder, which training's --data_root names."""
    return os.path.abspath(path) if relative_to is None else os.path.relpath(path, relative_to)


def write_folds(output: Path, folds: Mapping[str, Parts]) -> None:
    """Write FOLD/train.csv, FOLD/test.csv and so on; all folds are checked before the first list.

    A fold of the name "" writes its lists to `output` itself.
    """
    # Imported here, as hicmae brings torch, which --help and a refused folder do without.
    from hicmae.data.clip_list import Clip, write_list

    for fold, parts in folds.items():
        check_fold(str(output / fold), parts)
    for fold, parts in folds.items():
        for part, clips in parts.items():
            lines = (Clip(clip.video, clip.audio, clip.label) for clip in clips)
            write_list(output / fold / f"{part}.csv", lines)


def write_clip_speakers(output: Path, clips: Iterable[ListedClip]) -> None:
    """Write clip_speakers.csv, for --val_split speaker; without a known speaker there is none."""
    path = output / "clip_speakers.csv"
    rows = {clip.video: clip.speaker for clip in clips if clip.speaker is not None}
    if rows:
        write_csv(path, ["clip", "speaker"], rows.items())
    else:
        path.unlink(missing_ok=True)


def check_fold(where: str, parts: Parts) -> None:
    """Refuse a fold whose parts are empty, repeat a clip, or share a clip or a speaker."""
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
        for things, trait in (("clips", "name"), ("speakers", "speaker")):
            first, second = ({getattr(c, trait) for c in parts[p]} for p in (one, other))
            if shared := (first & second) - {None}:
                raise ValueError(
                    f"{where}: {len(shared)} {things} are in {one}.csv and in {other}.csv, "
                    f"expected none: {some(shared)}; check the split and the names"
                )


def write_csv(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a table whole or not at all; names may hold bytes that are not UTF-8."""
    from hicmae.io import whole_file  # as above

    with (
        whole_file(path) as part,
        open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_left_out(path: Path, left_out: Iterable[LeftOut]) -> None:
    """Write left_out.csv, also when nothing was left out."""
    write_csv(path, LeftOut._fields, left_out)


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write classes.txt or targets.txt, a name a line."""
    from hicmae.io import write_whole

    write_whole(path, "".join(f"{name}\n" for name in names))


def some(names: Iterable[str], shown: int = 5) -> str:
    """Name a few of many, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(map(repr, ordered[:shown])) + more


def table_text(table: pd.DataFrame) -> str:
    """Lay out a table for the terminal, a line a row, in ASCII whatever its names hold."""

    def plain(value: object) -> str:
        return ascii(str(value))[1:-1]

    shown = table.rename(index=plain, columns=plain).rename_axis(index=None, columns=None)
    return shown.map(plain).to_string()


def totals(clips: pd.DataFrame, by: str, labels: Sequence[str]) -> pd.DataFrame:
    """Return clips, speakers, minutes and classes (or means of targets) by a column, in its order.

    `clips` has the fields of `ListedClip` as columns.
    """
    groups = clips.groupby(by, sort=False)
    table = groups.agg(
        clips=("name", "size"), speakers=("speaker", "nunique"), minutes=("seconds", "sum")
    )
    table["minutes"] = [f"{seconds / 60:.1f}" for seconds in table["minutes"]]
    if isinstance(clips["label"].iloc[0], tuple):
        values = pd.DataFrame(clips["label"].tolist(), clips.index, labels)
        return table.join(values.groupby(clips[by]).agg(lambda v: f"{sum(v) / len(v):.3f}"))
    counts = {name: (clips["label"] == k).groupby(clips[by]).sum() for k, name in enumerate(labels)}
    return table.join(pd.DataFrame(counts))


def left_out_table(left_out: Sequence[LeftOut]) -> str:
    """Say how many clips were left out for which reason, with an example each."""
    if not left_out:
        return "nothing was left out"
    table = pd.DataFrame(left_out, columns=LeftOut._fields, dtype=object)
    groups = table.groupby("reason", sort=False)["clip"].agg(["size", "first"])
    groups.columns = pd.Index(["left out", "for example"])
    groups["for example"] = groups["for example"].str[:60]
    return table_text(groups.sort_values("left out", ascending=False, kind="stable"))
