"""The HParams tab, as TensorBoard's own backend reads it."""

import logging

import numpy as np
import pytest

from hicmae.training.logs import Board, begin_hparams, end_hparams, hparams_of
from tests.boards import board, differing, sessions

SETTINGS = {
    "run": {"output_dir": "a", "seed": 3, "num_workers": 2},
    "data": {"data_path": "lists/fold1", "roll_mag_aug": True},
    "optim": {"lr": 1e-3, "clip_grad": None, "opt_betas": (0.9, 0.95)},
}
CHOSEN = hparams_of(SETTINGS, total_batch=16)


def test_settings_are_what_is_trained_and_which_clips_not_where_and_how():
    assert CHOSEN == {
        "seed": 3.0,
        "data_path": "lists/fold1",
        "roll_mag_aug": True,
        "lr": 1e-3,
        "clip_grad": "none",
        "opt_betas": "0.9 0.95",
        "total_batch": 16,
    }


def test_a_run_shows_its_settings_from_the_start_and_its_metrics_at_the_end(tmp_path):
    begin_hparams(tmp_path / "a", CHOSEN)
    assert sessions(tmp_path) == {"a/final": ("UNKNOWN", CHOSEN, {})}
    picture = {"test_last/confusion": np.zeros((4, 6, 3), np.uint8)}
    end_hparams(tmp_path / "a", CHOSEN, {"test_last/uar": 0.5}, 9, picture)
    ((name, (status, settings, metrics)),) = sessions(tmp_path).items()
    assert (name, status, settings) == ("a/final", "SUCCESS", CHOSEN)
    assert metrics == {"test_last/uar": 0.5}
    assert [e.step for e in board(tmp_path / "a/final").Images("test_last/confusion")] == [9]


def test_runs_in_one_tensorboard_are_compared_whatever_their_flags(tmp_path):
    other = {**CHOSEN, "lr": 2e-3, "clip_grad": 1.0, "mask_ratio": 0.9}
    for name, settings in (("a", CHOSEN), ("b", other)):
        end_hparams(tmp_path / name, settings, {f"test_last/{name}": 1.0, "test_last/uar": 0.5}, 4)
    assert differing(tmp_path) == {"lr", "clip_grad"}
    rows = sessions(tmp_path)
    assert [rows[name][1]["lr"] for name in ("a/final", "b/final")] == [1e-3, 2e-3]
    assert rows["b/final"][1]["mask_ratio"] == 0.9 and "mask_ratio" not in rows["a/final"][1]
    assert rows["b/final"][2] == {"test_last/b": 1.0, "test_last/uar": 0.5}


def test_a_run_that_goes_on_has_one_session_with_the_settings_that_hold_now(tmp_path):
    begin_hparams(tmp_path, CHOSEN)
    begin_hparams(tmp_path, {**CHOSEN, "lr": 5e-4})
    end_hparams(tmp_path, CHOSEN, {"loss": 2.0}, 4)
    begin_hparams(tmp_path, {**CHOSEN, "epochs": 9.0})  # longer, and not at its end yet
    assert sessions(tmp_path) == {"final": ("UNKNOWN", {**CHOSEN, "epochs": 9.0}, {})}
    end_hparams(tmp_path, CHOSEN, {"loss": 1.0}, 8)
    assert sessions(tmp_path)["final"][0] == "SUCCESS"
    assert [(e.step, e.value) for e in board(tmp_path / "final").Scalars("loss")] == [(8, 1.0)]


def test_an_end_cut_short_by_a_kill_is_written_again_and_a_whole_one_is_not(tmp_path):
    begin_hparams(tmp_path, CHOSEN)
    cut = Board(tmp_path / "final", purge_step=1)
    cut.scalar("loss", 1.0, 4)
    cut.file.close()
    for _ in range(2):
        end_hparams(tmp_path, CHOSEN, {"loss": 1.0, "accuracy": 0.5}, 4)
    assert len(list((tmp_path / "final").iterdir())) == 3
    assert sessions(tmp_path) == {"final": ("SUCCESS", CHOSEN, {"loss": 1.0, "accuracy": 0.5})}
    assert [e.step for e in board(tmp_path / "final").Scalars("loss")] == [4]


@pytest.mark.parametrize("write", [
    lambda folder: begin_hparams(folder, CHOSEN),
    lambda folder: end_hparams(folder, CHOSEN, {"loss": 1.0}, 4),
])  # fmt: skip
def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog, write):
    (tmp_path / "final").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        write(tmp_path)
    assert f"HParams tab does not show this run: cannot write in '{tmp_path}" in caplog.text
