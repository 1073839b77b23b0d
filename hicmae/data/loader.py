"""From a data set to batches: order, unreadable clips, workers.

An item depends on seed, epoch and index only, so that neither workers nor resumption change it.
"""

import csv
import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import KW_ONLY, dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hicmae.data.batches import ClipIndex, SkippedClip
from hicmae.data.clip_list import AnyClip, name_of
from hicmae.io import UnreadableClip

logger = logging.getLogger(__name__)

MAX_TRIES = 20  # unreadable clips in a row before an item gives up
MAX_DEATHS = 3  # of workers, without a single batch in between
SHARD_WINDOW = 8  # shards whose clips are shuffled together

# First words of seeds, so that the order of an epoch shares no random numbers with its items.
_ORDER, _ITEM = 1, 2
_PR_SET_PDEATHSIG = 1

T = TypeVar("T")


def item_generator(seed: int, item: ClipIndex) -> np.random.Generator:
    """Return the generator of one item: its draws depend on neither workers nor resumption."""
    return np.random.default_rng((_ITEM, seed, *item[: 3 if item.again else 2]))


def call_in_time(seconds: float, clip: str, function: Callable[..., T], *args: Any) -> T:
    """Return function(*args), run in another thread; what it raises comes through.

    UnreadableClip, naming `clip`, when it has not returned in `seconds`, as some files hang a
    decoder or a file system; its thread is left to itself. 0 seconds: no limit and no thread.
    """
    if not seconds:
        return function(*args)
    answer: futures.Future[T] = futures.Future()

    def work() -> None:
        try:
            answer.set_result(function(*args))
        except BaseException as error:  # raised again by `result`
            answer.set_exception(error)

    # A daemon: a process ends without waiting for what hangs.
    threading.Thread(target=work, daemon=True, name="clip reader").start()
    if futures.wait([answer], seconds).done:
        return answer.result()
    advice = "look at the file and its disk, or raise --clip_timeout"
    raise UnreadableClip(f"clip '{clip}' was not read in {seconds:g} s; {advice}")


def read_or_replace(
    clips: Sequence[AnyClip],
    index: int,
    read: Callable[[Any, np.random.Generator], T],
    rng: np.random.Generator,
    clip_timeout: float = 0.0,
) -> tuple[T, tuple[SkippedClip, ...]]:
    """Read clip `index`, while that fails another of the list; return the failed ones too."""
    skipped: dict[int, SkippedClip] = {}
    while len(skipped) < min(MAX_TRIES, len(clips)):
        clip = clips[index]
        try:
            found = call_in_time(clip_timeout, name_of(clip), read, clip, rng)
            return found, tuple(skipped.values())
        except UnreadableClip as error:
            skipped[index] = SkippedClip(name_of(clip), str(error))
        while index in skipped and len(skipped) < len(clips):
            index = int(rng.integers(len(clips)))
    which = "in a row" if len(skipped) < len(clips) else "of the list, all,"
    text = f"{len(skipped)} clips {which} cannot be read, expected some that can"
    last = skipped.popitem()[1].reason
    raise RuntimeError(f"{text}; check --data_root and the list; the last: {last}")


class SkippedClips:
    """The record of unreadable clips: a warning and a line of a csv file for each, once.

    What an earlier run wrote there still counts. `record` raises where more than `max_bad_share`,
    in [0, 1], of the list's clips are bad; a single one only where that share is 0.
    """

    def __init__(self, path: str | Path, num_clips: int, max_bad_share: float) -> None:
        self.path, self.num_clips, self.max_bad_share = Path(path), num_clips, max_bad_share
        self.videos: set[str] = set()
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                self.videos = {row["video"] for row in csv.DictReader(file) if row.get("video")}

    def record(self, skipped: Iterable[SkippedClip]) -> None:
        """Name the clips that are new; RuntimeError when too many of the list are unreadable."""
        new = {clip.video: clip for clip in skipped if clip.video not in self.videos}
        for clip in new.values():
            logger.warning("skipped a clip: %s", clip.reason)
        if new:
            options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", newline="", **options) as file:
                    header = [] if file.tell() else [SkippedClip._fields]
                    csv.writer(file, lineterminator="\n").writerows([*header, *new.values()])
            except OSError as error:
                logger.warning("could not write '%s': %s; training goes on", self.path, error)
            self.videos.update(new)
        share, allowed = len(self.videos) / max(self.num_clips, 1), self.max_bad_share
        if share > allowed and len(self.videos) > (allowed > 0):
            most = f"{allowed:.2%}" + ", or one clip" * (allowed > 0)
            counts = f"{len(self.videos)} of {self.num_clips} clips ({share:.2%})"
            text = f"{counts} cannot be read, expected at most {most}; see '{self.path}'"
            raise RuntimeError(f"{text}; mend the clips and delete it, or raise --max_bad_clips")


