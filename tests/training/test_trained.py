"""A trained model's file: every kind tells the same; weights that fit are taken, others refused."""

import argparse
import logging

import pytest
import torch

from hicmae.inference.export import export_checkpoint
from hicmae.training import trained
from hicmae.training.checkpoint import save
from hicmae.training.trained import load_pretrained
from tests import small_models

RUN = {  # what the weights do not show
    "num_frames": 4,
    "sampling_rate": 8,
    "input_size": 32,
    "input_size_audio": (64, 32),
    "head_activation": "tanh",
    "task": "regression",
    "class_names": ("valence", "arousal", "dominance"),
    "init_values": 0.0,
}
KNOWN = {
    "model": "avit_dim128_patch16_160_a256",
    "nb_classes": 3,
    "depth": 2,
    "depth_audio": 3,
    "fusion_depth": 2,
    "modality": "av",
    "hierarchical_fusion": True,
    "fusion_order": "both",
    "tubelet_size": 2,
    **{name: list(v) if isinstance(v, tuple) else v for name, v in RUN.items()},
}


@pytest.fixture(scope="module")
def weights():
    return small_models.classifier(num_classes=3, img_size=32).state_dict()


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    """The same model as our checkpoint, the original's, a run folder and two exports."""
    root = tmp_path_factory.mktemp("trained")
    groups = {"clip": dict(list(RUN.items())[:4]), "classifier": dict(list(RUN.items())[4:])}
    save(root / "run/checkpoint-4.pth", {"model": weights, "args": groups, "epoch": 4})
    theirs = {"model": weights, "args": argparse.Namespace(**RUN), "epoch": "best"}
    torch.save(theirs, root / "theirs.pth")
    export_checkpoint(root / "run", root / "export")
    (root / "export/model.safetensors").rename(root / "alone.safetensors")
    export_checkpoint(root / "theirs.pth", root / "export")
    return root


@pytest.mark.parametrize(
    "name", ["run/checkpoint-4.pth", "run", "theirs.pth", "export", "alone.safetensors"]
)
def test_every_kind_of_file_tells_the_same_settings(files, weights, name):
    found = trained.read(files / name)
    assert {flag: found.settings.get(flag) for flag in KNOWN} == KNOWN
    assert all(torch.equal(found.weights[key], weight) for key, weight in weights.items())
    trained.check_agrees(found, KNOWN | RUN | {"batch_size": 3})  # tuples are lists here


@pytest.mark.parametrize(
    ("flag", "value"),
    [("num_frames", 8), ("sampling_rate", 4), ("input_size", 64), ("input_size_audio", (256, 128)),
     ("depth", 1), ("modality", "a"), ("head_activation", None), ("nb_classes", 5),
     ("task", "classification"), ("hierarchical_fusion", False), ("fusion_order", "audio_first"),
     ("model", "avit_dim512_patch16_160_a256"), ("tubelet_size", 4), ("init_values", 1.0)],
)  # fmt: skip
def test_a_setting_that_contradicts_the_file_is_refused_by_name(files, flag, value):
    shown = "64 32" if flag == "input_size_audio" else KNOWN[flag]
    with pytest.raises(ValueError, match=rf"--{flag} .*trained with {shown}"):
        trained.check_agrees(trained.read(files / "theirs.pth"), {**KNOWN, flag: value})


def test_weights_alone_tell_what_their_shapes_show():
    model = small_models.classifier(modality="a", hierarchical_fusion=False)
    found = trained.describe(model.state_dict(), "bare.pth")
    shown = {"nb_classes": 5, "modality": "a", "depth_audio": 3, "init_values": 0.0}
    shown |= {"model": KNOWN["model"], "hierarchical_fusion": False}
    assert found.settings == shown
    found = trained.describe(small_models.pretraining_model().state_dict(), "bare.pth")
    assert found.settings["model"] == "pretrain_hicmae_dim128_patch16_160_a256"
    assert (found.settings["task"], found.settings["depth_audio"]) == ("pretraining", 4)
    # A size of spectrograms is steps and bins however it was given.
    for given, size in ((96, [96, 128]), ([64], [64, 128]), ((64, 32), [64, 32])):
        content = {"model": model.state_dict(), "args": argparse.Namespace(input_size_audio=given)}
        assert trained.describe(content, "x.pth").settings["input_size_audio"] == size


