"""A run that was killed at any moment and started again is the run that would have been."""

import random
import re

import pytest

from preprocess import pack_clips
from tests.boards import sessions, texts
from tests.small_runs import assert_same_run, lines, tensorboard_points


@pytest.mark.parametrize("script", ["run_pretraining", "run_finetuning"])
def test_a_run_killed_within_an_epoch_equals_the_uninterrupted(script, job, whole):
    run, expected = job(script), whole / script
    run.kill_within(1)
    run.complete("--save_interval", "0")
    out = run.out
    assert re.search(r"epoch 1, [12] of its 3 steps done", run.log())
    assert_same_run(out, expected, 2)
    assert tensorboard_points(out) == tensorboard_points(expected)
    starts = texts(out, "run/command")
    assert 0 in starts and len(starts) == 2 and max(starts) in (4, 5)
    assert sessions(out)["final"][0] == sessions(expected)["final"][0] == "SUCCESS"
    assert sessions(out)["final"][2] == sessions(expected)["final"][2]
    if script == "run_finetuning":
        for name in ("pred.csv", "pred_best.csv", "metrics_best.json"):
            assert (out / name).read_text() == (expected / name).read_text()


@pytest.mark.parametrize(
    "script", ["run_pretraining", pytest.param("run_finetuning", marks=pytest.mark.slow)]
)
def test_two_ranks_killed_within_an_epoch_equal_the_uninterrupted(script, job, tmp_path):
    run, flags = job(script), ["--accum_iter", "1"]
    run.complete(*flags, out=tmp_path / "whole", count=2)
    run.kill_within(1, *flags, count=2)
    run.complete(*flags, "--save_interval", "0", count=2)
    assert_same_run(run.out, tmp_path / "whole", 2)


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
    return {"run_pretraining": media / "shards", "run_finetuning": fold}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("script", ["run_pretraining", "run_finetuning"])
def test_runs_killed_at_random_moments_equal_the_uninterrupted(
    script, packed, count, workers, job, shards, tmp_path
):
    rng = random.Random(f"{script} {packed} {count} {workers}")
    flags = ["--accum_iter", "1", "--num_workers", workers]
    flags += ["--data_path", shards[script]] if packed else []
    run = job(script)
    run.complete(*flags, out=tmp_path / "whole", count=count)
    flags += ["--save_interval", "0"]
    for _ in range(8):
        group = run.start(*flags, count=count)
        group[0].process.join(rng.uniform(0.3, 4))
        for rank in group:
            rank.kill()
        if 0 in [rank.wait() for rank in group]:
            break
    run.complete(*flags, count=count)
    assert_same_run(run.out, tmp_path / "whole", 2)
    assert tensorboard_points(run.out) == tensorboard_points(tmp_path / "whole")


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began_but_not_with_another_total_batch(pretrain, tmp_path):
    """Two ranks of 2 clips and one of 4 take the same clips in each step."""
    flags = ["--accum_iter", "1", "--gather_negatives", "--drop_path", "0", "--save_interval", "0"]
    pretrain.kill_within(1, *flags, count=2)
    (refused,) = pretrain.start(*flags)
    assert refused.wait() == 1
    assert "clips of a step (batch_size x accum_iter x processes) 4 -> 2" in refused.output()
    taken = pretrain.complete(*flags, "--batch_size", "4")
    assert "processes 2 -> 1" in taken.output()
    pretrain.complete(*flags, out=tmp_path / "whole", count=2)
    mine, other = (lines(tmp_path / name / "log.txt") for name in ("out", "whole"))
    for line, expected in zip(mine, other, strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
