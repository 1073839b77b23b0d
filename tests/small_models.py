"""Tiny models of both stages and clips for them."""

import timm
import torch

import hicmae  # noqa: F401  (registers the models)

# Every axis and depth differs, so a swapped one cannot pass.
GEOMETRY = {"num_frames": 4, "img_size": (32, 48), "img_size_audio": (64, 32)}
DEPTHS = {
    "encoder_depth": 3,
    "encoder_depth_audio": 4,
    "decoder_depth": 3,
    "decoder_depth_audio": 3,
    "encoder_fusion_depth": 2,
    "return_intermediate_features": (0, 2),
}


def pretraining_model(**options):
    torch.manual_seed(0)
    name = "pretrain_hicmae_dim128_patch16_160_a256"
    return timm.create_model(name, **{**GEOMETRY, **DEPTHS, **options})


def classifier(**options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "depth": 2, "depth_audio": 3, **GEOMETRY, **options}
    return timm.create_model("avit_dim128_patch16_160_a256", **options)


def mask_of(rows, num_tokens):
    mask = torch.zeros(len(rows), num_tokens, dtype=torch.bool)
    return mask.scatter(1, torch.tensor(rows), True)


def clips(batch=2, dtype=torch.float32):
    """Return video, its mask (12 tokens, 6 masked), audio, its mask (8 tokens, 3 masked)."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(batch, 3, 4, 32, 48, generator=generator, dtype=dtype)
    audio = torch.randn(batch, 1, 64, 32, generator=generator, dtype=dtype)
    video_masked = [[0, 2, 3, 6, 8, 9], [1, 2, 5, 7, 8, 11]]
    audio_masked = [[1, 2, 5], [0, 3, 4]]
    video_mask = mask_of((video_masked * batch)[:batch], 12)
    return video, video_mask, audio, mask_of((audio_masked * batch)[:batch], 8)


def without_gradient(model):
    """Name the parameters that a backward pass did not reach."""
    return [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
