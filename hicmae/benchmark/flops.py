"""Floating-point operations of a training step and of scoring, counted from shapes.

A multiplication and an addition are two. Counted are matrix products, as is usual; norms, softmax
and GELU are not. A backward pass takes two products for each one of the forward pass, or one where
the input needs no gradient. What activation checkpointing or fused attention compute again is not
counted: it is no use to the method.
"""

import math
from collections.abc import Mapping

from torch import nn

from hicmae.models.encoder import CrossModalFusion, ModalityEncoder
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.models.pretrain import HiCMAE, SkipDecoder

Parts = dict[str, float]


def linear(tokens: int, inputs: int, outputs: int) -> float:
    """Count a linear layer."""
    return 2.0 * tokens * inputs * outputs


def block(tokens: int, dim: int, context: int = 0) -> float:
    """Count a block: self-attention and MLP, before that cross-attention if there is a context."""
    own = linear(tokens, dim, 3 * dim) + 4.0 * tokens * tokens * dim + linear(tokens, dim, dim)
    mlp = 2 * linear(tokens, dim, 4 * dim)
    if not context:
        return own + mlp
    queries = 2 * linear(tokens, dim, dim) + linear(context, dim, 2 * dim)
    return own + mlp + queries + 4.0 * tokens * context * dim


def _embedding(encoder: ModalityEncoder, tokens: int) -> float:
    weight = encoder.patch_embed.proj.weight
    return linear(tokens, weight[0].numel(), len(weight))


def _encoder(encoder: ModalityEncoder, tokens: int) -> float:
    return len(encoder.blocks) * block(tokens, len(encoder.norm.weight))


def _fusion(fusion: CrossModalFusion, tokens: int, tokens_audio: int) -> float:
    dim = len(fusion.norm.weight)
    one = block(tokens, dim, tokens_audio) + block(tokens_audio, dim, tokens)
    return len(fusion.blocks) * one


def _decoder(decoder: SkipDecoder, project: nn.Linear, visible: int) -> float:
    """Count decoder blocks with the projections of fused tokens and levels into them."""
    dim, tokens = len(decoder.norm.weight), len(decoder.positions)
    depth = len(decoder.blocks)
    projections = depth * linear(visible, project.in_features, dim)
    return projections + block(tokens, dim) + (depth - 1) * block(tokens, dim, visible)


def _head(decoder: SkipDecoder, visible: int) -> float:
    masked = len(decoder.positions) - visible
    return linear(masked, decoder.head.in_features, decoder.head.out_features)


def pretraining_forward(model: HiCMAE, visible: int, visible_audio: int) -> Parts:
    """Count one clip's forward pass of a pre-training model by part.

    Args:
        model: a `HiCMAE`.
        visible: video tokens that are not masked.
        visible_audio: audio tokens that are not masked.
    """
    video, audio = model.encoder, model.encoder_audio
    return {
        "embedding": _embedding(video, visible) + _embedding(audio, visible_audio),
        "video encoder": _encoder(video, visible),
        "audio encoder": _encoder(audio, visible_audio),
        "fusion": _fusion(model.encoder_fusion, visible, visible_audio),
        "video decoder": _decoder(model.decoder, model.encoder_to_decoder, visible),
        "audio decoder": _decoder(
            model.decoder_audio, model.encoder_to_decoder_audio, visible_audio
        ),
        "heads": _head(model.decoder, visible) + _head(model.decoder_audio, visible_audio),
    }


def pretrain_flops(model: HiCMAE, mask_ratio: float = 0.9, mask_ratio_audio: float = 0.8) -> Parts:
    """Count one clip's pre-training step by part, forward and backward."""
    rows, *cells = model.encoder.patch_embed.grid
    tokens, tokens_audio = (len(e.positions) for e in (model.encoder, model.encoder_audio))
    visible = tokens - rows * int(mask_ratio * math.prod(cells))  # a tube mask
    visible_audio = tokens_audio - int(mask_ratio_audio * tokens_audio)
    return training_step(pretraining_forward(model, visible, visible_audio))


def classifier_forward(model: HiCMAEClassifier) -> Parts:
    """Count one view's forward pass of a `HiCMAEClassifier` of both modalities by part."""
    video, audio = model.encoder, model.encoder_audio
    tokens, tokens_audio = len(video.positions), len(audio.positions)
    return {
        "embedding": _embedding(video, tokens) + _embedding(audio, tokens_audio),
        "video encoder": _encoder(video, tokens),
        "audio encoder": _encoder(audio, tokens_audio),
        "fusion": _fusion(model.encoder_fusion, tokens, tokens_audio),
        "heads": linear(1, model.head.in_features, model.head.out_features),
    }


def training_step(forward: Mapping[str, float]) -> Parts:
    """Count forward and backward pass; the clips themselves need no gradient."""
    return {part: count * (2 if part == "embedding" else 3) for part, count in forward.items()}


def total(parts: Mapping[str, float]) -> float:
    """Add up the parts."""
    return math.fsum(parts.values())
