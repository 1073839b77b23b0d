"""Where each modality looks, drawn over the frames and the spectrogram.

The layers use fused attention, so their weights exist nowhere: they are computed again here from
what the layers were given.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor, nn

from hicmae.inference.style import STYLE
from hicmae.models.encoder import ModalityEncoder
from hicmae.models.layers import Attention, CrossAttention
from hicmae.models.losses import unnormalize
from hicmae.visualize.clips import Opened, batches, draw_frame, draw_spectrogram, evenly, open_clips

# Rows of the picture: label, map over the frames, map over the spectrogram. Cross-attention is
# drawn over what is read: over the frames, what the audio reads in them.
ROWS = (
    ("input", "", ""),
    ("self-\nattention", "video", "audio"),
    ("cross-\nattention", "video by audio", "audio by video"),
)
# A map from 0 to its strongest point, the picture shining through.
HEAT: dict[str, Any] = {"cmap": "inferno", "alpha": 0.6, "vmin": 0.0, "interpolation": "bilinear"}


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


class Looked(NamedTuple):
    """A clip and where a model looks in it."""

    title: str
    video: np.ndarray | None  # (3, T, H, W) in 0..1
    audio: np.ndarray | None  # (T, F)
    maps: dict[str, np.ndarray]  # of `looks`, on the grid of tokens


@torch.inference_mode()
def look(opened: Opened) -> list[Looked]:
    """Run a model over clips and see where it looks."""
    results = []
    for batch in batches(opened, batch_size=1):
        with recorded_attention(opened.model) as maps:
            scores = opened.model(batch.video, batch.audio)
        grids = {}
        for name, weights in looks(maps).items():
            encoder = "encoder" if name.startswith("video") else "encoder_audio"
            grid = cast(ModalityEncoder, opened.model.get_submodule(encoder)).patch_embed.grid
            grids[name] = weights[0].reshape(grid).float().cpu().numpy()
        title, video, audio = "", batch.video, batch.audio
        if opened.settings["task"] == "classification":
            truth, guess = (opened.names[int(k)] for k in (batch.target[0], scores.argmax()))
            title = f"{truth}\npredicted\n{guess}"
        pixels = None if video is None else unnormalize(video)[0].clamp(0, 1).cpu().numpy()
        sound = None if audio is None else audio[0, 0].cpu().numpy()
        results.append(Looked(title, pixels, sound, grids))
    return results


def attention_figure(clips: Sequence[Looked]) -> Figure:
    """Draw clips of one shape, each with its maps below it: one frame of each shown tubelet."""
    first = clips[0]
    rows = [row for row in ROWS if not row[1] or {row[1], row[2]} & first.maps.keys()]
    places, depth = [], 1  # shown tubelets, and the frames of each
    if first.video is not None:
        length = len(first.maps["video"])
        places, depth = evenly(length), first.video.shape[1] // length
    # Frames and a scale, then the spectrogram and a scale, as far as the model reads them.
    widths = [1.0] * len(places) + [0.07] * bool(places)
    if first.audio is not None:
        widths += [0.3] * bool(places) + [2.3, 0.07]  # room for labels between the two
    lines = len(rows) * len(clips)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(
            (0.98 * sum(widths) + 2.0, 1.02 * lines + 0.55),
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01),
        )
        grid = figure.subplots(lines, len(widths), width_ratios=widths, squeeze=False)
        for axes, (clip, (label, *names)) in zip(grid, itertools.product(clips, rows), strict=True):
            label = label if names[0] else clip.title or label
            axes[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
            heat, heat_audio = (clip.maps.get(name) for name in names)
            for empty in axes[len(places) + 1 : -2]:
                empty.set_axis_off()
            if clip.video is not None:
                for panel, place in zip(axes, places, strict=False):
                    image = _draw_frame(panel, clip.video[:, place * depth], heat, place)
                _draw_scale(axes[len(places)], image)
            if clip.audio is not None:
                _draw_scale(axes[-1], _draw_audio(axes[-2], clip.audio, heat_audio))
        for panel, place in zip(grid[0], places, strict=False):
            panel.set_title(f"frame {place * depth}")
        if first.audio is not None:
            grid[0, -2].set_title("log-mel spectrogram")
            grid[-1, -2].set_xlabel("time (s)")
            grid[-1, -2].tick_params(labelbottom=True)
    return figure


def _draw_frame(axes: Axes, frame: np.ndarray, heat: np.ndarray | None, place: int) -> Any:
    """Draw a frame (3, H, W), below a map if there is one, which is returned."""
    size: dict[str, Any] = {"extent": (0, frame.shape[2], frame.shape[1], 0)}
    picture = np.moveaxis(frame, 0, -1)
    shown = picture if heat is None else picture.mean(-1)
    draw_frame(axes, shown, cmap="gray", vmin=0, vmax=1, **size)
    return None if heat is None else axes.imshow(heat[place], vmax=heat.max(), **size, **HEAT)


def _draw_audio(axes: Axes, audio: np.ndarray, heat: np.ndarray | None) -> Any:
    """Draw a spectrogram (T, F), below a map if there is one, which is returned."""
    low, high = np.percentile(audio, (1, 99))
    colours = "viridis" if heat is None else "gray"
    draw_spectrogram(axes, audio, audio.shape, vmin=low, vmax=high, cmap=colours)
    axes.tick_params(labelbottom=False)
    if heat is None:
        return None
    return draw_spectrogram(axes, heat, audio.shape, vmax=heat.max(), **HEAT)


def _draw_scale(axes: Axes, image: Any) -> None:
    """Draw the scale of a map; where there is no map, its place stays empty."""
    if image is None:
        return axes.set_axis_off()
    bar = axes.figure.colorbar(image, cax=axes)
    bar.set_label("× uniform", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def attention(num_clips: int = 1, **source: Any) -> Figure:
    """Draw where each modality looks, and what the other one reads in the fusion encoder."""
    if source.get("clip") is None and num_clips < 1:
        raise ValueError(f"--num_clips must be at least 1 here, got {num_clips}")
    return attention_figure(look(open_clips("", num_clips=num_clips, **source)))
