"""Pictures of what runs have written: curves, confusion, radar, and clips rebuilt."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from hicmae.inference.style import figure_to_image
from hicmae.io import write_whole
from hicmae.report.layout import confusion_figure
from hicmae.visualize import runs
from hicmae.visualize.__main__ import main
from hicmae.visualize.clips import Reconstruction, reconstruction_figure
from tests.report.fold_files import write_predictions

T, H, W, STEPS, BINS = 4, 32, 48, 64, 24
DATA_SETS = ["CREMA-D", "MAFW", "DFEW", "IEMOCAP"]


def test_reconstruction_draws_pixels_in_place_and_hidden_sound_grey():
    video, audio = torch.rand(3, T, H, W), torch.randn(STEPS, BINS)
    hidden = audio.clone()
    hidden[16:32] = torch.nan
    clip = Reconstruction(video, video / 2, video / 4, audio, hidden, audio * 0.5)
    figure = reconstruction_figure([clip, clip])
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    frames = [image for image in images if image.shape == (H, W, 3)]
    assert len(frames) == 2 * 3 * T
    sounds = [image for image in images if image.shape == (BINS, STEPS)]
    assert len(sounds) == 2 * 3 and sounds[1].mask[:, 16:32].all() and not sounds[0].mask.any()
    names = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert names == 2 * ["original", "masked", "rebuilt"]
    assert {"frame 0", "frame 3"} <= {axes.get_title() for axes in figure.axes}
    np.testing.assert_allclose(frames[1][5, 40], video[:, 1, 5, 40], rtol=1e-6)
    np.testing.assert_allclose(frames[T][5, 40], video[:, 0, 5, 40] / 2, rtol=1e-6)
    image = figure_to_image(figure)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 10


def log(epochs=3, **values):
    return [{"epoch": e, **{k: v[e] for k, v in values.items()}} for e in range(epochs)]


def test_curves_have_one_panel_a_quantity_and_one_colour_a_run():
    series = {"train_loss": [3, 2, 1], "val_loss": [3.1, 2.5, 2], "val_uar": [0.2, 0.5, 0.6]}
    first = log(**series, n_parameters=[5, 5, 5], note=["a"] * 3)
    figure = runs.curves_figure({"fold1": first, "fold2": log(**series)})
    panels = {axes.get_title(): axes for axes in figure.axes if axes.lines}
    assert list(panels) == ["loss", "validation UAR"]
    lines = panels["loss"].lines
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert len({line.get_color() for line in lines}) == 2
    assert lines[1].get_ydata().tolist() == [3.1, 2.5, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fold1", "fold2"]
    assert panels["validation UAR"].get_xlabel() == "epoch"


def test_curves_show_bad_steps_only_where_there_were_any_and_leave_out_what_is_no_number():
    for counts, shown in ([0, 0], []), ([0, 2], ["training bad steps"]):
        figure = runs.curves_figure({"run": log(2, train_loss=[1.0, 1.0], train_bad_steps=counts)})
        assert [a.get_title() for a in figure.axes if a.lines] == ["training loss", *shown]
    figure = runs.curves_figure({"run": log(train_loss=[3.0, None, 1.0])})
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 2]
    with pytest.raises(ValueError, match="hold no numbers to draw"):
        runs.curves_figure({"run": log(1, note=["a"])})


def test_curves_command_draws_runs_as_bitmap_or_vectors(tmp_path, capsys, caplog):
    for k, epochs in ((10, 2), (2, 1)):  # one epoch is enough
        records = log(epochs, train_loss=[2.0, 1.0], train_lr=[1e-4, 1e-5])
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        write_whole(tmp_path / f"fold{k}" / "log.txt", text)
    starts, drawn = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}, {}
    for name in ("a.png", "a.pdf", "a.svg", "again.svg"):
        path = tmp_path / "pictures" / name
        main(["curves", str(tmp_path / "fold10"), str(tmp_path / "fold2"), "--out", str(path)])
        assert capsys.readouterr().out == f"written: {path}\n"
        drawn[name] = path.read_bytes()
        assert drawn[name].startswith(starts[path.suffix])
    assert drawn["a.svg"] == drawn["again.svg"]  # the same picture is the same file
    assert b"CreationDate" not in drawn["a.pdf"]
    assert main(["curves", str(tmp_path / "empty"), "--output", str(tmp_path / "a.png")]) == 2
    assert "holds no finished epoch yet" in caplog.text and caplog.text.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_confusion_is_pooled_over_files_and_runs_and_normalised_by_row(tmp_path):
    predictions = tmp_path / "a.csv", tmp_path / "run"
    write_predictions(predictions[0], list("wxyz"), [0, 0, 0, 1], [0, 0, 1, 1])
    write_predictions(predictions[1] / "pred.csv", list("abc"), [0, 2, 2], [0, 2, 2])
    (tmp_path / "classes.txt").write_text("anger\njoy\nfear\n")
    axes = runs.confusion(predictions, [str(tmp_path / "classes.txt")]).axes[0]
    expected = [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [text.get_text() for text in axes.texts][:3] == ["75%\n3", "25%\n1", "0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["anger", "joy", "fear"]
    assert axes.get_title() == "7 clips, UAR 91.67%, WAR 85.71%"
    settings = {"data": {"data_path": str(tmp_path)}}  # of the run, whose list has its names
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    axes = runs.confusion([predictions[1]]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["anger", "joy", "fear"]
    with pytest.raises(ValueError, match="--class_names gives 2 names .a, b., expected 3"):
        runs.confusion(predictions, ["a", "b"])
    (tmp_path / "r.csv").write_text("clip,label0,prediction0\na,0.5,0.6\nb,0.1,0.2\n")
    with pytest.raises(ValueError, match="is of a regression; it has no confusion matrix"):
        runs.confusion([tmp_path / "r.csv"])


def test_reliability_draws_right_answers_by_confidence_before_and_after(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(runs, "save_figure", lambda figure, path: drawn.append(figure))
    scores = np.array([[0.9, 0.1, 0.0]] * 3 + [[0.2, 0.3, 0.5]])
    runs.draw_reliability([0, 0, 1, 2], scores, 4.0, tmp_path / "reliability.png")
    upper, after, lower, _ = drawn[0].axes
    counts = {round(15 * bar.get_x()): bar.get_height() for bar in lower.patches}
    assert {place: count for place, count in counts.items() if count} == {7: 1, 13: 3}
    shares = [bar.get_height() for bar in upper.patches if bar.get_height()]
    assert shares == pytest.approx([1, 2 / 3])
    assert "ECE 0.300" in upper.get_title()  # (3 * 0.7 / 3 + 0.5) / 4
    assert "after the temperature, 4.00\nECE" in after.get_title()
    assert "ECE 0.300" not in after.get_title()


def test_confusion_of_a_class_without_clips_has_an_empty_row():
    with np.errstate(all="raise"):
        images = confusion_figure([[2, 0], [0, 0]], ["a", "b"]).axes[0].images
    shares = images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(shares, [[1.0, 0.0], [np.nan, np.nan]])
    image = runs.confusion_image({"confusion": np.eye(3), "uar": 1.0, "war": 1.0}, ["a", "b", "c"])
    assert image.dtype == np.uint8 and image.shape[2] == 3 and max(image.shape) < 500


def scores(**methods):
    axes = pd.MultiIndex.from_product((DATA_SETS, ["WAR"]))
    return pd.DataFrame.from_dict(methods, orient="index", columns=axes)


def test_each_method_is_a_closed_polygon_through_its_values():
    figure = runs.radar_figure(scores(ours=[80, 40, 60, 70], theirs=[75, 30, 65, 72]))
    (axes,) = figure.axes
    radii = [line.get_ydata().tolist() for line in axes.lines]
    assert radii == [[80, 40, 60, 70, 80], [75, 30, 65, 72, 75]]
    assert axes.lines[0].get_xdata().tolist()[:2] == [0, np.pi / 2]
    assert axes.get_ylim() == (0, 80)
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == DATA_SETS and axes.get_title() == "WAR"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "theirs"]


def write_run(folder, right):
    """Write 4 clips of each of 3 classes, of which `right` are recognised."""
    labels = np.repeat(range(3), 4)
    missed = np.tile(range(4), 3) >= np.repeat(right, 4)
    guesses = np.where(missed, (labels + 1) % 3, labels)
    write_predictions(folder / "pred.csv", [f"c{k}" for k in range(12)], labels, guesses)


def test_folders_give_an_axis_a_class_or_a_data_set(tmp_path):
    write_run(tmp_path / "a" / "fold1", (4, 2, 0))
    write_run(tmp_path / "b" / "fold1", (1, 4, 4))
    found = runs.scores_of_folders(
        [f"toy/one={tmp_path / 'a'}", f"toy={tmp_path / 'b'}"], ["recall"]
    )
    assert found.loc["one"].tolist() == [100, 50, 0] and found.loc[""].tolist() == [25, 100, 100]
    assert found.columns.tolist() == [("toy", f"class {k}") for k in range(3)]
    alone = runs.scores_of_folders([f"toy={tmp_path / 'a'}"])
    assert alone.columns.tolist() == [("toy", "WAR")] and alone.values.tolist() == [[50]]
    both = runs.scores_of_folders([f"x={tmp_path / 'a'}"], ["uar", "recall"])
    assert [metric for _, metric in both] == ["UAR", "class 0", "class 1", "class 2"]
    with pytest.raises(ValueError, match="'x' is given twice"):
        runs.scores_of_folders([f"x={tmp_path / name}" for name in "ab"])
    write_predictions(tmp_path / "c" / "fold1" / "pred.csv", list("ab"), [0, 1], [0, 1])
    with pytest.raises(ValueError, match="12 of 'x/one' are not in 'x/two', first 'c0'"):
        runs.scores_of_folders([f"x/one={tmp_path / 'a'}", f"x/two={tmp_path / 'c'}"])
    with pytest.raises(ValueError, match="has no predictions of its best epoch"):
        runs.scores_of_folders([f"toy={tmp_path / 'a'}"], kind="best")


def test_a_class_without_clips_is_a_gap_and_said(tmp_path):
    labels = [0, 0, 2, 2]  # no clip of class 1
    write_predictions(tmp_path / "fold1" / "pred.csv", list("abcd"), labels, [0, 0, 2, 0])
    (axes,) = runs.radar_figure(runs.scores_of_folders([f"x={tmp_path}"], ["war", "recall"])).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [75, 100, np.nan, 50, 75])
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["WAR", "class 0", "class 1\n(no clips)", "class 2"]


def test_too_few_axes_and_what_is_no_folder_are_refused():
    with pytest.raises(ValueError, match=r"at least 3 axes \(data sets times metrics\), got 2"):
        runs.radar_figure(scores(a=[1, 2, 3, 4]).iloc[:, :2])
    with pytest.raises(ValueError, match="DATASET/METHOD=FOLDER, got 'folder'"):
        runs.radar(["folder"])
