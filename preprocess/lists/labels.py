"""Read labels.csv of one's own videos, and draw which of them are for testing."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import pandas as pd

from preprocess.lists.annotations import number, read_table
from preprocess.lists.clips import LeftOut

PARTS = ("train", "val", "test")


def read_labels(
    path: str, videos: Iterable[str], task: str
) -> tuple[pd.DataFrame, list[str], list[LeftOut]]:
    """Read labels.csv and match it with the videos.

    Returns a row for each labelled video, by its name: `label`, a class name or a tuple of numbers,
    `speaker` and `split`, None where the file has no such column; the names of the columns of
    numbers, or "label"; and the lines without a video.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--labels '{path}' does not exist")
    lines = list(read_table(path, ["video", "label"] if task == "classification" else ["video"]))
    columns = ["label"]
    if task == "regression":
        header = lines[0][1] if lines else {}
        columns = [c for c in header if c not in ("", "video", "speaker", "split")]
        if not columns:
            raise ValueError(f"{path}:1: expected the column video and one for each target")
    known = _spellings(videos)
    labels: dict[str, list[object]] = {}
    left_out = []
    for where, row in lines:
        values = [_value(where, row, column, task) for column in columns]
        label = values[0] if task == "classification" else tuple(values)
        matches = known.get(os.path.normpath(row["video"]), [])
        if len(matches) > 1 or set(matches) & labels.keys():
            problem = "several videos" if len(matches) > 1 else "a video that has a label already"
            raise ValueError(f"{where}: {row['video']!r} names {problem}, expected one of its own")
        elif matches:
            labels[matches[0]] = [label, *(_value(where, row, c) for c in ("speaker", "split"))]
        else:
            left_out.append(LeftOut(row["video"], "no such video", where))
    fields = ["label", "speaker", "split"]
    table = pd.DataFrame(labels.values(), pd.Index(labels, dtype=object), fields, dtype=object)
    return table, columns, left_out


def _spellings(videos: Iterable[str]) -> dict[str, list[str]]:
    """Return what a name in labels.csv may mean: whole, without suffix, folder or both."""
    known: dict[str, list[str]] = {}
    paths = {video: PurePath(video) for video in videos}
    for spell in (str, lambda p: str(p.with_suffix("")), lambda p: p.name, lambda p: p.stem):
        meant: dict[str, list[str]] = {}
        for video, path in paths.items():
            meant.setdefault(spell(path), []).append(video)
        known = meant | known  # a fuller name comes first
    return known


def _value(where: str, row: Mapping[str, str], column: str, task: str = "") -> str | float | None:
    """Return one checked field; None where there is no such column."""
    text = row.get(column)
    if task == "regression":
        return number(row[column], f"{where}, column '{column}'")
    expected = "train, val or test" if column == "split" else "a name"
    if text == "" or (text is not None and column == "split" and text not in PARTS):
        raise ValueError(f"{where}, column '{column}': expected {expected}, got {text!r}")
    return text


def class_names(labels: Iterable[str]) -> list[str]:
    """Return the classes in order: numbers by their value, then words by the alphabet."""

    def key(name: str) -> tuple[bool, int, str]:
        return not name.isdecimal(), int(name) if name.isdecimal() else 0, name

    return sorted(set(labels), key=key)


def assign_parts(labels: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Return train, val or test for each row of `read_labels`: its `split`, or as drawn."""
    if labels["split"].notna().any():
        return labels["split"]
    speakers = labels["speaker"].where(labels["speaker"].notna(), labels.index)
    kinds = labels["label"].map(lambda label: label if isinstance(label, str) else "")
    groups = {speaker: Counter(own) for speaker, own in kinds.groupby(speakers, sort=False)}
    return speakers.isin(split_groups(groups, share, seed)).map({True: "test", False: "train"})


def split_groups(groups: Mapping[str, Counter[str]], share: float, seed: int) -> set[str]:
    """Choose groups of clips for testing so that every class has about its share there.

    `groups` holds the number of clips by class, of each speaker (or clip).
    """
    if len(groups) < 2:
        raise ValueError(
            f"expected at least two speakers or clips to split, got {len(groups)}; "
            "add some, or a column 'split'"
        )
    total: Counter[str] = sum(groups.values(), Counter())
    wanted = {label: share * count for label, count in total.items()}

    def distance(counts: Counter[str]) -> float:
        return sum((counts[label] - want) ** 2 / want for label, want in wanted.items())

    order = sorted(groups)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    counts: Counter[str] = Counter()
    for group in order:
        better = distance(counts + groups[group]) < distance(counts)
        if better and len(chosen) < len(groups) - 1:
            chosen.add(group)
            counts += groups[group]
    return chosen or {min(order, key=lambda group: distance(groups[group]))}
