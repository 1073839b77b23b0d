"""Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. Each line and each TensorBoard
event is written at once, without a thread or a buffer, so a killed run loses none. A full disk
costs nothing either: what it refuses is written later. A resumed run first drops the lines that it
will write again.
"""

import io
import json
import logging
import math
import os
import platform
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from hicmae.config import HARMLESS, all_flags
from hicmae.io import write_whole
from hicmae.training import distributed

logger = logging.getLogger(__name__)


class AppendFile:
    """Appends bytes at once, unbuffered; what a full disk refuses is kept and written later.

    Args:
        path: file to append to, made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, data: bytes) -> None:
        """Append `data` after all that waits; warn, once, when there is no space."""
        blocked = bool(self._waiting)
        self._waiting += data
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not blocked:
                text = "could not write '%s': %s; training goes on and will try again"
                logger.warning(text, self.path, error.strerror or error)

    def sync(self) -> None:
        """Try again what waits, and have the system put the file on the disk."""
        self.write(b"")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            logger.warning("could not flush '%s': %s", self.path, error.strerror or error)

    def close(self) -> None:
        """Write what waits, if that is possible now, and close the file."""
        self.sync()
        self._file.close()


EVENT_FILES = "events.out.tfevents.*"


class Board:
    """A TensorBoard event file; each start of a run makes a new one.

    Args:
        folder: of the event files.
        purge_step: what earlier files hold of this and later steps is hidden; None: nothing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The newest name must sort last, as readers expect, even if the clock went back.
        names = " ".join(path.name for path in folder.glob(EVENT_FILES))
        stamps = [int(stamp) + 1 for stamp in re.findall(r"tfevents\.(\d+)\.", names)]
        stamp = max([int(time.time()), *stamps])
        name = f"{EVENT_FILES.removesuffix('*')}{stamp:010d}.{socket.gethostname()}"
        self.file = AppendFile(folder / name)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number."""
        # Not by summary.scalar, which changes tags and complains of nan.
        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        height, width, _ = image.shape
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=_compressed(image)
        )
        self.add(Summary(value=[Summary.Value(tag=tag, image=content)]), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text, which the Text tab reads as Markdown."""
        made = summary.text(tag, text.encode("utf-8", "backslashreplace").decode())
        made.value[0].tag = tag  # without the ending that summary.text gives it
        self.add(made, step)

    def add(self, made: Summary, step: int) -> None:
        """Add anything that `tensorboardX.summary` makes."""
        self._write(step=step, summary=made)

    def _write(self, **content: Any) -> None:
        """Append one record: length, its check sum, content, its check sum."""
        event = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        self.file.write(length + sums[0] + event + sums[1])


