"""Run a tool on many clips: in parallel, going on after a stop, with a table of the results.

The result of a clip gets its final name only when it is whole, so a name that exists is done: the
same command completes what is missing, after a stop as after failures. `--shard 3/8` does the third
of eight parts, so that the tasks of a job array share the clips.
"""

from __future__ import annotations

import argparse
import csv
import errno
import functools
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hicmae.config.flags import option
from hicmae.data.media import walk
from hicmae.io import PART, check_writable, describe, remove
from preprocess.command_line import STOPPED, WHOLE, Parts, Shard
from preprocess.lists.clips import write_csv

logger = logging.getLogger(__name__)

SUMMARY_EVERY = 60  # seconds between writings of the summary, and lines about what is done
STALE = 24 * 3600  # seconds after which a temporary file belongs to no running process
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What may be wrong with a clip; a TypeError, say, is a mistake of ours and ends the run.
CLIP_ERRORS: tuple[type[Exception], ...] = (RuntimeError, OSError, ValueError, LookupError)
CLIP_ERRORS += (ArithmeticError, MemoryError, EOFError)


class Job(NamedTuple):
    """One clip: its name below the input folder, the file to read, the file or folder to make."""

    name: str
    source: str
    output: str


class Outcome(NamedTuple):
    """What became of a job, a `Job` or a tool's own kind with the same fields and more."""

    job: Any
    reason: str = ""  # why it failed
    seconds: float = 0.0
    details: Mapping[str, Any] = {}  # more columns of the summary


Work = Callable[[Any], dict[str, Any]]  # makes what a job asks for; returns the details


def has_folder(job: Job) -> bool:
    """Tell whether the folder that a job makes is there; it appears whole or not at all."""
    return Path(job.output).is_dir()


class Tool(NamedTuple):
    """What makes something of clips."""

    name: str  # that of its summary
    suffix: str  # what replaces a file's own in the name of what is made of it
    kinds: Collection[str]  # suffixes of the files that it takes
    # Tells whether an output is there; raises CLIP_ERRORS where it is a wrong one.
    is_done: Callable[[Job], bool] = has_folder


@dataclass(frozen=True)
class Running(Parts):
    """How to run."""

    overwrite: bool = option(False, "do again what is done, not only the rest")


@dataclass(frozen=True)
class Files(Running):
    """What to read and to write, and how."""

    input: str = option("", "file, or folder with all its subfolders", required=True)
    output_dir: str = option("", "folder; names in it are as below --input", required=True)
    ext: tuple[str, ...] = option((), "kinds of files to take from a folder, such as mp4")


def run_tool(tool: Tool, args: argparse.Namespace, work: Work) -> int:
    """Run a tool on what the flags of `Files` name, and return the exit code.

    It is 0; 1 where a clip failed; STOPPED where clips were not tried. `work` makes one output; it
    is picklable and raises CLIP_ERRORS. OSError where there is no input or no place for output.
    """
    summary = summary_path(args.output_dir, tool.name, args.shard)
    kinds = ["." + kind.lower().removeprefix(".") for kind in args.ext or tool.kinds]
    jobs, problems, others = find_jobs(args.input, args.output_dir, kinds, tool.suffix, args.shard)
    check_writable(summary)
    if others:
        passed = (f"{count} {kind or 'without an ending'}" for kind, count in others.most_common())
        logger.info("passed over: %s", ", ".join(passed))
    ledger = Ledger(summary)
    pending: deque[Job] = deque()
    for job in jobs:
        try:
            if args.overwrite or not tool.is_done(job):
                pending.append(job)
            else:
                ledger.note(Outcome(job), kept=True)
        except CLIP_ERRORS as error:
            problems.append(Outcome(job, describe(error)))
    for outcome in problems:
        ledger.note(outcome)
    return ledger.run(pending, work, args.num_workers, tool.name)


# Which clips


