"""Ablations and frozen weights through both scripts: each trains, exports and is told apart."""

import pytest
import torch

from hicmae import EmotionRecognizer
from hicmae.inference.model import read_model
from hicmae.visualize.__main__ import main as visualize
from tests.conftest import same
from tests.small_runs import (
    FINETUNE,
    PRETRAIN,
    Job,
    finetune,
    last_state,
    lines,
    make_media,
    pretrain,
    rows,
)

VIEWS = ["--test_num_segment", "1", "--test_num_crop", "1"]
VARIANTS = {  # flags, and the levels that are contrasted
    "no_skips": ("--no-skip_connections", "01"),
    "top": ("--contrastive_levels top", "1"),
    "none": ("--contrastive_levels none --no-skip_connections", ""),
    "video_first": ("--fusion_order video_first", "01"),
    "contrast_apart": ("--contrast_mask_ratio 0", "01"),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return make_media(tmp_path_factory.mktemp("media"), 4)


@pytest.fixture(scope="module")
def pretrained(media):
    """Every variant's pre-training of two steps."""
    return {
        name: pretrain(media, media / "pretrained" / name, *flags.split())
        for name, (flags, _) in VARIANTS.items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_log_the_parts_that_there_are(pretrained, name):
    levels = VARIANTS[name][1]
    wanted = {f"contrastive_acc_{level}" for level in levels}
    steps = lines(pretrained[name] / "steps.jsonl")
    assert len(steps) == 2
    for step in steps:
        found = {key for key in step if "contrastive" in key}
        assert found == (wanted | {"loss_contrastive"} if levels else set())
        total = step["loss_video"] + step["loss_audio"] + 0.0025 * step.get("loss_contrastive", 0)
        assert step["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("command", ["reconstruction", "retrieval"])
def test_pictures_of_a_model_whose_levels_nothing_reads(pretrained, media, tmp_path, command):
    source, picture = str(pretrained["none"] / "checkpoint-0.pth"), tmp_path / "picture.png"
    lists = ["--data_path", str(media / "lists"), "--out", str(picture)]
    visualize([command, "--checkpoint", source, *lists])
    assert picture.stat().st_size > 10_000


LAST = ["--no-hierarchical_fusion"]
FINETUNED = {  # flags, and what the export says of them
    "av": ([*LAST, "--fusion_order", "video_first"], {"fusion_order": "video_first"}),
    "a": ([*LAST, "--modality", "a"], {}),
    "v": ([*LAST, "--modality", "v"], {}),
    "probe": (["--linear_probe", "--lr", "0.5", "--warmup_epochs", "0"], {}),
}


@pytest.fixture(scope="module")
def finetuned(pretrained, media):
    """Fine-tuned variants, all from the video-first pre-training."""
    start = ["--finetune", str(pretrained["video_first"] / "checkpoint-0.pth")]
    return {
        name: finetune(media, media / "finetuned" / name, *start, *VIEWS, *flags)
        for name, (flags, _) in FINETUNED.items()
    }


@pytest.mark.parametrize("name", FINETUNED)
def test_an_exported_variant_answers_with_the_numbers_of_its_test(finetuned, name):
    run, (flags, options) = finetuned[name], FINETUNED[name]
    if "--no-hierarchical_fusion" in flags:
        options = {"hierarchical_fusion": False, **options}
    assert read_model(run / "export/last")[0].architecture.options == options
    for source in (run / "export/last", run / "checkpoint-0.pth"):
        recognizer = EmotionRecognizer.from_checkpoint(source, device="cpu")
        for row in rows(run / "pred.csv")[:2]:
            clip = row["clip"]
            wav = clip.replace("faces", "clip") + ".wav"
            video = clip if name != "a" else wav
            answer = recognizer.predict(video, audio=wav, protocol="test")
            scores = [float(row[f"p{k}"]) for k in range(3)]
            assert list(answer.probabilities.values()) == pytest.approx(scores, abs=1e-6)


TRAINED = ("video_layer_weights", "audio_layer_weights", "fc_norm.", "head.")


def assert_kept(start, weights, trained=TRAINED):
    """Frozen weights are those of the start bit for bit, all others have moved."""
    encoders = [name for name in start if name.startswith("encoder") and "_to_" not in name]
    assert set(encoders) < set(weights)
    for name in encoders:
        assert torch.equal(weights[name], start[name]) != name.startswith(trained), name


@pytest.mark.parametrize(
    "flag, trained", [("--linear_probe", TRAINED), ("--no-hierarchical_fusion", ("encoder",))]
)
def test_two_processes_train_what_one_does(pretrained, media, tmp_path, flag, trained):
    """With frozen or without unused parameters, which DDP would wait for."""
    start = pretrained["video_first"] / "checkpoint-0.pth"
    flags = [
        *("--mixup", "0", "--cutmix", "0", "--drop_path", "0", "--warmup_epochs", "0"),
        *("--no-export", "--finetune", str(start), *VIEWS, flag),
    ]
    one = finetune(media, tmp_path / "one", *flags, "--batch_size", "4")
    lists = ["--data_path", media / "fold", "--nb_classes", "3", "--epochs", "1"]
    job = Job("run_finetuning", [*FINETUNE, *lists, *flags], tmp_path, 2)
    job.complete()
    one, two = (last_state(folder, 0)["model"] for folder in (one, job.out))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)
    assert_kept(last_state(pretrained["video_first"], 0)["model"], two, trained)
    count = sum(weight.numel() for name, weight in two.items() if name.startswith(TRAINED))
    (line,) = lines(job.out / "log.txt")
    assert (line["n_parameters"] == count) == (trained == TRAINED)


def test_a_variant_pretrains_in_two_processes_without_unused_parameters(media, tmp_path):
    flags = ["--fusion_order", "audio_first", "--epochs", "1"]
    flags += ["--data_path", media / "lists", *VARIANTS["none"][0].split()]
    job = Job("run_pretraining", [*PRETRAIN, *flags], tmp_path, 2)
    job.complete("--batch_size", "1")
    assert len(lines(job.out / "steps.jsonl")) == 2


def test_an_average_of_weights_is_tested_kept_and_resumed_exactly(media, tmp_path):
    flags = ["--epochs", "3", "--ema", "0.3", "--balanced_sampler", "--lr", "0.05", *VIEWS]
    flags += ["--keep_ckpts", "3", "--no-export"]
    whole = finetune(media, tmp_path / "whole", *flags)
    states = [last_state(whole, epoch) for epoch in range(3)]
    kept = last_state(whole, "ema")["model"]
    assert kept.keys() == states[2]["model"].keys() and same(kept, states[2]["model_ema"])
    name = "head.weight"
    assert not torch.equal(kept[name], states[2]["model"][name])
    assert len(rows(whole / "pred_ema.csv")) == len(rows(whole / "pred.csv"))
    part = tmp_path / "part"
    part.mkdir()
    (part / "checkpoint-1.pth").write_bytes((whole / "checkpoint-1.pth").read_bytes())
    finetune(media, part, *flags)
    assert same(last_state(part, 2)["model_ema"], kept)
    with pytest.raises(ValueError, match="--ema 0.3 -> 0.0"):
        finetune(media, part, *flags, "--ema", "0", "--epochs", "4")
    plain = EmotionRecognizer.from_checkpoint(whole / "checkpoint-ema.pth", device="cpu")
    row = rows(whole / "pred_ema.csv")[0]
    wav = row["clip"].replace("faces", "clip") + ".wav"
    answer = plain.predict(row["clip"], audio=wav, protocol="test")
    found = list(answer.probabilities.values())
    assert found == pytest.approx([float(row[f"p{k}"]) for k in range(3)], abs=1e-6)


def test_weights_of_classes_are_logged(media, tmp_path):
    run = finetune(media, tmp_path, "--class_weights", "effective", "--no-export", *VIEWS)
    assert "weights of the classes: 0.667 1.33 1.33" in (run / "run.log").read_text()
