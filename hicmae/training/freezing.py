"""Frozen use of a pre-trained model: a linear probe, or the lower layers kept as they are.

A frozen weight asks for no gradient, so that autograd keeps no graph of what lies below the first
weight that trains, DistributedDataParallel does not exchange it, and the optimiser does not know
it. Frozen modules stay in evaluation mode: no stochastic depth.
"""

import logging
from collections.abc import Iterator
from typing import cast

from torch import nn

from hicmae.models.encoder import ModalityEncoder

logger = logging.getLogger(__name__)

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
