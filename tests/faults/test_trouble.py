"""Bad losses, full disks, processes left behind, and a run so long that leaks would show."""

import errno
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from hicmae.training import checkpoint
from tests.small_runs import (
    LIMIT,
    Job,
    assert_nothing_left,
    assert_same_run,
    children_of,
    is_running,
    last_state,
    lines,
    stopped_after,
    tensorboard_points,
    until,
)


def spoil(is_bad):
    """Make the loss of pre-training infinite where `is_bad(batch)`, with finite gradients."""
    from hicmae import pretraining

    make_loss = pretraining.make_loss

    def make(config):
        compute_loss = make_loss(config)

        def compute(model, batch):
            loss, parts = compute_loss(model, batch)
            return (loss + float("inf") if is_bad(batch) else loss), parts

        return compute

    pretraining.make_loss = make


def one_clip_is_bad():
    spoil(lambda batch: any(name.endswith("clip 3.mp4") for name in batch.names))


def all_is_bad_on_rank_1_from_its_third_batch():
    calls = iter(range(100))
    spoil(lambda batch: next(calls) >= 2 and os.environ["RANK"] == "1")


@pytest.mark.slow
def test_a_bad_clip_costs_one_step_an_epoch_which_is_counted_also_after_a_kill(pretrain, tmp_path):
    pretrain.complete(out=tmp_path / "whole", fault=one_clip_is_bad)
    steps, epochs = (lines(tmp_path / "whole" / name) for name in ("steps.jsonl", "log.txt"))
    skipped = [line for line in steps if line["skipped"]]
    assert len(steps) == 9 and 2 <= len(skipped) <= 3
    assert sum(line["train_bad_steps"] for line in epochs) == len(skipped)
    assert all(line["train_loss"] is not None for line in epochs)
    pretrain.kill_within(1, fault=one_clip_is_bad)
    pretrain.complete(fault=one_clip_is_bad)
    assert_same_run(pretrain.out, tmp_path / "whole", 2)


def test_bad_steps_of_one_rank_stop_both_and_leave_the_state_before_them(job):
    """An epoch has three steps: the third bad one in a row is the second of the next epoch."""
    flags = ["--max_bad_steps", "3", "--print_freq", "100", "--save_interval", "0"]
    run = job("run_pretraining", 2)
    fault = all_is_bad_on_rank_1_from_its_third_batch
    group = run.start(*flags, "--keep_ckpts", "9", fault=fault)
    assert [rank.wait() for rank in group] == [1, 1]
    for rank in group:
        assert "in 3 step(s) in a row, the last: step 4, epoch 1" in rank.output()
        assert "; lower --lr, set --clip_grad" in rank.output()
    assert "loss inf" in group[1].output()
    before, after = (
        checkpoint.load(run.out / f"checkpoint-{name}.pth")["model"] for name in ("0-step2", "0")
    )
    assert all(torch.equal(after[name], before[name]) for name in before)
    skipped = [line["skipped"] for line in lines(run.out / "steps.jsonl")]
    assert skipped == [False] * 2 + [True] * 3
    assert_nothing_left(run.out)


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
    expected = (whole("run_finetuning") / "steps.jsonl").read_text()
    assert (out / "steps.jsonl").read_text() == expected
    assert {path.stem for path in out.glob("ch*")} == {"checkpoint-2", "checkpoint-best"}
    assert checkpoint.load(out / "checkpoint-best.pth")["epoch"] == 2
    assert_nothing_left(out)


@pytest.fixture
def tiny_disk(tmp_path):
    """Mount a file system of 80 MiB, for three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, timeout=LIMIT).returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=LIMIT)


def slow_steps():
    """Give each step a third of a second."""
    from hicmae.training import loop

    seed_step = loop.seed_step
    loop.seed_step = lambda *args: time.sleep(0.3) or seed_step(*args)


def test_a_disk_without_any_space_for_a_while_costs_nothing_but_saves(tiny_disk, arguments, whole):
    """Not even logs and the console can be written; later all that they owe is there."""
    expected = whole("run_pretraining")
    job = Job("run_pretraining", arguments["run_pretraining"], tiny_disk)
    (run,) = job.start(fault=slow_steps)
    until(job.has_steps(1), run)
    with open(tiny_disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(512)):
            pass
    time.sleep(1.2)
    (tiny_disk / "ballast").unlink()
    assert run.wait() == 0
    assert_same_run(job.out, expected, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_run_leaves_no_loading_process(number, pretrain):
    """SLURM and a terminal send SIGTERM to the whole job; loading processes pay no attention."""
    (run,) = pretrain.start("--num_workers", "2", "--print_freq", "1")
    until(pretrain.has_steps(1), run)
    workers = children_of(run.process.pid)
    assert len(workers) == 2
    if number == signal.SIGKILL:
        run.kill().wait()
    else:
        os.killpg(run.process.pid, number)
        assert run.wait() == 75
        assert "was ended by" not in run.output()
        assert stopped_after(run) == len(lines(pretrain.out / "steps.jsonl"))
    until(lambda: not any(map(is_running, workers)), seconds=20)


def status(pid):
    """Return resident KiB, open files and threads of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(fields["VmRSS"].split()[0]), handles, int(fields["Threads"])


@pytest.mark.slow
def test_two_thousand_steps_leave_memory_files_and_threads_as_they_were(pretrain):
    """Epochs, saves within them, pictures, a loading process: all of it repeats."""
    (run,) = pretrain.start(
        *("--num_workers", "1", "--batch_size", "1", "--accum_iter", "1", "--image_freq", "40"),
        *("--epochs", "160", "--save_interval", "0.05", "--print_freq", "10"),
        *("--save_ckpt_freq", "1000", "--input_size_audio", "32", "128"),
    )
    highest = []
    for first in (300, 1300):  # the most that the run, and its loading process, take for a while
        seen = []
        for count in range(first, first + 700, 25):
            until(pretrain.has_steps(count), run, seconds=600)
            (worker,) = children_of(run.process.pid)
            seen.append((status(run.process.pid), status(worker)))
        highest.append([list(map(max, zip(*one, strict=True))) for one in zip(*seen, strict=True)])
    assert run.wait() == 0, run.output()[-2000:]
    out = pretrain.out
    assert len(lines(out / "steps.jsonl")) == 160 * 13
    assert last_state(out, 159)["epoch"] == 159
    for before, (memory, handles, threads) in zip(*highest, strict=True):
        assert memory < before[0] * 1.05 + 8 * 1024
        assert handles <= before[1] * 1.25 + 8  # films are closed when python collects garbage
        assert threads <= before[2]
    points = tensorboard_points(out)["train/loss"]
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert len(list(out.glob("checkpoint-*.pth"))) == 2
    assert_nothing_left(out)
