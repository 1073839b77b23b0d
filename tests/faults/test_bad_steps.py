"""A loss that is not finite costs its step, on all ranks; many in a row stop the run."""

import os

import pytest
import torch

from hicmae.training import checkpoint
from tests.small_runs import assert_nothing_left, assert_same_run, lines


def spoil(is_bad):
    """Make the loss of pre-training infinite where `is_bad(batch)`, with finite gradients."""
    import run_pretraining

    make_loss = run_pretraining.make_loss

    def make(config):
        compute_loss = make_loss(config)

        def compute(model, batch):
            loss, parts = compute_loss(model, batch)
            return (loss + float("inf") if is_bad(batch) else loss), parts

        return compute

    run_pretraining.make_loss = make


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
    assert all(line["loss"] is None and line["lr"] > 0 or line["step"] == 0 for line in skipped)
    assert sum(line["train_bad_steps"] for line in epochs) == len(skipped)
    assert all(line["train_loss"] is not None for line in epochs)
    pretrain.kill_within(1, fault=one_clip_is_bad)
    pretrain.complete(fault=one_clip_is_bad)
    assert_same_run(pretrain.out, tmp_path / "whole", 2)


def test_bad_steps_of_one_rank_stop_both_with_state_and_clips_of_both(pretrain):
    """An epoch has three steps: the third bad one in a row is the second of the next epoch."""
    flags = ["--accum_iter", "1", "--max_bad_steps", "3", "--print_freq", "100",
             "--save_interval", "0", "--keep_ckpts", "9"]  # fmt: skip
    group = pretrain.start(*flags, fault=all_is_bad_on_rank_1_from_its_third_batch, count=2)
    assert [run.wait() for run in group] == [1, 1]
    out = pretrain.out
    for run in group:
        assert "in 3 step(s) in a row, the last at step 4" in run.output()
        assert f"state and clips are in '{out}/bad_steps-4.pth'; lower --lr" in run.output()
    assert "loss is inf" in group[1].output()
    dump = checkpoint.load(out / "bad_steps-4.pth", verify=True)
    assert [[len(step["clips"]) for step in rank] for rank in dump["bad_steps"]] == [[2] * 3] * 2
    assert [step["step"] for step in dump["bad_steps"][0]] == [2, 3, 4]
    before = checkpoint.load(out / "checkpoint-0-step2.pth")["model"]
    assert all(torch.equal(dump["model"][name], before[name]) for name in before)
    assert [line["skipped"] for line in lines(out / "steps.jsonl")] == [False] * 2 + [True] * 3
    assert_nothing_left(out)
