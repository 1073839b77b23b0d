"""Pictures: what is drawn, in which size, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from hicmae.training.logs import read_lines
from hicmae.visualize.__main__ import main
from hicmae.visualize.confusion import (
    confusion,
    confusion_figure,
    confusion_image,
    small_confusion_figure,
)
from hicmae.visualize.curves import curves, curves_figure
from hicmae.visualize.reconstruction import reconstruction_figure
from hicmae.visualize.style import figure_to_image

T, H, W, STEPS, BINS = 4, 32, 48, 64, 24


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


def clip():
    rng = np.random.default_rng(0)
    video, audio = rng.random((3, T, H, W)), rng.standard_normal((STEPS, BINS))
    masked_video, masked_audio = video.copy(), audio.copy()
    masked_video[..., 16:, :16] = np.nan
    masked_audio[16:32] = np.nan
    return [video, masked_video, video * 2 - 0.5, audio, masked_audio, audio * 0.5]


def write_log(folder, epochs, **values):
    folder.mkdir()
    lines = [
        json.dumps({"epoch": e, **{k: v[e] for k, v in values.items()}}) for e in range(epochs)
    ]
    (folder / "log.txt").write_text("\n".join(lines) + "\n")


def write_pred(path, labels, predictions, num_classes=3):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "prediction", *(f"p{k}" for k in range(num_classes))])
        for i, (label, guess) in enumerate(zip(labels, predictions, strict=True)):
            writer.writerow([f"{path.stem}{i}", label, guess, *np.eye(num_classes)[guess]])


def test_reconstruction_shows_the_chosen_frames_in_three_rows_and_three_spectrograms():
    figure = reconstruction_figure(*clip(), frames=(0, 3), title="step 7")
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [image.shape for image in images if image.shape[-1] == 3] == [(H, W, 3)] * 6
    assert [image.shape for image in images if image.shape == (BINS, STEPS)] == [(BINS, STEPS)] * 3
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert [name for name in labels if name in ("original", "masked", "rebuilt")] == [
        "original",
        "masked",
        "rebuilt",
    ]
    assert {"frame 0", "frame 3"} <= {axes.get_title() for axes in figure.axes}
    plt.close(figure)


def test_reconstruction_draws_pixels_in_place_clipped_and_hidden_ones_grey():
    video, *_ = parts = clip()
    figure = reconstruction_figure(*parts, frames=(1,))
    frames = [a.images[0].get_array() for a in figure.axes if a.images][::2][:3]
    np.testing.assert_allclose(frames[0][5, 40], video[:, 1, 5, 40], rtol=1e-6)
    assert (frames[1][20, 3] == 0.5).all() and not (frames[1][20, 30] == 0.5).any()
    assert frames[2].min() == 0.0 and frames[2].max() == 1.0
    plt.close(figure)


def test_reconstruction_takes_tensors_and_becomes_an_image_for_tensorboard():
    tensors = [torch.tensor(part).to(torch.bfloat16) for part in clip()]
    image = figure_to_image(reconstruction_figure(*tensors))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 200 < image.shape[0] < image.shape[1] and image.std() > 10


def test_reconstruction_of_arrays_that_differ_in_shape_is_refused():
    parts = clip()
    parts[1] = parts[1][:, :2]
    with pytest.raises(ValueError, match=r"must have one shape, .*\(3, 2, 32, 48\)"):
        reconstruction_figure(*parts)


def test_curves_have_one_panel_a_quantity_and_one_colour_a_run(tmp_path):
    series = {"train_loss": [3, 2, 1], "val_loss": [3.1, 2.5, 2], "val_uar": [0.2, 0.5, 0.6]}
    write_log(tmp_path / "fold1", 3, **series, n_parameters=[5, 5, 5], note=["a"] * 3)
    write_log(tmp_path / "fold2", 3, **series)
    logs = {f"fold{k}": read_lines(tmp_path / f"fold{k}" / "log.txt") for k in (1, 2)}
    figure = curves_figure(logs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.lines}
    assert list(panels) == ["loss", "validation UAR"]
    lines = panels["loss"].lines
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert len({line.get_color() for line in lines}) == 2
    assert lines[1].get_ydata().tolist() == [3.1, 2.5, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fold1", "fold2"]
    assert panels["validation UAR"].get_xlabel() == "epoch"
    plt.close(figure)


@pytest.mark.parametrize(("counts", "shown"), [([0, 0], []), ([0, 2], ["training bad steps"])])
def test_curves_show_bad_steps_only_where_there_were_any(counts, shown):
    steps = [{"epoch": k, "train_loss": 1.0, "train_bad_steps": n} for k, n in enumerate(counts)]
    figure = curves_figure({"run": steps})
    titles = [axes.get_title() for axes in figure.axes if axes.lines]
    assert titles == ["training loss", *shown]
    plt.close(figure)


def test_curves_skip_epochs_without_a_number(tmp_path):
    write_log(tmp_path / "run", 3, train_loss=[3.0, None, 1.0])
    figure = curves_figure({"run": read_lines(tmp_path / "run" / "log.txt")})
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 2]
    plt.close(figure)


def test_curves_command_writes_a_200_dpi_picture_of_runs_in_natural_order(tmp_path, capsys):
    for k in (10, 2):
        write_log(tmp_path / f"fold{k}", 2, train_loss=[2.0, 1.0], train_lr=[1e-4, 1e-5])
    out = tmp_path / "pictures" / "curves.png"
    main(["curves", str(tmp_path / "fold10"), str(tmp_path / "fold2"), "--out", str(out)])
    assert capsys.readouterr().out == f"written: {out}\n"
    with Image.open(out) as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert picture.width > 600


def test_one_finished_epoch_is_enough_for_curves(tmp_path):
    write_log(tmp_path / "run", 1, train_loss=[2.0])
    curves([tmp_path / "run"], tmp_path / "one.pdf")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_confusion_is_pooled_over_the_files_and_normalised_by_row(tmp_path, monkeypatch):
    write_pred(tmp_path / "a.csv", [0, 0, 0, 1], [0, 0, 1, 1])
    write_pred(tmp_path / "b.csv", [0, 2, 2], [0, 2, 2])
    drawn = []
    monkeypatch.setattr(
        "hicmae.visualize.confusion.save_figure", lambda figure, path: drawn.append(figure)
    )
    confusion([tmp_path / "a.csv", tmp_path / "b.csv"], "x.png", ["anger", "joy", "fear"])
    axes = drawn[0].axes[0]
    expected = [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    cells = [text.get_text() for text in axes.texts]
    assert cells[:3] == ["75%\n3", "25%\n1", "0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["anger", "joy", "fear"]
    assert axes.get_title() == "7 clips, UAR 91.67%, WAR 85.71%"
    plt.close(drawn[0])


def test_absent_class_has_an_empty_row_not_a_division_by_zero():
    with np.errstate(all="raise"):
        figure = confusion_figure([[2, 0], [0, 0]], ["a", "b"])
    assert figure.axes[0].images[0].get_array().tolist() == [[1.0, 0.0], [0.0, 0.0]]
    plt.close(figure)


def test_small_confusion_shows_percent_of_the_true_class_and_names():
    figure = small_confusion_figure([[3, 1], [0, 5]], ["anger", "joy"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["75", "25", "", "100"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["anger", "joy"]
    assert np.array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])


def test_small_confusion_of_many_classes_is_colours_only_and_fits_a_screen():
    metrics = {"confusion": np.eye(43, dtype=int).tolist(), "uar": 1.0, "war": 1.0}
    names = [f"emotion {k}" for k in range(43)]
    (axes,) = small_confusion_figure(metrics["confusion"], names).axes
    assert len(axes.texts) == 0
    image = confusion_image(metrics, names)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and max(image.shape) < 1000


def test_confusion_command_writes_the_picture(tmp_path, capsys):
    write_pred(tmp_path / "pred.csv", [0, 1, 2], [0, 1, 1])
    (tmp_path / "classes.txt").write_text("anger\njoy\nfear\n")
    out = tmp_path / "confusion.png"
    main(
        ["confusion", str(tmp_path / "pred.csv"), "--out", str(out)]
        + ["--classes", str(tmp_path / "classes.txt")]
    )
    with Image.open(out) as picture:
        assert picture.width > 300 and picture.height > 300


def test_pictures_of_nothing_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["curves", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "holds no finished epoch yet" in error
    with pytest.raises(ValueError, match="hold no numbers to draw"):
        curves_figure({"run": [{"epoch": 0, "note": "a"}]})
    write_pred(tmp_path / "pred.csv", [0, 1], [0, 1])
    with pytest.raises(ValueError, match="--classes gives 2 names .a, b., expected 3"):
        confusion([tmp_path / "pred.csv"], tmp_path / "a.png", ["a", "b"])
    (tmp_path / "r.csv").write_text("clip,label0,prediction0\na,0.5,0.6\nb,0.1,0.2\n")
    with pytest.raises(ValueError, match="is of a regression; it has no confusion matrix"):
        confusion([tmp_path / "r.csv"], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"2 class names for a confusion matrix of \(3, 3\)"):
        confusion_figure(np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match=r"cannot write '.*a.gif': expected a name that ends in"):
        confusion([tmp_path / "pred.csv"], tmp_path / "a.gif")
    assert not list(tmp_path.glob("a.*"))
