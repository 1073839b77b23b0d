"""What the folds of an experiment left behind: finished runs, predictions, settings."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hicmae.data.clip_list import find_list
from hicmae.training.evaluate import confusion_matrix, regression_metrics, scores_from_confusion

KINDS = {"last": "pred.csv", "best": "pred_best.csv"}
METRICS_FILES = {"last": "metrics.json", "best": "metrics_best.json"}


class PredictionTable(NamedTuple):
    """Predictions of one or several test sets.

    Attributes:
        clips: n names.
        labels: (n,) classes or (n, K) targets.
        predictions: (n,) classes or (n, K) values.
        num_outputs: K, number of classes or of regression outputs.
    """

    clips: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    num_outputs: int

    @property
    def is_regression(self) -> bool:
        """Whether the outputs are numbers instead of classes."""
        return self.labels.ndim == 2

    def scores(self) -> dict[str, Any]:
        """Return the metrics of `hicmae.training.evaluate` over all clips."""
        if self.is_regression:
            return regression_metrics(self.labels, self.predictions)
        return scores_from_confusion(
            confusion_matrix(self.labels, self.predictions, self.num_outputs)
        )


def read_predictions(path: str | Path) -> PredictionTable:
    """Read `pred.csv`.

    Columns are clip,label,prediction,p0.. or, for regression, clip,label0..,prediction0..
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    header = rows[0] if rows else []
    outputs = sum(bool(re.fullmatch(r"p\d+|label\d+", name)) for name in header)
    regression = "label0" in header
    label = [f"label{k}" for k in range(outputs)] if regression else ["label"]
    guess = [f"prediction{k}" for k in range(outputs)] if regression else ["prediction"]
    missing = [name for name in ("clip", *label, *guess) if name not in header]
    if missing or not outputs:
        raise ValueError(
            f"{path}:1: expected the columns clip,label,prediction,p0,... or clip,label0,...,"
            f"prediction0,..., got '{','.join(header)[:80]}'"
        )
    if len(rows) == 1:
        raise ValueError(f"{path}: there are no predictions in it; run the test of this fold again")
    columns = [header.index(name) for name in (*label, *guess)]
    values = np.array([_numbers(path, n, row, columns) for n, row in enumerate(rows[1:], 2)])
    truth, predicted = values[:, : len(label)], values[:, len(label) :]
    if not regression:
        truth, predicted = truth[:, 0].astype(np.int64), predicted[:, 0].astype(np.int64)
    clips = [row[header.index("clip")] for row in rows[1:]]
    return PredictionTable(clips, truth, predicted, outputs)


def _numbers(path: Path, line: int, row: list[str], columns: list[int]) -> list[float]:
    try:
        return [float(row[column]) for column in columns]
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path}:{line}: expected a number in each label and prediction column, "
            f"got '{','.join(row)[:80]}'"
        ) from error


def pool(parts: Sequence[PredictionTable]) -> PredictionTable:
    """Put the predictions of several folds together."""
    first = parts[0]
    for part in parts[1:]:
        if (part.num_outputs, part.is_regression) != (first.num_outputs, first.is_regression):
            raise ValueError(
                "folds of different tasks cannot be pooled: "
                f"{first.num_outputs} outputs against {part.num_outputs}; give one experiment"
            )
    return PredictionTable(
        [clip for part in parts for clip in part.clips],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        first.num_outputs,
    )


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts fold2 before fold10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def fold_folders(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Find the runs under a folder.

    Returns:
        The finished ones (with predictions) and the started but unfinished ones, in natural order.
        A folder that is itself a finished run counts as its only fold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder; give the one that holds the folds")
    if _is_finished(folder):
        return [folder], []
    children = sorted(
        (c for c in folder.iterdir() if c.is_dir()), key=lambda c: natural_key(c.name)
    )
    finished = [child for child in children if _is_finished(child)]
    started = ("config.json", "log.txt", "steps.jsonl", "run.log")
    unfinished = [
        child
        for child in children
        if child not in finished and any((child / name).exists() for name in started)
    ]
    return finished, unfinished


def _is_finished(folder: Path) -> bool:
    return any((folder / name).is_file() for name in KINDS.values())


def chosen_on(fold: Path) -> str:
    """Return the list that picked a fold's best epoch, "" when that cannot be told.

    `chosen_on` of metrics_best.json says so; otherwise the settings do, by the rule of
    run_finetuning.py: --val_path, else val.csv in --data_path, else test.csv.
    """
    recorded = read_json(fold / METRICS_FILES["best"]).get("chosen_on")
    settings = read_json(fold / "config.json")
    data_path = _find(settings, "data_path")
    if recorded or not data_path:
        return str(recorded or "")
    default = "val.csv" if find_list(Path(data_path) / "val.csv") else "test.csv"
    return str(_find(settings, "val_path") or Path(data_path) / default)


def _find(tree: Any, key: str) -> Any:
    """Return the first value stored under `key` anywhere in nested dictionaries."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    return next(
        (v for v in (_find(branch, key) for branch in tree.values()) if v is not None), None
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
