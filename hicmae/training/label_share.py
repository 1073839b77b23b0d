"""Part of the labelled training clips, to see how many labels a model needs."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hicmae.data.streams import AnyClip

logger = logging.getLogger(__name__)

FILE = "train_clips.csv"
_SHARE = 5  # first word of the seed: shares no random numbers with the order of the clips


def take_share(clips: Sequence[AnyClip], share: float, seed: int) -> list[AnyClip]:
    """Draw a share of the clips of every class, at least one; of a regression, of all clips.

    The clips of a class are put into an order that the seed alone decides, and the first ones are
    taken: a smaller share is part of a larger one. Single clips are drawn, not speakers, so that
    the number of speakers does not fall as fast as that of labels.

    Args:
        clips: the training list.
        share: of each class, in (0, 1].
        seed: decides which clips.

    Returns:
        The chosen clips in list order.
    """
    classes = np.array([clip.label if isinstance(clip.label, int) else 0 for clip in clips])
    chosen: list[int] = []
    for label in np.unique(classes).tolist():
        order = np.random.default_rng((_SHARE, seed, label))
        members = order.permutation(np.flatnonzero(classes == label))
        chosen += members[: max(1, round(share * len(members)))].tolist()
    return [clips[index] for index in sorted(chosen)]


def describe(taken: Sequence[AnyClip], total: int, share: float) -> None:
    """Log how many clips there are, and of each class."""
    counts = Counter(clip.label for clip in taken if isinstance(clip.label, int))
    spread = ", ".join(str(counts[label]) for label in sorted(counts))
    logger.info(
        "--label_share %g: %d of %d training clips%s, named in %s",
        *(share, len(taken), total, f" ({spread} of the classes)" if spread else "", FILE),
    )


def table(taken: Sequence[AnyClip]) -> str:
    """Return the content of train_clips.csv: the names of the clips."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip"])
    writer.writerows([clip.video] for clip in taken)
    return text.getvalue()
