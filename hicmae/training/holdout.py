"""Validation clips held out of the training list, so that nobody chooses by the test list."""

import csv
import io
import logging
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hicmae.data.streams import AnyClip

logger = logging.getLogger(__name__)

FILE = "val_clips.csv"
DRAWS = 1000  # orders of the groups to choose from; more hardly balance better
_HOLD_OUT = 3  # first word of the seed: shares no random numbers with the order of the clips


class Holdout(NamedTuple):
    """A training list in two, each in list order."""

    train: list[AnyClip]
    val: list[AnyClip]
    val_groups: list[str]  # speaker, or whatever was kept whole, of each validation clip


def hold_out(
    clips: Sequence[AnyClip], groups: Sequence[str], share: float, seed: int, modality: str = "av"
) -> Holdout:
    """Hold out whole groups of clips, so that every class gives about its share.

    Of many random orders of the groups, and of the beginnings of each, the one is taken whose share
    of all clips and of every class (regression: of each third of every target's values) comes
    nearest to `share`.

    Args:
        clips: the training list.
        groups: speaker of each clip.
        share: of the clips, in (0, 1).
        seed: decides among the many ways.
        modality: streams that are read; no file of them may be on both sides.
    """
    chosen = _choose(groups, _traits(clips), share, seed)
    held = [group in chosen for group in groups]
    train = [clip for clip, out in zip(clips, held, strict=True) if not out]
    val = [clip for clip, out in zip(clips, held, strict=True) if out]
    _refuse_shared_files(train, val, modality)
    return Holdout(train, val, [group for group in groups if group in chosen])


def _choose(groups: Sequence[str], traits: np.ndarray, share: float, seed: int) -> set[str]:
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(
            f"expected at least two speakers or clips in the training list to hold some out, got "
            f"{len(names)}; use --val_split list"
        )
    place = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(names), traits.shape[1]))
    np.add.at(table, [place[group] for group in groups], traits)
    table /= table.sum(axis=0)
    rng = np.random.default_rng((_HOLD_OUT, seed))
    best, least = np.arange(1), np.inf
    for _ in range(DRAWS):
        order = rng.permutation(len(names))
        errors = np.abs(table[order[:-1]].cumsum(axis=0) - share).mean(axis=1)
        size = int(errors.argmin()) + 1
        if errors[size - 1] < least:
            best, least = order[:size], errors[size - 1]
    return {names[index] for index in best}


def _traits(clips: Sequence[AnyClip]) -> np.ndarray:
    """Return (n, traits) 0 or 1: being a clip, and being of each class or third of the values."""
    labels = np.array([clip.label for clip in clips])
    if labels.ndim == 1:
        kinds = [labels == label for label in np.unique(labels)]
    else:
        thirds = [np.searchsorted(np.quantile(v, (1 / 3, 2 / 3)), v) for v in labels.T]
        kinds = [third == k for third in thirds for k in np.unique(third)]
    return np.stack([np.ones(len(clips)), *kinds], axis=1)


def _refuse_shared_files(train: Iterable[AnyClip], val: Iterable[AnyClip], modality: str) -> None:
    owner = {path: clip for clip in train for path in _files(clip, modality)}
    for clip in val:
        for path in _files(clip, modality):
            if path in owner:
                raise ValueError(
                    f"'{path}' belongs to a training clip, '{owner[path].video}', and to the "
                    f"validation clip '{clip.video}', expected one; mend train.csv or the speakers"
                )


def _files(clip: AnyClip, modality: str) -> list[str]:
    files = {"v": clip.video, "a": clip.audio or ""}
    return [os.path.abspath(files[stream]) for stream in modality]


def describe(holdout: Holdout, kind: str) -> None:
    """Log what is held out; warn where a class is on one side only."""
    counts = len(holdout.val), len(holdout.train) + len(holdout.val)
    speakers = f"{len(set(holdout.val_groups))} speaker(s), " if kind == "speaker" else ""
    logger.info(
        "held out of train.csv for validation: %s%d of %d clips (%.1f %%)",
        *(speakers, *counts, 100 * counts[0] / counts[1]),
    )
    labels = [{c.label for c in part if isinstance(c.label, int)} for part in holdout[:2]]
    for side, missing in (
        ("validation", labels[0] - labels[1]),
        ("training", labels[1] - labels[0]),
    ):
        if missing:
            logger.warning(
                "no %s clip is of class %s: too few %ss have it; see --val_share and --seed",
                *(side, ", ".join(map(str, sorted(missing))), kind),
            )


def table(holdout: Holdout, kind: str) -> str:
    """Return the content of val_clips.csv: clip,speaker; without speakers the clips alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    speakers = kind == "speaker"
    writer.writerow(["clip", "speaker"] if speakers else ["clip"])
    for clip, group in zip(holdout.val, holdout.val_groups, strict=True):
        writer.writerow([clip.video, group] if speakers else [clip.video])
    return text.getvalue()
