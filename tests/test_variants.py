"""The ablations through both scripts: each trains, resumes, exports and is told apart."""

import pytest

from hicmae import EmotionRecognizer
from hicmae.inference.model import parse_config
from hicmae.visualize.__main__ import main as visualize
from tests.small_runs import (
    FINETUNE,
    PRETRAIN,
    Job,
    finetune,
    lines,
    make_media,
    pretrain,
    rows,
)

VIEWS = ["--test_num_segment", "1", "--test_num_crop", "1"]
VARIANTS = {
    "no_skips": ["--no-skip_connections"],
    "top": ["--contrastive_levels", "top"],
    "none": ["--contrastive_levels", "none", "--no-skip_connections"],
    "video_first": ["--fusion_order", "video_first"],
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return make_media(tmp_path_factory.mktemp("media"), 4)


@pytest.fixture(scope="module")
def pretrained(media):
    """Every variant's pre-training of two steps."""
    return {
        name: pretrain(media, media / "pretrained" / name, "--image_freq", "0", *flags)
        for name, flags in VARIANTS.items()
    }


@pytest.mark.parametrize(
    "name, levels", [("no_skips", "01"), ("top", "1"), ("none", ""), ("video_first", "01")]
)
def test_steps_log_the_parts_that_there_are(pretrained, name, levels):
    wanted = {f"contrastive_acc_{level}" for level in levels}
    steps = lines(pretrained[name] / "steps.jsonl")
    assert len(steps) == 2
    for step in steps:
        found = {key for key in step if "contrastive" in key}
        assert found == (wanted | {"loss_contrastive"} if levels else set())
        total = step["loss_video"] + step["loss_audio"]
        total += 0.0025 * step.get("loss_contrastive", 0)
        assert step["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("command", ["reconstruction", "retrieval"])
def test_pictures_of_a_model_whose_levels_nothing_reads(pretrained, media, tmp_path, command):
    source, picture = str(pretrained["none"] / "checkpoint-0.pth"), tmp_path / "picture.png"
    lists = ["--data_path", str(media / "lists"), "--out", str(picture)]
    visualize([command, "--checkpoint", source, *lists])
    assert picture.stat().st_size > 10_000


FINETUNED = {
    "av": ["--no-hierarchical_fusion", "--fusion_order", "video_first"],
    "a": ["--no-hierarchical_fusion", "--modality", "a"],
    "v": ["--no-hierarchical_fusion", "--modality", "v"],
}


@pytest.fixture(scope="module")
def finetuned(pretrained, media):
    """Fine-tuned variants, all from the video-first pre-training."""
    start = ["--finetune", str(pretrained["video_first"] / "checkpoint-0.pth")]
    return {
        name: finetune(media, media / "finetuned" / name, *start, *VIEWS, *flags)
        for name, flags in FINETUNED.items()
    }


@pytest.mark.parametrize("name", FINETUNED)
def test_an_exported_variant_answers_with_the_numbers_of_its_test(finetuned, name):
    run = finetuned[name]
    options = {"hierarchical_fusion": False}
    if name == "av":
        options["fusion_order"] = "video_first"
    config = run / "export/last/config.json"
    assert parse_config(config.read_text(), config).architecture.options == options
    for source in (run / "export/last", run / "checkpoint-0.pth"):
        recognizer = EmotionRecognizer.from_checkpoint(source, device="cpu")
        for row in rows(run / "pred.csv")[:2]:
            clip = row["clip"]
            wav = clip.replace("faces", "clip") + ".wav"
            video = clip if name != "a" else wav
            answer = recognizer.predict(video, audio=wav, protocol="test")
            scores = [float(row[f"p{k}"]) for k in range(3)]
            assert list(answer.probabilities.values()) == pytest.approx(scores, abs=1e-6)


def test_features_of_a_variant_are_those_of_its_last_layer(finetuned):
    clip = rows(finetuned["av"] / "pred.csv")[0]["clip"]
    wav = clip.replace("faces", "clip") + ".wav"
    drop = {"modality": "v", "missing_modality": "drop"}
    for name, options, width in (("v", {}, 128), ("av", {}, 512), ("av", drop, 512)):
        recognizer = EmotionRecognizer.from_checkpoint(finetuned[name], device="cpu", **options)
        found = recognizer.features(clip, audio=None if options or name == "v" else wav).arrays
        assert found["fused"].shape[1] == width and found["video_layers"].shape[1:] == (2, 128)
        assert (found["video"] == found["video_layers"][:, -1]).all()
    assert recognizer.predict(clip).probabilities  # without sound


def test_layer_weights_cannot_be_drawn_where_there_are_none(finetuned, tmp_path, capsys):
    source = str(finetuned["a"] / "checkpoint-0.pth")
    with pytest.raises(SystemExit) as stop:
        visualize(["layer_weights", "--checkpoint", source, "--out", str(tmp_path / "w.png")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "has no layer weights to draw: it was fine-tuned with --no-hierarchical_fusion" in error


def test_finetuning_in_another_order_is_told_and_testing_refused(
    pretrained, finetuned, media, tmp_path, caplog
):
    start = ["--finetune", str(pretrained["video_first"] / "checkpoint-0.pth"), "--no-export"]
    finetune(media, tmp_path, *start, *VIEWS, "--fusion_order", "audio_first")
    warning = "was trained with --fusion_order video_first, this model has --fusion_order audio_fi"
    assert warning in caplog.text
    with pytest.raises(ValueError, match="--fusion_order video_first, this model has .* both; tes"):
        finetune(media, tmp_path / "test", "--eval", "--no-hierarchical_fusion",
                 "--resume", str(finetuned["av"] / "checkpoint-0.pth"))  # fmt: skip


def test_variants_train_in_two_processes_without_unused_parameters(media, tmp_path):
    more = ["--data_path", media / "lists", "--fusion_order", "audio_first", "--image_freq", "0"]
    jobs = [("run_pretraining", [*PRETRAIN, *VARIANTS["none"], *more])]
    more = ["--data_path", media / "fold", "--nb_classes", "3", "--no-hierarchical_fusion"]
    jobs += [("run_finetuning", [*FINETUNE, *more, "--no-export", *VIEWS])]
    for script, arguments in jobs:
        job = Job(script, arguments, tmp_path / script, 2)
        job.complete("--epochs", "1", "--batch_size", "1")
        assert len(lines(job.out / "steps.jsonl")) == 2
