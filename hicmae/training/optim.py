"""Optimiser: weight-decay groups, layer decay, AdamW, warm-up + cosine schedule.

Frozen use of a pre-trained model: a linear probe, or the lower layers kept as they are.

A frozen weight asks for no gradient, so that autograd keeps no graph of what lies below the first
weight that trains, DistributedDataParallel does not exchange it, and the optimiser does not know
it. Frozen modules stay in evaluation mode: no stochastic depth.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from hicmae.models.encoder import ModalityEncoder

logger = logging.getLogger(__name__)


if TYPE_CHECKING:
    from hicmae.training.run import Precision


class Optimization(NamedTuple):
    """All that turns gradients into steps."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: "Precision"
    lr: np.ndarray  # one value a step
    weight_decay: np.ndarray  # one value a step
    accum_iter: int = 1
    clip_grad: float | None = None
    layer_scales: Mapping[str, float] | None = None  # to show, of `optim.layer_scales`


NO_DECAY_NAMES = ("pos_embed", "mask_token", "mask_token_audio")


_BLOCK = re.compile(r"(encoder|encoder_audio|encoder_fusion)\.blocks(?:_audio)?\.(\d+)\.")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of equal weight decay and learning-rate scale.

    Args:
        model: pre-training model or classifier; frozen parameters are left out.
        weight_decay: decay of weight matrices and kernels; 1-d parameters, biases, position
            tables and mask tokens get none.
        layer_decay: learning-rate factor from one layer to the one below it, in (0, 1];
            None for one learning rate everywhere.

    Returns:
        One dictionary per (scale, decay) pair with keys `params`, `weight_decay`, `lr_scale` and
        `names` (in the order of `params`), in the order in which the model first uses each pair.
    """
    if layer_decay is not None and not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}; 1 turns it off")
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter, so there is nothing to optimise")
    depths = block_counts(name for name, _ in model.named_parameters())
    own_list = getattr(model, "no_weight_decay", None)
    listed = set(own_list()) if callable(own_list) else set()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trainable:
        decay = 0.0 if _is_undecayed(name, parameter, listed) else weight_decay
        scale = 1.0 if layer_decay is None else layer_scale(name, depths, layer_decay)
        group = groups.setdefault(
            (scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _is_undecayed(name: str, parameter: nn.Parameter, listed: set[str]) -> bool:
    if parameter.ndim <= 1 or name.endswith(".bias") or name in listed:
        return True
    return name.rsplit(".", 1)[-1] in NO_DECAY_NAMES


def block_counts(names: Iterable[str]) -> dict[str, int]:
    """Count the blocks of each encoder from parameter names.

    Returns:
        Depth of `encoder`, `encoder_audio` and `encoder_fusion`; 0 for one that the model lacks.
    """
    counts = {"encoder": 0, "encoder_audio": 0, "encoder_fusion": 0}
    for name in names:
        match = _BLOCK.match(name)
        if match:
            counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
    return counts


def layer_id(name: str, depths: dict[str, int]) -> int:
    """Return the layer a parameter belongs to, counted from the input.

    Args:
        name: parameter name as in the state dict.
        depths: result of `block_counts`.

    Returns:
        0 for patch embedding, i + 1 for encoder block i, L + i + 1 for fusion block i with L the
        deeper encoder, and n + 1 with n = L + fusion blocks for everything else.
    """
    deepest = max(depths["encoder"], depths["encoder_audio"])
    if re.match(r"encoder(_audio)?\.patch_embed\.", name):
        return 0
    match = _BLOCK.match(name)
    if match is None:
        return deepest + depths["encoder_fusion"] + 1
    return int(match[2]) + 1 + (deepest if match[1] == "encoder_fusion" else 0)


def layer_scale(name: str, depths: dict[str, int], layer_decay: float) -> float:
    """Return layer_decay ** (n + 1 - id), the parameter's share of the learning rate, in (0, 1]."""
    last = max(depths["encoder"], depths["encoder_audio"]) + depths["encoder_fusion"] + 1
    return layer_decay ** (last - layer_id(name, depths))