def find_jobs(
    source: str,
    output: str,
    kinds: Collection[str],
    output_suffix: str,
    shard: Shard = WHOLE,
) -> tuple[list[Job], list[Outcome], Counter[str]]:
    """Return the jobs of a shard in order, what is wrong with the input itself, and passed over.

    Passed over are files of other kinds in a folder, counted by their endings. `source` is --input;
    for `kinds` and `output_suffix` see `Tool`.
    """
    problems: list[Outcome] = []
    others = Counter[str]()
    root, files = os.path.dirname(source), [source]
    if os.path.isdir(source):
        root, files = source, []
        for file in sorted(_files_in(source, output, problems)):
            kind = os.path.splitext(file)[1].lower()
            if kind in kinds:
                files.append(file)
            else:
                others[kind] += 1
    elif not os.path.isfile(source):
        raise FileNotFoundError(f"--input '{source}' does not exist")
    if not files and not problems:
        expected = " ".join(sorted(kinds))
        raise FileNotFoundError(f"--input '{source}' holds no file of these kinds: {expected}")
    by_output: dict[str, list[Job]] = {}
    for file in files:
        name = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
        made = os.path.join(output, os.path.splitext(name)[0] + output_suffix)
        if os.path.abspath(file) != os.path.abspath(made):  # wavs may stand beside the clips
            by_output.setdefault(made, []).append(Job(name, file, made))
    jobs = []
    for job, *rivals in shard.take(by_output.values()):  # by inputs: outputs may sort otherwise
        jobs.append(job)
        reason = f"'{job.name}' becomes the same '{job.output}'; keep one of the two"
        problems += [Outcome(rival, reason) for rival in rivals]
    return jobs, problems, others


def _files_in(folder: str, output: str, problems: list[Outcome]) -> Iterator[str]:
    """Yield the visible files below a folder, but not what is in `output` there."""

    def note(error: OSError) -> None:
        job = Job(str(error.filename), str(error.filename), "")
        problems.append(Outcome(job, f"folder cannot be read: {error.strerror}"))

    made = {os.path.realpath(output)} - {os.path.realpath(folder)}
    for path, folders, names in walk(folder, note):
        if os.path.realpath(path) in made:
            folders.clear()
        else:
            yield from (os.path.join(path, name) for name in names)


# What became of them


class Ledger:
    """The summary of a run: a row for each clip, kept over restarts, written now and then."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, read_summary(path)
        self.clips = Counter[str]()  # how many are "done", "kept" of an earlier run, "failed"
        self._start = self._written = time.monotonic()

    def note(self, outcome: Outcome, kept: bool = False) -> None:
        """Enter an outcome, and name a failure in the log.

        `kept` is what an earlier run has done; what is known about it stays.
        """
        name, reason = outcome.job.name, outcome.reason
        self.clips["kept" if kept else "failed" if reason else "done"] += 1
        if not kept or self.rows.get(name, {}).get("status") != "done":
            self.rows[name] = {
                "clip": name,
                "status": "failed" if reason else "done",
                "reason": reason,
                "output": "" if reason else outcome.job.output,
                "seconds": f"{outcome.seconds:.2f}",
                **outcome.details,
            }
        if reason:
            logger.warning("%r: %s", name, reason)  # repr, as names may hold line breaks
        if time.monotonic() - self._written > SUMMARY_EVERY:
            self._write()

    def run(
        self,
        pending: deque,
        work: Work,
        num_workers: int,
        title: str,
        finish: Callable[[Iterator[Outcome]], Generator[Outcome, None, None]] | None = None,
    ) -> int:
        """Work in processes, note what comes, and return the exit code.

        `finish` gets the outcomes in order, and yields them again when all they need is done.
        """
        left, stopped = len(pending), ""
        found = outcomes_of(pending, work, num_workers, title, in_order=finish is not None)
        with closing(found), closing(finish(found) if finish else found) as outcomes:
            try:
                for outcome in outcomes:
                    left -= 1
                    self.note(outcome)
            except KeyboardInterrupt:
                stopped = "interrupted"
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                stopped = "the disk is full"
            finally:
                self._write()
        done, seconds = self.clips["done"], time.monotonic() - self._start
        rate = f" ({done / seconds:.1f} a second)" if done else ""
        logger.info(
            "%d clips done%s, %d done before, %d failed; see %s",
            *(done, rate, self.clips["kept"], self.clips["failed"], self.path),
        )
        if stopped:
            logger.error("%s: %d clips are left, the same command goes on", stopped, left)
            return STOPPED
        return 1 if self.clips["failed"] else 0

    def _write(self) -> None:
        columns = dict.fromkeys(column for row in self.rows.values() for column in row)
        rows = (self.rows[name] for name in sorted(self.rows))
        try:
            write_csv(self.path, columns, ([row.get(name, "") for name in columns] for row in rows))
        except OSError as error:  # the clips matter more
            logger.error("summary '%s' cannot be written: %s", self.path, error.strerror)
        self._written = time.monotonic()


def summary_path(output: str | Path, tool: str, shard: Shard = WHOLE) -> Path:
    """Return where a tool's summary goes; each shard has its own."""
    part = "" if shard.parts == 1 else f"_{shard.part}of{shard.parts}"
    return Path(output) / f"{tool}{part}.csv"


