"""Scores of predictions, and the scoring of a list: forward passes, averaged views, result files.

All scores are fractions in 0..1 (or correlations in -1..1), never percent.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import nn

from hicmae.data.batches import SkippedClip, ViewBatch
from hicmae.data.splits import group_clips
from hicmae.io import write_whole
from hicmae.training import distributed
from hicmae.training.logs import Progress, RunLogger
from hicmae.training.run import Precision

Scores = dict[str, np.ndarray]


def class_scores(support: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> Scores:
    """Score a classifier by its counts of each class; leading axes are e.g. resamples.

    Args:
        support: (..., K) clips of each class.
        predicted: (..., K) clips that were taken for it.
        hits: (..., K) clips of it that were taken for it.

    Returns:
        `uar` mean recall over the classes that occur, `war` accuracy, and `weighted_f1`,
        `macro_f1`, `micro_f1` over the classes that occur as label or prediction, (...) each;
        `recall` (..., K), nan where a class does not occur.
    """
    total = support.sum(-1)
    seen = (support + predicted).any(axis=tuple(range(support.ndim - 1)))
    recall, f1 = _ratio(hits, support), _ratio(2.0 * hits, support + predicted)[..., seen]
    war = hits.sum(-1) / total
    return {
        "uar": np.nanmean(recall, axis=-1),
        "war": war,
        "weighted_f1": (np.nan_to_num(f1) * support[..., seen]).sum(-1) / total,
        "macro_f1": np.nanmean(f1, axis=-1),
        "micro_f1": war,
        "recall": recall,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, nan where the denominator is 0."""
    known = denominator > 0
    return np.where(known, numerator, np.nan) / np.where(known, denominator, 1.0)


def number_scores(
    variance: np.ndarray,
    variance_predicted: np.ndarray,
    covariance: np.ndarray,
    shift: np.ndarray,
    mae: np.ndarray,
    mse: np.ndarray,
) -> Scores:
    """Score a regression by its moments over clips, of any shape; e.g. (resamples, K).

    A correlation with a side that does not vary is undefined and counts as 0.

    Args:
        variance: of the targets, unbiased (n - 1) as in the original's evaluation.
        variance_predicted: of the predictions.
        covariance: of both.
        shift: difference of the means.
        mae: mean absolute error.
        mse: mean squared error.

    Returns:
        `acc` (1 - MAE, which has a meaning for targets in 0..1), `mae`, `mse`, `rmse`, `pcc`
        (Pearson's correlation) and `ccc` (the concordance correlation).
    """
    varies = (variance > 0) & (variance_predicted > 0)
    pcc = _ratio(covariance, np.where(varies, np.sqrt(variance * variance_predicted), 0.0))
    spread = variance + variance_predicted + shift**2
    ccc = _ratio(2.0 * covariance, np.where(varies, spread, 0.0))
    return {
        "acc": 1 - mae,
        "mae": mae,
        "mse": mse,
        "rmse": np.sqrt(mse),
        "pcc": np.clip(np.nan_to_num(pcc), -1.0, 1.0),
        "ccc": np.nan_to_num(ccc),
    }


def classification_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, Any]:
    """Score a classifier; the class with the highest score wins, the lowest index among equals.

    Args:
        labels: (n,) true classes, in 0..K-1.
        scores: (n, K) one score per class, e.g. probabilities.

    Returns:
        The dictionary of `metrics_of_classes`.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise ValueError(
            f"scores must be (clips, classes) with one row per label, got {values.shape} for "
            f"labels {truth.shape}"
        )
    _check_scored("scores", values)
    return metrics_of_classes(truth, values.argmax(1), values.shape[1])


def metrics_of_classes(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> dict[str, Any]:
    """Score predicted classes.

    Args:
        labels: (n,) true classes, in 0..K-1.
        predictions: (n,) predicted classes.
        num_classes: K.

    Returns:
        The scores of `class_scores` as plain numbers (a recall of None: the class does not occur),
        `confusion` (K lists of K counts, row = true class), and `count`.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    for name, values in (("label", truth), ("prediction", guess)):
        wrong = ~np.isin(values, range(num_classes))
        if wrong.any():
            raise ValueError(
                f"{name} {values[wrong][0]} is not a class of 0..{num_classes - 1}; check the "
                "list and --nb_classes"
            )
    pairs = truth.astype(int) * num_classes + guess.astype(int)
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    scores = class_scores(confusion.sum(1), confusion.sum(0), confusion.diagonal())
    recall = scores.pop("recall")
    return {
        **{name: float(value) for name, value in scores.items()},
        "confusion": confusion.tolist(),
        "recall": [None if np.isnan(value) else float(value) for value in recall],
        "count": len(truth),
    }


def regression_metrics(target: ArrayLike, prediction: ArrayLike) -> dict[str, Any]:
    """Score a regression per output and on average over the outputs.

    Args:
        target: (n, K) true values.
        prediction: (n, K) predicted values.

    Returns:
        Each score of `number_scores` as {"mean": float, "per_output": [K floats]}; and `count`.
    """
    truth = np.asarray(target, dtype=np.float64)
    guess = np.asarray(prediction, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != guess.shape:
        raise ValueError(
            f"targets and predictions must both be (clips, outputs), got {truth.shape} "
            f"and {guess.shape}"
        )
    _check_scored("targets", truth)
    _check_scored("predictions", guess)
    # Rounding leaves a variance of about eps^2 in a constant column; take that as none.
    varies = (np.ptp(truth, axis=0) > 0) & (np.ptp(guess, axis=0) > 0)
    own, other = truth - truth.mean(0), guess - guess.mean(0)
    variance, variance_predicted, covariance = (
        np.where(varies, product.sum(0) / max(len(truth) - 1, 1), 0.0)
        for product in (own**2, other**2, own * other)
    )
    shift, error = truth.mean(0) - guess.mean(0), guess - truth
    mae, mse = np.abs(error).mean(0), (error**2).mean(0)
    scores = number_scores(variance, variance_predicted, covariance, shift, mae, mse)
    named = {
        name: {"mean": float(values.mean()), "per_output": values.tolist()}
        for name, values in scores.items()
    }
    return {**named, "count": len(truth)}


def _check_scored(name: str, values: np.ndarray) -> None:
    if len(values) == 0:
        raise ValueError("there are no predictions to score; the test list is empty")
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name} hold {bad.sum()} values that are not finite, first in row "
            f"{np.flatnonzero(bad.any(axis=1))[0]}; the model has diverged or the list holds nan"
        )


