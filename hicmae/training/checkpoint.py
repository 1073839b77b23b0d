"""Checkpoints: written whole, read safely, resumed exactly, and taken for fine-tuning by name.

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
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from hicmae.config import HARMLESS, all_flags
from hicmae.io import whole_file
from hicmae.training import distributed
from hicmae.training.logs import RunLogger
from hicmae.training.run import Run, Stopped, signal_name, write_settings
from hicmae.training.state import NO_BEST, BadSteps, MetricBuffer, Plan, TrainState

logger = logging.getLogger(__name__)

ENCODERS = ("encoder", "encoder_audio", "encoder_fusion")
MIN_SHARE = 0.5  # less than this of the encoders' weights cannot be meant as pre-training
BATCH = ("batch_size", "accum_iter", "total_batch")  # flags judged by the clips of a step

_BLOCK = re.compile(r"(encoder|encoder_audio|encoder_fusion)\.blocks(?:_audio)?\.(\d+)\.")
_NAME = re.compile(r"checkpoint-(\d+)(?:-step(\d+))?\.pth")
_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64


# Files


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
        file.write(_MARK + _digest(path).encode())


def _digest(path: Path, but: int = 0) -> str:
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
    return _first_line(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
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
        if trailer[len(_MARK) :] != _digest(path, but=_TRAILER).encode():
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
    detail = f"{type(error).__name__}: {_first_line(error)[:80]}".removesuffix(": ")
    return (
        f"checkpoint '{path}' ({path.stat().st_size} bytes) is truncated, damaged or no torch "
        f"checkpoint ({detail}); copy or download it again"
    )


# The checkpoints of a folder


def numbered(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (epoch, path) of every `checkpoint-<epoch>.pth` in a folder, oldest epoch first."""
    return [(epoch, path) for epoch, step, path in _in_order(output_dir) if step == math.inf]


def _in_order(output_dir: str | Path) -> list[tuple[int, float, Path]]:
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
    for _, _, path in reversed(_in_order(output_dir)):
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
    entries = _in_order(output_dir)
    for epoch, step, path in entries[: max(len(entries) - keep_last, 0)]:
        if step < math.inf or (epoch + 1) % keep_every:
            path.unlink(missing_ok=True)


# Saving