def _compressed(image: np.ndarray) -> bytes:
    """Encode for a file that gets a picture every epoch: drawings as PNG, photographs as JPEG."""
    picture = Image.fromarray(image)
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.quantize(256).save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85, subsampling=0, optimize=True)
    return min(png.getvalue(), jpeg.getvalue(), key=len)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file, leaving out lines that a kill cut short; [] when it is missing."""
    records = []
    with suppress(FileNotFoundError):
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def drop_lines_from(path: Path, key: str, limit: int) -> None:
    """Leave only the whole lines of a JSON-lines file whose `key` is below `limit`, once each.

    Of several lines with the same number the last stands. A file that needs no repair is not
    written again, so that a full disk does not keep a run from going on.
    """
    numbered = {r[key]: r for r in read_lines(path) if isinstance(r.get(key), int)}
    kept = [numbered[number] for number in sorted(numbered) if number < limit]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    if path.exists() and path.read_bytes() != text.encode():
        write_whole(path, text)


class RunLogger:
    """Write a run's numbers and images; every method does nothing on other ranks.

    Args:
        output_dir: folder of log.txt and steps.jsonl.
        log_dir: folder of the TensorBoard files; None: `output_dir`.
        main: whether this process writes.
        resume_step: first step still to come; lines of it and later steps are dropped, also in
            TensorBoard. 0 starts over, None appends.
        resume_epoch: the same for the epochs of log.txt.
        purge_step: the same for TensorBoard, where it differs from `resume_step`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        log_dir: str | Path | None = None,
        main: bool = True,
        resume_step: int | None = None,
        resume_epoch: int | None = None,
        purge_step: int | None = None,
    ) -> None:
        self.main = main
        if not main:
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            drop_lines_from(folder / "steps.jsonl", "step", resume_step)
        if resume_epoch is not None:
            drop_lines_from(folder / "log.txt", "epoch", resume_epoch)
        self._steps = AppendFile(folder / "steps.jsonl")
        self._epochs = AppendFile(folder / "log.txt")
        purge_step = resume_step if purge_step is None else purge_step
        self._board = Board(Path(log_dir or folder), purge_step)
        self._files = (self._steps, self._epochs, self._board.file)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        """Send numbers to TensorBoard as `prefix/name`."""
        if self.main:
            for name, value in values.items():
                self._board.scalar(f"{prefix}/{name}", value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Send a picture, (H, W, 3) uint8, to TensorBoard."""
        if self.main:
            self._board.image(tag, np.asarray(image, dtype=np.uint8), step)

    def texts(self, step: int, texts: Mapping[str, str], prefix: str) -> None:
        """Send Markdown to TensorBoard as `prefix/name`."""
        if self.main:
            for name, text in texts.items():
                self._board.text(f"{prefix}/{name}", text, step)

    def step(self, values: Mapping[str, Any]) -> None:
        """Append one line to steps.jsonl; `values` holds at least `step`."""
        if self.main:
            self._steps.write(_line(values))

    def epoch(self, values: Mapping[str, Any]) -> None:
        """Append one line to log.txt; `values` holds at least `epoch`."""
        if self.main:
            self._epochs.write(_line(values))

    def sync(self) -> None:
        """Have all that was logged on the disk, e.g. before a checkpoint says that it was."""
        if self.main:
            for file in self._files:
                file.sync()

    def close(self) -> None:
        """Close every file; calling it again does nothing."""
        if self.main:
            self.main = False
            for file in self._files:
                file.close()


def _line(values: Mapping[str, Any]) -> bytes:
    """Return one line of valid JSON, which knows neither nan nor inf: they become null."""
    plain = {
        n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()
    }
    return (json.dumps(plain, allow_nan=False) + "\n").encode()


class _ConsoleHandler(logging.Handler):
    """Print records to the present stdout without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # a console that is full or gone; run.log has the record too
            self.setLevel(logging.CRITICAL + 1)
            # Python flushes stdout at exit, and would end with code 120 if that failed again.
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())


def setup_logging(output_dir: str | Path | None = None, main: bool = True) -> None:
    """Send log records of the whole process to the console and to OUTPUT_DIR/run.log.

    Calling it again replaces what the call before installed. Other ranks only print warnings.

    Args:
        output_dir: folder of run.log; None: console only.
        main: whether this is rank 0.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "of_hicmae", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if main and output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(output_dir) / "run.log", encoding="utf-8"))
    for handler in handlers:
        handler.setLevel(logging.INFO if main else logging.WARNING)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        handler.of_hicmae = True  # type: ignore[attr-defined]  # a mark of our own
        root.addHandler(handler)
    root.setLevel(logging.INFO)


UNITS = {"_per_s": (".1f", "/s"), "_s": (".3f", " s"), "_mib": (".0f", " MiB")}


def format_values(values: Mapping[str, float]) -> str:
    """Format named numbers for a progress line.

    Names ending in `_per_s`, `_s` and `_mib` get their unit; names with `lr` three digits.
    """
    parts = []
    for name, value in values.items():
        ending = next((ending for ending in UNITS if name.endswith(ending)), "")
        form, unit = UNITS[ending] if ending else (".2e" if "lr" in name.split("_") else ".4g", "")
        parts.append(f"{name.removesuffix(ending)} {value:{form}}{unit}")
    return "  ".join(parts)


class Progress:
    """A progress bar on a terminal, a log line every few steps anywhere else; only of rank 0.

    Args:
        total: number of steps.
        desc: what is being done, e.g. "epoch 3/100".
        every: steps between two log lines.
        initial: steps done before, on resume.
        clock: seconds, for the remaining time.
    """

    def __init__(
        self,
        total: int,
        desc: str,
        every: int = 10,
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.desc, self.every, self.done = total, desc, max(every, 1), initial
        self._initial, self._clock, self._started = initial, clock, clock()
        self._main = distributed.is_main()
        self._bar = None
        if self._main and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=desc, initial=initial, dynamic_ncols=True, leave=False
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count steps done, and show `values` whenever a multiple of `every` is passed."""
        due = (self.done + count) // self.every > self.done // self.every
        self.done += count
        text = format_values(values or {})
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
        elif self._main and (due or self.done == self.total):
            seconds = (self._clock() - self._started) / max(self.done - self._initial, 1)
            left = timedelta(seconds=int(seconds * (self.total - self.done)))
            logger.info("%s [%d/%d] eta %s  %s", self.desc, self.done, self.total, left, text)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


