"""The analytic count against torch's own counter, which sees every matrix product of a pass."""

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hicmae  # noqa: F401
from hicmae.benchmark import flops
from hicmae.models.layers import split_tokens

GEOMETRY = {"num_frames": 4, "img_size": (32, 48), "img_size_audio": (64, 32)}


def counted(compute, backward=False):
    """Count in float64 (no library of ours) with attention as plain products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = compute()
        if backward:
            sum(output.sum() for output in outputs).backward()
    return counter.get_total_flops()


def pretraining():
    torch.manual_seed(0)
    model = timm.create_model(
        "pretrain_hicmae_dim128_patch16_160_a256",
        encoder_depth=3,
        encoder_depth_audio=4,
        decoder_depth=3,
        decoder_depth_audio=3,
        encoder_fusion_depth=2,
        return_intermediate_features=(0, 2),
        **GEOMETRY,
    ).double()
    video_mask = torch.zeros(1, 12, dtype=torch.bool)
    video_mask[:, [0, 1, 2, 6, 7, 8]] = True
    audio_mask = torch.zeros(1, 8, dtype=torch.bool)
    audio_mask[:, [1, 2, 5]] = True
    splits = split_tokens(video_mask, 12, "video"), split_tokens(audio_mask, 8, "audio")
    video = torch.randn(1, 3, 4, 32, 48, dtype=torch.float64)
    audio = torch.randn(1, 1, 64, 32, dtype=torch.float64)
    return model, lambda: model(video, splits[0], audio, splits[1])[:2]


def test_forward_pass_of_pretraining():
    model, compute = pretraining()
    parts = flops.pretraining_forward(model, visible=6, visible_audio=5)
    assert flops.total(parts) == counted(compute)


def test_training_step_of_pretraining():
    model, compute = pretraining()
    parts = flops.training_step(flops.pretraining_forward(model, visible=6, visible_audio=5))
    assert flops.total(parts) == counted(compute, backward=True)


def test_forward_and_backward_pass_of_the_classifier():
    torch.manual_seed(0)
    model = timm.create_model(
        "avit_dim128_patch16_160_a256", num_classes=5, depth=2, depth_audio=3, **GEOMETRY
    ).double()
    video = torch.randn(1, 3, 4, 32, 48, dtype=torch.float64)
    audio = torch.randn(1, 1, 64, 32, dtype=torch.float64)
    # Torch counts the weighting of the L levels too: one product of L by D for each stream.
    mixing = 2 * (2 + 3) * 128
    forward = flops.classifier_forward(model)
    assert flops.total(forward) == counted(lambda: model(video, audio)) - mixing
    step = flops.total(flops.training_step(forward))
    assert step == pytest.approx(counted(lambda: [model(video, audio)], backward=True), rel=1e-3)


def test_published_sizes_have_the_known_order_of_cost():
    model = timm.create_model("pretrain_hicmae_dim512_patch16_160_a256")
    parts = flops.pretrain_flops(model)
    assert max(parts, key=parts.get) == "video decoder"
    by_hand = 2 * 2 * (80 * 1536 + 26 * 256) * 512  # forward, and weights in the backward pass
    assert parts["embedding"] == by_hand
