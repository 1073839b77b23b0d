"""What the tools of this folder share on their command lines."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hicmae.config.flags import Settings, add_arguments, from_flags, new_parser, option
from hicmae.io import EXPECTED, count_cores, describe

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparisonT

logger = logging.getLogger(__name__)

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
Flags = Mapping[str, Mapping[str, Any]]  # by name the arguments of `add_argument`


def parse_shard(text: str) -> Shard:
    """Read "i/n", for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, as in 3/64, got '{text}'")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Workers(Settings):
    """How to run."""

    num_workers: int = option(count_cores(), "clips at a time, by default one a core", ">= 1")


@dataclass(frozen=True)
class Parts(Workers):
    """How to run."""

    shard: Shard = option(WHOLE, "do only this part of the clips", type=parse_shard, metavar="I/N")


def command(
    usage: str | None,
    work: Callable[[argparse.Namespace], int | None],
    *configs: type,
    flags: Flags | None = None,
    bad_data: int = 2,
) -> Callable[..., int]:
    """Return the `main` of a tool: it parses flags, calls `work`, and returns an exit code.

    Its flags are the fields of the `configs`, which check them, and the `flags`; --help begins with
    the docstring `usage`. The code is that of `work`, or 0; after an error, which is one line in
    the log, 2, but `bad_data` where it is a ValueError of `work`; STOPPED after an interrupt.
    """

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = new_parser(inspect.cleandoc(usage or ""))
        parser.allow_abbrev = True  # --output of earlier versions, say
        for config in configs:
            add_arguments(parser, config)
        for name, options in (flags or {}).items():
            parser.add_argument(name, **options)
        args = parser.parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        code = 2
        try:
            for config in configs:
                from_flags(vars(args), config)
            code = bad_data
            return work(args) or 0
        except KeyboardInterrupt:
            logger.error("interrupted: the same command goes on")
            return STOPPED
        except EXPECTED as error:
            logger.error("error: %s", describe(error))
            return code if isinstance(error, ValueError) else 2

    return main