ROOT = Path(__file__).parents[2]
GIT_SECONDS = 5.0  # git may have to look at many files on a slow disk


def provenance(device: torch.device, precision: str, processes: int) -> dict[str, str]:
    """Return where a run comes from, as Markdown for TensorBoard: `command` and `environment`."""
    on_gpu = device.type == "cuda"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    rows = {
        "code": code_version(),
        "versions": f"{versions}, CUDA {torch.version.cuda}" if on_gpu else versions,
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "machine": f"{socket.gethostname()}, {platform.platform()}",
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else f"{device}, {torch.get_num_threads()} thread(s)",
        "processes": str(processes),
        "precision": precision,
    }
    if job := os.environ.get("SLURM_JOB_ID"):
        rows["Slurm job"] = job
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return {"command": command(), "environment": f"| run | |\n|---|---|\n{table}"}


def command() -> str:
    """Return the command line, one flag a line, ready to be pasted into a shell."""
    words = [shlex.quote(word) for word in sys.argv]
    flags = "".join(f" \\\n    {word}" if word.startswith("--") else f" {word}" for word in words)
    text = f"cd {shlex.quote(os.getcwd())}\n{shlex.quote(sys.executable or 'python')}{flags}"
    return "".join(f"    {line}\n" for line in text.splitlines())  # indented: Markdown leaves it


def code_version(root: Path = ROOT) -> str:
    """Return the commit of the code in use, with "-dirty" where tracked files were changed."""
    git = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        if not (root / ".git").exists():  # an installed package may lie in some other repository
            return "not in a git checkout"
        options: dict[str, Any] = {"capture_output": True, "timeout": GIT_SECONDS, "check": True}
        done = subprocess.run([*git, "--abbrev=40", "--exclude=*"], text=True, **options)
        return f"commit {done.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        return "unknown: git is missing, refuses or takes too long"


HPARAMS_FOLDER = "final"  # a TensorBoard run of its own: the tab shows all its numbers as columns
HPARAMS_PATHS = frozenset({"data_path", "val_path"})  # which clips: folds differ in nothing else
HParams = dict[str, bool | float | str]


def hparams_of(settings: Mapping[str, Any], **facts: bool | float | str) -> HParams:
    """Return what TensorBoard's HParams tab compares: the flags that say what is trained.

    Args:
        settings: all flags as plain values, by group.
        facts: what else was set.
    """
    flags = all_flags(settings)
    kept = {n: _plain(v) for n, v in flags.items() if n not in HARMLESS or n in HPARAMS_PATHS}
    return {**kept, **facts}


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None or value == "":  # an empty cell would hide that runs differ
        return "none"
    return value if isinstance(value, (bool, str)) else float(value)


@contextmanager
def _warned_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = "TensorBoard's HParams tab does not show this run: cannot write in '%s': %s"
        logger.warning(text, folder, error.strerror or error)


def begin_hparams(log_dir: Path, hparams: HParams) -> None:
    """Show the settings of a run that starts or goes on.

    TensorBoard believes the first settings it finds, so those of an earlier start, and its end, are
    removed. A run without an end was killed or still goes on; its settings are shown all the same.
    """
    folder = log_dir / HPARAMS_FOLDER
    with _warned_of(folder):
        for path in folder.glob(EVENT_FILES):
            path.unlink(missing_ok=True)
        _, start, _ = summary.hparams(hparams, {})
        board = Board(folder)
        board.add(start, 0)
        board.file.close()


def end_hparams(
    log_dir: Path,
    hparams: HParams,
    metrics: Mapping[str, float],
    step: int,
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show what came out of a run, once.

    Args:
        log_dir: folder of the run's TensorBoard files.
        hparams: as in `begin_hparams`; written if they are not there.
        metrics: final numbers by tag.
        step: steps of the whole run.
        images: pictures, (H, W, 3) uint8, by tag.
    """
    folder = log_dir / HPARAMS_FOLDER
    _, start, end = summary.hparams(hparams, {})
    with _warned_of(folder):
        written = [path.read_bytes() for path in folder.glob(EVENT_FILES)]
        if any(end.value[0].tag.encode() in content for content in written):
            return
        board = Board(folder, purge_step=1)  # settings are at step 0
        if not written:
            board.add(start, 0)
        for tag, value in metrics.items():
            board.scalar(tag, value, step)
        for tag, image in (images or {}).items():
            board.image(tag, image, step)
        board.add(end, 0)
        board.file.close()
