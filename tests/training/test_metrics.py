"""Metrics against scikit-learn, slow loops and the golden regression values."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from hicmae.training.evaluate import (
    average_views,
    classification_metrics,
    confusion_matrix,
    regression_metrics,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_data.json"


def sklearn_scores(labels, predictions, num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about predicted classes that never occur
        f1 = {
            k: sk.f1_score(labels, predictions, average=k) for k in ("weighted", "macro", "micro")
        }
        return {
            "uar": sk.balanced_accuracy_score(labels, predictions),
            "war": sk.accuracy_score(labels, predictions),
            **{f"{k}_f1": v for k, v in f1.items()},
            "confusion": sk.confusion_matrix(
                labels, predictions, labels=range(num_classes)
            ).tolist(),
        }


@pytest.mark.parametrize("seed", range(12))
def test_classification_scores_equal_scikit_learn_on_random_cases(seed):
    rng = np.random.default_rng(seed)
    num_classes, n = int(rng.integers(2, 12)), int(rng.integers(1, 60))
    drawn = rng.choice(num_classes, size=int(rng.integers(1, num_classes + 1)), replace=False)
    labels = rng.choice(drawn, size=n)  # leaves classes out, sometimes all but one
    scores = rng.random((n, num_classes)).round(1)  # coarse, so that ties occur
    ours = classification_metrics(labels, scores)
    expected = sklearn_scores(labels, scores.argmax(1), num_classes)
    assert ours["confusion"] == expected.pop("confusion")
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert ours["count"] == n


EDGES = {
    "one class, all right": ([1, 1, 1], [1, 1, 1]),
    "one class, others predicted": ([1, 1, 1], [0, 1, 2]),
    "one class, never predicted": ([1, 1, 1], [0, 0, 2]),
    "a class in the middle absent": ([0, 2, 2, 0], [0, 2, 0, 2]),
    "an absent class predicted": ([0, 0, 3, 3], [1, 0, 3, 2]),
    "one clip": ([3], [3]),
}


@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_equal_scikit_learn(case):
    labels, predictions = EDGES[case]
    ours = classification_metrics(labels, np.eye(4)[predictions])
    expected = sklearn_scores(labels, predictions, 4)
    assert ours["confusion"] == expected.pop("confusion")
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_all_scores_tied_equals_predicting_class_0_always():
    labels = [0, 1, 2, 0]
    ours = classification_metrics(labels, np.full((4, 3), 1 / 3))
    expected = sklearn_scores(labels, [0, 0, 0, 0], 3)
    assert ours["confusion"] == expected.pop("confusion")
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_order_of_the_clips_does_not_change_a_score():
    rng = np.random.default_rng(6)
    labels, scores = rng.integers(0, 4, 50), rng.random((50, 4))
    order = rng.permutation(50)
    assert classification_metrics(labels, scores) == classification_metrics(
        labels[order], scores[order]
    )


def test_recall_is_none_for_an_absent_class_and_uar_leaves_it_out():
    ours = classification_metrics([0, 0, 2, 2], np.eye(4)[[0, 1, 2, 3]])
    assert ours["recall"] == [0.5, None, 0.5, None]
    assert ours["uar"] == 0.5
    assert ours["confusion"] == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_uar_is_the_mean_of_recalls_by_a_slow_loop():
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 5, 40), rng.random((40, 5))
    recalls = []
    for k in range(5):
        own = [scores[i].argmax() == k for i in range(40) if labels[i] == k]
        recalls.append(sum(own) / len(own))
    ours = classification_metrics(labels, scores)
    assert ours["recall"] == pytest.approx(recalls)
    assert ours["uar"] == pytest.approx(sum(recalls) / 5)


def test_f1_is_that_of_a_slow_loop():
    rng = np.random.default_rng(4)
    labels, scores = rng.integers(0, 3, 30), rng.random((30, 4))  # class 3 is predicted only
    guesses = scores.argmax(1).tolist()
    f1, support = [], []
    for k in range(4):
        hits = sum(a == b == k for a, b in zip(labels, guesses, strict=True))
        f1.append(2 * hits / (list(labels).count(k) + guesses.count(k)))
        support.append(list(labels).count(k))
    ours = classification_metrics(labels, scores)
    assert ours["macro_f1"] == pytest.approx(sum(f1) / 4)
    assert ours["weighted_f1"] == pytest.approx(
        sum(f * n for f, n in zip(f1, support, strict=True)) / 30
    )
    assert ours["micro_f1"] == ours["war"]


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 2, 2]])
def test_absent_classes_and_one_class_alone_give_no_warning(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = classification_metrics(labels, np.eye(4)[[1, 1, 3]])
    assert ours["uar"] == {1: 2 / 3, 0: 0.0}[labels[0]]


def test_the_lowest_class_wins_a_tie():
    assert classification_metrics([1], [[0.2, 0.4, 0.4]])["war"] == 1.0
    assert classification_metrics([2], [[0.2, 0.4, 0.4]])["war"] == 0.0


def test_results_are_plain_json():
    one = classification_metrics(np.array([0, 1]), np.eye(3, dtype=np.float32)[[0, 2]])
    two = regression_metrics(np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32))
    assert json.loads(json.dumps([one, two], allow_nan=False)) == [one, two]


@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([], np.zeros((0, 3)), "no predictions to score"),
        ([0, 3], np.eye(3)[:2], r"label 3 is not a class of 0\.\.2"),
        ([0, -1], np.eye(3)[:2], r"label -1 is not a class of 0\.\.2"),
        ([0.5, 1], np.eye(3)[:2], r"label 0\.5 is not a class"),
        ([0, 1], np.array([[0.1, 0.2], [np.nan, 0.1]]), "1 values that are not finite.*row 1"),
        ([0, 1, 1], np.eye(2), r"one row per label, got \(2, 2\) for 3 labels"),
    ],
)
def test_labels_and_scores_that_do_not_fit_are_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, scores)


def test_confusion_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match=r"one length, got shapes \(2,\) and \(3,\)"):
        confusion_matrix([0, 1], [0, 1, 1], 2)


def test_regression_scores_equal_the_golden_values():
    golden = json.loads(GOLDEN.read_text())["regression"]
    rng = np.random.RandomState(5)
    target = rng.rand(50, 3)
    prediction = np.clip(target + 0.2 * rng.standard_normal((50, 3)), 0, 1)
    ours = regression_metrics(target, prediction)
    for name, (mean, per_output) in golden.items():
        assert ours[name]["mean"] == pytest.approx(mean, rel=1e-12)
        assert ours[name]["per_output"] == pytest.approx(per_output, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_correlations_and_errors_equal_slow_loops(seed):
    rng = np.random.default_rng(seed)
    target, prediction = rng.random((9, 2)), rng.random((9, 2))
    ours = regression_metrics(target, prediction)
    for k in range(2):
        y, p = target[:, k].tolist(), prediction[:, k].tolist()
        mean_y, mean_p = sum(y) / 9, sum(p) / 9
        covariance = sum((a - mean_y) * (b - mean_p) for a, b in zip(y, p, strict=True)) / 8
        var_y = sum((a - mean_y) ** 2 for a in y) / 8
        var_p = sum((b - mean_p) ** 2 for b in p) / 8
        pcc = covariance / math.sqrt(var_y * var_p)
        ccc = 2 * covariance / (var_y + var_p + (mean_y - mean_p) ** 2)
        assert ours["pcc"]["per_output"][k] == pytest.approx(pcc)
        assert ours["ccc"]["per_output"][k] == pytest.approx(ccc)
    assert ours["mae"]["mean"] == pytest.approx(sk.mean_absolute_error(target, prediction))
    assert ours["mse"]["mean"] == pytest.approx(sk.mean_squared_error(target, prediction))


def test_a_side_that_does_not_vary_correlates_with_nothing():
    target = np.column_stack([np.full(5, 0.1), np.arange(5.0)])
    prediction = np.column_stack([np.arange(5.0), np.full(5, 0.3)])
    ours = regression_metrics(target, prediction)
    assert ours["pcc"]["per_output"] == ours["ccc"]["per_output"] == [0.0, 0.0]
    single = regression_metrics([[0.2, 0.4]], [[0.2, 0.5]])
    assert single["ccc"]["mean"] == 0.0 and single["mae"]["per_output"] == pytest.approx([0, 0.1])


@pytest.mark.parametrize(
    "target, prediction, message",
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), r"got \(3, 2\) and \(3, 1\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no predictions to score"),
        (
            np.zeros((3, 2)),
            np.full((3, 2), np.inf),
            "predictions hold 6 values that are not finite",
        ),
    ],
)
def test_regression_arrays_that_do_not_fit_are_refused(target, prediction, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(target, prediction)


def test_views_are_averaged_per_clip_in_any_order_and_number():
    rng = np.random.default_rng(0)
    scores, clip = rng.random((7, 3)), np.array([2, 0, 2, 1, 1, 2, 3])
    expected = [scores[[i for i in range(7) if clip[i] == c]].mean(0) for c in range(4)]
    np.testing.assert_allclose(average_views(scores, clip, 4), expected, rtol=1e-15)


@pytest.mark.parametrize(
    "clip, num_clips, message",
    [
        ([0, 1], 3, "1 of 3 clips have no view, first: 2"),
        ([0, 5], 2, r"must be in 0\.\.1, got 0\.\.5"),
        ([0, 0, 0], 1, r"got \(2, 2\) and \(3,\)"),
    ],
)
def test_views_that_do_not_fit_their_clips_are_refused(clip, num_clips, message):
    with pytest.raises(ValueError, match=message):
        average_views(np.eye(2), clip, num_clips)
