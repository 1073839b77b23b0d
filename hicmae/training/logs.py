"""Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. Each line and each TensorBoard
event is written at once, without a thread or a buffer, so a killed run loses none; what a full disk
refuses is written later. A resumed run first drops the lines that it will write again.
"""

import io
import itertools
import json
import logging
import math
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from hicmae.config import HARMLESS
from hicmae.config.flags import flat_settings
from hicmae.io import encodable, write_whole
from hicmae.training import distributed

logger = logging.getLogger(__name__)

HPARAMS_PATHS = {"data_path", "val_path"}  # which clips: folds differ in nothing else
FIGURES = 5  # of a step in the log: what fits a terminal


class AppendFile:
    """Appends bytes at once, unbuffered; what a full disk refuses is kept and written later.

    Without a path, and once it is closed, every method does nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("ab", buffering=0) if path else None
        self._waiting = b""

    def write(self, data: bytes) -> None:
        """Append `data` after all that waits; warn, once, when there is no space."""
        if self._file is None:
            return
        blocked = bool(self._waiting)
        self._waiting += data
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not blocked:
                text = "could not write '%s': %s; training goes on and will try again"
                logger.warning(text, self._file.name, error.strerror or error)

    def line(self, values: Mapping[str, Any]) -> None:
        """Append an object as JSON; nan and inf, which JSON does not know, become null."""
        odd = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        text = json.dumps({**values, **dict.fromkeys(odd)}, allow_nan=False)
        self.write(f"{text}\n".encode())

    def sync(self) -> None:
        """Try again what waits, and have the system put the file on the disk."""
        self.write(b"")
        with suppress(OSError):  # what cannot be written is told by then
            if self._file:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what waits, if that is possible now, and close the file."""
        self.sync()
        if self._file:
            self._file.close()
        self._file = None


