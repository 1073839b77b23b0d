"""What a resumed run does differently from the run that made its checkpoint.

Which weights of a checkpoint fit a model: compared by name, judged, and told in a few lines.

Checkpoints: atomic saving, safe loading, resuming, and pre-trained weights that report.

Files are what the original writes: `checkpoint-<epoch>.pth` and `checkpoint-best.pth`, dictionaries
with the weights under `model`; `checkpoint-<epoch>-step<step>.pth` is a state within an epoch,
after so many steps of the run. Reading never runs code from a file.

A file ends in the sha256 of all before it, as the comment of the zip archive that `torch.save`
makes; `torch.load` and every other reader of archives pass over it.

When and what a run saves, so that one which is killed at any moment goes on as if it had not.

Going on with a run: which checkpoint, whether it fits, and every state as it was.
"""

import argparse
import hashlib
import logging
import math
import os
import pickle
import re
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.serialization import safe_globals
from torch.utils.data import DataLoader

from hicmae.config import BEFORE, HARMLESS, all_flags
from hicmae.data.clip_list import AnyClip
from hicmae.training import distributed
from hicmae.training.logs import RunLogger
from hicmae.training.loop import BadSteps, Watched, Window
from hicmae.training.optim import Optimization
from hicmae.training.run import (
    RunShape,
    Session,
    Stopped,
    name_of,
    random_states,
    restore_random_states,
    write_settings,
)

logger = logging.getLogger(__name__)

_BATCH = ("batch_size", "accum_iter")  # judged by their product


class Changes(NamedTuple):
    """Differences as "name old -> new"."""

    meaning: list[str]
    harmless: list[str]


def describe_clips(clips: Sequence[AnyClip], root: str) -> str:
    """Tell clips apart from others in a few characters, wherever their files lie.

    Args:
        clips: in the order of their list.
        root: folder that relative paths were joined to.
    """
    total = hashlib.sha256()
    for clip in clips:
        video, audio = (_below(path, root) for path in (clip.video, clip.audio))
        total.update(f"{video}\0{audio}\0{clip.label}\n".encode(errors="surrogateescape"))
    return f"{len(clips)} ({total.hexdigest()[:12]})"


def _below(path: str | None, root: str) -> str | None:
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if root and path and path.startswith(prefix) else path


def find_changes(settings: Mapping[str, Any], shape: RunShape, state: Mapping[str, Any]) -> Changes:
    """Compare settings and clips of this run with those that a checkpoint holds.

    Args:
        settings: all flags of this run, by group.
        shape: of this run.
        state: content of the checkpoint; what it does not hold counts as unchanged, but for the
            flags in `BEFORE`.
    """
    old, new = all_flags(state.get("args")), all_flags(settings)
    old = {**BEFORE, **old} if old else {}
    changes = Changes([], [])
    for name in new:
        if name in old and name not in _BATCH and old[name] != new[name]:
            kind = changes.harmless if name in HARMLESS else changes.meaning
            kind.append(f"--{name} {_shown(old[name])} -> {_shown(new[name])}")
    progress = state.get("progress", {})
    _compare_shapes(progress, shape, changes)
    if progress.get("total_batch", shape.total_batch) == shape.total_batch:
        parts = [f"--{n} {old[n]} -> {new[n]}" for n in _BATCH if n in old and old[n] != new[n]]
        changes.harmless.extend(parts)
    return changes


def _compare_shapes(progress: Mapping[str, Any], shape: RunShape, changes: Changes) -> None:
    for name, clips in progress.get("clips", {}).items():
        if name in shape.clips and clips != shape.clips[name]:
            kind = changes.harmless if name == "test" else changes.meaning
            kind.append(f"clips of the {name} list {clips} -> {shape.clips[name]}")
    for name, kind in (
        ("total_batch", changes.meaning),
        ("steps", changes.meaning),
        ("world_size", changes.harmless),
    ):
        old, new = progress.get(name, getattr(shape, name)), getattr(shape, name)
        if old != new:
            kind.append(f"{_NAMES[name]} {old} -> {new}")


_NAMES = {
    "total_batch": "clips of a step (batch_size x accum_iter x processes)",
    "steps": "steps of an epoch",
    "world_size": "processes",
}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


