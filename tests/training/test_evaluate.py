"""Metrics against scikit-learn and golden values; clips once and in order, results on disk."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics as sk
from torch import nn

from hicmae.data.batches import SkippedClip, ViewBatch
from hicmae.training.evaluate import (
    Predictions,
    average_clips,
    calibration,
    classification_metrics,
    fit_temperature,
    number_scores,
    predict,
    regression_metrics,
    score,
    tempered,
    write_predictions,
    write_results,
)
from hicmae.training.run import choose_precision

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_data.json"
CPU = choose_precision("fp32", torch.device("cpu"))
GONE = (SkippedClip("gone.mp4", "does not exist"),)
NOTHING = ViewBatch(None, torch.zeros(0, 1, 1, 2), *[torch.zeros(0).long()] * 3, (), GONE)


def random_case(seed):
    rng = np.random.default_rng(seed)
    num_classes, n = int(rng.integers(2, 12)), int(rng.integers(1, 60))
    drawn = rng.choice(num_classes, size=int(rng.integers(1, num_classes + 1)), replace=False)
    labels = rng.choice(drawn, size=n)  # leaves classes out, sometimes all but one
    return labels, rng.random((n, num_classes)).round(1)  # coarse, so that ties occur


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(8)},
    "one class, others predicted": ([1, 1, 1], np.eye(4)[[0, 1, 2]]),
    "one class, never predicted": ([1, 1, 1], np.eye(4)[[0, 0, 2]]),
    "an absent class predicted": ([0, 0, 3, 3], np.eye(4)[[1, 0, 3, 2]]),
    "one clip": ([3], np.eye(4)[[3]]),
    "all scores tied, so class 0 always": ([0, 1, 2, 0], np.full((4, 3), 1 / 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_classification_scores_equal_scikit_learn(case):
    labels, scores = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = classification_metrics(labels, scores)
    guesses, num_classes = scores.argmax(1), scores.shape[1]
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about predicted classes that never occur
        kinds = ("weighted", "macro", "micro")
        expected = {f"{k}_f1": sk.f1_score(labels, guesses, average=k) for k in kinds}
        expected["uar"] = sk.balanced_accuracy_score(labels, guesses)
    expected |= {"war": sk.accuracy_score(labels, guesses), "count": len(labels)}
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-15)
    confusion = sk.confusion_matrix(labels, guesses, labels=range(num_classes))
    assert ours["confusion"] == confusion.tolist()
    hits, support = confusion.diagonal(), confusion.sum(1)
    assert ours["recall"] == [h / n if n else None for h, n in zip(hits, support, strict=True)]


@pytest.mark.parametrize(
    "metrics, labels, scores, facts",
    [
        (classification_metrics, [], np.zeros((0, 3)), "test list is empty"),
        (classification_metrics, [0, 3], np.eye(3)[:2], r"label 3 .* 0\.\.2.*--nb_classes"),
        (classification_metrics, [0.5, 1], np.eye(3)[:2], r"label 0\.5 "),
        (classification_metrics, [0, 1], [[0.1, 0.2], [np.nan, 0.1]], "1 clip.*not finite.*row 1"),
        (regression_metrics, np.zeros((0, 2)), np.zeros((0, 2)), "test list is empty"),
        (regression_metrics, np.zeros((3, 2)), np.full((3, 2), np.inf), "predictions of 3 .*row 0"),
        (regression_metrics, np.zeros((3, 2)), np.zeros((2, 2)), r"shape"),
    ],
)
def test_labels_and_scores_that_do_not_fit_are_refused(metrics, labels, scores, facts):
    with pytest.raises(ValueError, match=facts):
        metrics(labels, scores)


def test_regression_scores_equal_the_golden_values():
    golden = json.loads(GOLDEN.read_text())["regression"]
    rng = np.random.RandomState(5)
    target = rng.rand(50, 3)
    prediction = np.clip(target + 0.2 * rng.standard_normal((50, 3)), 0, 1)
    ours = regression_metrics(target, prediction)
    for name, (mean, per_output) in golden.items():
        assert ours[name]["mean"] == pytest.approx(mean, rel=1e-12)
        assert ours[name]["per_output"] == pytest.approx(per_output, rel=1e-12)
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours


def test_a_side_that_does_not_vary_correlates_with_nothing():
    target = np.column_stack([np.full(5, 0.1), np.arange(5.0)])
    prediction = np.column_stack([np.arange(5.0), np.full(5, 0.3)])
    ours = regression_metrics(target, prediction)
    assert ours["pcc"]["per_output"] == ours["ccc"]["per_output"] == [0.0, 0.0]
    single = regression_metrics([[0.2, 0.4]], [[0.2, 0.5]])
    assert single["ccc"]["mean"] == 0.0 and single["mae"]["per_output"] == pytest.approx([0, 0.1])
    zeros = np.zeros((3, 2))
    assert (number_scores(zeros, zeros + 1, zeros, zeros, zeros, zeros)["pcc"] == 0).all()


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
    predictions = predict(Echo(), loader, CPU, "test")
    expected = [softmax(views, axis=1)[:2].mean(axis=0), [0.5, 0.5]]
    np.testing.assert_allclose(predictions.scores, expected, rtol=1e-6)


def test_clips_come_once_in_list_order_and_skipped_ones_are_kept():
    """Clip 2 is there twice, as on two ranks of a list that does not divide."""
    two = batch([[1.0, 0.0]], [0], [2], [1])
    loader = [two, batch([[0.0, 1.0]], [0], [0], [0], GONE), NOTHING, two]
    predictions = predict(Echo(), loader, CPU, "test")
    assert predictions.names == ["clip0", "clip2"] and predictions.targets.tolist() == [0, 1]
    metrics = score(predictions)
    assert metrics["clips"] == metrics["count"] == 2 and metrics["war"] == 0.0
    assert metrics["skipped"] == ["gone.mp4: does not exist"] * 2
    with pytest.raises(RuntimeError, match=r"no clip .* read \(1 skipped\)"):
        predict(Echo(), [NOTHING], CPU, "test")


@pytest.mark.parametrize("clip_by_clip, seen", [(False, [4]), (True, [1, 1, 2])])
def test_one_by_one_or_together_clips_keep_their_views_names_and_targets(clip_by_clip, seen):
    """Views of three clips, in turns and unequally many, as one batch; numbers need no softmax."""
    views, owners = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, 5.0]], [2, 0, 1, 2]
    targets = [[0.0], [1.0], [1.0]]
    loader, model = [batch(views, owners, [4, 7, 5], targets)], Echo()
    found = predict(model, loader, CPU, "test", clip_by_clip=clip_by_clip)
    assert model.seen == seen
    assert found.names == ["clip4", "clip5", "clip7"] and found.targets[:, 0].tolist() == [0, 1, 1]
    assert found.scores.tolist() == [[0.0, 1.0], [1.5, 2.5], [3.0, 3.0]]


def test_items_are_the_mean_of_their_clips_by_hand():
    """AVCAffe: aiim001's task 1 has three clips, its task 2 and aiim002's task 1 one each."""
    names = ["/a/aiim001_task_1_a_aligned", "aiim002_task_1", "aiim001_task_1_b.mp4"]
    names += ["aiim001_task_2_a", "other/aiim001_task_1.mp4"]
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5], [0.0, 1.0]])
    clips = Predictions(names, np.array([1, 0, 1, 0, 1]), scores, [])
    items = average_clips(clips, 3)
    assert items.names == ["aiim001_task_1", "aiim002_task_1", "aiim001_task_2"]
    assert items.targets.tolist() == [1, 0, 0]
    np.testing.assert_allclose(items.scores, [[0.4, 0.6], [0.2, 0.8], [0.5, 0.5]], rtol=1e-15)
    # Of the clips the first two are wrong, of the items aiim002_task_1; a tie goes to class 0.
    assert score(clips)["war"] == 3 / 5
    assert score(items)["war"] == 2 / 3


def test_results_are_written_with_labels_predictions_and_probabilities(tmp_path):
    names = ["a b", 'c"d,', b"caf\xe9".decode("utf-8", "surrogateescape")]
    scores = np.array([[0.2, 0.8], [0.4, 0.6], [0.5, 0.5]])
    predictions = Predictions(names, np.array([1, 0, 0]), scores, [])
    metrics = score(predictions)
    write_results(tmp_path, "_best", predictions, metrics)
    assert (tmp_path / "pred_best.csv").read_bytes().splitlines() == [
        b"clip,label,prediction,p0,p1",
        b"a b,1,1,0.200000,0.800000",
        b'"c""d,",0,1,0.400000,0.600000',
        b"caf\xe9,0,0,0.500000,0.500000",
    ]
    assert json.loads((tmp_path / "metrics_best.json").read_text()) == metrics
    assert len(list(tmp_path.iterdir())) == 2
    numbers = Predictions(["a"], np.array([[0.25, 1e-7]]), np.array([[0.5, 2 / 3]]), [])
    write_predictions(tmp_path / "pred.csv", numbers)
    assert (tmp_path / "pred.csv").read_bytes().splitlines() == [
        b"clip,label0,label1,prediction0,prediction1",
        b"a,0.25,1e-07,0.500000,0.666667",
    ]


def test_a_temperature_makes_probabilities_honest_and_keeps_their_order():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(3, size=4000), rng.normal(size=(4000, 3))
    logits[range(4000), labels] += 1.0
    exact = softmax(logits, axis=1)  # of this mixture these are the true posteriors
    sharp = softmax(3.0 * logits, axis=1)
    temperature = fit_temperature(labels, sharp)
    assert temperature == pytest.approx(3.0, rel=0.1)
    mended = tempered(sharp, 3.0)
    np.testing.assert_allclose(mended, exact, atol=1e-9)
    before, after = calibration(labels, sharp), calibration(labels, mended)
    assert before["nll"] == pytest.approx(sk.log_loss(labels, sharp), abs=1e-6)
    assert after["nll"] < before["nll"] and after["ece"] < 0.03 < before["ece"]
    confident = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])  # 1 of 2, and 1 of 1 is right
    assert calibration([0, 1, 1], confident)["ece"] == pytest.approx((2 * 0.4 + 0.2) / 3)
