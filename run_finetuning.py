"""Fine-tune and test HiCMAE on labelled clips.

``python run_finetuning.py --data_path FOLDER --nb_classes K --finetune FILE --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_finetuning.py ...``; ``--help`` lists every flag.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import (
    LOWER_IS_BETTER,
    AugmentConfig,
    FinetuneConfigs,
    as_dict,
    new_parser,
    parse_configs,
)
from hicmae.data import splits
from hicmae.data.augment import Augment, Mixup, mix_batch
from hicmae.data.batches import LabelledBatch
from hicmae.data.clip_list import names_of_run, read_labelled_list
from hicmae.data.dataset import LabelledClips, TestClips
from hicmae.data.loader import ClipSampler, SkippedClips, make_loader
from hicmae.inference.export import export_run
from hicmae.io import write_whole
from hicmae.models.losses import REGRESSION_LOSSES
from hicmae.training import checkpoint, distributed, transfer
from hicmae.training.evaluate import (
    Batches,
    average_clips,
    headline,
    predict,
    score,
    show_classes,
    shown_metrics,
    summary,
    write_predictions,
    write_results,
)
from hicmae.training.logs import RunLogger
from hicmae.training.loop import (
    ComputeLoss,
    EvaluationBatches,
    LossParts,
    as_trained,
    open_logs,
    show_end,
    train_one_epoch,
    training_loader,
)
from hicmae.training.optim import freeze
from hicmae.training.resume import Saver, find_checkpoint, resume
from hicmae.training.run import Run, open_run, run_command, write_settings
from hicmae.training.state import Plan, TrainState, make_plan, make_state, num_parameters

logger = logging.getLogger("hicmae")

DEFAULTS = {"batch_size": 14, "epochs": 50, "lr": 1e-3, "min_lr": 1e-6, "opt_betas": (0.9, 0.999)}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    return new_parser(__doc__, FinetuneConfigs, **DEFAULTS)


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and test; `argv` replaces the command line."""
    configs = parse_configs(build_parser(), FinetuneConfigs, argv, FinetuneConfigs.completed)
    with open_run(configs.run, trains=not configs.score.eval) as run:
        configs = configs._replace(optim=configs.optim.shared(distributed.world_size()))
        if configs.score.eval:
            test_only(run, configs)
        else:
            finetune(run, configs)


def finetune(run: Run, configs: FinetuneConfigs) -> None:
    """Train, keep the epoch that validates best, then test the last and the best epoch."""
    lists = read_lists(configs)
    loader = training_loader(run, training_clips(configs, lists), configs.optim.batch_size)
    val_loader = scoring_loader(run, configs, lists.val, centre=True)
    plan = make_plan(
        configs, loader, {"training": lists.train, "validation": lists.val, "test": lists.test}
    )
    found = find_checkpoint(run)

    torch.manual_seed(run.config.seed)
    model = make_model(configs).to(run.device)
    if found is None:
        load_pretrained(model, configs)
    freeze(model, configs.classifier.linear_probe, configs.classifier.freeze_layers)
    state = make_state(model, plan, run, configs.classifier.layer_decay)
    resume(run, plan, state, found)
    write_tables(run, lists)

    trained, compute_loss = as_trained(model, run.config, run.device), make_loss(configs)
    skipped = SkippedClips(
        run.output_dir / "skipped_clips.csv", len(lists.train), configs.data.max_bad_clips
    )
    names = label_names(configs)
    with open_logs(run, plan, state) as logs:
        saver = Saver(run, plan, state, logs)
        check = partial(saver.check, state)
        for epoch in range(state.epoch, configs.optim.epochs):
            means = train_one_epoch(
                trained, loader, compute_loss, run, plan, state, logs, skipped, saver
            )
            batches = EvaluationBatches(val_loader, check)
            metrics = evaluate(run, configs, model, batches, "validation")
            keep_best(saver, state, configs, metrics)
            log_epoch(logs, plan, state, means, metrics)
            draw = draw_confusion if run.draws(epoch) else None
            show_classes(logs, plan.last_step(epoch), metrics, names, draw)
            saver.end_epoch(state)
        saver.finish(state)
    tested = test_last_and_best(run, configs, state, lists, check)
    show_results(run, plan, state, configs, tested)
    if configs.score.export:
        export_run(run.output_dir)


