"""The training loop, one for both stages: `compute_loss` is all that differs."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from hicmae.config import RunConfig
from hicmae.data.loader import ClipSampler, SkippedClips, epoch_batches, make_loader
from hicmae.training import distributed
from hicmae.training.logs import (
    HParams,
    Progress,
    RunLogger,
    begin_hparams,
    end_hparams,
    hparams_of,
    provenance,
)
from hicmae.training.optim import set_learning_rate
from hicmae.training.resume import Saver
from hicmae.training.run import Precision, Run, checkpoint_activations, compiled, seed_step
from hicmae.training.state import BadSteps, Plan, StepRecord, TrainState

LossParts = dict[str, Tensor]
ComputeLoss = Callable[[nn.Module, Any], tuple[Tensor, LossParts]]


def training_loader(run: Run, dataset: Dataset, batch_size: int) -> DataLoader:
    """Build the loader of this rank's share of the training clips, shuffled anew each epoch."""
    sampler = ClipSampler(
        len(dataset),  # type: ignore[arg-type]  # ours have a length
        shuffle=True,
        seed=run.config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
        shards=getattr(dataset.clips, "shard_of", None),  # type: ignore[attr-defined]  # ours have
    )
    workers = run.config.num_workers
    return make_loader(dataset, sampler, batch_size, workers, True, run.device.type)


def as_trained(
    model: nn.Module, config: RunConfig, device: torch.device, exchange: bool = True
) -> nn.Module:
    """Return the model as it trains: for several processes, compiled, saving memory, as asked.

    Args:
        model: on its device; it shares its parameters with what is returned.
        config: says what is asked.
        device: of this process.
        exchange: False leaves the processes to themselves (to measure what the exchange costs).
    """
    if config.checkpoint_activations:
        checkpoint_activations(model)
    trained = distribute(model, device) if exchange else model
    return compiled(trained, config.cuda_graphs) if config.compile else trained


def distribute(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """Wrap a model for several processes; alone it is returned as it is.

    Args:
        model: on its device; every parameter takes part in every step.
        device: of this process.
        options: of DistributedDataParallel. static_graph would forbid the passes without
            synchronisation that --accum_iter makes.
    """
    if distributed.world_size() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    options = {"gradient_as_bucket_view": True, **options}
    return DistributedDataParallel(model, device_ids=devices, **options)


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Any],
    compute_loss: ComputeLoss,
    run: Run,
    plan: Plan,
    state: TrainState,
    logs: RunLogger,
    skipped: SkippedClips,
    saver: Saver | None = None,
) -> dict[str, float]:
    """Train for one pass over the clips, or the rest of one.

    Args:
        model: as it trains, of `as_trained`; in training mode afterwards.
        loader: of `training_loader`, or batches from where the state stands.
        compute_loss: (model, batch on the device) -> loss to minimise, named scalars to log.
        run: where and how.
        plan: steps, learning rates, accumulation.
        state: goes on, step by step.
        logs: get every step's figures.
        skipped: gets the clips that could not be read.
        saver: saves or stops after a step, where it is time; None: never.

    Returns:
        Means over the epoch and all ranks of everything logged.

    Raises:
        RuntimeError: too many steps in a row without a finite loss; `Stopped` passes through.
    """
    model.train()
    every, accum_iter = run.config.print_freq, plan.optim.accum_iter
    if saver is not None:
        saver.check(state)  # a signal may have come while the last epoch was validated and saved
    if isinstance(loader, DataLoader):
        loader = epoch_batches(loader, state.epoch, state.step * accum_iter)
    progress = Progress(plan.steps, f"epoch {state.epoch}/{plan.optim.epochs}", every, state.step)
    state.metrics.restart_clock()
    if state.step == plan.steps:  # only what follows the epoch is left; show its last step again
        show(plan, state, logs)
    try:
        for batches, data_time in _groups(loader, accum_iter, plan.steps - state.step):
            skipped.record(clip for batch in batches for clip in batch.skipped)
            figures = _seeded_step(model, batches, compute_loss, run, plan, state)
            state.metrics.add(figures, data_time)
            state.step += 1
            shows = state.step % every == 0 or state.step == plan.steps
            progress.update(1, show(plan, state, logs) if shows else None)
            if len(state.metrics.unread) >= run.config.max_bad_steps:
                state.metrics.read(logs)
            if saver is not None and state.step < plan.steps:  # the end of an epoch is saved later
                saver.check(state)
    except BadSteps as bad:
        raise RuntimeError(saver.dump(state, bad) if saver else str(bad)) from bad
    progress.close()
    means = distributed.all_mean(state.metrics.means())
    # The last step's number: it is dropped, or not, together with that step on resume.
    shown = {name: m for name, m in means.items() if m or name != "bad_steps"}
    logs.scalars(plan.last_step(state.epoch), shown, prefix="epoch")
    return means


