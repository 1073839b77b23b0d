"""Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. A killed run loses no line and
no TensorBoard event; a resumed one first drops those that it will write again.
"""

import io
import json
import logging
import math
import os
import re
import resource
import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from torch import Tensor
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

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a line of text, shown as it is."""
        self.event(step=step, summary=summary.text(tag, f"    {encodable(text)}"))

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


def open_lines(path: Path, key: str, limit: int) -> AppendFile:
    """Open a JSON-lines file to append, once its lines with a `key` of `limit` or more are gone.

    A file that needs no repair is not written again: a full disk keeps no run from going on.
    """
    text = "".join(json.dumps(record) + "\n" for record in read_lines(path) if record[key] < limit)
    if path.exists() and path.read_bytes() != text.encode():
        write_whole(path, text)
    return AppendFile(path)


class RunLogger(AbstractContextManager["RunLogger"]):
    """The files of a run's numbers: `steps` (steps.jsonl), `epochs` (log.txt) and `board`.

    TensorBoard's file is in `log_dir`, the others in `output_dir`; None: nothing is written. Lines
    from `step` and `epoch` on are dropped, as TensorBoard's events from `purge_step` on are hidden,
    and what `show_hparams` wrote of a run that goes on.
    """

    def __init__(
        self,
        output_dir: Path | None = None,
        log_dir: Path = Path(),
        step: int = 0,
        epoch: int = 0,
        purge_step: int = 0,
    ) -> None:
        self.steps = self.epochs = AppendFile(None)
        if output_dir:
            output_dir.mkdir(parents=True, exist_ok=True)
            self.steps = open_lines(output_dir / "steps.jsonl", "step", step)
            self.epochs = open_lines(output_dir / "log.txt", "epoch", epoch)
            for path in (log_dir / "final").glob("events*"):
                path.unlink(missing_ok=True)
        self.board = Board(log_dir if output_dir else None, purge_step)

    def sync(self) -> None:
        """Have all that was logged on the disk, e.g. before a checkpoint says that it was."""
        for file in (self.steps, self.epochs, self.board):
            file.sync()

    def __exit__(self, *_: object) -> None:
        for file in (self.steps, self.epochs, self.board):
            file.close()


@dataclass
class MetricBuffer:
    """Figures of an epoch's steps: read from the device now and then, logged and added up."""

    max_bad_steps: int  # in a row, at which training ends
    sums: dict[str, float] = field(default_factory=dict)  # over the steps that count
    counts: dict[str, int] = field(default_factory=dict)
    bad_steps: int = 0
    bad_in_a_row: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)  # figures of the last step
    unread: list[tuple[dict[str, Any], dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart_clock()

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; everything has been read."""
        names = ("sums", "counts", "bad_steps", "bad_in_a_row", "last")
        return {name: getattr(self, name) for name in names}

    def restart_clock(self) -> None:
        """Measure speed from here on."""
        self._steps, self._clips, self._data_time = 0, 0, 0.0
        self._started = time.perf_counter()

    def add(self, step: dict[str, Any], figures: dict[str, Tensor], data_time: float) -> None:
        """Take a step: `step`, `epoch`, `lr` and `clips`, its figures, the seconds that it waited.

        Figures, `loss`, `skipped` (the weights were left alone) and more, stay on the device.
        """
        self.unread.append((step, figures))
        self._steps += 1
        self._clips += len(step["clips"])
        self._data_time += data_time

    def read(self, logs: RunLogger) -> None:
        """Read what is new on the device, and log it; RuntimeError: too many bad in a row."""
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        names = list(unread[0][1])
        table = torch.stack([torch.stack([f[n].float() for n in names]) for _, f in unread])
        for (step, _), row in zip(unread, table.tolist(), strict=True):  # the one synchronisation
            values = dict(zip(names, row, strict=True))
            skipped = bool(values.pop("skipped"))
            place = {"step": step["step"], "epoch": step["epoch"]}
            logs.steps.line({**place, **values, "lr": step["lr"], "skipped": skipped})
            self.last = values
            for name, value in values.items():
                counts = not skipped and math.isfinite(value)  # fp16 may overflow the gradient norm
                self.sums[name] = self.sums.get(name, 0.0) + (value if counts else 0.0)
                self.counts[name] = self.counts.get(name, 0) + counts
            self.bad_steps += skipped
            bad = {**step, "clips": step["clips"][:8], **values}
            self.bad_in_a_row = [*self.bad_in_a_row, bad] if skipped else []
            if len(self.bad_in_a_row) >= self.max_bad_steps:
                told = ", ".join(f"{name} {value}" for name, value in bad.items())
                raise RuntimeError(
                    f"loss or gradients are not finite in {len(self.bad_in_a_row)} step(s) in a "
                    f"row, the last: {told}; lower --lr, set --clip_grad, or use --precision bf16 "
                    "or fp32, and resume"
                )

    def means(self) -> dict[str, float]:
        """Average every figure over the steps that counted; also return how many were bad."""
        means = {n: total / (self.counts[n] or math.nan) for n, total in self.sums.items()}
        return {**means, "bad_steps": float(self.bad_steps)}

    def speed(self) -> dict[str, float]:
        """Return speed since `restart_clock` and peak memory; {} without a step."""
        if not self._steps:
            return {}
        elapsed = time.perf_counter() - self._started
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated()
        else:  # resident size, in bytes on a Mac and KiB elsewhere
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        return {
            "clips_per_s": self._clips * distributed.world_size() / elapsed,
            "data_s": self._data_time / self._steps,
            "step_s": elapsed / self._steps,
            "memory_mib": peak / 2**20,
        }


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
        shown = list((values or {}).items())[:FIGURES]
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown)
        if figures:
            self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update()
        if self._logs and (self.done % self.every == 0 or self.done == self.total):
            seconds = (time.monotonic() - self._started) / (self.done - self._initial)
            left = timedelta(seconds=int(seconds * (self.total - self.done)))
            line = f"{self.desc} [{self.done}/{self.total}] eta {left}  {figures}"
            logger.info("%s", line.rstrip())


def show_hparams(
    log_dir: Path, settings: Mapping[str, Any], final: Mapping[str, float], step: int, **facts: int
) -> None:
    """Show, once, the settings of what a run trained, `facts` of it, and what came out of it.

    They are a TensorBoard run of their own, `final`, as the tab shows all its numbers as columns.
    The `final` numbers are at `step`, the length of the run.
    """
    folder = log_dir / "final"
    if not distributed.is_main() or any(folder.glob("events*")):
        return
    compared: dict[str, Any] = {}
    for name, value in flat_settings(settings).items():
        if name in HPARAMS_PATHS or name not in HARMLESS:
            value = " ".join(map(str, value)) if isinstance(value, list) else value
            value = "none" if value in (None, "") else value  # an empty cell would hide a change
            compared[name] = encodable(value) if isinstance(value, str) else value
    _, start, end = summary.hparams(compared | facts, {})
    try:
        board = Board(folder)
        board.event(step=0, summary=start)
        board.scalars(step, final)
        board.event(step=0, summary=end)
        board.close()
    except OSError as error:
        text = "TensorBoard's HParams tab does not show this run: cannot write in '%s': %s"
        logger.warning(text, folder, error.strerror or error)
