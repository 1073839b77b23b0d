"""Read labels.csv of one's own videos, and draw which of them are for testing."""

from __future__ import annotations

import csv
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from preprocess.lists.clips import LeftOut

NOT_TARGETS = ("video", "speaker", "split")
PARTS = ("train", "val", "test")


class Label(NamedTuple):
    """One line of labels.csv; `values` are a class name, or numbers in regression."""

    values: tuple[str, ...]
    speaker: str | None
    split: str | None


def read_labels(
    path: str, videos: Sequence[str], task: str
) -> tuple[dict[str, Label], list[str], list[LeftOut]]:
    """Read labels.csv and match it with the videos.

    Returns:
        Label by name of video, names of the label's columns, and lines without a video.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--labels '{path}' does not exist")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, strict=True)
        rows = [(reader.line_num, row) for row in reader]
        header = [column for column in reader.fieldnames or [] if column]
    columns = ["label"] if task == "classification" else [c for c in header if c not in NOT_TARGETS]
    if "video" not in header or not columns or not set(columns) <= set(header):
        needed = "video,label" if task == "classification" else "video and a column for each target"
        raise ValueError(f"{path}:1: expected the columns {needed}, got {','.join(header)!r}")
    find = _finder(videos)
    labels: dict[str, Label] = {}
    left_out = []
    for line, row in rows:
        where = f"{path}:{line}"
        label = _label(where, row, columns, task)
        matches = find(row["video"] or "")
        if not matches:
            left_out.append(LeftOut(row["video"] or "", "no such video", where))
        elif len(matches) > 1 or matches[0] in labels:
            problem = "several videos" if len(matches) > 1 else "a video that has a label already"
            raise ValueError(f"{where}: {row['video']!r} names {problem}, expected one of its own")
        else:
            labels[matches[0]] = label
    return labels, columns, left_out


def split_groups(groups: dict[str, Counter[str]], share: float, seed: int) -> set[str]:
    """Choose groups of clips for testing so that every class has about its share there.

    Args:
        groups: number of clips by class, of each speaker (or clip).
        share: of the clips, for testing.
        seed: decides among the many ways.
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
    chosen: list[str] = []
    counts: Counter[str] = Counter()
    for group in order:
        better = distance(counts + groups[group]) < distance(counts)
        if better and len(chosen) < len(groups) - 1:
            chosen.append(group)
            counts += groups[group]
    return set(chosen) or {min(order, key=lambda group: distance(groups[group]))}


def assign_parts(labels: dict[str, Label], share: float, seed: int, task: str) -> dict[str, str]:
    """Return train, val or test for each labelled video."""
    given = {name: label.split for name, label in labels.items() if label.split}
    if given:
        return given
    speakers = {name: label.speaker or name for name, label in labels.items()}
    groups: dict[str, Counter[str]] = {}
    for name, label in labels.items():
        kind = label.values[0] if task == "classification" else ""
        groups.setdefault(speakers[name], Counter())[kind] += 1
    test = split_groups(groups, share, seed)
    return {name: "test" if speakers[name] in test else "train" for name in labels}


def class_names(labels: Iterable[Label]) -> list[str]:
    """Return the classes in order: numbers by their value, then words by the alphabet."""

    def key(name: str) -> tuple[bool, int, str]:
        return not name.isdecimal(), int(name) if name.isdecimal() else 0, name

    return sorted({label.values[0] for label in labels}, key=key)


def _finder(videos: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what finds the videos that a name may mean: whole, without suffix or folder."""
    by_name: list[dict[str, list[str]]] = [{}, {}, {}, {}]
    for video in videos:
        path = PurePath(video)
        for names, name in zip(
            by_name, (video, str(path.with_suffix("")), path.name, path.stem), strict=True
        ):
            names.setdefault(name, []).append(video)

    def find(name: str) -> list[str]:
        name = os.path.normpath(name) if name else name
        return next((names[name] for names in by_name if name in names), [])

    return find


def _label(where: str, row: dict[str, str | None], columns: Sequence[str], task: str) -> Label:
    values = tuple((row[column] or "").strip() for column in columns)
    for column, value in zip(columns, values, strict=True):
        if not value or (task == "regression" and not _is_number(value)):
            wanted = "a finite number" if task == "regression" else "a class name"
            raise ValueError(f"{where}: expected {wanted} in column '{column}', got {value!r}")
    split = (row.get("split") or "").strip() or None
    if "split" in row and split not in PARTS:
        raise ValueError(f"{where}: expected train, val or test in column 'split', got {split!r}")
    speaker = (row.get("speaker") or "").strip() or None
    if "speaker" in row and speaker is None:
        raise ValueError(f"{where}: expected a name in column 'speaker', got nothing")
    return Label(values, speaker, split)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
