"""Batches of an epoch from any batch on, even when the system kills processes that load them."""

import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from hicmae.data.loading import ClipSampler
from hicmae.training import distributed

logger = logging.getLogger(__name__)

MAX_DEATHS = 3  # without a single batch in between
_PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def epoch_batches(loader: DataLoader[Any], epoch: int, first: int = 0) -> Iterator[Any]:
    """Yield batch number `first` of an epoch and all after it.

    When a worker is killed, new ones start at the batch that was due: the batches stay the same,
    since an item depends on seed, epoch and index only.

    Args:
        loader: of `make_loader`.
        epoch: chooses the order.
        first: batches of this process to leave out.

    Raises:
        RuntimeError: workers die again and again.
    """
    done, deaths = first, 0
    while True:
        sampler = cast(ClipSampler, loader.sampler)  # of `make_loader`
        sampler.set_epoch(epoch, done * (loader.batch_size or 1))
        batches: Iterator[Any] = iter(())
        workers = _workers(loader)
        try:
            batches = _started(loader)
            workers = _workers(loader)
            for batch in batches:
                yield batch
                done, deaths = done + 1, 0
            return
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead(workers)
            if dead is None:
                raise
            deaths += 1
            _report(dead, deaths, epoch, done, error)
        del batches
        loader._iterator = None  # the last reference: torch ends the other workers
        end(workers)  # also those that wait for a lock of the dead one


def _dead(workers: list[BaseProcess]) -> BaseProcess | None:
    """Return a worker that has ended, with its exit code known, or None where all live."""
    # Its sockets fail a moment before its sentinel, and that a moment before the code is there.
    ended = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(timeout=5)
            return worker
    return None


def _workers(loader: DataLoader[Any]) -> list[BaseProcess]:
    """Return the processes of a loader that keeps them from epoch to epoch."""
    return list(getattr(loader._iterator, "_workers", ()))


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start an epoch's iterator; a worker's death is then noticed only when its batch is due."""
    if not isinstance(loader.worker_init_fn, partial):
        loader.worker_init_fn = partial(_settle, loader.worker_init_fn)
    if loader.generator is None:
        # Of the loader alone, so that starting workers once more leaves the run's draws alone.
        loader.generator = torch.Generator()
    batches = iter(loader)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if loader.num_workers and in_main_thread:
        # torch's handler raises wherever the main process is, even half-way through a step.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


def _settle(then: Callable[[int], None] | None, worker: int) -> None:
    """Prepare a worker: it ends with its parent, never by a signal that is sent to a whole job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if then is not None:
        then(worker)


def _report(dead: BaseProcess, deaths: int, epoch: int, done: int, error: BaseException) -> None:
    code = dead.exitcode or 0
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if deaths >= MAX_DEATHS:
        raise RuntimeError(
            f"workers that load clips died {deaths} times in a row at batch {done} of epoch "
            f"{epoch}, the last by {cause}; lower --num_workers if memory or /dev/shm ran out "
            "(SIGKILL, SIGBUS), look for a broken clip otherwise, and start the command again"
        ) from error
    logger.warning(
        "a worker that loads clips (process %s) was ended by %s; new ones go on at batch %d of "
        "epoch %d with the same clips",
        dead.pid,
        cause,
        done,
        epoch,
    )


def end(processes: list[BaseProcess]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class Watched:
    """The batches of an evaluation, with something to do before each, on all ranks together.

    Ranks may have unequal numbers of batches, so all take as many turns as the longest.

    Args:
        loader: of `make_loader`, in list order.
        check: called before each batch; may raise to stop.
    """

    def __init__(self, loader: DataLoader[Any], check: Callable[[], None]) -> None:
        self.loader, self.check = loader, check

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        (turns,) = distributed.highest([len(self.loader)])
        batches = epoch_batches(self.loader, epoch=0)
        for _ in range(turns):
            self.check()
            batch = next(batches, None)
            if batch is not None:
                yield batch
