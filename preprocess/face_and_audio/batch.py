"""Run a tool on many clips: in parallel, going on after a stop, with a table of the results.

The result of a clip gets its final name only when it is whole, so a name that exists is done: the
same command completes what is missing, after a stop as after failures. `--shard 3/8` does the third
of eight parts, so that the tasks of a job array share the clips.
"""

import argparse
import csv
import errno
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hicmae.config.flags import option
from hicmae.data.media import walk
from hicmae.io import EXPECTED, PART, check_writable, describe, remove, write_csv
from preprocess.command_line import STOPPED, WHOLE, Parts, Shard

logger = logging.getLogger(__name__)

SUMMARY_EVERY = 60  # seconds between writings of the summary, and lines about what is done
STALE = 24 * 3600  # seconds after which a temporary file belongs to no running process
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What may be wrong with a clip; a TypeError, say, is a mistake of ours and ends the run.
CLIP_ERRORS = (*EXPECTED, LookupError, ArithmeticError, MemoryError, EOFError)


class Job(NamedTuple):
    """One clip: its name below the input folder, the file to read, the file or folder to make."""

    name: str
    source: str
    output: str
    audio: str = ""  # a second file to read
    clip: Any = None  # as a list has it


class Outcome(NamedTuple):
    """What became of a job."""

    job: Job
    reason: str = ""  # why it failed
    seconds: float = 0.0
    details: Mapping[str, Any] = {}  # more columns of the summary


Outcomes = Generator[Outcome, None, None]
Work = Callable[[Job], dict[str, Any]]  # makes what a job asks for; returns the details
Finish = Callable[[Outcomes], Outcomes]


class Tool(NamedTuple):
    """What makes something of clips."""

    name: str  # that of its summary
    suffix: str  # what replaces a file's own in the name of what is made of it
    kinds: Collection[str]  # suffixes of the files that it takes


class Running(Parts):
    """How to run."""

    overwrite: bool = option(False, "do again what is done, not only the rest")


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
    if args.ext:
        tool = tool._replace(kinds=["." + kind.lower().removeprefix(".") for kind in args.ext])
    jobs, problems, others = find_jobs(args.input, args.output_dir, tool, args.shard)
    ledger = Ledger(args.output_dir, tool.name, args)
    if others:
        passed = (f"{count} {kind or 'without an ending'}" for kind, count in others.most_common())
        logger.info("passed over: %s", ", ".join(passed))
    for outcome in problems:
        ledger.note(outcome)
    done = set() if args.overwrite else {job for job in jobs if os.path.exists(job.output)}
    return ledger.run([job for job in jobs if job not in done], work, done)


def find_jobs(
    source: str, output: str, tool: Tool, shard: Shard = WHOLE
) -> tuple[list[Job], list[Outcome], Counter[str]]:
    """Return the jobs of a shard in order, what is wrong with the input itself, and passed over.

    Passed over are files of other kinds in a folder, counted by their endings. `source` is --input.
    """
    errors, others = list[OSError](), Counter[str]()
    root, files = os.path.dirname(source), [source]
    if os.path.isdir(source):
        every = _files_in(source, output, errors)
        kinds = {file: os.path.splitext(file)[1].lower() for file in sorted(every)}
        root, files = source, [file for file, kind in kinds.items() if kind in tool.kinds]
        others.update(kind for kind in kinds.values() if kind not in tool.kinds)
    elif not os.path.isfile(source):
        raise FileNotFoundError(f"--input '{source}' does not exist")
    if not files and not errors:
        expected = " ".join(sorted(tool.kinds))
        raise FileNotFoundError(f"--input '{source}' holds no file of these kinds: {expected}")
    by_output: dict[str, list[Job]] = {}
    for file in files:
        name = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
        made = os.path.join(output, os.path.splitext(name)[0] + tool.suffix)
        if os.path.abspath(file) != os.path.abspath(made):  # wavs may be beside the clips
            by_output.setdefault(made, []).append(Job(name, file, made))
    jobs, problems = list[Job](), list[Outcome]()
    for error in errors:
        job = Job(str(error.filename), str(error.filename), "")
        problems.append(Outcome(job, f"folder cannot be read: {error.strerror}"))
    for job, *rivals in shard.take(by_output.values()):  # by inputs: outputs may sort otherwise
        jobs.append(job)
        reason = f"'{job.name}' becomes the same '{job.output}'; keep one of the two"
        problems += [Outcome(rival, reason) for rival in rivals]
    return jobs, problems, others