class Saver:
    """Saves every `--save_interval` minutes and at epoch ends, and when the run is asked to stop.

    Every rank calls every method, at the same point of the run; rank 0 writes.

    Args:
        run: where; knows whether it was asked to stop.
        plan: goes into the checkpoints.
        state: where the run begins or goes on.
        logs: are brought up to the state before it is saved.
        clock: seconds, unmoved by changes of the time of day.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        state: TrainState,
        logs: RunLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.plan, self.logs, self._clock = run, plan, logs, clock
        self._saved_at = (state.epoch, state.step)
        self._checked = self._saved = clock()
        self._writing = 0.0  # seconds that the last save took
        self._later = self._find_later(state)

    def _find_later(self, state: TrainState) -> list[Path]:
        """Return states that lie ahead of where the run goes on; warn that they will go."""
        here = (state.epoch, self.steps_done(state)) if state.step else (state.epoch - 1, math.inf)
        later = [p for e, s, p in _in_order(self.run.output_dir) if (e, s) > here]
        if later and distributed.is_main():
            names = ", ".join(path.name for path in later)
            logger.warning("the next save replaces what lies ahead of this run: %s", names)
        return later

    def steps_done(self, state: TrainState) -> int:
        """Return the steps of the whole run."""
        return state.epoch * self.plan.steps + state.step

    def check(self, state: TrainState) -> None:
        """Save if it is time or a signal came, and then stop.

        Raises:
            Stopped: any rank got SIGTERM or SIGUSR1.
        """
        number, due = distributed.highest([self.run.stop.number, int(self._is_due())])
        if self._is_unsaved(state) and (number or due):
            self._save(state)
        if number:
            end = "but the last ones could NOT be saved" if self._is_unsaved(state) else "all saved"
            steps = self.steps_done(state)
            raise Stopped(f"stopped by {signal_name(number)} after {steps} steps, {end}")

    def _is_unsaved(self, state: TrainState) -> bool:
        return self._saved_at != (state.epoch, state.step)

    def _is_due(self) -> bool:
        """Return whether the time of another step, and of writing, would be too long to wait."""
        now = self._clock()
        step, self._checked = now - self._checked, now
        interval = 60 * self.run.config.save_interval
        return interval == 0 or now - self._saved + step + self._writing > interval

    def end_epoch(self, state: TrainState) -> None:
        """Save the end of the epoch in hand, after all that belongs to it is logged."""
        state.epoch, state.step, state.metrics = state.epoch + 1, 0, state.metrics.next_epoch()
        self._save(state)

    def finish(self, state: TrainState) -> None:
        """Make sure that the last state is saved; from here on the model may change.

        Raises:
            OSError: it cannot be.
        """
        if self._is_unsaved(state):
            self._save(state)
        if self._is_unsaved(state):
            raise OSError(
                f"the state after the last epoch is not saved in '{self.run.output_dir}'; "
                "free space and start the command again: it goes on from the last save"
            )

    def save_best(self, state: TrainState, value: float) -> bool:
        """Write the epoch in hand, not yet ended, to checkpoint-best.pth; return the success."""
        best = {"epoch": state.epoch, "value": value}
        content = {**self._content(state), "epoch": state.epoch, "best": best}
        saved = self._write("best", content)
        if saved:
            state.best = best
        return saved

    def dump(self, state: TrainState, bad: BadSteps) -> str:
        """Write the state in which training failed, with the clips of all ranks.

        Returns:
            The one line that says so.
        """
        steps = distributed.gather_objects([bad.steps])
        path = self.run.output_dir / f"bad_steps-{bad.steps[-1]['step']}.pth"
        written = f"state and clips are in '{path}'"
        if distributed.is_main():
            try:
                save(path, {**self._content(state), "bad_steps": steps})
            except OSError as error:
                written = str(error)
        return (
            f"{bad}; {written}; lower --lr, set --clip_grad, or use --precision bf16 or fp32, and "
            "resume"
        )

    def _content(self, state: TrainState) -> dict[str, Any]:
        return {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "args": self.plan.settings,
            "best": state.best,
            "epoch": state.epoch - 1,  # the last whole one, as in the original
        }

    def _save(self, state: TrainState) -> None:
        started, plan, steps_done = self._clock(), self.plan, self.steps_done(state)
        state.metrics.read(self.logs)
        self.logs.sync()
        content = {
            **self._content(state),
            "progress": {
                "epoch": state.epoch,
                "step": state.step,
                "steps_done": steps_done,
                "clips_done": state.step * plan.total_batch,
                "clips": plan.clips,
                "steps": plan.steps,
                "total_batch": plan.total_batch,
                "world_size": plan.world_size,
                "torch": str(torch.__version__),
            },
            "origin": state.origin,
            "metrics": distributed.gather_objects([state.metrics.saved()]),
        }
        name = f"{state.epoch}-step{steps_done}" if state.step else f"{state.epoch - 1}"
        if self._write(name, content):
            self._saved_at = (state.epoch, state.step)
        # Counted from the state that was saved; a failed attempt is not repeated at every step.
        self._saved, self._checked = started, self._clock()
        self._writing = self._checked - started

    def _write(self, name: str, content: dict[str, Any]) -> bool:
        """Write a checkpoint and prune; without success warn, and leave all files as they were."""
        written = True
        if distributed.is_main():
            folder, config = self.run.output_dir, self.run.config
            path = folder / f"checkpoint-{name}.pth"
            try:
                save(path, content)
                if name != "best":
                    self._remove_later(path)
                prune(folder, config.save_ckpt_freq, config.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.broadcast(written)

    def _remove_later(self, written: Path) -> None:
        for path in self._later:
            if path != written:
                path.unlink(missing_ok=True)
        self._later = []


# Resuming


class Checkpoint(NamedTuple):
    """A checkpoint to go on from."""

    path: Path
    content: dict[str, Any]
    origin: dict[str, str] | None  # what --resume named when the run began


def find_checkpoint(run: Run) -> Checkpoint | None:
    """Choose the checkpoint to go on from, the same on every rank; None: start afresh.

    Without --resume that is the newest whole one of the output folder. With it, it is the named
    one, unless the folder holds newer ones of a run that began there: then the same command was
    started again.
    """
    found, problem = None, None
    if distributed.is_main():
        try:
            found = _choose(run)
        except (OSError, ValueError) as error:
            problem = error
    where = (found.path, found.origin) if found else None
    where, problem = distributed.broadcast((where, problem))
    if problem is not None:
        raise problem
    if where is None or distributed.is_main():
        return found
    return Checkpoint(where[0], load(where[0], verify=True), where[1])


def _choose(run: Run) -> Checkpoint | None:
    # A launcher that starts a group again means the run it started before.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    in_folder = whole(run.output_dir) if run.config.auto_resume or restarted else iter(())
    if not run.config.resume:
        found = next(in_folder, None)
        return Checkpoint(*found, found[1].get("origin")) if found else None
    named = Path(run.config.resume)
    for path, content in in_folder:
        origin = content.get("origin") or {}
        if origin.get("path") == str(named.resolve()):
            if not named.exists() or origin["sha256"] == _digest(named):
                return Checkpoint(path, content, origin)
    content = load(named, verify=True)
    return Checkpoint(named, content, {"path": str(named.resolve()), "sha256": _digest(named)})


def resume(run: Run, plan: Plan, state: TrainState, found: Checkpoint | None) -> None:
    """Bring a state to where a checkpoint stands, and write down the settings that hold.

    Args:
        run: where.
        plan: of this run.
        state: at its beginning; changed in place, also its model.
        found: of `find_checkpoint`; None leaves the state as it is.

    Raises:
        ValueError: the checkpoint is no training state, or of another model or other settings.
    """
    if found is not None:
        missing = {"model", "optimizer", "epoch"} - found.content.keys()
        if missing or not isinstance(found.content["epoch"], int):
            raise ValueError(
                f"checkpoint '{found.path}' cannot be resumed: it lacks "
                f"{sorted(missing) or 'an epoch number'}; use --finetune for released weights"
            )
        _check_changes(run, plan, found)
        _load_state(state, found)
        _find_position(plan, state, found)
        state.best = _best_on_disk(run, found.content.get("best", NO_BEST))
        found.content.clear()  # the caller may hold it for days
    write_settings(run, plan.settings)
    if state.epoch >= plan.optim.epochs:
        logger.info("training is finished: all %d epochs are done", plan.optim.epochs)


def _check_changes(run: Run, plan: Plan, found: Checkpoint) -> None:
    """Tell what this run does differently; refuse what makes it another run."""
    changed, harmless = find_changes(plan, found.content)
    if harmless:
        logger.info("resuming with changes that keep the run's meaning: %s", ", ".join(harmless))
    if any(change.startswith("processes ") for change in harmless):
        logger.info(
            "with another number of processes the steps hold the same clips, but sums are rounded "
            "differently, and draws within a step and contrast within a process's batch change"
        )
    if not changed:
        return
    text = ", ".join(changed)
    if not run.config.allow_changes:
        raise ValueError(
            f"checkpoint '{found.path}' belongs to another run: {text}; repeat that run's "
            "settings, choose another --output_dir, or accept with --allow_changes"
        )
    logger.warning("resuming with changes allowed by --allow_changes: %s", text)


def find_changes(plan: Plan, content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare a run with that of a checkpoint.

    Args:
        plan: of this run.
        content: of the checkpoint; what it does not hold counts as unchanged.

    Returns:
        What makes it another run, and what does not, as "name old -> new".
    """
    changed: list[str] = []
    harmless: list[str] = []
    progress = content.get("progress", {})
    flags, saved = all_flags(plan.settings), all_flags(content.get("args"))
    differ = [n for n in flags if n in saved and saved[n] != flags[n]]
    same_batch = progress.get("total_batch", plan.total_batch) == plan.total_batch
    for name in differ:
        if name not in BATCH or same_batch:
            kind = harmless if name in HARMLESS or name in BATCH else changed
            kind.append(f"--{name} {_shown(saved[name])} -> {_shown(flags[name])}")
    clips = progress.get("clips", {})
    for name in clips.keys() & plan.clips.keys():
        if clips[name] != plan.clips[name]:
            kind = harmless if name == "test" else changed
            kind.append(f"clips of the {name} list {clips[name]} -> {plan.clips[name]}")
    for name, kind, text in (
        ("total_batch", changed, "clips of a step (batch_size x accum_iter x processes)"),
        ("steps", changed, "steps of an epoch"),
        ("world_size", harmless, "processes"),
    ):
        if progress and progress[name] != getattr(plan, name):
            kind.append(f"{text} {progress[name]} -> {getattr(plan, name)}")
    return changed, harmless


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _load_state(state: TrainState, found: Checkpoint) -> None:
    """Load model, optimiser and scaler."""
    optimizer = state.optimizer
    chosen = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    try:
        state.model.load_state_dict(found.content["model"])
        optimizer.load_state_dict(found.content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"checkpoint '{found.path}' does not fit this model ({_first_line(error)}); "
            "repeat the run's model flags, or choose another --output_dir"
        ) from error
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)  # flags and device of this run hold, not the saved ones
    if found.content.get("scaler"):
        state.scaler.load_state_dict(found.content["scaler"])


