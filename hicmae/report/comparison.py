"""Paired tests of two runs on the same clips.

Accuracy (WAR) is tested by the exact McNemar test: of the clips that only one run gets right, how
unlikely is such a split between equals? Every other score, and WAR when speakers are drawn, by a
permutation test: how often is the difference as large when the two runs' predictions are swapped at
random, clip by clip (or speaker by speaker)? The interval of a difference is a paired bootstrap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hicmae.report.resampling import Plan, PredictionTable, Scores, statistic, swapped_sums
from hicmae.report.scores import Pooled, Report

ROUNDING = 1e-12  # differences closer than this are equal
NAN = float("nan")


class Difference(NamedTuple):
    """One score of two runs; bounds of the difference and p are nan without resamples."""

    metric: str
    baseline: float
    value: float
    low: float
    high: float
    p_value: float
    test: str
    p_adjusted: float = NAN  # Holm's over all compared runs


class Comparison(NamedTuple):
    """Two runs on the same clips."""

    baseline: str  # title of the first run
    title: str  # of the other one
    kind: str  # of the epoch, "last" or "best"
    num_clips: int
    differences: list[Difference]  # a score each
    names: list[str]  # of the classes or outputs
    by_speaker: bool  # whether speakers were drawn and swapped instead of clips
    resamples: int
    notes: list[str]  # what the reader has to know


def compare_all(reports: Sequence[Report]) -> list[Comparison]:
    """Compare every report with the first one, on the epochs that all of them have.

    Raises:
        ValueError: the runs were not tested on the same clips or have no epoch in common.
    """
    first, *others = reports
    kinds = [kind for kind in first.kinds if all(kind in other.kinds for other in others)]
    if not kinds:
        found = "; ".join(f"'{r.title}' {' and '.join(r.kinds)}" for r in reports)
        raise ValueError(f"the runs have no epoch in common ({found}); test them again")
    metrics = [*first.metrics]
    if first.is_regression:
        metrics += [f"{metric} {k}" for metric in first.metrics for k in range(len(first.names))]
    comparisons = []
    for kind in kinds:
        base = first.pooled[kind]
        runs = [matched(base.table, o.pooled[kind].table, first.title, o.title) for o in others]
        tested = [paired(base, table, metrics, first.plan) for table, _ in runs]
        adjusted = [holm([d.p_value for d in row]) for row in zip(*tested, strict=True)]
        for k, (other, row) in enumerate(zip(others, tested, strict=True)):
            differences = [
                shown._replace(p_adjusted=p[k]) for shown, p in zip(row, adjusted, strict=True)
            ]
            facts = (first.names, first.plan.speakers is not None, first.plan.resamples, runs[k][1])
            count = len(base.table.clips)
            comparisons.append(
                Comparison(first.title, other.title, kind, count, differences, *facts)
            )
    return comparisons


def matched(
    first: PredictionTable, other: PredictionTable, title: str, other_title: str
) -> tuple[PredictionTable, list[str]]:
    """Put the other run's clips in the order of the first's; returns them and notes to the reader.

    Clips are found by their names or else by the names' last part.
    """
    if first.task != other.task:
        raise ValueError(
            f"'{title}' and '{other_title}' are of different tasks: {first.task} against "
            f"{other.task}; compare runs of one task"
        )
    keys, other_keys, notes = _numbered(first.clips), _numbered(other.clips), []
    short, other_short = (_numbered([Path(c).name for c in t.clips]) for t in (first, other))
    moved = set(keys) != set(other_keys) and set(short) == set(other_short)
    if moved and not short.get_level_values(1).any():
        keys, other_keys = short, other_short
        notes = [f"clips of '{other_title}' were matched by the last part of their names"]
    only, extra = keys.difference(other_keys, sort=False), other_keys.difference(keys, sort=False)
    for lacking, here, there in ((only, title, other_title), (extra, other_title, title)):
        if len(lacking):
            raise ValueError(
                f"runs must be tested on the same clips, but {len(lacking)} of '{here}' are not in "
                f"'{there}', first '{lacking[0][0]}'; compare experiments with the same folds "
                "(folds of one experiment: give the folder that holds them)"
            )
    order = other_keys.get_indexer(keys)
    labels, predictions = other.labels[order], other.predictions[order]
    wrong = (first.labels != labels).reshape(len(order), -1).any(1)
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(
            f"{int(wrong.sum())} clips have other labels in '{other_title}' than in '{title}', "
            f"first '{first.clips[k]}': {labels[k]} against {first.labels[k]}; compare runs "
            "on the same lists"
        )
    return PredictionTable(first.clips, labels, predictions, first.num_outputs), notes


def _numbered(names: Sequence[str]) -> pd.MultiIndex:
    """Number the tests of each clip, which tells those of one name apart."""
    clips = pd.Series(names, dtype=object)
    return pd.MultiIndex.from_arrays([clips, clips.groupby(clips).cumcount()])


def paired(
    baseline: Pooled, other: PredictionTable, metrics: Sequence[str], plan: Plan
) -> list[Difference]:
    """Test scores, named as by `resampling.statistic`, of two runs with clips in the same order.

    Without resamples only McNemar's test is left.
    """
    (first, score), (second, _) = statistic(baseline.table), statistic(other)

    def gap(before: np.ndarray, after: np.ndarray) -> Scores:
        low, high = score(before), score(after)
        return {name: high[name] - low[name] for name in metrics}

    bounds = dict.fromkeys(metrics, (NAN, NAN))
    chances = dict.fromkeys(metrics, NAN)
    if plan.resamples:
        clips, folds = baseline.table.clips, baseline.folds
        drawn = plan.draw(np.hstack((first, second)), clips, folds)
        bounds = {n: plan.bounds(v) for n, v in gap(*np.split(drawn, 2, axis=1)).items()}
        halves, _ = plan.by_unit((second - first) / 2, clips, folds)
        centre = (first.sum(0) + second.sum(0)) / 2
        observed = gap(centre - halves.sum(0), centre + halves.sum(0))
        hits = dict.fromkeys(metrics, 1)  # the observed case is one of the permutations
        for swapped in swapped_sums(halves, plan.resamples, np.random.default_rng((plan.seed, 1))):
            for name, gaps in gap(centre - swapped, centre + swapped).items():
                hits[name] += int((np.abs(gaps) >= abs(observed[name]) - ROUNDING).sum())
        chances = {name: count / (plan.resamples + 1) for name, count in hits.items()}
    before, after = score(first.sum(0)), score(second.sum(0))
    differences = []
    for metric in metrics:
        p_value, test = chances[metric], "permutation"
        if metric == "war" and plan.speakers is None:
            p_value, test = mcnemar(baseline.table, other)
        scores = float(before[metric]), float(after[metric])
        differences.append(Difference(metric, *scores, *bounds[metric], p_value, test))
    return differences


def mcnemar(first: PredictionTable, other: PredictionTable) -> tuple[float, str]:
    """Test the clips that one run alone gets right; returns the two-sided p and both counts."""
    right = first.predictions == first.labels, other.predictions == first.labels
    lost, won = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return float(p_value), f"McNemar exact, {won} : {lost}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
