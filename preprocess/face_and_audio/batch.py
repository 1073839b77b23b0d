"""Work on many clips: in parallel, going on after a stop, with a report of what failed.

What a clip becomes appears under its final name only when it is whole, so a name that exists is
done: the same command completes what is missing, after a stop as after failures. `--shard 3/8`
takes the third of eight parts of the clips, chosen by a hash of their names: the tasks of a job
array need no coordination, and no clip changes its part when others are added.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from preprocess.face_and_audio.inputs import AnyJob, Job, Outcome, find_jobs, parse_shard
from preprocess.face_and_audio.staging import staged

logger = logging.getLogger(__name__)

SUMMARY_EVERY = 60  # seconds between writings of the summary
STOPPED = 3  # exit code of a run that ended before its clips did
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What may be wrong with a clip; a TypeError, say, is a mistake of ours and ends the run.
CLIP_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
)

SomeJob = TypeVar("SomeJob", bound=AnyJob)
Work = Callable[[Any], dict[str, object]]  # of a Job, or of a tool's own kind of job


def add_arguments(parser: argparse.ArgumentParser, suffixes: Iterable[str]) -> None:
    """Add the flags that all tools have; `suffixes` are the kinds of files it takes."""
    parser.add_argument(
        "--input",
        required=True,
        help="folder, searched with all its subfolders; one file; or a list (.csv .txt .list) with "
        "a file name a line (of our own lists the first field is taken)",
    )
    parser.add_argument(
        "--output", required=True, help="folder; names below it are as below the input folder"
    )
    parser.add_argument(
        "--data_root", default="", help="folder that relative names in a list start from"
    )
    parser.add_argument(
        "--ext",
        nargs="+",
        type=lambda kind: "." + kind.lower().removeprefix("."),
        default=sorted(suffixes),
        help="kinds of files to take from a folder (default: all known ones)",
    )
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to run, whatever the input is."""
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(1, 1),
        metavar="I/N",
        help="do only part I of N, from 1/N to N/N, as one task of a job array",
    )
    parser.add_argument(
        "--num_workers", type=int, default=usable_cores(), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="do again what is done (default: only the rest)"
    )


def usable_cores() -> int:
    """Return the number of cores this process may use; a scheduler may allow fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tool(
    tool: str,
    args: argparse.Namespace,
    output_suffix: str,
    work: Work,
    is_done: Callable[[Job], bool],
) -> int:
    """Run a tool on what its flags name.

    Args:
        tool: its name, which its summary gets.
        args: the flags of `add_arguments`.
        output_suffix: what replaces a file's suffix in the name of what is made of it.
        work: makes one output, picklable; returns details for the summary, raises CLIP_ERRORS.
        is_done: tells whether an output is there; raises ClipError where it is a wrong one.

    Returns:
        Exit code: 0; 1 where a clip failed; 2 without input; STOPPED where clips were not tried.
    """
    try:
        if args.num_workers < 1:
            raise ValueError(f"--num_workers must be at least 1, got {args.num_workers}")
        jobs, problems = find_jobs(
            args.input, args.output, args.ext, output_suffix, args.data_root, args.shard
        )
        os.makedirs(args.output, exist_ok=True)
        if not os.access(args.output, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), args.output)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return 2
    ledger = Ledger(summary_path(args.output, tool, args.shard))
    for outcome in problems:
        ledger.note(outcome)
    pending = _pending(jobs, is_done, args.overwrite, ledger)
    start, left = time.monotonic(), len(pending)
    outcomes = outcomes_of(pending, work, args.num_workers)
    bar = tqdm(total=left, unit="clip", desc=tool, disable=None, dynamic_ncols=True)
    with bar, logging_redirect_tqdm(), contextlib.closing(outcomes):
        try:
            for outcome in outcomes:
                ledger.note(outcome)
                left -= 1
                bar.update()
                bar.set_postfix(failed=ledger.failed, refresh=False)
                if outcome.stops:
                    break
        except KeyboardInterrupt:
            ledger.stopped = "interrupted"
    return ledger.close(left, time.monotonic() - start)


class Ledger:
    """The summary of a run: a row for each clip, kept over restarts, written now and then."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, read_summary(path)
        self.done = self.kept = self.failed = 0
        self.stopped = ""
        self._written = time.monotonic()

    def keep(self, job: AnyJob) -> None:
        """Count a clip that an earlier run has done; what is known about it stays."""
        self.kept += 1
        if self.rows.get(job.name, {}).get("status") != "done":
            self.rows[job.name] = _row(Outcome(job, "", 0.0, {}))

    def note(self, outcome: Outcome) -> None:
        """Enter an outcome, and name a failure in the log."""
        self.rows[outcome.job.name] = _row(outcome)
        if outcome.reason:
            self.failed += 1
            # repr, as names may hold line breaks
            logger.warning("%r: %s", outcome.job.name, outcome.reason)
        else:
            self.done += 1
        if outcome.stops:
            self.stopped = "the disk is full"
        if time.monotonic() - self._written > SUMMARY_EVERY:
            self._write()
            logger.info("%d clips done, %d failed so far", self.done, self.failed)

    def close(self, left: int, seconds: float) -> int:
        """Write the summary, say how it went, and return the exit code.

        Args:
            left: clips that were not tried.
            seconds: time it took.
        """
        self._write()
        rate = f" ({self.done / seconds:.1f} a second)" if self.done else ""
        logger.info(
            "%d clips done%s, %d done before, %d failed; see %s",
            *(self.done, rate, self.kept, self.failed, self.path),
        )
        if self.stopped:
            logger.error("%s: %d clips are left, the same command goes on", self.stopped, left)
            return STOPPED
        return 1 if self.failed else 0

    def _write(self) -> None:
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        try:
            with staged(str(self.path)) as part, open_table(part, "w") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows[name] for name in sorted(self.rows))
        except OSError as error:  # the clips matter more
            logger.error("summary '%s' cannot be written: %s", self.path, error.strerror)
        self._written = time.monotonic()


