"""Files that only grow, which neither a kill nor a full disk can tear.

TensorBoard files, written in place: no thread or buffer whose loss could cost or hang a run.

Logs of a run: JSON lines, TensorBoard, console and run.log, and a progress line.

`steps.jsonl` has one JSON object a step and `log.txt` one an epoch. Each line is written at once,
so a killed run loses none; a resumed run first drops the lines it will write again.

Where a run comes from: its command, the state of the code, the machine. Markdown for a board.

Nothing here may fail or delay a run: what cannot be found out is left out.

What TensorBoard's HParams tab compares: the settings of runs, and what came out in the end.

Both are in a run of their own, `final`, beside the curves. The tab offers every number of the run
that holds the settings as a column, and these should be the final ones only. Of settings that are
written twice TensorBoard believes the first, so a run that goes on replaces those of its
beginning. A run without an end was killed or still goes on; its settings are shown all the same.
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
from tensorboardX.proto.plugin_hparams_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
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
        if not self._file.closed:
            self.sync()
            self._file.close()


PATTERN = "events.out.tfevents.*"


class Board:
    """One event file; a new one is made for each start of a run.

    Args:
        folder: of the event files.
        purge_step: what earlier files hold of this and later steps is hidden; None: nothing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = AppendFile(folder / _next_name(folder))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number."""
        self._add(Summary.Value(tag=tag, simple_value=value), step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        height, width, _ = image.shape
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=_compressed(image)
        )
        self._add(Summary.Value(tag=tag, image=content), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text, which the Text tab reads as Markdown."""
        content = text.encode("utf-8", "backslashreplace")  # file names need not be UTF-8
        tensor = TensorProto(
            dtype="DT_STRING",
            string_val=[content],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        self._add(Summary.Value(tag=tag, metadata=_metadata("text"), tensor=tensor), step)

    def plugin(self, tag: str, name: str, content: bytes) -> None:
        """Add what only the plugin called `name` reads."""
        self._add(Summary.Value(tag=tag, metadata=_metadata(name, content)), 0)

    def sync(self) -> None:
        """Have the system put the file on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, value: Summary.Value, step: int) -> None:
        self._write(
            event_pb2.Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))
        )

    def _write(self, event: event_pb2.Event) -> None:
        """Append one record: length, its check sum, content, its check sum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(length + sums[0] + content + sums[1])


def _metadata(plugin: str, content: bytes = b"") -> SummaryMetadata:
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    )


def _compressed(image: np.ndarray) -> bytes:
    """Encode for a file that gets a picture every epoch: drawings as PNG, photographs as JPEG."""
    picture = Image.fromarray(image)
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.quantize(256).save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85, subsampling=0, optimize=True)
    return min(png.getvalue(), jpeg.getvalue(), key=len)


def _next_name(folder: Path) -> str:
    """Name a file that sorts behind all others, as readers expect, even if clocks went back."""
    stamps = [
        int(match[1])
        for path in folder.glob(PATTERN)
        if (match := re.match(r"events\.out\.tfevents\.(\d+)\.", path.name))
    ]
    stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"


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


ROOT = Path(__file__).parents[2]


TIMEOUT = 5.0  # seconds for git, which may have to look at many files on a slow disk


SHOWN = 20  # changed files


def provenance(device: torch.device, precision: str, processes: int) -> dict[str, str]:
    """Return the texts of a run by name."""
    return {
        "command": command(),
        "git": git_state(),
        "environment": environment(device, precision, processes),
    }


