"""Where each modality looks, drawn over the frames and the spectrogram.

The layers use fused attention, so their weights exist nowhere: they are computed again here from
what the layers were given.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor, nn

from hicmae.models.encoder import ModalityEncoder
from hicmae.models.layers import Attention, CrossAttention
from hicmae.models.losses import unnormalize
from hicmae.visualize.clips import Opened, Row, batches, clips_figure, open_clips


def attention_weights(layer: nn.Module, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) of each head of an `Attention` or `CrossAttention`.

    Tokens are (B, N, D), and (B, M, D) the context that a `CrossAttention` reads.

    Returns:
        (B, heads, N, M), rows sum to 1; M = N without context.
    """
    if isinstance(layer, CrossAttention):
        query_weight, key_weight = layer.q.weight, layer.kv.weight.chunk(2)[0]
    else:
        layer = cast(Attention, layer)
        query_weight, key_weight, _ = layer.qkv.weight.chunk(3)
    query = F.linear(tokens, query_weight, layer.q_bias)
    key = F.linear(tokens if context is None else context, key_weight)
    query = rearrange(query, "b n (h d) -> b h n d", h=layer.num_heads)
    key = rearrange(key, "b m (h d) -> b h d m", h=layer.num_heads)
    return (query @ key / query.shape[-1] ** 0.5).softmax(dim=-1)


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield name of a layer -> (B, N, M), mean over its heads, filled by the forward pass."""
    maps: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maps[name] = attention_weights(layer, *inputs).mean(dim=1)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, (Attention, CrossAttention)):
                hooks.enter_context(module.register_forward_pre_hook(partial(record, name)))
        yield maps


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Follow attention through a stack (Abnar and Zuidema, 2020, "attention rollout").

    Takes (B, N, N) of each layer, first layer first; a residual connection counts as half of what
    a layer reads. Returns (B, N, N): how much of every input token is in every output token; rows
    sum to 1.
    """
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    mixed = identity.expand_as(maps[0])
    for layer in maps:
        mixed = (layer + identity) / 2 @ mixed
    return mixed


def looks(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce recorded attention to one number a token, the mean over all tokens that read it.

    Returns:
        (B, N) each, in units of even attention: "video" and "audio", where each encoder looks in
        its own stream, by `rollout`; "video by audio" and "audio by video", what the fusion encoder
        reads in the other one, mean over its layers.
    """
    found: dict[str, Tensor] = {}
    for name, blocks, layer in (
        ("video", "encoder.blocks.", ".attn"),
        ("audio", "encoder_audio.blocks.", ".attn"),
        ("audio by video", "encoder_fusion.blocks.", ".cross_attn"),
        ("video by audio", "encoder_fusion.blocks_audio.", ".cross_attn"),
    ):
        layers = [m for n, m in maps.items() if n.startswith(blocks) and n.endswith(layer)]
        if layers:
            weights = rollout(layers) if layer == ".attn" else torch.stack(layers).mean(dim=0)
            found[name] = weights.mean(dim=1) * weights.shape[-1]
    return found


@torch.inference_mode()
def look(opened: Opened) -> list[list[Row]]:
    """Run a model over clips; return rows with each clip, its own attention, and the crossed one.

    Cross-attention is laid over what is read: over the frames, what the audio reads in them.
    """
    clips = []
    for batch in batches(opened, batch_size=1):
        with recorded_attention(opened.model) as maps:
            scores = opened.model(batch.video, batch.audio)
        heat = {}
        for name, weights in looks(maps).items():
            encoder = "encoder" if name.startswith("video") else "encoder_audio"
            grid = cast(ModalityEncoder, opened.model.get_submodule(encoder)).patch_embed.grid
            heat[name] = weights[0].reshape(grid).float().cpu().numpy()
        title, video, audio = "input", batch.video, batch.audio
        if opened.settings["task"] == "classification":
            truth, guess = (opened.names[int(k)] for k in (batch.target[0], scores.argmax()))
            title = f"{truth}\npredicted\n{guess}"
        pixels = None if video is None else unnormalize(video)[0].clamp(0, 1).cpu()
        clip = pixels, None if audio is None else audio[0, 0].cpu()
        own = heat.get("video"), heat.get("audio")
        rows = [Row(title, *clip), Row("self-\nattention", *clip, *own)]
        if opened.settings["modality"] == "av":
            crossed = heat["video by audio"], heat["audio by video"]
            rows.append(Row("cross-\nattention", *clip, *crossed))
        clips.append(rows)
    return clips


def attention(num_clips: int = 1, **source: Any) -> Figure:
    """Draw where each modality looks, and what the other one reads in the fusion encoder."""
    return clips_figure(look(open_clips("", num_clips=num_clips, **source)))