ENCODERS = ("encoder", "encoder_audio", "encoder_fusion")


MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training


_BLOCK = re.compile(r"(encoder|encoder_audio|encoder_fusion)\.blocks(?:_audio)?\.(\d+)\.")


def weights_of(content: Mapping[str, Any], model_key: str, source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint and strip the prefixes of DDP and torch.compile.

    Args:
        content: a checkpoint, or itself a state dict.
        model_key: names under which the weights may stand, split by "|".
        source: what to call the checkpoint in messages.
    """
    keys = [key for key in model_key.split("|") if isinstance(content.get(key), Mapping)]
    weights = content[keys[0]] if keys else content
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise ValueError(
            f"{source} holds no weights: expected a state dict under "
            f"{' or '.join(repr(key) for key in model_key.split('|'))}, got the keys {found}"
        )
    return {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): w for name, w in weights.items()}


class LoadReport(NamedTuple):
    """Names of weights by what happens to them.

    Attributes:
        source: what the checkpoint is called in messages.
        loaded: in both, same shape.
        new: in the model only; they keep their initial values.
        unused: in the checkpoint only.
        mismatched: in both with different shapes, as "name: (checkpoint) -> (model)"; not loaded.
        share: part of the model's encoder weights (counted in numbers) that is loaded, 0..1.
        problems: reasons why encoders do not fit, for `check`.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    share: float
    problems: tuple[str, ...]

    def check(self, allow_partial: bool = False, require_all: bool = False) -> None:
        """Raise ValueError in one line when the checkpoint does not fit the model."""
        if not self.loaded and not self.mismatched:
            raise ValueError(
                f"no weight of {self.source} fits the model: the checkpoint has "
                f"{_folded(self.unused, 6)}; the model has "
                f"{_folded(self.new, 6)}; is it a HiCMAE checkpoint of this --model?"
            )
        if self.problems and not allow_partial:
            raise ValueError(
                f"{self.source} does not fit the model's encoders: {'; '.join(self.problems)}; "
                "choose the --model and depths of the checkpoint, or add --allow_partial"
            )
        if self.share < MIN_SHARE:
            loaded = _folded(self.loaded, 6) or "nothing"
            raise ValueError(
                f"only {self.share:.0%} of the model's encoder weights are in {self.source}, "
                f"expected at least {MIN_SHARE:.0%}: loaded {loaded}; "
                "choose the --model and depths of the checkpoint"
            )
        if require_all and self._ignores_layer_weights():
            raise ValueError(
                f"{self.source} has layer weights, which this model does not read; test it without "
                "--no-hierarchical_fusion, as it was trained"
            )
        if require_all and (self.new or self.mismatched):
            raise ValueError(
                f"{self.source} lacks weights of the model: "
                f"{_folded(self.new + self.mismatched, 6)}; testing needs a fine-tuned checkpoint "
                "of the same model and --nb_classes"
            )

    def _ignores_layer_weights(self) -> bool:
        own = (*self.loaded, *self.new, *self.mismatched)
        return _has_layer_weights(self.unused) and not _has_layer_weights(own)

    def text(self) -> str:
        """Return the report as two to five short lines."""
        total = len(self.loaded) + len(self.new) + len(self.mismatched)
        lines = [
            f"loaded {len(self.loaded)} of {total} tensors ({self.share:.1%} of the encoder "
            f"weights) from {self.source}"
        ]
        parts = (
            ("new, keep their initial values", _folded(self.new)),
            ("left over in the checkpoint", _folded(self.unused)),
            ("of another shape, not loaded", ", ".join(self.mismatched[:6])),
            ("accepted although", "; ".join(self.problems)),
        )
        return "\n".join(lines + [f"  {what}: {names}" for what, names in parts if names])


def compare(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Compare a state dict with a model's by name and shape, without changing the model."""
    own = model.state_dict()
    loaded = tuple(n for n, w in own.items() if n in weights and weights[n].shape == w.shape)
    wrong = tuple(n for n, w in own.items() if n in weights and weights[n].shape != w.shape)
    new = tuple(name for name in own if name not in weights)
    unused = tuple(name for name in weights if name not in own)
    encoder_size = sum(w.numel() for name, w in own.items() if _is_encoder(name))
    found = sum(own[name].numel() for name in loaded if _is_encoder(name))
    shapes = {n: f"{n}: {tuple(weights[n].shape)} -> {tuple(own[n].shape)}" for n in wrong}
    return LoadReport(
        source=source,
        loaded=loaded,
        new=new,
        unused=unused,
        mismatched=tuple(shapes.values()),
        share=found / encoder_size if encoder_size else 1.0,
        problems=tuple(_problems(own, weights, shapes)),
    )


def _problems(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], shapes: Mapping[str, str]
) -> list[str]:
    """Say for each encoder of the model what keeps it from being the checkpoint's encoder."""
    problems = []
    encoder_shapes = [text for name, text in shapes.items() if _is_encoder(name)]
    if encoder_shapes:
        more = f" and {len(encoder_shapes) - 1} more" if len(encoder_shapes) > 1 else ""
        problems.append(f"other shapes (checkpoint -> model): {encoder_shapes[0]}{more}")
    mine, theirs = _blocks(own), _blocks(weights)
    for encoder in ENCODERS:
        names = [name for name in own if name.split(".")[0] == encoder]
        if not names:
            continue
        if not any(name in weights for name in names):
            problems.append(f"{encoder}.* is missing from the checkpoint")
            continue
        if surplus := theirs[encoder] - mine[encoder]:
            problems.append(f"{encoder} blocks {_span(surplus)} of the checkpoint are unused")
        if lacking := mine[encoder] - theirs[encoder]:
            problems.append(f"{encoder} blocks {_span(lacking)} are missing from the checkpoint")
        single = [n for n in names if n not in weights and _block_of(n) not in lacking]
        if single:
            problems.append(f"the checkpoint lacks {_folded(single, 3)}, e.g. {single[0]}")
    return problems


def other_fusion_order(model: nn.Module, content: Mapping[str, Any], source: str) -> str:
    """Say that a checkpoint's fusion layers were trained in another order, which no weight shows.

    Args:
        model: that gets the weights.
        content: of the checkpoint; one without settings is not judged.
        source: what to call it.

    Returns:
        One line, empty if there is nothing to say.
    """
    fusion, settings = getattr(model, "encoder_fusion", None), content.get("args")
    if fusion is None or not settings:
        return ""
    order = {**BEFORE, **all_flags(settings)}["fusion_order"]
    if order == fusion.order:
        return ""
    return (
        f"{source} was trained with --fusion_order {order}, this model has --fusion_order "
        f"{fusion.order}"
    )


def _has_layer_weights(names: Iterable[str]) -> bool:
    return any(name.endswith("_layer_weights") for name in names)


def _is_encoder(name: str) -> bool:
    return name.split(".")[0] in ENCODERS


def _block_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[2]) if match else None