def _files_in(folder: str, output: str, errors: list[OSError]) -> Iterator[str]:
    """Yield the visible files below a folder, but not what is in `output` there."""
    made = {os.path.realpath(output)} - {os.path.realpath(folder)}
    for path, folders, names in walk(folder, errors.append):
        if os.path.realpath(path) in made:
            folders.clear()
        else:
            yield from (os.path.join(path, name) for name in names)


class Ledger:
    """The summary of a run: a row for each clip, kept over restarts, written now and then."""

    def __init__(self, output: str | Path, tool: str, args: argparse.Namespace) -> None:  # of Parts
        self.path = summary_path(output, tool, args.shard)
        self.num_workers: int = args.num_workers
        check_writable(self.path)
        self.rows = read_summary(self.path)
        self.clips = Counter[str]()  # how many are "done", "kept" of an earlier run, "failed"
        self._written = time.monotonic()

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
            logger.info("%d clips so far", self.clips.total())
            self._write()

    def run(
        self, jobs: Sequence[Job], work: Work, done: Iterable[Job], finish: Finish | None = None
    ) -> int:
        """Work in processes, note what comes, and return the exit code.

        `done` is what earlier runs did. `finish` gets the outcomes in order, less the failures, and
        yields them again when all they need is done. A bar shows on a terminal.
        """
        for job in done:
            self.note(Outcome(job), kept=True)
        goal, stopped = self.clips.total() + len(jobs), ""
        found = outcomes_of(deque(jobs), work, self.num_workers, in_order=finish is not None)
        bar = tqdm(found, self.path.stem, len(jobs), unit="clip", disable=None)
        good = self._noting_failures(bar)
        outcomes = finish(good) if finish else good
        with closing(found), bar, closing(outcomes), logging_redirect_tqdm():
            try:
                for outcome in outcomes:
                    self.note(outcome)
            except KeyboardInterrupt:
                stopped = "interrupted"
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                stopped = "the disk is full"
            finally:
                self._write()
        counts = (self.clips[what] for what in ("done", "kept", "failed"))
        logger.info("%d clips done, %d done before, %d failed; see %s", *counts, self.path)
        if stopped:
            left = goal - self.clips.total()
            logger.error("%s: %d clips are left, the same command goes on", stopped, left)
            return STOPPED
        return 1 if self.clips["failed"] else 0

    def _noting_failures(self, outcomes: Iterable[Outcome]) -> Outcomes:
        for outcome in outcomes:
            if outcome.reason:
                self.note(outcome)
            else:
                yield outcome

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


def outcomes_of(pending: deque[Job], work: Work, num_workers: int, in_order: bool) -> Outcomes:
    """Yield the outcomes as they come, or `in_order` of the jobs; OSError where the disk is full.

    With an order, results do not depend on the number of processes.
    """
    if num_workers == 1:
        while pending:
            yield _attempt(work, pending.popleft())
        return
    # One core a process, or the libraries in 64 processes would start 64 threads each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    while pending:
        hand: dict[Future[Outcome], Job] = {}
        pool = _processes(num_workers)
        try:
            while pending or hand:
                while pending and len(hand) < 4 * num_workers:
                    future = pool.submit(_attempt, work, pending[0])
                    hand[future] = pending.popleft()
                asked = itertools.islice(hand, 1 if in_order else None)
                for future in wait([*asked], return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    del hand[future]
                    yield outcome
        except BrokenProcessPool:  # one died, and all with it; now each works alone
            for job in hand.values():
                outcome = Outcome(job, "the process that worked on it was killed or crashed")
                with _processes(1) as alone, suppress(BrokenProcessPool):
                    outcome = alone.submit(_attempt, work, job).result()
                yield outcome
        finally:
            pool.shutdown(cancel_futures=True)


def _processes(count: int) -> ProcessPoolExecutor:
    """Return processes that ignore an interrupt, so that a clip in hand is finished."""
    context = multiprocessing.get_context("spawn")  # torch and FFmpeg may hold locks in a fork
    return ProcessPoolExecutor(count, context, _begin, (logging.getLogger().level,))


def _begin(level: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it was killed."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def _attempt(work: Work, job: Job) -> Outcome:
    start, details, reason = time.monotonic(), {}, ""
    try:
        if job.output:
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
