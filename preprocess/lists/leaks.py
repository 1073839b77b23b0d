"""Clips that are in a list twice, or in a training list and in a test list: by name, by content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from preprocess.lists.shards import Record

Key = tuple[str, str]  # video, audio


class Finding(NamedTuple):
    """Something wrong with one line of a list; `place` counts its clips from 0."""

    list: str
    place: int
    kind: str
    detail: str


def broken(name: str, clips: Sequence[Key], records: Mapping[Key, Record]) -> Iterator[Finding]:
    """Yield the clips that cannot be used."""
    for index, clip in enumerate(clips):
        record = records[clip]
        if record.problems:
            yield Finding(name, index, record.problems, record.detail)


def repeated(name: str, clips: Sequence[Key], records: Mapping[Key, Record]) -> Iterator[Finding]:
    """Yield the later ones of clips that share a file or its content within a list."""
    first: dict[tuple[str, str], int] = {}
    for index, clip in enumerate(clips):
        traits = list(_traits(clip, records[clip]))
        same = [trait for trait in traits if trait in first]
        if same:
            other = clips[first[same[0]]]
            yield Finding(name, index, "in the list twice", _same(same, other))
        for trait in traits:
            first.setdefault(trait, index)


def leaked(
    train: str,
    train_clips: Sequence[Key],
    test: str,
    test_clips: Sequence[Key],
    records: Mapping[Key, Record],
) -> Iterator[Finding]:
    """Yield the clips of the training list that share a file or its content with the test list."""
    tested = {trait: clip for clip in test_clips for trait in _traits(clip, records[clip])}
    for index, clip in enumerate(train_clips):
        same = [trait for trait in _traits(clip, records[clip]) if trait in tested]
        if same:
            detail = f"{test}: {_same(same, tested[same[0]])}"
            yield Finding(train, index, "in training and test", detail)


def _traits(clip: Key, record: Record) -> Iterator[tuple[str, str]]:
    """Yield what no two clips should share; contents only of good clips, as silence is alike."""
    video, audio = clip
    yield "video file", os.path.abspath(video)
    yield "audio file", os.path.abspath(audio)
    if not record.problems:
        yield "frames", record.pictures
        yield "sound", record.sound


def _same(traits: list[tuple[str, str]], other: Key) -> str:
    kinds = " and ".join(kind for kind, _ in traits)
    return f"same {kinds} as '{other[0]}', '{other[1]}'"
