"""The plan of a run, which stays, and its state, which training changes and checkpoints keep."""

import hashlib
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from hicmae.config import FinetuneConfigs, OptimConfig, PretrainConfigs
from hicmae.config.flags import as_dict
from hicmae.data.clip_list import AnyClip
from hicmae.training import distributed
from hicmae.training.logs import RunLogger, hparams_of
from hicmae.training.optim import cosine_schedule, make_optimizer, parameter_groups
from hicmae.training.run import Run

logger = logging.getLogger(__name__)

NO_BEST: dict[str, Any] = {"epoch": -1, "value": None}


@dataclass(frozen=True)
class Plan:
    """What a run trains, on which clips, and how its steps share them."""

    settings: dict[str, Any]  # all flags, by group
    optim: OptimConfig
    clips: dict[str, str]  # `describe_clips` of each list
    steps: int  # of an epoch; batches beyond steps * accum_iter are left out
    total_batch: int  # clips of a step, over all passes and processes
    world_size: int  # processes
    lr: np.ndarray  # learning rate of each step of the run
    weight_decay: np.ndarray  # the same

    @property
    def hparams(self) -> dict[str, Any]:
        """What TensorBoard's HParams tab compares."""
        return hparams_of(self.settings, total_batch=self.total_batch, processes=self.world_size)


def describe_clips(clips: Sequence[AnyClip], root: str) -> str:
    """Tell an ordered list of clips apart from others in a few characters, wherever `root` lies."""
    total, prefix = hashlib.sha256(), os.path.join(root, "") if root else ""
    for clip in clips:
        video, audio = clip.video.removeprefix(prefix), clip.audio
        audio = audio and audio.removeprefix(prefix)
        total.update(f"{video}\0{audio}\0{clip.label}\n".encode(errors="surrogateescape"))
    return f"{len(clips)} ({total.hexdigest()[:12]})"


