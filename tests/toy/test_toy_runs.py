"""scripts/toy/runs.py: a run is made once, goes on, or starts over; entry scripts are stand-ins."""

import json
import runpy
import types
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "scripts/toy/runs.py"
DEMO = """#!/usr/bin/env bash
echo python preprocess/toy_av.py --output_dir data
echo python run_finetuning.py --data_path /fold1 --output_dir /demo --finetune /x.pth --epochs 4
"""
# Notes how often it was called with which flags; fails when told to.
SCRIPT = """
import json, sys
from pathlib import Path
flags = sys.argv[1:]
folder = Path(flags[flags.index("--output_dir") + 1])
calls = folder / "calls.json"
seen = json.loads(calls.read_text()) if calls.exists() else []
calls.write_text(json.dumps([*seen, flags]))
if "--fail" in flags:
    sys.exit(3)
if "--half" not in flags:
    (folder / "metrics_best.json").write_text("{}")
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The module, with a repository of stand-ins."""
    root = tmp_path / "repository"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts/demo.sh").write_text(DEMO)
    (root / "run_finetuning.py").write_text(SCRIPT)
    module = types.SimpleNamespace(**runpy.run_path(str(SOURCE)))
    monkeypatch.setitem(module.run_all.__globals__, "ROOT", root)
    return module


def calls(folder):
    return json.loads((folder / "calls.json").read_text())


def test_flags_of_the_demo_come_without_its_places(runs):
    assert runs.demo_flags("run_finetuning.py") == ["--epochs", "4"]


def test_flags_of_the_real_demo_name_its_model_once():
    real = runpy.run_path(str(SOURCE))
    for script, model in (("run_pretraining.py", "pretrain_"), ("run_finetuning.py", "avit_")):
        flags = real["demo_flags"](script)
        assert flags[flags.index("--model") + 1].startswith(model)
        assert not set(flags) & {"--output_dir", "--finetune", "--data_path"}


def test_a_finished_run_is_not_made_again(runs, tmp_path):
    some = [runs.Run(tmp_path / name, "run_finetuning.py", ["--data_path", "d"]) for name in "abc"]
    runs.run_all(some, jobs=2)
    runs.run_all(some, jobs=2)
    flags = ["--epochs", "4", "--data_path", "d", "--output_dir", str(tmp_path / "b")]
    assert calls(tmp_path / "b") == [flags]


def test_a_run_cut_off_goes_on_in_its_folder(runs, tmp_path):
    some = [runs.Run(tmp_path / "a", "run_finetuning.py", ["--half"])]
    runs.run_all(some)
    runs.run_all(some)
    assert len(calls(tmp_path / "a")) == 2


def test_a_run_with_other_flags_starts_over(runs, tmp_path):
    some = [runs.Run(tmp_path / "a", "run_finetuning.py", [])]
    runs.run_all(some)
    runs.run_all(some, extra="--epochs 2")
    assert [flags[2:4] for flags in calls(tmp_path / "a")] == [["--epochs", "2"]]


def test_a_run_starts_over_when_that_which_it_starts_from_had_another_command(runs, tmp_path):
    first = tmp_path / "first/checkpoint-9.pth"
    some = [runs.Run(tmp_path / "a", "run_finetuning.py", ["--finetune", str(first)])]
    for command, made in (("x", 1), ("x", 1), ("y", 1), ("y --half", 1)):
        first.parent.mkdir(exist_ok=True)
        (first.parent / "command.txt").write_text(command)
        before = (tmp_path / "a/command.txt").read_text() if command != "x" else ""
        runs.run_all(some)
        assert len(calls(tmp_path / "a")) == made
        assert (tmp_path / "a/command.txt").read_text() != before


def test_a_failed_run_names_its_log(runs, tmp_path):
    with pytest.raises(SystemExit, match=r"run_finetuning.py stopped with code 3; see '.*a/conso"):
        runs.run_all([runs.Run(tmp_path / "a", "run_finetuning.py", ["--fail"])])


def test_the_last_checkpoint_is_the_one_of_the_highest_epoch(runs, tmp_path):
    for name in ("9", "10", "best", "11-step3"):
        (tmp_path / f"checkpoint-{name}.pth").touch()
    assert runs.last_checkpoint(tmp_path).name == "checkpoint-10.pth"
    with pytest.raises(SystemExit, match=r"no checkpoint-<epoch>.pth in '.*nothing'; run scripts"):
        runs.last_checkpoint(tmp_path / "nothing")
