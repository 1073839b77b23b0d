"""Bootstrap intervals and paired tests of any score that depends on sums over clips.

A clip adds a vector to a sum, e.g. one hit of its class, and scores are functions of the sum. Equal
vectors are drawn together, from a multinomial or binomial distribution: that of the textbook's loop
over clips, only faster by the number of clips than scipy.stats.bootstrap and permutation_test.

Of two runs on the same clips, accuracy (WAR) is tested by the exact McNemar test. Every other
score, and WAR when speakers are drawn, by a permutation test: how often is the difference as large
when the runs' predictions are swapped at random, clip by clip (or speaker by speaker)? The interval
of a difference is a paired bootstrap.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hicmae.config import CLASS_METRICS, NUMBER_METRICS, ResamplingConfig
from hicmae.data.splits import find_speakers
from hicmae.io import one_line
from hicmae.training import evaluate
from hicmae.training.evaluate import Scores

MAX_WEIGHTS = 4_000_000  # random numbers held at once
ROUNDING = 1e-12  # differences closer than this are equal
NAMED = ("recall", *CLASS_METRICS, *NUMBER_METRICS)  # scores that vary with the sample


class PredictionTable(NamedTuple):
    """Predictions of one or several test sets."""

    clips: list[str]  # n names
    folds: list[str]  # n names of the test sets
    labels: np.ndarray  # (n,) classes or (n, K) targets
    predictions: np.ndarray  # (n,) classes or (n, K) values
    num_outputs: int  # K, number of classes or of regression outputs
    speakers: Sequence[str] = ()  # n names where speakers are drawn, else none

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
            return evaluate.regression_metrics(self.labels, self.predictions)
        one_hot = np.eye(self.num_outputs)[self.predictions]
        return evaluate.classification_metrics(self.labels, one_hot)

    def units(self, values: np.ndarray) -> tuple[np.ndarray, Sequence[str]]:
        """Return what each drawn unit, a clip or a fold's speaker, adds, (u, S), and its fold."""
        if not self.speakers:
            return values, self.folds
        pairs = [self.folds, self.speakers]
        (folds, speakers), place = np.unique(pairs, axis=1, return_inverse=True)
        for fold, speaker in zip(folds, speakers, strict=True):
            if (folds == fold).sum() < 2:
                raise ValueError(
                    f"'{fold}' has one speaker only ('{speaker}'), expected at least 2 to draw "
                    "speakers; draw clips instead, without --by_speaker and --speaker_*"
                )
        sums = np.zeros((len(folds), values.shape[1]))
        np.add.at(sums, place.ravel(), values)
        return sums, folds.tolist()


def read_predictions(path: str | Path, fold: str = "") -> PredictionTable:
    """Read `pred.csv` of a fold, which is called by its path if it has no name.

    Columns are clip,label,prediction,p0.. or, for regression, clip,label0..,prediction0..
    """
    how: dict[str, Any] = {"dtype": object, "keep_default_na": False, "index_col": False}
    how |= {"encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}
    try:
        with warnings.catch_warnings():  # pandas cuts lines that are too long, and warns of it
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, skip_blank_lines=False, **how)
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeError) as error:
        raise ValueError(f"{path}: {one_line(error)}; test this fold again") from None
    frame = frame[frame.fillna("").map(str.strip).ne("").any(axis=1)]
    outputs = sum(bool(re.fullmatch(r"p\d+|label\d+", name)) for name in frame)
    regression = "label0" in frame
    ends = [str(k) for k in range(outputs)] if regression else [""]
    columns = [f"{name}{end}" for name in ("label", "prediction") for end in ends]
    if not outputs or not {"clip", *columns} <= set(frame):
        raise ValueError(
            f"{path}:1: expected the columns clip,label,prediction,p0,... or clip,label0,...,"
            f"prediction0,..., got '{','.join(frame)[:80]}'"
        )
    if frame.empty:
        raise ValueError(f"{path}: there are no predictions in it; run the test of this fold again")
    values = np.ascontiguousarray(frame[columns].map(_number), float)
    fine = (np.isfinite(values) if regression else np.isin(values, range(outputs))).all(axis=1)
    if not fine.all():
        row = fine.argmin()
        kind = "a finite number" if regression else f"a class of 0..{outputs - 1}"
        raise ValueError(
            f"{path}:{frame.index[row] + 2}: expected {kind} in each label and prediction column, "
            f"got '{','.join(map(str, frame.iloc[row]))[:80]}'"
        )
    truth, guess = np.split(values, 2, axis=1) if regression else values.astype(np.int64).T
    clips = frame["clip"].tolist()
    return PredictionTable(clips, [fold or str(path)] * len(clips), truth, guess, outputs)


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def statistic(table: PredictionTable) -> tuple[np.ndarray, Callable[[np.ndarray], Scores]]:
    """Describe the scores of predictions as functions of a sum over clips.

    Returns what each clip adds, (n, S), and the scores of sums (..., S): those of `class_scores` or
    `number_scores`, see `by_name`.
    """
    if table.is_regression:
        centre = table.labels.mean(0)  # moments about it lose no digits to a large mean
        truth, guess = table.labels - centre, table.predictions - centre
        moments = (truth, guess, truth**2, guess**2, truth * guess, np.abs(truth - guess))
        return np.hstack((np.ones((len(truth), 1)), *moments)), _score_numbers
    label, guess = np.eye(table.num_outputs)[np.stack((table.labels, table.predictions))]
    counts = np.hstack((label, guess, label * guess))
    return counts, lambda sums: by_name(evaluate.class_scores(*np.split(sums, 3, axis=-1)))


