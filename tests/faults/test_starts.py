"""Starting again: other settings, a finished run, a second start, --resume, --deterministic."""

import functools
import json
import shutil

import pytest

from tests.conftest import same
from tests.small_runs import Job, assert_same_run, finish, last_state, lines, until


@pytest.fixture(scope="module")
def first(arguments, tmp_path_factory):
    """A pre-training run that was killed in its second epoch."""
    job = Job("run_pretraining", arguments["run_pretraining"], tmp_path_factory.mktemp("stopped"))
    job.kill_within(1)
    return job.out


@pytest.fixture
def stopped(first, pretrain):
    """Its copy, to go on with."""
    shutil.copytree(first, pretrain.out)
    return pretrain


def contents(folder):
    """Return every file but run.log, also in `final`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_changes_that_are_allowed_take_effect_and_harmless_ones_need_no_leave(stopped):
    stopped.complete("--opt_betas", "0.9", "0.99", "--print_freq", "1", "--allow_changes")
    out, log = stopped.out, stopped.log()
    assert "allowed by --allow_changes: --opt_betas 0.9 0.95 -> 0.9 0.99" in log
    assert {g["betas"] for g in last_state(out, 2)["optimizer"]["param_groups"]} == {(0.9, 0.99)}
    assert json.loads((out / "config.json").read_text())["optim"]["opt_betas"] == [0.9, 0.99]
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(9))


def assert_same_weights(folder, other):
    assert same(*(last_state(path, 2)["model"] for path in (folder, other)))


@pytest.mark.slow
def test_the_same_command_with_resume_goes_on_from_its_own_saves(pretrain, whole, first):
    """--resume names where the run began; started again, it has come further since."""
    begin = first / "checkpoint-0.pth"
    if not begin.exists():
        begin = next(first.glob("checkpoint-1-step*.pth"))
    pretrain.kill_within(2, "--resume", begin)
    run = pretrain.complete("--resume", begin)
    assert "resumed from" in run.output() and "epoch 2, " in pretrain.log()
    assert_same_weights(pretrain.out, whole("run_pretraining"))


@pytest.mark.slow
def test_going_back_with_resume_replaces_later_checkpoints(pretrain, whole):
    out = shutil.copytree(whole("run_pretraining"), pretrain.out)
    pretrain.complete("--resume", out / "checkpoint-1.pth", "--save_interval", "0")
    assert "checkpoint-2.pth', which lay ahead of this run" in pretrain.log()
    assert_same_weights(out, whole("run_pretraining"))
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(9))


def impatient():
    """Do not wait for the other run."""
    from hicmae.training import run

    run.own_folder = functools.partial(run.own_folder, wait=0)


def test_a_second_start_in_the_same_folder_is_refused(pretrain):
    (run,) = pretrain.start("--epochs", "400")
    until(pretrain.has_steps(1), run)
    (second,) = pretrain.start(fault=impatient)
    assert second.wait() == 1
    assert f"another run is writing to '{pretrain.out}'; wait for it, end it" in second.output()
    assert run.alive()
    run.kill().wait()


def test_a_finished_run_started_again_says_so_and_changes_nothing(finetune, whole):
    out = shutil.copytree(whole("run_finetuning"), finetune.out)
    before = contents(out)
    run = finetune.complete()
    assert "training is finished: all 3 epochs are done" in run.output()
    after = contents(out)
    for files in (before, after):
        files.pop("config.json")  # names the copy
    assert after == before


@pytest.mark.slow
def test_a_lost_best_checkpoint_is_noticed_and_the_best_epoch_chosen_anew(finetune):
    finetune.kill_within(1)
    (finetune.out / "checkpoint-best.pth").unlink()
    finetune.complete()
    assert "weights of the best epoch so far (0) are not on disk" in finetune.log()
    assert json.loads((finetune.out / "metrics_best.json").read_text())["epoch"] >= 1


@pytest.mark.parametrize(
    "script", ["run_pretraining", pytest.param("run_finetuning", marks=pytest.mark.slow)]
)
def test_deterministic_runs_are_equal_bit_by_bit_and_others_to_rounding(
    script, job, whole, tmp_path
):
    outs = [tmp_path / "a", tmp_path / "b"]
    finish([run for out in outs for run in job(script).start("--deterministic", out=out)])
    assert_same_run(*outs, 2)
    found, expected = (lines(x / "steps.jsonl") for x in (outs[0], whole(script)))
    for line, other in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
