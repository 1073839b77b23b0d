"""The plan of a run and its state: what training changes, saves, and goes on with.

A run that is killed at any moment and started again equals one that was not.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from hicmae.config import HARMLESS, USUAL, FinetuneConfigs, OptimConfig, PretrainConfigs
from hicmae.config.flags import as_dict, flag_of, flat_settings
from hicmae.data.splits import Clips
from hicmae.io import Stopped, digest, one_line
from hicmae.training import checkpoint, distributed, optim
from hicmae.training.checkpoint import load
from hicmae.training.logs import MetricBuffer, RunLogger, show_hparams
from hicmae.training.run import Run, write_settings
from hicmae.training.trained import shown, weights_of

logger = logging.getLogger(__name__)

Configs = PretrainConfigs | FinetuneConfigs
Found = tuple[Path, dict[str, Any]]  # a checkpoint and its content
NO_BEST: dict[str, Any] = {"epoch": -1, "value": None}
BATCH = ("--batch_size", "--accum_iter", "--total_batch")  # judged by the clips of a step
MAY_CHANGE = {*(f"--{name}" for name in HARMLESS), *BATCH, "clips of the test list"}


@dataclass(frozen=True)
class Plan:
    """What a run trains, on which clips, and how its steps share them."""

    settings: dict[str, Any]  # all flags, by group
    optim: OptimConfig
    clips: dict[str, str]  # `describe_clips` of each list
    steps: int  # of an epoch; batches beyond steps * accum_iter are left out
    total_batch: int  # clips of a step, over all passes and processes
    lr: np.ndarray  # learning rate of each step of the run
    weight_decay: np.ndarray  # the same


def describe_clips(clips: Clips, root: str) -> str:
    """Tell an ordered list of clips apart from others in a few characters, wherever `root` lies."""
    total, prefix = hashlib.sha256(), os.path.join(root, "") if root else ""
    for clip in clips:
        video, audio = clip.video.removeprefix(prefix), clip.audio
        audio = audio and audio.removeprefix(prefix)
        total.update(f"{video}\0{audio}\0{clip.label}\n".encode(errors="surrogateescape"))
    return f"{len(clips)} ({total.hexdigest()[:12]})"


@dataclass
class TrainState:
    """All that training changes: what a checkpoint keeps, and a resumed run goes on with.

    It is saved every `--save_interval` minutes, at epoch ends, and when the run is asked to stop.
    Every rank calls every method, at the same point of the run; rank 0 writes.
    """

    run: Run
    plan: Plan
    model: nn.Module  # not wrapped for several processes
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # in hand
    step: int = 0  # steps of it that are done
    best: dict[str, Any] = field(default_factory=lambda: NO_BEST)  # of checkpoint-best.pth
    origin: dict[str, str] | None = None  # path and sha256 of the file that --resume named
    decay: float = 0.0  # of the moving average of the weights; 0: there is none
    clock: Callable[[], float] = time.monotonic  # seconds, unmoved by changes of the time of day

    def __post_init__(self) -> None:
        self.scaler = self.run.precision.grad_scaler()  # of the loss, in fp16
        self.metrics = MetricBuffer(self.run.config.max_bad_steps)  # of the epoch in hand
        self.logs = RunLogger()  # silent
        self.saved, self._tried_at = (self.epoch, self.step), self.clock()
        weights = self.model.state_dict() if self.decay else {}
        self.average = {n: w.clone() for n, w in weights.items() if w.is_floating_point()}

    @property
    def steps_done(self) -> int:
        """Steps of the whole run."""
        return self.epoch * self.plan.steps + self.step

    @property
    def last_step(self) -> int:
        """Number of the epoch's last step, under which its figures are shown."""
        return (self.epoch + 1) * self.plan.steps - 1

    def update_average(self) -> None:
        """Move the average towards the weights after a step; the first steps count for more."""
        if self.decay:
            weights, step = self.model.state_dict(), self.steps_done
            move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
            move(list(self.average.values()), [weights[name] for name in self.average], step)

    def open_logs(self) -> RunLogger:
        """Open the logs, without what lies beyond where the run goes on; silent if all is done."""
        run, plan, done = self.run, self.plan, self.steps_done
        writes = distributed.is_main() and self.epoch < plan.optim.epochs
        # Of an epoch that lacks only validation, `train_one_epoch` shows the last step again.
        where = done, self.epoch, done - (self.step == plan.steps)
        self.logs = RunLogger(run.output_dir if writes else None, run.log_dir, *where)
        self.logs.board.text("command", run.command, done)
        return self.logs

    def check(self) -> None:
        """Save if it is time; where any rank got SIGTERM or SIGUSR1, save and raise `Stopped`."""
        late = self.clock() - self._tried_at >= 60 * self.run.config.save_interval
        number, due = distributed.highest([self.run.signal, int(late)])
        saved = self.save() if number or due else True
        if number:
            end = "all saved" if saved else "but the last ones could NOT be saved"
            raise Stopped(f"stopped by {Signals(number).name} after {self.steps_done} steps, {end}")

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Write the line of the epoch in hand to log.txt, and save its end."""
        ending = {"epoch": self.epoch, "n_parameters": optim.num_parameters(self.model)}
        self.logs.epochs.line({**figures, **ending})
        self.epoch, self.step = self.epoch + 1, 0
        bad = self.metrics.bad_in_a_row  # they may go on
        self.metrics = MetricBuffer(self.metrics.max_bad_steps, bad_in_a_row=bad)
        self.save()

    def finish(self) -> None:
        """Make sure that the last state is saved, or raise OSError; then the model may change."""
        if not self.save():
            raise OSError(
                f"the state after the last epoch is not saved in '{self.run.output_dir}'; "
                "free space and start the command again: it goes on from the last save"
            )

    def show_final(self, final: Mapping[str, float]) -> None:
        """Show the settings and what came out of them in TensorBoard's HParams tab."""
        plan = self.plan
        facts = {"total_batch": plan.total_batch, "processes": distributed.world_size()}
        show_hparams(self.run.log_dir, plan.settings, final, len(plan.lr), **facts)

    def save(self) -> bool:
        """Save the state, unless that is done; return whether it is on disk."""
        plan, place = self.plan, (self.epoch, self.step)
        if self.saved == place:
            return True
        self.metrics.read(self.logs)
        self.logs.sync()
        progress = {
            **{name: getattr(self, name) for name in ("epoch", "step", "steps_done")},
            "clips_done": self.step * plan.total_batch,
            **{name: getattr(plan, name) for name in ("clips", "steps", "total_batch")},
            "world_size": distributed.world_size(),
            "torch": str(torch.__version__),
        }
        metrics = distributed.gather_objects([self.metrics.saved()])
        more = {"progress": progress, "origin": self.origin, "metrics": metrics}
        name = f"{self.epoch}-step{self.steps_done}" if self.step else f"{self.epoch - 1}"
        self._tried_at = self.clock()  # a failed attempt is not repeated at every step
        if written := self.write(name, more):
            self.saved = place
        return written

    def save_best(self, value: float) -> bool:
        """Write the epoch in hand, not yet ended, to checkpoint-best.pth; return the success."""
        best = {"epoch": self.epoch, "value": value}
        if written := self.write("best", {"epoch": self.epoch, "best": best}):
            self.best = best
        return written

    def write(self, name: str, more: dict[str, Any]) -> bool:
        """Write a checkpoint and prune; without success warn, and leave all files as they were."""
        written = True
        if distributed.is_main():
            path, config = self.run.output_dir / f"checkpoint-{name}.pth", self.run.config
            content = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "args": self.plan.settings,
                "best": self.best,
                "epoch": self.epoch - 1,  # the last whole one, as in the original
                **({"model_ema": self.average} if self.decay else {}),
            }
            try:
                checkpoint.save(path, content | more)
                if name not in ("best", "ema"):
                    checkpoint.prune(path, config.save_ckpt_freq, config.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.broadcast(written)


def make_state(
    run: Run, configs: Configs, model: nn.Module, loader: DataLoader, lists: Mapping[str, Clips]
) -> TrainState:
    """Plan a run and make the model's optimiser: the state of a run that begins.

    The clips of `clip_loader` are shared among steps, alike for all numbers of processes; `lists`
    holds clips by the list's name. ValueError: an epoch is shorter than one step.
    """
    config, world_size = configs.optim, distributed.world_size()
    batch, passes, epochs = config.batch_size, config.accum_iter, config.epochs
    if len(loader) < passes:
        raise ValueError(
            f"an epoch has {len(loader)} batch(es) a process, fewer than --accum_iter {passes}; "
            "lower --accum_iter, --batch_size or --total_batch"
        )
    if configs.run.cuda_graphs and passes > 1:
        raise ValueError(
            f"--cuda_graphs with {passes} passes a step would overwrite what a pass leaves for the "
            "next; leave it out, or raise --batch_size so that a step is one pass"
        )
    total_batch = batch * passes * world_size
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    steps = max(num_clips // total_batch, 1)
    lr, min_lr = (r * batch * passes * world_size / 256 for r in (config.lr, config.min_lr))
    logger.info(
        "total batch %d = %d process(es) x %d clips x %d passes, learning rate %.3g to %.3g, "
        "%d steps an epoch",
        *(total_batch, world_size, batch, passes, lr, min_lr, steps),
    )
    warmup = min(config.warmup_epochs, epochs)
    if warmup < config.warmup_epochs:
        text = "--warmup_epochs %d is more than --epochs %d: the warm-up takes all of them"
        logger.warning(text, config.warmup_epochs, epochs)
    decay, last_decay = config.weight_decay, config.weight_decay_end
    last_decay = decay if last_decay is None else last_decay
    rates = optim.cosine_schedule(lr, min_lr, epochs, steps, warmup, config.warmup_steps)
    decays = optim.cosine_schedule(decay, last_decay, epochs, steps)
    clips = {n: describe_clips(known, configs.data.data_root) for n, known in lists.items()}
    settings = as_dict(configs)
    plan = Plan(settings, config, clips, steps, total_batch, lr=rates, weight_decay=decays)
    flags = flat_settings(settings)  # --layer_decay and --ema are of fine-tuning
    groups = optim.parameter_groups(model, decay, flags.get("layer_decay"))
    optimizer = optim.make_optimizer(groups, float(rates.max()), config.opt_betas, config.opt_eps)
    return TrainState(run, plan, model, optimizer, decay=flags.get("ema", 0.0))


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


def resume(state: TrainState, found: Found | None) -> None:
    """Bring a state to where a checkpoint stands, and write down the settings that hold.

    `state`, at its beginning, is changed in place with its model; `found` is of `find_checkpoint`.
    ValueError: it is no training state, or of another model or other settings.
    """
    run, plan = state.run, state.plan
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
        state.saved = state.epoch, state.step
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
        f"{name} {shown(old)} -> {shown(new)}"
        for name, (old, new) in pairs.items()
        if old != new and name not in MAY_CHANGE
    ]


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
        if len(saved) != distributed.world_size():  # each takes the mean, as means are logged
            means = {n: sum(rank["sums"][n] for rank in saved) / len(saved) for n in mine["sums"]}
            mine = {**saved[0], "sums": means}
        state.metrics = MetricBuffer(state.metrics.max_bad_steps, **mine)
    if done := min(state.steps_done, len(plan.lr)):
        rates = float(plan.lr[done - 1]), float(plan.weight_decay[done - 1])
        optim.set_learning_rate(optimizer, *rates)  # as the last step left them
