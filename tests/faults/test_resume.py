"""A run that was killed at any moment and started again is the run that would have been."""

import random
import re

import pytest

from preprocess import pack_clips
from tests.boards import sessions, texts
from tests.small_runs import (
    Run,
    assert_same_run,
    complete,
    kill_when,
    lines,
    saved_within,
    start,
    tensorboard_points,
)

SCRIPTS = {"run_pretraining": "pretrain", "run_finetuning": "finetune"}


def arguments(script, request):
    return request.getfixturevalue(SCRIPTS[script])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_killed_within_an_epoch_equals_the_uninterrupted(script, request, whole, tmp_path):
    out, expected = tmp_path / "out", whole / script
    command = [*arguments(script, request), out, "--save_interval", "0"]
    kill_when(saved_within(out, 1), script, command, tmp_path / "log")
    complete(script, command, tmp_path / "log")
    assert re.search(r"epoch 1, [12] of its 3 steps done", (out / "run.log").read_text())
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
def test_two_ranks_killed_within_an_epoch_equal_the_uninterrupted(script, request, tmp_path):
    base = [*arguments(script, request)[:-1], "--accum_iter", "1", "--output_dir"]
    complete(script, [*base, tmp_path / "whole"], tmp_path / "log", count=2)
    out = tmp_path / "out"
    command = [*base, out, "--save_interval", "0"]
    kill_when(saved_within(out, 1), script, command, tmp_path / "log", count=2)
    complete(script, command, tmp_path / "log", count=2)
    assert_same_run(out, tmp_path / "whole", 2)


@pytest.fixture(scope="session")
def shards(media):
    """The clips of the pre-training list in shards, of which there are several."""
    out = media / "shards"
    command = [str(media / "lists/train.csv"), "--output_dir", str(out), "--shard_size", "100KB"]
    assert pack_clips.main(command) == 0
    assert len(list(out.glob("*.tar"))) > 1
    return out


@pytest.fixture(scope="session")
def fold_shards(media):
    """The lists of the fold in shards, `train` and `test`."""
    for part in ("train", "test"):
        command = [str(media / "fold" / f"{part}.csv"), "--task", "classification"]
        out = media / "fold_shards" / part
        assert pack_clips.main([*command, "--output_dir", str(out), "--shard_size", "100KB"]) == 0
    return media / "fold_shards"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["pretrain", "finetune", "shards", "fold_shards"])
def test_runs_killed_at_random_moments_equal_the_uninterrupted(
    kind, count, workers, request, tmp_path
):
    rng = random.Random(f"{kind} {count} {workers}")
    script = "run_finetuning" if kind in ("finetune", "fold_shards") else "run_pretraining"
    base = [*arguments(script, request)[:-1], "--accum_iter", "1", "--num_workers", workers]
    if kind in ("shards", "fold_shards"):
        base += ["--data_path", request.getfixturevalue(kind)]
    log = tmp_path / "log"
    complete(script, [*base, "--output_dir", tmp_path / "whole"], log, count=count)
    command = [*base, "--output_dir", tmp_path / "out", "--save_interval", "0"]
    for _ in range(8):
        group = start(script, command, log, count=count)
        group[0].process.join(rng.uniform(0.3, 4))
        for run in group:
            run.kill()
        if 0 in [run.wait() for run in group]:
            break
    complete(script, command, log, count=count)
    assert_same_run(tmp_path / "out", tmp_path / "whole", 2)
    assert tensorboard_points(tmp_path / "out") == tensorboard_points(tmp_path / "whole")


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began_but_not_with_another_total_batch(pretrain, tmp_path):
    """Two ranks of 2 clips and one of 4 take the same clips in each step."""
    base = [*pretrain[:-1], "--accum_iter", "1", "--gather_negatives", "--drop_path", "0",
            "--save_interval", "0", "--output_dir", tmp_path / "out"]  # fmt: skip
    kill_when(saved_within(tmp_path / "out", 1), "run_pretraining", base, tmp_path / "log", count=2)
    refused = Run("run_pretraining", base, tmp_path / "refused")
    assert refused.wait() == 1
    assert "clips of a step (batch_size x accum_iter x processes) 4 -> 2" in refused.output()
    taken = complete("run_pretraining", [*base, "--batch_size", "4"], tmp_path / "taken")
    assert "processes 2 -> 1" in taken.output()
    complete("run_pretraining", [*base[:-1], tmp_path / "whole"], tmp_path / "log", count=2)
    mine, other = (lines(tmp_path / name / "log.txt") for name in ("out", "whole"))
    for line, expected in zip(mine, other, strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
