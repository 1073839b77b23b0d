"""Fine-tune and test HiCMAE on labelled clips.

``python run_finetuning.py --data_path FOLDER --nb_classes K --finetune FILE --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_finetuning.py ...``; ``--help`` lists every flag.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hicmae.config import (
    LOWER_IS_BETTER,
    OptimConfig,
    add_arguments,
    as_dict,
    complete,
    new_parser,
    parse_configs,
)
from hicmae.inference.export import export_run
from hicmae.training import checkpoint, distributed
from hicmae.training.checkpoint import Saver, describe_clips, find_checkpoint, prepare
from hicmae.training.evaluate import headline, show_classes, shown_metrics, summary
from hicmae.training.logs import RunLogger
from hicmae.training.loop import Watched, show_end, train_epochs
from hicmae.training.optim import freeze
from hicmae.training.run import (
    Session,
    make_optimization,
    num_parameters,
    open_session,
    run_command,
    run_shape,
    training_loader,
    write_settings,
)
from hicmae.training.supervised import (
    FinetuneConfigs,
    Lists,
    evaluate,
    label_names,
    make_loss,
    make_model,
    read_list,
    read_lists,
    record_lists,
    scoring_loader,
    training_clips,
)

logger = logging.getLogger("hicmae")

DEFAULTS = {"batch_size": 14, "epochs": 50, "lr": 1e-3, "min_lr": 1e-6, "opt_betas": (0.9, 0.999)}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    parser = new_parser(__doc__)
    for config in FinetuneConfigs.__annotations__.values():
        add_arguments(parser, config, **(DEFAULTS if config is OptimConfig else {}))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and test; `argv` replaces the command line."""
    parser = build_parser()
    configs = parse_configs(parser, FinetuneConfigs, argv)
    try:
        score, augment = complete(configs.classifier, configs.score, configs.augment)
    except ValueError as error:
        parser.error(str(error))
    configs = configs._replace(score=score, augment=augment)
    with open_session(configs.run, as_dict(configs), trains=not score.eval) as session:
        if score.eval:
            test_only(session, configs)
        else:
            finetune(session, configs)


def finetune(session: Session, configs: FinetuneConfigs) -> None:
    """Train, keep the epoch that validates best, then test the last and the best epoch."""
    optim, classifier = configs.optim, configs.classifier
    lists = read_lists(configs)
    loader = training_loader(session, training_clips(configs, lists.train), optim.batch_size)
    val_loader = scoring_loader(session, configs, lists.val, centre=True)
    shape = run_shape(loader, optim, described(configs, lists))
    found = find_checkpoint(session)

    torch.manual_seed(configs.run.seed)
    model = make_model(configs).to(session.device)
    logger.info("%s: %.2f M parameters", classifier.model, num_parameters(model) / 1e6)
    if classifier.finetune and found is None:
        checkpoint.load_pretrained(
            model, classifier.finetune, allow_partial=classifier.allow_partial
        )
    elif not classifier.finetune and (classifier.linear_probe or classifier.freeze_layers):
        logger.warning("what is frozen keeps its random start: no --finetune FILE is given")
    freeze(model, classifier.linear_probe, classifier.freeze_layers)
    optimization = make_optimization(
        model, optim, session.precision, shape.steps, classifier.layer_decay
    )
    saver = prepare(session, found, model, optimization, shape)
    record_lists(lists, session.output_dir)
    names, freq = label_names(configs), configs.run.image_freq
    for epoch, means, run_logger in train_epochs(
        session,
        model,
        loader,
        make_loss(configs),
        optimization,
        saver,
        configs.data.max_bad_clips,
    ):
        metrics = evaluate(session, configs, model, saver.watched(val_loader), "validation")
        keep_best(saver, configs, epoch, metrics)
        log_epoch(run_logger, epoch, shape.steps, means, metrics, num_parameters(model))
        last_step = (epoch + 1) * shape.steps - 1
        draw = draw_confusion if freq and (epoch + 1) % freq == 0 else None
        show_classes(run_logger, last_step, metrics, names, draw)
        saver.end_epoch()
    saver.finish()
    tested = test_last_and_best(session, configs, model, lists, saver)
    show_results(session, configs, saver, tested, names)
    if configs.score.export:
        export_run(session.output_dir)


def described(configs: FinetuneConfigs, lists: Lists) -> dict[str, str]:
    """Describe the lists of a fold, so that a resumed run notices other clips."""
    kinds = {"training": lists.train, "validation": lists.val, "test": lists.test}
    return {name: describe_clips(clips, configs.data.data_root) for name, clips in kinds.items()}