def average_views(scores: np.ndarray, view_clip: np.ndarray, num_clips: int) -> np.ndarray:
    """Average the scores of each clip's views.

    Args:
        scores: (views, K) float64.
        view_clip: (views,) which of the clips a view shows, in any order; each has at least one.
        num_clips: number of clips.

    Returns:
        (num_clips, K) float64.
    """
    total = np.zeros((num_clips, scores.shape[1]))
    np.add.at(total, view_clip, scores)
    return total / np.bincount(view_clip, minlength=num_clips)[:, None]


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
    with Progress(len(loader), description, every=50) as progress:
        for batch in loader:
            skipped += batch.skipped
            for part in _clips(batch) if clip_by_clip else (batch,):
                rows += _scored(model, part, precision, task)
            progress.update()
    if shared:
        rows, skipped = distributed.gather_objects(rows), distributed.gather_objects(skipped)
    if not rows:
        raise RuntimeError(
            f"no clip of the list could be read ({len(skipped)} skipped); nothing can be scored"
        )
    unique = {row[0]: row for row in rows}  # ranks may share a clip
    _, names, targets, scores = zip(*(unique[index] for index in sorted(unique)), strict=True)
    return Predictions(list(names), np.asarray(targets), np.stack(scores), sorted(skipped))


def _clips(batch: ViewBatch) -> Iterator[ViewBatch]:
    """Split a batch into one for each clip."""
    for index, name in enumerate(batch.names):
        views, clip = batch.view_clip == index, slice(index, index + 1)
        yield ViewBatch(
            None if batch.video is None else batch.video[views],
            None if batch.audio is None else batch.audio[views],
            batch.view_clip[views] - index,
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
    views, targets = scores.double().cpu().numpy(), batch.target.cpu().numpy()
    means = average_views(views, batch.view_clip.cpu().numpy(), len(batch.names))
    return list(zip(batch.clip_index.tolist(), batch.names, targets, means, strict=True))


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
    metrics_of = classification_metrics if task == "classification" else regression_metrics
    return {
        **metrics_of(predictions.targets, predictions.scores),
        "clips": len(predictions.names),
        "skipped": [f"{clip.video}: {clip.reason}" for clip in predictions.skipped],
    }


def shown_metrics(task: str) -> tuple[str, ...]:
    """Name the metrics worth a line."""
    return ("uar", "war", "weighted_f1") if task == "classification" else ("pcc", "ccc", "rmse")


def headline(metrics: dict[str, Any], name: str) -> float:
    """Return one metric as a number; of a regression metric the mean over outputs."""
    value = metrics[name]
    return float(value["mean"] if isinstance(value, dict) else value)


def summary(metrics: dict[str, Any], names: Sequence[str]) -> str:
    """Return the named metrics as one readable line."""
    return ", ".join(f"{name} {headline(metrics, name):.4f}" for name in names)


def write_predictions(path: Path, predictions: Predictions, task: str) -> None:
    """Write one line a clip: name, label, prediction, then the probabilities (or all outputs).

    Names may hold bytes that are not UTF-8; they are written as they are.
    """
    names, targets, scores, _ = predictions
    table = pd.DataFrame({"clip": np.array(names, dtype=object)}, dtype=object)
    if task == "classification":
        table["label"], table["prediction"], column = targets, scores.argmax(axis=1), "p"
    else:
        column = "prediction"
        for k, values in enumerate(targets.T):
            table[f"label{k}"] = [f"{value:g}" for value in values]
    for k, values in enumerate(scores.T):
        table[f"{column}{k}"] = values
    write_whole(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\r\n"))


def write_results(
    output_dir: Path, suffix: str, predictions: Predictions, metrics: dict[str, Any], task: str
) -> None:
    """Write `pred<suffix>.csv` and `metrics<suffix>.json` into the output folder."""
    write_predictions(output_dir / f"pred{suffix}.csv", predictions, task)
    write_whole(output_dir / f"metrics{suffix}.json", json.dumps(metrics, indent=2) + "\n")


Draw = Callable[[dict[str, Any], Sequence[str]], np.ndarray]  # metrics, class names -> picture


def show_classes(
    run_logger: RunLogger,
    step: int,
    metrics: dict[str, Any],
    names: Sequence[str],
    draw: Draw | None = None,
) -> None:
    """Show recalls and confusion of the classes in TensorBoard; a regression has none.

    Args:
        run_logger: of the run.
        step: last one of the epoch.
        metrics: of the validation clips.
        names: of the classes.
        draw: draws the confusion matrix, (H, W, 3) uint8; None: no picture.
    """
    if "confusion" not in metrics or not run_logger.main:
        return
    recalls = {name: r for name, r in zip(names, metrics["recall"], strict=True) if r is not None}
    run_logger.scalars(step, recalls, prefix="val_recall")
    if draw is not None:
        run_logger.image("val/confusion", draw(metrics, names), step)