# Weights for another model

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
    assert report.share == 1.0 and torch.equal(model.head.weight, head)
    lines = caplog.messages[-1].splitlines()
    assert lines[0].startswith(f"loaded {len(report.loaded)} of {len(state)} tensors (100.0%")
    assert "head (2)" in lines[1] and "decoder (" in lines[2] and len(lines) == 3
    # A model of one stream takes its own encoder only.
    report = load_pretrained(classifier(modality="a"), pretrained)
    assert families(report.loaded) == {"encoder_audio"}
    assert {"encoder", "encoder_fusion"} <= families(report.unused)


@pytest.mark.parametrize(
    ("prefix", "key"),
    [("module._orig_mod.", None), ("", "module"), ("model.", "state_dict"), ("", "model_ema")],
)
def test_bare_wrapped_and_half_precision_state_dicts_load_too(pretrained, prefix, key):
    weights = {prefix + name: weight.half() for name, weight in pretrained.items()}
    model = classifier()
    load_pretrained(model, weights if key is None else {key: weights})
    for name in ("encoder.norm.bias", "encoder.blocks.2.attn.qkv.weight"):
        assert torch.equal(model.state_dict()[name], pretrained[name].half().float())


def test_head_of_another_class_count_keeps_its_initial_values():
    source, model = classifier(num_classes=11).state_dict(), classifier(num_classes=6)
    before = model.head.weight.clone()
    report = load_pretrained(model, source)
    assert report.new == report.unused == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before)
    with pytest.raises(ValueError, match=r"lacks weights of the model: head \(2\)"):
        load_pretrained(model, source, require_all=True)


@pytest.mark.parametrize(
    "options, share, message",
    [
        ({"depth": 2}, 1.0, r"100%.* 13 differ, first encoder\.blocks\.2\..*expected missing"),
        ({"depth": 4, "depth_audio": 6}, 0.82, r"39 differ, first encoder\.blocks\.3.*: missing,"),
        ({"depth": 30}, None, r"encoders: [234]\d% of .*--init_values of the checkpoint$"),
    ],
)
def test_encoders_of_another_depth_need_allow_partial_and_half_of_the_weights(
    pretrained, options, share, message
):
    model = classifier(**options)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, pretrained, allow_partial=share is None)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    if share is not None:
        report = load_pretrained(model, pretrained, allow_partial=True)
        assert report.share == pytest.approx(share, abs=0.01)
        name = "encoder.blocks.1.norm1.weight"
        assert torch.equal(model.state_dict()[name], pretrained[name])


FOREIGN = {"backbone.layer1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
BIAS = "encoder.norm.bias"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda w: {n: torch.cat([x, x]) for n, x in w.items()},
         r"patch_embed\.proj\.weight: \(256, 3, 2, 16, 16\), expected \(128, 3, 2, 16, 16\)"),
        (lambda w: {n: x for n, x in w.items() if n.split(".")[0] != "encoder_audio"},
         r"first encoder_audio\..* missing"),
        (lambda w: {n: x for n, x in w.items() if n != BIAS}, f" 1 differ, first {BIAS}: missing"),
        (lambda w: {**w, "encoder.blocks.1.gamma_1": torch.ones(128)},
         r"encoder\.blocks\.1\.gamma_1: \(128,\), expected missing"),
        (lambda w: {"model": FOREIGN}, "0% of their weights are in it"),
        (lambda w: {"epoch": 3, "args": {}}, "a state dict under .*, got the keys epoch, args"),
        (lambda w: {**w, BIAS: torch.full((128,), torch.inf)}, f"'{BIAS}' holds values that"),
        (lambda w: {**w, BIAS: torch.full((128,), -torch.inf)}, f"'{BIAS}' holds values that"),
        (lambda w: {**w, BIAS: torch.ones(128).half().index_fill(0, torch.tensor(5), torch.nan)},
         f"'{BIAS}' holds values that are nan or inf"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_and_no_weights_are_refused(pretrained, spoil, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(classifier(), spoil(pretrained))
