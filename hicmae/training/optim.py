"""Optimiser: batches, weight-decay groups, layer decay, AdamW, schedule, frozen weights."""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hicmae.config import OptimConfig

logger = logging.getLogger(__name__)

Groups = list[dict[str, Any]]  # of parameters, see `parameter_groups`
NO_DECAY = ("bias", "mask_token", "mask_token_audio")  # last parts of names
FUSION = "encoder_fusion"
_LAYER = re.compile(r"(encoder(?:_audio|_fusion)?)\.(?:patch_embed|blocks(?:_audio)?\.(\d+))\.")


def shared_batches(optim: OptimConfig, processes: int) -> OptimConfig:
    """Return the batches that --total_batch means for so many processes, or ValueError."""
    total, largest = optim.total_batch, optim.batch_size
    if not total:
        return optim
    share, rest = divmod(total, processes)
    batch = max((n for n in range(1, min(largest, share) + 1) if share % n == 0), default=0)
    # A share such as 53 has no divisor but 1: too few clips in a pass to contrast or to be fast.
    if rest or (batch < share and batch * 4 < largest):
        raise ValueError(
            f"--total_batch {total} cannot be shared by {processes} process(es) in equal passes of "
            f"about --batch_size {largest}; use a multiple of {processes * largest}"
        )
    return replace(optim, batch_size=batch, accum_iter=share // batch, total_batch=0)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> Groups:
    """Sort the trainable parameters into groups of equal weight decay and learning-rate scale.

    1-d parameters, biases and mask tokens have no weight decay. `layer_decay`, in (0, 1], is the
    learning-rate factor from one layer to the one below it; None: one learning rate everywhere.
    Groups have `params`, `weight_decay`, `lr_scale` and the `names` of the parameters.
    """
    ids = layer_ids(name for name, _ in model.named_parameters())
    last = max(ids.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.rpartition(".")[2] not in NO_DECAY
            decay = weight_decay if decays else 0.0
            scale = (layer_decay or 1.0) ** (last - ids[name])
            empty = {"params": [], "weight_decay": decay, "lr_scale": scale, "names": []}
            group = groups.setdefault((scale, decay), empty)
            group["params"].append(parameter)
            group["names"].append(name)
    if not groups:
        raise ValueError("the model has no trainable parameter, so there is nothing to optimise")
    return list(groups.values())


def layer_ids(names: Iterable[str]) -> dict[str, int]:
    """Return the layer that each parameter belongs to, counted from the input, by its name.

    0 is patch embedding, i + 1 encoder block i, L + i + 1 fusion block i with L the deeper encoder,
    and n + 1 with n = L + fusion blocks everything else.
    """
    found = {name: _LAYER.match(name) for name in names}
    known = {name: (m[1] == FUSION, int(m[2] or -1) + 1) for name, m in found.items() if m}
    depth = max((layer for fusion, layer in known.values() if not fusion), default=0)
    ids = {name: layer + depth * fusion for name, (fusion, layer) in known.items()}
    last = max([depth, *ids.values()])
    return {name: ids.get(name, last + 1) for name in found}


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """Return a value a step, float64: a linear rise from 0 to `base`, then half a cosine down.

    The cosine would reach `final` one step after the last. A positive `warmup_steps` overrides
    `warmup_epochs`.
    """
    total = epochs * steps_per_epoch
    rise = warmup_steps if warmup_steps > 0 else warmup_epochs * steps_per_epoch
    if rise > total:
        raise ValueError(
            f"warm-up of {rise} steps is longer than the training of {total} steps; "
            "lower --warmup_epochs / --warmup_steps or raise --epochs"
        )
    warm = np.linspace(0.0, base, rise)
    angle = np.pi * np.arange(total - rise) / max(total - rise, 1)
    return np.concatenate([warm, final + 0.5 * (base - final) * (1.0 + np.cos(angle))])


def make_optimizer(
    groups: Groups, lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8
) -> torch.optim.AdamW:
    """Build AdamW over `parameter_groups`; on GPUs and CPUs a step is one pass over memory."""
    fused = all(p.device.type in ("cuda", "cpu") for group in groups for p in group["params"])
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    set_learning_rate(optimizer, lr)
    return optimizer


def set_learning_rate(
    optimizer: torch.optim.Optimizer, lr: float, weight_decay: float | None = None
) -> None:
    """Give every group lr * its scale, and the groups that decay at all the new weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        if weight_decay is not None and group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay


def freeze(model: nn.Module, layers: int = 0) -> None:
    """Freeze encoders and fusion of a classifier, before its optimiser is made: a linear probe.

    `fc_norm`, which pre-training does not have, trains with the head and the layer weights. With
    `layers` only the patch embedding and so many blocks of each encoder are frozen, and with all
    blocks their norm. Frozen weights ask for no gradient, so autograd keeps no graph below what
    trains. Frozen modules stay in evaluation mode, without stochastic depth.
    """
    names = ("encoder", "encoder_audio") if layers else ("encoder", "encoder_audio", FUSION)
    frozen: list[Any] = []
    for part in (part for name in names if (part := getattr(model, name, None))):
        is_whole = not layers or layers == len(part.blocks)
        frozen += [part] if is_whole else [part.patch_embed, *part.blocks[:layers]]
    for module in frozen:
        module.requires_grad_(False).eval()
        module.train = lambda mode=True, module=module: module  # `train()` leaves it as it is
    trained, total = num_parameters(model), sum(p.numel() for p in model.parameters())
    numbers = f"{trained:,} of {total:,} parameters train ({100 * trained / total:.1f} %)"
    what = f"{layers} block(s) of each encoder" if layers else "encoders and fusion"
    logger.info("frozen: %s; %s", what, numbers)


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
