"""Checkpoints, run folders and exports that earlier code wrote still load, go on and test."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import run_finetuning
import run_pretraining
from hicmae import EmotionRecognizer
from hicmae.inference.model import load_model
from hicmae.models.losses import pretrain_loss
from hicmae.training import checkpoint
from tests.small_runs import GEOMETRY, lines, make_media, rows

ARCHIVE = Path(__file__).parent / "frozen" / "runs.tar.xz"
PRETRAIN = """
    --model pretrain_hicmae_dim128_patch16_160_a256 --data_path frozen_media/lists
    --encoder_depth 1 --encoder_depth_audio 1 --decoder_depth 2 --decoder_depth_audio 2
    --encoder_fusion_depth 1 --return_intermediate_features 0 --mask_ratio 0.5 --lr 0.05
    --use_frame_diff_as_target --batch_size 2 --warmup_epochs 1 --print_freq 2
"""
FINETUNE = """
    --model avit_dim128_patch16_160_a256 --data_path frozen_media/fold --nb_classes 3
    --class_names calm glad mad --depth 1 --depth_audio 1 --fusion_depth 1 --batch_size 2
    --warmup_epochs 1 --no-export
"""

# What --eval of commit 7d13ca8 gives for `run` on the lists of `make_media`. The run's own pred.csv
# is from before its tensors were coarsened.
PROBABILITIES = """
    0.265550 0.608989 0.125462   0.281145 0.567927 0.150928   0.282089 0.568970 0.148941
    0.303315 0.510777 0.185907   0.323090 0.459966 0.216944
"""


def pretrain(out, *flags):
    run_pretraining.main([*PRETRAIN.split(), *GEOMETRY, "--output_dir", str(out), *flags])


def finetune(out, *flags):
    run_finetuning.main([*FINETUNE.split(), *GEOMETRY, "--output_dir", str(out), *flags])


@pytest.fixture(scope="module", autouse=True)
def frozen(tmp_path_factory):
    """Work in a folder with the files of then, and the media that their lists name."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_media(Path("frozen_media"))
        yield folder / "frozen"


@pytest.fixture(scope="module")
def expected(frozen):
    return json.loads((frozen / "expected.json").read_text())


def normal(shape, seed):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


VIDEO, AUDIO = normal((2, 3, 4, 32, 32), 1), normal((2, 1, 64, 128), 2)


def test_a_pretrained_model_gives_the_losses_of_then(frozen, expected):
    masks = [torch.arange(count).expand(2, -1) % 2 == 0 for count in (2 * 2 * 2, 4 * 8)]
    model = timm.create_model(
        "pretrain_hicmae_dim128_patch16_160_a256", encoder_depth=1, encoder_depth_audio=1,
        decoder_depth=2, decoder_depth_audio=2, encoder_fusion_depth=1,
        return_intermediate_features=(0,), num_frames=4, img_size=32, img_size_audio=(64, 128),
    )  # fmt: skip
    state = checkpoint.load(frozen / "pretrain/checkpoint-1.pth", verify=True)
    model.load_state_dict(state["model"])
    inputs = (VIDEO, masks[0], AUDIO, masks[1])
    with torch.no_grad():
        loss = pretrain_loss(model.eval()(*inputs), *inputs, frame_diff=True)
    found = {name: float(getattr(loss, name)) for name in expected["pretrain"]}
    assert found == pytest.approx(expected["pretrain"], rel=1e-5)


def test_a_classifier_gives_the_scores_of_then(frozen, expected):
    model, _ = load_model(frozen / "run/checkpoint-1.pth")
    logits = torch.tensor(expected["logits"])
    torch.testing.assert_close(model(VIDEO, AUDIO), logits, rtol=1e-4, atol=1e-5)


def test_an_export_answers_with_the_names_of_then(frozen, expected):
    recognizer = EmotionRecognizer.from_checkpoint(frozen / "export", device="cpu")
    assert list(recognizer.config.names) == expected["export_names"]


def test_a_finished_run_is_finished_and_goes_on_when_it_is_allowed_more_epochs(
    frozen, tmp_path, caplog
):
    out = shutil.copytree(frozen / "pretrain", tmp_path / "out")
    caplog.set_level("INFO")
    pretrain(out, "--epochs", "2")
    assert "training is finished: all 2 epochs are done" in caplog.text
    with pytest.raises(ValueError, match="belongs to another run: --epochs 2 -> 3; "):
        pretrain(out, "--epochs", "3")
    pretrain(out, "--epochs", "3", "--allow_changes")
    assert "epoch 2, 0 of its 3 steps done" in caplog.text
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(9))
    assert checkpoint.load(out / "checkpoint-2.pth")["epoch"] == 2


def test_finetuning_starts_from_a_pretrained_model_of_then(frozen, tmp_path, caplog):
    caplog.set_level("INFO")
    source = str(frozen / "pretrain/checkpoint-1.pth")
    finetune(tmp_path, "--epochs", "1", "--finetune", source)
    assert "(100.0% of the encoder weights)" in caplog.text
    assert (tmp_path / "pred_best.csv").exists()


def test_a_run_folder_of_then_is_tested_with_the_scores_of_then(frozen, tmp_path):
    out = shutil.copytree(frozen / "run", tmp_path / "out")
    finetune(out, "--eval")
    answers = rows(out / "pred_eval-1-fold.csv")
    found = [float(row[name]) for row in answers for name in ("p0", "p1", "p2")]
    assert found == pytest.approx(list(map(float, PROBABILITIES.split())), abs=1e-4)
    assert [row["label"] for row in answers] == list("01201")
    assert {row["prediction"] for row in answers} == {"1"}
    metrics = json.loads((out / "metrics_eval-1-fold.json").read_text())
    assert (metrics["clips"], metrics["war"], metrics["uar"]) == (5, 0.4, pytest.approx(1 / 3))
