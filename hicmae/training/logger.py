"""Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. Each line is written at once,
so a killed run loses none; a resumed run first drops the lines it will write again.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from hicmae.training import distributed
from hicmae.training.appending import AppendFile
from hicmae.training.board import Board
from hicmae.training.output import write_whole

logger = logging.getLogger(__name__)


def to_json(value: Any) -> Any:
    """Turn a value into what valid JSON can hold: numbers out of tensors, null for nan and inf."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file, leaving out lines that a kill cut short; [] when it is missing."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def drop_lines_from(path: str | Path, key: str, limit: int) -> None:
    """Leave only the whole lines of a JSON-lines file whose `key` is below `limit`, once each.

    Of several lines with the same number the last stands. A file that needs no repair is not
    written again, so that a full disk does not keep a run from going on.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = {number: r for r in read_lines(path) if (number := _number(r.get(key))) < limit}
    text = "".join(json.dumps(kept[number]) + "\n" for number in sorted(kept))
    if path.read_bytes() != text.encode():
        write_whole(path, text)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.inf


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
        self._board = Board(
            Path(log_dir or folder), resume_step if purge_step is None else purge_step
        )

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Send numbers to TensorBoard as `prefix/name`; what is no number is left out."""
        if not self.main:
            return
        for name, value in values.items():
            value = value.item() if getattr(value, "ndim", None) == 0 else value
            if isinstance(value, (int, float)):
                self._board.scalar(f"{prefix}/{name}" if prefix else name, value, step)

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
            for file in (self._steps, self._epochs, self._board):
                file.sync()

    def close(self) -> None:
        """Close every file; calling it again does nothing."""
        if self.main:
            self.main = False
            for file in (self._steps, self._epochs, self._board):
                file.close()


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(to_json(values)) + "\n").encode()


class _ConsoleHandler(logging.Handler):
    """Print records to the present stdout without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # a console that is full or gone; run.log has the record too
            self.setLevel(logging.CRITICAL + 1)
            _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    """Lead a stream nowhere: what it could not write would change the exit code at the end."""
    with suppress(OSError):  # a stream without a file, in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


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


def format_values(values: Mapping[str, float]) -> str:
    """Format named numbers for a progress line.

    Names ending in `_per_s`, `_s` and `_mib` get their unit; names with `lr` three digits.
    """
    parts = []
    for name, value in values.items():
        if name.endswith("_per_s"):
            parts.append(f"{name.removesuffix('_per_s')} {value:.1f}/s")
        elif name.endswith("_s"):
            parts.append(f"{name.removesuffix('_s')} {value:.3f} s")
        elif name.endswith("_mib"):
            parts.append(f"{name.removesuffix('_mib')} {value:.0f} MiB")
        elif "lr" in name.split("_"):
            parts.append(f"{name} {value:.2e}")
        else:
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)


class Progress:
    """A progress bar on a terminal, a log line every few steps anywhere else.

    Args:
        total: number of steps.
        desc: what is being done, e.g. "epoch 3/100".
        every: steps between two log lines.
        initial: steps done before, on resume.
        main: whether this process shows anything; None: rank 0 does.
        clock: seconds, for the remaining time.
    """

    def __init__(
        self,
        total: int,
        desc: str,
        every: int = 10,
        initial: int = 0,
        main: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.desc, self.every = total, desc, max(every, 1)
        self.main = distributed.is_main() if main is None else main
        self.done, self._initial, self._clock, self._started = initial, initial, clock, clock()
        terminal = self.main and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=desc, initial=initial, dynamic_ncols=True, leave=False)
            if terminal
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count steps done, and show `values` whenever a multiple of `every` is passed."""
        show = (self.done + count) // self.every > self.done // self.every
        self.done += count
        if self._bar is not None:
            if values:
                self._bar.set_postfix_str(format_values(values), refresh=False)
            self._bar.update(count)
        elif self.main and (show or self.done == self.total):
            text = format_values(values or {})
            logger.info("%s [%d/%d] eta %s  %s", self.desc, self.done, self.total, self.eta(), text)

    def eta(self) -> str:
        """Return the remaining time as h:mm:ss, from the mean speed so far."""
        seen = max(self.done - self._initial, 1)
        left = (self._clock() - self._started) / seen * (self.total - self.done)
        return f"{int(left // 3600)}:{int(left // 60) % 60:02d}:{int(left) % 60:02d}"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
