"""The folds of an experiment: predictions, scores of each and of the union, notes."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.config import flat_settings
from hicmae.data.clip_list import chosen_names, find_list, names_of_run
from hicmae.io import one_line
from hicmae.report.resampling import Plan, PredictionTable, intervals

KINDS = {"last": "pred.csv", "best": "pred_best.csv"}
STARTED = ("config.json", "log.txt", "steps.jsonl", "run.log")  # files of a run that has begun
CLASS_METRICS = ("uar", "war", "weighted_f1", "macro_f1", "micro_f1")
NUMBER_METRICS = ("pcc", "ccc", "acc", "mae", "mse", "rmse")
# Settings in which the folds of one experiment may differ: where, on what, and how fast.
_FREE = {"run", "data_path", "data_root", "val_path", "finetune", "batch_size", "accum_iter"}

TOTAL = "Total"

Parts = dict[str, dict[str, PredictionTable]]  # kind -> fold -> its predictions


class Pooled(NamedTuple):
    """The predictions of all folds together."""

    table: PredictionTable
    folds: list[str]  # n names, the fold of every prediction
    intervals: dict[str, tuple[float, float]]  # of every score of `resampling.statistic`


class Report(NamedTuple):
    """An experiment. Kinds are "last" and "best", as far as there are predictions."""

    folder: Path
    title: str  # how it is called in tables
    rows: list[str]  # names of the folds
    scores: dict[str, dict[str, dict[str, Any]]]  # kind -> fold, or TOTAL -> its metrics
    pooled: dict[str, Pooled]  # kind -> the union of the folds
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

    def value(self, row: str, kind: str, metric: str) -> float:
        """Return a score of a fold or TOTAL, of a regression the mean over outputs, or nan."""
        value = self.scores[kind].get(row, {}).get(metric, float("nan"))
        return value["mean"] if isinstance(value, dict) else value

    def spread(self, kind: str, metric: str) -> tuple[float, float] | None:
        """Return mean and sample standard deviation over folds, None for fewer than two."""
        values = [self.value(row, kind, metric) for row in self.rows if row in self.scores[kind]]
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
    """Score every finished fold and the union of their predictions.

    Args:
        folder: experiment folder with one sub-folder a fold, or a single run.
        folds: how many there should be; None: only gaps in the numbering are noticed.
        references: as in `Report`.
        names: as `--class_names` takes them; empty: those of the run.
        plan: how intervals are drawn.
        metrics: of the main table; UAR and WAR, or PCC and CCC, if empty.
        title: as in `Report`; the folder's name if empty.
    """
    plan = plan or Plan()
    finished, unfinished = fold_folders(folder)
    if not finished:
        waiting = ", ".join(p.name for p in unfinished) or "nothing"
        raise FileNotFoundError(
            f"no sub-folder of '{folder}' holds {' or '.join(KINDS.values())} yet (started: "
            f"{waiting}); run run_finetuning.py for its folds first"
        )
    parts, scores, pooled = {}, {}, {}
    for kind, file in KINDS.items():
        tables = {p.name: read_predictions(p / file) for p in finished if (p / file).is_file()}
        parts[kind] = tables
        if tables:
            union = pool(tables)
            strata = [name for name, table in tables.items() for _ in table.clips]
            pooled[kind] = Pooled(union, strata, intervals(union, strata, plan))
            scores[kind] = {n: table.scores() for n, table in (tables | {TOTAL: union}).items()}
    some = next(iter(pooled.values())).table
    known = NUMBER_METRICS if some.is_regression else CLASS_METRICS
    task = "regression" if some.is_regression else "classification"
    for metric in metrics:
        if metric not in known:
            use = ", ".join(known)
            raise ValueError(f"--metrics {metric} is no score of {some.task}; use {use}")
    settings = flat_settings(read_json(finished[0] / "config.json"))
    number = some.num_outputs
    found = chosen_names(names, number) if names else names_of_run(settings, task, number)
    return Report(
        Path(folder),
        title or Path(folder).resolve().name,
        [run.name for run in finished],
        scores,
        pooled,
        tuple(metrics) or known[:2],
        references or {},
        notes_on(finished, unfinished, folds, parts),
        list(found),
        some.is_regression,
        plan,
    )


def read_predictions(path: str | Path) -> PredictionTable:
    """Read `pred.csv`.

    Columns are clip,label,prediction,p0.. or, for regression, clip,label0..,prediction0..
    """
    # Strings of pandas refuse names that are not UTF-8, so they are objects.
    options: dict[str, Any] = {"dtype": object, "index_col": False, "keep_default_na": False}
    try:
        table = pd.read_csv(path, encoding_errors="surrogateescape", **options)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    outputs = sum(bool(re.fullmatch(r"p\d+|label\d+", name)) for name in table.columns)
    regression = "label0" in table
    ends = [str(k) for k in range(outputs)] if regression else [""]
    columns = [f"{name}{end}" for name in ("label", "prediction") for end in ends]
    if not outputs or not {"clip", *columns} <= set(table.columns):
        raise ValueError(
            f"{path}:1: expected the columns clip,label,prediction,p0,... or clip,label0,...,"
            f"prediction0,..., got '{','.join(table.columns)[:80]}'"
        )
    if table.empty:
        raise ValueError(f"{path}: there are no predictions in it; run the test of this fold again")
    wrong = table[columns].apply(pd.to_numeric, errors="coerce").isna().any(axis=1).to_numpy()
    if wrong.any():
        line = int(wrong.argmax())
        raise ValueError(
            f"{path}:{line + 2}: expected a number in each label and prediction column, got "
            f"'{','.join(table.iloc[line].dropna())[:80]}'"
        )
    truth, guess = np.split(np.array(table[columns], np.float64, order="C"), 2, axis=1)
    if not regression:
        truth, guess = truth[:, 0].astype(np.int64), guess[:, 0].astype(np.int64)
    return PredictionTable(table["clip"].tolist(), truth, guess, outputs)


def pool(tables: Mapping[str, PredictionTable]) -> PredictionTable:
    """Put the predictions of several folds together, given by their names."""
    (name, first), *others = tables.items()
    for other, table in others:
        if table.task != first.task:
            raise ValueError(
                f"folds of different tasks cannot be pooled: {first.task} in '{name}', "
                f"{table.task} in '{other}'; give the folder of one experiment"
            )
    clips, labels, predictions, _ = zip(*tables.values(), strict=True)
    return PredictionTable(
        sum(clips, []), np.concatenate(labels), np.concatenate(predictions), first.num_outputs
    )


def natural_key(name: str) -> list[Any]:
    """Sort key that puts fold2 before fold10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def fold_folders(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the finished runs under a folder (with predictions), and the started ones.

    A folder that is itself a finished run counts as its only fold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder; give the one that holds the folds")

    def has(run: Path, files: Iterable[str]) -> bool:
        return any((run / name).is_file() for name in files)

    if has(folder, KINDS.values()):
        return [folder], []
    children = sorted(filter(Path.is_dir, folder.iterdir()), key=lambda c: natural_key(c.name))
    finished = [child for child in children if has(child, KINDS.values())]
    return finished, [c for c in children if c not in finished and has(c, STARTED)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def notes_on(
    finished: Sequence[Path], unfinished: Sequence[Path], folds: int | None, parts: Parts
) -> list[str]:
    """Collect every note on an experiment, the most important first."""
    notes = [f"{path.name} is not finished: it has no predictions" for path in unfinished]
    known = [path.name for path in (*finished, *unfinished)]
    numbers = {int(digits[-1]) for name in known if (digits := re.findall(r"\d+", name))}
    absent = sorted(set(range(1, (folds or max(numbers, default=0)) + 1)) - numbers)
    if absent and (folds or len(known) > 1):
        notes.append(f"missing: fold {', '.join(map(str, absent))}")
    for kind, file in KINDS.items():
        lacking = [path.name for path in finished if path.name not in parts[kind]]
        if lacking and len(lacking) < len(finished):
            notes.append(f"no {file} in {', '.join(lacking)}: not part of that Total")
    if notes:
        notes.append("Total covers the finished folds only")
    for kind, tables in parts.items():
        where: dict[str, Counter[str]] = defaultdict(Counter)  # clip -> fold -> how often
        for fold, table in tables.items():
            for clip in table.clips:
                where[clip][fold] += 1
        shown = []
        for clip, at in where.items():
            if at.total() > 1:
                folds_of = (f"{f} ({n} times)" if n > 1 else f for f, n in at.items())
                shown.append(f"'{clip}' in {' and '.join(folds_of)}")
        notes += _listed(f"{KINDS[kind]}: clips counted more than once", shown, "more")
    for run in finished:
        skipped = read_json(run / "metrics.json").get("skipped")
        if skipped:
            notes.append(f"{run.name}: {len(skipped)} clips unreadable and not scored")
    return [*notes, *_mixed(finished), *_chosen(finished)]


def _listed(what: str, items: Sequence[str], rest: str) -> list[str]:
    """Make a note of the first three items and how many are left, none where there are none."""
    more = f" and {len(items) - 3} {rest}" if len(items) > 3 else ""
    return [f"{what}: {'; '.join(items[:3])}{more}"] if items else []


def _mixed(finished: Sequence[Path]) -> list[str]:
    """Say in which settings the folds differ, though they should be one experiment."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in finished:
        settings = read_json(run / "config.json")
        flags = flat_settings({n: v for n, v in settings.items() if n not in _FREE})
        for name, value in flags.items():
            if name not in _FREE:
                values[name][json.dumps(value)].append(run.name)
    mixed = [
        f"{name} is " + ", ".join(f"{value} in {' '.join(at)}" for value, at in seen.items())
        for name, seen in values.items()
        if len(seen) > 1
    ]
    return _listed("the folds were not trained alike", mixed, "more settings")


def _chosen(finished: Sequence[Path]) -> list[str]:
    """Say on which file the best epochs were chosen."""
    sources: dict[str, list[str]] = defaultdict(list)
    for run in finished:
        source = chosen_on(run) if (run / KINDS["best"]).is_file() else ""
        if source:
            sources[Path(source).name].append(run.name)
    if not sources:
        return []
    parts = [f"{s} ({', '.join(f)})" if len(sources) > 1 else s for s, f in sources.items()]
    seen = any(source.startswith("test") for source in sources)
    warning = ", the test list itself, as published: read the best columns as upper bounds"
    return [f"best epoch chosen on {' and '.join(parts)}{warning if seen else ''}"]


def chosen_on(fold: Path) -> str:
    """Return the list that picked a fold's best epoch, "" when that cannot be told.

    `chosen_on` of metrics_best.json says so; otherwise the settings do, by the rule of
    run_finetuning.py: --val_path, else val.csv in --data_path, else test.csv.
    """
    recorded = read_json(fold / "metrics_best.json").get("chosen_on")
    settings = flat_settings(read_json(fold / "config.json"))
    data_path = settings.get("data_path")
    if recorded or not data_path:
        return str(recorded or "")
    default = "val.csv" if find_list(Path(data_path) / "val.csv") else "test.csv"
    return str(settings.get("val_path") or Path(data_path) / default)
