"""Confusion matrices: pooled over folds, and small ones for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hicmae.data.clip_list import chosen_names
from hicmae.inference.style import figure_to_image
from hicmae.report.page import confusion_figure
from hicmae.report.scores import KINDS, pool, read_predictions


def confusion_image(metrics: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix among the metrics of a classifier, (H, W, 3) uint8."""
    title = f"UAR {metrics['uar']:.1%}, WAR {metrics['war']:.1%}"
    return figure_to_image(confusion_figure(metrics["confusion"], names, title, small=True))


def confusion(pred_files: Sequence[str | Path], class_names: Sequence[str] = ()) -> Figure:
    """Draw the confusion matrix of all given prediction files, or those of runs, together."""
    paths = [p / KINDS["last"] if p.is_dir() else p for p in map(Path, pred_files)]
    pooled = pool({str(path): read_predictions(path) for path in paths})
    if pooled.is_regression:
        raise ValueError(f"'{paths[0]}' is of a regression; it has no confusion matrix")
    scores = pooled.scores()
    names = [str(k) for k in range(pooled.num_outputs)]
    if class_names:
        names = list(chosen_names(class_names, pooled.num_outputs))
    title = f"{len(pooled.clips)} clips, UAR {scores['uar']:.2%}, WAR {scores['war']:.2%}"
    return confusion_figure(scores["confusion"], names, title)
