"""Paired tests of two runs on the same clips.

Accuracy (WAR) is tested by the exact McNemar test: of the clips that only one run gets right, how
unlikely is such a split between equals? Every other score, and WAR when speakers are drawn, by a
permutation test: how often is the difference as large when the two runs' predictions are swapped at
random, clip by clip (or speaker by speaker)? The interval of a difference is a paired bootstrap.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from hicmae.folds import PredictionTable
from hicmae.report.resampling import Plan, Statistic, statistic, summed, swapped_sums
from hicmae.report.scores import Pooled, Report

ROUNDING = 1e-12  # differences closer than this are equal


class Difference(NamedTuple):
    """One score of two runs.

    `low` and `high` bound the difference, nan without resamples; `p_adjusted` is Holm's over all
    compared runs.
    """

    metric: str
    baseline: float
    value: float
    low: float
    high: float
    p_value: float
    test: str
    p_adjusted: float = float("nan")


class Comparison(NamedTuple):
    """Two runs on the same clips.

    Attributes:
        baseline: title of the first run.
        title: of the other one.
        kind: the epoch, "last" or "best".
        num_clips: that both were tested on.
        differences: a score each.
        names: of the classes or outputs.
        by_speaker: whether speakers were drawn and swapped instead of clips.
        resamples: number of draws.
        notes: what the reader has to know.
    """

    baseline: str
    title: str
    kind: str
    num_clips: int
    differences: list[Difference]
    names: list[str]
    by_speaker: bool
    resamples: int
    notes: list[str]


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
    compared = []
    for kind in kinds:
        parts = [_compare(first, other, kind) for other in others]
        compared += _adjusted(parts)
    return compared


def _compare(first: Report, other: Report, kind: str) -> Comparison:
    baseline, run = first.pooled[kind], other.pooled[kind]
    order, notes = matched(baseline.table, run.table, first.title, other.title)
    table = run.table
    aligned = PredictionTable(
        baseline.table.clips, table.labels[order], table.predictions[order], table.num_outputs
    )
    _check_labels(baseline.table, aligned, first.title, other.title)
    names = [*first.metrics]
    if first.is_regression:
        names += [f"{metric} {k}" for metric in first.metrics for k in range(len(first.names))]
    return Comparison(
        baseline=first.title,
        title=other.title,
        kind=kind,
        num_clips=len(aligned.clips),
        differences=paired(baseline, aligned, names, first.plan),
        names=first.names,
        by_speaker=first.plan.speakers is not None,
        resamples=first.plan.resamples,
        notes=notes,
    )


def matched(
    first: PredictionTable, other: PredictionTable, title: str, other_title: str
) -> tuple[np.ndarray, list[str]]:
    """Find each clip of the first run in the other, by its name or else the name's last part.

    Returns:
        (n,) positions in the other run, and notes for the reader.
    """
    if (first.num_outputs, first.is_regression) != (other.num_outputs, other.is_regression):
        raise ValueError(
            f"'{title}' and '{other_title}' are of different tasks: {first.num_outputs} against "
            f"{other.num_outputs} classes or outputs; compare runs of one task"
        )
    whole = _numbered(first.clips), _numbered(other.clips)
    last = [[Path(clip).name for clip in table.clips] for table in (first, other)]
    short = _numbered(last[0]), _numbered(last[1])
    notes = []
    keys = whole
    moved = set(whole[0]) != set(whole[1]) and set(short[0]) == set(short[1])
    if moved and not any(number for _, number in short[0]):
        keys = short
        notes = [f"clips of '{other_title}' were matched by the last part of their names"]
    _check_same_clips(keys[0], keys[1], title, other_title)
    position = {key: k for k, key in enumerate(keys[1])}
    return np.array([position[key] for key in keys[0]]), notes


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Tell clips that were tested several times apart."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _check_same_clips(
    first: list[tuple[str, int]], other: list[tuple[str, int]], title: str, other_title: str
) -> None:
    known = set(first), set(other)
    only = [key[0] for key in first if key not in known[1]]
    extra = [key[0] for key in other if key not in known[0]]
    for names, here, there in ((only, title, other_title), (extra, other_title, title)):
        if names:
            raise ValueError(
                f"runs must be tested on the same clips, but {len(names)} of '{here}' are not in "
                f"'{there}', first '{names[0]}'; compare experiments with the same folds (folds "
                "of one experiment: give the folder that holds them)"
            )


def _check_labels(
    first: PredictionTable, other: PredictionTable, title: str, other_title: str
) -> None:
    wrong = (first.labels != other.labels).reshape(len(first.clips), -1).any(1)
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{int(wrong.sum())} clips have other labels in '{other_title}' than in '{title}', "
            f"first '{first.clips[k]}': {other.labels[k]} against {first.labels[k]}; compare runs "
            "on the same lists"
        )


def paired(
    baseline: Pooled, other: PredictionTable, metrics: Sequence[str], plan: Plan
) -> list[Difference]:
    """Test scores of two runs whose clips are in the same order.

    Args:
        baseline: the first run, with the fold of every clip.
        other: the second run, with the same labels.
        metrics: names of `resampling.statistic`.
        plan: how to resample; without resamples only McNemar's test is left.
    """
    first, second = statistic(baseline.table), statistic(other)
    before, after = first.score(first.values.sum(0)), second.score(second.values.sum(0))
    clips = baseline.table.clips
    bounds, chances = _resampled(first, second, clips, baseline.folds, metrics, plan)
    differences = []
    for metric in metrics:
        p_value, test = chances.get(metric, float("nan")), "permutation"
        if metric == "war" and plan.speakers is None:
            p_value, test = mcnemar(baseline.table, other)
        values = float(before[metric]), float(after[metric])
        low, high = bounds.get(metric, (float("nan"),) * 2)
        differences.append(Difference(metric, *values, low, high, p_value, test))
    return differences


def _resampled(
    first: Statistic,
    second: Statistic,
    clips: Sequence[str],
    folds: Sequence[str],
    metrics: Sequence[str],
    plan: Plan,
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Return the paired bootstrap intervals and the permutation p-values of differences."""
    if plan.resamples == 0:
        return {}, {}
    width = first.values.shape[1]
    both = np.hstack((first.values, second.values))
    drawn = plan.draw(both, clips, folds)
    before, after = first.score(drawn[:, :width]), first.score(drawn[:, width:])
    bounds = {name: plan.bounds(after[name] - before[name]) for name in metrics}
    units = plan.units(clips, folds)
    halves = (second.values - first.values) / 2
    if units is not None:
        halves, _ = summed(halves, units)
    centre = (first.values.sum(0) + second.values.sum(0)) / 2
    observed = _gap(first, centre, halves.sum(0))
    hits = dict.fromkeys(metrics, 1)  # the observed case is one of the permutations
    rng = np.random.default_rng((plan.seed, 1))
    for swapped in swapped_sums(halves, plan.resamples, rng):
        gaps = _gap(first, centre, swapped)
        for name in metrics:
            extreme = np.abs(gaps[name]) >= abs(observed[name]) - ROUNDING
            hits[name] += int(extreme.sum())
    return bounds, {name: count / (plan.resamples + 1) for name, count in hits.items()}


def _gap(statistic_: Statistic, centre: np.ndarray, half: np.ndarray) -> dict[str, np.ndarray]:
    above, below = statistic_.score(centre + half), statistic_.score(centre - half)
    return {name: above[name] - below[name] for name in above}


def mcnemar(first: PredictionTable, other: PredictionTable) -> tuple[float, str]:
    """Test the clips that one run alone gets right, exactly.

    Returns:
        Two-sided p-value, and the name of the test with both counts.
    """
    right = first.predictions == first.labels, other.predictions == first.labels
    lost, won = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return float(p_value), f"McNemar exact, {won} : {lost}"


def _adjusted(comparisons: list[Comparison]) -> list[Comparison]:
    """Correct the p-values of each metric for the number of compared runs (Holm)."""
    tables = [list(c.differences) for c in comparisons]
    for k in range(len(tables[0])):
        adjusted = holm([table[k].p_value for table in tables])
        for table, value in zip(tables, adjusted, strict=True):
            table[k] = table[k]._replace(p_adjusted=value)
    return [c._replace(differences=t) for c, t in zip(comparisons, tables, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
