"""Checkpoints: written whole, read safely, found in folders. Files are what the original writes.

`checkpoint-<epoch>.pth` and `checkpoint-best.pth` are dictionaries with the weights under `model`;
`checkpoint-<epoch>-step<step>.pth` is a state within an epoch, after so many steps of the run. The
comment of `torch.save`'s zip archive is the sha256 of all before it; `torch.load` passes over it.
Weights as safetensors, of an export, are read as well.
"""

import argparse
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

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import safe_globals

from hicmae.io import digest, one_line, whole_file

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, EXPORT = "config.json", "model.safetensors", "export"
METADATA = "hicmae_config"  # where a weights file alone carries its config.json
# Exports that come with the package, by name; see scripts/toy/README.md.
BUNDLED = {
    p.parent.name: p.parent for p in Path(__file__).parents[1].glob(f"checkpoints/*/{CONFIG}")
}

_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64
# Numbers of numpy, as the original's optimiser holds them; the module's name is numpy 1's or 2's.
_SCALAR = np.float64().__reduce__()[0]
_ALLOWED: list[Any] = [argparse.Namespace, np.dtype, type(np.dtype(np.float64))]
_ALLOWED += [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


class CheckpointError(ValueError):
    """A file that is no whole, safe checkpoint; the message says why in one line."""


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors, plain containers, numbers and strings, as `whole_file` does."""
    try:
        with whole_file(path) as part, part.open("w+b") as file:
            torch.save(dict(content), file)
            file.seek(-2, os.SEEK_END)  # the length of the archive's comment, then the comment
            if file.read() != b"\0\0":
                raise RuntimeError("torch.save wrote no plain zip archive")
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", _TRAILER))
            file.flush()
            file.write(_MARK + digest(part).encode())
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        cause: BaseException | None = error
        while cause and not getattr(cause, "strerror", None):
            cause = cause.__cause__ or cause.__context__
        raise OSError(
            f"could not write checkpoint '{path}': {getattr(cause, 'strerror', one_line(error))}; "
            "free space or choose another --output_dir (earlier checkpoints are untouched)"
        ) from error


def find(path: str | Path, to_resume: bool = False) -> Path:
    """Return the file that a path means: itself, or the best weights there are in a folder.

    It may be a name of `BUNDLED`. `to_resume` takes the newest state of a run instead.
    FileNotFoundError: there is none.
    """
    path = Path(path) if Path(path).exists() else BUNDLED.get(str(path), Path(path))
    saved = [state for _, _, state in reversed(in_order(path))]
    kinds = ("", f"{EXPORT}/best", f"{EXPORT}/last", "best", "last")
    best = [*(path / kind / WEIGHTS for kind in kinds), path / "checkpoint-best.pth"]
    for place in (path, *([] if to_resume else best), *saved):
        if place.is_file():
            return place
    problem = "holds no checkpoint" if path.is_dir() else "does not exist"
    known = f"a .pth, a folder with {WEIGHTS}, or one of the package ({', '.join(BUNDLED)})"
    known = "or its .pth; weights alone go to --finetune" if to_resume else known
    raise FileNotFoundError(
        f"checkpoint '{path}' {problem}; name the output folder of a run, {known}"
    )


def load(path: str | Path, verify: bool = False, settings_only: bool = False) -> dict[str, Any]:
    """Read what `find` returns onto the CPU; only tensors, containers, Namespace, numbers.

    The original's `epoch` may be "best". Of safetensors the weights are under `model`, and the text
    of an export's config.json and where it stands under `description`. `verify` also compares the
    check sum at a file's end, if there is one. With `settings_only` tensors stay in the file.
    """
    path = find(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(-min(_TRAILER, path.stat().st_size), os.SEEK_END)
            mark, total = file.read(len(_MARK)), file.read()
        if foreign := _foreign(path.suffix.lower(), start):
            raise CheckpointError(f"'{path}' {foreign}")
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _load_safetensors(path)
        if verify and mark == _MARK and total != digest(path, but=_TRAILER).encode():
            raise zipfile.BadZipFile("wrong check sum")
        with safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            mmap = settings_only and zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (CheckpointError, PermissionError):
        raise
    except Exception as error:  # damaged bytes make torch.load raise almost anything
        raise CheckpointError(f"checkpoint '{path}' {_explain(path, error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"checkpoint '{path}' holds a {type(content).__name__}, expected a dictionary with the "
            "weights under 'model'"
        )
    return content


def _foreign(suffix: str, start: bytes) -> str:
    """Say what a file is that people take for a checkpoint when a download went wrong; else ""."""
    if suffix in (".onnx", ".pt2"):
        return (
            "holds a program, no weights to load (hicmae-predict reads an .onnx, torch.export.load "
            "a .pt2); name the checkpoint it was made of"
        )
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file it stands for; run: git lfs pull"
    if start.startswith((b"<!", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a checkpoint; download the file that the page offers"
    return ""


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        # By its number, as safetensors takes names of UTF-8 alone.
        with path.open("rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", "pt") as file:
            text, source = (file.metadata() or {}).get(METADATA), path
            content: dict[str, Any] = {"model": {n: file.get_tensor(n) for n in file.keys()}}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is damaged or no safetensors file: {error}") from None
    beside = path.with_name(CONFIG)
    if path.name == WEIGHTS and beside.is_file():  # people may have edited it
        text, source = beside.read_text(encoding="utf-8"), beside
    return content | ({"description": (text, source)} if text is not None else {})


def _explain(path: Path, error: Exception) -> str:
    """Say what an exception of torch.load means and what to do."""
    reasons = r"GLOBAL ([\w.]+)|whose module (\S+) is blocked|but got <class '([\w.]+)'>"
    if called := re.search(reasons, str(error)):
        return (
            f"is refused: loading it would call '{called[called.lastindex or 0]}', and only "
            "tensors, plain containers, numbers and argparse.Namespace are allowed; re-save its "
            "weights alone"
        )
    text = one_line(Exception(str(error).partition("WeightsUnpickler error:")[2] or error))
    return (
        f"({path.stat().st_size} bytes) is truncated, damaged or no torch checkpoint "
        f"({type(error).__name__}: {text[:80]}); copy or download it again"
    )


def in_order(output_dir: str | Path) -> list[tuple[int, float, Path]]:
    """Return epoch, step, inf at the end of an epoch, and path of a run's states, oldest first."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*.pth") if path.is_file()]
    names = [re.fullmatch(r"checkpoint-(\d+)(?:-step(\d+))?\.pth", path.name) for path in paths]
    pairs = zip(names, paths, strict=True)
    return sorted((int(m[1]), float(m[2] or math.inf), path) for m, path in pairs if m)


def epoch_ends(output_dir: str | Path) -> list[Path]:
    """Return every `checkpoint-<epoch>.pth` of a run, oldest first."""
    return [path for _, step, path in in_order(output_dir) if step == math.inf]


def whole(output_dir: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the states of a run from the newest back, passing over damaged ones with a warning."""
    for _, _, path in reversed(in_order(output_dir)):
        try:
            yield path, load(path, verify=True)
        except (CheckpointError, OSError) as error:
            logger.warning("skipping a broken checkpoint, trying the one before: %s", error)


def prune(newest: Path, keep_every: int, keep_last: int = 2) -> None:
    """Delete states but the last up to the `newest`, and ends of every nth epoch, from 1.

    Those after it, if any, are of a run that went back: the newest first, they go.
    """
    entries = in_order(newest.parent)
    end = [path for _, _, path in entries].index(newest) + 1
    for _, _, path in reversed(entries[end:]):
        path.unlink(missing_ok=True)
        logger.warning("removed '%s', which lay ahead of this run", path)
    for epoch, step, path in entries[: max(end - keep_last, 0)]:
        if step < math.inf or (epoch + 1) % keep_every:
            path.unlink(missing_ok=True)
