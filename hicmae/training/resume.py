"""Saving a run, and going on with it: which checkpoint, whether it fits, and every state as it was.

A run that is killed at any moment and started again equals one that was not.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from hicmae.config import HARMLESS, USUAL
from hicmae.config.flags import flag_of, flat_settings
from hicmae.io import Stopped, digest, one_line
from hicmae.training import checkpoint, distributed
from hicmae.training.checkpoint import load
from hicmae.training.logs import RunLogger
from hicmae.training.optim import num_parameters, set_learning_rate
from hicmae.training.run import Run, write_settings
from hicmae.training.state import NO_BEST, MetricBuffer, Plan, TrainState
from hicmae.training.trained import weights_of

logger = logging.getLogger(__name__)

Found = tuple[Path, dict[str, Any]]  # a checkpoint and its content
BATCH = ("--batch_size", "--accum_iter", "--total_batch")  # judged by the clips of a step
MAY_CHANGE = {*(f"--{name}" for name in HARMLESS), *BATCH, "clips of the test list"}


class Saver:
    """Saves every `--save_interval` minutes and at epoch ends, and when the run is asked to stop.

    Every rank calls every method, at the same point of the run; rank 0 writes. `clock` gives
    seconds, unmoved by changes of the time of day.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        logs: RunLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.state, self.logs, self._clock = run, state, logs, clock
        self._saved, self._saved_at = (state.epoch, state.step), clock()

    def check(self) -> None:
        """Save if it is time; where any rank got SIGTERM or SIGUSR1, save and raise `Stopped`."""
        late = self._clock() - self._saved_at >= 60 * self.run.config.save_interval
        number, due = distributed.highest([self.run.signal, int(late)])
        saved = self.save() if number or due else True
        if number:
            end = "all saved" if saved else "but the last ones could NOT be saved"
            name, steps = signal.Signals(number).name, self.state.steps_done
            raise Stopped(f"stopped by {name} after {steps} steps, {end}")

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Write the line of the epoch in hand to log.txt, and save its end."""
        state, metrics = self.state, self.state.metrics
        ending = {"epoch": state.epoch, "n_parameters": num_parameters(state.model)}
        self.logs.epochs.line({**figures, **ending})
        state.epoch, state.step = state.epoch + 1, 0
        # Bad steps in a row go on.
        state.metrics = MetricBuffer(metrics.max_bad_steps, bad_in_a_row=metrics.bad_in_a_row)
        self.save()

    def finish(self) -> None:
        """Make sure that the last state is saved, or raise OSError; then the model may change."""
        if not self.save():
            raise OSError(
                f"the state after the last epoch is not saved in '{self.run.output_dir}'; "
                "free space and start the command again: it goes on from the last save"
            )

    def save(self) -> bool:
        """Save the state, unless that is done; return whether it is on disk."""
        state, plan = self.state, self.state.plan
        place = state.epoch, state.step
        if self._saved == place:
            return True
        state.metrics.read(self.logs)
        self.logs.sync()
        progress = {
            "epoch": state.epoch,
            "step": state.step,
            "steps_done": state.steps_done,
            "clips_done": state.step * plan.total_batch,
            **{n: getattr(plan, n) for n in ("clips", "steps", "total_batch", "world_size")},
            "torch": str(torch.__version__),
        }
        metrics = distributed.gather_objects([state.metrics.saved()])
        more = {"progress": progress, "origin": state.origin, "metrics": metrics}
        name = f"{state.epoch}-step{state.steps_done}" if state.step else f"{state.epoch - 1}"
        self._saved_at = self._clock()  # a failed attempt is not repeated at every step
        if saved := self.write(name, more):
            self._saved = place
        return saved

    def save_best(self, value: float) -> bool:
        """Write the epoch in hand, not yet ended, to checkpoint-best.pth; return the success."""
        best = {"epoch": self.state.epoch, "value": value}
        if saved := self.write("best", {"epoch": self.state.epoch, "best": best}):
            self.state.best = best
        return saved

    def write(self, name: str, more: dict[str, Any]) -> bool:
        """Write a checkpoint and prune; without success warn, and leave all files as they were."""
        written, state = True, self.state
        if distributed.is_main():
            path, config = self.run.output_dir / f"checkpoint-{name}.pth", self.run.config
            content = {
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "scaler": state.scaler.state_dict(),
                "args": state.plan.settings,
                "best": state.best,
                "epoch": state.epoch - 1,  # the last whole one, as in the original
                **({"model_ema": state.average} if state.decay else {}),
            }
            try:
                checkpoint.save(path, content | more)
                if name not in ("best", "ema"):
                    checkpoint.prune(path, config.save_ckpt_freq, config.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.broadcast(written)


def _saved_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by flag of a checkpoint of ours; a Namespace is the original's: none."""
    args = content.get("args")
    return flat_settings(args if isinstance(args, dict) else {})


def settings_to_keep(given: Mapping[str, Any], *groups: type) -> dict[str, Any]:
    """Return flags of some groups as in what --resume names; the command line overrides them."""
    if not (named := given.get("resume")):
        return {}
    saved = _saved_settings(load(checkpoint.find(named, to_resume=True), settings_only=True))
    known = [flag_of(item) for group in groups for item in fields(group)]
    return {flag: saved[flag] for flag in known if flag in saved}


def find_checkpoint(run: Run) -> Found | None:
    """Choose the checkpoint to go on from, the same on every rank; None: start afresh.

    Without --resume that is the newest whole one of the output folder. With it, it is the named
    one, unless the folder holds newer ones of a run that began there: then the same command was
    started again.
    """
    found = distributed.on_main(lambda: _choose(run))
    path = distributed.broadcast(found and found[0])
    return found if found or path is None else (path, load(path, verify=True))


