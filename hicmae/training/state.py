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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hicmae.config import FinetuneConfigs, OptimConfig, PretrainConfigs, as_dict
from hicmae.data.clip_list import AnyClip
from hicmae.training import distributed
from hicmae.training.logs import RunLogger
from hicmae.training.optim import (
    cosine_schedule,
    layer_scales,
    make_optimizer,
    parameter_groups,
)
from hicmae.training.run import Run

logger = logging.getLogger(__name__)

NO_BEST: dict[str, Any] = {"epoch": -1, "value": None}


@dataclass(frozen=True)
class Plan:
    """What a run trains, on which clips, and how its steps share them.

    Attributes:
        settings: all flags, by group.
        clips: one line for each list, of `describe_clips`.
        steps: of an epoch; batches beyond steps * accum_iter are left out.
        total_batch: clips of a step, over all passes and processes.
        world_size: processes.
        lr: learning rate of each step of the run.
        weight_decay: the same of the weight decay.
    """

    settings: dict[str, Any]
    optim: OptimConfig
    clips: dict[str, str]
    steps: int
    total_batch: int
    world_size: int
    lr: np.ndarray
    weight_decay: np.ndarray

    def last_step(self, epoch: int) -> int:
        """Return the number of an epoch's last step, under which its figures are shown."""
        return (epoch + 1) * self.steps - 1


