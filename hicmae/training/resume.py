"""Saving a run, and going on with it: which checkpoint, whether it fits, and every state as it was.

A run that is killed at any moment and started again equals one that was not.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hicmae.config import HARMLESS, all_flags
from hicmae.training import checkpoint, distributed
from hicmae.training.checkpoint import digest, first_line, in_order, load
from hicmae.training.logs import RunLogger
from hicmae.training.run import Run, Stopped, signal_name, write_settings
from hicmae.training.state import NO_BEST, BadSteps, MetricBuffer, Plan, TrainState

logger = logging.getLogger(__name__)

BATCH = ("batch_size", "accum_iter", "total_batch")  # flags judged by the clips of a step


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
        later = [p for e, s, p in in_order(self.run.output_dir) if (e, s) > here]
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
                checkpoint.save(path, {**self._content(state), "bad_steps": steps})
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
                checkpoint.save(path, content)
                if name != "best":
                    self._remove_later(path)
                checkpoint.prune(folder, config.save_ckpt_freq, config.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.broadcast(written)

    def _remove_later(self, written: Path) -> None:
        for path in self._later:
            if path != written:
                path.unlink(missing_ok=True)
        self._later = []


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
    in_folder = (
        checkpoint.whole(run.output_dir) if run.config.auto_resume or restarted else iter(())
    )
    if not run.config.resume:
        found = next(in_folder, None)
        return Checkpoint(*found, found[1].get("origin")) if found else None
    named = Path(run.config.resume)
    for path, content in in_folder:
        origin = content.get("origin") or {}
        if origin.get("path") == str(named.resolve()):
            if not named.exists() or origin["sha256"] == digest(named):
                return Checkpoint(path, content, origin)
    content = load(named, verify=True)
    return Checkpoint(named, content, {"path": str(named.resolve()), "sha256": digest(named)})


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
            f"checkpoint '{found.path}' does not fit this model ({first_line(error)}); "
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