def test_only(run: Run, configs: FinetuneConfigs) -> None:
    """Test one checkpoint: --resume, --finetune, or the newest of the output folder."""
    if not (run.output_dir / "config.json").exists():
        write_settings(run, as_dict(configs))
    model = make_model(configs).to(run.device)
    named = configs.run.resume or configs.classifier.finetune
    found = None if named else checkpoint.newest(run.output_dir)
    if not named and found is None:
        raise FileNotFoundError(
            f"--eval found no checkpoint-<epoch>.pth in {run.output_dir}; name a file with --resume"
        )
    path, source = found if found else (named, named)
    logger.info("testing %s", path)
    transfer.load_pretrained(model, source, require_all=True)
    clips = read_list(configs, Path(configs.data.data_path) / "test.csv")
    batches = EvaluationBatches(scoring_loader(run, configs, clips), run.stop.check)
    metrics = evaluate(run, configs, model, batches, "test", suffix="")
    logger.info("test: %s", summary(metrics, shown_metrics(configs.classifier.task)))


# Data


def read_list(configs: FinetuneConfigs, path: Path) -> splits.Clips:
    """Read one list of the run's task; check the items of --average_clips."""
    classifier, fields = configs.classifier, configs.score.average_clips
    root = configs.data.data_root
    clips = read_labelled_list(path, classifier.task, classifier.num_classes, root)
    if fields:
        splits.group_clips([clip.video for clip in clips], [clip.label for clip in clips], fields)
    return clips


def read_lists(configs: FinetuneConfigs) -> splits.Lists:
    """Read the training, validation and test list as the settings say."""
    classifier, score, data = configs.classifier, configs.score, configs.data
    read = partial(
        read_labelled_list,
        task=classifier.task,
        num_classes=classifier.num_classes,
        data_root=data.data_root,
    )
    lists = splits.read_lists(
        Path(data.data_path),
        read,
        Path(configs.run.output_dir),
        val_path=score.val_path,
        val_split=score.val_split,
        val_share=score.val_share,
        label_share=score.label_share,
        speakers=(data.data_root, score.speaker_file, score.speaker_pattern),
        average_clips=score.average_clips,
        seed=configs.run.seed,
        modality=classifier.modality,
    )
    logger.info("names: %s", ", ".join(label_names(configs)))
    return lists


def write_tables(run: Run, lists: splits.Lists) -> None:
    """Write down which clips were held out or drawn, once it is sure that a resumed run agrees."""
    if distributed.is_main():
        for name, table in lists.tables.items():
            write_whole(run.output_dir / name, table)


def label_names(configs: FinetuneConfigs) -> tuple[str, ...]:
    """Return the names of the classes or outputs; ValueError where --class_names do not fit."""
    classifier = configs.classifier
    settings = {"class_names": classifier.class_names, "data_path": configs.data.data_path}
    return names_of_run(settings, classifier.task, classifier.num_classes)


def training_clips(configs: FinetuneConfigs, lists: splits.Lists) -> LabelledClips:
    """Describe how augmented clips are drawn; ``--aa none`` turns RandAugment off."""
    augment = configs.augment
    return LabelledClips(
        lists.train,
        settings=configs.clip,
        task=configs.classifier.task,
        augment=Augment(
            aa=None if augment.aa in ("", "none") else augment.aa,
            reprob=augment.reprob,
            remode=augment.remode,
            recount=augment.recount,
            scale=augment.scale,
            flip=augment.flip,
        ),
        roll_mag_aug=configs.data.roll_mag_aug,
        num_samples=configs.data.num_samples,
        modality=configs.classifier.modality,
        seed=configs.run.seed,
        clip_timeout=configs.data.clip_timeout,
    )


