"""Scoring a list of clips: forward passes, averaged views, gathered ranks, written results."""

import csv
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hicmae.training import distributed
from hicmae.training.logger import Progress
from hicmae.training.metrics import average_views, classification_metrics, regression_metrics
from hicmae.training.precision import Precision

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """Scores of every clip of a list, each once, in list order."""

    names: list[str]
    targets: np.ndarray  # (n,) class indices or (n, K) regression targets
    scores: np.ndarray  # (n, K) probabilities or regression outputs, averaged over views
    skipped: list[Any]  # clips that could not be read, when that is allowed


@torch.inference_mode()
def predict(
    model: nn.Module, loader: Iterable, precision: Precision, task: str, description: str
) -> Predictions:
    """Score the clips of this rank's loader and gather those of all ranks.

    Args:
        model: not wrapped by DistributedDataParallel (ranks may hold different numbers of clips).
        loader: yields `ViewBatch`es: views, the clip each belongs to, the clips' list indices.
        precision: of the forward pass; scores are averaged in float64.
        task: "classification" (softmax of each view) or "regression".
        description: shown with the progress.
    """
    model.eval()
    rows: list[tuple[int, str, np.ndarray, np.ndarray]] = []
    skipped: list[Any] = []
    progress = Progress(len(loader), description, every=50)  # type: ignore[arg-type]
    for batch in loader:
        skipped += batch.skipped
        if batch.names:
            batch = batch.to(precision.device)
            with precision.autocast():
                scores = model(batch.video, batch.audio).float()
            if task == "classification":
                scores = scores.softmax(dim=-1)
            views = scores.double().cpu().numpy()
            means = average_views(views, batch.view_clip.cpu().numpy(), len(batch.names))
            targets = batch.target.cpu().numpy()
            rows += zip(batch.clip_index.tolist(), batch.names, targets, means, strict=True)
        progress.update()
    progress.close()
    return _join(distributed.gather_objects(rows), distributed.gather_objects(skipped))


def _join(rows: list[tuple[int, str, Any, np.ndarray]], skipped: list[Any]) -> Predictions:
    """Sort by list index and keep each clip once."""
    unique = {row[0]: row for row in rows}
    if not unique:
        raise RuntimeError(
            f"no clip of the list could be read ({len(skipped)} skipped); nothing can be scored"
        )
    _, names, targets, scores = zip(*(unique[index] for index in sorted(unique)), strict=True)
    return Predictions(list(names), np.asarray(targets), np.stack(scores), skipped)


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
    """Write one line a clip: name, label, prediction, then the probabilities (or all outputs)."""
    outputs = range(predictions.scores.shape[1])
    if task == "classification":
        header = ["clip", "label", "prediction", *(f"p{k}" for k in outputs)]
    else:
        header = ["clip", *(f"label{k}" for k in outputs), *(f"prediction{k}" for k in outputs)]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        rows = zip(predictions.names, predictions.targets, predictions.scores, strict=True)
        for name, target, scores in rows:
            shown = [f"{value:.6f}" for value in scores]
            if task == "classification":
                writer.writerow([name, int(target), int(scores.argmax()), *shown])
            else:
                writer.writerow([name, *(f"{value:g}" for value in target), *shown])
    temporary.replace(path)


def write_results(
    output_dir: Path, suffix: str, predictions: Predictions, metrics: dict[str, Any], task: str
) -> None:
    """Write `pred<suffix>.csv` and `metrics<suffix>.json` into the output folder."""
    write_predictions(output_dir / f"pred{suffix}.csv", predictions, task)
    path = output_dir / f"metrics{suffix}.json"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def summary(metrics: dict[str, Any], names: Sequence[str]) -> str:
    """Return the named metrics as one readable line."""
    return ", ".join(f"{name} {headline(metrics, name):.4f}" for name in names)
