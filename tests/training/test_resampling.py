"""Bootstrap intervals against exact distributions, scipy and a slow loop."""

import numpy as np
import pytest
from scipy import stats

from hicmae.training.resampling import Plan, by_name, statistic
from tests.report.fold_files import table_of


def classes_table(seed=0, n=60, k=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return table_of(labels, np.where(rng.random(n) < 0.6, labels, rng.integers(0, k, n)), k)


def numbers_table(seed=0, n=50, k=3):
    rng = np.random.default_rng(seed)
    truth = 100 + rng.random((n, k))
    return table_of(truth, truth + 0.3 * rng.standard_normal((n, k)), k)


@pytest.mark.parametrize(
    "table", [*(classes_table(seed, n=9, k=5) for seed in range(4)), numbers_table()]
)
def test_scores_of_the_sum_are_the_metrics_of_the_clips(table):
    """Of nine clips in five classes: some are absent."""
    values, score = statistic(table)
    ours, expected = score(values.sum(0)), by_name(table.scores())
    assert ours.keys() == expected.keys() and len(ours) >= 10
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-9, nan_ok=True)


def test_a_constant_output_correlates_with_nothing_in_any_resample():
    table = numbers_table()
    table.predictions[:, 1] = 0.1
    bounds = Plan(resamples=200).intervals(table)
    assert bounds["pcc 1"] == bounds["ccc 1"] == (0.0, 0.0)
    assert bounds["pcc 0"][0] > 0.3


def test_interval_of_the_accuracy_is_that_of_the_binomial_distribution():
    right = np.r_[np.zeros(90), np.ones(210)].astype(int)
    bounds = Plan(resamples=40_000, seed=3).intervals(table_of(np.ones(300, int), right))
    exact = stats.binom.ppf([0.025, 0.975], 300, 0.7) / 300
    assert bounds["war"] == pytest.approx(exact, abs=1.5 / 300)


def uar(labels, guesses):
    return np.mean([(guesses == labels)[labels == k].mean() for k in np.unique(labels)])


def ccc(truth, guess):
    covariance = ((truth - truth.mean(0)) * (guess - guess.mean(0))).sum(0) / (len(truth) - 1)
    spreads = truth.var(0, ddof=1) + guess.var(0, ddof=1)
    return np.mean(2 * covariance / (spreads + (truth.mean(0) - guess.mean(0)) ** 2))


@pytest.mark.parametrize(
    "table, slow", [(classes_table(n=80), uar), (numbers_table(), ccc)], ids=["uar", "ccc"]
)
def test_intervals_agree_with_scipy(table, slow):
    expected = stats.bootstrap(
        (np.arange(len(table.labels)),), lambda k: slow(table.labels[k], table.predictions[k]),
        vectorized=False, n_resamples=2000, method="percentile",
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    bounds, spread = Plan().intervals(table)[slow.__name__], expected.standard_error
    assert bounds == pytest.approx(tuple(expected.confidence_interval), abs=0.3 * spread)
    values, score = statistic(table)
    drawn = score(Plan().draw(table, values))[slow.__name__]
    assert drawn.std() == pytest.approx(spread, rel=0.08)


def test_folds_that_are_right_or_wrong_throughout_leave_the_total_certain():
    labels, guesses = np.zeros(6, int), np.repeat((0, 1), 3)
    certain = table_of(labels, guesses, folds=["right"] * 3 + ["wrong"] * 3)
    assert Plan(resamples=500).intervals(certain)["war"] == (0.5, 0.5)
    low, high = Plan(resamples=500).intervals(table_of(labels, guesses))["war"]
    assert low < 0.5 < high


def test_seed_and_confidence_decide_the_interval():
    table = classes_table()
    again = [Plan(300, seed=seed).intervals(table) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    narrow, wide = (Plan(2000, percent).intervals(table)["uar"] for percent in (80, 99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_drawing_speakers_equals_a_slow_loop_over_speakers():
    rng = np.random.default_rng(5)
    speakers = np.repeat(np.arange(8), 10)
    skill = np.repeat(rng.random(8), 10)  # clips of one speaker fail together
    guesses = (rng.random(80) < skill).astype(int)
    table = table_of(np.ones(80, int), guesses, speakers=list(map(str, speakers)))
    drawn = [
        np.mean([guesses[speakers == s].mean() for s in rng.integers(0, 8, 8)]) for _ in range(4000)
    ]
    bounds = Plan(4000).intervals(table)["war"]
    assert bounds == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    alone = Plan(4000).intervals(table._replace(speakers=()))["war"]
    assert bounds[1] - bounds[0] > 1.5 * (alone[1] - alone[0])
    with pytest.raises(ValueError, match=r"'f' has one speaker only \('anna'\), expected at least"):
        Plan(4000).intervals(table._replace(speakers=["anna"] * 80))
