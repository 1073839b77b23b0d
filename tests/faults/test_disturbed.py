"""A run that is disturbed at any moment and started again equals the undisturbed one."""

import os
import random
import re
import resource
import signal
import time
from functools import partial

import pytest
import torch

from preprocess import pack_clips
from tests.boards import sessions
from tests.small_runs import assert_nothing_left, assert_same_run, lines, stopped_after, until

PRE, FINE = "run_pretraining", "run_finetuning"


def die_while_writing_the_second_epoch():
    """Die by SIGKILL when half of checkpoint-1.pth is written."""
    write = torch.save

    def half(state, file, *args):
        write(state, file, *args)
        if state["epoch"] == 1:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def no_file_grows_large():
    """Let the kernel refuse files above 20 MiB: smaller than a checkpoint, larger than logs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 2**20, hard))


def slow_validation():
    """Give each validation batch half a second."""
    from hicmae import finetuning

    evaluate = finetuning.evaluate

    def slow_evaluate(*args, **options):
        *first, description, before_each = args[:6]
        wait = 0.5 if description == "validation" else 0
        slowly = lambda: time.sleep(wait) or before_each()  # noqa: E731
        return evaluate(*first, description, slowly, *args[6:], **options)

    finetuning.evaluate = slow_evaluate


# Ways to disturb: each returns what the log of the run that goes on must say.


def killed(job):
    job.kill_within(1)
    return r"epoch 1, [12] of its 3 steps done"


def killed_while_writing(job):
    (run,) = job.start(fault=die_while_writing_the_second_epoch)
    assert run.wait() == -signal.SIGKILL
    (part,) = job.out.glob(".part-*")
    assert not (job.out / "checkpoint-1.pth").exists()
    return f"removed '{part.name}', which a killed run left half-written"


def broken(job, flip=False):
    job.kill_within(1)
    path = max(job.out.glob("checkpoint-1-step*.pth"), key=lambda path: path.name)
    content = bytearray(path.read_bytes())
    if flip:
        content[len(content) // 3] ^= 4
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    told = f"skipping a broken checkpoint, trying the one before: checkpoint '{path}'"
    return rf"{told}(.*\n)+.*resumed from"


flipped = partial(broken, flip=True)


def unsaved(job):
    first = job.out / "checkpoint-0.pth"
    job.kill_when(first.exists)
    before = first.read_bytes()
    (run,) = job.start(fault=no_file_grows_large)
    assert run.wait() == 1
    assert "the state after the last epoch is not saved" in run.output()
    assert first.read_bytes() == before
    assert_nothing_left(job.out)
    return f"resumed from {first}"


def told_to_stop(job, number=signal.SIGTERM, steps=2, fault=None):
    """Signal to the last rank; all of them stop after the same step."""
    group = job.start(fault=fault)
    until(job.has_steps(steps), *group)
    time.sleep(0.3 if fault else 0)
    group[-1].kill(number)
    assert [run.wait() for run in group] == [75] * job.count
    assert {stopped_after(run) for run in group} == {len(lines(job.out / "steps.jsonl"))}
    assert_nothing_left(job.out)
    return "resumed from"


told_by_another_signal = partial(told_to_stop, number=signal.SIGUSR1)


def told_while_validating(job):
    told_to_stop(job, steps=9, fault=slow_validation)
    assert (job.out / "checkpoint-2-step9.pth").exists()
    assert len(lines(job.out / "log.txt")) == 2
    return "epoch 2, 3 of its 3 steps done"


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "disturb, script, count",
    [
        slow(killed, PRE, 1),  # one of those below is killed, too
        slow(killed, FINE, 1),
        (killed, PRE, 2),
        slow(killed, FINE, 2),
        (killed_while_writing, PRE, 1),
        (broken, PRE, 1),
        slow(flipped, PRE, 1),
        slow(unsaved, PRE, 1),
        (told_to_stop, FINE, 1),
        (told_by_another_signal, PRE, 2),
        slow(told_while_validating, FINE, 1),
        slow(told_while_validating, FINE, 2),
    ],
)
def test_a_disturbed_run_goes_on_as_if_nothing_had_been(disturb, script, count, job, whole):
    run, expected = job(script, count), whole(script, count)
    told = disturb(run)
    run.complete()
    assert re.search(told, run.log())
    out = run.out
    assert_same_run(out, expected, 2)
    (status, _, final), (_, _, other) = (sessions(path)["final"] for path in (out, expected))
    assert status == "SUCCESS" and final == other
    for name in ("pred.csv", "pred_best.csv", "metrics_best.json") if script == FINE else ():
        assert (out / name).read_text() == (expected / name).read_text()


@pytest.fixture(scope="session")
def shards(media):
    """Return the clips of the pre-training list, and of the fold, in shards, by script."""
    fold = media / "fold_shards"
    for source, out, task in (
        ("lists/train.csv", media / "shards", []),
        ("fold/train.csv", fold / "train", ["--task", "classification"]),
        ("fold/test.csv", fold / "test", ["--task", "classification"]),
    ):
        options = ["--output_dir", str(out), "--shard_size", "100KB"]
        assert pack_clips.main([str(media / source), *task, *options]) == 0
    assert len(list((media / "shards").glob("*.tar"))) > 1
    return {PRE: media / "shards", FINE: fold}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("script", [PRE, FINE])
def test_runs_killed_at_random_moments_equal_the_uninterrupted(
    script, packed, count, workers, job, shards, tmp_path
):
    rng = random.Random(f"{script} {packed} {count} {workers}")
    flags = ["--accum_iter", "1", "--num_workers", workers]
    flags += ["--data_path", shards[script]] if packed else []
    run = job(script, count)
    run.complete(*flags, out=tmp_path / "whole")
    flags += ["--save_interval", "0"]
    for _ in range(8):
        group = run.start(*flags)
        group[0].process.join(rng.uniform(0.3, 4))
        for rank in group:
            rank.kill()
        if 0 in [rank.wait() for rank in group]:
            break
    run.complete(*flags)
    assert_same_run(run.out, tmp_path / "whole", 2)


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began_but_not_with_another_total_batch(job, tmp_path):
    """Two ranks of 2 clips and one of 4 take the same clips in each step."""
    flags = ["--accum_iter", "1", "--gather_negatives", "--drop_path", "0", "--save_interval", "0"]
    two, one = job(PRE, 2), job(PRE)
    two.kill_within(1, *flags)
    (refused,) = one.start(*flags)
    assert refused.wait() == 1
    assert "clips of a step (batch_size x accum_iter x processes) 4 -> 2" in refused.output()
    one.complete(*flags, "--batch_size", "4")
    two.complete(*flags, out=tmp_path / "whole")
    mine, other = (lines(tmp_path / name / "log.txt") for name in ("out", "whole"))
    for line, expected in zip(mine, other, strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
