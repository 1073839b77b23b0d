"""What the tools of this folder share on their command lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hicmae.config import flags
from hicmae.config.flags import Settings, option
from hicmae.io import count_cores

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparisonT

STOPPED = 3  # exit code of a run that ended before its clips did


class Shard(NamedTuple):
    """Part `part` of `parts`, from 1/n to n/n; 1/1 is everything."""

    part: int = 1
    parts: int = 1

    def take(self, items: Iterable[SupportsRichComparisonT]) -> list[SupportsRichComparisonT]:
        """Return every n-th of the sorted items; each is in one part, whatever their order."""
        return sorted(items)[self.part - 1 :: self.parts]

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """Read "i/n", for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, as in 3/64, got '{text}'")
    return Shard(int(match[1]), int(match[2]))


class Workers(Settings):
    """How to run."""

    num_workers: int = option(count_cores(), "clips at a time, by default one a core", ">= 1")


class Parts(Workers):
    """How to run."""

    shard: Shard = option(WHOLE, "do only this part of the clips", type=parse_shard, metavar="I/N")


command = partial(
    flags.command,
    abbreviated=True,  # --output of earlier versions, say
    interrupted=(STOPPED, "interrupted: the same command goes on"),
)