class Board(AppendFile):
    """A TensorBoard event file; each start of a run makes a new one in the folder.

    What earlier files hold of `purge_step` and later steps is hidden; None hides nothing.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None) -> None:
        if folder is None:
            return super().__init__(None)
        folder.mkdir(parents=True, exist_ok=True)
        # The newest name must sort last, as readers expect, even if the clock went back.
        names = " ".join(path.name for path in folder.glob("events*"))
        stamps = [int(stamp) + 1 for stamp in re.findall(r"tfevents\.(\d+)\.", names)]
        stamp = max([int(time.time()), *stamps])
        super().__init__(folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}")
        self.event(file_version="brain.Event:2")
        if purge_step is not None:
            self.event(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def event(self, **content: Any) -> None:
        """Append one record: length, its check sum, content, its check sum."""
        event = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        self.write(length + sums[0] + event + sums[1])

    def scalars(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Add numbers, as `<prefix>/<name>`."""
        for name, value in values.items():  # not by summary.scalar, which complains of nan
            value = Summary.Value(tag=f"{prefix}/{name}" if prefix else name, simple_value=value)
            self.event(step=step, summary=Summary(value=[value]))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        file, (height, width, _) = io.BytesIO(), image.shape
        Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0, optimize=True)
        sizes = {"height": height, "width": width, "colorspace": 3}
        content = Summary.Image(**sizes, encoded_image_string=file.getvalue())
        self.event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=content)]))


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file, leaving out lines that a kill cut short; [] when it is missing."""
    records = []
    with suppress(FileNotFoundError):
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def open_lines(path: Path, key: str, limit: int | None) -> AppendFile:
    """Open a JSON-lines file to append, once its lines with a `key` of `limit` or more are gone.

    A file that needs no repair is not written again: a full disk keeps no run from going on.
    """
    if limit is not None and path.exists():
        kept = [record for record in read_lines(path) if record[key] < limit]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if path.read_bytes() != text.encode():
            write_whole(path, text)
    return AppendFile(path)


class RunLogger(AbstractContextManager["RunLogger"]):
    """The files of a run's numbers: `steps` (steps.jsonl), `epochs` (log.txt) and `board`.

    TensorBoard's file is in `log_dir`, the others in `output_dir`; None: nothing is written. Lines
    from `resume_epoch` and `resume_step` on are dropped, as TensorBoard's events from `purge_step`
    on are hidden; 0 starts over, None appends.
    """

    def __init__(
        self,
        output_dir: Path | None,
        log_dir: Path | None,
        resume_step: int | None = None,
        resume_epoch: int | None = None,
        purge_step: int | None = None,
    ) -> None:
        self.steps = self.epochs = AppendFile(None)
        if output_dir:
            output_dir.mkdir(parents=True, exist_ok=True)
            self.steps = open_lines(output_dir / "steps.jsonl", "step", resume_step)
            self.epochs = open_lines(output_dir / "log.txt", "epoch", resume_epoch)
        self.board = Board(log_dir if output_dir else None, purge_step)

    def sync(self) -> None:
        """Have all that was logged on the disk, e.g. before a checkpoint says that it was."""
        for file in (self.steps, self.epochs, self.board):
            file.sync()

    def __exit__(self, *_: object) -> None:
        for file in (self.steps, self.epochs, self.board):
            file.close()


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


def setup_logging(output_dir: Path, main: bool = True) -> None:
    """Send log records of the whole process to the console and to OUTPUT_DIR/run.log.

    Ranks that are not `main` only print warnings. Calling it again replaces what it installed.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "of_hicmae", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if main:
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / "run.log"
        handlers.append(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setLevel(logging.INFO if main else logging.WARNING)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        handler.of_hicmae = True  # type: ignore[attr-defined]  # a mark of our own
        root.addHandler(handler)
    root.setLevel(logging.INFO)


class Progress(AbstractContextManager["Progress"]):
    """A progress bar on a terminal, a log line `every` few steps elsewhere; only of rank 0.

    `desc` says what is being done, e.g. "epoch 3/100"; `initial` steps were done before a resume. A
    line has the first figures; all are in steps.jsonl and TensorBoard.
    """

    def __init__(self, total: int, desc: str, every: int = 10, initial: int = 0) -> None:
        self.total, self.desc, self.every, self.done = total, desc, max(every, 1), initial
        self._initial, self._started = initial, time.monotonic()
        main, terminal = distributed.is_main(), sys.stderr.isatty()
        self._logs = main and not terminal
        options = {"disable": not (main and terminal), "leave": False, "dynamic_ncols": True}
        self._bar = tqdm(total=total, desc=desc, initial=initial, **options)

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, values: Mapping[str, float] | None = None) -> None:
        """Count a step, and show `values` whenever a multiple of `every` is reached."""
        self.done += 1
        shown = itertools.islice((values or {}).items(), FIGURES)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown)
        if figures:
            self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update()
        if self._logs and (self.done % self.every == 0 or self.done == self.total):
            seconds = (time.monotonic() - self._started) / (self.done - self._initial)
            left = timedelta(seconds=int(seconds * (self.total - self.done)))
            line = f"{self.desc} [{self.done}/{self.total}] eta {left}  {figures}"
            logger.info("%s", line.rstrip())


def hparams_of(settings: Mapping[str, Any], **facts: bool | float | str) -> dict[str, Any]:
    """Return what TensorBoard's HParams tab compares: `facts`, and the flags of what is trained."""
    compared: dict[str, Any] = {}
    for name, value in flat_settings(settings).items():
        if name in HPARAMS_PATHS or name not in HARMLESS:
            value = " ".join(map(str, value)) if isinstance(value, list) else value
            value = "none" if value in (None, "") else value  # an empty cell would hide a change
            compared[name] = encodable(value) if isinstance(value, str) else value
    return compared | facts


def show_hparams(
    log_dir: Path, hparams: Mapping[str, Any], final: Mapping[str, float], step: int
) -> None:
    """Show, once, the settings of a run and what came out of it.

    They are a TensorBoard run of their own, `final`, as the tab shows all its numbers as columns.
    The `final` numbers stand at `step`, the length of the run.
    """
    folder = log_dir / "final"
    if not distributed.is_main() or any(folder.glob("events*")):
        return
    _, start, end = summary.hparams(hparams, {})
    try:
        board = Board(folder)
        board.event(step=0, summary=start)
        board.scalars(step, final)
        board.event(step=0, summary=end)
        board.close()
    except OSError as error:
        text = "TensorBoard's HParams tab does not show this run: cannot write in '%s': %s"
        logger.warning(text, folder, error.strerror or error)


def forget_final(log_dir: Path) -> None:
    """Remove what `show_hparams` wrote, of a run that goes on."""
    for path in (log_dir / "final").glob("events*"):
        path.unlink(missing_ok=True)