def _blocks(names: Iterable[str]) -> dict[str, set[int]]:
    """Return the block numbers that occur for each encoder."""
    found: dict[str, set[int]] = {encoder: set() for encoder in ENCODERS}
    for name in names:
        if match := _BLOCK.match(name):
            found[match[1]].add(int(match[2]))
    return found


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"


def _fold(name: str) -> str:
    """Shorten a name to its family: encoder.blocks.3.attn.proj.bias -> encoder.blocks.*."""
    parts = name.split(":")[0].split(".")
    if parts[0] in ENCODERS and len(parts) > 2:
        return f"{parts[0]}.{parts[1]}.*"
    return f"{parts[0]}.*" if len(parts) > 1 else parts[0]


def _folded(names: Iterable[str], limit: int | None = None) -> str:
    """List the families of names with the number of tensors in each."""
    counts: dict[str, int] = {}
    for name in names:
        counts[_fold(name)] = counts.get(_fold(name), 0) + 1
    shown = [f"{n} ({c})" if n.endswith("*") else n for n, c in list(counts.items())[:limit]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


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


NO_BEST: dict[str, Any] = {"epoch": -1, "value": None}


class Place(NamedTuple):
    """How far a run has come."""

    epoch: int  # in hand, 0-based
    step: int  # steps of it that are done


class Saver:
    """Saves every `--save_interval` minutes and at epoch ends, and when the run is asked to stop.

    Every rank calls every method, at the same point of the run; rank 0 writes.

    Args:
        session: of this process.
        model: not wrapped for several processes.
        optimization: its optimiser and scaler are saved.
        shape: clips and steps of the run.
        clock: seconds, unmoved by changes of the time of day.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        optimization: Optimization,
        shape: RunShape,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.model = session, model
        self.optimization, self.shape = optimization, shape
        self.place = Place(0, 0)
        self.best = NO_BEST  # epoch and value of checkpoint-best.pth
        self.origin: dict[str, str] | None = None  # what --resume named when the run began
        self.logger: RunLogger | None = None
        self.resumed: dict[str, Any] | None = None  # `Window.state` that the next window takes
        self._window: Window | None = None
        self._unsaved = False
        self._clock = clock
        self._checked = self._saved = clock()
        self._writing = 0.0

    @property
    def steps_done(self) -> int:
        """Steps of the whole run."""
        return self.place.epoch * self.shape.steps + self.place.step

    def take_resumed(self) -> tuple[int, dict[str, Any] | None]:
        """Return the steps done of the epoch in hand, and the state of their window, once."""
        state, self.resumed = self.resumed, None
        return self.place.step, state

    def step_done(self, done: int, window: Window) -> None:
        """Note a step; save or stop if it is time, but at the end of an epoch its caller saves."""
        self.place = self.place._replace(step=done)
        self._window, self._unsaved = window, True
        if done < self.shape.steps:
            self.check()

    def check(self) -> None:
        """Save if it is time or a signal came, and then stop.

        Raises:
            Stopped: any rank got SIGTERM or SIGUSR1.
        """
        number, due = distributed.highest([self.session.stop.number, int(self._is_due())])
        if self._unsaved and (number or due):
            self._save_state()
        if number:
            state = "but the last ones could NOT be saved" if self._unsaved else "all saved"
            raise Stopped(f"stopped by {name_of(number)} after {self.steps_done} steps, {state}")

    def _is_due(self) -> bool:
        """Return whether the time of another step, and of writing, would be too long to wait."""
        now = self._clock()
        step, self._checked = now - self._checked, now
        interval = 60 * self.session.run.save_interval
        return interval == 0 or now - self._saved + step + self._writing > interval

    def watched(self, loader: DataLoader[Any]) -> Watched:
        """Return the batches of an evaluation; between them the run can be saved and stopped."""
        return Watched(loader, self.check)

    def end_epoch(self) -> None:
        """Save the end of the epoch in hand, after all that belongs to it is logged."""
        self.resumed = self._window.state_of_next() if self._window else self.resumed
        self.place, self._window, self._unsaved = Place(self.place.epoch + 1, 0), None, True
        self._save_state()

    def finish(self) -> None:
        """Make sure that the last state is saved; from here on the model may change.

        Raises:
            OSError: it cannot be.
        """
        if self._unsaved:
            self._save_state()
        if self._unsaved:
            raise OSError(
                f"the state after the last epoch is not saved in '{self.session.output_dir}'; "
                "free space and start the command again: it goes on from the last save"
            )

    def save_best(self, value: float) -> bool:
        """Write the epoch in hand, not yet ended, to checkpoint-best.pth; return the success."""
        best = {"epoch": self.place.epoch, "value": value}
        state = {**self._training_state(), "epoch": self.place.epoch, "best": best}
        saved = self._write("best", state)
        if saved:
            self.best = best
        return saved

    def dump(self, bad: BadSteps) -> str:
        """Write the state in which training failed, with the clips of all ranks.

        Returns:
            The one line that says so.
        """
        steps = distributed.gather_objects([bad.steps])
        path = self.session.output_dir / f"bad_steps-{bad.steps[-1]['step']}.pth"
        written = f"state and clips are in '{path}'"
        if distributed.is_main():
            state = {**self._training_state(), "epoch": self.place.epoch - 1, "bad_steps": steps}
            try:
                save(path, state)
            except OSError as error:
                written = str(error)
        return (
            f"{bad}; {written}; lower --lr, set --clip_grad, or use --precision bf16 or fp32, and "
            "resume"
        )

    def _training_state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimization.optimizer.state_dict(),
            "scaler": self.optimization.scaler.state_dict(),
            "args": self.session.settings,
            "best": self.best,
        }

    def _save_state(self) -> None:
        started, (epoch, step) = self._clock(), self.place
        window = self._read_window()
        own = {"random": random_states(), "window": window}
        state = {
            **self._training_state(),
            "epoch": epoch - 1,  # the last whole one, as in the original
            "progress": {
                "epoch": epoch,
                "step": step,
                "steps_done": self.steps_done,
                "clips_done": step * self.shape.total_batch,
                **self.shape._asdict(),
                "torch": str(torch.__version__),
            },
            "origin": self.origin,
            "ranks": distributed.gather_objects([own]),
        }
        name = f"{epoch}-step{self.steps_done}" if step else f"{epoch - 1}"
        self._unsaved = not self._write(name, state)
        # Counted from the state that was saved; a failed attempt is not repeated at every step.
        self._saved, self._checked = started, self._clock()
        self._writing = self._checked - started

    def _read_window(self) -> dict[str, Any] | None:
        """Bring the logs up to the state that is about to be saved; return the window's part."""
        if self._window is not None:
            self._window.read()
        if self.logger is not None:
            self.logger.sync()
        return None if self._window is None else self._window.state()

    def _write(self, name: str, state: dict[str, Any]) -> bool:
        """Write a checkpoint and prune; without success warn, and leave all files as they were."""
        written = True
        if distributed.is_main():
            run, folder = self.session.run, self.session.output_dir
            try:
                save(folder / f"checkpoint-{name}.pth", state)
                prune(folder, run.save_ckpt_freq, run.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.broadcast(written)


class Found(NamedTuple):
    """A checkpoint to go on from."""

    path: Path
    state: dict[str, Any]
    origin: dict[str, str] | None  # what --resume named when the run began


def find_checkpoint(session: Session) -> Found | None:
    """Choose the checkpoint to go on from, the same on every rank; None: start afresh.

    Without --resume that is the newest whole one of the output folder. With it, it is the named
    one, unless the folder holds newer ones of a run that began there: then the same command was
    started again.
    """
    message: Any = None
    if distributed.is_main():
        try:
            message = _choose(session)
        except (OSError, ValueError) as error:
            message = error
    on_main = message
    message = distributed.broadcast(_path_only(message))
    if isinstance(message, Exception):
        raise message
    if message is None or distributed.is_main():
        return on_main
    path, origin = message
    return Found(path, load(path, verify=True), origin)


def _path_only(message: Any) -> Any:
    return (message.path, message.origin) if isinstance(message, Found) else message


def _choose(session: Session) -> Found | None:
    run = session.run
    # A launcher that starts a group again means the run it started before.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    looks = run.auto_resume or restarted
    if not run.resume:
        found = newest(session.output_dir) if looks else None
        return Found(*found, found[1].get("origin")) if found else None
    named = Path(run.resume)
    for path, state in whole(session.output_dir) if looks else ():
        if _began_at(state.get("origin"), named):
            return Found(path, state, state["origin"])
    state = load(named, verify=True)
    return Found(named, state, {"path": str(named.resolve()), "sha256": _sha256(named)})


def _began_at(origin: Any, named: Path) -> bool:
    if not isinstance(origin, Mapping) or origin["path"] != str(named.resolve()):
        return False
    return not named.exists() or origin["sha256"] == _sha256(named)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def prepare(
    session: Session,
    found: Found | None,
    model: nn.Module,
    optimization: Optimization,
    shape: RunShape,
) -> Saver:
    """Bring a new run's parts to the state of a checkpoint, and return what will save them.

    Args:
        session: of this process.
        found: of `find_checkpoint`; None starts afresh.
        model: not wrapped; changed in place.
        optimization: changed in place, but for the schedules.
        shape: of this run.

    Raises:
        ValueError: the checkpoint is no training state, or of another model or other settings.
    """
    saver = Saver(session, model, optimization, shape)
    if found is not None:
        _check_keys(found)
        _check_changes(session, found, shape)
        _load(found, model, optimization)
        _go_on(saver, found)
        found.state.clear()  # the caller may hold it for days
    if distributed.is_main():
        set_aside(session.output_dir, *saver.place, saver.steps_done)
        write_settings(session)
    return saver


def _check_keys(found: Found) -> None:
    missing = {"model", "optimizer", "epoch"} - found.state.keys()
    if missing or not isinstance(found.state["epoch"], int):
        raise ValueError(
            f"checkpoint '{found.path}' cannot be resumed: it lacks "
            f"{sorted(missing) or 'an epoch number'}; use --finetune for released weights"
        )


def _check_changes(session: Session, found: Found, shape: RunShape) -> None:
    changes = find_changes(session.settings, shape, found.state)
    if changes.harmless:
        logger.info(
            "resuming with changes that keep the run's meaning: %s", _list(changes.harmless)
        )
    if "progress" in found.state and found.state["progress"]["world_size"] != shape.world_size:
        logger.info(
            "with another number of processes the steps hold the same clips, but sums are rounded "
            "differently, and draws within a step and contrast within a process's batch change"
        )
    if not changes.meaning:
        return
    if not session.run.allow_changes:
        raise ValueError(
            f"checkpoint '{found.path}' belongs to another run: {_list(changes.meaning)}; repeat "
            "that run's settings, choose another --output_dir, or accept with --allow_changes"
        )
    logger.warning("resuming with changes allowed by --allow_changes: %s", _list(changes.meaning))


def _list(changes: list[str]) -> str:
    return ", ".join(changes)


def _load(found: Found, model: nn.Module, optimization: Optimization) -> None:
    state, optimizer = found.state, optimization.optimizer
    chosen = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint '{found.path}' does not fit this model ({reason}); "
            "repeat the run's model flags, or choose another --output_dir"
        ) from error
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)  # flags and device of this run hold, not the saved ones
    if state.get("scaler"):
        optimization.scaler.load_state_dict(state["scaler"])


