"""Tables over folds: pooled totals, missing folds, clips tested twice."""

import csv
import json
import runpy
import sys

import numpy as np
import pytest

from hicmae import report
from hicmae.folds import fold_folders, pool, read_predictions
from hicmae.training.metrics import classification_metrics, regression_metrics

CLASSES = 3


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_fold(folder, seed, n, name="pred.csv", prefix=""):
    """Write random predictions of n clips; return labels and scores."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, CLASSES, n), rng.random((n, CLASSES))
    rows = [["clip", "label", "prediction", *(f"p{k}" for k in range(CLASSES))]]
    for i in range(n):
        clip = f"{prefix or folder.name}/clip {i}, a"  # a space and a comma, as real names have
        rows.append([clip, labels[i], scores[i].argmax(), *scores[i]])
    write_csv(folder / name, rows)
    return labels, scores


def write_regression(folder, seed, n, outputs=2):
    rng = np.random.default_rng(seed)
    target, prediction = rng.random((n, outputs)), rng.random((n, outputs))
    header = [f"label{k}" for k in range(outputs)] + [f"prediction{k}" for k in range(outputs)]
    rows = [[f"{folder.name}_{i}", *target[i], *prediction[i]] for i in range(n)]
    write_csv(folder / "pred.csv", [["clip", *header], *rows])
    return target, prediction


def test_predictions_come_back_as_written(tmp_path):
    labels, scores = write_fold(tmp_path, 0, 7)
    read = read_predictions(tmp_path / "pred.csv")
    assert read.clips[3] == f"{tmp_path.name}/clip 3, a"
    assert read.labels.tolist() == labels.tolist()
    assert read.predictions.tolist() == scores.argmax(1).tolist()
    assert read.num_outputs == CLASSES and not read.is_regression
    target, prediction = write_regression(tmp_path / "r", 0, 5)
    read = read_predictions(tmp_path / "r" / "pred.csv")
    assert read.is_regression and read.num_outputs == 2
    np.testing.assert_array_equal(read.labels, target)
    np.testing.assert_array_equal(read.predictions, prediction)


def test_total_is_the_score_of_the_union_not_the_mean_of_the_folds(tmp_path):
    folds = [write_fold(tmp_path / f"fold{k}", k, n) for k, n in ((1, 40), (2, 9), (3, 23))]
    built = report.build(tmp_path)
    labels, scores = (np.concatenate(parts) for parts in zip(*folds, strict=True))
    union = classification_metrics(labels, scores)
    rows = [classification_metrics(*fold) for fold in folds]
    assert built.total.last == union
    assert [row.last for row in built.rows] == rows
    assert abs(union["uar"] - np.mean([row["uar"] for row in rows])) > 0.005
    assert built.total.best is None


def test_folds_are_in_natural_order_with_last_and_best_side_by_side(tmp_path):
    for k in (10, 2, 1):
        write_fold(tmp_path / f"fold{k}", k, 12)
        write_fold(tmp_path / f"fold{k}", k + 50, 12, "pred_best.csv")
    built = report.build(tmp_path, references={"chance": 100 / 3, "video only": 50.0})
    cells = report.main_table(built)
    assert cells[0] == ["fold", "clips", "UAR last", "WAR last", "UAR best", "WAR best"]
    assert [row[0] for row in cells[1:]] == [
        "fold1",
        "fold2",
        "fold10",
        "Total",
        "chance",
        "video only",
    ]
    assert cells[4][1] == "36" and cells[4][4] == f"{100 * built.total.best['uar']:.2f}"
    assert cells[5] == ["chance", "", "33.33", "", "33.33", ""]


def test_text_is_aligned_plain_and_says_which_row_is_pooled(tmp_path):
    for k in (1, 2):
        write_fold(tmp_path / f"fold{k}", k, 11)
    text = report.as_text(report.build(tmp_path, names=["anger", "joy", "fear"]))
    assert text.isascii() and "Total = all clips pooled" in text
    table = text.split("\n\n")[1].splitlines()
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0].strip("-") for line in table] == [
        "fold",
        "",
        "fold1",
        "fold2",
        "",
        "Total",
    ]
    assert "anger" in text.split("\n\n")[2]


def test_missing_and_unfinished_folds_are_named(tmp_path):
    write_fold(tmp_path / "fold1", 1, 8)
    write_fold(tmp_path / "fold4", 4, 8)
    (tmp_path / "fold2").mkdir()
    (tmp_path / "fold2" / "log.txt").touch()
    (tmp_path / "pictures").mkdir()
    notes = report.build(tmp_path, folds=5).notes
    assert notes == [
        "fold2 is not finished: it has no predictions",
        "missing: fold 3, 5",
        "Total covers the finished folds only",
    ]
    assert report.build(tmp_path).notes[1] == "missing: fold 3"


def test_fold_without_best_predictions_is_named_and_shown_as_a_dash(tmp_path):
    for k in (1, 2):
        write_fold(tmp_path / f"fold{k}", k, 8)
    write_fold(tmp_path / "fold2", 9, 8, "pred_best.csv")
    built = report.build(tmp_path)
    assert "no pred_best.csv in fold1: not part of that Total" in built.notes
    assert report.main_table(built)[1][4:] == ["-", "-"]
    assert built.total.best["count"] == 8


def test_clips_tested_twice_are_named_with_their_folds(tmp_path):
    write_fold(tmp_path / "fold1", 1, 5, prefix="x")
    write_fold(tmp_path / "fold2", 2, 2, prefix="x")
    (note,) = report.build(tmp_path).notes
    assert note == (
        "pred.csv: clips counted more than once: 'x/clip 0, a' in fold1 and fold2; "
        "'x/clip 1, a' in fold1 and fold2"
    )


def test_a_clip_twice_in_one_fold_is_named(tmp_path):
    write_fold(tmp_path / "fold1", 1, 3)
    path = tmp_path / "fold1" / "pred.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    assert "'fold1/clip 2, a' in fold1 (2 times)" in report.build(tmp_path).notes[0]


@pytest.mark.parametrize(
    "settings, recorded, expected",
    [
        ({"data_path": "lists"}, {}, "test.csv, the test list itself"),
        ({"score": {"val_path": "held.csv"}, "data": {"data_path": "x"}}, {}, "held.csv"),
        ({"val_path": "", "data_path": "x"}, {"chosen_on": "lists/val.csv"}, "val.csv"),
    ],
)
def test_report_says_which_list_chose_the_best_epoch(tmp_path, settings, recorded, expected):
    write_fold(tmp_path / "fold1", 1, 5)
    write_fold(tmp_path / "fold1", 2, 5, "pred_best.csv")
    (tmp_path / "fold1" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "fold1" / "metrics_best.json").write_text(json.dumps(recorded))
    (note,) = report.build(tmp_path).notes
    assert note.startswith(f"best epoch chosen on {expected}")
    assert ("upper bounds" in note) == expected.startswith("test")


def test_skipped_clips_are_counted_in_the_notes(tmp_path):
    write_fold(tmp_path / "fold1", 1, 5)
    (tmp_path / "fold1" / "metrics.json").write_text('{"skipped": ["a: gone", "b: gone"]}')
    assert report.build(tmp_path).notes == ["fold1: 2 clips unreadable and not scored"]


def test_regression_table_has_correlations_of_the_union_and_of_each_output(tmp_path):
    parts = [write_regression(tmp_path / f"fold{k}", k, n) for k, n in ((1, 12), (2, 30))]
    built = report.build(tmp_path, names=["valence", "arousal"])
    union = regression_metrics(*(np.concatenate(p) for p in zip(*parts, strict=True)))
    assert built.total.last == union
    cells = report.main_table(built)
    assert cells[0] == ["fold", "clips", "PCC last", "CCC last"]
    assert cells[3][3] == f"{100 * union['ccc']['mean']:.2f}"
    detail = report.detail_table(built)
    assert detail[0] == ["output", "PCC last", "CCC last"]
    assert detail[2] == [
        "arousal",
        *(f"{100 * union[m]['per_output'][1]:.2f}" for m in ("pcc", "ccc")),
    ]


def test_folder_that_is_itself_a_run_is_its_only_fold(tmp_path):
    write_fold(tmp_path, 1, 6)
    write_fold(tmp_path / "older", 2, 6)
    assert fold_folders(tmp_path) == ([tmp_path], [])
    assert len(report.build(tmp_path).rows) == 1


def test_tasks_that_differ_are_not_pooled(tmp_path):
    write_fold(tmp_path / "fold1", 1, 6)
    write_regression(tmp_path / "fold2", 1, 6)
    with pytest.raises(ValueError, match="different tasks cannot be pooled: 3 outputs against 2"):
        report.build(tmp_path)
    one = read_predictions(tmp_path / "fold1" / "pred.csv")
    assert pool([one]).scores() == one.scores()


@pytest.mark.parametrize(
    "text, message",
    [
        ("clip,label\na,1\n", "pred.csv:1: expected the columns clip,label,prediction,p0"),
        ("", "pred.csv:1: expected the columns"),
        ("clip,label,prediction,p0,p1\n", "there are no predictions in it"),
        ("clip,label,prediction,p0,p1\na,0,0,1,0\nb,x,1,0,1\n", "pred.csv:3: expected a number"),
        ("clip,label,prediction,p0,p1\na,0\n", "pred.csv:2: expected a number in each label"),
        ("clip,label,prediction,p0,p1\na,0,2,1,0\n", r"prediction 2 is not a class of 0\.\.1"),
    ],
)
def test_broken_prediction_files_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "pred.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "pred.csv").scores()


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; give the one that holds the folds"):
        report.build(tmp_path / "gone")
    (tmp_path / "fold1").mkdir()
    (tmp_path / "fold1" / "log.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"pred_best.csv yet \(started: fold1\)"):
        report.build(tmp_path)


def test_references_are_parsed_and_bad_ones_refused():
    assert report.parse_references("video only=50, audio only=33.3") == {
        "video only": 50.0,
        "audio only": 33.3,
    }
    assert report.parse_references("") == {}
    with pytest.raises(ValueError, match="--ceilings expects 'name=percent,.*got 'video'"):
        report.parse_references("video")


def test_command_prints_the_table_and_writes_it_beside_the_folds(tmp_path, capsys):
    for k in (1, 2):
        write_fold(tmp_path / f"fold{k}", k, 9)
    (tmp_path / "classes.txt").write_text("anger\njoy|glee\nfear\n")
    report.main(
        [str(tmp_path), "--chance", "--ceilings", "video only=50"]
        + ["--classes", str(tmp_path / "classes.txt")]
    )
    shown = capsys.readouterr().out
    assert "Total" in shown and "chance" in shown and "33.33" in shown and "video only" in shown
    markdown = (tmp_path / "report.md").read_text()
    assert "| fold | clips | UAR last | WAR last |\n| --- | ---: | ---: | ---: |" in markdown
    assert "joy\\|glee" in markdown
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["total"]["last"]["count"] == 18 and data["references_percent"]["video only"] == 50
    assert [fold["name"] for fold in data["folds"]] == ["fold1", "fold2"]
    assert not list(tmp_path.glob("*.tmp"))


def test_command_ends_with_one_line_on_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path / "gone")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--classes", str(tmp_path / "none.txt")])
    assert "expected one class name a line" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_module_runs_as_a_program(tmp_path, capsys, monkeypatch):
    write_fold(tmp_path / "fold1", 1, 5)
    monkeypatch.setattr(sys, "argv", ["hicmae.report", str(tmp_path)])
    runpy.run_module("hicmae.report", run_name="__main__")
    assert "fold1" in capsys.readouterr().out
