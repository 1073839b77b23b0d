"""Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. Each line is flushed as it is
written, so a killed run loses none; a resumed run first drops the lines it will write again.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from hicmae.training import distributed

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
    """Rewrite a JSON-lines file with only the whole lines whose `key` is below `limit`."""
    path = Path(path)
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if _number(line.get(key)) < limit]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.inf


class _JsonLines:
    """Append-only JSON-lines file that warns, once, instead of ending a run when a disk is full."""

    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, False
        self.file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        start = "\n" if self.failed else ""  # ends a line that a full disk cut short
        try:
            self.file.write(start + json.dumps(to_json(values)) + "\n")
            self.file.flush()
        except OSError as error:
            if not self.failed:
                logger.warning("could not write '%s': %s; training goes on", self.path, error)
            self.failed = True
        else:
            self.failed = False


class RunLogger:
    """Write a run's numbers and images; every method does nothing on other ranks.

    Args:
        output_dir: folder of log.txt and steps.jsonl.
        log_dir: folder of the TensorBoard files; None: `output_dir`.
        main: whether this process writes.
        resume_step: first step still to come; lines of it and later steps are dropped, also in
            TensorBoard. 0 starts over, None appends.
        resume_epoch: the same for the epochs of log.txt.
    """

    def __init__(
        self,
        output_dir: str | Path,
        log_dir: str | Path | None = None,
        main: bool = True,
        resume_step: int | None = None,
        resume_epoch: int | None = None,
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
        self._steps, self._epochs = (
            _JsonLines(folder / "steps.jsonl"),
            _JsonLines(folder / "log.txt"),
        )
        # Names go by the second: without a suffix a quick restart would overwrite the old file.
        self._board = SummaryWriter(
            str(log_dir or folder),
            purge_step=resume_step,
            flush_secs=10,
            filename_suffix=f".{time.time_ns()}",
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
                self._board.add_scalar(f"{prefix}/{name}" if prefix else name, value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Send a picture, (H, W, 3) uint8, to TensorBoard."""
        if self.main:
            self._board.add_image(tag, np.asarray(image, dtype=np.uint8), step, dataformats="HWC")

    def step(self, values: Mapping[str, Any]) -> None:
        """Append one line to steps.jsonl; `values` holds at least `step`."""
        if self.main:
            self._steps.write(values)

    def epoch(self, values: Mapping[str, Any]) -> None:
        """Append one line to log.txt; `values` holds at least `epoch`. Also flushes TensorBoard."""
        if self.main:
            self._epochs.write(values)
            self._board.flush()

    def close(self) -> None:
        """Flush and close every file; calling it again does nothing."""
        if self.main:
            self.main = False
            self._steps.file.close()
            self._epochs.file.close()
            self._board.close()


class _ConsoleHandler(logging.Handler):
    """Print records to the present stdout without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


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
        handler.of_hicmae = True  # type: ignore[attr-defined]
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
