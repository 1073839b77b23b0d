"""The training loop, one for both stages; `compute_loss` is all that differs."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from hicmae.training.randomness import seed_step
from hicmae.training.window import StepRecord, Window

LossParts = dict[str, Tensor]
ComputeLoss = Callable[[nn.Module, Any], tuple[Tensor, LossParts]]
AfterStep = Callable[[int, Window], None]


class Optimization(NamedTuple):
    """All that turns gradients into steps."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    lr: np.ndarray  # one value a step
    weight_decay: np.ndarray  # one value a step
    accum_iter: int = 1
    clip_grad: float | None = None
    layer_scales: Mapping[str, float] | None = None  # to show, of `optim.layer_scales`


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
    max_bad_steps: int = 10,
    done: int = 0,
    state: Mapping[str, Any] | None = None,
    after_step: AfterStep = lambda done, window: None,
) -> dict[str, float]:
    """Train for one pass over the loader, or the rest of one.

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
        max_bad_steps: in a row without finite loss and gradients; fewer leave the weights alone.
        done: steps of the epoch that an earlier run has made; the loader begins after them.
        state: `Window.state` of that run.
        after_step: gets the steps done and the window; may raise to stop.

    Returns:
        Means over the epoch and all ranks of everything logged.

    Raises:
        BadSteps: `max_bad_steps` in a row.
    """
    model.train()
    lr, weight_decay, layers = optimization.lr, optimization.weight_decay, optimization.layer_scales
    window = Window(logger, lr, weight_decay, epoch, max_bad_steps, state, layers)
    progress = Progress(steps, f"epoch {epoch}/{epochs}", every=print_freq, initial=done)
    if done == steps:  # only what follows the epoch is left; its last step is shown again
        window.show(epoch * steps + done - 1)
        after_step(done, window)
    groups = _groups(loader, optimization.accum_iter, steps - done)
    for step, (batches, data_time) in enumerate(groups, start=epoch * steps + done):
        skipped.record(clip for batch in batches for clip in batch.skipped)
        window.add(_seeded_step(model, batches, compute_loss, optimization, step, seed), data_time)
        done += 1
        looks = done % print_freq == 0 or done == steps
        progress.update(1, window.show(step) if looks else None)
        after_step(done, window)
    progress.close()
    return distributed.all_mean(window.means())


def _groups(loader: Iterable, accum_iter: int, steps: int) -> Iterator[tuple[list[Any], float]]:
    """Yield the batches of each step and the seconds spent waiting for them."""
    batches = iter(loader)
    for _ in range(steps):
        started = time.perf_counter()
        group = list(itertools.islice(batches, accum_iter))
        yield group, time.perf_counter() - started


def _seeded_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
    step: int,
    seed: int,
) -> StepRecord:
    """Make a step of the run, which depends on its number and on nothing before it."""
    seed_step(seed, step, distributed.rank())
    # Plain floats: numpy's would end up in the checkpoint and be refused when it is loaded.
    lr, weight_decay = float(optimization.lr[step]), float(optimization.weight_decay[step])
    set_learning_rate(optimization.optimizer, lr, weight_decay)
    parts = train_step(model, batches, compute_loss, optimization)
    return StepRecord(step, parts, [name for batch in batches for name in batch.names])


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
) -> LossParts:
    """Take one optimisation step with the batches' mean gradient; return its figures unread."""
    parts = _forward_backward(model, batches, compute_loss, optimization)
    return parts | _optimizer_step(model, parts["loss"], optimization)


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
        waits = index + 1 < len(batches)
        with getattr(model, "no_sync", nullcontext)() if waits else nullcontext():
            with optimization.precision.autocast():
                loss, parts = compute_loss(model, batch.to(device))
            # A loss that is not finite makes all gradients NaN, and DDP those of all ranks.
            sound = torch.where(loss.detach().isfinite(), 1.0, math.nan)
            optimization.scaler.scale(loss * sound / len(batches)).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)
    return sums


def _optimizer_step(model: nn.Module, loss: Tensor, optimization: Optimization) -> LossParts:
    """Clip, step unless the loss is bad, clear the gradients.

    Returns:
        The norm of the gradients before clipping, and whether the loss is bad, on any rank.
    """
    optimizer, scaler = optimization.optimizer, optimization.scaler
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    if optimization.clip_grad:
        nn.utils.clip_grads_with_norm_(model.parameters(), optimization.clip_grad, grad_norm)
    if scaler.is_enabled():
        # The scaler itself leaves out a step; gradients that only overflow are its daily business.
        bad = distributed.any_rank(~loss.isfinite())
        scaler.step(optimizer)
        scaler.update()
    else:
        bad = ~grad_norm.isfinite()
        _step_unless(bad, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm, "skipped": bad}


def _step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step, or leave weights and moments as they are, without waiting for a GPU."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]  # set above
    elif not bad:
        optimizer.step()
