"""Paired tests against enumeration, scipy and by hand; clips that must be the same."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hicmae.report.scores import build, compare_all, matched
from hicmae.training.resampling import Plan, holm, mcnemar, paired
from tests.report.fold_files import table_of, write_fold, write_predictions, write_regression

QUICK = Plan(resamples=200)


def compare(*tables, metrics=("uar",), **plan):
    return paired(*tables, metrics, Plan(**plan)).set_index("metric", drop=False)


def uar(labels, right, k):
    return np.mean([right[labels == c].mean() for c in range(k) if (labels == c).any()])


def test_mcnemar_is_the_binomial_test_of_the_clips_that_one_run_alone_gets_right():
    labels = np.zeros(20, int)
    first = np.r_[np.zeros(10), np.ones(10)].astype(int)
    other = np.r_[np.ones(2), np.zeros(15), np.ones(3)].astype(int)
    one, two = (table_of(labels, guesses) for guesses in (first, other))
    by_hand = 2 * sum(stats.binom.pmf(k, 9, 0.5) for k in range(3))
    assert mcnemar(one, two) == (pytest.approx(by_hand), "McNemar exact, 7 : 2")
    assert mcnemar(one, one) == (1.0, "McNemar exact, 0 : 0")


def test_permutation_of_the_uar_equals_enumeration_of_all_swaps():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    first = np.array([1, 1, 0, 0, 1, 0, 1, 0, 2, 0])
    other = np.array([0, 0, 0, 1, 0, 1, 1, 1, 2, 2])
    right = np.stack([first == labels, other == labels])
    gaps = []
    for swap in itertools.product([False, True], repeat=10):
        a, b = np.where(swap, right[::-1], right)
        gaps.append(uar(labels, b, 3) - uar(labels, a, 3))
    observed = uar(labels, right[1], 3) - uar(labels, right[0], 3)
    exact = np.mean(np.abs(gaps) >= abs(observed) - 1e-12)
    tables = (table_of(labels, guesses, 3) for guesses in (first, other))
    found = compare(*tables, resamples=20_000).loc["uar"]
    assert found.test == "permutation"
    assert found.value - found.baseline == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact, abs=0.012)


def test_permutation_of_the_ccc_agrees_with_scipy():
    rng = np.random.default_rng(0)
    truth = rng.random((30, 1))
    first, other = (truth + s * rng.standard_normal((30, 1)) for s in (0.45, 0.3))

    def gap(a, b):
        moments = [np.cov(truth[:, 0], v) for v in (a, b)]
        shifts = [(truth.mean() - v.mean()) ** 2 for v in (a, b)]
        scores = [2 * m[0, 1] / (m.trace() + s) for m, s in zip(moments, shifts, strict=True)]
        return scores[1] - scores[0]

    expected = stats.permutation_test(
        (first[:, 0], other[:, 0]), gap, permutation_type="samples", n_resamples=2000,
        vectorized=False, random_state=np.random.default_rng(1),
    )  # fmt: skip
    tables = (table_of(truth, guess, 1) for guess in (first, other))
    p_values = compare(*tables, metrics=["ccc", "ccc 0"]).p_value
    assert p_values["ccc"] == pytest.approx(expected.pvalue, abs=0.03)
    assert p_values["ccc"] == p_values["ccc 0"]


def test_interval_of_a_difference_is_that_of_paired_clips():
    rng = np.random.default_rng(2)
    labels = np.zeros(200, int)
    first = (rng.random(200) < 0.3).astype(int)
    other = np.where(rng.random(200) < 0.05, 1 - first, first)  # nearly the same answers
    found = compare(table_of(labels, first), table_of(labels, other), metrics=["war"]).loc["war"]
    gaps = (other == 0).astype(float) - (first == 0)
    drawn = gaps[rng.integers(0, 200, (5000, 200))].mean(1)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)
    assert found.low <= gaps.mean() <= found.high


def test_speakers_are_swapped_as_a_whole():
    labels = np.zeros(40, int)
    first, other = np.ones(40, int), np.zeros(40, int)
    first[30:], other[30:] = 0, 1  # speakers 0..2 get better, speaker 3 gets worse
    speakers = [str(i // 10) for i in range(40)]
    one, two = (table_of(labels, guesses, speakers=speakers) for guesses in (first, other))
    found = compare(one, two, metrics=["war", "uar"], resamples=20_000).loc["war"]
    gaps = [abs(sum(signs)) for signs in itertools.product([1, -1], repeat=4)]
    exact = np.mean(np.array(gaps) >= 2)
    assert found.test == "permutation"  # McNemar takes clips for independent
    assert found.p_value == pytest.approx(exact, abs=0.012)
    assert mcnemar(one, two)[0] < 0.01


def test_holm_adjusts_as_its_definition_says():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_clips_are_matched_whatever_their_order(tmp_path):
    rng = np.random.default_rng(0)
    labels, first, other = rng.integers(0, 3, (3, 30))
    clips, order = [f"clip{i}" for i in range(30)], rng.permutation(30)
    write_predictions(tmp_path / "a" / "fold1" / "pred.csv", clips, labels, first)
    moved = [clips[i] for i in order], labels[order], other[order]
    write_predictions(tmp_path / "b" / "fold1" / "pred.csv", *moved)
    (compared,) = compare_all([build(tmp_path / n, plan=QUICK) for n in "ab"])
    assert compared.num_clips == 30 and (compared.baseline, compared.title) == ("a", "b")
    war = compared.differences.set_index("metric").loc["war"]
    assert war.baseline == pytest.approx((first == labels).mean())
    assert war.value == pytest.approx((other == labels).mean())
    lost = int(((first == labels) & (other != labels)).sum())
    won = int(((other == labels) & (first != labels)).sum())
    assert war.test == f"McNemar exact, {won} : {lost}"


def test_regressions_are_compared_per_output(tmp_path):
    write_regression(tmp_path / "a" / "fold1", 1, 20)
    write_regression(tmp_path / "b" / "fold1", 1, 20)
    (compared,) = compare_all([build(tmp_path / n, plan=QUICK) for n in "ab"])
    names = ["pcc", "ccc", "pcc 0", "pcc 1", "ccc 0", "ccc 1"]
    found = compared.differences
    assert found["metric"].tolist() == names and set(found["test"]) == {"permutation"}
    assert (found["p_value"] == 1).all() and (found[["low", "high"]] == 0).all(axis=None)


def test_runs_on_other_clips_labels_or_tasks_are_refused(tmp_path):
    one = table_of([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"1 of 'a' are not in 'b', first 'c1'"):
        matched(one, table_of([0, 1], [0, 1], clips=["c0", "d1"]), "a", "b")
    with pytest.raises(ValueError, match="1 of 'b' are not in 'a', first 'c2'"):
        matched(one, table_of([0, 1, 1], [0, 1, 1]), "a", "b")
    with pytest.raises(ValueError, match="different tasks: 2 classes against 3 classes"):
        matched(one, table_of([0, 1], [0, 1], 3), "a", "b")
    for name, label in (("a", 0), ("b", 1)):
        write_predictions(tmp_path / name / "f1" / "pred.csv", ["x", "y"], [label, 0], [0, 0])
    with pytest.raises(ValueError, match="1 clips have other labels in 'b' than in 'a', first 'x'"):
        compare_all([build(tmp_path / n, plan=QUICK) for n in "ab"])
    write_fold(tmp_path / "a", 1, 5)
    write_fold(tmp_path / "b", 1, 5, "pred_best.csv")
    with pytest.raises(ValueError, match="no epoch in common .'a' last; 'b' best"):
        compare_all([build(tmp_path / n, plan=QUICK) for n in "ab"])