def make_plan(
    configs: PretrainConfigs | FinetuneConfigs,
    loader: DataLoader,
    lists: Mapping[str, Sequence[AnyClip]],
) -> Plan:
    """Share the clips among steps, alike for all numbers of processes.

    Args:
        configs: of the run.
        loader: of `training_loader`.
        lists: the clips of each list by its name.

    Raises:
        ValueError: an epoch is shorter than one step.
    """
    optim, world_size = configs.optim, distributed.world_size()
    if len(loader) < optim.accum_iter:
        raise ValueError(
            f"an epoch has {len(loader)} batch(es) a process, fewer than --accum_iter "
            f"{optim.accum_iter}; lower --accum_iter or --batch_size"
        )
    total_batch = optim.batch_size * optim.accum_iter * world_size
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    steps = max(num_clips // total_batch, 1)
    lr, min_lr = (
        rate * optim.batch_size * optim.accum_iter * world_size / 256
        for rate in (optim.lr, optim.min_lr)
    )
    decay = optim.weight_decay
    last_decay = decay if optim.weight_decay_end is None else optim.weight_decay_end
    logger.info(
        "total batch %d = %d process(es) x %d clips x %d passes, learning rate %.3g to %.3g, "
        "%d steps an epoch",
        *(total_batch, world_size, optim.batch_size, optim.accum_iter, lr, min_lr, steps),
    )
    warmup = {"warmup_epochs": optim.warmup_epochs, "warmup_steps": optim.warmup_steps}
    return Plan(
        settings=as_dict(configs),
        optim=optim,
        clips={n: describe_clips(clips, configs.data.data_root) for n, clips in lists.items()},
        steps=steps,
        total_batch=total_batch,
        world_size=world_size,
        lr=cosine_schedule(lr, min_lr, optim.epochs, steps, **warmup),
        weight_decay=cosine_schedule(decay, last_decay, optim.epochs, steps),
    )


def describe_clips(clips: Sequence[AnyClip], root: str) -> str:
    """Tell clips apart from others in a few characters, wherever their files lie.

    Args:
        clips: in the order of their list.
        root: folder that relative paths were joined to.
    """
    total, prefix = hashlib.sha256(), os.path.join(root, "") if root else ""
    for clip in clips:
        video, audio = (path and path.removeprefix(prefix) for path in (clip.video, clip.audio))
        total.update(f"{video}\0{audio}\0{clip.label}\n".encode(errors="surrogateescape"))
    return f"{len(clips)} ({total.hexdigest()[:12]})"


class StepRecord(NamedTuple):
    """One step's figures, still on the device so that no step has to wait for it.

    `figures` holds `loss`, `skipped` (whether the weights were left alone) and whatever else.
    """

    step: int
    epoch: int
    lr: float
    figures: dict[str, Tensor]
    names: list[str]


class BadSteps(RuntimeError):
    """Too many steps in a row without a finite loss; `steps` holds their figures and clips."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        last, self.steps = steps[-1], steps
        known = ("step", "lr", "clips", "loss", "grad_norm")
        parts = ", ".join(f"{name} {last[name]:.4g}" for name in last if name not in known)
        clips = ", ".join(last["clips"][:8]) + (" ..." if len(last["clips"]) > 8 else "")
        super().__init__(
            f"loss or gradients are not finite in {len(steps)} step(s) in a row, the last at step "
            f"{last['step']}: loss is {last['loss']} ({parts}), gradient norm "
            f"{last['grad_norm']:.4g}, lr {last['lr']:.2e}, clips [{clips}]"
        )


class MetricBuffer:
    """Figures of an epoch's steps: read from the device now and then, logged and added up.

    Args:
        max_bad_steps: steps in a row without a finite loss at which training ends.
        saved: of `saved`, where a run goes on within an epoch.
    """

    def __init__(self, max_bad_steps: int, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.max_bad_steps = max_bad_steps
        self.sums: dict[str, float] = dict(saved.get("sums", {}))
        self.counts: dict[str, int] = dict(saved.get("counts", {}))
        self.bad_steps: int = saved.get("bad_steps", 0)
        self.bad_in_a_row: list[dict[str, Any]] = list(saved.get("bad_in_a_row", ()))
        self.last: dict[str, float] = dict(saved.get("last", {}))
        self.unread: list[StepRecord] = []
        self.restart_clock()

    def next_epoch(self) -> "MetricBuffer":
        """Return the buffer of the next epoch; bad steps in a row go on."""
        return MetricBuffer(self.max_bad_steps, {"bad_in_a_row": self.bad_in_a_row})

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; everything has been read."""
        names = ("sums", "counts", "bad_steps", "bad_in_a_row", "last")
        return {name: getattr(self, name) for name in names}

    def restart_clock(self) -> None:
        """Measure speed from here on."""
        self._steps, self._clips, self._data_time = 0, 0, 0.0
        self._started = time.perf_counter()

    def add(self, record: StepRecord, data_time: float) -> None:
        """Take a step's figures, and the seconds that it waited for its clips."""
        self.unread.append(record)
        self._steps += 1
        self._clips += len(record.names)
        self._data_time += data_time

    def read(self, logs: RunLogger) -> None:
        """Read what is new on the device, and log it step by step.

        Raises:
            BadSteps: too many in a row.
        """
        if not self.unread:
            return
        records, self.unread = self.unread, []
        names = list(records[0].figures)
        table = torch.stack([torch.stack([r.figures[n].float() for n in names]) for r in records])
        for record, row in zip(records, table.tolist(), strict=True):  # the one synchronisation
            self._take(record, dict(zip(names, row, strict=True)), logs)

    def _take(self, record: StepRecord, values: dict[str, float], logs: RunLogger) -> None:
        skipped, place = bool(values.pop("skipped")), {"step": record.step, "epoch": record.epoch}
        logs.step({**place, **values, "lr": record.lr, "skipped": skipped})
        self.last = values
        for name, value in values.items():
            counts = not skipped and math.isfinite(value)  # fp16 may overflow the gradient norm
            self.sums[name] = self.sums.get(name, 0.0) + (value if counts else 0.0)
            self.counts[name] = self.counts.get(name, 0) + counts
        if not skipped:
            self.bad_in_a_row = []
            return
        self.bad_steps += 1
        bad = {"step": record.step, "lr": record.lr, **values, "clips": record.names}
        self.bad_in_a_row.append(bad)
        if len(self.bad_in_a_row) >= self.max_bad_steps:
            raise BadSteps(self.bad_in_a_row)

    def means(self) -> dict[str, float]:
        """Average every figure over the steps that counted; also return how many were bad."""
        means = {
            name: total / self.counts[name] if self.counts[name] else math.nan
            for name, total in self.sums.items()
        }
        return {**means, "bad_steps": float(self.bad_steps)}

    def speed(self) -> dict[str, float]:
        """Return speed and memory since `restart_clock`; {} without a step."""
        if not self._steps:
            return {}
        elapsed = time.perf_counter() - self._started
        return {
            "clips_per_s": self._clips * distributed.world_size() / elapsed,
            "data_s": self._data_time / self._steps,
            "step_s": elapsed / self._steps,
            "memory_mib": _memory_mib(),
        }


def _memory_mib() -> float:
    """Return the peak memory so far: allocated on the GPU in use, or resident of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here


@dataclass
class TrainState:
    """All that training changes: what a checkpoint keeps, and a resumed run goes on with.

    Attributes:
        model: not wrapped for several processes.
        optimizer: over the model's groups.
        scaler: of the loss, in fp16.
        metrics: of the epoch in hand.
        epoch: in hand, from 0.
        step: steps of it that are done.
        best: epoch and value of checkpoint-best.pth.
        origin: path and sha256 of the file that --resume named when the run began.
        layer_scales: shares of the learning rate by layer, to show; {} where all are equal.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    metrics: MetricBuffer
    epoch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=lambda: NO_BEST)
    origin: dict[str, str] | None = None
    layer_scales: Mapping[str, float] = field(default_factory=dict)


def make_state(
    model: nn.Module, plan: Plan, run: Run, layer_decay: float | None = None
) -> TrainState:
    """Make the optimiser of a model, and the state of a run that begins."""
    optim = plan.optim
    groups = parameter_groups(model, optim.weight_decay, layer_decay)
    return TrainState(
        model=model,
        optimizer=make_optimizer(groups, float(plan.lr.max()), optim.opt_betas, optim.opt_eps),
        scaler=run.precision.grad_scaler(),
        metrics=MetricBuffer(run.config.max_bad_steps),
        layer_scales=layer_scales(model, layer_decay),
    )


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
