"""Where each modality looks, drawn over the frames and the spectrogram.

The layers use fused attention, so their weights exist nowhere: they are computed again here from
what the layers were given.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from hicmae.config import Options
from hicmae.data.video import normalise
from hicmae.inference.clips import Clip
from hicmae.inference.commands import read_items
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.inference.sources import AskedClip, clip_and_sound
from hicmae.inference.style import styled_images
from hicmae.models.layers import Attention
from hicmae.visualize import Clips
from hicmae.visualize.clips import HOP_SECONDS, choose_lines, grid_of_clips

# Maps of a model, by names of the layers that they are of: beginning and end.
LAYERS = {
    "video": ("encoder.blocks.", ".attn"),
    "audio": ("encoder_audio.blocks.", ".attn"),
    "audio by video": ("encoder_fusion.blocks.", ".cross_attn"),
    "video by audio": ("encoder_fusion.blocks_audio.", ".cross_attn"),
}
# A row: its title, and the maps over its frames and over its spectrogram.
ROWS = (
    ("input", "", ""),
    ("self-\nattention", "video", "audio"),
    ("cross-\nattention", "video by audio", "audio by video"),
)


def attention_weights(layer: Attention, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) of each head of an `Attention`, (B, heads, N, M).

    Tokens are (B, N, D), the context (B, M, D); without one M is N. Rows sum to 1.
    """
    if context is None:
        query_weight, key_weight, _ = layer.qkv.weight.chunk(3)
    else:
        query_weight, key_weight = layer.q.weight, layer.kv.weight.chunk(2)[0]
    query = F.linear(tokens, query_weight, layer.q_bias)
    key = F.linear(tokens if context is None else context, key_weight)
    query = rearrange(query, "b n (h d) -> b h n d", h=layer.num_heads)
    key = rearrange(key, "b m (h d) -> b h d m", h=layer.num_heads)
    return (query @ key / query.shape[-1] ** 0.5).softmax(dim=-1)


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield name of a layer -> (B, N, M), mean over its heads, filled by the forward pass."""
    maps: dict[str, Tensor] = {}

    def record(name: str, layer: Attention, inputs: tuple[Tensor, ...]) -> None:
        maps[name] = attention_weights(layer, *inputs).mean(dim=1)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Attention):
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

    Returns (B, N) each, in units of even attention: "video" and "audio", where each encoder looks
    in its own stream, by `rollout`; "video by audio" and "audio by video", what the fusion encoder
    reads in the other one, mean over its layers.
    """
    found: dict[str, Tensor] = {}
    for name, (begin, end) in LAYERS.items():
        layers = [m for n, m in maps.items() if n.startswith(begin) and n.endswith(end)]
        if layers:
            weights = rollout(layers) if end == ".attn" else torch.stack(layers).mean(dim=0)
            found[name] = weights.mean(dim=1) * weights.shape[-1]
    return found


def attention(asked: Clips) -> Figure:
    """Draw where each modality looks, and what the other one reads in the fusion encoder.

    Of each clip the first window is drawn; without a number of clips the first of the list.
    """
    recognizer = EmotionRecognizer.from_checkpoint(asked.checkpoint, asked.device, "fp32")
    items = read_items(asked.data_path, asked.data_root)
    lines = choose_lines(len(items), asked.num_clips, asked.seed or 0) if asked.num_clips else [0]
    return attention_figure([_look(recognizer, items[line][0]) for line in lines])


@torch.inference_mode()
def _look(recognizer: EmotionRecognizer, item: AskedClip) -> dict[str, np.ndarray]:
    """Return the `looks` at a clip on the grids of tokens, and its "frames" and "spectrogram"."""
    model, config = cast(Any, recognizer.model), recognizer.config
    clip = Clip(*clip_and_sound(item), config, config.modality, Options(faces="cut"))
    clip.prepare()
    view = next(clip.views())
    device = recognizer.precision.device
    video = None if view.video is None else normalise(view.video[None].to(device))
    audio = None if view.audio is None else view.audio[None].to(device)
    with recorded_attention(model) as maps:
        model.features(video, audio)
    found: dict[str, np.ndarray] = {}
    for name, weights in looks(maps).items():
        encoder = "encoder" if name.startswith("video") else "encoder_audio"
        grid = model.get_submodule(encoder).patch_embed.grid
        found[name] = weights[0].reshape(grid).float().cpu().numpy()
    if view.video is not None:
        found["frames"] = view.video.numpy().transpose(1, 2, 3, 0)
    if view.audio is not None:
        found["spectrogram"] = view.audio[0].numpy().T
    return found


@styled_images
def attention_figure(clips: Sequence[dict[str, np.ndarray]]) -> Figure:
    """Draw clips of one model: as they are, and with their maps laid over them."""
    rows = [(clip, *row) for clip in clips for row in ROWS if {row[1], row[2]} & {"", *clip}]
    titles, length = [title for _, title, *_ in rows], len(clips[0].get("frames", ()))
    figure, grid, frames = grid_of_clips(titles, length, "spectrogram" in clips[0])
    for axes, (clip, _, over_frames, over_sound) in zip(grid, rows, strict=True):
        for panel, frame in zip(axes, frames, strict=False):
            _overlay(panel, clip["frames"][frame], clip.get(over_frames), frame / frames[-1])
        if "spectrogram" in clip:
            _overlay(axes[-1], clip["spectrogram"], clip.get(over_sound))
    return figure


def _overlay(
    panel: Axes, picture: np.ndarray, heat: np.ndarray | None, place: float | None = None
) -> None:
    """Draw a frame (H, W, 3) or a spectrogram (F, T), grey below a map from 0 to its maximum.

    The map is (t, h, w) of a frame, which is at `place`, 0 to 1, of the clip; else (t, f).
    """
    height, width = picture.shape[:2]
    look: Any = {"extent": (0, width, height, 0), "aspect": "auto"}
    if place is None:
        look |= {"extent": (0, width * HOP_SECONDS, 0, height), "origin": "lower"}
    if heat is None:
        panel.imshow(picture, cmap="viridis", **look)  # frames have colours of their own
        return
    now = heat.T if place is None else heat[min(int(place * len(heat)), len(heat) - 1)]
    panel.imshow(picture if place is None else picture.mean(-1), cmap="gray", **look)
    look |= {"vmin": 0.0, "vmax": heat.max(), "interpolation": "bilinear"}
    panel.imshow(now, cmap="inferno", alpha=0.6, **look)
