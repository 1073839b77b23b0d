"""The picture of TensorBoard: what it shows, and one line where something is missing."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hicmae.training.logs import RunLogger, end_hparams
from scripts.figures import tensorboard

ROOT = Path(__file__).parents[1]


def test_curves_of_both_stages_and_a_picture_of_each_are_chosen():
    curves = {
        "folds/fold1": ["train/loss", "train/lr", "val/uar", "val/war"],
        "pretrain": ["train/loss", "train/contrastive_acc_0", "train/contrastive_acc_9"],
        "pretrain/final": ["train_last/loss"],
    }
    pictures = {
        "folds/fold2": ["val/confusion"],
        "folds/fold1": ["val/confusion"],
        "pretrain": ["reconstruction/0", "reconstruction/1"],
    }
    cards = tensorboard.choose_cards(curves, pictures)
    assert [card["tag"] for card in cards] == [
        "train/loss", "train/contrastive_acc_9", "train/lr", "val/uar",
        "reconstruction/0", "val/confusion"]  # fmt: skip
    assert cards[-1]["runId"] == "defaultExperimentId/folds/fold1"


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert tensorboard.main([str(tmp_path)]) == 1
    assert f"error: '{tmp_path}' holds no event files; name the folder" in capsys.readouterr().err


def test_a_missing_browser_is_one_line(tmp_path, monkeypatch, capsys):
    RunLogger(tmp_path).close()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tensorboard.main([str(tmp_path)]) == 1
    assert "error: no browser found, looked for chromium, " in capsys.readouterr().err


def not_installed(name):
    raise PackageNotFoundError(name)


def test_a_missing_tensorboard_is_one_line(tmp_path, monkeypatch, capsys):
    RunLogger(tmp_path).close()
    monkeypatch.setattr(tensorboard, "find_browser", lambda: "browser")
    monkeypatch.setattr(tensorboard, "version", not_installed)
    assert tensorboard.main([str(tmp_path)]) == 1
    assert "tensorboard is not installed; pip install" in capsys.readouterr().err


def test_a_browser_that_fails_is_one_line(tmp_path):
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\necho first >&2\necho no display >&2\nexit 3\n")
    browser.chmod(0o755)
    with pytest.raises(tensorboard.FigureError, match="gave no picture: no display"):
        tensorboard.photograph(str(browser), "http://127.0.0.1:1", (100, 100))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, tensorboard.BROWSERS)), reason="needs a browser")
def test_pictures_are_taken_of_a_real_tensorboard_that_ends_with_them(tmp_path):
    with RunLogger(tmp_path / "runs/a") as log:
        for step in range(20):
            log.scalars(step, {"loss": 20.0 - step}, prefix="train")
        log.image("val/confusion", np.full((40, 40, 3), (255, 0, 255), np.uint8), 19)
    end_hparams(tmp_path / "runs/a", {"lr": 0.1, "model": "tiny"}, {"test_last/uar": 0.5}, 20)
    command = [sys.executable, "scripts/figures/tensorboard.py", str(tmp_path / "runs")]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("tensorboard", "tensorboard_hparams"):
        path = tmp_path / f"{name}.png"
        picture = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        orange = (np.abs(picture.astype(int) - (245, 124, 0)).max(axis=1) < 12).mean()
        assert orange > 0.02, "TensorBoard's head"
        assert path.stat().st_size < 300_000
        if name == "tensorboard":
            magenta = (np.abs(picture.astype(int) - (255, 0, 255)).max(axis=1) < 12).sum()
            assert magenta > 500, "the pinned picture"
    listing = Path("/proc").glob("[0-9]*/cmdline")
    left = [path for path in listing if str(tmp_path / "runs").encode() in _read(path)]
    assert left == []


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
