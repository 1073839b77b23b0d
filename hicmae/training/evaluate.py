"""Scores of predictions, and the scoring of a list: forward passes, averaged views, result files.

All scores are fractions in 0..1 (or correlations in -1..1), never percent.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import nn
from torch.utils.data import DataLoader

from hicmae.data.batches import SkippedClip, ViewBatch
from hicmae.data.loader import epoch_batches
from hicmae.data.splits import group_clips
from hicmae.io import write_whole
from hicmae.training import distributed
from hicmae.training.logs import Progress
from hicmae.training.run import Precision

Scores = dict[str, np.ndarray]
SHOWN = ("uar", "war", "weighted_f1", "pcc", "ccc", "rmse")  # metrics worth a line


def class_scores(support: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> Scores:
    """Score a classifier by its counts of each class, (..., K); leading axes are e.g. resamples.

    `support` counts the clips of a class, `predicted` those taken for it, `hits` those of both.
    Returns `uar`, the mean recall over classes that occur, `war`, accuracy, and `weighted_f1`,
    `macro_f1`, `micro_f1` over classes that occur as label or prediction, (...) each; `recall`
    (..., K), nan where a class does not occur.
    """
    total = support.sum(-1)
    seen = (support + predicted).any(axis=tuple(range(support.ndim - 1)))
    recall, f1 = _ratio(hits, support), _ratio(2.0 * hits, support + predicted)[..., seen]
    war = hits.sum(-1) / total
    weighted_f1 = (np.nan_to_num(f1) * support[..., seen]).sum(-1) / total
    f1s = {"weighted_f1": weighted_f1, "macro_f1": np.nanmean(f1, axis=-1), "micro_f1": war}
    return {"uar": np.nanmean(recall, axis=-1), "war": war, **f1s, "recall": recall}


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

    Variances and covariance are unbiased (n - 1) as in the original's evaluation; `shift` is the
    difference of the means. Returns `acc` (1 - MAE, for targets in 0..1), `mae`, `mse`, `rmse`, and
    Pearson's and the concordance correlation, `pcc` and `ccc`, 0 where a side does not vary.
    """
    varies = (variance > 0) & (variance_predicted > 0)
    pcc = _ratio(covariance, np.where(varies, np.sqrt(variance * variance_predicted), 0.0))
    spread = variance + variance_predicted + shift**2
    ccc = _ratio(2.0 * covariance, np.where(varies, spread, 0.0))
    errors = {"acc": 1 - mae, "mae": mae, "mse": mse, "rmse": np.sqrt(mse)}
    return {**errors, "pcc": np.clip(np.nan_to_num(pcc), -1.0, 1.0), "ccc": np.nan_to_num(ccc)}


def classification_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, Any]:
    """Score labels, (n,) in 0..K-1, by (n, K) scores: the highest wins, the first among equals.

    Returns `class_scores` as plain numbers, a recall None where the class does not occur,
    `confusion` (K lists of K counts, row = true class), and `count`.
    """
    truth, values = np.asarray(labels), _checked("scores", scores)
    num_classes = values.shape[1]
    if len(wrong := truth[~np.isin(truth, range(num_classes))]):
        raise ValueError(
            f"label {wrong[0]} is no class of 0..{num_classes - 1}; check the list and --nb_classes"
        )
    pairs = truth.astype(int) * num_classes + values.argmax(1)
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    found = class_scores(confusion.sum(1), confusion.sum(0), confusion.diagonal())
    recall = [None if np.isnan(value) else float(value) for value in found.pop("recall")]
    plain = {name: float(value) for name, value in found.items()}
    return {**plain, "confusion": confusion.tolist(), "recall": recall, "count": len(truth)}


def regression_metrics(target: ArrayLike, prediction: ArrayLike) -> dict[str, Any]:
    """Score a regression, (n, K) values each.

    Returns each score of `number_scores` as {"mean": float, "per_output": [K floats]}; and `count`.
    """
    truth, guess = _checked("targets", target), _checked("predictions", prediction)
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
    named = {n: {"mean": float(v.mean()), "per_output": v.tolist()} for n, v in scores.items()}
    return {**named, "count": len(truth)}


