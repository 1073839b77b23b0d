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
    assert_nothing_left,
    assert_same_run,
    start,
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


def test_a_kill_within_a_write_costs_no_more_than_that_write(pretrain, whole):
    (run,) = pretrain.start(fault=die_while_writing_the_second_epoch)
    assert run.wait() == -signal.SIGKILL
    (part,) = pretrain.out.glob(".part-*")
    assert not (pretrain.out / "checkpoint-1.pth").exists()
    pretrain.complete()
    assert f"removed '{part.name}', which a killed run left half-written" in pretrain.log()
    assert_same_run(pretrain.out, whole / "run_pretraining", 2)


@pytest.mark.parametrize("kind", ["truncated", pytest.param("flipped", marks=pytest.mark.slow)])
def test_a_run_goes_on_from_the_save_before_a_broken_one_and_says_so(kind, pretrain, whole):
    pretrain.kill_within(1)
    steps = pretrain.out.glob("checkpoint-1-step*.pth")
    broken = max(steps, key=lambda path: path.name)
    content = bytearray(broken.read_bytes())
    if kind == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 4
    broken.write_bytes(content)
    pretrain.complete()
    log = pretrain.log()
    assert f"skipping a broken checkpoint, trying the one before: checkpoint '{broken}'" in log
    assert f"the next save replaces what lies ahead of this run: {broken.name}" in log
    assert_same_run(pretrain.out, whole / "run_pretraining", 2)


def disk_is_full_in_the_first_two_epochs():
    """Fail with ENOSPC half-way through every checkpoint of the first two epochs."""
    write = torch.save

    def full(state, file, *args):
        if state["epoch"] < 2:
            file.write(bytes(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, file, *args)

    torch.save = full


def test_a_full_disk_while_saving_warns_and_training_goes_on(finetune, whole):
    """The best epoch of the whole run, the first, is lost: the best of those kept stands for it."""
    finetune.complete("--save_interval", "0", fault=disk_is_full_in_the_first_two_epochs)
    out, log = finetune.out, finetune.log()
    assert "could not write checkpoint" in log and "No space left on device" in log
    assert "training goes on" in log and "is the best so far, but could not be kept" in log
    expected = (whole / "run_finetuning/steps.jsonl").read_text()
    assert (out / "steps.jsonl").read_text() == expected
    names = ["checkpoint-2.pth", "checkpoint-best.pth"]
    assert sorted(path.name for path in out.glob("checkpoint*")) == names
    assert checkpoint.load(out / "checkpoint-best.pth")["epoch"] == 2
    assert_nothing_left(out)


def no_file_grows_large():
    """Let the kernel refuse files above 20 MiB: smaller than a checkpoint, larger than logs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 2**20, hard))


@pytest.mark.slow
def test_a_run_whose_last_state_cannot_be_saved_fails_and_goes_on_from_what_there_is(
    pretrain, whole
):
    first = pretrain.out / "checkpoint-0.pth"
    pretrain.kill_when(first.exists)
    before = first.read_bytes()
    (run,) = pretrain.start(fault=no_file_grows_large)
    assert run.wait() == 1
    assert "the state after the last epoch is not saved" in run.output()
    assert first.read_bytes() == before
    assert_nothing_left(pretrain.out)
    pretrain.complete()
    assert_same_run(pretrain.out, whole / "run_pretraining", 2)


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


def test_a_disk_without_any_space_for_a_while_costs_nothing_but_saves(tiny_disk, arguments, whole):
    """Not even logs and the console can be written; later all that they owe is there."""
    out, expected = tiny_disk / "out", whole / "run_pretraining"
    command = [*arguments["run_pretraining"], "--output_dir", out]
    (run,) = start("run_pretraining", command, tiny_disk / "console", slow_steps)
    until(steps_written(out, 1), run)
    with open(tiny_disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(512)):
            pass
    time.sleep(1.2)
    (tiny_disk / "ballast").unlink()
    assert run.wait() == 0
    assert_same_run(out, expected, 2)
    assert tensorboard_points(out) == tensorboard_points(expected)
