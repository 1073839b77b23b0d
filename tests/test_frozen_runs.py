"""Runs with frozen weights and few labels: what stays, what goes on, what is refused."""

import json

import pytest
import timm
import torch

import hicmae  # noqa: F401
import run_finetuning
from hicmae import EmotionRecognizer
from tests.small_runs import FINETUNE, Job, assert_same_run, last_state, lines, make_media, rows

TRAINED = ("video_layer_weights", "audio_layer_weights", "fc_norm.", "head.")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Twelve labelled clips of three classes, and the weights that runs start from."""
    root = make_media(tmp_path_factory.mktemp("frozen"), count=12)
    torch.manual_seed(5)
    sizes = {"num_classes": 3, "depth": 2, "depth_audio": 2, "fusion_depth": 1}
    geometry = {"num_frames": 4, "img_size": 32, "img_size_audio": (64, 128)}
    model = timm.create_model("avit_dim128_patch16_160_a256", **sizes, **geometry)
    weights = {n: w for n, w in model.state_dict().items() if n.startswith("encoder")}
    torch.save({"model": weights}, root / "start.pth")
    return root


def command(media, *arguments):
    return [*FINETUNE, "--data_path", str(media / "fold"), "--nb_classes", "3", "--epochs", "2",
            "--finetune", str(media / "start.pth"), *arguments, "--output_dir"]  # fmt: skip


def assert_kept(media, weights, trained=TRAINED):
    """Frozen weights are those of the start bit for bit, all others have moved."""
    start = torch.load(media / "start.pth", weights_only=True)["model"]
    for name in start:
        kept = not name.startswith(trained)
        assert torch.equal(weights[name], start[name]) == kept, name


@pytest.fixture(scope="module")
def probe(media):
    """A probe that was never interrupted."""
    out = media / "probe"
    run_finetuning.main([*command(media, "--linear_probe", "--lr", "0.5"), str(out)])
    return out


def test_a_probe_keeps_encoders_and_fusion_and_trains_the_rest(media, probe):
    state = last_state(probe, 1)
    assert_kept(media, state["model"])
    assert not torch.equal(state["model"]["video_layer_weights"], torch.full((2,), 0.5))
    log = (probe / "run.log").read_text()
    trained = 2 + 2 + 2 * 512 + 3 * 512 + 3
    assert f"frozen: encoders and fusion; {trained:,} of" in log
    assert [line["n_parameters"] for line in lines(probe / "log.txt")] == [trained, trained]
    assert len(state["optimizer"]["state"]) == 6


def test_the_export_of_a_probe_answers_as_its_test(probe):
    recognizer = EmotionRecognizer.from_checkpoint(probe / "export/last", "cpu")
    row = rows(probe / "pred.csv")[0]
    sound = f"{row['clip'].rpartition('/')[0]}/clip 0.wav"
    answer = recognizer.predict(row["clip"], audio=sound, protocol="test")
    for k, value in enumerate(answer.scores.values()):
        assert float(row[f"p{k}"]) == pytest.approx(value, abs=2e-5)


def test_a_killed_probe_goes_on_bit_for_bit(media, probe, tmp_path):
    job = Job("run_finetuning", command(media, "--linear_probe", "--lr", "0.5")[:-1], tmp_path)
    job.kill_within(1)
    job.complete("--save_interval", "0")
    assert "of its 6 steps done" in job.log()
    assert_same_run(job.out, probe, 1)


UPPER = ("encoder.blocks.1", "encoder_audio.blocks.1", "encoder.norm", "encoder_audio.norm",
         "encoder_fusion")  # fmt: skip


@pytest.mark.parametrize(
    "frozen, trained",
    [("--linear_probe", TRAINED), ("--freeze_layers=1", (*TRAINED, *UPPER))],
)
def test_two_processes_train_what_one_does(media, tmp_path, frozen, trained):
    plain = ["--mixup", "0", "--cutmix", "0", "--drop_path", "0", "--epochs", "1", "--no-export"]
    arguments = command(media, frozen, *plain, "--warmup_epochs", "0")
    for count, flags in ((2, []), (1, ["--batch_size", "4"])):
        Job("run_finetuning", arguments[:-1], tmp_path / f"{count}", count).complete(*flags)
    one, two = (last_state(tmp_path / f"{count}/out", 0)["model"] for count in (1, 2))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)
    assert_kept(media, two, trained)


def test_a_share_of_the_labels_is_drawn_after_the_validation_clips(media, tmp_path):
    arguments = ["--linear_probe", "--epochs", "1", "--val_split", "clip", "--val_share", "0.25"]
    base = [*command(media, *arguments), str(tmp_path), "--no-export", "--label_share"]
    run_finetuning.main([*base, "0.5"])
    held, trained = (
        {row["clip"] for row in rows(tmp_path / name)}
        for name in ("val_clips.csv", "train_clips.csv")
    )
    assert len(held) == 3 and len(trained) in (5, 6) and not held & trained
    assert "clips: 6 for training, 3 for" in (tmp_path / "run.log").read_text()
    assert len(lines(tmp_path / "steps.jsonl")) == 3
    with pytest.raises(ValueError, match="label_share 0.5 -> 1.0, clips of the training list"):
        run_finetuning.main([*base, "1"])


def test_what_is_frozen_without_a_checkpoint_is_told(media, tmp_path, caplog):
    arguments = command(media, "--freeze_layers", "2", "--epochs", "1", "--finetune", "")
    with caplog.at_level("INFO"):
        run_finetuning.main([*arguments, str(tmp_path), "--no-export", "--modality", "a"])
    assert "what is frozen keeps its random start" in caplog.text
    assert "frozen: 2 block(s) of each encoder" in caplog.text
    assert json.loads((tmp_path / "metrics.json").read_text())["clips"] == 5