def read_summary(path: Path) -> dict[str, dict[str, object]]:
    """Return the rows of a summary by clip; none where there is no such file."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["clip"]: dict(row) for row in csv.DictReader(file) if row.get("clip")}


# Processes


def outcomes_of(
    pending: deque,
    work: Work,
    num_workers: int,
    title: str,
    in_order: bool = False,
) -> Generator[Outcome, None, None]:
    """Yield the outcomes as they come, or `in_order` of the jobs; OSError where the disk is full.

    With an order, results do not depend on the number of processes. A bar shows on a terminal, and
    a line a minute in a log.
    """
    total, said = len(pending), time.monotonic()
    found = _outcomes(pending, work, num_workers, in_order)
    bar = tqdm(found, title, total, unit="clip", disable=None)
    with closing(found), bar, logging_redirect_tqdm():
        for count, outcome in enumerate(bar, 1):
            yield outcome
            if time.monotonic() - said > SUMMARY_EVERY:
                logger.info("%s: %d of %d clips", title, count, total)
                said = time.monotonic()


def _outcomes(
    pending: deque, work: Work, num_workers: int, in_order: bool
) -> Generator[Outcome, None, None]:
    if num_workers == 1:
        while pending:
            yield _attempt(work, pending.popleft())
        return
    # One core a process, or the libraries in 64 processes would start 64 threads each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A thread for each process. An interrupt is for the main thread alone: processes inherit from
    # their threads that it is blocked, so that a clip in hand is finished.
    block, own = (signal.SIG_BLOCK, {signal.SIGINT}), local()
    resource_tracker.ensure_running()  # whoever starts it has interrupts again
    pool = ThreadPoolExecutor(num_workers, initializer=signal.pthread_sigmask, initargs=block)
    hand: list[Future[Outcome]] = []
    try:
        while pending or hand:
            # With an order, results wait for a slow clip before them.
            while pending and len(hand) < 4 * num_workers:
                if sum(not future.done() for future in hand) >= 2 * num_workers:
                    break
                hand.append(pool.submit(_elsewhere, own, work, pending.popleft()))
            for future in wait(hand[:1] if in_order else hand, return_when=FIRST_COMPLETED).done:
                hand.remove(future)
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # processes end with the connections of their threads


def _elsewhere(own: local, work: Work, job: Any) -> Outcome:
    """Do a job in this thread's `own` process; one that dies gets a second chance."""
    for _ in range(2):
        try:
            if not hasattr(own, "process"):
                # Not forked: torch and FFmpeg may hold locks, and macOS cannot.
                context = multiprocessing.get_context("spawn")
                own.connection, theirs = context.Pipe()
                level = logging.getLogger().level
                own.process = context.Process(target=_serve, args=(theirs, level), daemon=True)
                own.process.start()
                theirs.close()  # so that nobody has it when the process is gone
            own.connection.send((work, job))
            answer = own.connection.recv()
        except (EOFError, OSError):  # of a decoder's crash, or for want of memory
            del own.process
            continue
        if isinstance(answer, Exception):
            raise answer
        return answer
    return Outcome(job, "the process that worked on it was killed or crashed")


def _serve(connection: Connection, level: int) -> None:
    """Do jobs until nobody is there to ask."""
    logging.basicConfig(level=level, format="%(message)s")
    with suppress(EOFError, ConnectionError):
        while True:
            asked = connection.recv()
            try:
                answer: Outcome | Exception = _attempt(*asked)
            except Exception as error:
                answer = error
                if not isinstance(error, OSError):  # a mistake of ours
                    traceback.print_exc()
            connection.send(answer)


def _attempt(work: Work, job: Any) -> Outcome:
    start, details, reason = time.monotonic(), {}, ""
    try:
        sweep(os.path.dirname(job.output))
        details = work(job)
    except CLIP_ERRORS as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        reason = describe(error)
        for name in (job.source, os.path.abspath(job.source)):
            reason = reason.removeprefix(f"'{name}' ")  # the row has the name
    return Outcome(job, reason, time.monotonic() - start, details)


@functools.lru_cache(maxsize=4096)
def sweep(folder: str) -> None:
    """Delete what killed runs left in a folder, once a process."""
    for part in Path(folder).glob(f"{PART}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - part.stat().st_mtime > STALE:
                remove(part)
