"""The folds of an experiment, scored one by one and together, with notes; and runs compared."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.config import CLASS_METRICS, NUMBER_METRICS
from hicmae.config.flags import flat_settings
from hicmae.data.clip_list import names_of_run
from hicmae.data.video import natural_key
from hicmae.io import encodable
from hicmae.training import resampling
from hicmae.training.resampling import Plan, PredictionTable, holm, paired, read_predictions

KINDS = {"last": "pred.csv", "best": "pred_best.csv"}
STARTED = ("config.json", "log.txt", "steps.jsonl", "run.log")  # files of a run that has begun
# Settings in which the folds of one experiment may differ: where, on what, and how fast.
_FREE = {"run", "data_path", "data_root", "val_path", "finetune", "batch_size", "accum_iter"}
TOTAL = "Total"  # the row of all folds pooled, beside those of the folds


class Report(NamedTuple):
    """An experiment. Kinds are "last" and "best", as far as there are predictions."""

    folder: Path
    title: str  # how it is called in tables
    rows: list[str]  # names of the folds
    scores: dict[str, dict[str, dict[str, Any]]]  # kind -> fold, or TOTAL -> its metrics
    frame: pd.DataFrame  # folds and TOTAL by (kind, score): fractions, nan where none
    intervals: dict[str, dict[str, tuple[float, float]]]  # kind -> score -> of TOTAL; {}: none
    pooled: dict[str, PredictionTable]  # kind -> the union of the folds
    metrics: tuple[str, ...]  # what the main table shows
    notes: list[str]  # what the reader has to know
    names: list[str]  # of the classes or outputs
    is_regression: bool
    plan: Plan  # how intervals were drawn

    @property
    def kinds(self) -> list[str]:
        """Which of the last and the best epoch have predictions."""
        return list(self.pooled)

    def total(self, kind: str, score: str) -> np.ndarray:
        """Return a pooled score and the bounds of its interval, (3,); nan where there is none."""
        bounds = self.intervals[kind].get(score, (np.nan, np.nan))
        return np.array([self.frame.loc[TOTAL, (kind, score)], *bounds])

    def spread(self) -> pd.DataFrame:
        """Return mean and sample standard deviation over folds, by the columns of `frame`."""
        return self.frame.loc[self.rows].agg(["mean", "std"])


def build(
    folder: str | Path,
    folds: int | None = None,
    names: Sequence[str] = (),
    plan: Plan | None = None,
    metrics: Sequence[str] = (),
    title: str = "",
) -> Report:
    """Score every finished fold under a folder, or a single run, and all of them together.

    `folds` is how many there should be; names are as `--class_names` takes them, those of the run
    if there are none. The others are as in `Report`; UAR and WAR, or PCC and CCC, are the metrics
    if there are none.
    """
    plan = plan or Plan()
    finished, started = fold_folders(folder)
    if not finished:
        waiting = ", ".join(p.name for p in started) or "nothing"
        raise FileNotFoundError(
            f"no sub-folder of '{folder}' holds {' or '.join(KINDS.values())} yet (started: "
            f"{waiting}); run run_finetuning.py for its folds first"
        )
    settings = flat_settings(read_json(finished[0] / "config.json"))
    settings |= {"class_names": names} if names else {}
    scores, pooled, frames, intervals = {}, {}, {}, {}
    for kind, file in KINDS.items():
        runs = [run for run in finished if (run / file).is_file()]
        tables = [read_predictions(run / file, encodable(run.name)) for run in runs]
        if tables:
            union = pool(tables)
            whose = plan.speakers(union.clips, settings.get("data_path", ""))
            pooled[kind] = union = union._replace(speakers=whose)
            scores[kind] = {table.folds[0]: table.scores() for table in tables}
            scores[kind][TOTAL] = union.scores()
            rows = {name: resampling.by_name(found) for name, found in scores[kind].items()}
            frames[kind] = pd.DataFrame.from_dict(rows, orient="index").astype(float)
            intervals[kind] = plan.intervals(union)
    known = NUMBER_METRICS if union.is_regression else CLASS_METRICS
    if unknown := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"--metrics {unknown[0]} is no score of {union.task}; use {known}")
    task = "regression" if union.is_regression else "classification"
    return Report(
        Path(folder),
        encodable(title or Path(folder).resolve().name),
        [encodable(run.name) for run in finished],
        scores,
        pd.concat(frames, axis=1),
        intervals,
        pooled,
        tuple(metrics) or known[:2],
        notes_on(finished, started, folds, pooled),
        list(map(encodable, names_of_run(settings, task, union.num_outputs))),
        union.is_regression,
        plan,
    )


def metric_name(metric: str, names: Sequence[str] = ()) -> str:
    """Return how a metric is written, e.g. "UAR" or, for "ccc 0", "CCC valence"."""
    base, _, number = metric.partition(" ")
    shown = base.replace("_f1", " F1") if base == "recall" or "_" in base else base.upper()
    return f"{shown} {names[int(number)]}" if number else shown


def pool(tables: Sequence[PredictionTable]) -> PredictionTable:
    """Put the predictions of several folds together."""
    first = tables[0]
    for table in tables:
        if table.task != first.task:
            raise ValueError(
                f"folds of different tasks cannot be pooled: {first.task} in '{first.folds[0]}', "
                f"{table.task} in '{table.folds[0]}'; give the folder of one experiment"
            )
    clips, folds, labels, predictions, *_ = zip(*tables, strict=True)
    arrays = np.concatenate(labels), np.concatenate(predictions)
    return PredictionTable(sum(clips, []), sum(folds, []), *arrays, first.num_outputs)


def fold_folders(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the finished runs under a folder (with predictions), and the started ones.

    A folder that is itself a finished run counts as its only fold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder; give the one that holds the folds")

    def holds(run: Path, files: Iterable[str]) -> bool:
        return any((run / name).is_file() for name in files)

    children = sorted(filter(Path.is_dir, folder.iterdir()), key=lambda c: natural_key(c.name))
    runs = [folder] if holds(folder, KINDS.values()) else children
    finished = [run for run in runs if holds(run, KINDS.values())]
    return finished, [run for run in runs if run not in finished and holds(run, STARTED)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def notes_on(
    finished: list[Path], started: list[Path], folds: int | None, pooled: dict[str, PredictionTable]
) -> list[str]:
    """Collect every note on an experiment, the most important first."""
    notes = [f"{run.name} is not finished: it has no predictions" for run in started]
    found = len(finished) + len(started)
    if folds and found != folds:
        notes.append(f"expected {folds} folds, found {found}")
    for kind, table in pooled.items():
        if lacking := [run.name for run in finished if encodable(run.name) not in table.folds]:
            notes.append(f"no {KINDS[kind]} in {', '.join(lacking)}: not part of that Total")
    if notes:
        notes.append("Total covers the finished folds only")
    for kind, table in pooled.items():
        if twice := [clip for clip, count in Counter(table.clips).items() if count > 1]:
            at = (f for clip, f in zip(table.clips, table.folds, strict=True) if clip == twice[0])
            notes.append(
                f"{KINDS[kind]}: {len(twice)} clips counted more than once, first '{twice[0]}' in "
                f"{' and '.join(at)}"
            )
    for run in finished:
        if skipped := read_json(run / "metrics.json").get("skipped"):
            notes.append(f"{run.name}: {len(skipped)} clips unreadable and not scored")
    values = defaultdict[str, dict[str, list[str]]](dict)  # flag -> value -> folds
    for run in finished:
        groups = {n: v for n, v in read_json(run / "config.json").items() if n not in _FREE}
        for name, value in flat_settings(groups).items():
            values[name].setdefault(json.dumps(value), []).append(run.name)
    notes += [
        f"the folds were not trained alike: {name} is "
        + ", ".join(f"{value} in {' '.join(at)}" for value, at in seen.items())
        for name, seen in values.items()
        if len(seen) > 1 and name not in _FREE
    ]
    sources = [read_json(run / "metrics_best.json").get("chosen_on") for run in finished]
    if lists := sorted({Path(source).name for source in sources if source}):
        warning = ", the test list itself, as published: read the best columns as upper bounds"
        warning *= any(name.startswith("test") for name in lists)
        notes.append(f"best epoch chosen on {' and '.join(lists)}{warning}")
    return list(map(encodable, notes))


class Comparison(NamedTuple):
    """Two runs on the same clips."""

    baseline: str  # title of the first run
    title: str  # of the other one
    kind: str  # of the epoch, "last" or "best"
    differences: pd.DataFrame  # of `paired`, and p_adjusted by Holm over all runs
    num_clips: int
    names: list[str]  # of the classes or outputs
    by_speaker: bool  # whether speakers were drawn and swapped instead of clips
    resamples: int


def compare_all(reports: Sequence[Report]) -> list[Comparison]:
    """Compare every report with the first one, on the epochs that all of them have.

    ValueError: they were not tested on the same clips, or have no epoch in common.
    """
    first, *others = reports
    plan, metrics, comparisons = first.plan, [*first.metrics], []
    if first.is_regression:
        metrics += [f"{metric} {k}" for metric in first.metrics for k in range(len(first.names))]
    for kind in [kind for kind in first.kinds if all(kind in other.kinds for other in others)]:
        base = first.pooled[kind]
        runs = [matched(base, o.pooled[kind], first.title, o.title) for o in others]
        tested = [paired(base, run, metrics, plan) for run in runs]
        adjusted = np.apply_along_axis(holm, 0, np.array([found["p_value"] for found in tested]))
        facts = len(base.clips), first.names, bool(base.speakers), plan.resamples
        for other, found, p in zip(others, tested, adjusted, strict=True):
            found["p_adjusted"] = p
            comparisons.append(Comparison(first.title, other.title, kind, found, *facts))
    if not comparisons:
        seen = "; ".join(f"'{r.title}' {' and '.join(r.kinds)}" for r in reports)
        raise ValueError(f"the runs have no epoch in common ({seen}); test them again")
    return comparisons


def matched(
    first: PredictionTable, other: PredictionTable, title: str, other_title: str
) -> PredictionTable:
    """Put the other run's clips in the order of the first's; they are found by their names."""
    if first.task != other.task:
        raise ValueError(
            f"'{title}' and '{other_title}' are of different tasks: {first.task} against "
            f"{other.task}; compare runs of one task"
        )

    def keys_of(clips: Sequence[str]) -> pd.MultiIndex:
        """Return names and a number that tells those of one name apart."""
        names = pd.Series(clips, dtype=object)
        return pd.MultiIndex.from_arrays([names, names.groupby(names).cumcount()])

    own, others = keys_of(first.clips), keys_of(other.clips)
    gone, extra = own[~own.isin(others)], others[~others.isin(own)]
    for lacking, here, there in ((gone, title, other_title), (extra, other_title, title)):
        if len(lacking):
            raise ValueError(
                f"runs must be tested on the same clips, but {len(lacking)} of '{here}' are not in "
                f"'{there}', first '{lacking[0][0]}'; compare experiments with the same folds "
                "(folds of one experiment: give the folder that holds them)"
            )
    order = others.get_indexer(own)
    labels = other.labels[order]
    wrong = np.flatnonzero((first.labels != labels).reshape(len(order), -1).any(1))
    if len(wrong):
        k = wrong[0]
        raise ValueError(
            f"{len(wrong)} clips have other labels in '{other_title}' than in '{title}', first "
            f"'{first.clips[k]}': {labels[k]} against {first.labels[k]}; use the same lists"
        )
    return first._replace(predictions=other.predictions[order])