def _go_on(saver: Saver, found: Found) -> None:
    state, shape = found.state, saver.shape
    saver.origin = found.origin
    saver.best = _best_on_disk(saver, state.get("best", NO_BEST))
    progress = state.get("progress")
    if progress is None:  # of an earlier version or of the original: the end of an epoch
        saver.place = Place(state["epoch"] + 1, 0)
    else:
        # In clips, so that a changed batch (--allow_changes) leaves out no more than it must.
        step = progress["clips_done"] // shape.total_batch
        saver.place = Place(progress["epoch"], min(step, shape.steps))
        _restore_rank(saver, state["ranks"])
    logger.info(
        "resumed from %s: epoch %d, %d of its %d steps done",
        found.path,
        saver.place.epoch,
        saver.place.step,
        shape.steps,
    )


def _restore_rank(saver: Saver, ranks: list[dict[str, Any]]) -> None:
    same = len(ranks) == saver.shape.world_size
    if same:
        restore_random_states(ranks[distributed.rank()]["random"])
    windows = [rank["window"] for rank in ranks]
    if windows[0] is not None:
        saver.resumed = windows[distributed.rank()] if same else _mean_window(windows)


def _mean_window(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """Let each of another number of ranks go on with the mean, as means over ranks are logged."""
    sums = {
        name: sum(window["sums"][name] for window in windows) / len(windows)
        for name in windows[0].get("sums", ())
    }
    return {**windows[0], "sums": sums}


def _best_on_disk(saver: Saver, best: dict[str, Any]) -> dict[str, Any]:
    """Return the best epoch if its weights are there, else choose anew from here on."""
    message = best
    if distributed.is_main() and best["epoch"] >= 0:
        path = saver.session.output_dir / "checkpoint-best.pth"
        try:
            epoch = load(path, verify=True)["epoch"]
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            epoch = None
        if epoch != best["epoch"]:
            text = (
                "the weights of the best epoch so far (%d) are not on disk: chosen anew from here"
            )
            logger.warning(text, best["epoch"])
            message = NO_BEST
    return distributed.broadcast(message)
