"""SIGTERM and SIGUSR1 end a run after the step in hand, saved, on every rank, with exit code 75."""

import os
import re
import signal
import time

import pytest

from hicmae.training.run import RESUMABLE
from tests.small_runs import (
    Run,
    assert_nothing_left,
    assert_same_run,
    children_of,
    complete,
    finish,
    is_running,
    lines,
    ranks,
    start,
    steps_written,
    until,
)


def stopped_after(run):
    """Return the steps that a run says it has done, and check that it says how to go on."""
    text = run.output()
    assert (
        "start the same command again to go on (exit code 75)" in text and "Traceback" not in text
    )
    return int(re.search(r"stopped by (?:SIGTERM|SIGUSR1) after (\d+) steps, all saved", text)[1])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_exits_resumable(number, finetune, whole, tmp_path):
    out = tmp_path / "out"
    run = Run("run_finetuning", [*finetune, out, "--print_freq", "1"], tmp_path / "log")
    until(steps_written(out, 1), run)
    assert run.kill(number).wait() == RESUMABLE == 75
    done = stopped_after(run)
    assert 1 <= done == len(lines(out / "steps.jsonl")) < 9
    assert len(list(out.glob("checkpoint-*.pth"))) >= 1
    complete("run_finetuning", [*finetune, out], tmp_path / "log")
    assert_same_run(out, whole / "run_finetuning", 2)


def test_a_signal_to_one_rank_stops_both_after_the_same_step(pretrain, tmp_path):
    out = tmp_path / "out"
    command = [*pretrain[:-1], "--accum_iter", "1", "--print_freq", "1", "--output_dir", out]
    group = ranks("run_pretraining", command, tmp_path / "log")
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
    base = [*finetune[:-1], "--accum_iter", "2" if count == 1 else "1", "--output_dir"]

    def run(out, fault=None):
        return start("run_finetuning", [*base, out], tmp_path / "log", fault, count)

    finish(run(tmp_path / "whole"))
    out = tmp_path / "out"
    group = run(out, slow_validation)
    until(steps_written(out, 6), *group)
    time.sleep(0.3)
    group[-1].kill(signal.SIGTERM)
    assert [run.wait() for run in group] == [75] * count
    assert (out / "checkpoint-1-step6.pth").exists() and len(lines(out / "log.txt")) == 1
    finish(run(out))
    assert "epoch 1, 3 of its 3 steps done" in (out / "run.log").read_text()
    assert_same_run(out, tmp_path / "whole", 2)


def with_workers(command, out, folder):
    """Start a run with two loading processes; return it and them."""
    options = ["--num_workers", "2", "--print_freq", "1"]
    run = Run("run_pretraining", [*command, *options], folder / "log")
    until(steps_written(out, 1), run)
    workers = children_of(run.process.pid)
    assert len(workers) == 2
    return run, workers


def test_a_signal_to_the_whole_job_leaves_its_loading_processes_to_the_run(pretrain, tmp_path):
    """As SLURM and a terminal send it; workers that died would cost the step in hand."""
    out = tmp_path / "out"
    run, workers = with_workers([*pretrain, out], out, tmp_path)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == 75
    assert "was ended by" not in run.output()
    assert stopped_after(run) == len(lines(out / "steps.jsonl"))
    assert not any(map(is_running, workers))


def test_no_process_outlives_a_killed_run(pretrain, tmp_path):
    out = tmp_path / "out"
    run, workers = with_workers([*pretrain, out], out, tmp_path)
    run.kill().wait()
    until(lambda: not any(map(is_running, workers)), seconds=20)
