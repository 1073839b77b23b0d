"""Folds with random predictions, as run_finetuning.py leaves them."""

import numpy as np
import pandas as pd

from hicmae.training.resampling import PredictionTable

CLASSES = 3


def table_of(labels, guesses, k=2, clips=None, folds=None, speakers=()):
    clips = clips or [f"c{i}" for i in range(len(labels))]
    labels, guesses = np.asarray(labels), np.asarray(guesses)
    return PredictionTable(clips, folds or ["f"] * len(clips), labels, guesses, k, speakers)


def cells_of(table):
    """Return the cells of a table of a report, heading first."""
    return [[table.index.name, *table], *map(list, table.itertuples(name=None))]


def write_predictions(path, clips, labels, guesses, scores=None):
    """Write given predictions of classes."""
    scores = np.eye(CLASSES)[guesses] if scores is None else scores
    columns = {"clip": clips, "label": labels, "prediction": guesses}
    columns |= {f"p{k}": scores[:, k] for k in range(CLASSES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns, dtype=object).to_csv(path, index=False, errors="surrogateescape")


def write_fold(folder, seed, n, name="pred.csv", prefix=""):
    """Write random predictions of n clips; return labels and scores."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, CLASSES, n), rng.random((n, CLASSES))
    clips = [f"{prefix or folder.name}/clip {i}, a" for i in range(n)]  # a space, a comma
    write_predictions(folder / name, clips, labels, scores.argmax(1), scores)
    return labels, scores


def write_regression(folder, seed, n, outputs=2):
    """Write random targets and predictions; return both."""
    values = np.random.default_rng(seed).random((2, n, outputs))
    names = [f"{word}{k}" for word in ("label", "prediction") for k in range(outputs)]
    frame = pd.DataFrame(np.hstack(values), columns=names)
    frame.insert(0, "clip", [f"{folder.name}_{i}" for i in range(n)])
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "pred.csv", index=False)
    return values
