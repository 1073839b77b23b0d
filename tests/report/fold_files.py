"""Folds with random predictions, as run_finetuning.py leaves them."""

import numpy as np

from hicmae.training import evaluate
from hicmae.training.evaluate import Predictions
from hicmae.training.resampling import PredictionTable

CLASSES = 3


def table_of(labels, guesses, k=2, clips=None, folds=None, speakers=()):
    clips = clips or [f"c{i}" for i in range(len(labels))]
    labels, guesses = np.asarray(labels), np.asarray(guesses)
    return PredictionTable(clips, folds or ["f"] * len(clips), labels, guesses, k, speakers)


def cells_of(table):
    """Return the cells of a table of a report, heading first."""
    return [[table.index.name, *table], *map(list, table.itertuples(name=None))]


def write_predictions(path, clips, labels, guesses):
    """Write given predictions of classes."""
    predictions = Predictions(clips, np.asarray(labels), np.eye(CLASSES)[guesses], [])
    evaluate.write_predictions(path, predictions)


def write_fold(folder, seed, n, name="pred.csv", prefix=""):
    """Write random predictions of n clips; return labels and scores."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, CLASSES, n), rng.random((n, CLASSES))
    clips = [f"{prefix or folder.name}/clip {i}, a" for i in range(n)]  # a space, a comma
    evaluate.write_predictions(folder / name, Predictions(clips, labels, scores, []))
    return labels, scores


def write_regression(folder, seed, n, outputs=2):
    """Write random targets and predictions; return both."""
    values = np.random.default_rng(seed).random((2, n, outputs)).round(4)  # as files hold them
    clips = [f"{folder.name}_{i}" for i in range(n)]
    evaluate.write_predictions(folder / "pred.csv", Predictions(clips, *values, []))
    return values