def scoring_loader(
    run: Run, configs: FinetuneConfigs, clips: splits.Clips, centre: bool = False
) -> DataLoader:
    """Build the loader of whole clips, this rank's share or, without ``--dist_eval``, all.

    Args:
        run: says where the batches go.
        configs: of the run.
        clips: to score.
        centre: one centred view of each (validation) instead of the test views.
    """
    dataset = TestClips(
        clips,
        settings=configs.clip,
        task=configs.classifier.task,
        num_segments=configs.score.test_num_segment,
        num_crops=configs.score.test_num_crop,
        centre=centre,
        allow_skip=configs.score.skip_bad_test_clips,
        modality=configs.classifier.modality,
        clip_timeout=configs.data.clip_timeout,
    )
    shared = configs.score.dist_eval
    sampler = ClipSampler(
        len(dataset),
        shuffle=False,
        seed=run.config.seed,
        rank=distributed.rank() if shared else 0,
        world_size=distributed.world_size() if shared else 1,
        pad=False,
    )
    workers, device = run.config.num_workers, run.device.type
    return make_loader(dataset, sampler, configs.optim.batch_size, workers, False, device)


# Model and loss


def make_model(configs: FinetuneConfigs) -> nn.Module:
    """Create the classifier of the chosen size, depths and clip geometry."""
    classifier = configs.classifier
    model = timm.create_model(
        classifier.model_name,
        num_classes=classifier.num_classes,
        depth=classifier.depth,
        depth_audio=classifier.depth_audio,
        fusion_depth=classifier.fusion_depth,
        drop_path_rate=classifier.drop_path_rate,
        head_activation=classifier.head_activation,
        init_values=classifier.init_values,
        modality=classifier.modality,
        hierarchical_fusion=classifier.hierarchical_fusion,
        fusion_order=classifier.fusion_order,
        cpu_gemm=configs.run.cpu_gemm,
        **configs.clip.of_model(),
    )
    logger.info("%s: %.2f M parameters", classifier.model_name, num_parameters(model) / 1e6)
    return model


def load_pretrained(model: nn.Module, configs: FinetuneConfigs) -> None:
    """Load --finetune; warn where it is missing and parts stay as they are."""
    classifier = configs.classifier
    if classifier.finetune:
        partly = classifier.allow_partial
        transfer.load_pretrained(model, classifier.finetune, allow_partial=partly)
    elif classifier.linear_probe or classifier.freeze_layers:
        logger.warning("what is frozen keeps its random start: no --finetune FILE is given")


def make_loss(configs: FinetuneConfigs) -> ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""
    if configs.classifier.task == "classification":
        return _classification_loss(configs.classifier.num_classes, configs.augment)
    criterion = REGRESSION_LOSSES[configs.score.loss]

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
        return criterion(model(batch.video, batch.audio).float(), batch.target), {}

    return compute_loss


def _classification_loss(num_classes: int, augment: AugmentConfig) -> ComputeLoss:
    mixup = Mixup(
        num_classes=num_classes,
        mixup_alpha=augment.mixup or 0.0,
        cutmix_alpha=augment.cutmix or 0.0,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        label_smoothing=augment.smoothing,
    )

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
        if augment.mixes:
            mixed = mix_batch(batch, mixup, augment.mixup_audio)
            return F.cross_entropy(model(mixed.video, mixed.audio).float(), mixed.target), {}
        scores = model(batch.video, batch.audio).float()
        accuracy = (scores.detach().argmax(dim=1) == batch.target).float().mean()
        loss = F.cross_entropy(scores, batch.target, label_smoothing=augment.smoothing)
        return loss, {"class_acc": accuracy}

    return compute_loss


# Scores