@dataclass
class MetricBuffer:
    """Figures of an epoch's steps: read from the device now and then, logged and added up."""

    max_bad_steps: int  # in a row, at which training ends
    sums: dict[str, float] = field(default_factory=dict)  # over the steps that count
    counts: dict[str, int] = field(default_factory=dict)
    bad_steps: int = 0
    bad_in_a_row: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)  # figures of the last step
    unread: list[tuple[dict[str, Any], dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart_clock()

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; everything has been read."""
        names = ("sums", "counts", "bad_steps", "bad_in_a_row", "last")
        return {name: getattr(self, name) for name in names}

    def restart_clock(self) -> None:
        """Measure speed from here on."""
        self._steps, self._clips, self._data_time = 0, 0, 0.0
        self._started = time.perf_counter()

    def add(self, step: dict[str, Any], figures: dict[str, Tensor], data_time: float) -> None:
        """Take a step: `step`, `epoch`, `lr` and `clips`, its figures, the seconds that it waited.

        Figures, `loss`, `skipped` (the weights were left alone) and more, stay on the device.
        """
        self.unread.append((step, figures))
        self._steps += 1
        self._clips += len(step["clips"])
        self._data_time += data_time

    def read(self, logs: RunLogger) -> None:
        """Read what is new on the device, and log it; RuntimeError: too many bad in a row."""
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        names = list(unread[0][1])
        table = torch.stack([torch.stack([f[n].float() for n in names]) for _, f in unread])
        for (step, _), row in zip(unread, table.tolist(), strict=True):  # the one synchronisation
            values = dict(zip(names, row, strict=True))
            skipped = bool(values.pop("skipped"))
            place = {"step": step["step"], "epoch": step["epoch"]}
            logs.steps.line({**place, **values, "lr": step["lr"], "skipped": skipped})
            self.last = values
            for name, value in values.items():
                counts = not skipped and math.isfinite(value)  # fp16 may overflow the gradient norm
                self.sums[name] = self.sums.get(name, 0.0) + (value if counts else 0.0)
                self.counts[name] = self.counts.get(name, 0) + counts
            self.bad_steps += skipped
            bad = {**step, "clips": step["clips"][:8], **values}
            self.bad_in_a_row = [*self.bad_in_a_row, bad] if skipped else []
            if len(self.bad_in_a_row) >= self.max_bad_steps:
                told = ", ".join(f"{name} {value}" for name, value in bad.items())
                raise RuntimeError(
                    f"loss or gradients are not finite in {len(self.bad_in_a_row)} step(s) in a "
                    f"row, the last: {told}; lower --lr, set --clip_grad, or use --precision bf16 "
                    "or fp32, and resume"
                )

    def means(self) -> dict[str, float]:
        """Average every figure over the steps that counted; also return how many were bad."""
        counts = {name: count or math.nan for name, count in self.counts.items()}
        means = {name: total / counts[name] for name, total in self.sums.items()}
        return {**means, "bad_steps": float(self.bad_steps)}

    def speed(self) -> dict[str, float]:
        """Return speed since `restart_clock` and peak memory; {} without a step."""
        if not self._steps:
            return {}
        elapsed = time.perf_counter() - self._started
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated()
        else:  # resident size, in bytes on a Mac and KiB elsewhere
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        return {
            "clips_per_s": self._clips * distributed.world_size() / elapsed,
            "data_s": self._data_time / self._steps,
            "step_s": elapsed / self._steps,
            "memory_mib": peak / 2**20,
        }


@dataclass
class TrainState:
    """All that training changes: what a checkpoint keeps, and a resumed run goes on with."""

    plan: Plan
    model: nn.Module  # not wrapped for several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, in fp16
    metrics: MetricBuffer  # of the epoch in hand
    epoch: int = 0  # in hand
    step: int = 0  # steps of it that are done
    best: dict[str, Any] = field(default_factory=lambda: NO_BEST)  # of checkpoint-best.pth
    origin: dict[str, str] | None = None  # path and sha256 of the file that --resume named
    decay: float = 0.0  # of the moving average of the weights; 0: there is none
    average: dict[str, Tensor] = field(default_factory=dict)  # by names of the model

    def __post_init__(self) -> None:
        if self.decay:
            weights = self.model.state_dict()
            self.average = {n: w.clone() for n, w in weights.items() if w.is_floating_point()}

    def update_average(self) -> None:
        """Move the average towards the weights after a step; the first steps count for more."""
        if self.decay:
            weights, step = self.model.state_dict(), self.steps_done
            move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
            move(list(self.average.values()), [weights[name] for name in self.average], step)

    @property
    def steps_done(self) -> int:
        """Steps of the whole run."""
        return self.epoch * self.plan.steps + self.step

    @property
    def last_step(self) -> int:
        """Number of the epoch's last step, under which its figures are shown."""
        return (self.epoch + 1) * self.plan.steps - 1


def make_state(
    run: Run,
    configs: PretrainConfigs | FinetuneConfigs,
    model: nn.Module,
    loader: DataLoader,
    lists: Mapping[str, Sequence[AnyClip]],
    layer_decay: float | None = None,
    ema: float = 0.0,
) -> TrainState:
    """Plan a run and make the model's optimiser: the state of a run that begins.

    The clips of `clip_loader` are shared among steps, alike for all numbers of processes; `lists`
    holds clips by the list's name; `ema` is the decay of the moving average of the weights.
    ValueError: an epoch is shorter than one step.
    """
    optim, world_size = configs.optim, distributed.world_size()
    if len(loader) < optim.accum_iter:
        raise ValueError(
            f"an epoch has {len(loader)} batch(es) a process, fewer than --accum_iter "
            f"{optim.accum_iter}; lower --accum_iter, --batch_size or --total_batch"
        )
    if configs.run.cuda_graphs and optim.accum_iter > 1:
        raise ValueError(
            f"--cuda_graphs with {optim.accum_iter} passes a step would overwrite what a pass "
            "leaves for the next; leave it out, or raise --batch_size so that a step is one pass"
        )
    total_batch = optim.batch_size * optim.accum_iter * world_size
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    steps, epochs = max(num_clips // total_batch, 1), optim.epochs
    lr, min_lr = (
        rate * optim.batch_size * optim.accum_iter * world_size / 256
        for rate in (optim.lr, optim.min_lr)
    )
    logger.info(
        "total batch %d = %d process(es) x %d clips x %d passes, learning rate %.3g to %.3g, "
        "%d steps an epoch",
        *(total_batch, world_size, optim.batch_size, optim.accum_iter, lr, min_lr, steps),
    )
    warmup = min(optim.warmup_epochs, epochs)
    if warmup < optim.warmup_epochs:
        text = "--warmup_epochs %d is more than --epochs %d: the warm-up takes all of them"
        logger.warning(text, optim.warmup_epochs, epochs)
    decay, last_decay = optim.weight_decay, optim.weight_decay_end
    last_decay = decay if last_decay is None else last_decay
    plan = Plan(
        settings=as_dict(configs),
        optim=optim,
        clips={n: describe_clips(clips, configs.data.data_root) for n, clips in lists.items()},
        steps=steps,
        total_batch=total_batch,
        world_size=world_size,
        lr=cosine_schedule(lr, min_lr, epochs, steps, warmup, optim.warmup_steps),
        weight_decay=cosine_schedule(decay, last_decay, epochs, steps),
    )
    groups = parameter_groups(model, decay, layer_decay)
    optimizer = make_optimizer(groups, float(plan.lr.max()), optim.opt_betas, optim.opt_eps)
    metrics, scaler = MetricBuffer(configs.run.max_bad_steps), run.precision.grad_scaler()
    return TrainState(plan, model, optimizer, scaler, metrics, decay=ema)
