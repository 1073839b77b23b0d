"""The scores of an experiment: every fold, the union of the folds, and how sure the union is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hicmae.data.clip_list import checked, names_of_run
from hicmae.folds import KINDS, PredictionTable, fold_folders, pool, read_json, read_predictions
from hicmae.inference.model import flat_settings
from hicmae.report.notes import notes_on
from hicmae.report.resampling import Plan, intervals

CLASS_METRICS = ("uar", "war", "weighted_f1", "macro_f1", "micro_f1")
NUMBER_METRICS = ("pcc", "ccc", "acc", "mae", "mse", "rmse")


class Row(NamedTuple):
    """Scores of one fold, or of all of them pooled; None where there is no such file."""

    name: str
    last: dict[str, Any] | None
    best: dict[str, Any] | None


class Pooled(NamedTuple):
    """The predictions of all folds together.

    Attributes:
        table: predictions of the union.
        folds: n names, the fold of every prediction.
        intervals: bootstrap interval of every score, by the names of `resampling.statistic`.
    """

    table: PredictionTable
    folds: list[str]
    intervals: dict[str, tuple[float, float]]


class Report(NamedTuple):
    """An experiment.

    Attributes:
        folder: of the experiment.
        title: how it is called in tables.
        rows: scores by fold.
        total: scores of the union.
        pooled: "last" or "best" -> the union.
        metrics: what the main table shows.
        references: figures in percent to print under the table.
        notes: what the reader has to know.
        names: of the classes or outputs.
        is_regression: whether outputs are numbers.
        plan: how intervals were drawn.
    """

    folder: Path
    title: str
    rows: list[Row]
    total: Row
    pooled: dict[str, Pooled]
    metrics: tuple[str, ...]
    references: dict[str, float]
    notes: list[str]
    names: list[str]
    is_regression: bool
    plan: Plan

    @property
    def kinds(self) -> list[str]:
        """Which of the last and the best epoch have predictions."""
        return list(self.pooled)

    def value(self, row: Row, kind: str, metric: str) -> float | None:
        """Return a score of a row; of a regression metric the mean over outputs."""
        scores = row.last if kind == "last" else row.best
        value = scores[metric] if scores else None
        return value["mean"] if isinstance(value, dict) else value

    def spread(self, kind: str, metric: str) -> tuple[float, float] | None:
        """Return mean and sample standard deviation over folds, None for fewer than two."""
        values = [v for r in self.rows if (v := self.value(r, kind, metric)) is not None]
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
        references: named figures in percent to print under the table, e.g. the chance level.
        names: of the classes or outputs; those of the run's lists or data set if empty.
        plan: how intervals are drawn; None: as by default.
        metrics: of the main table; UAR and WAR, or PCC and CCC, if empty.
        title: name of the experiment; its folder's if empty.
    """
    plan = plan or Plan()
    finished, unfinished = fold_folders(folder)
    if not finished:
        waiting = ", ".join(p.name for p in unfinished) or "nothing"
        raise FileNotFoundError(
            f"no sub-folder of '{folder}' holds {' or '.join(KINDS.values())} yet (started: "
            f"{waiting}); run run_finetuning.py for its folds first"
        )
    parts = {
        kind: {p.name: read_predictions(p / file) for p in finished if (p / file).is_file()}
        for kind, file in KINDS.items()
    }
    some = _check_one_task(folder, parts)
    rows = [
        Row(p.name, *(parts[k][p.name].scores() if p.name in parts[k] else None for k in KINDS))
        for p in finished
    ]
    pooled = {kind: _pooled(tables, plan) for kind, tables in parts.items() if tables}
    totals = (pooled[kind].table.scores() if kind in pooled else None for kind in KINDS)
    return Report(
        folder=Path(folder),
        title=title or Path(folder).resolve().name,
        rows=rows,
        total=Row("Total", *totals),
        pooled=pooled,
        metrics=_known_metrics(metrics, some.is_regression),
        references=references or {},
        notes=notes_on(finished, unfinished, folds, parts),
        names=_names(names, finished[0], some),
        is_regression=some.is_regression,
        plan=plan,
    )


def _pooled(tables: dict[str, PredictionTable], plan: Plan) -> Pooled:
    union = pool(list(tables.values()))
    folds = [name for name, table in tables.items() for _ in table.clips]
    return Pooled(union, folds, intervals(union, folds, plan))


def _check_one_task(
    folder: str | Path, parts: dict[str, dict[str, PredictionTable]]
) -> PredictionTable:
    """Refuse folds of different tasks, naming two of them; return one table."""
    tables = [(fold, table) for group in parts.values() for fold, table in group.items()]
    name, first = tables[0]
    for other, table in tables[1:]:
        if (table.num_outputs, table.is_regression) != (first.num_outputs, first.is_regression):
            raise ValueError(
                f"folds of different tasks cannot be pooled: {_task(first)} in '{name}', "
                f"{_task(table)} in '{other}' of '{folder}'; give the folder of one experiment"
            )
    return first


def _names(names: Sequence[str], run: Path, table: PredictionTable) -> list[str]:
    """Return the given names, or those that the settings of a fold lead to."""
    if names:
        return list(checked(names, table.num_outputs, "--classes"))
    settings = flat_settings(read_json(run / "config.json"))
    task = "regression" if table.is_regression else "classification"
    return list(names_of_run(settings, task, table.num_outputs))


def _task(table: PredictionTable) -> str:
    return f"{table.num_outputs} {'regression outputs' if table.is_regression else 'classes'}"


def _known_metrics(metrics: Sequence[str], is_regression: bool) -> tuple[str, ...]:
    known = NUMBER_METRICS if is_regression else CLASS_METRICS
    for metric in metrics:
        if metric not in known:
            kind = "a regression" if is_regression else "a classification"
            raise ValueError(f"--metrics {metric} is no score of {kind}; use {', '.join(known)}")
    return tuple(metrics) or known[:2]