def evaluate(
    run: Run,
    configs: FinetuneConfigs,
    model: nn.Module,
    batches: Batches,
    description: str,
    suffix: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Score clips on all ranks; with --average_clips, items instead of clips.

    On the CPU, and with --deterministic, the results do not depend on the batch size or on the
    number of processes. With --average_clips the scores of the single clips go to
    pred_clips<suffix>.csv.

    Args:
        run: where results go and how to compute.
        configs: of the run.
        model: classifier, not wrapped.
        batches: of `scoring_loader`.
        description: shown with the progress.
        suffix: of pred<suffix>.csv and metrics<suffix>.json; None writes nothing.
        facts: put beside the metrics, e.g. the epoch.
    """
    task, fields = configs.classifier.task, configs.score.average_clips
    predictions = clips = predict(
        model,
        batches,
        run.precision,
        task,
        description,
        clip_by_clip=run.device.type == "cpu" or run.config.deterministic,
        shared=configs.score.dist_eval,
    )
    if fields:
        predictions = average_clips(clips, fields)
        facts |= {"clips": len(clips.names), "items": len(predictions.names)}
    metrics = {**score(predictions, task), **facts}
    if suffix is not None and distributed.is_main():
        write_results(run.output_dir, suffix, predictions, metrics, task)
        if fields:
            write_predictions(run.output_dir / f"pred_clips{suffix}.csv", clips, task)
    return metrics


def keep_best(
    saver: Saver, state: TrainState, configs: FinetuneConfigs, metrics: dict[str, Any]
) -> None:
    """Save checkpoint-best.pth when this epoch validates better than all before."""
    name, best = configs.score.val_metric, state.best["value"]
    value = headline(metrics, name)
    better = best is None or (value < best if name in LOWER_IS_BETTER else value > best)
    if better and not saver.save_best(state, value):
        logger.warning("epoch %d is the best so far, but could not be kept", state.epoch)
    shown, best = summary(metrics, shown_metrics(configs.classifier.task)), state.best
    kept = "none kept" if best["value"] is None else f"{best['value']:.4f} in epoch {best['epoch']}"
    logger.info("epoch %d: validation %s; best %s %s", state.epoch, shown, name, kept)


def log_epoch(
    logs: RunLogger,
    plan: Plan,
    state: TrainState,
    means: dict[str, float],
    metrics: dict[str, Any],
) -> None:
    """Write the epoch's line to log.txt and its figures to TensorBoard."""
    single = {n: headline(metrics, n) for n, v in metrics.items() if isinstance(v, (float, dict))}
    logs.scalars(plan.last_step(state.epoch), single, prefix="val")
    train = {f"train_{name}": value for name, value in means.items()}
    val = {f"val_{name}": value for name, value in single.items()}
    parameters = num_parameters(state.model)
    logs.epoch({**train, **val, "epoch": state.epoch, "n_parameters": parameters})


def test_last_and_best(
    run: Run, configs: FinetuneConfigs, state: TrainState, lists: splits.Lists, check: Any
) -> dict[str, dict[str, Any]]:
    """Test the model as it is after the last epoch, then the best epoch's weights.

    Returns:
        Metrics of both, `last` and `best`.
    """
    batches = EvaluationBatches(scoring_loader(run, configs, lists.test), check)
    names, last, best = shown_metrics(configs.classifier.task), configs.optim.epochs - 1, state.best
    test = partial(evaluate, run, configs, state.model, batches)
    metrics = test("test, last epoch", suffix="", epoch=last)
    logger.info("test, last epoch (%d): %s", last, summary(metrics, names))
    epoch = best["epoch"]
    if epoch < 0:
        logger.warning("no best epoch could be saved; the last one stands for it")
        epoch = last
    if epoch != last:
        content = checkpoint.load(run.output_dir / "checkpoint-best.pth")
        state.model.load_state_dict(content["model"])
    best_metrics = test("test, best epoch", suffix="_best", epoch=epoch, chosen_on=lists.val_file)
    logger.info(
        "test, best epoch (%d, chosen by %s on %s): %s",
        *(epoch, configs.score.val_metric, lists.val_file, summary(best_metrics, names)),
    )
    return {"last": metrics, "best": best_metrics}


def show_results(
    run: Run,
    plan: Plan,
    state: TrainState,
    configs: FinetuneConfigs,
    tested: dict[str, dict[str, Any]],
) -> None:
    """Show what the tests gave in TensorBoard, beside the settings that led there."""
    if not distributed.is_main():
        return
    shown = shown_metrics(configs.classifier.task)
    final = {f"test_{n}/{name}": headline(m, name) for n, m in tested.items() for name in shown}
    if state.best["value"] is not None:
        final[f"val_best/{configs.score.val_metric}"] = state.best["value"]
    images = {}
    if run.config.image_freq and configs.classifier.task == "classification":
        names = label_names(configs)
        images = {f"test_{n}/confusion": draw_confusion(m, names) for n, m in tested.items()}
    show_end(run, plan, final, images)


def draw_confusion(metrics: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix for TensorBoard, (H, W, 3) uint8; only rank 0 does."""
    from hicmae.visualize.confusion import confusion_image  # the other ranks need no matplotlib

    return confusion_image(metrics, names)


if __name__ == "__main__":
    sys.exit(run_command(main))