def keep_best(saver: Saver, configs: FinetuneConfigs, epoch: int, metrics: dict[str, Any]) -> None:
    """Save checkpoint-best.pth when this epoch validates better than all before."""
    name = configs.score.val_metric
    value = headline(metrics, name)
    if is_better(value, saver.best["value"], name) and not saver.save_best(value):
        logger.warning("epoch %d is the best so far, but could not be kept", epoch)
    shown = summary(metrics, shown_metrics(configs.classifier.task))
    best = saver.best
    kept = "none kept" if best["value"] is None else f"{best['value']:.4f} in epoch {best['epoch']}"
    logger.info("epoch %d: validation %s; best %s %s", epoch, shown, name, kept)


def is_better(value: float, best: float | None, metric: str) -> bool:
    """Compare two values of a metric; the first epoch always wins."""
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best


def log_epoch(
    run_logger: RunLogger,
    epoch: int,
    steps: int,
    means: dict[str, float],
    metrics: dict[str, Any],
    parameters: int,
) -> None:
    """Write the epoch's line to log.txt and its figures to TensorBoard."""
    single = {
        name: headline(metrics, name)
        for name, value in metrics.items()
        if isinstance(value, (float, dict))
    }
    run_logger.scalars((epoch + 1) * steps - 1, single, prefix="val")
    train = {f"train_{name}": value for name, value in means.items()}
    val = {f"val_{name}": value for name, value in single.items()}
    run_logger.epoch({**train, **val, "epoch": epoch, "n_parameters": parameters})


def test_last_and_best(
    session: Session,
    configs: FinetuneConfigs,
    model: nn.Module,
    lists: Lists,
    saver: Saver,
) -> dict[str, dict[str, Any]]:
    """Test the model as it is after the last epoch, then the best epoch's weights.

    Returns:
        Metrics of both, `last` and `best`.
    """
    loader = saver.watched(scoring_loader(session, configs, lists.test))
    names = shown_metrics(configs.classifier.task)
    last_epoch = configs.optim.epochs - 1
    metrics = evaluate(
        session, configs, model, loader, "test, last epoch", suffix="", epoch=last_epoch
    )
    logger.info("test, last epoch (%d): %s", last_epoch, summary(metrics, names))
    best = saver.best
    if best["epoch"] < 0:
        logger.warning("no best epoch could be saved; the last one stands for it")
        best = {**best, "epoch": last_epoch}
    if best["epoch"] != last_epoch:
        state = checkpoint.load(session.output_dir / "checkpoint-best.pth")
        model.load_state_dict(state["model"])
    best_metrics = evaluate(
        session,
        configs,
        model,
        loader,
        "test, best epoch",
        suffix="_best",
        epoch=best["epoch"],
        chosen_on=lists.val_file,
    )
    logger.info(
        "test, best epoch (%d, chosen by %s on %s): %s",
        best["epoch"],
        configs.score.val_metric,
        lists.val_file,
        summary(best_metrics, names),
    )
    return {"last": metrics, "best": best_metrics}


def draw_confusion(metrics: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix for TensorBoard, (H, W, 3) uint8; only rank 0 does."""
    from hicmae.visualize.confusion import confusion_image  # the other ranks need no matplotlib

    return confusion_image(metrics, names)


def show_results(
    session: Session,
    configs: FinetuneConfigs,
    saver: Saver,
    tested: dict[str, dict[str, Any]],
    names: Sequence[str],
) -> None:
    """Show what the tests gave in TensorBoard, beside the settings that led there."""
    if not distributed.is_main():
        return
    shown = shown_metrics(configs.classifier.task)
    final = {f"test_{n}/{name}": headline(m, name) for n, m in tested.items() for name in shown}
    if saver.best["value"] is not None:
        final[f"val_best/{configs.score.val_metric}"] = saver.best["value"]
    images = {}
    if configs.run.image_freq and configs.classifier.task == "classification":
        images = {f"test_{n}/confusion": draw_confusion(m, names) for n, m in tested.items()}
    show_end(session, saver, final, images)


def test_only(session: Session, configs: FinetuneConfigs) -> None:
    """Test one checkpoint: --resume, --finetune, or the newest of the output folder."""
    if not (session.output_dir / "config.json").exists():
        write_settings(session)
    model = make_model(configs).to(session.device)
    named = configs.run.resume or configs.classifier.finetune
    found = None if named else checkpoint.newest(session.output_dir)
    if not named and found is None:
        raise FileNotFoundError(
            f"--eval found no checkpoint-<epoch>.pth in {session.output_dir}; "
            "name a file with --resume"
        )
    path, source = found if found else (named, named)
    logger.info("testing %s", path)
    checkpoint.load_pretrained(model, source, require_all=True)
    clips = read_list(configs, Path(configs.data.data_path) / "test.csv")
    loader = Watched(scoring_loader(session, configs, clips), session.stop.check)
    metrics = evaluate(session, configs, model, loader, "test", suffix="")
    logger.info("test: %s", summary(metrics, shown_metrics(configs.classifier.task)))


if __name__ == "__main__":
    sys.exit(run_command(main))
