"""Checkpoints: written whole and read safely, whatever happens to disk, process or file.

Files are what the original writes: `checkpoint-<epoch>.pth` and `checkpoint-best.pth`, dictionaries
with the weights under `model`; `checkpoint-<epoch>-step<step>.pth` is a state within an epoch,
after so many steps of the run. Reading never runs code from a file.

A file ends in the sha256 of all before it, as the comment of the zip archive that `torch.save`
makes; `torch.load` and every other reader of archives pass over it.
"""

import argparse
import hashlib
import logging
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from hicmae.io import whole_file

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)(?:-step(\d+))?\.pth")
_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64


class CheckpointError(ValueError):
    """A file that is no whole, safe checkpoint; the message says why in one line."""


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is always either the old or the new whole file.

    Args:
        path: file to write; its folder is made if missing.
        content: tensors, plain containers, numbers and strings.
    """
    try:
        with whole_file(path) as part:
            with part.open("wb") as file:
                torch.save(dict(content), file)
            _append_sum(part)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        raise OSError(
            f"could not write checkpoint '{path}': {_cause(error)}; free space or choose another "
            "--output_dir (earlier checkpoints are untouched)"
        ) from error


def _append_sum(path: Path) -> None:
    """Add the check sum of a zip archive as its comment, whose length stands before it."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() != b"\0\0":
            raise RuntimeError(f"torch.save wrote no plain zip archive to '{path}'")
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _TRAILER))
        file.flush()
        file.write(_MARK + digest(path).encode())


def digest(path: Path, but: int = 0) -> str:
    """Return the sha256 of a file without its last `but` bytes."""
    total, size = hashlib.sha256(), path.stat().st_size - but
    with path.open("rb") as file:
        while block := file.read(min(size, 2**20)):
            total.update(block)
            size -= len(block)
    return total.hexdigest()


def _cause(error: BaseException) -> str:
    """Name the operating system's reason behind an exception, or its own first line."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return first_line(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message."""
    return (str(error).strip().splitlines() or [""])[0]


def load(path: str | Path, verify: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing but tensors, containers and Namespace is allowed.

    Args:
        path: file written here, by the original code, or any `torch.save` of a dictionary.
        verify: also compare the check sum at its end, or those within the archive where there is
            none; torch itself does neither.

    Returns:
        The saved dictionary, e.g. keys model, optimizer, epoch, scaler, args. `epoch` may be the
        string "best" in released files.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist; check the path")
    if path.is_dir():
        raise CheckpointError(f"'{path}' is a folder, expected a checkpoint file such as .pth")
    try:
        if verify:
            _check_sums(path)
        with safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise PermissionError(f"checkpoint '{path}' cannot be read: permission denied") from error
    except Exception as error:  # damaged bytes make torch.load raise almost anything
        raise CheckpointError(_explain(path, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"checkpoint '{path}' holds a {type(content).__name__}, expected a dictionary with the "
            "weights under 'model'"
        )
    return content


def _check_sums(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(-min(_TRAILER, path.stat().st_size), os.SEEK_END)
        trailer = file.read()
    if trailer.startswith(_MARK):
        if trailer[len(_MARK) :] != digest(path, but=_TRAILER).encode():
            raise zipfile.BadZipFile("wrong check sum")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong check sum of {damaged}")


def _explain(path: Path, error: BaseException) -> str:
    """Turn an exception of torch.load into one line that says what to do."""
    text = str(error)
    called = re.search(r"GLOBAL ([\w.]+)|whose module (\S+) is blocked", text)
    if called:
        return (
            f"checkpoint '{path}' is refused: loading it would call '{called[1] or called[2]}', "
            "and only tensors, plain containers and argparse.Namespace are allowed; get the file "
            "from a source you trust or re-save its weights alone"
        )
    if "Unsupported operand 149" in text:  # how pickles begin from protocol 4 on
        return (
            f"checkpoint '{path}' is refused: it is a pickle of a newer protocol than "
            "torch.save's own, 2; re-save its weights alone with torch.save as it is"
        )
    detail = f"{type(error).__name__}: {first_line(error)[:80]}".removesuffix(": ")
    return (
        f"checkpoint '{path}' ({path.stat().st_size} bytes) is truncated, damaged or no torch "
        f"checkpoint ({detail}); copy or download it again"
    )


def numbered(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (epoch, path) of every `checkpoint-<epoch>.pth` in a folder, oldest epoch first."""
    return [(epoch, path) for epoch, step, path in in_order(output_dir) if step == math.inf]


def in_order(output_dir: str | Path) -> list[tuple[int, float, Path]]:
    """Return epoch, step and path of every state of a run in training order.

    The step is inf at the end of an epoch, which comes after all states within it.
    """
    found = []
    for path in Path(output_dir).glob("checkpoint-*.pth"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            found.append((int(match[1]), float(match[2] or math.inf), path))
    return sorted(found)


def whole(output_dir: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the states of a run from the newest back, passing over damaged ones with a warning."""
    for _, _, path in reversed(in_order(output_dir)):
        try:
            content = load(path, verify=True)
        except (CheckpointError, OSError) as error:
            logger.warning("skipping a broken checkpoint, trying the one before: %s", error)
            continue
        yield path, content


def newest(output_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the newest whole state of a run, None when there is none."""
    return next(whole(output_dir), None)


def prune(output_dir: str | Path, keep_every: int, keep_last: int = 2) -> None:
    """Delete checkpoints that are neither recent nor at a kept epoch.

    Args:
        output_dir: folder of the checkpoints; other files are left alone.
        keep_every: ends of epochs (counted from 1) divisible by it stay.
        keep_last: this many newest ones stay, two so that one is left if the newest breaks.
    """
    entries = in_order(output_dir)
    for epoch, step, path in entries[: max(len(entries) - keep_last, 0)]:
        if step < math.inf or (epoch + 1) % keep_every:
            path.unlink(missing_ok=True)
