"""Checkpoints: atomic saving, safe loading, resuming, and pre-trained weights that report.

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
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import safe_globals

from hicmae.training.transfer import LoadReport, compare, other_fusion_order, weights_of

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)(?:-step(\d+))?\.pth")
_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64

# Every way in which torch.load was seen to answer truncated, flipped or random bytes.
_DAMAGE = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    MemoryError,
    OSError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointError(ValueError):
    """A file that is no whole, safe checkpoint; the message says why in one line."""


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is always either the old or the new whole file.

    Also removes half-written files that a killed earlier process left in the folder.

    Args:
        path: file to write; its folder is made if missing.
        state: tensors, plain containers, numbers and strings.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob("*.pth.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
        _append_sum(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        raise OSError(
            f"could not write checkpoint '{path}': {_cause(error)}; free space or choose another "
            "--output_dir (earlier checkpoints are untouched)"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _append_sum(path: Path) -> None:
    """Add the check sum of a zip archive as its comment, whose length stands before it; sync."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() != b"\0\0":
            raise RuntimeError(f"torch.save wrote no plain zip archive to '{path}'")
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _TRAILER))
        file.flush()
        digest = _digest(path, path.stat().st_size)
        file.write(_MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path, size: int) -> str:
    """Return the sha256 of the first `size` bytes of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, 2**20))):
            total.update(block)
            size -= len(block)
    return total.hexdigest()


def _recorded_sum(path: Path) -> str | None:
    """Return the check sum at the end of a file, None for files that others wrote."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TRAILER, 0))
        trailer = file.read()
    return trailer[len(_MARK) :].decode("ascii", "replace") if trailer[:7] == _MARK else None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """Name the operating system's reason behind an exception, or its own first line."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise PermissionError(f"checkpoint '{path}' cannot be read: permission denied") from error
    except _DAMAGE as error:
        raise CheckpointError(_explain(path, error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint '{path}' holds a {type(state).__name__}, expected a dictionary with the "
            "weights under 'model'"
        )
    return state


def _check_sums(path: Path) -> None:
    recorded = _recorded_sum(path)
    if recorded is not None:
        if recorded != _digest(path, path.stat().st_size - _TRAILER):
            raise zipfile.BadZipFile("wrong check sum")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong check sum of {damaged}")


def _explain(path: Path, error: BaseException) -> str:
    """Turn an exception of torch.load into one line that says what to do."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
        r"whose module (\S+) is blocked", str(error)
    )
    if wanted:
        return (
            f"checkpoint '{path}' is refused: loading it would call '{wanted[1]}', and only "
            "tensors, plain containers and argparse.Namespace are allowed; get the file from a "
            "source you trust or re-save its weights alone"
        )
    if "Unsupported operand 149" in str(error):  # how pickles begin from protocol 4 on
        return (
            f"checkpoint '{path}' is refused: it is a pickle of a newer protocol than "
            "torch.save's own, 2; re-save its weights alone with torch.save as it is"
        )
    size = path.stat().st_size
    reason = (str(error).strip().splitlines() or [""])[0][:80]
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return (
        f"checkpoint '{path}' ({size} bytes) is truncated, damaged or no torch checkpoint "
        f"({detail}); copy or download it again"
    )


def numbered(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (epoch, path) of every `checkpoint-<epoch>.pth` in a folder, oldest epoch first."""
    return [(epoch, path) for epoch, step, path in _saved(output_dir) if step == math.inf]


def _saved(output_dir: str | Path) -> list[tuple[int, float, Path]]:
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
    for _, _, path in reversed(_saved(output_dir)):
        try:
            state = load(path, verify=True)
        except (CheckpointError, OSError) as error:
            logger.warning("skipping a broken checkpoint, trying the one before: %s", error)
            continue
        yield path, state


def newest(output_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the newest whole state of a run, None when there is none."""
    return next(whole(output_dir), None)


def prune(output_dir: str | Path, keep_every: int, keep_last: int = 2) -> list[Path]:
    """Delete checkpoints that are neither recent nor at a kept epoch.

    Args:
        output_dir: folder of `checkpoint-<epoch>.pth` files and those within epochs; others are
            left alone.
        keep_every: ends of epochs (counted from 1) divisible by it stay; 0 or less: none for this
            reason.
        keep_last: this many newest ones stay, two so that one is left if the newest breaks.

    Returns:
        The deleted files.
    """
    removed = []
    entries = _saved(output_dir)
    for epoch, step, path in entries[: max(len(entries) - keep_last, 0)]:
        if step < math.inf or keep_every <= 0 or (epoch + 1) % keep_every:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def set_aside(output_dir: str | Path, epoch: int, step: int, steps_done: int) -> list[Path]:
    """Rename states that lie ahead of where a run goes on, so that none is taken for its own.

    Args:
        output_dir: folder of the checkpoints.
        epoch: in which the run goes on.
        step: steps of that epoch which are done; 0: it has not begun.
        steps_done: steps of the whole run.

    Returns:
        The new names, `<old name>.superseded`.
    """
    here = (epoch, steps_done) if step else (epoch - 1, math.inf)
    renamed = []
    for other_epoch, other_step, path in _saved(output_dir):
        if (other_epoch, other_step) > here:
            renamed.append(path.replace(path.with_name(path.name + ".superseded")))
    if renamed:
        names = ", ".join(path.name for path in renamed)
        logger.warning("later than where this run goes on, and renamed: %s", names)
    return renamed


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    model_key: str = "model|module",
    allow_partial: bool = False,
    require_all: bool = False,
) -> LoadReport:
    """Copy every weight whose name and shape fit into the model, and report the rest.

    Decoders, mask tokens and projections of a pre-training checkpoint are left over; the
    classifier's head, `fc_norm` and layer weights keep their initial values. Streams that the
    model lacks (one modality only) are left over too.

    Args:
        model: pre-training model or classifier, changed in place.
        source: checkpoint file or its content; a bare state dict works as well.
        model_key: names under which the weights may stand, split by "|", first found wins.
        allow_partial: accept encoders of another depth or with missing weights, as long as half
            of the model's encoder weights are found.
        require_all: refuse when any weight of the model is not loaded (testing without training).

    Returns:
        What was loaded, what is new, left over, or of another shape; also logged.
    """
    name = "the given weights" if isinstance(source, Mapping) else f"'{source}'"
    content = source if isinstance(source, Mapping) else load(source)
    weights = weights_of(content, model_key, name)
    report = compare(model, weights, name)
    report.check(allow_partial, require_all)
    if warning := other_fusion_order(model, content, name):
        if require_all:
            raise ValueError(f"{warning}; test it with the order it was trained with")
        logger.warning("%s: the fusion layers have to learn the new order", warning)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    logger.info("%s", report.text())
    return report
