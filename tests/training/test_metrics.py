"""Metrics against scikit-learn, slow loops and the golden regression values."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from hicmae.training.evaluate import (
    class_scores,
    classification_metrics,
    metrics_of_classes,
    number_scores,
    regression_metrics,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_data.json"


def random_case(seed):
    rng = np.random.default_rng(seed)
    num_classes, n = int(rng.integers(2, 12)), int(rng.integers(1, 60))
    drawn = rng.choice(num_classes, size=int(rng.integers(1, num_classes + 1)), replace=False)
    labels = rng.choice(drawn, size=n)  # leaves classes out, sometimes all but one
    return labels, rng.random((n, num_classes)).round(1)  # coarse, so that ties occur


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(12)},
    "one class, all right": ([1, 1, 1], np.eye(4)[[1, 1, 1]]),
    "one class, others predicted": ([1, 1, 1], np.eye(4)[[0, 1, 2]]),
    "one class, never predicted": ([1, 1, 1], np.eye(4)[[0, 0, 2]]),
    "a class in the middle absent": ([0, 2, 2, 0], np.eye(4)[[0, 2, 0, 2]]),
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
    assert ours == metrics_of_classes(labels, guesses, num_classes)
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


def test_scores_of_many_resamples_at_once_are_those_of_each():
    rng = np.random.default_rng(7)
    labels, guesses = rng.integers(0, 3, (2, 2, 5, 9))  # 2 x 5 resamples of 9 clips of 4 classes
    counts = [(np.eye(4)[labels] * weight).sum(-2) for weight in (1, np.eye(4)[guesses])]
    together = class_scores(counts[0], np.eye(4)[guesses].sum(-2), counts[1])
    for index in np.ndindex(2, 5):
        alone = metrics_of_classes(labels[index], guesses[index], 4)
        for name in ("uar", "war", "weighted_f1", "macro_f1", "micro_f1"):
            assert together[name][index] == alone[name]
        recall = [None if np.isnan(value) else value for value in together["recall"][index]]
        assert recall == alone["recall"]


@pytest.mark.parametrize(
    "metrics, labels, scores, facts",
    [
        (classification_metrics, [], np.zeros((0, 3)), "test list is empty"),
        (classification_metrics, [0, 3], np.eye(3)[:2], r"label 3 .* 0\.\.2.*--nb_classes"),
        (classification_metrics, [0, -1], np.eye(3)[:2], r"label -1 .* 0\.\.2"),
        (classification_metrics, [0.5, 1], np.eye(3)[:2], r"label 0\.5 "),
        (classification_metrics, [0, 1], [[0.1, 0.2], [np.nan, 0.1]], "1 clip.*not finite.*row 1"),
        (classification_metrics, [0, 1, 1], np.eye(2), r"shape"),
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


def test_correlations_and_errors_equal_numpy_and_scikit_learn():
    rng = np.random.default_rng(0)
    target, prediction = rng.random((2, 9, 2))
    ours = regression_metrics(target, prediction)
    for k, (y, p) in enumerate(zip(target.T, prediction.T, strict=True)):
        (var_y, covariance), (_, var_p) = np.cov(y, p)
        ccc = 2 * covariance / (var_y + var_p + (y.mean() - p.mean()) ** 2)
        assert ours["pcc"]["per_output"][k] == pytest.approx(np.corrcoef(y, p)[0, 1])
        assert ours["ccc"]["per_output"][k] == pytest.approx(ccc)
    assert ours["mae"]["mean"] == pytest.approx(sk.mean_absolute_error(target, prediction))
    assert ours["mse"]["mean"] == pytest.approx(sk.mean_squared_error(target, prediction))
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