def by_name(scores: Mapping[str, Any]) -> Scores:
    """Name scores, also metrics of `PredictionTable.scores`, one by one; nan where there is none.

    Of classes or outputs, (..., K), they are "recall 0", "ccc 0", ...; "ccc" is their mean.
    """
    plain = {n: v["per_output"] if isinstance(v, dict) else v for n, v in scores.items()}
    values = {n: np.asarray(v, float) for n, v in plain.items() if n in NAMED}
    parts = {n: v for n, v in values.items() if n in ("recall", *NUMBER_METRICS)}
    whole = {n: v.mean(-1) if n in parts else v for n, v in values.items() if n != "recall"}
    return whole | {f"{n} {k}": v[..., k] for n, v in parts.items() for k in range(v.shape[-1])}


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
    moments = spread, spread_predicted, covariance, truth - guess
    return by_name(evaluate.number_scores(*moments, mae=error, mse=mse))


class Plan(ResamplingConfig):
    """How intervals and tests draw, and on what."""

    def speakers(self, clips: Sequence[str], data_path: str) -> Sequence[str]:
        """Return the speaker of every clip of a run's lists, none where clips are drawn."""
        file, pattern = self.speaker_file, self.speaker_pattern
        if not (self.by_speaker or file or pattern):
            return ()
        return find_speakers(clips, Path(data_path or "lists unknown"), file=file, pattern=pattern)

    def draw(self, table: PredictionTable, values: np.ndarray) -> np.ndarray:
        """Return bootstrap sums (R, S) of what clips add, (n, S).

        Clips or speakers are drawn with replacement, of each fold as many as it has.
        """
        units, folds = table.units(values)
        rng, names = np.random.default_rng(self.seed), np.asarray(folds)
        sums = np.zeros((self.resamples, units.shape[1]))
        for name in dict.fromkeys(folds):
            rows, counts = np.unique(units[names == name], axis=0, return_counts=True)
            total, sizes = counts.sum(), self._parts(len(rows))
            drawn = [rng.multinomial(total, counts / total, size) @ rows for size in sizes]
            sums += np.concatenate(drawn)
        return sums

    def swapped(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """Give every unit's difference (u, S) a random sign; yield sums (r, S), R in all."""
        rng = np.random.default_rng((self.seed, 1))
        rows, counts = np.unique(values, axis=0, return_counts=True)
        for size in self._parts(len(rows)):
            positive = rng.binomial(counts, 0.5, size=(size, len(rows)))
            yield (2 * positive - counts) @ rows

    def _parts(self, width: int) -> Iterator[int]:
        """Return how many resamples to draw at once, so that random numbers are bounded."""
        step = max(1, MAX_WEIGHTS // max(width, 1))
        return (min(step, self.resamples - k) for k in range(0, self.resamples, step))

    def bounds(self, scores: np.ndarray) -> tuple[float, float]:
        """Return the percentile interval of bootstrap scores (R,); nan are left out."""
        known, tail = scores[~np.isnan(scores)], (1 - self.confidence / 100) / 2
        low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
        return float(low), float(high)

    def intervals(self, table: PredictionTable) -> dict[str, tuple[float, float]]:
        """Return the bootstrap interval of every score of `statistic`, {} without resamples."""
        if not self.resamples:
            return {}
        values, score = statistic(table)
        drawn = score(self.draw(table, values))
        return {name: self.bounds(scores) for name, scores in drawn.items()}


def paired(
    first: PredictionTable, other: PredictionTable, metrics: Sequence[str], plan: Plan
) -> pd.DataFrame:
    """Test scores, named as by `statistic`, of two runs with clips in the same order.

    Returns a line a score: metric, baseline, value, low, high (of the difference), p_value, test.
    Without resamples bounds are nan, and p-values but for McNemar's test.
    """
    (before, score), (after, _) = statistic(first), statistic(other)

    def scores_of(sums: np.ndarray) -> np.ndarray:
        scores = score(sums)
        return np.stack([scores[name] for name in metrics], axis=-1)

    old, new = scores_of(before.sum(0)), scores_of(after.sum(0))
    found = pd.DataFrame({"metric": list(metrics), "baseline": old, "value": new})
    found[["low", "high", "p_value"]], found["test"] = np.nan, "permutation"
    if plan.resamples:
        drawn = np.split(plan.draw(first, np.hstack((before, after))), 2, axis=1)
        gaps = scores_of(drawn[1]) - scores_of(drawn[0])
        found[["low", "high"]] = [plan.bounds(gap) for gap in gaps.T]
        halves, _ = first.units((after - before) / 2)
        centre, half = (before.sum(0) + after.sum(0)) / 2, halves.sum(0)
        observed = np.abs(scores_of(centre + half) - scores_of(centre - half))
        hits = 1  # the observed case is one of the permutations
        for swapped in plan.swapped(halves):
            gaps = scores_of(centre + swapped) - scores_of(centre - swapped)
            hits += (np.abs(gaps) >= observed - ROUNDING).sum(0)
        found["p_value"] = hits / (plan.resamples + 1)
    if "war" in metrics and not first.speakers:
        found.loc[found["metric"] == "war", ["p_value", "test"]] = mcnemar(first, other)
    return found


def mcnemar(first: PredictionTable, other: PredictionTable) -> tuple[float, str]:
    """Test the clips that one run alone gets right; returns the two-sided p and both counts."""
    right, other_right = (table.predictions == table.labels for table in (first, other))
    won, lost = int((other_right & ~right).sum()), int((right & ~other_right).sum())
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return float(p_value), f"McNemar exact, {won} : {lost}"


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values (n,) by Holm's step-down method."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    return np.minimum(np.maximum.accumulate(steps), 1.0)[np.argsort(order)]
