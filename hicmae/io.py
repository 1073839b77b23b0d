"""What all floors need: whole files, tables, the device, one-line errors."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its pixels
HUB_FILES = ["config.json", "model.safetensors", "README.md"]  # of a model, nothing pickled

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on where this one stopped.
RESUMABLE = 75
EXPECTED = (ValueError, OSError, RuntimeError)  # what bad input raises; the message is enough
PART = ".part-"  # how temporary names begin; hidden, so that nothing takes them for data


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the script exits with `RESUMABLE`."""


class UnreadableClip(RuntimeError):
    """A clip's file is missing or broken; the message is one line that names it."""


def one_line(error: Exception) -> str:
    """Return a library's error message on one line, short enough for a log."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def describe(error: Exception) -> str:
    """Say on one line what an exception means to the user."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename  # of a renaming the name that it should get
        text = (f"'{name}': " if name else "") + error.strerror
    return " ".join(text.split()) or type(error).__name__


def hub_error(name: object, error: Exception) -> OSError:
    """Return an error that says on one line what a model hub did not give or take."""
    return OSError(
        f"huggingface.co and '{name}': {type(error).__name__}: {one_line(error)[:120]}; expected a "
        "folder that is here, or <user>/<model>; check the name and the network, and for what is "
        "private: hf auth login"
    )


def hub_folder(name: str | Path, **options: Any) -> Path:
    """Return a folder as it is, or that of the hub's cache with the files of a model by its name.

    `options` are those of `huggingface_hub.snapshot_download`. OSError, in one line: there is none.
    """
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import snapshot_download  # for which no --help should wait

    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES, **options))
    except Exception as error:  # of requests or httpx, by its version
        raise hub_error(name, error) from error


def encodable(text: str) -> str:
    """Return a text of UTF-8, with odd bytes of names, as `os` has them, escaped as JSON does."""
    return text.encode("utf-8", "backslashreplace").decode()


def count_cores() -> int:
    """Return how many cores this process may use, as a scheduler says."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or allowed or 1)


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """Return the device that --device names; ValueError: it is not known, or not there.

    "auto" is a CUDA GPU if there is one, else the CPU; "cuda" is the GPU of `local_rank`, the
    number of this process on its machine, or without that the current one.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"--device must be auto, cpu, mps, cuda or cuda:<number>, got {name!r}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cuda" and gpus and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps, but torch sees no GPU of Apple; use --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(
            f"--device {name}, but torch sees {gpus or 'no'} GPU{'s' * (gpus > 1)}; check the "
            "driver and CUDA_VISIBLE_DEVICES, start at most one process a GPU, or use --device cpu"
        )
    return device


@functools.cache
def imagenet(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return mean and deviation, (3, 1, 1, 1); sent to a device once, as a GPU waits for them."""
    import torch

    return tuple(torch.tensor(v, dtype=dtype, device=device).view(3, 1, 1, 1) for v in IMAGENET)


def check_writable(path: str | Path, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be written later, before an hour of work.

    ValueError: its name ends in none of `suffixes`. OSError: its folder cannot be written.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"'{path}' must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder, expected a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder '{path.parent}' cannot be made ({error.strerror})") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"folder '{path.parent}' cannot be written; choose another")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; the file takes its place when it is whole.

    Whoever reads `path` sees the old or the new whole file, also after a full disk or a power cut;
    a killed process leaves a `.part-*` behind. The folder is made if missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays, as writers of films and pictures choose their format by it.
    part = path.with_name(f"{PART}{secrets.token_hex(6)}{path.suffix}")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` at the end; after an error that stays."""
    path = Path(path)
    part = path.with_name(f"{PART}{secrets.token_hex(6)}")
    old = part.with_name(f"{part.name}-old")
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():  # a folder cannot replace one
            path.rename(old)
        part.replace(path)
    finally:
        remove(part)
        remove(old)


def remove(path: str | Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        Path(path).unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a text (UTF-8) or bytes by `whole_file`."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with whole_file(path) as part:
        part.write_bytes(data)


def write_csv(
    path: str | Path, header: Iterable[Any], rows: Iterable[Iterable[Any]], delimiter: str = ","
) -> None:
    """Write a table, maybe without a header, by `whole_file`; names need not be UTF-8."""
    encoding: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    with whole_file(path) as part, part.open("w", newline="", **encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        if header:
            writer.writerow(header)
        writer.writerows(rows)


def digest(path: Path, but: int = 0) -> str:
    """Return the sha256 of a file without its last `but` bytes."""
    total, size = hashlib.sha256(), path.stat().st_size - but
    with path.open("rb") as file:
        while block := file.read(min(size, 2**20)):
            total.update(block)
            size -= len(block)
    return total.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
