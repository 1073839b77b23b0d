"""Starting again: other settings, a finished run, a second start, --resume, --deterministic."""

import functools
import json
import re
import shutil

import pytest
import torch

from tests.small_runs import (
    Run,
    assert_same_run,
    complete,
    finish,
    kill_when,
    last_state,
    lines,
    saved_within,
    steps_written,
    until,
)


@pytest.fixture(scope="module")
def stopped(pretrain, tmp_path_factory):
    """A pre-training run that was killed in its second epoch."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    command = [*pretrain, out, "--save_interval", "0"]
    kill_when(saved_within(out, 1), "run_pretraining", command, out.with_name("log"))
    return out


def refusal(command, log):
    run = Run("run_pretraining", command, log)
    assert run.wait() == 1
    (line,) = [x for x in run.output().splitlines() if "run_pretraining.py: error: " in x]
    return line


def contents(folder):
    """Return every file but run.log, also in `final`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_settings_that_make_it_another_run_are_listed_and_refused(pretrain, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    before = contents(out)
    changed = ["--lr", "0.01", "--mask_ratio", "0.75", "--seed", "3", "--epochs", "4",
               "--no-roll_mag_aug", "--opt_betas", "0.9", "0.99", "--num_workers", "1"]  # fmt: skip
    line = refusal([*pretrain, out, *changed], tmp_path / "log")
    for change in ("--lr 0.05 -> 0.01", "--mask_ratio 0.5 -> 0.75", "--seed 0 -> 3",
                   "--epochs 3 -> 4", "--roll_mag_aug True -> False",
                   "--opt_betas 0.9 0.95 -> 0.9 0.99", "accept with --allow_changes"):  # fmt: skip
        assert change in line
    assert "num_workers" not in line
    assert contents(out) == before


def test_changes_that_are_allowed_take_effect_and_harmless_ones_need_no_leave(
    pretrain, stopped, tmp_path
):
    out = shutil.copytree(stopped, tmp_path / "out")
    changed = ["--opt_betas", "0.9", "0.99", "--print_freq", "1", "--allow_changes"]
    complete("run_pretraining", [*pretrain, out, *changed], tmp_path / "log")
    log = (out / "run.log").read_text()
    assert "allowed by --allow_changes: --opt_betas 0.9 0.95 -> 0.9 0.99" in log
    assert "--print_freq 2 -> 1" in log
    assert {g["betas"] for g in last_state(out, 2)["optimizer"]["param_groups"]} == {(0.9, 0.99)}
    assert json.loads((out / "config.json").read_text())["optim"]["opt_betas"] == [0.9, 0.99]
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(9))


def test_another_list_under_the_same_name_is_noticed(pretrain, stopped, media, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    rows = (media / "lists/train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([*rows[1:], rows[0]]) + "\n")
    line = refusal([*pretrain, out, "--data_path", tmp_path], tmp_path / "log")
    assert re.search(r"clips of the training list 13 \(\w{12}\) -> 13 \(\w{12}\); repeat", line)
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    complete("run_pretraining", [*pretrain, out, "--data_path", tmp_path], tmp_path / "log")


@pytest.mark.slow
def test_the_same_command_with_resume_goes_on_from_its_own_saves(
    pretrain, whole, stopped, tmp_path
):
    """--resume names where the run began; started again, it has come further since."""
    begin, out = stopped / "checkpoint-0.pth", tmp_path / "out"
    if not begin.exists():
        begin = next(stopped.glob("checkpoint-1-step*.pth"))
    command = [*pretrain, out, "--resume", begin, "--save_interval", "0"]
    kill_when(saved_within(out, 2), "run_pretraining", command, tmp_path / "log")
    run = complete("run_pretraining", command, tmp_path / "log")
    assert "resumed from" in run.output() and "epoch 2, " in (out / "run.log").read_text()
    mine, other = (last_state(x, 2) for x in (out, whole / "run_pretraining"))
    assert all(torch.equal(mine["model"][name], other["model"][name]) for name in other["model"])


@pytest.mark.slow
def test_going_back_with_resume_replaces_later_checkpoints(pretrain, whole, tmp_path):
    out = shutil.copytree(whole / "run_pretraining", tmp_path / "out")
    command = [*pretrain, out, "--resume", out / "checkpoint-1.pth"]
    complete("run_pretraining", command, tmp_path / "log")
    assert "ahead of this run: checkpoint-2.pth" in (out / "run.log").read_text()
    mine, other = (last_state(x, 2) for x in (out, whole / "run_pretraining"))
    assert all(torch.equal(mine["model"][name], other["model"][name]) for name in other["model"])
    assert [line["step"] for line in lines(out / "steps.jsonl")] == list(range(9))


def test_a_second_start_in_the_same_folder_is_refused(pretrain, tmp_path):
    out = tmp_path / "out"
    run = Run("run_pretraining", [*pretrain, out, "--epochs", "400"], tmp_path / "log")
    until(steps_written(out, 1), run)
    second = Run("run_pretraining", [*pretrain, out], tmp_path / "second", impatient)
    assert second.wait() == 1
    assert f"another run is writing to '{out}'; wait for it, end it, or choose" in second.output()
    assert run.alive()
    run.kill().wait()


def impatient():
    """Do not wait for the other run."""
    from hicmae.training import run

    run.own_folder = functools.partial(run.own_folder, wait=0)


def test_a_finished_run_started_again_says_so_and_changes_nothing(finetune, whole, tmp_path):
    out = shutil.copytree(whole / "run_finetuning", tmp_path / "out")
    before = contents(out)
    run = complete("run_finetuning", [*finetune, out], tmp_path / "log")
    assert "training is finished: all 3 epochs are done" in run.output()
    after = contents(out)
    for files in (before, after):
        files.pop("config.json")  # names the copy
    assert after == before


@pytest.mark.slow
def test_a_lost_best_checkpoint_is_noticed_and_the_best_epoch_chosen_anew(finetune, tmp_path):
    out = tmp_path / "out"
    command = [*finetune, out, "--save_interval", "0"]
    kill_when(saved_within(out, 1), "run_finetuning", command, tmp_path / "log")
    (out / "checkpoint-best.pth").unlink()
    complete("run_finetuning", [*finetune, out], tmp_path / "log")
    assert "weights of the best epoch so far (0) are not on disk" in (out / "run.log").read_text()
    assert json.loads((out / "metrics_best.json").read_text())["epoch"] >= 1


@pytest.mark.parametrize(
    "script", ["run_pretraining", pytest.param("run_finetuning", marks=pytest.mark.slow)]
)
def test_deterministic_runs_are_equal_bit_by_bit_and_others_to_rounding(
    script, request, whole, tmp_path
):
    name = {"run_pretraining": "pretrain", "run_finetuning": "finetune"}[script]
    command = request.getfixturevalue(name)
    outs = [tmp_path / "a", tmp_path / "b"]
    finish([Run(script, [*command, out, "--deterministic"], f"{out}.log") for out in outs])
    assert_same_run(outs[0], outs[1], 2)
    for line, other in zip(
        *(lines(x / "steps.jsonl") for x in (outs[0], whole / script)), strict=True
    ):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
