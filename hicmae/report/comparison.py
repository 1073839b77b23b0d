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
import pandas as pd
from scipy.stats import binomtest

from hicmae.report.resampling import Plan, PredictionTable, Scores, statistic
from hicmae.report.scores import Report, clips_of_folds, metric_name

ROUNDING = 1e-12  # differences closer than this are equal
# A score of two runs; bounds of the difference and p are nan without resamples.
DIFFERENCE = ["metric", "baseline", "value", "low", "high", "p_value", "test"]


class Comparison(NamedTuple):
    """Two runs on the same clips."""

    baseline: str  # title of the first run
    title: str  # of the other one
    kind: str  # of the epoch, "last" or "best"
    num_clips: int
    differences: pd.DataFrame  # a score each: DIFFERENCE, and p_adjusted by Holm over all runs
    names: list[str]  # of the classes or outputs
    by_speaker: bool  # whether speakers were drawn and swapped instead of clips
    resamples: int
    notes: list[str]  # what the reader has to know

    def scores(self) -> list[str]:
        """Name the score of each difference."""
        return [f"{metric_name(m, self.names)} {self.kind}" for m in self.differences["metric"]]


def compare_all(reports: Sequence[Report]) -> list[Comparison]:
    """Compare every report with the first one, on the epochs that all of them have.

    Raises:
        ValueError: the runs were not tested on the same clips or have no epoch in common.
    """
    first, *others = reports
    plan, metrics, comparisons = first.plan, [*first.metrics], []
    if first.is_regression:
        metrics += [f"{metric} {k}" for metric in first.metrics for k in range(len(first.names))]
    for kind in [kind for kind in first.kinds if all(kind in other.kinds for other in others)]:
        base = first.pooled[kind]
        runs = [matched(base, o.pooled[kind], first.title, o.title) for o in others]
        tested = [paired(base, table, metrics, plan) for table, _ in runs]
        adjusted = np.apply_along_axis(holm, 0, np.array([found["p_value"] for found in tested]))
        for other, found, p, (_, notes) in zip(others, tested, adjusted, runs, strict=True):
            facts = first.names, plan.draws_speakers, plan.resamples, notes
            found["p_adjusted"] = p
            comparisons.append(
                Comparison(first.title, other.title, kind, len(base.clips), found, *facts)
            )
    if not comparisons:
        found = "; ".join(f"'{r.title}' {' and '.join(r.kinds)}" for r in reports)
        raise ValueError(f"the runs have no epoch in common ({found}); test them again")
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

    def keys_of(names: Sequence[str]) -> dict[tuple[str, int], int]:
        """Return places by name and a number that tells those of one name apart."""
        seen = Counter[str]()
        places = {}
        for place, name in enumerate(names):
            places[name, seen[name]] = place
            seen[name] += 1
        return places

    keys, other_keys, notes = keys_of(first.clips), keys_of(other.clips), list[str]()
    short, other_short = (keys_of([Path(c).name for c in t.clips]) for t in (first, other))
    moved = keys.keys() != other_keys.keys() and short.keys() == other_short.keys()
    if moved and not any(number for _, number in short):
        keys, other_keys = short, other_short
        notes = [f"clips of '{other_title}' were matched by the last part of their names"]
    for own, there, here, elsewhere in (
        (keys, other_keys, title, other_title),
        (other_keys, keys, other_title, title),
    ):
        if lacking := [key for key in own if key not in there]:
            raise ValueError(
                f"runs must be tested on the same clips, but {len(lacking)} of '{here}' are not in "
                f"'{elsewhere}', first '{lacking[0][0]}'; compare experiments with the same folds "
                "(folds of one experiment: give the folder that holds them)"
            )
    order = np.array([other_keys[key] for key in keys])
    labels = other.labels[order]
    wrong = np.flatnonzero((first.labels != labels).reshape(len(order), -1).any(1))
    if len(wrong):
        k = wrong[0]
        raise ValueError(
            f"{len(wrong)} clips have other labels in '{other_title}' than in '{title}', first "
            f"'{first.clips[k]}': {labels[k]} against {first.labels[k]}; compare runs on the same "
            "lists"
        )
    other = first._replace(
        predictions=other.predictions[order], folds=[other.folds[k] for k in order]
    )
    mine, theirs = (sorted(clips_of_folds(table).values()) for table in (first, other))
    if mine != theirs:
        notes.append(f"the folds of '{other_title}' hold other clips than those of '{title}'")
    return other._replace(folds=first.folds), notes


def paired(
    first: PredictionTable, other: PredictionTable, metrics: Sequence[str], plan: Plan
) -> pd.DataFrame:
    """Test scores, named as by `resampling.statistic`, of two runs with clips in the same order.

    Returns the columns DIFFERENCE; without resamples only McNemar's test is left.
    """
    (before, score), (after, _) = statistic(first), statistic(other)

    def gap(low: np.ndarray, high: np.ndarray) -> Scores:
        scores, others = score(low), score(high)
        return {name: others[name] - scores[name] for name in metrics}

    bounds, chances = dict.fromkeys(metrics, (np.nan, np.nan)), dict.fromkeys(metrics, np.nan)
    if plan.resamples:
        drawn = np.split(plan.draw(first, np.hstack((before, after))), 2, axis=1)
        bounds = {name: plan.bounds(gaps) for name, gaps in gap(*drawn).items()}
        halves, _ = first.units((after - before) / 2)
        centre = (before.sum(0) + after.sum(0)) / 2
        observed = gap(centre - halves.sum(0), centre + halves.sum(0))
        hits = dict.fromkeys(metrics, 1)  # the observed case is one of the permutations
        for swapped in plan.swapped(halves):
            for name, gaps in gap(centre - swapped, centre + swapped).items():
                hits[name] += int((np.abs(gaps) >= abs(observed[name]) - ROUNDING).sum())
        chances = {name: count / (plan.resamples + 1) for name, count in hits.items()}
    old, new, rows = score(before.sum(0)), score(after.sum(0)), []
    for metric in metrics:
        test: tuple[float, str] = chances[metric], "permutation"
        if metric == "war" and not first.speakers:
            test = mcnemar(first, other)
        rows.append((metric, float(old[metric]), float(new[metric]), *bounds[metric], *test))
    return pd.DataFrame(rows, columns=DIFFERENCE)


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
