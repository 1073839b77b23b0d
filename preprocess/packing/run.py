"""One run: clips are encoded in processes, and written here, one shard after the other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from preprocess.face_and_audio.batch import DISK_FULL, Ledger, outcomes_of
from preprocess.face_and_audio.inputs import Outcome
from preprocess.packing.encode import PackJob, Settings, encode
from preprocess.packing.shards import Packed, next_number, write_shard

logger = logging.getLogger(__name__)


def prefix_of(shard: tuple[int, int]) -> str:
    """Return how the names of shards begin: parts of an array never want the same name."""
    part, parts = shard
    return "clips" if parts == 1 else f"clips-{part:0{len(str(parts))}d}of{parts}"


class Packing:
    """Writes shards into a folder, and what became of each clip into a ledger.

    Args:
        folder: of the shards.
        prefix: of their names.
        shard_size: bytes at which a shard ends.
        ledger: a clip counts as done when its shard has its name.
    """

    def __init__(self, folder: Path, prefix: str, shard_size: int, ledger: Ledger) -> None:
        self.folder, self.prefix, self.shard_size = folder, prefix, shard_size
        self.ledger = ledger
        self.shards = self.source_bytes = self.shard_bytes = 0

    def run(self, jobs: list[PackJob], settings: Settings, num_workers: int) -> int:
        """Pack clips; returns the exit code."""
        start = time.monotonic()
        work = functools.partial(encode, settings=settings)
        outcomes = outcomes_of(deque(jobs), work, num_workers)
        bar = tqdm(total=len(jobs), unit="clip", desc="packing", disable=None, dynamic_ncols=True)
        with bar, logging_redirect_tqdm(), contextlib.closing(outcomes):
            try:
                self._write_all(self._encoded(outcomes, bar))
            except KeyboardInterrupt:
                self.ledger.stopped = "interrupted, and the shard in hand thrown away"
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                self.ledger.stopped = "the disk is full"
        self._report()
        left = len(jobs) - self.ledger.done - self.ledger.failed
        return self.ledger.close(left, time.monotonic() - start)

    def _write_all(self, clips: Iterator[Packed]) -> None:
        for number in itertools.count(next_number(self.folder, self.prefix)):
            first = next(clips, None)
            if first is None:
                return
            path = self.folder / f"{self.prefix}-{number:06d}.tar"
            done = write_shard(path, itertools.chain([first], clips), self.shard_size)
            self.shards += 1
            self.shard_bytes += path.stat().st_size
            for job, encoded in done:
                self.source_bytes += encoded.source_bytes
                details = {"frames": encoded.num_frames, "source_bytes": encoded.source_bytes}
                self.ledger.note(Outcome(job._replace(output=str(path)), "", 0.0, details))

    def _encoded(self, outcomes: Iterable[Outcome], bar: tqdm) -> Iterator[Packed]:
        """Yield the clips that could be encoded, and note the others."""
        for outcome in outcomes:
            bar.update()
            if outcome.reason:
                self.ledger.note(outcome)
                bar.set_postfix(failed=self.ledger.failed, refresh=False)
            else:
                yield cast(Packed, (outcome.job, outcome.details["encoded"]))

    def _report(self) -> None:
        """Say what a clip costs, beside the files it was made from."""
        if not self.ledger.done:
            return
        packed, source = (
            size / self.ledger.done / 1e3 for size in (self.shard_bytes, self.source_bytes)
        )
        logger.info(
            "%d shards, %.3f GB; a clip takes %.0f KB, its files took %.0f KB (%.1f times)",
            *(self.shards, self.shard_bytes / 1e9, packed, source, packed / max(source, 1e-9)),
        )