def _checked(name: str, values: ArrayLike) -> np.ndarray:
    """Return values, (n, K), as float64; refuse none at all and such as are not finite."""
    table = np.asarray(values, dtype=np.float64)
    if len(table) == 0:
        raise ValueError("there are no predictions to score; the test list is empty")
    if len(bad := np.flatnonzero(~np.isfinite(table).all(axis=1))):
        raise ValueError(
            f"{name} of {len(bad)} clip(s) are not finite, first in row {bad[0]}; the model has "
            "diverged or the list holds nan"
        )
    return table


def average_views(scores: np.ndarray, view_clip: np.ndarray, num_clips: int) -> np.ndarray:
    """Average scores (views, K) by clip, `view_clip` (views,) in any order, to (num_clips, K)."""
    total = np.zeros((num_clips, scores.shape[1]))
    np.add.at(total, view_clip, scores)
    return total / np.bincount(view_clip, minlength=num_clips)[:, None]


class Predictions(NamedTuple):
    """Scores of every clip of a list, each once, in list order."""

    names: list[str]
    targets: np.ndarray  # (n,) class indices or (n, K) regression targets
    scores: np.ndarray  # (n, K) probabilities or regression outputs, averaged over views
    skipped: list[SkippedClip]  # clips that could not be read, when that is allowed; by name


def in_turns(loader: DataLoader[Any], before_each: Callable[[], None]) -> Iterator[Any]:
    """Yield batches in list order, equally many turns on each rank; `before_each` may raise."""
    (turns,) = distributed.highest([len(loader)])
    batches = epoch_batches(loader, epoch=0)
    for _ in range(turns):
        before_each()
        yield from itertools.islice(batches, 1)


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: Sequence[ViewBatch] | DataLoader[Any],
    precision: Precision,
    description: str,
    *,
    before_each: Callable[[], None] = lambda: None,
    clip_by_clip: bool = False,
) -> Predictions:
    """Score the clips of this rank's loader and gather those of all ranks.

    The model is not wrapped by DistributedDataParallel, as ranks may hold unequally many clips.
    Where targets are classes the softmax of each view is averaged, in float64. `clip_by_clip` makes
    a pass for each clip, so that scores depend neither on the batch size, with which products
    round, nor on the processes.
    """
    model.eval()
    rows: list[tuple[int, str, np.ndarray, np.ndarray]] = []  # list index, name, target, scores
    skipped: list[SkippedClip] = []
    batches = in_turns(loader, before_each) if isinstance(loader, DataLoader) else loader
    with Progress(len(loader), description, every=50) as progress:
        for batch in batches:
            skipped += batch.skipped
            if batch.names:
                means = _scores(model, batch.to(precision.device), precision, clip_by_clip)
                targets = batch.target.numpy()
                rows += zip(batch.clip_index.tolist(), batch.names, targets, means, strict=True)
            progress.update()
    rows, skipped = distributed.gather_objects(rows), distributed.gather_objects(skipped)
    if not rows:
        raise RuntimeError(
            f"no clip of the list could be read ({len(skipped)} skipped); nothing can be scored"
        )
    unique = {row[0]: row for row in rows}  # ranks may share a clip
    _, names, targets, scores = zip(*(unique[index] for index in sorted(unique)), strict=True)
    return Predictions(list(names), np.asarray(targets), np.stack(scores), sorted(skipped))


def _scores(model: nn.Module, batch: ViewBatch, precision: Precision, each: bool) -> np.ndarray:
    """Return the mean scores of the batch's clips, (B, K)."""
    count, clip = len(batch.names), batch.view_clip
    scores, owners = [], []
    for part in [clip == k for k in range(count)] if each else [slice(None)]:
        video, audio = (None if x is None else x[part] for x in (batch.video, batch.audio))
        with precision.autocast():
            values = model(video, audio).float()
        scores.append(values.softmax(dim=-1) if batch.target.ndim == 1 else values)
        owners.append(clip[part])
    views = torch.cat(scores).cpu().double().numpy()  # an Apple GPU knows no float64
    return average_views(views, torch.cat(owners).cpu().numpy(), count)


