"""The folds of an experiment: predictions, scores of each and of the union, notes."""

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.config.flags import flat_settings
from hicmae.data.clip_list import chosen_names, names_of_run
from hicmae.data.video import natural_key
from hicmae.io import encodable
from hicmae.report.resampling import Plan, PredictionTable

KINDS = {"last": "pred.csv", "best": "pred_best.csv"}
STARTED = ("config.json", "log.txt", "steps.jsonl", "run.log")  # files of a run that has begun
CLASS_METRICS = ("uar", "war", "weighted_f1", "macro_f1", "micro_f1")
METRIC_NAMES = {f"{name}_f1": f"{name} F1" for name in ("weighted", "macro", "micro")}
NUMBER_METRICS = ("pcc", "ccc", "acc", "mae", "mse", "rmse")
# Numbers of folds in the names of their folders: fold1, split01, set_1, session2, 1; not of seeds.
FOLD_NUMBER = re.compile(r"(?:fold|split|set|session)[ _-]?(\d+)|^(\d{1,2})$", re.IGNORECASE)
# Settings in which the folds of one experiment may differ: where, on what, and how fast.
_FREE = {"run", "data_path", "data_root", "val_path", "finetune", "batch_size", "accum_iter"}

# Rows of `Report.frame` beside the folds: all folds pooled, and the bounds of its intervals.
TOTAL, LOW, HIGH = "Total", "Total, low", "Total, high"


class Report(NamedTuple):
    """An experiment. Kinds are "last" and "best", as far as there are predictions."""

    folder: Path
    title: str  # how it is called in tables
    rows: list[str]  # names of the folds
    scores: dict[str, dict[str, dict[str, Any]]]  # kind -> fold, or TOTAL -> its metrics
    frame: pd.DataFrame  # folds, TOTAL, LOW, HIGH by (kind, metric): fractions, nan where none
    pooled: dict[str, PredictionTable]  # kind -> the union of the folds
    metrics: tuple[str, ...]  # what the main table shows
    references: dict[str, float]  # figures in percent to print under the table
    notes: list[str]  # what the reader has to know
    names: list[str]  # of the classes or outputs
    is_regression: bool
    plan: Plan  # how intervals were drawn

    @property
    def kinds(self) -> list[str]:
        """Which of the last and the best epoch have predictions."""
        return list(self.pooled)

    def total(self, kind: str, *metrics: str) -> np.ndarray:
        """Return pooled scores with their bounds, (metrics, 3)."""
        return self.frame[kind].loc[[TOTAL, LOW, HIGH], list(metrics)].to_numpy().T

    def parts(self, kind: str, metric: str) -> np.ndarray:
        """Return the pooled score of every class or output with its bounds, (K, 3)."""
        return self.total(kind, *(f"{metric} {k}" for k in range(len(self.names))))

    def spread(self, kind: str, metric: str) -> tuple[float, float] | None:
        """Return mean and sample standard deviation over folds, None for fewer than two."""
        values = self.frame.loc[self.rows, (kind, metric)].dropna().tolist()
        return (float(np.mean(values)), float(np.std(values, ddof=1))) if len(values) > 1 else None


def build(
    folder: str | Path,
    folds: int | None = None,
    references: dict[str, float] | None = None,
    names: Sequence[str] = (),
    plan: Plan | None = None,
    metrics: Sequence[str] = (),
    title: str = "",
) -> Report:
    """Score every finished fold under a folder, or a single run, and all of them together.

    `folds` is how many there should be (None: only gaps in the numbering are noticed); names are as
    `--class_names` takes them, those of the run if there are none. The others are as in `Report`;
    UAR and WAR, or PCC and CCC, are the metrics if there are none.
    """
    plan = plan or Plan()
    finished, unfinished = fold_folders(folder)
    if not finished:
        waiting = ", ".join(p.name for p in unfinished) or "nothing"
        raise FileNotFoundError(
            f"no sub-folder of '{folder}' holds {' or '.join(KINDS.values())} yet (started: "
            f"{waiting}); run run_finetuning.py for its folds first"
        )
    settings = flat_settings(read_json(finished[0] / "config.json"))
    scores, pooled, frames = {}, {}, {}
    for kind, file in KINDS.items():
        runs = [run for run in finished if (run / file).is_file()]
        tables = [read_predictions(run / file, encodable(run.name)) for run in runs]
        if tables:
            union = pool(tables)
            whose = plan.speakers(union.clips, settings.get("data_path", ""))
            pooled[kind] = union = union._replace(speakers=whose)
            scores[kind] = {table.folds[0]: table.scores() for table in tables}
            scores[kind][TOTAL] = union.scores()
            rows = {name: named_scores(found) for name, found in scores[kind].items()}
            bounds = plan.intervals(union) or dict.fromkeys(rows[TOTAL], (np.nan, np.nan))
            rows |= {end: {n: b[k] for n, b in bounds.items()} for k, end in enumerate((LOW, HIGH))}
            frames[kind] = pd.DataFrame.from_dict(rows, orient="index").astype(float)
    regression, number = union.is_regression, union.num_outputs
    known = NUMBER_METRICS if regression else CLASS_METRICS
    for metric in metrics:
        if metric not in known:
            use = ", ".join(known)
            raise ValueError(f"--metrics {metric} is no score of {union.task}; use {use}")
    task = "regression" if regression else "classification"
    shown = chosen_names(names, number) if names else names_of_run(settings, task, number)
    return Report(
        Path(folder),
        encodable(title or Path(folder).resolve().name),
        [encodable(run.name) for run in finished],
        scores,
        pd.concat(frames, axis=1),
        pooled,
        tuple(metrics) or known[:2],
        references or {},
        notes_on(finished, unfinished, folds, pooled),
        list(map(encodable, shown)),
        regression,
        plan,
    )


