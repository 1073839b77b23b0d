"""Writing checkpoints goes wrong: killed within a write, broken files, a full disk."""

import errno
import os
import resource
import signal
import subprocess
import time
from contextlib import suppress

import pytest
import torch

from hicmae.training import checkpoint
from tests.small_runs import (
    Run,
    assert_nothing_left,
    assert_same_run,
    complete,
    kill_when,
    saved_within,
    steps_written,
    tensorboard_points,
    until,
)


def die_while_writing_the_second_epoch():
    """Die by SIGKILL when half of checkpoint-1.pth is written."""
    write = torch.save

    def half(state, file, *args):
        write(state, file, *args)
        if state["epoch"] == 1:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def test_a_kill_within_a_write_costs_no_more_than_that_write(pretrain, whole, tmp_path):
    out = tmp_path / "out"
    command = [*pretrain, out]
    run = Run("run_pretraining", command, tmp_path / "log", die_while_writing_the_second_epoch)
    assert run.wait() == -signal.SIGKILL
    (part,) = out.glob(".part-*")
    assert not (out / "checkpoint-1.pth").exists()
    complete("run_pretraining", command, tmp_path / "log")
    log = (out / "run.log").read_text()
    assert f"removed '{part.name}', which a killed run left half-written" in log
    assert_same_run(out, whole / "run_pretraining", 2)


def break_file(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        del content[len(content) // 2 :]
    elif kind == "flipped":
        content[len(content) // 3] ^= 4
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        pytest.param("flipped", marks=pytest.mark.slow),
        pytest.param("empty", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_from_the_save_before_a_broken_one_and_says_so(
    kind, pretrain, whole, tmp_path
):
    out = tmp_path / "out"
    command = [*pretrain, out, "--save_interval", "0"]
    kill_when(saved_within(out, 1), "run_pretraining", command, tmp_path / "log")
    broken = max(out.glob("checkpoint-1-step*.pth"), key=lambda path: path.name)
    break_file(broken, kind)
    complete("run_pretraining", [*pretrain, out], tmp_path / "log")
    log = (out / "run.log").read_text()
    assert f"skipping a broken checkpoint, trying the one before: checkpoint '{broken}'" in log
    assert f"the next save replaces what lies ahead of this run: {broken.name}" in log
    assert_same_run(out, whole / "run_pretraining", 2)


def disk_is_full_in_the_first_two_epochs():
    """Fail with ENOSPC half-way through every checkpoint of the first two epochs."""
    write = torch.save

    def full(state, file, *args):
        if state["epoch"] < 2:
            file.write(bytes(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, file, *args)

    torch.save = full


def test_a_full_disk_while_saving_warns_and_training_goes_on(finetune, whole, tmp_path):
    """The best epoch of the whole run, the first, is lost: the best of those kept stands for it."""
    out = tmp_path / "out"
    options = ["--save_interval", "0"]
    fault = disk_is_full_in_the_first_two_epochs
    complete("run_finetuning", [*finetune, out, *options], tmp_path / "log", fault)
    log = (out / "run.log").read_text()
    assert "could not write checkpoint" in log and "No space left on device" in log
    assert "training goes on" in log and "is the best so far, but could not be kept" in log
    expected = (whole / "run_finetuning/steps.jsonl").read_text()
    assert (out / "steps.jsonl").read_text() == expected
    assert sorted(path.name for path in out.glob("checkpoint*")) == [
        "checkpoint-2.pth",
        "checkpoint-best.pth",
    ]
    assert checkpoint.load(out / "checkpoint-best.pth")["epoch"] == 2
    assert_nothing_left(out)


def no_file_grows_large():
    """Let the kernel refuse files above 20 MiB: smaller than a checkpoint, larger than logs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 2**20, hard))


@pytest.mark.slow
def test_a_run_whose_last_state_cannot_be_saved_fails_and_goes_on_from_what_there_is(
    pretrain, whole, tmp_path
):
    out = tmp_path / "out"
    saved = (out / "checkpoint-0.pth").exists
    kill_when(saved, "run_pretraining", [*pretrain, out], tmp_path / "log")
    before = (out / "checkpoint-0.pth").read_bytes()
    run = Run("run_pretraining", [*pretrain, out], tmp_path / "log", no_file_grows_large)
    assert run.wait() == 1
    assert "the state after the last epoch is not saved" in run.output()
    assert (out / "checkpoint-0.pth").read_bytes() == before
    assert_nothing_left(out)
    complete("run_pretraining", [*pretrain, out], tmp_path / "log")
    assert_same_run(out, whole / "run_pretraining", 2)


@pytest.fixture
def tiny_disk(tmp_path):
    """Mount a file system of 80 MiB, for three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def slow_steps():
    """Give each step a third of a second."""
    from hicmae.training import loop as engine

    seed_step = engine.seed_step

    def slow(*args):
        time.sleep(0.3)
        seed_step(*args)

    engine.seed_step = slow


def test_a_disk_without_any_space_for_a_while_costs_nothing_but_saves(
    tiny_disk, pretrain, whole, tmp_path
):
    """Not even logs and the console can be written; later all that they owe is there."""
    out = tiny_disk / "out"
    run = Run("run_pretraining", [*pretrain, out], tiny_disk / "console", slow_steps)
    until(steps_written(out, 1), run)
    with open(tiny_disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(512)):
            pass
    time.sleep(1.2)
    (tiny_disk / "ballast").unlink()
    assert run.wait() == 0
    assert_same_run(out, whole / "run_pretraining", 2)
    assert tensorboard_points(out) == tensorboard_points(whole / "run_pretraining")
