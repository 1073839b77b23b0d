"""SIGTERM and SIGUSR1 end a run after the step in hand, saved, on every rank, with exit code 75."""

import os
import re
import signal
import time

import pytest

from tests.small_runs import (
    assert_nothing_left,
    assert_same_run,
    children_of,
    finish,
    is_running,
    lines,
    steps_written,
    until,
)


def stopped_after(run):
    """Return the steps that a run says it has done, and check that it says how to go on."""
    text = run.output()
    assert "start the same command again to go on (exit code 75)" in text
    assert "Traceback" not in text
    return int(re.search(r"stopped by (?:SIGTERM|SIGUSR1) after (\d+) steps, all saved", text)[1])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_exits_resumable(number, finetune, whole):
    out = finetune.out
    (run,) = finetune.start("--print_freq", "1")
    until(steps_written(out, 1), run)
    assert run.kill(number).wait() == 75
    assert 1 <= stopped_after(run) == len(lines(out / "steps.jsonl")) < 9
    assert len(list(out.glob("checkpoint-*.pth"))) >= 1
    finetune.complete()
    assert_same_run(out, whole / "run_finetuning", 2)


def test_a_signal_to_one_rank_stops_both_after_the_same_step(pretrain):
    out = pretrain.out
    group = pretrain.start("--accum_iter", "1", "--print_freq", "1", count=2)
    until(steps_written(out, 2), *group)
    group[1].kill(signal.SIGUSR1)
    assert [run.wait() for run in group] == [75, 75]
    assert stopped_after(group[0]) == stopped_after(group[1]) == len(lines(out / "steps.jsonl"))
    assert_nothing_left(out)


def slow_validation():
    """Give each validation batch half a second."""
    import run_finetuning
    from hicmae.training.loop import EvaluationBatches

    evaluate, batches = run_finetuning.evaluate, EvaluationBatches.__iter__

    def slow(self):
        for batch in batches(self):
            time.sleep(0.5)
            yield batch

    def slow_evaluate(*args, **options):
        EvaluationBatches.__iter__ = slow if args[4] == "validation" else batches
        return evaluate(*args, **options)

    run_finetuning.evaluate = slow_evaluate


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_during_validation_keeps_the_epoch_for_which_it_is_pending(
    count, finetune, tmp_path
):
    flags, out = ["--accum_iter", "2" if count == 1 else "1"], finetune.out
    finetune.complete(*flags, out=tmp_path / "whole", count=count)
    group = finetune.start(*flags, fault=slow_validation, count=count)
    until(steps_written(out, 9), *group)
    time.sleep(0.3)
    group[-1].kill(signal.SIGTERM)
    assert [run.wait() for run in group] == [75] * count
    assert (out / "checkpoint-2-step9.pth").exists() and len(lines(out / "log.txt")) == 2
    finish(finetune.start(*flags, count=count))
    assert "epoch 2, 3 of its 3 steps done" in finetune.log()
    assert_same_run(out, tmp_path / "whole", 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_run_leaves_no_loading_process(number, pretrain):
    """SLURM and a terminal send SIGTERM to the whole job; loading processes pay no attention."""
    (run,) = pretrain.start("--num_workers", "2", "--print_freq", "1")
    until(steps_written(pretrain.out, 1), run)
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