def metric_name(metric: str, names: Sequence[str] = ()) -> str:
    """Return how a metric is written, e.g. "UAR" or, for "ccc 0", "CCC valence"."""
    base, _, number = metric.partition(" ")
    shown = METRIC_NAMES.get(base, base if base == "recall" else base.upper())
    return f"{shown} {names[int(number)]}" if number else shown


def named_scores(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics by the names of `resampling.statistic`: first means, then "recall 0", ..."""
    each = {n: v["per_output"] if isinstance(v, dict) else v for n, v in metrics.items()}
    means = {n: v["mean"] if isinstance(v, dict) else v for n, v in metrics.items()}
    found = {n: v for n, v in means.items() if n in CLASS_METRICS or n in NUMBER_METRICS}
    lists = {n: v for n, v in each.items() if n == "recall" or n in NUMBER_METRICS}
    return found | {f"{n} {k}": value for n, v in lists.items() for k, value in enumerate(v)}


def read_predictions(path: str | Path, fold: str = "") -> PredictionTable:
    """Read `pred.csv` of a fold, which is called by its path if it has no name.

    Columns are clip,label,prediction,p0.. or, for regression, clip,label0..,prediction0..
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; test this fold again") from None
    header = rows[0][1] if rows else []
    outputs = sum(bool(re.fullmatch(r"p\d+|label\d+", name)) for name in header)
    regression = "label0" in header
    ends = [str(k) for k in range(outputs)] if regression else [""]
    columns = [f"{name}{end}" for name in ("label", "prediction") for end in ends]
    if not outputs or not {"clip", *columns} <= set(header):
        raise ValueError(
            f"{path}:1: expected the columns clip,label,prediction,p0,... or clip,label0,...,"
            f"prediction0,..., got '{','.join(header)[:80]}'"
        )
    if len(rows) < 2:
        raise ValueError(f"{path}: there are no predictions in it; run the test of this fold again")
    places, values = [header.index(name) for name in columns], []
    classes = frozenset(range(outputs))
    for line, row in rows[1:]:
        try:
            found = [float(row[place]) for place in places]
            if not (all(map(math.isfinite, found)) if regression else classes.issuperset(found)):
                raise ValueError
        except (IndexError, ValueError):
            kind = "a finite number" if regression else f"a class of 0..{outputs - 1}"
            raise ValueError(
                f"{path}:{line}: expected {kind} in each label and prediction column, got "
                f"'{','.join(row)[:80]}'"
            ) from None
        values.append(found)
    truth, guess = np.split(np.array(values), 2, axis=1)
    if not regression:
        truth, guess = truth[:, 0].astype(np.int64), guess[:, 0].astype(np.int64)
    clips = [row[header.index("clip")] for _, row in rows[1:]]
    return PredictionTable(clips, [fold or str(path)] * len(clips), truth, guess, outputs)


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

    def having(runs: Iterable[Path], files: Iterable[str]) -> list[Path]:
        return [run for run in runs if any((run / name).is_file() for name in files)]

    children = sorted(filter(Path.is_dir, folder.iterdir()), key=lambda c: natural_key(c.name))
    finished = having([folder], KINDS.values()) or having(children, KINDS.values())
    others = [] if folder in finished else [c for c in children if c not in finished]
    return finished, having(others, STARTED)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def notes_on(
    finished: Sequence[Path],
    unfinished: Sequence[Path],
    folds: int | None,
    pooled: Mapping[str, PredictionTable],
) -> list[str]:
    """Collect every note on an experiment, the most important first."""
    known = [encodable(path.name) for path in (*finished, *unfinished)]
    runs = known[: len(finished)]
    notes = [f"{name} is not finished: it has no predictions" for name in known[len(runs) :]]
    numbers = [int(found[1] or found[2]) for name in known if (found := FOLD_NUMBER.search(name))]
    first = min(numbers, default=1) and 1  # some count from 0
    last = folds + first - 1 if folds else max(numbers, default=0)
    absent = sorted(set(range(first, last + 1)) - set(numbers))
    if absent and len(numbers) == len(known) and (folds or len(known) > 1):
        notes.append(f"missing: fold {', '.join(map(str, absent))}")
    elif folds and len(known) != folds:
        notes.append(f"expected {folds} folds, found {len(known)}")
    for kind, table in pooled.items():
        lacking = [name for name in runs if name not in table.folds]
        if lacking:
            notes.append(f"no {KINDS[kind]} in {', '.join(lacking)}: not part of that Total")
    if notes:
        notes.append("Total covers the finished folds only")
    for kind, table in pooled.items():
        times, where = Counter(table.clips), defaultdict[str, list[str]](list)
        for (clip, fold), count in Counter(zip(table.clips, table.folds, strict=True)).items():
            where[clip].append(f"{fold} ({count} times)" if count > 1 else fold)
        shown = [f"'{clip}' in {' and '.join(at)}" for clip, at in where.items() if times[clip] > 1]
        notes += _listed(f"{KINDS[kind]}: clips counted more than once", shown, "more")
    tested = [clips_of_folds(table) for table in pooled.values()]
    others = [
        fold for fold in runs if len({str(found[fold]) for found in tested if fold in found}) > 1
    ]
    if others:
        files = " and ".join(KINDS.values())
        notes.append(
            f"{files} hold other clips in {', '.join(others)}: do not compare their columns"
        )
    for run, name in zip(finished, runs, strict=True):
        skipped = read_json(run / "metrics.json").get("skipped")
        if skipped:
            notes.append(f"{name}: {len(skipped)} clips unreadable and not scored")
    return [encodable(note) for note in (*notes, *_mixed(finished), *_chosen(finished))]


def clips_of_folds(table: PredictionTable) -> dict[str, list[str]]:
    """Return the sorted names of the clips of every fold."""
    found = defaultdict[str, list[str]](list)
    for fold, clip in sorted(zip(table.folds, table.clips, strict=True)):
        found[fold].append(clip)
    return found


def _listed(what: str, items: Sequence[str], rest: str) -> list[str]:
    """Make a note of the first three items and how many are left, none where there are none."""
    more = f" and {len(items) - 3} {rest}" if len(items) > 3 else ""
    return [f"{what}: {'; '.join(items[:3])}{more}"] if items else []


def _mixed(finished: Sequence[Path]) -> list[str]:
    """Say in which settings the folds differ, though they should be one experiment."""
    values = defaultdict[str, dict[str, list[str]]](dict)  # flag -> value -> folds
    for run in finished:
        settings = read_json(run / "config.json")
        flags = flat_settings({n: v for n, v in settings.items() if n not in _FREE})
        for name, value in flags.items():
            values[name].setdefault(json.dumps(value), []).append(run.name)
    mixed = [
        f"{name} is " + ", ".join(f"{value} in {' '.join(at)}" for value, at in seen.items())
        for name, seen in values.items()
        if len(seen) > 1 and name not in _FREE
    ]
    return _listed("the folds were not trained alike", mixed, "more settings")


def _chosen(finished: Sequence[Path]) -> list[str]:
    """Say on which list the best epochs were chosen."""
    sources = defaultdict[str, list[str]](list)
    for run in finished:
        if source := read_json(run / "metrics_best.json").get("chosen_on"):
            sources[Path(source).name].append(run.name)
    parts = [f"{s} ({', '.join(f)})" if len(sources) > 1 else s for s, f in sources.items()]
    seen = any(source.startswith("test") for source in sources)
    warning = ", the test list itself, as published: read the best columns as upper bounds"
    return [f"best epoch chosen on {' and '.join(parts)}{warning * seen}"] if parts else []
