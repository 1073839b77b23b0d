"""Clips that are pieces of one longer recording, scored together as one item (AVCAffe's tasks)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hicmae.data.speakers import base_name


def item_name(video: str, fields: int) -> str:
    """Return the first `fields` "_" fields of a clip's base name.

    Raises:
        ValueError: the name has fewer.
    """
    name = base_name(video)
    parts = name.split("_")
    if len(parts) < fields:
        raise ValueError(
            f"--average_clips {fields} needs names of {fields} or more '_' fields, got '{name}'"
        )
    return "_".join(parts[:fields])


def group_clips(videos: Sequence[str], labels: Sequence[Any], fields: int) -> dict[str, list[int]]:
    """Return the positions of each item's clips, items in the order of their first clips.

    Args:
        videos: names of the clips.
        labels: class or regression targets of each.
        fields: see `item_name`.

    Raises:
        ValueError: clips of an item have different labels.
    """
    items: dict[str, list[int]] = {}
    for index, video in enumerate(videos):
        first = items.setdefault(item_name(video, fields), [])
        first.append(index)
        if not np.array_equal(labels[first[0]], labels[index]):
            raise ValueError(
                f"clips '{videos[first[0]]}' and '{video}' are one item by --average_clips "
                f"{fields}, but have the labels {labels[first[0]]} and {labels[index]}, expected "
                "the same; check the list and the number"
            )
    return items
