"""Scores of predictions: UAR, WAR, F1, confusion; PCC, CCC and errors; mean over a clip's views.

All scores are fractions in 0..1 (or correlations in -1..1), never percent, and plain Python
numbers, so a result is ready for JSON. scikit-learn computes them; the correlations, which it
lacks, are here.

Scoring a list of clips: forward passes, averaged views, gathered ranks, written results.
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn import metrics as sk
from torch import nn

from hicmae.data.loader import SkippedClip, ViewBatch
from hicmae.data.splits import group_clips
from hicmae.io import write_whole
from hicmae.training import distributed
from hicmae.training.logs import Progress
from hicmae.training.run import Precision

logger = logging.getLogger(__name__)


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Count predictions by true class.

    Args:
        labels: (n,) true classes, in 0..K-1.
        predictions: (n,) predicted classes, in 0..K-1.
        num_classes: K.

    Returns:
        (K, K) int64; row = true class, column = predicted class.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != guess.shape:
        raise ValueError(
            f"labels and predictions must be two lists of one length, got shapes "
            f"{truth.shape} and {guess.shape}"
        )
    if truth.size == 0:
        raise ValueError("there are no predictions to score; the test list is empty")
    for name, values in (("label", truth), ("prediction", guess)):
        wrong = (values < 0) | (values >= num_classes) | (values != np.round(values))
        if wrong.any():
            raise ValueError(
                f"{name} {values[wrong][0]} is not a class of 0..{num_classes - 1}; "
                "check the list and --nb_classes"
            )
    return sk.confusion_matrix(truth.astype(int), guess.astype(int), labels=range(num_classes))


def classification_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, Any]:
    """Score a classifier; the class with the highest score wins, the lowest index among equals.

    Args:
        labels: (n,) true classes, in 0..K-1.
        scores: (n, K) one score per class, e.g. probabilities.

    Returns:
        The dictionary of `scores_from_confusion`.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != len(np.asarray(labels)):
        raise ValueError(
            f"scores must be (clips, classes) with one row per label, got {values.shape} "
            f"for {len(np.asarray(labels))} labels"
        )
    _check_finite("scores", values)
    return scores_from_confusion(
        confusion_matrix(labels, values.argmax(1) if len(values) else [], values.shape[1])
    )


def scores_from_confusion(confusion: np.ndarray) -> dict[str, Any]:
    """Compute the classification scores from (K, K) counts, row = true class.

    Returns:
        `uar` mean recall over the classes that occur, `war` accuracy, `macro_f1` and `weighted_f1`
        over the classes that occur as label or prediction (scikit-learn's rule), `micro_f1`,
        `confusion` (K lists of K counts), `recall` (K values, None for an absent class), `count`.
    """
    truth, guess = np.nonzero(confusion)
    clips = {"y_true": truth, "y_pred": guess, "sample_weight": confusion[truth, guess]}
    recall = sk.recall_score(
        **clips, labels=range(len(confusion)), average=None, zero_division=np.nan
    )
    return {
        "uar": float(np.nanmean(recall)),
        "war": float(sk.accuracy_score(**clips)),
        **{
            f"{average}_f1": float(sk.f1_score(**clips, average=average, zero_division=0.0))
            for average in ("weighted", "macro", "micro")
        },
        "confusion": confusion.tolist(),
        "recall": [None if np.isnan(value) else float(value) for value in recall],
        "count": int(confusion.sum()),
    }


