"""Scoring a list of clips: forward passes, averaged views, gathered ranks, written results."""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from hicmae.data.loading import SkippedClip, ViewBatch
from hicmae.training import distributed
from hicmae.training.items import group_clips
from hicmae.training.logger import Progress
from hicmae.training.metrics import average_views, classification_metrics, regression_metrics
from hicmae.training.output import write_whole
from hicmae.training.precision import Precision

logger = logging.getLogger(__name__)

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
