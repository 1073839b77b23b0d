"""Scoring a list: averaged views, clips once and in list order, results on disk."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hicmae.data.loader import SkippedClip, ViewBatch
from hicmae.training.evaluate import (
    Predictions,
    _join,
    average_clips,
    headline,
    predict,
    score,
    write_predictions,
    write_results,
)
from hicmae.training.run import choose_precision

CPU = choose_precision("fp32", torch.device("cpu"))


class Echo(nn.Module):
    """Returns what stands in the audio as scores, so that a test knows every view's logits."""

    def forward(self, video, audio):
        return audio[:, 0, 0]


def batch(logits, view_clip, clip_index, targets, skipped=()):
    return ViewBatch(
        None,
        torch.tensor(logits)[:, None, None],
        torch.tensor(view_clip),
        torch.tensor(clip_index, dtype=torch.int64),
        torch.tensor(targets),
        tuple(f"clip{index}" for index in clip_index),
        skipped,
    )


class Loader(list):
    """A list of batches with a length, as a loader has."""


def test_probabilities_of_the_views_of_a_clip_are_averaged():
    views = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]
    loader = Loader([batch(views, [0, 0, 1], [0, 1], [0, 1])])
    predictions = predict(Echo(), loader, CPU, "classification", "test")
    probabilities = torch.tensor(views).softmax(dim=1).numpy()
    np.testing.assert_allclose(predictions.scores[0], probabilities[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(predictions.scores[1], [0.5, 0.5], rtol=1e-6)


def test_regression_outputs_are_averaged_without_softmax():
    loader = Loader([batch([[2.0, 0.0], [4.0, 1.0]], [0, 0], [0], [[1.0, 2.0]])])
    predictions = predict(Echo(), loader, CPU, "regression", "test")
    assert predictions.scores.tolist() == [[3.0, 0.5]]


def test_clips_are_returned_in_list_order_and_skipped_ones_are_kept():
    gone = (SkippedClip("gone.mp4", "does not exist"),)
    loader = Loader(
        [
            batch([[1.0, 0.0]], [0], [2], [1]),
            batch([[0.0, 1.0]], [0], [0], [0], gone),
            ViewBatch(None, torch.zeros(0, 1, 1, 2), *[torch.zeros(0).long()] * 3, (), gone),
        ]
    )
    predictions = predict(Echo(), loader, CPU, "classification", "test")
    assert predictions.names == ["clip0", "clip2"]
    metrics = score(predictions, "classification")
    assert metrics["clips"] == 2 and metrics["war"] == 0.0
    assert metrics["skipped"] == ["gone.mp4: does not exist"] * 2


def test_a_clip_scored_on_two_ranks_counts_once():
    row = (3, "clip3", np.int64(1), np.array([0.1, 0.9]))
    predictions = _join([row, (1, "clip1", np.int64(0), np.array([0.7, 0.3])), row], [])
    assert predictions.names == ["clip1", "clip3"]
    assert predictions.targets.tolist() == [0, 1]


def scored_alone_or_together(clip_by_clip):
    """Views of three clips, in turns and unequally many, as one batch."""
    views, owners = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, 5.0]], [2, 0, 1, 2]
    loader = Loader([batch(views, owners, [4, 7, 5], [0, 1, 1])])
    return predict(Echo(), loader, CPU, "regression", "test", clip_by_clip=clip_by_clip)


def test_clips_scored_one_by_one_keep_their_views_names_and_targets():
    together, alone = scored_alone_or_together(False), scored_alone_or_together(True)
    assert alone.names == together.names == ["clip4", "clip5", "clip7"]
    assert alone.targets.tolist() == together.targets.tolist() == [0, 1, 1]
    expected = [[0.0, 1.0], [1.5, 2.5], [3.0, 3.0]]
    assert alone.scores.tolist() == together.scores.tolist() == expected


def test_one_by_one_the_model_sees_one_clip_at_a_time():
    seen = []

    class Counting(Echo):
        def forward(self, video, audio):
            seen.append(len(audio))
            return super().forward(video, audio)

    loader = Loader([batch([[0.0, 1.0]] * 5, [0, 0, 1, 2, 2], [0, 1, 2], [0, 1, 1])])
    predict(Counting(), loader, CPU, "classification", "test", clip_by_clip=True)
    assert seen == [2, 1, 2]


def test_items_are_the_mean_of_their_clips_by_hand():
    """AVCAffe: aiim001's task 1 has three clips, its task 2 and aiim002's task 1 one each."""
    folder = "/data/faces/"
    names = ["aiim001_task_1_a", "aiim002_task_1", "aiim001_task_1_b", "aiim001_task_2_a"]
    names = [f"{folder}{name}_aligned" for name in names] + ["other/aiim001_task_1.mp4"]
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5], [0.0, 1.0]])
    clips = Predictions(names, np.array([1, 0, 1, 0, 1]), scores, [])
    items = average_clips(clips, 3)
    assert items.names == ["aiim001_task_1", "aiim002_task_1", "aiim001_task_2"]
    assert items.targets.tolist() == [1, 0, 0]
    np.testing.assert_allclose(items.scores, [[0.4, 0.6], [0.2, 0.8], [0.5, 0.5]], rtol=1e-15)
    # Of the clips the first two are wrong, of the items aiim002_task_1; a tie goes to class 0.
    assert score(clips, "classification")["war"] == 3 / 5
    assert score(items, "classification")["war"] == 2 / 3


@pytest.mark.parametrize(
    "names, labels, message",
    [
        (["a_1_x", "a_1_y"], [0, 2], "'a_1_x' and 'a_1_y' are one item .* have the labels 0 and 2"),
        (["a_1_x", "a_aligned"], [0, 0], "needs names of 2 or more '_' fields, got 'a'"),
    ],
)
def test_items_that_cannot_be_formed_are_refused(names, labels, message):
    clips = Predictions(names, np.array(labels), np.eye(3)[labels], [])
    with pytest.raises(ValueError, match=message):
        average_clips(clips, 2)


def test_names_that_are_not_utf8_are_written(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_predictions(
        tmp_path / "pred.csv",
        Predictions([name], np.array([1]), np.array([[0.5, 0.5]]), []),
        "classification",
    )
    assert (tmp_path / "pred.csv").read_bytes().splitlines()[1].startswith(b"caf\xe9,1,0,")


def test_a_list_without_a_readable_clip_is_an_error():
    with pytest.raises(RuntimeError, match=r"no clip of the list could be read \(1 skipped\)"):
        _join([], [SimpleNamespace(video="a", reason="b")])


def test_results_are_written_with_labels_predictions_and_probabilities(tmp_path):
    names = ["a b", 'c"d']
    predictions = Predictions(names, np.array([1, 0]), np.array([[0.2, 0.8], [0.4, 0.6]]), [])
    metrics = score(predictions, "classification")
    write_results(tmp_path, "_best", predictions, metrics, "classification")
    with (tmp_path / "pred_best.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == names
    assert [(row["label"], row["prediction"]) for row in rows] == [("1", "1"), ("0", "1")]
    assert rows[0]["p1"] == "0.800000"
    assert json.loads((tmp_path / "metrics_best.json").read_text())["war"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics_best.json",
        "pred_best.csv",
    ]


def test_headline_of_a_regression_metric_is_its_mean():
    metrics = {"ccc": {"mean": 0.4, "per_output": [0.3, 0.5]}, "uar": 0.7}
    assert headline(metrics, "ccc") == 0.4 and headline(metrics, "uar") == 0.7
