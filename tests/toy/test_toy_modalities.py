"""scripts/toy/modalities.py: which runs it makes, and the table of them; runs are stand-ins."""

import importlib

import pytest

from tests.report.fold_files import write_csv, write_predictions
from tests.small_runs import ROOT

LABELS = [k % 6 for k in range(24)]
GUESSES = {"a": [k % 2 for k in LABELS], "v": [k // 2 * 2 for k in LABELS], "av": LABELS}


@pytest.fixture
def modalities(monkeypatch, tmp_path):
    """The script as a module, with a finished demo; `runs` holds what it wanted to be made."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts/toy"))
    module = importlib.import_module("modalities")
    module.runs = []

    def run_all(runs, jobs=1, extra=""):
        module.runs.extend(runs)
        for run in runs:
            write_fold(run.folder, run.folder.parent.name)

    def write_fold(folder, modality):
        clips = [f"{folder.name}_{k}" for k in range(24)]
        for name in ("pred.csv", "pred_best.csv"):
            write_predictions(folder / name, clips, LABELS, GUESSES[modality], 6)

    monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(module, "missing_table", lambda folds, data: f"{len(folds)} folds\n")
    (tmp_path / "demo/pretrain").mkdir(parents=True)
    (tmp_path / "demo/pretrain/checkpoint-9.pth").touch()
    rows = [[f"fold{n}_{k}", f"s{k // 6}"] for n in (1, 2) for k in range(24)]
    write_csv(tmp_path / "meta.csv", [["clip", "speaker"], *rows])
    for fold in ("fold1", "fold2"):
        write_fold(tmp_path / "demo/folds" / fold, "av")
    return module


def flags(tmp_path):
    places = {"--data": tmp_path, "--demo": tmp_path / "demo", "--out": tmp_path / "out"}
    return [text for flag, place in places.items() for text in (flag, str(place))]


def test_one_stream_is_tuned_on_the_demos_folds_from_its_pretraining(modalities, tmp_path, capsys):
    modalities.main(flags(tmp_path))
    names = [str(run.folder.relative_to(tmp_path / "out")) for run in modalities.runs]
    assert names == ["a/fold1", "a/fold2", "v/fold1", "v/fold2"]
    for run, modality in zip(modalities.runs, "aavv", strict=True):
        given = dict(zip(run.flags[::2], run.flags[1::2], strict=True))
        assert given["--finetune"] == str(tmp_path / "demo/pretrain/checkpoint-9.pth")
        assert given["--data_path"] == str(tmp_path / run.folder.name)
        assert given["--modality"] == modality
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "| audio | 33.3 | 33.33 | 33.3 to 33.3 | 33.33 | 48 |",
        "| video | 50.0 | 50.00 | 50.0 to 50.0 | 50.00 | 48 |",
        "| audio and video | 100.0 | 100.00 | 100.0 to 100.0 | 100.00 | 48 |",
    ]
    assert lines[-1] == "2 folds" and (tmp_path / "out/table.md").read_text().splitlines() == lines


def test_without_folds_of_the_demo_it_says_what_makes_them(modalities, tmp_path):
    for fold in (tmp_path / "demo/folds").iterdir():
        fold.rename(tmp_path / fold.name)
    with pytest.raises(SystemExit, match=r"no folds in '.*'; run scripts/demo.sh first"):
        modalities.main(flags(tmp_path))