def _find_position(plan: Plan, state: TrainState, found: Checkpoint) -> None:
    """Set epoch, step, and what the epoch has added up to."""
    content, state.origin = found.content, found.origin
    state.epoch = content["epoch"] + 1  # of the original: the end of an epoch
    if progress := content.get("progress"):
        # In clips, so that a changed batch (--allow_changes) leaves out no more than it must.
        step = progress["clips_done"] // plan.total_batch
        state.epoch, state.step = progress["epoch"], min(step, plan.steps)
        # "ranks" is where earlier versions put it.
        saved = content.get("metrics") or [rank["window"] for rank in content["ranks"]]
        if len(saved) == plan.world_size:
            mine = saved[distributed.rank()]
        else:
            mine = _mean_sums(saved)
        state.metrics = MetricBuffer(state.metrics.max_bad_steps, mine)
    text = "resumed from %s: epoch %d, %d of its %d steps done"
    logger.info(text, found.path, state.epoch, state.step, plan.steps)


def _mean_sums(saved: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Let each of another number of ranks go on with the mean, as means over ranks are logged."""
    ranks = [rank for rank in saved if rank]
    if not ranks:
        return None
    names = ranks[0].get("sums", {})
    means = {name: sum(rank["sums"][name] for rank in ranks) / len(ranks) for name in names}
    return {**ranks[0], "sums": means}


def _best_on_disk(run: Run, best: dict[str, Any]) -> dict[str, Any]:
    """Return the best epoch if its weights are there, else choose anew from here on."""
    if distributed.is_main() and best["epoch"] >= 0:
        epoch = None
        try:
            epoch = load(run.output_dir / "checkpoint-best.pth", verify=True)["epoch"]
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
        if epoch != best["epoch"]:
            logger.warning(
                "the weights of the best epoch so far (%d) are not on disk: chosen anew from here",
                best["epoch"],
            )
            best = NO_BEST
    return distributed.broadcast(best)


# Pre-trained weights


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    model_key: str = "model|module",
    allow_partial: bool = False,
    require_all: bool = False,
) -> "LoadReport":
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
    _check_fusion_order(model, content, name, require_all)
    model.load_state_dict({key: weights[key] for key in report.loaded}, strict=False)
    logger.info("%s", report.text())
    return report


def weights_of(content: Mapping[str, Any], model_key: str, source: str) -> dict[str, Tensor]:
    """Find the state dict in a checkpoint and strip the prefixes of DDP and torch.compile.

    Args:
        content: a checkpoint, or itself a state dict.
        model_key: names under which the weights may stand, split by "|".
        source: what to call the checkpoint in messages.
    """
    keys = model_key.split("|")
    weights = next((content[k] for k in keys if isinstance(content.get(k), Mapping)), content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{source} holds no weights: expected a state dict under "
            f"{' or '.join(map(repr, keys))}, got the keys "
            f"{', '.join(map(str, list(content)[:6])) or 'nothing'}"
        )
    return {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): w for name, w in weights.items()}


def _check_fusion_order(
    model: nn.Module, content: Mapping[str, Any], source: str, testing: bool
) -> None:
    """Warn, or refuse a test, where fusion layers were trained in an order that no weight shows.

    A checkpoint without settings is not judged.
    """
    fusion, settings = getattr(model, "encoder_fusion", None), content.get("args")
    if fusion is None or not settings:
        return
    order = all_flags(settings).get("fusion_order", "both")
    if order != fusion.order:
        text = (
            f"{source} was trained with --fusion_order {order}, this model has --fusion_order "
            f"{fusion.order}"
        )
        if testing:
            raise ValueError(f"{text}; test it with the order it was trained with")
        logger.warning("%s: the fusion layers have to learn the new order", text)


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
                f"{_folded(self.unused, 6)}; the model has {_folded(self.new, 6)}; is it a HiCMAE "
                "checkpoint of this --model?"
            )
        if self.problems and not allow_partial:
            raise ValueError(
                f"{self.source} does not fit the model's encoders: {'; '.join(self.problems)}; "
                "choose the --model and depths of the checkpoint, or add --allow_partial"
            )
        if self.share < MIN_SHARE:
            raise ValueError(
                f"only {self.share:.0%} of the model's encoder weights are in {self.source}, "
                f"expected at least {MIN_SHARE:.0%}: loaded {_folded(self.loaded, 6) or 'nothing'}"
                "; choose the --model and depths of the checkpoint"
            )
        if not require_all:
            return
        own = (*self.loaded, *self.new, *self.mismatched)
        mixes, mixed = (any(n.endswith("_layer_weights") for n in x) for x in (own, self.unused))
        if mixed and not mixes:
            raise ValueError(
                f"{self.source} has layer weights, which this model does not read; test it without "
                "--no-hierarchical_fusion, as it was trained"
            )
        if self.new or self.mismatched:
            raise ValueError(
                f"{self.source} lacks weights of the model: "
                f"{_folded(self.new + self.mismatched, 6)}; testing needs a fine-tuned checkpoint "
                "of the same model and --nb_classes"
            )

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
    both = [name for name in own if name in weights]
    loaded = tuple(name for name in both if weights[name].shape == own[name].shape)
    mismatched = tuple(
        f"{name}: {tuple(weights[name].shape)} -> {tuple(own[name].shape)}"
        for name in both
        if weights[name].shape != own[name].shape
    )
    size = sum(w.numel() for name, w in own.items() if _is_encoder(name))
    found = sum(own[name].numel() for name in loaded if _is_encoder(name))
    return LoadReport(
        source=source,
        loaded=loaded,
        new=tuple(name for name in own if name not in weights),
        unused=tuple(name for name in weights if name not in own),
        mismatched=mismatched,
        share=found / size if size else 1.0,
        problems=tuple(_problems(own.keys(), weights.keys(), mismatched)),
    )


def _problems(own: Iterable[str], given: Iterable[str], mismatched: Iterable[str]) -> Iterator[str]:
    """Say for each encoder of the model what keeps it from being the checkpoint's encoder."""
    own, given = list(own), set(given)
    shapes = [text for text in mismatched if _is_encoder(text)]
    if shapes:
        more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        yield f"other shapes (checkpoint -> model): {shapes[0]}{more}"
    for encoder in ENCODERS:
        names = [name for name in own if name.split(".")[0] == encoder]
        if names and not given.intersection(names):
            yield f"{encoder}.* is missing from the checkpoint"
            continue
        mine, theirs = ({_block(n, encoder) for n in x} - {None} for x in (own, given))
        if not names:
            continue
        if surplus := theirs - mine:
            yield f"{encoder} blocks {_span(surplus)} of the checkpoint are unused"
        if lacking := mine - theirs:
            yield f"{encoder} blocks {_span(lacking)} are missing from the checkpoint"
        single = [n for n in names if n not in given and _block(n, encoder) not in lacking]
        if single:
            yield f"the checkpoint lacks {_folded(single, 3)}, e.g. {single[0]}"


def _is_encoder(name: str) -> bool:
    return name.split(".")[0] in ENCODERS


def _block(name: str, encoder: str) -> int | None:
    """Return the number of the encoder's block that a weight belongs to, None for others."""
    match = _BLOCK.match(name)
    return int(match[2]) if match and match[1] == encoder else None


def _span(numbers: Iterable[Any]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}..{high}"


def _folded(names: Iterable[str], limit: int | None = None) -> str:
    """List names by family, encoder.blocks.* or head.*, with the number of tensors in each."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(":")[0].split(".")
        kept = 2 if parts[0] in ENCODERS and len(parts) > 2 else 1
        counts[".".join([*parts[:kept], "*"] if len(parts) > 1 else parts)] += 1
    shown = [f"{n} ({c})" if n.endswith("*") else n for n, c in list(counts.items())[:limit]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