@dataclass(eq=False, repr=False)
class ClipSampler(Sampler[ClipIndex]):
    """This process' share of the clips, in the order of one epoch.

    With `shuffle` each (seed, epoch) gives a new order. `pad`, for training, repeats the first
    clips of the order until all shares are equal; without it, for evaluation, they may differ, so
    that no clip counts twice. `shards`, (num_clips,) the shard of each packed clip, makes shuffled
    clips come from a few shards at a time, so that disks read on. `labels`, (num_clips,) the class
    of each clip, makes a shuffled epoch of as many clips draw all classes equally often.
    """

    num_clips: int
    _: KW_ONLY
    shuffle: bool
    seed: int
    pad: bool
    rank: int = 0
    world_size: int = 1
    shards: np.ndarray | None = None
    labels: np.ndarray | None = None
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many samples of this process a resumed run jumps over."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the samples of a whole epoch, also while a resumed one is shorter."""
        extra = self.world_size - 1 if self.pad else self.world_size - 1 - self.rank
        return (self.num_clips + extra) // self.world_size

    def __iter__(self) -> Iterator[ClipIndex]:
        order = np.arange(self.num_clips)
        rng = np.random.default_rng((_ORDER, self.seed, self.epoch))
        if self.shuffle and self.labels is not None:
            order = balanced_order(self.labels, rng)
        elif self.shuffle and self.shards is not None:
            order = shard_order(self.shards, rng)
        elif self.shuffle:
            rng.shuffle(order)
        if self.pad:
            order = np.resize(order, len(self) * self.world_size)
        again = np.zeros_like(order)
        if self.labels is not None:
            import pandas as pd  # half a second that all but training need not wait

            again = pd.Series(order).groupby(order).cumcount().to_numpy()
        mine = slice(self.rank + self.start * self.world_size, None, self.world_size)
        pairs = zip(order[mine], again[mine], strict=True)
        return (ClipIndex(self.epoch, int(index), int(repeat)) for index, repeat in pairs)


def shard_order(shards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle shards, and the clips of every `SHARD_WINDOW` of them together.

    Takes the shard of each clip, where clips of a shard are together; returns each clip once.
    """
    numbers, firsts = np.unique(shards, return_index=True)
    clips_of = np.split(np.arange(len(shards)), firsts[1:])
    shuffled = rng.permutation(len(numbers))
    windows = [shuffled[k : k + SHARD_WINDOW] for k in range(0, len(shuffled), SHARD_WINDOW)]
    pools = [np.concatenate([clips_of[shard] for shard in window]) for window in windows]
    return np.concatenate([rng.permutation(pool) for pool in pools])


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many clips as there are, of each class equally many (one more or less).

    Takes the class of each clip. A clip comes again only after all others of its class.
    """
    classes = rng.permutation(np.unique(labels))
    draws = []
    for k, members in enumerate(np.flatnonzero(labels == label) for label in classes):
        number = (len(labels) + k) // len(classes)
        rounds = [rng.permutation(members) for _ in range(-(-number // len(members)))]
        draws.append(np.concatenate(rounds)[:number])
    return rng.permutation(np.concatenate(draws))


def make_loader(
    dataset: Dataset[Any],
    sampler: ClipSampler,
    batch_size: int,
    num_workers: int,
    drop_last: bool,
    device_type: str = "cpu",
) -> DataLoader[Any]:
    """Return a loader of the batches that the data set's `collate` makes.

    Workers stay from epoch to epoch, as an index carries its epoch. "cuda" pins batches' memory.
    """
    if drop_last and len(sampler) < batch_size:
        text = f"the training list gives {len(sampler)} clips per process, expected at least"
        raise ValueError(f"{text} one batch of {batch_size}; lower --batch_size")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=dataset.collate,  # type: ignore[attr-defined]  # ours have one
        pin_memory=device_type == "cuda",
        drop_last=drop_last,
        persistent_workers=num_workers > 0,
        worker_init_fn=_settle,
        generator=torch.Generator(),  # so that starting workers again leaves the run's draws alone
    )


def epoch_batches(loader: DataLoader[Any], epoch: int, first: int = 0) -> Iterator[Any]:
    """Yield batch number `first` of an epoch, and all after it, of a loader of `make_loader`.

    When a worker is killed, new ones start at the batch that was due, and give the same batches;
    RuntimeError when they die again and again.
    """
    done, deaths = first, 0
    while True:
        cast(ClipSampler, loader.sampler).set_epoch(epoch, done * (loader.batch_size or 1))
        batches: Iterator[Any] = iter(())
        try:
            batches = iter(loader)
            if loader.num_workers and threading.current_thread() is threading.main_thread():
                # torch's handler raises wherever the main process is, even half-way through a step;
                # without it a death is noticed when the worker's batch is due.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for batch in batches:
                yield batch
                done, deaths = done + 1, 0
            return
        except (RuntimeError, OSError, EOFError) as error:
            workers: list[BaseProcess] = list(getattr(loader._iterator, "_workers", ()))
            # Its sockets fail a moment before its sentinel, and that before its code is there.
            ended = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
            dead = next((worker for worker in workers if worker.sentinel in ended), None)
            if dead is None:
                raise
            dead.join(timeout=5)
            code, deaths = dead.exitcode or 0, deaths + 1
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            place = f"batch {done} of epoch {epoch}"
            if deaths >= MAX_DEATHS:
                raise RuntimeError(
                    f"workers that load clips died {deaths} times in a row at {place}, the last by "
                    f"{cause}; lower --num_workers if memory or /dev/shm ran out (SIGKILL, SIGBUS),"
                    " look for a broken clip otherwise, and start the command again"
                ) from error
            text = "a worker that loads clips (process %s) was ended by %s; new ones go on at %s"
            logger.warning(f"{text} with the same clips", dead.pid, cause, place)
        del batches
        loader._iterator = None  # the last reference: torch ends the other workers
        end(workers)  # also those that wait for a lock of the dead one


def end(processes: list[BaseProcess]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        process.kill()
        process.join()


def _settle(worker: int) -> None:
    """Prepare a worker: it ends with its parent, never by a signal that is sent to a whole job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
