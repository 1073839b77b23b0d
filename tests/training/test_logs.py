"""Run logs: valid JSON, robust to a kill, no step twice after a resume; TensorBoard reads them."""

import io
import json
import logging
import sys
import time

import numpy as np
import pytest
from PIL import Image

from hicmae.training import distributed
from hicmae.training.logs import (
    Progress,
    RunLogger,
    open_lines,
    read_lines,
    setup_logging,
    show_hparams,
)
from tests.boards import board, sessions
from tests.conftest import files_of_at_most

SETTINGS = {
    "run": {"output_dir": "a", "seed": 3, "num_workers": 2},
    "data": {"data_path": "lists/fold1", "roll_mag_aug": True},
    "optim": {"lr": 1e-3, "clip_grad": None, "opt_betas": (0.9, 0.95)},
}
CHOSEN = {"seed": 3.0, "data_path": "lists/fold1", "roll_mag_aug": True, "lr": 1e-3,
          "clip_grad": "none", "opt_betas": "0.9 0.95", "total_batch": 16.0}  # fmt: skip


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield root
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def losses(folder):
    return [(e.step, e.value) for e in board(folder).Scalars("train/loss")]


def test_resume_writes_no_step_and_no_epoch_twice(tmp_path):
    """Numbers that JSON does not know are null; a rank that is not the first writes nothing."""
    with RunLogger(tmp_path, tmp_path) as log:
        for step in range(10):
            log.steps.line({"step": step, "loss": 1.0, "inf": -np.inf, "nan": np.float64("nan")})
        for epoch in range(3):
            log.epochs.line({"epoch": epoch, "run": 1})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # cut short by a kill
    with RunLogger(tmp_path, tmp_path, step=6, epoch=2) as log:
        for step in range(6, 12):
            log.steps.line({"step": step, "loss": 2.0})
        log.epochs.line({"epoch": 2, "run": 2})
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    odd = {"inf": None, "nan": None}
    assert steps[:6] == [{"step": k, "loss": 1.0, **odd} for k in range(6)]
    assert steps[6:] == [{"step": k, "loss": 2.0} for k in range(6, 12)]
    epochs = [(line["epoch"], line["run"]) for line in read_lines(tmp_path / "log.txt")]
    assert epochs == [(0, 1), (1, 1), (2, 2)]
    number = (tmp_path / "steps.jsonl").stat().st_ino
    open_lines(tmp_path / "steps.jsonl", "step", 12).close()
    assert (tmp_path / "steps.jsonl").stat().st_ino == number, "nothing to repair: left alone"
    with RunLogger(None, tmp_path / "none") as log:
        log.steps.line({"step": 0})
        log.board.scalars(0, {"loss": 1.0}, "train")
        log.sync()
    assert not (tmp_path / "none").exists()


def test_full_disk_warns_once_and_what_it_refused_is_written_later(tmp_path, caplog):
    log, path = RunLogger(tmp_path, tmp_path), tmp_path / "steps.jsonl"
    log.steps.line({"step": 0})
    with files_of_at_most(path.stat().st_size + 4):  # part of a line still fits
        log.steps.line({"step": 1})
        log.steps.line({"step": 2})
    # Before it is closed: a kill would lose none.
    assert [line["step"] for line in read_lines(path)] == [0]
    log.steps.line({"step": 3})
    log.__exit__()
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in range(4))
    assert caplog.text.count("training goes on") == 1


def test_a_console_that_is_gone_does_not_end_the_run(tmp_path, monkeypatch, root_logger):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    setup_logging(tmp_path)
    monkeypatch.setattr(sys, "stdout", Gone())
    for text in ("first", "second"):
        logging.getLogger("hicmae.test").info(text)
        assert f"INFO {text}\n" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("torn", [0, 5])  # bytes that a power cut may take
