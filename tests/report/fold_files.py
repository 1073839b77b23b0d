"""Folds with random predictions, as run_finetuning.py leaves them."""

import csv
from pathlib import Path

import numpy as np

CLASSES = 3


def write_csv(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_predictions(
    path: Path, clips: list[str], labels, guesses, classes: int = CLASSES
) -> None:
    """Write given predictions of classes."""
    rows: list[list[object]] = [["clip", "label", "prediction", *(f"p{k}" for k in range(classes))]]
    for clip, label, guess in zip(clips, labels, guesses, strict=True):
        rows.append([clip, label, guess, *np.eye(classes)[guess]])
    write_csv(path, rows)


def cells_of(table) -> list[list[str]]:
    """Return the cells of a table of a report, heading first."""
    frame = table.frame
    return [
        [frame.columns.name, *frame.columns],
        *([name, *row] for name, row in zip(frame.index, frame.values.tolist(), strict=True)),
    ]


def write_fold(folder: Path, seed: int, n: int, name: str = "pred.csv", prefix: str = ""):
    """Write random predictions of n clips; return labels and scores."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, CLASSES, n), rng.random((n, CLASSES))
    rows: list[list[object]] = [["clip", "label", "prediction", *(f"p{k}" for k in range(CLASSES))]]
    for i in range(n):
        clip = f"{prefix or folder.name}/clip {i}, a"  # a space and a comma, as real names have
        rows.append([clip, labels[i], scores[i].argmax(), *scores[i]])
    write_csv(folder / name, rows)
    return labels, scores


def write_regression(folder: Path, seed: int, n: int, outputs: int = 2):
    """Write random targets and predictions; return both."""
    rng = np.random.default_rng(seed)
    target, prediction = rng.random((n, outputs)), rng.random((n, outputs))
    header = [f"label{k}" for k in range(outputs)] + [f"prediction{k}" for k in range(outputs)]
    rows: list[list[object]] = [["clip", *header]]
    rows += [[f"{folder.name}_{i}", *target[i], *prediction[i]] for i in range(n)]
    write_csv(folder / "pred.csv", rows)
    return target, prediction
