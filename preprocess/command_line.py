"""What the tools of this folder share on their command lines."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparisonT

logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """Part `part` of `parts`, from 1/n to n/n; 1/1 is everything."""

    part: int = 1
    parts: int = 1

    def take(self, items: Iterable[SupportsRichComparisonT]) -> list[SupportsRichComparisonT]:
        """Return this part of the items: every n-th of their sorted list.

        Each item is in one part, whatever order the jobs of an array see them in.
        """
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


def make_parser(usage: str | None) -> argparse.ArgumentParser:
    """Return a parser whose --help shows a tool's docstring as it is written."""
    return argparse.ArgumentParser(
        description=inspect.cleandoc(usage or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_shard(parser: argparse.ArgumentParser, use: str = "do only this part of the clips") -> None:
    """Add --shard, by which the tasks of a job array divide the work."""
    parser.add_argument(
        "--shard", type=parse_shard, default=WHOLE, metavar="I/N", help=f"{use}, 1/N to N/N"
    )


def add_num_workers(parser: argparse.ArgumentParser) -> None:
    """Add --num_workers, which is as many as there are cores by default."""
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="in parallel (default: %(default)s)"
    )


def usable_cores() -> int:
    """Return the number of cores this process may use; a scheduler may allow fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def exit_code(work: Callable[[], int | None], bad_data: int = 2) -> int:
    """Do the work of a tool; an error is one line in the log.

    Returns:
        What `work` returns, or 0; `bad_data` after a ValueError; 2 where the work cannot be done.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return work() or 0
    except (OSError, RuntimeError, ValueError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.strerror:
            told = f"'{error.filename}': {error.strerror}"
        logger.error("error: %s", " ".join(told.split()))
        return bad_data if isinstance(error, ValueError) else 2
