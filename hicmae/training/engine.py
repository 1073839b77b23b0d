"""The training loop, one for both stages; `compute_loss` is all that differs."""

import itertools
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hicmae.data.loading import SkippedClips
from hicmae.training import distributed
from hicmae.training.logger import Progress, RunLogger
from hicmae.training.optim import set_learning_rate
from hicmae.training.precision import Precision

LossParts = dict[str, Tensor]
ComputeLoss = Callable[[nn.Module, Any], tuple[Tensor, LossParts]]


class Optimization(NamedTuple):
    """All that turns gradients into steps."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    lr: np.ndarray  # one value a step
    weight_decay: np.ndarray  # one value a step
    accum_iter: int = 1
    clip_grad: float | None = None


class StepRecord(NamedTuple):
    """One step's figures, still on the device so that no step has to wait for it."""

    step: int
    tensors: LossParts
    names: list[str]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed python, numpy and torch, so that a step's randomness depends on nothing before it."""
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]
    random.seed(int(mixed))
    np.random.seed(int(mixed))
    torch.manual_seed(int(mixed))


def train_one_epoch(
    model: nn.Module,
    loader: Iterable,
    compute_loss: ComputeLoss,
    optimization: Optimization,
    *,
    epoch: int,
    epochs: int,
    steps: int,
    seed: int,
    logger: RunLogger,
    skipped: SkippedClips,
    print_freq: int = 10,
) -> dict[str, float]:
    """Train for one pass over the loader.

    Args:
        model: in training mode afterwards; may be wrapped by DistributedDataParallel.
        loader: yields batches with `.to(device)`, `.names` and `.skipped`.
        compute_loss: (model, batch on the device) -> loss to minimise, named scalars to log.
        optimization: optimiser, schedules, precision, accumulation.
        epoch: 0-based.
        epochs: of the whole run, for the progress line.
        steps: optimisation steps of an epoch; batches beyond steps * accum_iter are left out.
        seed: of the run.
        logger: gets every step's figures.
        skipped: gets the clips that could not be read.
        print_freq: steps between two looks at the device; nothing is synchronised in between.

    Returns:
        Means over the epoch and all ranks of everything logged.

    Raises:
        RuntimeError: the loss is not finite.
    """
    model.train()
    progress = Progress(steps, f"epoch {epoch}/{epochs}", every=print_freq)
    window = _Window(logger, optimization, epoch)
    groups = _groups(loader, optimization.accum_iter, steps)
    for step, (batches, data_time) in enumerate(groups, start=epoch * steps):
        seed_step(seed, step, distributed.rank())
        # Plain floats: numpy's would end up in the checkpoint and be refused when it is loaded.
        lr, weight_decay = float(optimization.lr[step]), float(optimization.weight_decay[step])
        set_learning_rate(optimization.optimizer, lr, weight_decay)
        names = []
        for batch in batches:
            skipped.record(batch.skipped)
            names += batch.names
        parts = _forward_backward(model, batches, compute_loss, optimization)
        parts["grad_norm"] = _optimizer_step(model, optimization)
        window.add(StepRecord(step, parts, names), data_time)
        done = step + 1 - epoch * steps
        looks = done % print_freq == 0 or done == steps
        progress.update(1, window.flush() if looks else None)
    progress.close()
    return distributed.all_mean(window.epoch_means())


def _groups(loader: Iterable, accum_iter: int, steps: int) -> Iterator[tuple[list[Any], float]]:
    """Yield the batches of each step and the seconds spent waiting for them."""
    batches = iter(loader)
    for _ in range(steps):
        started = time.perf_counter()
        group = list(itertools.islice(batches, accum_iter))
        yield group, time.perf_counter() - started


def _forward_backward(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
) -> LossParts:
    """Add up the gradients of a step's batches; return the mean of what they report."""
    device = optimization.precision.device
    sums: LossParts = {}
    for index, batch in enumerate(batches):
        # DDP averages gradients over ranks once a step, with the last batch.
        waits = index + 1 < len(batches) and hasattr(model, "no_sync")
        with model.no_sync() if waits else nullcontext():
            with optimization.precision.autocast():
                loss, parts = compute_loss(model, batch.to(device))
            optimization.scaler.scale(loss / len(batches)).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)
    return sums


def _optimizer_step(model: nn.Module, optimization: Optimization) -> Tensor:
    """Clip, step, clear the gradients; return their norm before clipping."""
    optimizer, scaler = optimization.optimizer, optimization.scaler
    scaler.unscale_(optimizer)
    limit = optimization.clip_grad or math.inf
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


class _Window:
    """The steps since the last look at the device, and the sums of the epoch."""

    def __init__(self, logger: RunLogger, optimization: Optimization, epoch: int) -> None:
        self.logger, self.optimization, self.epoch = logger, optimization, epoch
        self.records: list[StepRecord] = []
        self.data_time = 0.0
        self.started = time.perf_counter()
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, record: StepRecord, data_time: float) -> None:
        """Keep a step's figures on the device."""
        self.records.append(record)
        self.data_time += data_time

    def flush(self) -> dict[str, float]:
        """Read, check and log the figures of the window; return what is worth showing."""
        names = list(self.records[0].tensors)
        table = torch.stack(
            [torch.stack([r.tensors[n].float() for n in names]) for r in self.records]
        ).tolist()  # the one synchronisation of the window
        for record, row in zip(self.records, table, strict=True):
            self._log_step(record, dict(zip(names, row, strict=True)))
        last = self.records[-1].step
        shown = {
            **dict(zip(names, table[-1], strict=True)),
            "lr": float(self.optimization.lr[last]),
            **self._speed(),
        }
        decay = float(self.optimization.weight_decay[last])
        self.logger.scalars(last, {**shown, "weight_decay": decay}, prefix="train")
        self.records, self.data_time, self.started = [], 0.0, time.perf_counter()
        return shown

    def _log_step(self, record: StepRecord, values: dict[str, float]) -> None:
        lr = float(self.optimization.lr[record.step])
        _check_finite(values, record, lr)
        self.logger.step({"step": record.step, "epoch": self.epoch, **values, "lr": lr})
        for name, value in values.items():
            if math.isfinite(value):  # a step that overflows fp16 has no finite gradient norm
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def _speed(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        clips = sum(len(record.names) for record in self.records) * distributed.world_size()
        return {
            "clips_per_s": clips / elapsed,
            "data_s": self.data_time / len(self.records),
            "step_s": elapsed / len(self.records),
            "memory_mib": _memory_mib(self.optimization.precision.device),
        }

    def epoch_means(self) -> dict[str, float]:
        """Average every figure over the epoch's steps."""
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}


def _check_finite(values: dict[str, float], record: StepRecord, lr: float) -> None:
    if math.isfinite(values["loss"]):
        return
    parts = ", ".join(f"{n} {v:.4g}" for n, v in values.items() if n not in ("loss", "grad_norm"))
    clips = ", ".join(record.names[:8]) + (" ..." if len(record.names) > 8 else "")
    raise RuntimeError(
        f"loss is {values['loss']} at step {record.step} ({parts}), lr {lr:.2e}, clips [{clips}]; "
        "lower --lr, set --clip_grad, or use --precision bf16 or fp32, and resume"
    )


def _memory_mib(device: torch.device) -> float:
    """Return the peak memory so far: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here
