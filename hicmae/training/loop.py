"""The training loop, one for both stages: `compute_loss` is all that differs."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from hicmae.config import RunConfig
from hicmae.data.batches import SkippedClip
from hicmae.data.dataset import ClipDataset
from hicmae.data.loader import ClipSampler, SkippedClips, epoch_batches, make_loader
from hicmae.models.layers import Block, CSBlock
from hicmae.training import distributed
from hicmae.training.logs import Progress
from hicmae.training.optim import set_learning_rate
from hicmae.training.run import Precision, Run, seed_step
from hicmae.training.state import Configs, TrainState

LossParts = dict[str, Tensor]
# (model, batch on the device) -> loss to minimise, named scalars to log
ComputeLoss = Callable[[nn.Module, Any], tuple[Tensor, LossParts]]


def clip_options(configs: Configs) -> dict[str, Any]:
    """Return the settings that data sets of both stages take, by argument."""
    known = {item.name for item in fields(ClipDataset)}
    return {name: v for group in configs for name, v in vars(group).items() if name in known}


def clip_loader(
    run: Run, dataset: ClipDataset, batch_size: int, trains: bool = True, balanced: bool = False
) -> DataLoader:
    """Build the loader of this rank's share of the clips.

    To train they are shuffled anew each epoch, in equal shares; `balanced`: classes equally often.
    """
    labels = np.array([clip.label for clip in dataset.clips]) if balanced else None
    seed, shards = run.config.seed, getattr(dataset.clips, "shard_of", None)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    sampler = ClipSampler(
        len(dataset), shuffle=trains, pad=trains, seed=seed, shards=shards, labels=labels, **share
    )
    workers = run.config.num_workers
    return make_loader(dataset, sampler, batch_size, workers, trains, run.device.type)


def as_trained(model: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    """Return the model as it trains, with its parameters: for ranks, compiled, saving memory."""
    if config.checkpoint_activations:  # keep their inputs only; backward computes them anew
        for module in model.modules():
            if isinstance(module, (Block, CSBlock)):  # its own method hides that of its class
                again = partial(checkpoint, module.forward, use_reentrant=False)
                module.forward = again  # type: ignore[method-assign]
    if distributed.world_size() > 1:
        # Without static_graph, which forbids the unsynchronised passes of --accum_iter; buffers
        # never change.
        options: dict[str, Any] = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
        devices = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=devices, **options)
    if not config.compile:
        return model
    mode = "reduce-overhead" if config.cuda_graphs else None  # one launch for a whole pass
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Any],
    compute_loss: ComputeLoss,
    state: TrainState,
    skipped: SkippedClips,
) -> dict[str, float]:
    """Train for one pass over the clips, or the rest of one, and log every step.

    `model` is of `as_trained`; `loader` of `clip_loader`, or batches from where `state` stands.
    What a step draws depends on its number only. Returns means over the epoch and all ranks, as
    `train_<name>`. RuntimeError: too many steps in a row have no finite loss.
    """
    model.train()
    config, plan, metrics, optim = state.run.config, state.plan, state.metrics, state.plan.optim
    state.check()  # a signal may have come while the last epoch was validated and saved
    if isinstance(loader, DataLoader):
        loader = epoch_batches(loader, state.epoch, state.step * optim.accum_iter)
    batches = iter(loader)
    unreadable: list[SkippedClip] = []
    metrics.restart_clock()
    if state.step == plan.steps:  # only what follows the epoch is left; show its last step again
        show(state)
    text = f"epoch {state.epoch}/{optim.epochs}"
    with Progress(plan.steps, text, config.print_freq, state.step) as progress:
        while state.step < plan.steps:
            started = time.perf_counter()
            group = list(itertools.islice(batches, optim.accum_iter))
            waited = time.perf_counter() - started
            unreadable += [clip for batch in group for clip in batch.skipped]
            step = state.steps_done
            lr = float(plan.lr[step])
            seed_step(config.seed, step, distributed.rank())
            set_learning_rate(state.optimizer, lr, float(plan.weight_decay[step]))
            how = state.optimizer, state.scaler, state.run.precision, optim.clip_grad
            figures = train_step(model, group, compute_loss, *how)
            state.update_average()
            clips = [name for batch in group for name in batch.names]
            facts = {"step": step, "epoch": state.epoch, "lr": lr, "clips": clips}
            metrics.add(facts, figures, waited)
            state.step += 1
            shows = state.step % config.print_freq == 0 or state.step == plan.steps
            if shows or distributed.world_size() == 1:
                distributed.on_main(partial(skipped.record, distributed.gather_objects(unreadable)))
                unreadable = []
            progress.update(show(state) if shows else None)
            if len(metrics.unread) >= config.max_bad_steps:
                metrics.read(state.logs)
            if state.step < plan.steps:  # the end of an epoch is saved later
                state.check()
    every = distributed.gather_objects([metrics.means()])
    means = {name: sum(rank[name] for rank in every) / len(every) for name in every[0]}
    # The last step's number: it is dropped, or not, together with that step on resume.
    shown = {name: m for name, m in means.items() if m or name != "bad_steps"}
    state.logs.board.scalars(state.last_step, shown, prefix="epoch")
    return {f"train_{name}": mean for name, mean in means.items()}


def show(state: TrainState) -> dict[str, float]:
    """Read what is new, send the figures of the last step to TensorBoard and return them."""
    metrics, plan, step = state.metrics, state.plan, state.steps_done - 1
    metrics.read(state.logs)
    bad = {"bad_steps": metrics.bad_steps} if metrics.bad_steps else {}
    rates = {"loss": metrics.last["loss"], "lr": float(plan.lr[step])}
    shown = {**bad, **rates, **metrics.speed(), **metrics.last}  # the log has room for the first
    decay = {"weight_decay": float(plan.weight_decay[step])}
    state.logs.board.scalars(step, shown | decay, "train")
    scales = sorted({group.get("lr_scale", 1.0) for group in state.optimizer.param_groups})
    if len(scales) > 1:  # of --layer_decay, the lowest layer that trains first
        by_layer = {f"layer{k}": rates["lr"] * scale for k, scale in enumerate(scales)}
        state.logs.board.scalars(step, by_layer, "lr")
    metrics.restart_clock()
    return shown


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    clip_grad: float | None = None,
) -> LossParts:
    """Take one optimisation step with the batches' mean gradient, unless a loss is not finite.

    Returns figures on the device: of the loss, `grad_norm` before clipping, `skipped` by any rank.
    """
    sums: LossParts = {}
    for index, batch in enumerate(batches):
        # DDP averages gradients over ranks once a step, with the last batch.
        waits = index + 1 < len(batches)
        with getattr(model, "no_sync", nullcontext)() if waits else nullcontext():
            with precision.autocast():
                loss, parts = compute_loss(model, batch.to(precision.device))
            # A loss that is not finite makes all gradients NaN, and DDP those of all ranks.
            sound = torch.where(loss.detach().isfinite(), 1.0, math.nan)
            scaler.scale(loss * sound / len(batches)).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    if clip_grad:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip_grad, grad_norm)
    if scaler.is_enabled():
        # The scaler itself leaves out a step; gradients that only overflow are its daily business.
        bad = distributed.any_rank(~sums["loss"].isfinite())
        scaler.step(optimizer)
        scaler.update()
    else:
        bad = ~grad_norm.isfinite()
        if optimizer.defaults.get("fused"):  # the kernel leaves out the step: no GPU is waited for
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by the kernel
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]  # set above
        elif not bad:
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums | {"grad_norm": grad_norm, "skipped": bad}
