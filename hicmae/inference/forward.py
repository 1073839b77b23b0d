"""Scores and features of a batch of views, also where one stream is missing.

A model of both streams that gets one only answers in one of two ways:

- "zeros": black frames or digital silence take the place of what is missing;
- "drop": the missing stream is left out: the fusion blocks of the other one skip their cross
  attention, and the head reads zeros for the missing features. Only one encoder is needed.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hicmae.data.audio import HOP, SAMPLE_RATE, WINDOW, fbank
from hicmae.data.video import normalise
from hicmae.inference.model_config import Preprocessing
from hicmae.models.finetune import ACTIVATIONS, HiCMAEClassifier
from hicmae.models.layers import CSBlock


def scores(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> Tensor:
    """Return (B, K) logits or regression outputs.

    Args:
        model: classifier.
        video: (B, 3, T, H, W) normalised; None where it is missing or not read.
        audio: (B, 1, T, F) normalised; None likewise.
    """
    model = cast(HiCMAEClassifier, model)
    given = ("v" if video is not None else "") + ("a" if audio is not None else "")
    if set(given) == set(model.modality):
        return model(video, audio)
    fused = features(model, video, audio)["fused"]
    return ACTIVATIONS[model.head_activation](model.head(fused))


def features(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    """Return the features of each level.

    Returns:
        video_layers (B, L, D), audio_layers (B, L, D): every block's output, after the encoder's
        norm, averaged over its tokens; video (B, D), audio (B, D): their mix by the learned layer
        weights, or the last layer where the model has none; fusion_video (B, D), fusion_audio
        (B, D): averaged tokens of the fusion encoder; fused: what the head reads. Those of a stream
        that is missing or not read are left out.
    """
    if video is None and audio is None:
        raise ValueError("neither video nor audio is given")
    lacks_one = model.modality == "av" and (video is None or audio is None)
    outputs = _one_stream(model, video, audio) if lacks_one else _observed(model, video, audio)
    found: dict[str, Tensor] = {}
    for stream, name in (("video", "encoder"), ("audio", "encoder_audio")):
        if name in outputs:
            layers = torch.stack(outputs[name].levels, dim=1)
            found[f"{stream}_layers"] = layers
            found[stream] = _mixed(model, stream, layers)
    for stream, tokens in outputs.get("encoder_fusion", {}).items():
        found[f"fusion_{stream}"] = tokens.mean(dim=1)
    found["fused"] = outputs["fc_norm"]
    return found


def _observed(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the model as it is and keep what its parts return, by their names."""
    seen: dict[str, Any] = {}
    names = [
        n
        for n in ("encoder", "encoder_audio", "encoder_fusion", "fc_norm")
        if getattr(model, n, None) is not None
    ]
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        cast(HiCMAEClassifier, model).forward_features(video, audio)
    finally:
        for handle in handles:
            handle.remove()
    if "encoder_fusion" in seen:
        seen["encoder_fusion"] = dict(zip(("video", "audio"), seen["encoder_fusion"], strict=True))
    return seen


def _one_stream(model: nn.Module, video: Tensor | None, audio: Tensor | None) -> dict[str, Any]:
    """Run the parts of a model of both streams that one stream alone needs."""
    model = cast(HiCMAEClassifier, model)
    stream, name, clip = ("video", "encoder", video)
    if clip is None:
        stream, name, clip = ("audio", "encoder_audio", audio)
    encoder, fusion = getattr(model, name), model.encoder_fusion
    output = encoder(clip, None, range(len(encoder.blocks)), pool=True)
    tokens = output.tokens
    for block in fusion.blocks if stream == "video" else fusion.blocks_audio:
        tokens = _without_context(cast(CSBlock, block), tokens)
    tokens = (fusion.norm if stream == "video" else fusion.norm_audio)(tokens)
    weighted = _mixed(model, stream, torch.stack(output.levels, dim=1))
    mean = tokens.mean(dim=1)
    nothing = torch.zeros_like(mean)
    parts = [weighted, nothing, mean, nothing]  # video, audio, fused video, fused audio
    if stream == "audio":
        parts = [nothing, weighted, nothing, mean]
    fused = model.fc_norm(torch.cat(parts, dim=-1))
    return {name: output, "encoder_fusion": {stream: tokens}, "fc_norm": fused}


def _mixed(model: nn.Module, stream: str, layers: Tensor) -> Tensor:
    """Mix layers (B, L, D) by the model's weights of a stream, if it has any, to (B, D)."""
    weights = getattr(model, f"{stream}_layer_weights")
    if weights is None:  # without hierarchical feature fusion
        return layers[:, -1]
    return torch.einsum("bld,l->bd", layers, weights.softmax(dim=0))


def stand_in(stream: str, count: int, clip: Preprocessing, device: torch.device) -> Tensor:
    """Return black frames or digital silence in place of a missing stream, normalised."""
    if stream == "v":
        size = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
        return normalise(torch.zeros(size, dtype=torch.uint8, device=device))
    steps, mel_bins = clip.input_size_audio
    silence = fbank(torch.zeros(steps * HOP + WINDOW), SAMPLE_RATE, mel_bins, steps)
    return silence.to(device).expand(count, -1, -1, -1)


def _without_context(block: CSBlock, tokens: Tensor) -> Tensor:
    """Run a block of the fusion encoder without its cross attention."""
    attended = block.attn(block.norm1(tokens))
    tokens = tokens + (attended if block.gamma_1 is None else block.gamma_1 * attended)
    mapped = block.mlp(block.norm2(tokens))
    return tokens + (mapped if block.gamma_2 is None else block.gamma_2 * mapped)