def open_table(path: Path, mode: Literal["r", "w"]) -> TextIO:
    """Open a csv file in which names need not be UTF-8."""
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")


def summary_path(output: str, tool: str, shard: tuple[int, int]) -> Path:
    """Return where a tool's summary goes; each shard has its own."""
    part = "" if shard == (1, 1) else f"_{shard[0]}of{shard[1]}"
    return Path(output) / f"{tool}{part}.csv"


def describe(error: BaseException) -> str:
    """Say on one line what an exception means to the user."""
    if isinstance(error, OSError) and error.strerror:
        where = f"'{error.filename}': " if error.filename else ""
        text = where + error.strerror
    else:
        text = str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def read_summary(path: Path) -> dict[str, dict[str, object]]:
    """Return the rows of a summary by clip; none where there is no such file."""
    if not path.is_file():
        return {}
    with open_table(path, "r") as file:
        return {row["clip"]: dict(row) for row in csv.DictReader(file) if row.get("clip")}


def _pending(
    jobs: Iterable[Job], is_done: Callable[[Job], bool], overwrite: bool, ledger: Ledger
) -> deque[Job]:
    """Return the jobs that are not done; the ledger gets the others."""
    pending: deque[Job] = deque()
    for job in jobs:
        try:
            if not overwrite and is_done(job):
                ledger.keep(job)
            else:
                pending.append(job)
        except CLIP_ERRORS as error:
            ledger.note(Outcome(job, describe(error), 0.0, {}))
    return pending


def _row(outcome: Outcome) -> dict[str, object]:
    return {
        "clip": outcome.job.name,
        "status": "failed" if outcome.reason else "done",
        "reason": outcome.reason,
        "output": "" if outcome.reason else outcome.job.output,
        "seconds": f"{outcome.seconds:.2f}",
        **outcome.details,
    }


def _attempt(work: Work, job: AnyJob) -> Outcome:
    start = time.monotonic()
    try:
        details = work(job)
    except CLIP_ERRORS as error:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        return Outcome(job, describe(error), time.monotonic() - start, {}, stops=full)
    return Outcome(job, "", time.monotonic() - start, details)


def outcomes_of(
    pending: deque[SomeJob], work: Work, num_workers: int
) -> Generator[Outcome, None, None]:
    """Yield the outcomes in the order in which they come."""
    if num_workers <= 1:
        while pending:
            yield _attempt(work, pending.popleft())
        return
    # One core a process, or the libraries in 64 processes would start 64 threads each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    while pending:
        # A process that dies, of a decoder's crash or for want of memory, takes the pool with it.
        # Which clip it was shows when those in hand are done again one by one.
        for job in (yield from _pooled(pending, work, num_workers)):
            crashed = yield from _pooled(deque([job]), work, 1)
            if crashed:
                yield Outcome(job, "the process that worked on it was killed or crashed", 0.0, {})


def _pooled(
    pending: deque[SomeJob], work: Work, num_workers: int
) -> Generator[Outcome, None, list[SomeJob]]:
    """Work through the jobs in processes; returns those that were in hand when one died."""
    # Not forked: torch and FFmpeg may hold locks, and macOS cannot.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_ignore_interrupt)
    running: dict[Future[Outcome], SomeJob] = {}
    try:
        while pending or running:
            while pending and len(running) < 2 * num_workers:
                running[pool.submit(_attempt, work, pending[0])] = pending[0]
                pending.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield future.result()
                del running[future]
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(cancel_futures=True)
    return []


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the clip in hand is finished, or thrown away
