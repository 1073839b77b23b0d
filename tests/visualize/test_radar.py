"""Radar plots of csv files and of report folders."""

import csv

import numpy as np
import pytest
from matplotlib import pyplot as plt

from hicmae.visualize.__main__ import main
from hicmae.visualize.radar import Score, radar_figure, read_scores, scores_of_folders

AXES = [("CREMA-D", "WAR"), ("MAFW", "WAR"), ("DFEW", "WAR"), ("IEMOCAP", "WAR")]


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    plt.close("all")


def scores(**methods):
    return [
        Score(*axis, method, value)
        for method, values in methods.items()
        for axis, value in zip(AXES, values, strict=False)
    ]


def write_fold(folder, right):
    """Write 4 clips of each of 3 classes, of which `right` are recognised."""
    folder.mkdir(parents=True)
    with (folder / "pred.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "prediction", "p0", "p1", "p2"])
        for label in range(3):
            for i in range(4):
                guess = label if i < right[label] else (label + 1) % 3
                writer.writerow([f"{label}_{i}", label, guess, *np.eye(3)[guess]])


def test_each_method_is_a_closed_polygon_through_its_values():
    figure = radar_figure(scores(ours=[80, 40, 60, 70], theirs=[75, 30, 65, 72]))
    (axes,) = figure.axes
    radii = [line.get_ydata().tolist() for line in axes.lines]
    assert radii == [[80, 40, 60, 70, 80], [75, 30, 65, 72, 75]]
    assert axes.lines[0].get_xdata().tolist()[:2] == [0, np.pi / 2]
    assert axes.get_ylim() == (0, 80)
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["CREMA-D", "MAFW", "DFEW", "IEMOCAP"] and axes.get_title() == "WAR"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "theirs"]


def test_relative_axes_end_at_the_best_method_and_say_its_value():
    figure = radar_figure(scores(ours=[80, 40, 60, 70], theirs=[75, 30, 65, 72]), relative=True)
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata() == pytest.approx([100, 100, 100 * 60 / 65, 100 * 70 / 72, 100])
    assert axes.get_xticklabels()[2].get_text() == "DFEW\n65.0%"


def test_middle_may_start_above_zero_but_not_above_the_scores():
    figure = radar_figure(scores(ours=[80, 40, 60, 70]), start=50)
    assert figure.axes[0].get_ylim() == (50, 80)
    assert min(figure.axes[0].lines[0].get_ydata()) == 50
    with pytest.raises(ValueError, match="--start 90 is not below the scores, which reach 80.0"):
        radar_figure(scores(ours=[80, 40, 60, 70]), start=90)


def test_folders_give_an_axis_a_class_or_a_data_set(tmp_path):
    write_fold(tmp_path / "a" / "fold1", (4, 2, 0))
    write_fold(tmp_path / "b" / "fold1", (1, 4, 4))
    found = scores_of_folders([f"toy/one={tmp_path / 'a'}", f"toy={tmp_path / 'b'}"], ["recall"])
    assert found[:3] == [Score("toy", f"class {k}", "one", v) for k, v in enumerate((100, 50, 0))]
    assert found[3] == Score("toy", "class 0", "", 25)
    assert scores_of_folders([f"toy={tmp_path / 'a'}"]) == [Score("toy", "WAR", "", 50)]
    assert [s.metric for s in scores_of_folders([f"x={tmp_path / 'a'}"], ["uar", "recall"])] == [
        "UAR", "class 0", "class 1", "class 2"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="has no predictions of its best epoch"):
        scores_of_folders([f"toy={tmp_path / 'a'}"], kind="best")
    out = tmp_path / "radar.svg"
    main(["radar", f"toy={tmp_path / 'a'}", "--metrics", "recall", "--output", str(out)])
    assert out.read_text().startswith("<?xml")


def test_command_reads_a_csv_file(tmp_path, capsys):
    path, out = tmp_path / "scores.csv", tmp_path / "radar.png"
    rows = [("dataset", "metric", "method", "value"), *scores(ours=[80, 40, 60, 70])]
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    assert read_scores(path)[1] == Score("MAFW", "WAR", "ours", 40)
    main(["radar", str(path), "--output", str(out)])
    assert capsys.readouterr().out == f"written: {out}\n"
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    "found, message",
    [
        (scores(a=[1, 2]), r"at least 3 axes \(data sets times metrics\), got 2"),
        (scores(a=[1, 2, 3], b=[1, 2]), "method 'b' has no value of DFEW WAR"),
        (scores(a=[1, 2, 3]) + scores(a=[1]), "a method has two values on one axis"),
    ],
)
def test_gaps_and_repeats_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        radar_figure(found)


def test_files_and_entries_that_are_none_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="expected a csv file with the columns dataset,"):
        read_scores(tmp_path / "gone.csv")
    (tmp_path / "a.csv").write_text("dataset,value\nx,1\n")
    with pytest.raises(ValueError, match="a.csv:1: expected the columns .*, got 'dataset,value'"):
        read_scores(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("dataset,metric,method,value\nx,WAR,a,1\nx,UAR,a,none\n")
    with pytest.raises(ValueError, match="b.csv:3: expected a number as value, got 'none'"):
        read_scores(tmp_path / "b.csv")
    with pytest.raises(SystemExit) as stopped:
        main(["radar", str(tmp_path), "--output", str(tmp_path / "x.png")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "DATASET=FOLDER or DATASET/METHOD=FOLDER" in error
