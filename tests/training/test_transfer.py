"""Pre-trained weights are taken by name, and what does not fit is told or refused."""

import argparse
import logging

import pytest
import timm
import torch

import hicmae  # noqa: F401  (registers the models)
from hicmae.training.checkpoint import save
from hicmae.training.transfer import load_pretrained


def pretraining_model(depth=3, width=128):
    return timm.create_model(
        f"pretrain_hicmae_dim{width}_patch16_160_a256",
        encoder_depth=depth,
        encoder_depth_audio=depth,
        decoder_depth=2,
        decoder_depth_audio=2,
        encoder_fusion_depth=1,
        return_intermediate_features=(depth - 1,),
    )


def classifier(depth=3, num_classes=6, **more):
    return timm.create_model(
        "avit_dim128_patch16_160_a256",
        num_classes=num_classes,
        depth=depth,
        depth_audio=depth,
        fusion_depth=1,
        **more,
    )


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    model = pretraining_model()
    return {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}


def families(names):
    return {name.split(".")[0] for name in names}


def test_pretraining_checkpoint_fills_the_encoders_and_reports_the_rest(
    pretrained, tmp_path, caplog
):
    path = tmp_path / "checkpoint-99.pth"
    save(path, {"model": pretrained, "epoch": 99, "args": argparse.Namespace()})
    model = classifier()
    head = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[name], pretrained[name]) for name in report.loaded)
    assert families(report.loaded) == {"encoder", "encoder_audio", "encoder_fusion"}
    assert families(report.new) == {
        "fc_norm",
        "head",
        "video_layer_weights",
        "audio_layer_weights",
    }
    assert families(report.unused) == {
        "decoder",
        "decoder_audio",
        "encoder_to_decoder",
        "encoder_to_decoder_audio",
        "mask_token",
        "mask_token_audio",
    }
    assert report.share == 1.0 and report.mismatched == () and report.problems == ()
    assert torch.equal(model.head.weight, head)
    lines = caplog.messages[-1].splitlines()
    assert lines[0].startswith(f"loaded {len(report.loaded)} of {len(state)} tensors (100.0%")
    assert "head.* (2)" in lines[1] and "decoder.* (" in lines[2] and len(lines) == 3


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "model", "module"])
def test_bare_and_wrapped_state_dicts_load_too(pretrained, prefix, key):
    weights = {prefix + name: weight for name, weight in pretrained.items()}
    report = load_pretrained(classifier(), weights if key is None else {key: weights})
    assert report.share == 1.0


def test_half_precision_weights_load_into_a_float_model(pretrained):
    model = classifier()
    load_pretrained(model, {name: weight.half() for name, weight in pretrained.items()})
    weight = model.encoder.blocks[2].attn.qkv.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, pretrained["encoder.blocks.2.attn.qkv.weight"].half().float())


def test_one_stream_model_takes_its_own_encoder_only(pretrained):
    model = classifier(modality="a")
    report = load_pretrained(model, pretrained)
    assert families(report.loaded) == {"encoder_audio"}
    assert {"encoder", "encoder_fusion"} <= families(report.unused)
    assert report.problems == ()


def test_head_of_another_class_count_keeps_its_initial_values(caplog):
    source = classifier(num_classes=11).state_dict()
    model = classifier(num_classes=6)
    before = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, source)
    assert report.mismatched[0] == "head.weight: (11, 512) -> (6, 512)"
    assert "of another shape, not loaded: head.weight: (11, 512) -> (6, 512)" in caplog.text
    assert torch.equal(model.head.weight, before)
    with pytest.raises(ValueError, match=r"lacks weights of the model: head.\* \(2\); testing"):
        load_pretrained(model, source, require_all=True)


def test_deeper_checkpoint_is_refused_unless_a_partial_load_is_allowed(caplog):
    deep = pretraining_model(depth=5).state_dict()
    with pytest.raises(ValueError, match=r"100%.* encoder\.blocks\.4.* encoder_audio.* unused"):
        load_pretrained(classifier(depth=4), deep)
    model = classifier(depth=4)
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, deep, allow_partial=True)
    assert report.share == 1.0 and "accepted although: its encoder.blocks.4" in caplog.text
    assert torch.equal(model.encoder.blocks[3].norm1.weight, deep["encoder.blocks.3.norm1.weight"])


def test_shallower_checkpoint_is_refused_and_below_half_even_a_partial_load(pretrained):
    with pytest.raises(ValueError, match=r"lacks encoder\.blocks\.3.*blocks\.4.*--allow_partial"):
        load_pretrained(classifier(depth=5), pretrained)
    assert load_pretrained(classifier(depth=5), pretrained, allow_partial=True).share > 0.5
    with pytest.raises(ValueError, match=r"encoders \([34]\d% of .*depths of the checkpoint$"):
        load_pretrained(classifier(depth=10), pretrained, allow_partial=True)


@pytest.mark.parametrize("gone", ["encoder_audio.", "encoder.norm.bias"])
def test_missing_stream_and_missing_weights_are_named(pretrained, gone):
    rest = {n: w for n, w in pretrained.items() if not n.startswith(gone)}
    with pytest.raises(ValueError, match=rf"lacks {gone.removesuffix('bias')}"):
        load_pretrained(classifier(), rest)


def test_checkpoint_of_another_width_is_refused_with_both_shapes():
    wide = pretraining_model(width=256).state_dict()
    message = r"encoder\.patch_embed\.proj\.weight: \(256, 3, 2, 16, 16\) -> \(128, 3, 2, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), wide)


def test_weights_of_another_model_are_refused_with_both_families():
    foreign = {"backbone.layer1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    message = r"lacks encoder.*; it has no more than backbone.\* \(1\), fc.\* \(1\); choose"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), {"model": foreign})


def test_checkpoint_without_weights_is_refused_with_its_keys():
    with pytest.raises(ValueError, match="under 'model' or 'module', got the keys epoch, args"):
        load_pretrained(classifier(), {"epoch": 3, "args": {}})


def test_a_refused_load_leaves_the_model_as_it_was(pretrained):
    model = classifier(depth=5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model's encoders"):
        load_pretrained(model, pretrained)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