def _seeded_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    run: Run,
    plan: Plan,
    state: TrainState,
) -> StepRecord:
    """Make a step of the run; what it draws depends on its number and on nothing before it."""
    step = state.epoch * plan.steps + state.step
    lr, weight_decay = float(plan.lr[step]), float(plan.weight_decay[step])
    seed_step(run.config.seed, step, distributed.rank())
    set_learning_rate(state.optimizer, lr, weight_decay)
    figures = train_step(model, batches, compute_loss, state, run.precision, plan.optim.clip_grad)
    names = [name for batch in batches for name in batch.names]
    return StepRecord(step, state.epoch, lr, figures, names)


def _groups(loader: Iterable, accum_iter: int, steps: int) -> Iterator[tuple[list[Any], float]]:
    """Yield the batches of each step and the seconds spent waiting for them."""
    batches = iter(loader)
    for _ in range(steps):
        started = time.perf_counter()
        group = list(itertools.islice(batches, accum_iter))
        yield group, time.perf_counter() - started


def show(plan: Plan, state: TrainState, logs: RunLogger) -> dict[str, float]:
    """Read what is new, send the figures of the last step to TensorBoard and return them."""
    state.metrics.read(logs)
    step = state.epoch * plan.steps + state.step - 1
    lr = float(plan.lr[step])
    shown = {**state.metrics.last, "lr": lr, **state.metrics.speed()}
    if state.metrics.bad_steps:
        shown["bad_steps"] = state.metrics.bad_steps
    decay = float(plan.weight_decay[step])
    rates = {layer: lr * scale for layer, scale in state.layer_scales.items()}
    logs.scalars(step, {**shown, "weight_decay": decay}, prefix="train")
    logs.scalars(step, rates, prefix="lr")
    state.metrics.restart_clock()
    return shown


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    state: TrainState,
    precision: Precision,
    clip_grad: float | None = None,
) -> LossParts:
    """Take one optimisation step with the batches' mean gradient; return its figures unread."""
    sums: LossParts = {}
    for index, batch in enumerate(batches):
        # DDP averages gradients over ranks once a step, with the last batch.
        waits = index + 1 < len(batches)
        with getattr(model, "no_sync", nullcontext)() if waits else nullcontext():
            with precision.autocast():
                loss, parts = compute_loss(model, batch.to(precision.device))
            # A loss that is not finite makes all gradients NaN, and DDP those of all ranks.
            sound = torch.where(loss.detach().isfinite(), 1.0, math.nan)
            state.scaler.scale(loss * sound / len(batches)).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)
    return sums | _optimizer_step(model, sums["loss"], state, clip_grad)


def _optimizer_step(
    model: nn.Module, loss: Tensor, state: TrainState, clip_grad: float | None
) -> LossParts:
    """Clip, step unless the loss is bad, clear the gradients.

    Returns:
        The norm of the gradients before clipping, and whether the loss is bad, on any rank.
    """
    optimizer, scaler = state.optimizer, state.scaler
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    if clip_grad:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip_grad, grad_norm)
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


class EvaluationBatches:
    """The batches of an evaluation, with something to do before each, on all ranks together.

    Ranks may have unequal numbers of batches, so all take as many turns as the longest.

    Args:
        loader: of `make_loader`, in list order.
        before_each: called before each batch; may raise to stop.
    """

    def __init__(self, loader: DataLoader[Any], before_each: Callable[[], None]) -> None:
        self.loader, self.before_each = loader, before_each

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        (turns,) = distributed.highest([len(self.loader)])
        batches = epoch_batches(self.loader, epoch=0)
        for _ in range(turns):
            self.before_each()
            batch = next(batches, None)
            if batch is not None:
                yield batch


def open_logs(run: Run, plan: Plan, state: TrainState) -> RunLogger:
    """Open the logs, without what they hold beyond the place where the run goes on.

    Nothing is written where all epochs are done.
    """
    done = state.epoch * plan.steps + state.step
    # Where only validation is left of an epoch, its figures may stand at its last step already;
    # they go, and `train_one_epoch` shows that step again.
    purge_step = done - (state.step == plan.steps)
    writes = distributed.is_main() and state.epoch < plan.optim.epochs
    logs = RunLogger(
        run.output_dir,
        run.log_dir,
        writes,
        resume_step=done,
        resume_epoch=state.epoch,
        purge_step=purge_step,
    )
    if writes:
        facts = provenance(run.device, run.precision.name, plan.world_size)
        logs.texts(purge_step, facts, prefix="run")
        begin_hparams(run.log_dir, compared_settings(plan))
    return logs


def compared_settings(plan: Plan) -> HParams:
    """Return the settings that TensorBoard shows beside those of other runs."""
    return hparams_of(plan.settings, total_batch=plan.total_batch, processes=plan.world_size)


def show_end(
    run: Run,
    plan: Plan,
    metrics: Mapping[str, float],
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show in TensorBoard, once, what came out of a run that is over.

    Args:
        run: where.
        plan: of the run.
        metrics: final numbers by tag.
        images: pictures, (H, W, 3) uint8, by tag.
    """
    if distributed.is_main():
        steps = len(plan.lr)
        end_hparams(run.log_dir, compared_settings(plan), metrics, steps, images)
