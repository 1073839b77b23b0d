"""Properties of the two models and their variants that golden values alone do not show."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from hicmae.models.encoder import FUSION_ORDERS, CrossModalFusion, EncoderOutput
from hicmae.models.layers import Block, split_tokens
from hicmae.models.losses import pretrain_loss
from tests.small_models import DEPTHS, classifier, clips, pretraining_model, without_gradient

ROOT = Path(__file__).resolve().parents[2]
STREAMS = {"av": ("video", "audio"), "v": ("video",), "a": ("audio",)}
ENCODERS = {"video": "encoder", "audio": "encoder_audio"}


def streams(modality):
    given = dict(zip(("video", "audio"), clips()[::2], strict=True))
    return {name: given[name] if name in STREAMS[modality] else None for name in given}


def test_masked_values_never_reach_the_encoder():
    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    pixels = video_mask.view(2, 2, 2, 3).repeat_interleave(2, 1)
    pixels = pixels.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, None].expand_as(video)
    cells = audio_mask.view(2, 4, 2).repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    splits = split_tokens(video_mask, 12, "video"), split_tokens(audio_mask, 8, "audio")
    base = model(video, splits[0], audio, splits[1])  # positions stand for their mask
    video, audio = video.masked_fill(pixels, 100.0), audio.masked_fill(cells, 100.0)
    other = model(video, video_mask, audio, audio_mask)
    assert torch.equal(base.video, other.video) and torch.equal(base.audio, other.audio)


def test_a_contrast_of_its_own_sees_what_its_masks_leave_and_rebuilds_as_before():
    model = pretraining_model()
    video, video_mask, audio, audio_mask = clips()
    base = model(video, video_mask, audio, audio_mask)
    nothing = torch.zeros_like(video_mask), torch.zeros_like(audio_mask)
    apart = model(video, video_mask, audio, audio_mask, nothing)
    assert torch.equal(apart.video, base.video) and torch.equal(apart.audio, base.audio)
    everything, _ = model.encoder(video, None, model.level_blocks)
    torch.testing.assert_close(
        apart.video_levels[-1], torch.nn.functional.normalize(everything.mean(1), dim=-1)
    )
    like_masked = model(video, video_mask, audio, audio_mask, (video_mask, audio_mask))
    for name in ("video_levels", "audio_levels"):
        for level, same, other in zip(
            *(getattr(o, name) for o in (base, like_masked, apart)), strict=True
        ):
            assert torch.equal(level, same) and not torch.allclose(level, other)


@pytest.mark.parametrize("skip_connections", [True, False])
def test_reconstruction_reaches_kept_levels_through_skips_alone(skip_connections, monkeypatch):
    model = pretraining_model(skip_connections=skip_connections)
    levels = []
    for name in ENCODERS.values():
        whole = getattr(model, name).forward

        def cut(*inputs, whole=whole):
            tokens, kept = whole(*inputs)
            kept = [level.detach().requires_grad_() for level in kept]
            levels.extend(kept)
            return EncoderOutput(tokens, kept)

        monkeypatch.setattr(getattr(model, name), "forward", cut)
    output = model(*clips())
    (output.video.sum() + output.audio.sum()).backward()
    assert [level.grad is not None and bool(level.grad.any()) for level in levels] == (
        [skip_connections] * 4
    )
    sum((v * a).sum() for v, a in zip(*output[2:], strict=True)).backward()
    assert all(level.grad.any() for level in levels), "the contrast reads every level either way"


@pytest.mark.parametrize(
    ("order", "skip_connections", "which"),
    [("both", True, "none"), ("video_first", True, "top"), ("audio_first", False, "all")],
)
def test_every_parameter_of_pretraining_gets_a_gradient(order, skip_connections, which):
    any_depth = {} if skip_connections else {"decoder_depth": 1, "decoder_depth_audio": 4}
    options = {"skip_connections": skip_connections, "fusion_order": order, **any_depth}
    model, inputs = pretraining_model(init_values=0.1, **options), clips()
    assert any("cross" in name for name in model.decoder.state_dict()) == skip_connections
    pretrain_loss(model(*inputs), *inputs, contrastive_levels=which).total.backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("order", FUSION_ORDERS)
def test_fusion_updates_the_streams_in_the_order_asked_for(order):
    torch.manual_seed(0)
    fusion = CrossModalFusion(32, depth=2, num_heads=2, order=order).eval()
    video, audio = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    v, a = video, audio
    for block, block_audio in zip(fusion.blocks, fusion.blocks_audio, strict=True):
        read_by_audio = block(v, a) if order == "video_first" else v
        read_by_video = block_audio(a, v) if order == "audio_first" else a
        v, a = block(v, read_by_video), block_audio(a, read_by_audio)
    found = fusion(video, audio)
    torch.testing.assert_close(found, (fusion.norm(v), fusion.norm_audio(a)), rtol=0, atol=0)


@pytest.mark.parametrize("hierarchical_fusion", [True, False])
@pytest.mark.parametrize("modality", STREAMS)
def test_the_head_reads_layer_averages_and_the_last_layer(modality, hierarchical_fusion):
    model = classifier(modality=modality, hierarchical_fusion=hierarchical_fusion).eval()
    model.fc_norm = torch.nn.Identity()
    given = streams(modality)
    mixed, last = [], []
    for name in STREAMS[modality]:
        encoder = getattr(model, ENCODERS[name])
        tokens, levels = encoder(given[name], None, range(len(encoder.blocks)))
        if hierarchical_fusion:
            weights = torch.linspace(-1, 1, len(levels))
            getattr(model, f"{name}_layer_weights").data.copy_(weights)
            means = [level.mean(dim=1) for level in levels]
            mixed.append(sum(w * m for w, m in zip(weights.softmax(0), means, strict=True)))
        elif modality == "av":
            mixed.append(tokens.mean(dim=1))
        last.append(tokens)
    if modality == "av":
        last = model.encoder_fusion(*last)
    expected = torch.cat([*mixed, *(tokens.mean(dim=1) for tokens in last)], dim=1)
    torch.testing.assert_close(model.forward_features(**given), expected)
    assert model(**given).shape == (2, 5) and model.num_features == expected.shape[1]
    parts = {ENCODERS[name] for name in STREAMS[modality]} | {"head"}
    parts |= {f"{name}_layer_weights" for name in STREAMS[modality] if hierarchical_fusion}
    parts |= {"encoder_fusion"} if modality == "av" else set()
    assert {name.split(".")[0] for name in model.state_dict()} == parts


@pytest.mark.parametrize("hierarchical_fusion", [True, False])
@pytest.mark.parametrize(
    "options", [{"fusion_order": "video_first"}, {"modality": "a"}, {"modality": "v"}], ids=str
)
def test_every_parameter_of_the_classifier_gets_a_gradient(options, hierarchical_fusion):
    model = classifier(hierarchical_fusion=hierarchical_fusion, **options)
    model(**streams(model.modality)).square().sum().backward()
    assert without_gradient(model) == []


def test_head_activation_bounds_the_outputs():
    for activation, bounds in ("sigmoid", (0, 1)), ("tanh", (-1, 1)), ("relu", (0, 99)):
        model = classifier(head_activation=activation)
        torch.nn.init.normal_(model.head.weight)
        output = model(**streams("av"))
        assert bounds[0] <= output.min() and output.max() <= bounds[1]


def test_swapped_and_missing_streams_are_refused():
    video, _, audio, _ = clips()
    with pytest.raises(ValueError, match=r"video has shape \(2, 1, 64, 32\), expected \(B, 3, 4"):
        classifier()(audio, video)
    with pytest.raises(ValueError, match="audio is None, but a model of modality 'av' reads it"):
        classifier()(video, None)


def test_importing_hicmae_registers_with_timm_without_importing_it():
    code = "import hicmae, sys; assert not {'torch', 'timm'} & set(sys.modules)  # nobody waits\n"
    code += "import timm; assert len(timm.list_models('*_patch16_160_a256')) == 8"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_initialisation_follows_the_spec():
    model = timm.create_model("pretrain_hicmae_dim256_patch16_160_a256", **DEPTHS)
    qkv = model.encoder.blocks[0].attn.qkv.weight
    bound = (6 / (256 + 3 * 256)) ** 0.5
    assert qkv.abs().max() <= bound and qkv.abs().max() > 0.98 * bound
    assert model.mask_token.abs().max() <= 0.02 and model.mask_token.std() > 0.005
    assert not model.encoder.blocks[0].attn.q_bias.any()
    assert not model.decoder.head.bias.any()
    tuned = timm.create_model("avit_dim256_patch16_160_a256", num_classes=3, depth=2)
    assert tuned.encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    fused = tuned.encoder_fusion.blocks[0].attn.qkv.weight
    assert fused.abs().max() > 0.98 * bound
    assert torch.allclose(tuned.video_layer_weights, torch.tensor(0.5))
    assert tuned.head.bias.any(), "the head keeps torch's default"


@pytest.mark.parametrize(
    "make, options, message",
    [
        (pretraining_model, {"decoder_depth_audio": 4}, r"decoder_depth_audio is 4, expected 3"),
        (pretraining_model, {"return_intermediate_features": (0, 3)}, "indices from 0 to 2"),
        (pretraining_model, {"encoder_fusion_depth": 0}, "encoder_fusion_depth .* 1, got 0"),
        (pretraining_model, {"img_size": 40}, r"video size \(4, 40, 40\) is not a .* multiple"),
        (pretraining_model, {"fusion_order": "late"}, "fusion_order is 'late', expected .*both"),
        (pretraining_model, {"cpu_gemm": "blas"}, "--cpu_gemm must be one of auto, .*got 'blas'"),
        (Block, {"dim": 10, "num_heads": 3}, "embed dim 10 is not divisible by 3 attention heads"),
        (classifier, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (classifier, {"head_activation": "softmax"}, "head_activation is 'softmax', .*'tanh'"),
        (classifier, {"modality": "video"}, "modality is 'video', expected one of av, a, v"),
        (classifier, {"pretrained": True}, "no weights are hosted"),
    ],
)
def test_impossible_models_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
