"""The HParams and Text tabs, as TensorBoard's own backend reads them; where a run comes from."""

import logging
import shlex
import sys

import numpy as np
import pytest
import torch

from hicmae.training.logs import Board, RunLogger, hparams_of, provenance
from hicmae.training.logs import show_hparams as show
from tests.boards import board, sessions, texts

SETTINGS = {
    "run": {"output_dir": "a", "seed": 3, "num_workers": 2},
    "data": {"data_path": "lists/fold1", "roll_mag_aug": True},
    "optim": {"lr": 1e-3, "clip_grad": None, "opt_betas": (0.9, 0.95)},
}
CHOSEN = hparams_of(SETTINGS, total_batch=16)


def test_settings_are_what_is_trained_and_which_clips_not_where_and_how():
    expected = {"seed": 3.0, "data_path": "lists/fold1", "roll_mag_aug": True, "lr": 1e-3}
    expected |= {"clip_grad": "none", "opt_betas": "0.9 0.95", "total_batch": 16}
    assert CHOSEN == expected


def test_a_run_shows_its_settings_from_the_start_and_its_metrics_at_the_end(tmp_path):
    show(tmp_path / "a", CHOSEN)
    assert sessions(tmp_path) == {"a/final": ("UNKNOWN", CHOSEN, {})}
    picture = {"test_last/confusion": np.zeros((4, 6, 3), np.uint8)}
    show(tmp_path / "a", CHOSEN, {"test_last/uar": 0.5}, 9, picture)
    assert sessions(tmp_path) == {"a/final": ("SUCCESS", CHOSEN, {"test_last/uar": 0.5})}
    assert [e.step for e in board(tmp_path / "a/final").Images("test_last/confusion")] == [9]


def test_runs_in_one_tensorboard_are_compared_whatever_their_flags(tmp_path):
    other = {**CHOSEN, "lr": 2e-3, "clip_grad": 1.0, "mask_ratio": 0.9}
    for name, settings in (("a", CHOSEN), ("b", other)):
        show(tmp_path / name, settings, {f"test_last/{name}": 1.0, "test_last/uar": 0.5}, 4)
    rows = sessions(tmp_path)
    assert (rows["a/final"][1], rows["b/final"][1]) == (CHOSEN, other)
    assert rows["b/final"][2] == {"test_last/b": 1.0, "test_last/uar": 0.5}


def test_a_run_that_goes_on_has_one_session_with_the_settings_that_hold_now(tmp_path):
    show(tmp_path, CHOSEN)
    show(tmp_path, {**CHOSEN, "lr": 5e-4})
    show(tmp_path, CHOSEN, {"loss": 2.0}, 4)
    show(tmp_path, {**CHOSEN, "epochs": 9.0})  # longer, and not at its end yet
    assert sessions(tmp_path) == {"final": ("UNKNOWN", {**CHOSEN, "epochs": 9.0}, {})}
    show(tmp_path, CHOSEN, {"loss": 1.0}, 8)
    assert sessions(tmp_path)["final"][0] == "SUCCESS"
    assert [(e.step, e.value) for e in board(tmp_path / "final").Scalars("loss")] == [(8, 1.0)]


def test_an_end_cut_short_by_a_kill_is_written_again_and_a_whole_one_is_not(tmp_path):
    show(tmp_path, CHOSEN)
    cut = Board(tmp_path / "final", purge_step=1)
    cut.scalar("loss", 1.0, 4)
    cut.close()
    for _ in range(2):
        show(tmp_path, CHOSEN, {"loss": 1.0, "accuracy": 0.5}, 4)
    assert len(list((tmp_path / "final").iterdir())) == 3
    assert sessions(tmp_path) == {"final": ("SUCCESS", CHOSEN, {"loss": 1.0, "accuracy": 0.5})}
    assert [e.step for e in board(tmp_path / "final").Scalars("loss")] == [4]


@pytest.mark.parametrize("final", [(), ({"loss": 1.0}, 4)])
def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog, final):
    (tmp_path / "final").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        show(tmp_path, CHOSEN, *final)
    assert f"HParams tab does not show this run: cannot write in '{tmp_path}" in caplog.text


def test_the_command_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["run_pretraining.py", "--data_path", "my --clips", "--opt_betas", "0.9", "0.95", "--x"]
    monkeypatch.setattr(sys, "argv", words)
    text = provenance(torch.device("cpu"), "fp32", 1)["command"]
    assert all(line.startswith("    ") for line in text.splitlines())
    script = "".join(line[4:] + "\n" for line in text.splitlines()).replace("\\\n", "")
    assert shlex.split(script) == ["cd", str(tmp_path), sys.executable, *words]
    assert "        --opt_betas 0.9 0.95 \\\n" in text


def test_texts_reach_tensorboard_once_a_start_even_if_they_are_not_utf_8(tmp_path):
    facts = provenance(torch.device("cpu"), "bf16", 4)
    for step, text in ((0, "first"), (4, "second"), (4, "third \udcff")):
        with RunLogger(tmp_path, resume_step=step) as log:
            log.texts(step, {**facts, "command": text}, prefix="run")
    assert texts(tmp_path, "run/command") == {0: "first", 4: "third \\udcff"}
    shown = texts(tmp_path, "run/environment")[4]
    assert "| processes | 4 |" in shown and "| precision | bf16 |" in shown
    assert f"torch {torch.__version__}" in shown
