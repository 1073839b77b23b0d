"""A model's answers about batches of views, also where one stream is missing.

A model of both streams that gets one only answers in one of two ways:

- "zeros": black frames or digital silence take the place of what is missing;
- "drop": the missing stream is left out: the fusion blocks of the other one skip their cross
  attention, and the head reads zeros for the missing features. Only one encoder is needed.

Batches are video (B, 3, T, H, W) and audio (B, 1, T, F), normalised; None is missing or not read.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hicmae.data.audio import HOP, WINDOW, fbank
from hicmae.data.video import normalise
from hicmae.inference.model import Preprocessing
from hicmae.models.finetune import ACTIVATIONS, HiCMAEClassifier
from hicmae.models.layers import CSBlock


def scores(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> Tensor:
    """Return (B, K) logits or regression outputs of a classifier."""
    model = cast(HiCMAEClassifier, model)
    if model.modality == "av" and (video is None or audio is None):
        fused = features(model, video, audio)["fused"]
        return ACTIVATIONS[model.head_activation](model.head(fused))
    return model(video, audio)


def features(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    """Return the features of each level.

    Returns:
        video_layers (B, L, D), audio_layers (B, L, D): every block's output, after the encoder's
        norm, averaged over its tokens; video (B, D), audio (B, D): their mix by the learned layer
        weights, or the last layer where the model has none; fusion_video (B, D), fusion_audio
        (B, D): averaged tokens of the fusion encoder; fused: what the head reads. Those of a stream
        that is missing or not read are left out.
    """
    model = cast(HiCMAEClassifier, model)
    if model.modality == "av" and video is None and audio is not None:
        return _of_one_stream(model, "audio", audio)
    if model.modality == "av" and audio is None and video is not None:
        return _of_one_stream(model, "video", video)
    # Run the model as it is and keep what its parts return.
    seen: dict[str, Any] = {}
    handles = [
        part.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: out}))
        for name, part in model.named_children()
    ]
    try:
        model.forward_features(video, audio)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for stream, part in (("video", "encoder"), ("audio", "encoder_audio")):
        if part in seen:
            found |= _levels(model, stream, seen[part].levels)
    if "encoder_fusion" in seen:
        means = (tokens.mean(dim=1) for tokens in seen["encoder_fusion"])
        found |= zip(("fusion_video", "fusion_audio"), means, strict=True)
    return found | {"fused": seen["fc_norm"]}


def _of_one_stream(model: HiCMAEClassifier, stream: str, clip: Tensor) -> dict[str, Tensor]:
    """Run the parts of a model of both streams that one stream alone needs."""
    suffix = "" if stream == "video" else "_audio"
    encoder: Any = model.get_submodule(f"encoder{suffix}")
    fusion = model.encoder_fusion
    tokens, levels = encoder(clip, None, range(len(encoder.blocks)), pool=True)
    found = _levels(model, stream, levels)
    for block in fusion.get_submodule(f"blocks{suffix}").children():
        b = cast(CSBlock, block)
        for norm, layer, gamma in (b.norm1, b.attn, b.gamma_1), (b.norm2, b.mlp, b.gamma_2):
            change = layer(norm(tokens))
            tokens = tokens + (change if gamma is None else gamma * change)
    mean = fusion.get_submodule(f"norm{suffix}")(tokens).mean(dim=1)
    parts, place = [torch.zeros_like(mean)] * 4, ("video", "audio").index(stream)
    parts[place], parts[place + 2] = found[stream], mean  # of it alone, and fused
    return {**found, f"fusion_{stream}": mean, "fused": model.fc_norm(torch.cat(parts, dim=-1))}


def _levels(model: HiCMAEClassifier, stream: str, levels: list[Tensor]) -> dict[str, Tensor]:
    """Return all layers of a stream, (B, L, D), and their mix."""
    layers, weights = torch.stack(levels, dim=1), getattr(model, f"{stream}_layer_weights")
    mix = layers[:, -1]  # without hierarchical feature fusion
    if weights is not None:
        mix = torch.einsum("bld,l->bd", layers, weights.softmax(dim=0))
    return {f"{stream}_layers": layers, stream: mix}


def stand_in(stream: str, count: int, clip: Preprocessing, device: torch.device) -> Tensor:
    """Return black frames or digital silence in place of a missing stream, normalised."""
    if stream == "v":
        size = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
        return normalise(torch.zeros(size, dtype=torch.uint8, device=device))
    samples = clip.input_size_audio[0] * HOP + WINDOW
    silence = fbank(torch.zeros(samples), clip.input_size_audio)
    return silence.to(device).expand(count, -1, -1, -1)
