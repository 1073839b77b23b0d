"""The one reader of a trained model's settings: every kind of file tells the same."""

import argparse

import pytest
import torch

from hicmae.inference.export import export_checkpoint
from hicmae.training import trained
from hicmae.training.checkpoint import save
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


@pytest.mark.parametrize("name", ["run", "theirs.pth", "export"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [("num_frames", 8), ("sampling_rate", 4), ("input_size", 64), ("input_size_audio", (256, 128)),
     ("depth", 1), ("modality", "a"), ("head_activation", None), ("nb_classes", 5),
     ("task", "classification"), ("hierarchical_fusion", False), ("fusion_order", "audio_first"),
     ("model", "avit_dim512_patch16_160_a256"), ("tubelet_size", 4), ("init_values", 1.0)],
)  # fmt: skip
def test_a_setting_that_contradicts_the_file_is_refused_by_name(files, name, flag, value):
    shown = "64 32" if flag == "input_size_audio" else KNOWN[flag]
    with pytest.raises(ValueError, match=rf"--{flag} .*trained with {shown}"):
        trained.check_agrees(trained.read(files / name), {**KNOWN, flag: value})


def test_weights_alone_tell_what_their_shapes_show():
    model = small_models.classifier(modality="a", hierarchical_fusion=False)
    found = trained.describe(model.state_dict(), "bare.pth")
    shown = {"nb_classes": 5, "modality": "a", "depth_audio": 3, "init_values": 0.0}
    shown |= {"model": KNOWN["model"], "hierarchical_fusion": False}
    assert found.settings == shown
    found = trained.describe(small_models.pretraining_model().state_dict(), "bare.pth")
    assert found.settings["model"] == "pretrain_hicmae_dim128_patch16_160_a256"
    assert (found.settings["task"], found.settings["depth_audio"]) == ("pretraining", 4)


@pytest.mark.parametrize("given, size", [(96, [96, 128]), ([64], [64, 128]), ((64, 32), [64, 32])])
def test_the_size_of_spectrograms_is_steps_and_bins_however_it_was_given(weights, given, size):
    content = {"model": weights, "args": argparse.Namespace(input_size_audio=given)}
    assert trained.describe(content, "x.pth").settings["input_size_audio"] == size
