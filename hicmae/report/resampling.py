"""Bootstrap intervals and permutations of any score that depends on sums over clips.

A clip adds a vector to a sum, e.g. one hit of its class, and scores are functions of the sum.
Drawing clips anew is then a matter of counts: equal vectors are drawn together, from a multinomial
or binomial distribution. That is the distribution of the textbook's loop over clips, only faster.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hicmae.training.evaluate import (
    Scores,
    class_scores,
    metrics_of_classes,
    number_scores,
    regression_metrics,
)

MAX_WEIGHTS = 4_000_000  # random numbers held at once


class PredictionTable(NamedTuple):
    """Predictions of one or several test sets."""

    clips: list[str]  # n names
    labels: np.ndarray  # (n,) classes or (n, K) targets
    predictions: np.ndarray  # (n,) classes or (n, K) values
    num_outputs: int  # K, number of classes or of regression outputs

    @property
    def is_regression(self) -> bool:
        """Whether the outputs are numbers instead of classes."""
        return self.labels.ndim == 2

    @property
    def task(self) -> str:
        """What was predicted, e.g. "3 classes"."""
        return f"{self.num_outputs} {'regression outputs' if self.is_regression else 'classes'}"

    def scores(self) -> dict[str, Any]:
        """Return the metrics of `hicmae.training.evaluate` over all clips."""
        if self.is_regression:
            return regression_metrics(self.labels, self.predictions)
        return metrics_of_classes(self.labels, self.predictions, self.num_outputs)


def statistic(table: PredictionTable) -> tuple[np.ndarray, Callable[[np.ndarray], Scores]]:
    """Describe the scores of predictions as functions of a sum over clips.

    Returns:
        What each clip adds, (n, S), and the scores of sums (..., S). Of classes: `uar`, `war`,
        `weighted_f1`, `macro_f1`, `micro_f1`, and `recall 0`, `recall 1`, ... (nan where the class
        does not occur). Of numbers: `pcc`, `ccc`, `acc`, `mae`, `mse`, `rmse`, each as the mean
        over outputs and, as in `pcc 0`, of every output.
    """
    if table.is_regression:
        centre = table.labels.mean(0)  # moments about it lose no digits to a large mean
        truth, guess = table.labels - centre, table.predictions - centre
        moments = (truth, guess, truth**2, guess**2, truth * guess, np.abs(truth - guess))
        return np.hstack((np.ones((len(truth), 1)), *moments)), _score_numbers
    one_hot = np.eye(table.num_outputs)
    label, guess = one_hot[table.labels], one_hot[table.predictions]
    return np.hstack((label, guess, label * guess)), _score_classes


def _score_classes(sums: np.ndarray) -> Scores:
    scores = class_scores(*np.split(sums, 3, axis=-1))
    recall = np.moveaxis(scores.pop("recall"), -1, 0)
    return scores | {f"recall {k}": values for k, values in enumerate(recall)}


def _score_numbers(sums: np.ndarray) -> Scores:
    count = sums[..., :1]
    truth, guess, truth2, guess2, product, error = np.split(sums[..., 1:] / count, 6, axis=-1)
    unbiased = count / np.maximum(count - 1, 1)
    # Rounding leaves about 1e-16 of the second moment where there is no spread at all.
    spread, spread_predicted = (
        np.where(square - mean**2 > 1e-13 * square, square - mean**2, 0.0) * unbiased
        for mean, square in ((truth, truth2), (guess, guess2))
    )
    covariance = (product - truth * guess) * unbiased
    mse = np.maximum(truth2 - 2 * product + guess2, 0.0)
    named = number_scores(spread, spread_predicted, covariance, truth - guess, mae=error, mse=mse)
    outputs = range(truth.shape[-1])
    return {name: values.mean(-1) for name, values in named.items()} | {
        f"{name} {k}": values[..., k] for name, values in named.items() for k in outputs
    }


class Plan(NamedTuple):
    """How to resample."""

    resamples: int = 5000  # number of draws; 0: none, no intervals
    confidence: float = 0.95  # coverage of the intervals
    seed: int = 0
    speakers: dict[str, str] | None = None  # of each clip; None: clips are drawn one by one

    def by_unit(
        self, values: np.ndarray, clips: Sequence[str], strata: Sequence[str]
    ) -> tuple[np.ndarray, Sequence[str]]:
        """Return what each drawn unit adds, (u, S), and its stratum: of clips, or of speakers."""
        if self.speakers is None:
            return values, strata
        pairs = [(fold, self.speakers[clip]) for fold, clip in zip(strata, clips, strict=True)]
        for fold, count in Counter(fold for fold, _ in dict.fromkeys(pairs)).items():
            if count < 2:
                raise ValueError(
                    f"'{fold}' has one speaker only ('{dict(pairs)[fold]}'), expected at least 2 "
                    "to draw speakers; draw clips instead, without --by_speaker and --speaker_*"
                )
        _, first, unit = np.unique(
            np.array(["\n".join(pair) for pair in pairs]), return_index=True, return_inverse=True
        )
        sums = np.zeros((len(first), values.shape[1]))
        np.add.at(sums, unit, values)
        return sums, [strata[k] for k in first]

    # Not scipy.stats.bootstrap and permutation_test: they draw clip by clip, so they are slower by
    # the number of clips and give other draws, and with them other digits, for the same seed.
    def draw(self, values: np.ndarray, clips: Sequence[str], strata: Sequence[str]) -> np.ndarray:
        """Return bootstrap sums (R, S) of what clips add, (n, S).

        Clips or speakers are drawn with replacement, of each stratum as many as it has.
        """
        units, strata = self.by_unit(values, clips, strata)
        rng, names = np.random.default_rng(self.seed), np.asarray(strata)
        sums = np.zeros((self.resamples, units.shape[1]))
        for name in dict.fromkeys(strata):
            rows, counts = np.unique(units[names == name], axis=0, return_counts=True)
            shares = counts / counts.sum()
            for part in _parts(self.resamples, len(rows)):
                drawn = rng.multinomial(counts.sum(), shares, size=part.stop - part.start)
                sums[part] += drawn @ rows
        return sums

    def bounds(self, scores: np.ndarray) -> tuple[float, float]:
        """Return the percentile interval of bootstrap scores (R,); nan are left out."""
        known = scores[~np.isnan(scores)]
        if not len(known):
            return float("nan"), float("nan")
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(known, (tail, 1 - tail))
        return float(low), float(high)


def swapped_sums(
    differences: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Give every unit's difference (n, S) a random sign; yield sums (r, S), `resamples` in all."""
    rows, counts = np.unique(differences, axis=0, return_counts=True)
    for part in _parts(resamples, len(rows)):
        positive = rng.binomial(counts, 0.5, size=(part.stop - part.start, len(rows)))
        yield (2 * positive - counts) @ rows


def _parts(resamples: int, width: int) -> Iterator[slice]:
    """Cut the resamples so that each part needs a bounded number of random numbers."""
    step = max(1, MAX_WEIGHTS // max(width, 1))
    return (slice(k, min(k + step, resamples)) for k in range(0, resamples, step))


def intervals(
    table: PredictionTable, strata: Sequence[str], plan: Plan
) -> dict[str, tuple[float, float]]:
    """Return the bootstrap interval of every score of `statistic`, {} without resamples."""
    if plan.resamples == 0:
        return {}
    values, score = statistic(table)
    drawn = score(plan.draw(values, table.clips, strata))
    return {name: plan.bounds(scores) for name, scores in drawn.items()}