def average_clips(predictions: Predictions, fields: int) -> Predictions:
    """Average the scores of the clips of an item: their names share the first `fields` "_" fields.

    ValueError: clips of an item have different labels.
    """
    items = group_clips(predictions.names, list(predictions.targets), fields)
    targets = predictions.targets[[members[0] for members in items.values()]]
    means = [predictions.scores[members].mean(axis=0) for members in items.values()]
    return Predictions(list(items), targets, np.stack(means), predictions.skipped)


def score(predictions: Predictions) -> dict[str, Any]:
    """Return the metrics of classes or numbers, the number of clips, and the clips left out."""
    metrics_of = classification_metrics if predictions.targets.ndim == 1 else regression_metrics
    metrics = metrics_of(predictions.targets, predictions.scores)
    skipped = [f"{clip.video}: {clip.reason}" for clip in predictions.skipped]
    return metrics | {"clips": len(predictions.names), "skipped": skipped}


def fit_temperature(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the temperature, 0.05 to 20, that makes the `nll` of probabilities (n, K) least.

    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    truth, values = np.asarray(labels), _checked("scores", scores)
    found = minimize_scalar(  # over the logarithm
        lambda x: _nll(truth, tempered(values, np.exp(x))), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(found.x))


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities (n, K) that logits divided by a temperature have; order stays."""
    return softmax(np.log(scores.clip(1e-12)) / temperature, axis=1)


def calibration(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> dict[str, float]:
    """Say how far probabilities (n, K) can be believed.

    Returns `ece`, the expected calibration error over `bins` of equal width, weighted by clips, and
    `nll`, the mean negative log-likelihood of the true classes in nats.
    """
    truth, values = np.asarray(labels), _checked("scores", scores)
    place = np.minimum((values.max(1) * bins).astype(int), bins - 1)
    gaps = np.bincount(place, values.max(1) - (values.argmax(1) == truth), bins)
    return {"ece": float(np.abs(gaps).sum() / len(truth)), "nll": _nll(truth, values)}


def _nll(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(-np.log(scores[np.arange(len(labels)), labels].clip(1e-12)).mean())


def headlines(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are one number; of a regression the means over outputs."""
    means = {name: v.get("mean") if isinstance(v, dict) else v for name, v in metrics.items()}
    return {name: value for name, value in means.items() if isinstance(value, float)}


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the metrics that are worth a line as one."""
    found = headlines(metrics)
    return ", ".join(f"{name} {found[name]:.4f}" for name in SHOWN if name in found)


def free_suffix(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return an ending for result files that replaces none of another test or of a training run.

    `facts` are the `checkpoint` and the `list`, which the metrics of such a test tell.
    """
    kinds = facts["checkpoint"], os.path.dirname(facts["list"])
    name = "_eval-" + "-".join(Path(kind).stem.removeprefix("checkpoint-") for kind in kinds)
    first = [] if (folder / "log.txt").exists() else [""]
    for suffix in itertools.chain(first, [name], (f"{name}-{k}" for k in itertools.count(2))):
        known = folder / f"metrics{suffix}.json"
        if not known.exists() or facts.items() <= json.loads(known.read_text()).items():
            break
    return suffix


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write one line a clip: name, label, prediction, then the probabilities (or all outputs).

    Names may hold bytes that are not UTF-8; they are written as they are.
    """
    names, targets, scores, _ = predictions
    table = pd.DataFrame({"clip": np.array(names, dtype=object)}, dtype=object)
    if classes := targets.ndim == 1:
        table["label"], table["prediction"] = targets, scores.argmax(axis=1)
    for k, values in enumerate(() if classes else targets.T):
        table[f"label{k}"] = [f"{value:g}" for value in values]
    for k, values in enumerate(scores.T):
        table[f"{'p' if classes else 'prediction'}{k}"] = values
    write_whole(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\r\n"))


def write_results(
    output_dir: Path, suffix: str, predictions: Predictions, metrics: Mapping[str, Any]
) -> None:
    """Write `pred<suffix>.csv` and `metrics<suffix>.json` into the output folder."""
    write_predictions(output_dir / f"pred{suffix}.csv", predictions)
    write_whole(output_dir / f"metrics{suffix}.json", json.dumps(metrics, indent=2) + "\n")
