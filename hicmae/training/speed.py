"""What may be traded for speed or memory without changing what is computed: one flag each."""

import functools
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hicmae.models.layers import Block, CSBlock


def compiled(model: nn.Module, cuda_graphs: bool = False) -> nn.Module:
    """Return the model as torch.compile runs it, for batches of one size.

    Parameters are shared with the model, whose own state dict keeps its names: save that one.

    Args:
        model: may be wrapped by DistributedDataParallel.
        cuda_graphs: replay the kernels of a whole pass with one launch (GPUs only).
    """
    mode = "reduce-overhead" if cuda_graphs else None
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of every transformer block and compute it anew in the backward pass.

    Gradients stay the same bit by bit. The model's parameter names do not change.
    """
    for module in model.modules():
        if isinstance(module, (Block, CSBlock)):
            # An instance's own method hides that of its class.
            module.forward = functools.partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False
            )