def _choose(run: Run) -> Found | None:
    named, origin = None, {}
    if run.config.resume:
        named = checkpoint.find(run.config.resume, to_resume=True)
        origin = {"sha256": digest(named)}
    # A launcher that starts a group again means the run it started before.
    if run.config.auto_resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        for path, content in checkpoint.whole(run.output_dir):
            begun = content.get("origin") or {}
            if named is None or begun.get("sha256") == origin["sha256"]:
                return path, content
    return (named, {**load(named, verify=True), "origin": origin}) if named else None


def resume(run: Run, state: TrainState, found: Found | None) -> None:
    """Bring a state to where a checkpoint stands, and write down the settings that hold.

    `state`, at its beginning, is changed in place with its model; `found` is of `find_checkpoint`.
    ValueError: it is no training state, or of another model or other settings.
    """
    plan = state.plan
    if found is not None:
        path, content = found
        if "optimizer" not in content or not isinstance(content.get("epoch"), int):
            raise ValueError(
                f"checkpoint '{path}' cannot be resumed: it lacks an optimizer or the number of an "
                "epoch; use --finetune for released weights"
            )
        changed = ", ".join(find_changes(plan, content))
        if changed and not run.config.allow_changes:
            raise ValueError(
                f"checkpoint '{path}' belongs to another run: {changed}; repeat that run's "
                "settings, choose another --output_dir, or accept with --allow_changes"
            )
        if changed:
            logger.warning("resuming with changes allowed by --allow_changes: %s", changed)
        _load_state(state, path, content)
        state.best = distributed.broadcast(_best_on_disk(run, content.get("best", NO_BEST)))
        content.clear()  # the caller may hold it for days
        text = "resumed from %s: epoch %d, %d of its %d steps done"
        logger.info(text, path, state.epoch, state.step, plan.steps)
    elif distributed.is_main():
        (run.output_dir / "skipped_clips.csv").unlink(missing_ok=True)  # of another run
    write_settings(run, plan.settings)
    if state.epoch >= plan.optim.epochs:
        logger.info("training is finished: all %d epochs are done", plan.optim.epochs)


def find_changes(plan: Plan, content: Mapping[str, Any]) -> list[str]:
    """Return what makes a run another one than that of a checkpoint, as "name old -> new".

    What the checkpoint does not tell counts as unchanged. But a flag that one of ours lacks is
    newer than it, and had its default.
    """
    saved, known = _saved_settings(content), content.get("progress", {})
    then = (flat_settings(USUAL) if saved else {}) | saved
    pairs = {f"--{n}": (then.get(n, new), new) for n, new in flat_settings(plan.settings).items()}
    for name, new in plan.clips.items():
        pairs[f"clips of the {name} list"] = (known.get("clips", {}).get(name, new), new)
    text = "clips of a step (batch_size x accum_iter x processes)"
    pairs[text] = (known.get("total_batch", plan.total_batch), plan.total_batch)
    return [
        f"{name} {_shown(old)} -> {_shown(new)}"
        for name, (old, new) in pairs.items()
        if old != new and name not in MAY_CHANGE
    ]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value) or "''"


def _best_on_disk(run: Run, best: dict[str, Any]) -> dict[str, Any]:
    """Return the best epoch so far if its weights are still there, else `NO_BEST`; of rank 0."""
    if not distributed.is_main() or best["epoch"] < 0:
        return best
    with suppress(OSError, ValueError):
        if load(run.output_dir / "checkpoint-best.pth", verify=True)["epoch"] == best["epoch"]:
            return best
    text = "the weights of the best epoch so far (%d) are not on disk; it is chosen anew"
    logger.warning(text, best["epoch"])
    return NO_BEST


def _load_state(state: TrainState, path: Path, content: dict[str, Any]) -> None:
    """Load model, optimiser, scaler, epoch, step, and what the epoch has added up to."""
    plan, optimizer, state.origin = state.plan, state.optimizer, content.get("origin")
    chosen = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    weights = weights_of(content, f"checkpoint '{path}'")
    try:
        state.model.load_state_dict(weights)
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"checkpoint '{path}' does not fit this model ({one_line(error)}); "
            "repeat the run's model flags, or choose another --output_dir"
        ) from error
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)  # flags and device of this run hold, not the saved ones
    for name, mean in content.get("model_ema", {}).items() if state.decay else ():
        state.average[name].copy_(mean)
    if content.get("scaler"):
        state.scaler.load_state_dict(content["scaler"])
    state.epoch = content["epoch"] + 1  # of the original: the end of an epoch
    if progress := content.get("progress"):
        # In clips, so that a changed batch (--allow_changes) leaves out no more than it must.
        step = progress["clips_done"] // plan.total_batch
        state.epoch, state.step = progress["epoch"], min(step, plan.steps)
        saved = content.get("metrics", [{"sums": {}}])  # earlier versions have it elsewhere
        mine = saved[distributed.rank() % len(saved)]
        if len(saved) != plan.world_size:  # each goes on with the mean, as means are logged
            means = {n: sum(rank["sums"][n] for rank in saved) / len(saved) for n in mine["sums"]}
            mine = {**saved[0], "sums": means}
        state.metrics = MetricBuffer(state.metrics.max_bad_steps, **mine)
    if done := min(state.steps_done, len(plan.lr)):
        rates = float(plan.lr[done - 1]), float(plan.weight_decay[done - 1])
        set_learning_rate(optimizer, *rates)  # as the last step left them
