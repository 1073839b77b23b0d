"""Attention weights of a model, which its forward pass never makes.

The layers use fused attention, so their weights exist nowhere. They are computed again here from
what the layers were given, outside the models.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicmae.models.layers import Attention, CrossAttention


def attention_weights(layer: nn.Module, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) of a layer.

    Args:
        layer: `Attention`, or `CrossAttention` with a context.
        tokens: (B, N, D), the input of the layer.
        context: (B, M, D), what a `CrossAttention` reads.

    Returns:
        (B, heads, N, M), rows sum to 1; M = N without context.
    """
    if isinstance(layer, CrossAttention):
        if context is None:
            raise ValueError("cross-attention needs the context that it reads, got None")
        query = F.linear(tokens, layer.q.weight, layer.q_bias)
        key = F.linear(context, layer.kv.weight.chunk(2)[0])
    else:
        layer = cast(Attention, layer)
        query_weight, key_weight, _ = layer.qkv.weight.chunk(3)
        query, key = F.linear(tokens, query_weight, layer.q_bias), F.linear(tokens, key_weight)
    query, key = (
        values.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for values in (query, key)
    )
    return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record, while the model runs, the attention of each layer, averaged over its heads.

    Yields:
        Name of the layer -> (B, N, M), filled by the forward pass.
    """
    maps: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (Attention, CrossAttention)):

            def record(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                maps[name] = attention_weights(layer, *inputs).mean(dim=1)

            hooks.append(module.register_forward_pre_hook(record))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Follow attention through a stack (Abnar and Zuidema, 2020, "attention rollout").

    A residual connection counts as half of what a layer reads.

    Args:
        maps: (B, N, N) of each layer, first layer first.

    Returns:
        (B, N, N): how much of every input token is in every output token; rows sum to 1.
    """
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    mixed = identity.expand_as(maps[0])
    for layer in maps:
        mixed = (layer + identity) / 2 @ mixed
    return mixed


def looks(maps: dict[str, Tensor], method: str = "rollout") -> dict[str, Tensor]:
    """Reduce recorded attention to one figure a token.

    Every token of a stream counts alike as a reader, as the model averages them.

    Args:
        maps: of `recorded_attention`.
        method: "rollout" through an encoder's blocks, or "last" for its last block alone.

    Returns:
        (B, N) each, 1 where a token is looked at as if by chance. "video" and "audio": what each
        encoder looks at in its own stream; "video by audio" and "audio by video": what the fusion
        encoder reads in the other one, mean over its layers.
    """
    found: dict[str, Tensor] = {}
    for stream, encoder in (("video", "encoder"), ("audio", "encoder_audio")):
        layers = _of(maps, f"{encoder}.blocks.", "attn")
        if layers:
            mixed = rollout(layers) if method == "rollout" else layers[-1]
            found[stream] = _relative(mixed)
    for name, blocks in (("audio by video", "blocks"), ("video by audio", "blocks_audio")):
        layers = _of(maps, f"encoder_fusion.{blocks}.", "cross_attn")
        if layers:
            found[name] = _relative(torch.stack(layers).mean(dim=0))
    return found


def _of(maps: dict[str, Tensor], prefix: str, layer: str) -> list[Tensor]:
    """Return the maps of a stack in the order of its blocks, in which modules are registered."""
    return [m for name, m in maps.items() if name.startswith(prefix) and name.endswith(f".{layer}")]


def _relative(weights: Tensor) -> Tensor:
    """Average (B, N, M) over the readers, in units of even attention, to (B, M)."""
    return weights.mean(dim=1) * weights.shape[-1]
