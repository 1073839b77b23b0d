"""Scores of a fine-tuning run in TensorBoard: classes after each epoch, tests at the end."""

from collections.abc import Sequence
from typing import Any

from hicmae.training import distributed
from hicmae.training.checkpoint import Saver
from hicmae.training.evaluate import headline
from hicmae.training.logs import RunLogger
from hicmae.training.loop import show_end
from hicmae.training.run import Session
from hicmae.training.supervised import FinetuneConfigs, shown_metrics

Metrics = dict[str, Any]


def show_classes(
    run_logger: RunLogger, step: int, metrics: Metrics, names: Sequence[str], picture: bool
) -> None:
    """Show recalls and confusion of the classes; a regression has none.

    Args:
        run_logger: of the run; only rank 0 draws.
        step: last one of the epoch.
        metrics: of the validation clips.
        names: of the classes.
        picture: whether to draw the confusion matrix.
    """
    if "confusion" not in metrics or not distributed.is_main():
        return
    recalls = {name: r for name, r in zip(names, metrics["recall"], strict=True) if r is not None}
    run_logger.scalars(step, recalls, prefix="val_recall")
    if picture:
        # Imported where it is used: the other ranks need no matplotlib.
        from hicmae.visualize.confusion import confusion_image

        run_logger.image("val/confusion", confusion_image(metrics, names), step)


def show_results(
    session: Session,
    configs: FinetuneConfigs,
    saver: Saver,
    tested: dict[str, Metrics],
    names: Sequence[str],
) -> None:
    """Show what the tests gave, beside the settings that led there.

    Args:
        session: of this process; only rank 0 writes.
        configs: of the run.
        saver: of the run; knows the best epoch.
        tested: metrics by "last" and "best".
        names: of the classes.
    """
    if not distributed.is_main():
        return
    shown = shown_metrics(configs.classifier.task)
    final = {f"test_{n}/{name}": headline(m, name) for n, m in tested.items() for name in shown}
    if saver.best["value"] is not None:
        final[f"val_best/{configs.score.val_metric}"] = saver.best["value"]
    images = {}
    if configs.run.image_freq and configs.classifier.task == "classification":
        from hicmae.visualize.confusion import confusion_image

        images = {f"test_{n}/confusion": confusion_image(m, names) for n, m in tested.items()}
    show_end(session, saver, final, images)