def test_tensorboard_forgets_steps_after_the_resume_and_reads_on_after_a_torn_file(tmp_path, torn):
    with RunLogger(tmp_path / "out", tmp_path / "board") as log:
        for step in range(3):
            log.board.scalars(step, {"loss": float(step)}, "train")
    (events,) = (tmp_path / "board").iterdir()
    events.write_bytes(events.read_bytes()[: events.stat().st_size - torn])
    with RunLogger(tmp_path / "out", tmp_path / "board", purge_step=2) as log:
        log.board.scalars(2, {"loss": 20.0}, "train")
    assert losses(tmp_path / "board") == [(0, 0), (1, 1), (2, 20)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.txt", "steps.jsonl"]


def test_pictures_look_as_they_did(tmp_path):
    image = np.kron(np.arange(144, dtype=np.uint8).reshape(6, 8, 3), np.ones((9, 9, 1), np.uint8))
    with RunLogger(tmp_path, tmp_path) as log:
        log.board.image("drawing", image, 2)
    (shown,) = board(tmp_path).Images("drawing")
    assert (shown.step, shown.height, shown.width) == (2, 54, 72)
    read = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)), dtype=float)
    assert np.abs(read - image).mean() < 2


def test_records_go_once_to_console_and_file_and_of_other_ranks_warnings_only_to_the_console(
    tmp_path, capsys, root_logger
):
    log = logging.getLogger("hicmae.test")
    setup_logging(tmp_path / "a")
    setup_logging(tmp_path / "b")
    log.info("hello %d", 7)
    assert capsys.readouterr().out.count("INFO hello 7") == 1
    assert "hello 7" not in (tmp_path / "a" / "run.log").read_text()
    assert (tmp_path / "b" / "run.log").read_text().count("INFO hello 7\n") == 1
    setup_logging(tmp_path / "out", main=False)
    log.info("quiet")
    log.warning("loud")
    shown = capsys.readouterr().out
    assert "loud" in shown and "quiet" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal, main", [(False, True), (True, True), (True, False)])
def test_progress_is_a_bar_on_a_terminal_and_a_line_every_few_steps_elsewhere(
    terminal, main, caplog, monkeypatch
):
    """The remaining time is that of the steps since the start; ranks but the first are silent."""
    caplog.set_level("INFO")
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    values = {"loss": 1.23456, "lr": 2.9e-4, "odd": float("nan"), "a": 1, "b": 2, "too_many": 3}
    now = iter([0.0, 80.0, 160.0, 200.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now, 200.0))
    with Progress(110, "epoch 3/9", 4, 100) as progress:
        for _ in range(10):
            progress.update(values)
        progress._bar.refresh()
    shown = "loss 1.235  lr 0.00029  odd nan  a 1  b 2"
    lines = [("104/110", "0:02:00"), ("108/110", "0:00:40"), ("110/110", "0:00:00")]
    expected = [f"epoch 3/9 [{count}] eta {left}  {shown}" for count, left in lines]
    assert caplog.messages == ([] if terminal else expected)
    assert (
        ("epoch 3/9" in screen.getvalue())
        == ("loss 1.235" in screen.getvalue())
        == (terminal and main)
    )


def test_a_run_shows_its_settings_and_what_came_out_of_it_once(tmp_path):
    for step, uar in ((9, 0.5), (8, 0.4)):  # the second is the same run, started again
        show_hparams(tmp_path / "a", SETTINGS, {"test_last/uar": uar}, step, total_batch=16)
    assert sessions(tmp_path) == {"a/final": ("SUCCESS", CHOSEN, {"test_last/uar": 0.5})}
    assert [e.step for e in board(tmp_path / "a/final").Scalars("test_last/uar")] == [9]
    RunLogger(tmp_path / "a", tmp_path / "a").__exit__()  # it goes on
    show_hparams(tmp_path / "a", SETTINGS, {"test_last/uar": 0.25}, 12, total_batch=8)
    expected = "SUCCESS", {**CHOSEN, "total_batch": 8.0}, {"test_last/uar": 0.25}
    assert sessions(tmp_path / "a") == {"final": expected}


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "final").write_text("a file where the folder should be")
    show_hparams(tmp_path, SETTINGS, {"loss": 1.0}, 4)
    assert f"HParams tab does not show this run: cannot write in '{tmp_path}" in caplog.text