def regression_metrics(target: ArrayLike, prediction: ArrayLike) -> dict[str, Any]:
    """Score a regression per output and on average over the outputs.

    A correlation with a side that does not vary is undefined and counted as 0. Moments of `ccc`
    are unbiased (n - 1), as in the original's evaluation; its loss uses biased ones.

    Args:
        target: (n, K) true values; an accuracy of 1 - MAE has a meaning for values in 0..1.
        prediction: (n, K) predicted values.

    Returns:
        `acc` (1 - MAE), `mae`, `mse`, `rmse`, `pcc`, `ccc`: each {"mean": float, "per_output":
        [K floats]}; and `count`.
    """
    truth = np.asarray(target, dtype=np.float64)
    guess = np.asarray(prediction, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ValueError(
            f"targets and predictions must both be (clips, outputs), got {truth.shape} "
            f"and {guess.shape}"
        )
    if truth.shape[0] == 0:
        raise ValueError("there are no predictions to score; the test list is empty")
    _check_finite("targets", truth)
    _check_finite("predictions", guess)
    mae = sk.mean_absolute_error(truth, guess, multioutput="raw_values")
    mse = sk.mean_squared_error(truth, guess, multioutput="raw_values")
    pcc, ccc = _correlations(truth, guess)
    named = {"acc": 1 - mae, "mae": mae, "mse": mse, "rmse": np.sqrt(mse), "pcc": pcc, "ccc": ccc}
    result: dict[str, Any] = {
        name: {"mean": float(values.mean()), "per_output": values.tolist()}
        for name, values in named.items()
    }
    return result | {"count": int(truth.shape[0])}


def _correlations(truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pearson's and the concordance correlation per column of two (n, K) arrays."""
    if len(truth) < 2:
        return np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
    shift = truth.mean(0) - guess.mean(0)
    covariance = ((truth - truth.mean(0)) * (guess - guess.mean(0))).sum(0) / (len(truth) - 1)
    spread, spread_guess = truth.var(0, ddof=1), guess.var(0, ddof=1)
    # Rounding leaves a variance of about eps^2 in a constant column; treat that as no spread.
    varies = (np.ptp(truth, axis=0) > 0) & (np.ptp(guess, axis=0) > 0)
    pcc = np.where(varies, covariance, 0.0) / np.where(varies, np.sqrt(spread * spread_guess), 1.0)
    ccc = np.where(varies, 2.0 * covariance, 0.0) / np.where(
        varies, spread + spread_guess + shift**2, 1.0
    )
    return np.clip(pcc, -1.0, 1.0), ccc


def average_views(scores: ArrayLike, view_clip: ArrayLike, num_clips: int) -> np.ndarray:
    """Average the scores of each clip's views.

    Args:
        scores: (views, K) probabilities or regression outputs.
        view_clip: (views,) index of each view's clip, in 0..num_clips-1, in any order.
        num_clips: number of clips; each must have at least one view.

    Returns:
        (num_clips, K) float64.
    """
    values = np.asarray(scores, dtype=np.float64)
    clip = np.asarray(view_clip, dtype=np.int64)
    if values.ndim != 2 or clip.shape != values.shape[:1]:
        raise ValueError(
            f"scores must be (views, K) with one clip index per view, got {values.shape} "
            f"and {clip.shape}"
        )
    if clip.size and not 0 <= clip.min() <= clip.max() < num_clips:
        raise ValueError(f"view_clip must be in 0..{num_clips - 1}, got {clip.min()}..{clip.max()}")
    counts = np.bincount(clip, minlength=num_clips)
    if (counts == 0).any():
        missing = np.flatnonzero(counts == 0)
        raise ValueError(f"{missing.size} of {num_clips} clips have no view, first: {missing[0]}")
    total = np.zeros((num_clips, values.shape[1]))
    np.add.at(total, clip, values)
    return total / counts[:, None]


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        rows = np.flatnonzero(bad.any(axis=tuple(range(1, values.ndim))))
        raise ValueError(
            f"{name} hold {int(bad.sum())} values that are not finite, first in row {rows[0]}; "
            "the model has diverged or the list holds nan"
        )


Row = tuple[int, str, np.ndarray, np.ndarray]  # list index, name, target, scores


class Batches(Protocol):
    """Something to iterate over whose number of batches is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ViewBatch]: ...


class Predictions(NamedTuple):
    """Scores of every clip of a list, each once, in list order."""

    names: list[str]
    targets: np.ndarray  # (n,) class indices or (n, K) regression targets
    scores: np.ndarray  # (n, K) probabilities or regression outputs, averaged over views
    skipped: list[SkippedClip]  # clips that could not be read, when that is allowed; by name


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: Batches,
    precision: Precision,
    task: str,
    description: str,
    *,
    clip_by_clip: bool = False,
    shared: bool = True,
) -> Predictions:
    """Score the clips of this rank's loader and gather those of all ranks.

    Args:
        model: not wrapped by DistributedDataParallel (ranks may hold different numbers of clips).
        loader: yields `ViewBatch`es: views, the clip each belongs to, the clips' list indices.
        precision: of the forward pass; scores are averaged in float64.
        task: "classification" (softmax of each view) or "regression".
        description: shown with the progress.
        clip_by_clip: one forward pass for each clip. Matrix products round differently in batches
            of another size; this way scores depend neither on the batch size nor on the processes.
        shared: each rank has a part of the list; otherwise each has all of it.
    """
    model.eval()
    rows: list[Row] = []
    skipped: list[SkippedClip] = []
    progress = Progress(len(loader), description, every=50)
    for batch in loader:
        skipped += batch.skipped
        for part in _clips(batch) if clip_by_clip else (batch,):
            rows += _scored(model, part, precision, task)
        progress.update()
    progress.close()
    if shared:
        rows, skipped = distributed.gather_objects(rows), distributed.gather_objects(skipped)
    return _join(rows, skipped)


def _clips(batch: ViewBatch) -> Iterator[ViewBatch]:
    """Split a batch into one for each clip."""
    for place, name in enumerate(batch.names):
        views, clip = batch.view_clip == place, slice(place, place + 1)
        yield ViewBatch(
            None if batch.video is None else batch.video[views],
            None if batch.audio is None else batch.audio[views],
            batch.view_clip[views] - place,
            batch.clip_index[clip],
            batch.target[clip],
            (name,),
            (),
        )


def _scored(model: nn.Module, batch: ViewBatch, precision: Precision, task: str) -> list[Row]:
    """Return the mean scores of the batch's clips."""
    if not batch.names:
        return []
    batch = batch.to(precision.device)
    with precision.autocast():
        scores = model(batch.video, batch.audio).float()
    if task == "classification":
        scores = scores.softmax(dim=-1)
    views = scores.double().cpu().numpy()
    means = average_views(views, batch.view_clip.cpu().numpy(), len(batch.names))
    targets = batch.target.cpu().numpy()
    return list(zip(batch.clip_index.tolist(), batch.names, targets, means, strict=True))


def _join(rows: Iterable[Row], skipped: Sequence[SkippedClip]) -> Predictions:
    """Sort by list index and keep each clip once."""
    unique = {row[0]: row for row in rows}
    if not unique:
        raise RuntimeError(
            f"no clip of the list could be read ({len(skipped)} skipped); nothing can be scored"
        )
    _, names, targets, scores = zip(*(unique[index] for index in sorted(unique)), strict=True)
    return Predictions(list(names), np.asarray(targets), np.stack(scores), sorted(skipped))


def average_clips(predictions: Predictions, fields: int) -> Predictions:
    """Average the scores of clips whose names share the first `fields` "_" fields: one item.

    Raises:
        ValueError: clips of an item have different labels.
    """
    items = group_clips(predictions.names, list(predictions.targets), fields)
    first = [members[0] for members in items.values()]
    means = [predictions.scores[members].mean(axis=0) for members in items.values()]
    return Predictions(
        list(items), predictions.targets[first], np.stack(means), predictions.skipped
    )


def score(predictions: Predictions, task: str) -> dict[str, Any]:
    """Return the task's metrics, the number of clips, and the clips left out."""
    if task == "classification":
        metrics = classification_metrics(predictions.targets, predictions.scores)
    else:
        metrics = regression_metrics(predictions.targets, predictions.scores)
    metrics["clips"] = len(predictions.names)
    metrics["skipped"] = [f"{clip.video}: {clip.reason}" for clip in predictions.skipped]
    return metrics


def headline(metrics: dict[str, Any], name: str) -> float:
    """Return one metric as a number; of a regression metric the mean over outputs."""
    value = metrics[name]
    return float(value["mean"] if isinstance(value, dict) else value)


def write_predictions(path: Path, predictions: Predictions, task: str) -> None:
    """Write one line a clip: name, label, prediction, then the probabilities (or all outputs).

    Names may hold bytes that are not UTF-8; they are written as they are.
    """
    outputs = range(predictions.scores.shape[1])
    if task == "classification":
        header = ["clip", "label", "prediction", *(f"p{k}" for k in outputs)]
    else:
        header = ["clip", *(f"label{k}" for k in outputs), *(f"prediction{k}" for k in outputs)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for name, target, scores in zip(
        predictions.names, predictions.targets, predictions.scores, strict=True
    ):
        shown = [f"{value:.6f}" for value in scores]
        if task == "classification":
            writer.writerow([name, int(target), int(scores.argmax()), *shown])
        else:
            writer.writerow([name, *(f"{value:g}" for value in target), *shown])
    write_whole(path, text.getvalue())


def write_results(
    output_dir: Path, suffix: str, predictions: Predictions, metrics: dict[str, Any], task: str
) -> None:
    """Write `pred<suffix>.csv` and `metrics<suffix>.json` into the output folder."""
    write_predictions(output_dir / f"pred{suffix}.csv", predictions, task)
    write_whole(output_dir / f"metrics{suffix}.json", json.dumps(metrics, indent=2) + "\n")


def summary(metrics: dict[str, Any], names: Sequence[str]) -> str:
    """Return the named metrics as one readable line."""
    return ", ".join(f"{name} {headline(metrics, name):.4f}" for name in names)
