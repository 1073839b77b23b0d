"""Scores over folds: pooled totals, missing folds, clips tested twice, names."""

import json

import numpy as np
import pytest

from hicmae.report.layout import detail_table, main_table
from hicmae.report.scores import build, fold_folders
from hicmae.training.evaluate import classification_metrics, regression_metrics
from hicmae.training.resampling import Plan, read_predictions
from tests.report.fold_files import cells_of, write_fold, write_regression

QUICK = Plan(resamples=50)


def test_total_is_the_score_of_the_union_not_the_mean_of_the_folds(tmp_path):
    folds = [write_fold(tmp_path / f"fold{k}", k, n) for k, n in ((1, 40), (2, 9), (3, 23))]
    built = build(tmp_path, plan=QUICK)
    labels, scores = (np.concatenate(parts) for parts in zip(*folds, strict=True))
    union = classification_metrics(labels, scores)
    rows = [classification_metrics(*fold) for fold in folds]
    assert built.kinds == ["last"] and built.rows == ["fold1", "fold2", "fold3"]
    assert list(built.scores["last"].values()) == [*rows, union]
    assert abs(union["uar"] - np.mean([row["uar"] for row in rows])) > 0.005


def test_folds_are_in_natural_order_with_mean_deviation_and_total(tmp_path):
    for k in (10, 2, 1):
        write_fold(tmp_path / f"fold{k}", k, 12)
        write_fold(tmp_path / f"fold{k}", k + 50, 12, "pred_best.csv")
    built = build(tmp_path, plan=QUICK)
    cells = cells_of(main_table(built))
    assert cells[0] == ["fold", "clips", "UAR last", "WAR last", "UAR best", "WAR best"]
    rows = [row[0] for row in cells[1:]]
    assert rows == ["fold1", "fold2", "fold10", "mean", "std", "Total", "95% CI"]
    values = 100 * built.frame.loc[built.rows, ("best", "uar")]
    assert cells[4][4] == f"{np.mean(values):.2f}"
    assert cells[5][4] == f"{np.std(values, ddof=1):.2f}"
    total, low, high = built.total("best", "uar")
    assert cells[6][1] == "36" and cells[6][4] == f"{100 * total:.2f}"
    assert low < total < high
    assert cells[7][4] == f"[{100 * low:.2f}, {100 * high:.2f}]"


def test_a_folder_that_is_a_run_is_its_only_fold_without_deviation_or_missing_folds(tmp_path):
    run = tmp_path / "fold3"
    write_fold(run, 1, 12)
    write_fold(run / "older", 2, 6)
    assert fold_folders(run) == ([run], [])
    built = build(run, plan=Plan(resamples=0), metrics=["weighted_f1"])
    value = f"{100 * built.frame.loc['Total', ('last', 'weighted_f1')]:.2f}"
    head, *rows = cells_of(main_table(built))
    assert rows == [["fold3", "12", value], ["Total", "12", value]] and built.notes == []
    assert head == ["fold", "clips", "weighted F1 last"]
    with pytest.raises(ValueError, match="--metrics ccc is no score of 3 classes; use .'uar'"):
        build(run, plan=QUICK, metrics=["ccc"])


def test_missing_and_unfinished_folds_are_named(tmp_path):
    for k in (1, 4):
        write_fold(tmp_path / f"fold{k}", k, 8)
    write_fold(tmp_path / "fold4", 9, 8, "pred_best.csv")
    (tmp_path / "fold2").mkdir()
    (tmp_path / "fold2" / "log.txt").touch()
    (tmp_path / "pictures").mkdir()
    built = build(tmp_path, folds=5, plan=QUICK)
    assert built.notes == [
        "fold2 is not finished: it has no predictions",
        "expected 5 folds, found 3",
        "no pred_best.csv in fold1: not part of that Total",
        "Total covers the finished folds only",
    ]
    assert cells_of(main_table(built))[1][4:] == ["-", "-"]
    assert built.scores["best"]["Total"]["count"] == 8


def test_clips_tested_twice_are_named_with_their_folds(tmp_path):
    write_fold(tmp_path / "fold1", 1, 5, prefix="x")
    write_fold(tmp_path / "fold2", 2, 2, prefix="x")
    path = tmp_path / "fold1" / "pred.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    (note,) = build(tmp_path, plan=QUICK).notes
    assert note == (
        "pred.csv: 3 clips counted more than once, first 'x/clip 0, a' in fold1 and fold2"
    )