def layer_scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    """Return the learning-rate scale of every layer that trains, to be shown, from the input up.

    Returns:
        Scales by names such as `layer_00_patch_embed`, `layer_03_block_2` (of both encoders),
        `layer_11_fusion_0` and `layer_13_head`; {} where all are equal.
    """
    depths = block_counts(name for name, _ in model.named_parameters())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    layers = {layer_id(n, depths): _layer_name(n) for n in trained}
    scales = {layer_id(n, depths): layer_scale(n, depths, layer_decay or 1.0) for n in trained}
    if len(set(scales.values())) < 2:
        return {}
    return {f"layer_{number:02d}_{layers[number]}": scales[number] for number in sorted(scales)}


def _layer_name(name: str) -> str:
    if re.match(r"encoder(_audio)?\.patch_embed\.", name):
        return "patch_embed"
    match = _BLOCK.match(name)
    if match is None:
        return "head"
    return f"{'fusion' if match[1] == 'encoder_fusion' else 'block'}_{match[2]}"


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    start_warmup: float = 0.0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """Return one value per optimisation step: a linear rise to `base`, then half a cosine down.

    Args:
        base: value after warm-up.
        final: value the cosine approaches; it would be reached one step after the last.
        epochs: length of the whole training.
        steps_per_epoch: optimisation steps in an epoch.
        warmup_epochs: length of the rise.
        start_warmup: first value of the rise.
        warmup_steps: length of the rise in steps; replaces `warmup_epochs` when positive.

    Returns:
        (epochs * steps_per_epoch,) float64.
    """
    total = epochs * steps_per_epoch
    rise = warmup_steps if warmup_steps > 0 else warmup_epochs * steps_per_epoch
    if total <= 0:
        raise ValueError(
            f"a schedule needs at least one step, got {epochs} epochs of {steps_per_epoch} steps"
        )
    if rise > total:
        raise ValueError(
            f"warm-up of {rise} steps is longer than the training of {total} steps; "
            "lower --warmup_epochs / --warmup_steps or raise --epochs"
        )
    warm = np.linspace(start_warmup, base, rise)
    angle = np.pi * np.arange(total - rise) / max(total - rise, 1)
    return np.concatenate([warm, final + 0.5 * (base - final) * (1.0 + np.cos(angle))])


def make_optimizer(
    groups: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Build AdamW over `parameter_groups`, each group starting at lr * its scale.

    Args:
        groups: result of `parameter_groups`.
        lr: learning rate of the groups of scale 1, already scaled with the total batch.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        fused: one pass over memory for the whole step; None: where torch has it, on GPUs and CPUs.
    """
    if fused is None:
        kinds = {(p.device.type, p.is_floating_point()) for g in groups for p in g["params"]}
        fused = kinds <= {("cuda", True), ("cpu", True)}
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


ENCODERS = ("encoder", "encoder_audio")


FUSION = "encoder_fusion"


def freeze(model: nn.Module, linear_probe: bool = False, layers: int = 0) -> None:
    """Freeze parts of a classifier, before its optimiser is made, and log what is left to train.

    Args:
        model: of any modality; the weights to keep are loaded.
        linear_probe: freeze encoders and fusion; `fc_norm`, which the head reads through and which
            pre-training does not have, trains with the head and the layer weights.
        layers: freeze the patch embedding and so many blocks of each encoder. The encoder's norm
            is applied to every level, so it is frozen only together with the last block.
    """
    if not linear_probe and not layers:
        return
    for module in _probed(model) if linear_probe else _lower(model, layers):
        hold(module)
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    kept = "encoders and fusion" if linear_probe else f"{layers} block(s) of each encoder"
    share = 100 * trained / total
    text = "frozen: %s; %s of %s parameters train (%.1f %%)"
    logger.info(text, kept, f"{trained:,}", f"{total:,}", share)


def hold(module: nn.Module) -> None:
    """Keep a module as it is: no gradients, and `train()` leaves it in evaluation mode."""
    module.requires_grad_(False).eval()
    # An instance's own method hides that of its class.
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def _probed(model: nn.Module) -> Iterator[nn.Module]:
    return (getattr(model, name) for name in (*ENCODERS, FUSION) if hasattr(model, name))


def _lower(model: nn.Module, layers: int) -> Iterator[nn.Module]:
    for name in ENCODERS:
        if not hasattr(model, name):
            continue
        encoder = cast(ModalityEncoder, getattr(model, name))
        if layers == len(encoder.blocks):
            yield encoder
        else:
            yield encoder.patch_embed
            yield from encoder.blocks[:layers]
