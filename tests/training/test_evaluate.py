"""Scoring a list: averaged views, clips once and in list order, results on disk."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from hicmae.data.batches import SkippedClip, ViewBatch
from hicmae.training.evaluate import (
    Predictions,
    average_clips,
    headline,
    predict,
    score,
    write_predictions,
    write_results,
)
from hicmae.training.run import choose_precision

CPU = choose_precision("fp32", torch.device("cpu"))
GONE = (SkippedClip("gone.mp4", "does not exist"),)
NOTHING = ViewBatch(None, torch.zeros(0, 1, 1, 2), *[torch.zeros(0).long()] * 3, (), GONE)


class Echo(nn.Module):
    """Returns what stands in the audio as scores, so that a test knows every view's logits."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, video, audio):
        self.seen.append(len(audio))
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


def test_probabilities_of_the_views_of_a_clip_are_averaged():
    views = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]
    loader = [batch(views, [0, 0, 1], [0, 1], [0, 1])]
    predictions = predict(Echo(), loader, CPU, "classification", "test")
    probabilities = torch.tensor(views).softmax(dim=1).numpy()
    expected = [probabilities[:2].mean(axis=0), [0.5, 0.5]]
    np.testing.assert_allclose(predictions.scores, expected, rtol=1e-6)


def test_clips_come_once_in_list_order_and_skipped_ones_are_kept():
    """Clip 2 is there twice, as on two ranks of a list that does not divide."""
    two = batch([[1.0, 0.0]], [0], [2], [1])
    loader = [two, batch([[0.0, 1.0]], [0], [0], [0], GONE), NOTHING, two]
    predictions = predict(Echo(), loader, CPU, "classification", "test")
    assert predictions.names == ["clip0", "clip2"] and predictions.targets.tolist() == [0, 1]
    metrics = score(predictions, "classification")
    assert metrics["clips"] == metrics["count"] == 2 and metrics["war"] == 0.0
    assert metrics["skipped"] == ["gone.mp4: does not exist"] * 2
    with pytest.raises(RuntimeError, match=r"no clip .* read \(1 skipped\)"):
        predict(Echo(), [NOTHING], CPU, "regression", "test")


@pytest.mark.parametrize("clip_by_clip, seen", [(False, [4]), (True, [1, 1, 2])])
def test_one_by_one_or_together_clips_keep_their_views_names_and_targets(clip_by_clip, seen):
    """Views of three clips, in turns and unequally many, as one batch; numbers need no softmax."""
    views, owners = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, 5.0]], [2, 0, 1, 2]
    loader, model = [batch(views, owners, [4, 7, 5], [0, 1, 1])], Echo()
    found = predict(model, loader, CPU, "regression", "test", clip_by_clip=clip_by_clip)
    assert model.seen == seen
    assert found.names == ["clip4", "clip5", "clip7"] and found.targets.tolist() == [0, 1, 1]
    assert found.scores.tolist() == [[0.0, 1.0], [1.5, 2.5], [3.0, 3.0]]


def test_items_are_the_mean_of_their_clips_by_hand():
    """AVCAffe: aiim001's task 1 has three clips, its task 2 and aiim002's task 1 one each."""
    names = ["aiim001_task_1_a", "aiim002_task_1", "aiim001_task_1_b", "aiim001_task_2_a"]
    names = [f"/data/faces/{name}_aligned" for name in names] + ["other/aiim001_task_1.mp4"]
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
    "names, labels, facts",
    [
        (["a_1_x", "a_1_y"], [0, 2], "'a_1_x' and 'a_1_y' .* labels 0 and 2"),
        (["a_1_x", "a_aligned"], [0, 0], "2 .*'a'"),
    ],
)
def test_items_that_cannot_be_formed_are_refused(names, labels, facts):
    clips = Predictions(names, np.array(labels), np.eye(3)[labels], [])
    with pytest.raises(ValueError, match=facts):
        average_clips(clips, 2)


def test_results_are_written_with_labels_predictions_and_probabilities(tmp_path):
    names = ["a b", 'c"d,', b"caf\xe9".decode("utf-8", "surrogateescape")]
    scores = np.array([[0.2, 0.8], [0.4, 0.6], [0.5, 0.5]])
    predictions = Predictions(names, np.array([1, 0, 0]), scores, [])
    metrics = score(predictions, "classification")
    write_results(tmp_path, "_best", predictions, metrics, "classification")
    assert (tmp_path / "pred_best.csv").read_bytes().splitlines() == [
        b"clip,label,prediction,p0,p1",
        b"a b,1,1,0.200000,0.800000",
        b'"c""d,",0,1,0.400000,0.600000',
        b"caf\xe9,0,0,0.500000,0.500000",
    ]
    assert json.loads((tmp_path / "metrics_best.json").read_text()) == metrics
    assert len(list(tmp_path.iterdir())) == 2
    numbers = Predictions(["a"], np.array([[0.25, 1e-7]]), np.array([[0.5, 2 / 3]]), [])
    write_predictions(tmp_path / "pred.csv", numbers, "regression")
    assert (tmp_path / "pred.csv").read_bytes().splitlines() == [
        b"clip,label0,label1,prediction0,prediction1",
        b"a,0.25,1e-07,0.500000,0.666667",
    ]


def test_headline_of_a_regression_metric_is_its_mean():
    metrics = {"ccc": {"mean": 0.4, "per_output": [0.3, 0.5]}, "uar": 0.7}
    assert headline(metrics, "ccc") == 0.4 and headline(metrics, "uar") == 0.7