def test_skipped_clips_settings_that_differ_and_the_list_of_the_best_epoch_are_named(tmp_path):
    for k, modality in ((1, "av"), (2, "a"), (3, "av")):
        run = tmp_path / f"fold{k}"
        for name in ("pred.csv", "pred_best.csv"):
            write_fold(run, k, 5, name)
        settings = {"run": {"seed": k}, "data": {"data_path": f"lists/{k}"}}  # these may differ
        settings["classifier"] = {"modality": modality, "depth": 2}
        (run / "config.json").write_text(json.dumps(settings))
        (run / "metrics_best.json").write_text(json.dumps({"chosen_on": "lists/test.csv"}))
    (tmp_path / "fold1" / "metrics.json").write_text('{"skipped": ["a: gone", "b: gone"]}')
    *notes, chosen = build(tmp_path, plan=QUICK).notes
    assert notes == [
        "fold1: 2 clips unreadable and not scored",
        'the folds were not trained alike: modality is "av" in fold1 fold3, "a" in fold2',
    ]
    assert chosen.startswith("best epoch chosen on test.csv, ") and "upper bounds" in chosen
    (tmp_path / "fold2" / "metrics_best.json").write_text(json.dumps({"chosen_on": "held.csv"}))
    chosen = build(tmp_path / "fold2", plan=QUICK).notes
    assert chosen == ["best epoch chosen on held.csv"]


def test_regression_table_has_correlations_of_the_union_and_of_each_output(tmp_path):
    parts = [write_regression(tmp_path / f"fold{k}", k, n) for k, n in ((1, 12), (2, 30))]
    built = build(tmp_path, names=["valence", "arousal"], plan=QUICK)
    union = regression_metrics(*(np.concatenate(p) for p in zip(*parts, strict=True)))
    assert built.scores["last"]["Total"] == union
    cells = cells_of(main_table(built))
    assert cells[0] == ["fold", "clips", "PCC last", "CCC last"]
    assert cells[5][0] == "Total" and cells[5][3] == f"{100 * union['ccc']['mean']:.2f}"
    pcc = union["pcc"]["per_output"][1]
    ccc, low, high = built.total("last", "ccc 1")
    assert low < ccc < high and ccc == union["ccc"]["per_output"][1]
    heading, _, row = cells_of(detail_table(built))
    assert heading == ["output", "PCC last", "CCC last"]
    assert row[0] == "arousal" and row[1].startswith(f"{100 * pcc:.2f} [")
    assert row[2] == f"{100 * ccc:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


HEAD = b"clip,label,prediction,p0,p1\n"


@pytest.mark.parametrize("end", [b"", b"\n", b"   \n", b",,,,\r\n"])
def test_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path, end):
    path = tmp_path / "pred.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD + b"\nclip \xe9.mp4,1,0.0,0.75,0.25\r\n" + end)
    read = read_predictions(path)
    assert read.clips == ["clip \udce9.mp4"]
    assert (read.labels.tolist(), read.predictions.tolist()) == ([1], [0])


@pytest.mark.parametrize(
    "text, message",
    [
        (b"clip,label\na,1\n", "pred.csv:1: expected the columns clip,label,prediction,p0"),
        (b"", "pred.csv:1: expected the columns"),
        (b"clip,label,prediction,p0\na,0,0,1\nb,0\n", r"pred.csv:3: expected a class of 0\.\.0"),
        (HEAD, "there are no predictions in it"),
        (HEAD + b"a,0,0,1,0\n\nb,x,1,0,1\n", "pred.csv:4: expected a class"),
        (HEAD + b"a,0,0,1,0\nb,0,0,1,0,1\n", "pred.csv: .*test this fold again"),
        (HEAD + b"a,0,2,1,0\n", r"pred.csv:2: expected a class of 0\.\.1 .*'a,0,2,1,0'"),
        (HEAD + b"a,0.7,1,1,0\n", "pred.csv:2: expected a class .*'a,0.7,1,1,0'"),
        (HEAD + b"a,0,1.9,1,0\n", "pred.csv:2: expected a class .*'a,0,1.9,1,0'"),
        (HEAD + b'"a,0,1,1,0\n', "pred.csv: .*EOF inside string.*; test this fold again"),
        (b"clip,label0,prediction0\na,inf,0\n", "pred.csv:2: expected a finite number"),
    ],
)
def test_broken_prediction_files_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "pred.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "pred.csv")


def test_folders_without_results_or_with_two_tasks_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; give the one that holds the folds"):
        build(tmp_path / "gone")
    (tmp_path / "fold1").mkdir()
    (tmp_path / "fold1" / "log.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"pred_best.csv yet \(started: fold1\)"):
        build(tmp_path)
    write_fold(tmp_path / "fold1", 1, 6)
    write_regression(tmp_path / "fold2", 1, 6)
    message = "cannot be pooled: 3 classes in 'fold1', 2 regression outputs in 'fold2'"
    with pytest.raises(ValueError, match=message):
        build(tmp_path, plan=QUICK)