def command() -> str:
    """Return the command line, one flag a line, ready to be pasted into a shell."""
    lines = [f"cd {shlex.quote(os.getcwd())}", shlex.quote(sys.executable or "python")]
    for word in sys.argv:
        if word.startswith("--"):
            lines[-1] += " \\"
            lines.append(f"    {shlex.quote(word)}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return _code(lines)


def git_state(root: Path = ROOT) -> str:
    """Return commit, branch and changed files of the code in use."""
    if not (root / ".git").exists():  # an installed package may lie in some other repository
        return "The code is not in a git checkout."
    commit = _git(root, "log", "-1", "--format=%h of %cs: %s%n%H")
    status = _git(root, "status", "--porcelain", "--branch", "--untracked-files=normal")
    if commit is None or status is None:
        return "The state of the code is not known: git is missing, refuses or takes too long."
    (title, full), (branch, *changed) = commit.splitlines(), status.splitlines()
    tree = f"{len(changed)} changed or new" if changed else "clean: as committed"
    rows = {
        "commit": title,
        "full name": full,
        "branch": branch.removeprefix("## ").split("...")[0],
        "files": tree,
    }
    left = [f"... and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return _table("code", rows) + ("\n" + _code(changed[:SHOWN] + left) if changed else "")


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command prints; None where it prints nothing, fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode("utf-8", "backslashreplace")
    return text if done.returncode == 0 and text.strip() else None


def environment(device: torch.device, precision: str, processes: int) -> str:
    """Return machine and versions as a table."""
    rows = {
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "host": socket.gethostname(),
        "device": _device_name(device),
        "processes": str(processes),
        "precision": precision,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
    }
    if torch.version.cuda:
        cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
        rows["CUDA"] = torch.version.cuda + (f", cuDNN {cudnn}" if cudnn else "")
    if "SLURM_JOB_ID" in os.environ:
        rows["Slurm job"] = os.environ["SLURM_JOB_ID"]
    return _table("machine", rows)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {_cpu_name()}, {torch.get_num_threads()} thread(s)"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _code(lines: list[str]) -> str:
    """Indent, which Markdown leaves as it is, whatever the lines hold."""
    return "\n".join(f"    {part}" for line in lines for part in line.splitlines()) + "\n"


def _table(title: str, rows: Mapping[str, str]) -> str:
    cells = (f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items())
    return "\n".join((f"| {title} | |", "|---|---|", *cells)) + "\n"


FOLDER = "final"


_PLUGIN, _START, _END = "hparams", "_hparams_/session_start_info", "_hparams_/session_end_info"


_PATHS = frozenset({"data_path", "val_path"})  # which clips: folds differ in nothing else


Settings = Mapping[str, bool | float | str]


def chosen(settings: Mapping[str, Any], **facts: bool | float | str) -> Settings:
    """Return what is worth comparing: the flags that say what is trained.

    Args:
        settings: all flags as plain values, by group.
        facts: what else was set.
    """
    flags = all_flags(settings)
    kept = {n: _plain(v) for n, v in flags.items() if n not in HARMLESS or n in _PATHS}
    return {**kept, **facts}


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None or value == "":  # an empty cell would hide that runs differ
        return "none"
    return value if isinstance(value, (bool, str)) else float(value)


def begin(log_dir: Path, settings: Settings) -> None:
    """Show the settings of a run that starts or goes on; an earlier end is taken back.

    Args:
        log_dir: folder of the run's TensorBoard files.
        settings: of `chosen`.
    """
    folder = log_dir / FOLDER
    try:
        for path in folder.glob(PATTERN):
            path.unlink(missing_ok=True)
        _write_start(Board(folder), settings).close()
    except OSError as error:
        _warn(folder, error)


def is_ended(log_dir: Path) -> bool:
    """Return whether the end of the run is there."""
    return any(_END.encode() in path.read_bytes() for path in (log_dir / FOLDER).glob(PATTERN))


def end(
    log_dir: Path,
    settings: Settings,
    metrics: Mapping[str, float],
    step: int,
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show what came out of a run, once.

    Args:
        log_dir: as in `begin`.
        settings: as in `begin`; written if they are not there.
        metrics: final numbers by tag.
        step: steps of the whole run.
        images: pictures, (H, W, 3) uint8, by tag.
    """
    folder = log_dir / FOLDER
    try:
        if is_ended(log_dir):
            return
        started = any(folder.glob(PATTERN))
        board = Board(folder, purge_step=1)  # settings are at step 0
        if not started:
            _write_start(board, settings)
        for tag, value in metrics.items():
            board.scalar(tag, value, step)
        for tag, image in (images or {}).items():
            board.image(tag, image, step)
        done = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
        board.plugin(_END, _PLUGIN, HParamsPluginData(session_end_info=done).SerializeToString())
        board.close()
    except OSError as error:
        _warn(folder, error)


def _warn(folder: Path, error: OSError) -> None:
    text = "TensorBoard's HParams tab does not show this run: cannot write in '%s': %s"
    logger.warning(text, folder, error.strerror or error)


def _write_start(board: Board, settings: Settings) -> Board:
    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], kind, value)
    content = HParamsPluginData(session_start_info=start).SerializeToString()
    board.plugin(_START, _PLUGIN, content)
    return board
