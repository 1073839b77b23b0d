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
from hicmae.models.finetune import ACTIVATIONS, HiCMAEClassifier, mix_layers
from hicmae.models.layers import Block

SUFFIXES = {"video": "", "audio": "_audio"}  # of the names of a stream's parts


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
    given = {"video": video, "audio": audio}
    streams = [name for name in given if name[0] in model.modality]
    found, last = dict[str, Tensor](), dict[str, Tensor]()
    for name in streams:
        if given[name] is None:
            continue
        encoder: Any = model.get_submodule(f"encoder{SUFFIXES[name]}")
        last[name], levels = encoder(given[name], None, range(len(encoder.blocks)), pool=True)
        mix = mix_layers(levels, getattr(model, f"{name}_layer_weights"))
        found |= {f"{name}_layers": torch.stack(levels, dim=1), name: mix}
    if len(last) == 2:
        last = dict(zip(last, model.encoder_fusion(*last.values()), strict=True))
    elif model.modality == "av":
        last = {name: _fused_alone(model, name, tokens) for name, tokens in last.items()}
    means = {name: tokens.mean(dim=1) for name, tokens in last.items()}
    nothing = torch.zeros_like(next(iter(means.values())))
    parts = [means.get(name, nothing) for name in streams]
    if not model.repeats_last:
        parts = [found.get(name, nothing) for name in streams] + parts
    if model.modality == "av":
        found |= {f"fusion_{name}": mean for name, mean in means.items()}
    return found | {"fused": model.fc_norm(torch.cat(parts, dim=-1))}


def _fused_alone(model: HiCMAEClassifier, stream: str, tokens: Tensor) -> Tensor:
    """Run the fusion encoder on tokens (B, N, D) of one stream, without its cross attention."""
    fusion, suffix = model.encoder_fusion, SUFFIXES[stream]
    for block in fusion.get_submodule(f"blocks{suffix}").children():
        tokens = Block.forward(cast(Block, block), tokens)
    return cast(Tensor, fusion.get_submodule(f"norm{suffix}")(tokens))


def stand_in(stream: str, count: int, clip: Preprocessing, device: torch.device) -> Tensor:
    """Return black frames or digital silence in place of a missing stream, normalised."""
    if stream == "v":
        size = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
        return normalise(torch.zeros(size, dtype=torch.uint8, device=device))
    samples = clip.input_size_audio[0] * HOP + WINDOW
    silence = fbank(torch.zeros(samples), clip.input_size_audio)
    return silence.to(device).expand(count, -1, -1, -1)
