"""Pre-trained weights are taken by name, and what does not fit is told or refused."""

import argparse
import logging

import pytest
import torch

from hicmae.training.checkpoint import save
from hicmae.training.transfer import load_pretrained
from tests import small_models

DEPTHS = {"depth": 3, "depth_audio": 4, "fusion_depth": 2}  # of small_models' pre-training


def classifier(**options):
    return small_models.classifier(**{**DEPTHS, **options})


@pytest.fixture(scope="module")
def pretrained():
    model = small_models.pretraining_model()
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
    assert families(report.new) == {"fc_norm", "head", "video_layer_weights", "audio_layer_weights"}
    kinds = ("decoder", "encoder_to_decoder", "mask_token")
    assert families(report.unused) == {f"{n}{end}" for n in kinds for end in ("", "_audio")}
    assert report.share == 1.0 and report.mismatched == [] and report.problems == []
    assert torch.equal(model.head.weight, head)
    lines = caplog.messages[-1].splitlines()
    assert lines[0].startswith(f"loaded {len(report.loaded)} of {len(state)} tensors (100.0%")
    assert "head.* (2)" in lines[1] and "decoder.* (" in lines[2] and len(lines) == 3


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "model", "module", "state_dict", "model_ema"])
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
    report = load_pretrained(classifier(modality="a"), pretrained)
    assert families(report.loaded) == {"encoder_audio"}
    assert {"encoder", "encoder_fusion"} <= families(report.unused) and report.problems == []


def test_head_of_another_class_count_keeps_its_initial_values(caplog):
    source, model = classifier(num_classes=11).state_dict(), classifier(num_classes=6)
    before = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, source)
    assert report.mismatched[0] == "head.weight: (11, 512) -> (6, 512)"
    assert "of another shape, not loaded: head.weight: (11, 512) -> (6, 512)" in caplog.text
    assert torch.equal(model.head.weight, before)
    with pytest.raises(ValueError, match="lacks weights of the model: head"):
        load_pretrained(model, source, require_all=True)


@pytest.mark.parametrize(
    "options, share, message",
    [
        ({"depth": 2}, 1.0, r"100%.* its encoder\.blocks\.2\.\* \(13\) would be unused"),
        ({"depth": 4, "depth_audio": 6}, 0.82, r"lacks encoder\.blocks\.3.*encoder_audio.blocks.5"),
        (
            {"depth": 30},
            None,
            r"encoders \([234]\d% of .*depths and --init_values of the checkpoint$",
        ),
    ],
)
def test_encoders_of_another_depth_need_allow_partial_and_half_of_the_weights(
    pretrained, caplog, options, share, message
):
    model = classifier(**options)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, pretrained)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    if share is None:
        with pytest.raises(ValueError, match=message):
            load_pretrained(model, pretrained, allow_partial=True)
        return
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, pretrained, allow_partial=True)
    assert report.share == pytest.approx(share, abs=0.01) and "accepted although" in caplog.text
    name = "encoder.blocks.1.norm1.weight"
    assert torch.equal(model.state_dict()[name], pretrained[name])


@pytest.mark.parametrize("gone", ["encoder_audio.", "encoder.norm.bias"])
def test_missing_stream_and_missing_weights_are_named(pretrained, gone):
    rest = {n: w for n, w in pretrained.items() if not n.startswith(gone)}
    with pytest.raises(ValueError, match=rf"lacks {gone.removesuffix('bias')}"):
        load_pretrained(classifier(), rest)


def test_weights_of_another_width_or_model_and_no_weights_are_refused(pretrained):
    wide = {n: torch.cat([w, w]) for n, w in pretrained.items()}
    message = r"encoder\.patch_embed\.proj\.weight: \(256, 3, 2, 16, 16\) -> \(128, 3, 2, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), wide)
    foreign = {"backbone.layer1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    message = r"lacks encoder.*; it has no more than backbone.\* \(1\), fc.\* \(1\); choose"
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), {"model": foreign})
    with pytest.raises(ValueError, match="a state dict under .*, got the keys epoch, args"):
        load_pretrained(classifier(), {"epoch": 3, "args": {}})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_with_their_file(pretrained, tmp_path, value):
    name, path = "encoder.blocks.1.mlp.fc1.bias", tmp_path / "diverged.pth"
    save(path, {"model": pretrained | {name: torch.full_like(pretrained[name], value)}})
    with pytest.raises(ValueError, match=rf"diverged.pth' .*'{name}' holds values that are nan"):
        load_pretrained(classifier(), path)


# Variants


def state(model, **settings):
    return {"model": model.state_dict(), "args": {"model": settings}}


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"fusion_order": "video_first"}, False),
        ({"fusion_order": "both"}, True),
        ({"mask_ratio": 0.9}, True),  # of an earlier version, which knew no other order
        ({}, False),  # without settings
    ],
)
def test_another_fusion_order_than_in_pretraining_is_told(pretrained, caplog, settings, told):
    args = {"args": {"model": settings}} if settings else {}
    load_pretrained(classifier(fusion_order="video_first"), {"model": pretrained, **args})
    text = "was trained with --fusion_order both, this model has --fusion_order video_first"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == told and all(text in warning for warning in warnings)


def test_decoders_of_the_other_kind_are_left_over_or_new(caplog):
    caplog.set_level(logging.INFO)
    with_skips = small_models.pretraining_model()
    without = small_models.pretraining_model(skip_connections=False)
    report = load_pretrained(without, with_skips.state_dict())
    assert report.new == [] and report.unused and all("cross" in n for n in report.unused)
    report = load_pretrained(with_skips, without.state_dict())
    assert report.unused == [] and report.new and all("cross" in n for n in report.new)
    assert "new, keep their initial values: decoder.* (20), decoder_audio.* (20)" in caplog.text
