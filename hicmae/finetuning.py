"""Fine-tuning on labelled clips: data, model and loss, epoch by epoch, then the tests."""

import argparse
import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hicmae.config import LOWER_IS_BETTER, ClassifierConfig, ClipConfig, FinetuneConfigs
from hicmae.config.flags import as_dict, parse_configs
from hicmae.data import splits
from hicmae.data.augment import ClipTransform, Mixup, mix_batch
from hicmae.data.batches import LabelledBatch
from hicmae.data.clip_list import name_of, names_of_run, read_labelled_list
from hicmae.data.dataset import LabelledClips, TestClips
from hicmae.data.loader import SkippedClips
from hicmae.inference.export import export_run
from hicmae.io import write_csv
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.models.losses import REGRESSION_LOSSES, class_weights, cross_entropy
from hicmae.training import checkpoint, distributed, loop, trained
from hicmae.training import evaluate as scoring
from hicmae.training.optim import freeze, num_parameters, shared_batches
from hicmae.training.run import Run, open_run, write_settings
from hicmae.training.state import TrainState, find_checkpoint, make_state, resume, settings_to_keep

logger = logging.getLogger("hicmae")

# Metrics, the predictions that they are of, and those of all clips; alike without --average_clips.
Tested = tuple[dict[str, Any], scoring.Predictions, scoring.Predictions]
# Numbers that a head can give, by its activation.
REACH = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf)}


def main(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> None:
    """Fine-tune and test as the command line says by flag, without the defaults of its parser."""
    source = tested_model(given) if given.get("eval") else None
    if source:
        settled = {*trained.SETTLED, "test_num_segment", "average_clips"}
        kept = {flag: value for flag, value in source.settings.items() if flag in settled}
    else:
        kept = settings_to_keep(given, ClipConfig, ClassifierConfig)
    configs = parse_configs(parser, FinetuneConfigs, {**kept, **given})
    with open_run(configs.run, trains=source is None) as run:
        optim = shared_batches(configs.optim, distributed.world_size())
        configs = configs._replace(optim=optim)
        test_only(run, configs, source) if source else finetune(run, configs)


def finetune(run: Run, configs: FinetuneConfigs) -> None:
    """Train, keep the epoch that validates best, then test the last and the best epoch."""
    classifier = configs.classifier
    lists = read_lists(configs)
    known = {"class_names": classifier.class_names, "data_path": configs.data.data_path}
    names = names_of_run(known, classifier.task, classifier.num_classes)
    logger.info("names: %s", ", ".join(names))
    check_training(configs, lists, names)
    loader = training_loader(run, configs, lists.train)
    val_loader = scoring_loader(run, configs, lists.val, centre=True)
    clips = {"training": lists.train, "validation": lists.val, "test": lists.test}
    found = find_checkpoint(run)

    torch.manual_seed(run.config.seed)
    model = make_model(configs).to(run.device)
    freezes = classifier.linear_probe or classifier.freeze_layers > 0
    if found is None and classifier.finetune:
        trained.load_pretrained(model, classifier.finetune, classifier.allow_partial)
    elif found is None and freezes:
        logger.warning("what is frozen keeps its random start: no --finetune FILE is given")
    if freezes:
        freeze(model, classifier.freeze_layers)
    state = make_state(run, configs, model, loader, clips)
    resume(state, found)
    for name, table in lists.tables.items() if distributed.is_main() else ():
        # Which clips were held out or drawn.
        write_csv(run.output_dir / name, table, zip(*table.values(), strict=True))

    training = loop.as_trained(model, run.config, run.device)
    compute_loss = make_loss(configs, lists.train, run.device)
    record = run.output_dir / "skipped_clips.csv"
    skipped = SkippedClips(record, len(lists.train), configs.data.max_bad_clips)
    with state.open_logs():
        for _ in range(state.epoch, configs.optim.epochs):
            means = loop.train_one_epoch(training, loader, compute_loss, state, skipped)
            metrics, *_ = evaluate(run, configs, model, val_loader, "validation", state.check)
            end_epoch(state, configs, means, metrics, names)
        state.finish()
    test_last_and_best(state, configs, lists, val_loader)
    if configs.score.export:
        for folder in export_run(run.output_dir):
            logger.info("exported to %s", folder)


def tested_model(given: Mapping[str, Any]) -> trained.Trained:
    """Read what to test: --resume, --finetune, or the newest checkpoint of the output folder.

    ValueError: it is no classifier, or a flag contradicts what it was trained with.
    """
    folder = given.get("output_dir", "")
    named = given.get("resume") or given.get("finetune")
    newest = None if named else next(checkpoint.whole(folder), None)
    source = trained.describe(newest[1], newest[0]) if newest else trained.read(named or folder)
    if "nb_classes" not in source.settings:
        raise ValueError(
            f"'{source.source}' has no head to test: testing needs a fine-tuned checkpoint; "
            "fine-tune it with --finetune, without --eval"
        )
    trained.check_agrees(source, given)
    trained.warn_of_clips(source, given)
    return source


def test_only(run: Run, configs: FinetuneConfigs, source: trained.Trained) -> None:
    """Test one model, as it was trained; what other tests and runs have written stays."""
    if not (run.output_dir / "config.json").exists():
        write_settings(run, as_dict(configs))
    model, path = make_model(configs).to(run.device), Path(configs.data.data_path, "test.csv")
    logger.info("testing %s on %s", source.source, path)
    trained.load_pretrained(model, source, require_all=True)
    loader = scoring_loader(run, configs, read_list(configs, path))
    facts = {"checkpoint": os.path.abspath(source.source), "list": os.path.abspath(path)}
    suffix = scoring.free_suffix(run.output_dir, facts)
    metrics, items, clips = evaluate(run, configs, model, loader, "test", run.check_stop)
    write_results(run, suffix, ({**metrics, **facts}, items, clips))
    text = "test: %s, in metrics%s.json and pred%s.csv"
    logger.info(text, scoring.summary(metrics), suffix, suffix)


def read_list(configs: FinetuneConfigs, path: Path) -> splits.Clips:
    """Read a list of the run's task."""
    task, count = configs.classifier.task, configs.classifier.num_classes
    return read_labelled_list(path, task, count, configs.data.data_root)


def read_lists(configs: FinetuneConfigs) -> splits.Lists:
    """Read the training, validation and test list as the settings say."""
    score, data = configs.score, configs.data
    names = ("val_path", "val_split", "val_share", "label_share", "average_clips")
    return splits.read_lists(
        Path(data.data_path),
        partial(read_list, configs),
        Path(configs.run.output_dir),
        **{name: getattr(score, name) for name in names},
        speakers=(data.data_root, score.speaker_file, score.speaker_pattern),
        seed=configs.run.seed,
        modality=configs.classifier.modality,
    )


def check_training(configs: FinetuneConfigs, lists: splits.Lists, names: Sequence[str]) -> None:
    """Refuse what cannot learn, and warn of labels that training cannot reach.

    ValueError: a loss that compares clips gets one clip a pass. Its draws share one target, so
    --num_samples does not help.
    """
    loss, classifier = configs.score.loss, configs.classifier
    activation = classifier.head_activation or ""
    if loss in ("ccc", "pcc") and configs.optim.batch_size == 1:
        raise ValueError(
            f"--loss {loss} correlates the clips of a pass, got --batch_size 1, expected 2 or "
            "more: its gradient would be 0; raise --batch_size, or use --loss mse"
        )
    train, test = (Path(configs.data.data_path, f"{part}.csv") for part in ("train", "test"))
    labels = {clip.label for clip in lists.train}
    lacking = [f"{k} ({name})" for k, name in enumerate(names) if k not in labels]
    if classifier.task == "classification" and lacking:
        logger.warning(
            "no training clip of '%s' is of class %s, expected all %d of --nb_classes: they cannot "
            "be learned; check the list, which counts from 0, and what --val_split holds out",
            *(train, ", ".join(lacking), len(names)),
        )
    files = {train: lists.train, Path(lists.val_file): lists.val, test: lists.test}
    for path, clips in files.items() if activation else ():
        low, high = REACH[activation]
        targets = [(v, clip) for clip in clips if isinstance(clip.label, tuple) for v in clip.label]
        if outside := [(value, clip) for value, clip in targets if not low <= value <= high]:
            value, clip = max(outside, key=lambda pair: max(low - pair[0], pair[0] - high))
            logger.warning(
                "'%s': %d of %d targets cannot be reached, got %g of '%s', expected %g to %g of "
                "--head_activation %s; leave it out, or scale the targets",
                *(path, len(outside), len(targets), value, name_of(clip), low, high, activation),
            )


def training_loader(run: Run, configs: FinetuneConfigs, clips: splits.Clips) -> DataLoader:
    """Build the loader of augmented clips; ``--aa none`` turns RandAugment off."""
    chosen, names = vars(configs.augment), ("aa", "reprob", "remode", "recount", "scale", "flip")
    transform = ClipTransform(configs.clip.input_size, **{name: chosen[name] for name in names})
    dataset = LabelledClips(clips, transform=transform, **loop.clip_options(configs))
    balanced = configs.score.balanced_sampler
    return loop.clip_loader(run, dataset, configs.optim.batch_size, balanced=balanced)


def scoring_loader(
    run: Run, configs: FinetuneConfigs, clips: splits.Clips, centre: bool = False
) -> DataLoader:
    """Build the loader of (this rank's) whole clips; `centre`: one view of each, for validation."""
    options = loop.clip_options(configs) | {"num_segments": configs.score.test_num_segment}
    skips = configs.score.skip_bad_test_clips
    dataset = TestClips(clips, centre=centre, allow_skip=skips, **options)
    return loop.clip_loader(run, dataset, configs.optim.batch_size, trains=False)


def make_model(configs: FinetuneConfigs) -> nn.Module:
    """Create the classifier of the chosen size, depths and clip geometry."""
    name, known = configs.classifier.model_name, inspect.signature(HiCMAEClassifier).parameters
    sizes = {option: v for option, v in vars(configs.classifier).items() if option in known}
    options = sizes | configs.clip.of_model()
    model = timm.create_model(name, **options, cpu_gemm=configs.run.cpu_gemm)
    logger.info("%s: %.2f M parameters", name, num_parameters(model) / 1e6)
    return model


def make_loss(
    configs: FinetuneConfigs, clips: splits.Clips, device: torch.device
) -> loop.ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log.

    `clips` are those of training, whose classes may be weighed.
    """
    augment, classes = configs.augment, configs.classifier.num_classes
    if configs.classifier.task == "regression":
        distance = REGRESSION_LOSSES[configs.score.loss]
        return lambda model, b: (distance(model(b.video, b.audio).float(), b.target), {})
    odds = {"prob": augment.mixup_prob, "switch_prob": augment.mixup_switch_prob}
    targets = {"num_classes": classes, "label_smoothing": augment.smoothing}
    mixup = Mixup(augment.mixup or 0.0, augment.cutmix or 0.0, **odds, **targets)
    counts = torch.bincount(torch.tensor([clip.label for clip in clips]), minlength=classes)
    weights = class_weights(counts, configs.score.class_weights)
    if weights is not None:
        logger.info("weights of the classes: %s", " ".join(f"{w:.3g}" for w in weights.tolist()))
        weights = weights.to(device)

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, loop.LossParts]:
        if mixes := augment.mixup or augment.cutmix:
            batch = mix_batch(batch, mixup, augment.mixup_audio)
        scores = model(batch.video, batch.audio).float()
        if mixes:
            return cross_entropy(scores, batch.target, weights), {}
        accuracy = (scores.detach().argmax(dim=1) == batch.target).float().mean()
        loss = cross_entropy(scores, batch.target, weights, augment.smoothing)
        return loss, {"class_acc": accuracy}

    return compute_loss


def evaluate(
    run: Run,
    configs: FinetuneConfigs,
    model: nn.Module,
    loader: DataLoader,
    description: str,
    before_each: Callable[[], None],
) -> Tested:
    """Score clips on all ranks, or items with --average_clips; `before_each` batch may raise.

    On the CPU, and with --deterministic, the results do not depend on the batch size or on the
    number of processes.
    """
    alone = run.device.type == "cpu" or run.config.deterministic
    clips = scoring.predict(
        model, loader, run.precision, description, before_each=before_each, clip_by_clip=alone
    )
    if not (average := configs.score.average_clips):
        return scoring.score(clips), clips, clips
    items = scoring.average_clips(clips, average)
    counts = {"clips": len(clips.names), "items": len(items.names)}
    return {**scoring.score(items), **counts}, items, clips


def write_results(run: Run, suffix: str, tested: Tested) -> None:
    """Write pred<suffix>.csv and metrics<suffix>.json; of items also pred_clips<suffix>.csv."""
    metrics, items, clips = tested
    if distributed.is_main():
        scoring.write_results(run.output_dir, suffix, items, metrics)
        if clips is not items:
            scoring.write_predictions(run.output_dir / f"pred_clips{suffix}.csv", clips)


def end_epoch(
    state: TrainState,
    configs: FinetuneConfigs,
    train: dict[str, float],
    metrics: dict[str, Any],
    names: Sequence[str],
) -> None:
    """Keep the epoch that validates best; write each one's figures, show them, and save."""
    name, board = configs.score.val_metric, state.logs.board
    val = scoring.headlines(metrics)
    value, before = val[name], state.best["value"]
    better = before is None or (value < before if name in LOWER_IS_BETTER else value > before)
    if better and not state.save_best(value):
        logger.warning("epoch %d is the best so far, but could not be kept", state.epoch)
    best = state.best
    kept = "none kept" if best["value"] is None else f"{best['value']:.4f} in epoch {best['epoch']}"
    text = "epoch %d: validation %s; best %s %s"
    logger.info(text, state.epoch, scoring.summary(metrics), name, kept)
    board.scalars(state.last_step, val, "val")
    if "confusion" in metrics and distributed.is_main():
        recalls = {n: r for n, r in zip(names, metrics["recall"], strict=True) if r is not None}
        board.scalars(state.last_step, recalls, "val_recall")
        if state.run.draws(state.epoch):
            from hicmae.visualize.runs import confusion_image  # the other ranks need no matplotlib

            board.image("val/confusion", confusion_image(metrics, names), state.last_step)
    state.end_epoch({**train, **{f"val_{key}": number for key, number in val.items()}})


def test_last_and_best(
    state: TrainState, configs: FinetuneConfigs, lists: splits.Lists, val_loader: DataLoader
) -> None:
    """Test the last epoch's model, the best one's, and the average of the weights.

    Classifiers are calibrated on the validation list, if that is another than the test list.
    """
    run, metric, final = state.run, configs.score.val_metric, dict[str, float]()
    loader = scoring_loader(run, configs, lists.test)
    score = partial(evaluate, run, configs, state.model)
    for kind in ("last", "best", "ema") if state.decay else ("last", "best"):
        epoch = take_weights(state, kind)
        suffix, how = "" if kind == "last" else f"_{kind}", ""
        text = "test, average of the weights" if kind == "ema" else f"test, {kind} epoch"
        metrics, items, clips = score(loader, text, state.check)
        metrics["epoch"] = epoch
        if kind == "best":
            metrics["chosen_on"] = lists.val_file
            how = f", chosen by {metric} on {lists.val_file}"
        logger.info("%s (%d%s): %s", text, epoch, how, scoring.summary(metrics))
        if configs.classifier.task == "classification" and not lists.val_is_test:
            _, held_out, _ = score(val_loader, "calibration", state.check)
            temperature = scoring.fit_temperature(held_out.targets, held_out.scores)
            then = scoring.tempered(items.scores, temperature)
            before, after = (scoring.calibration(items.targets, p) for p in (items.scores, then))
            metrics["calibration"] = {"temperature": temperature, "before": before, "after": after}
            logger.info(
                "temperature %.3f by %s; in the test ECE %.4f -> %.4f, NLL %.4f -> %.4f",
                *(temperature, lists.val_file),
                *(before["ece"], after["ece"], before["nll"], after["nll"]),
            )
        write_results(run, suffix, (metrics, items, clips))
        if "calibration" in metrics and run.config.image_freq and distributed.is_main():
            from hicmae.visualize.runs import draw_reliability  # as above

            path = run.output_dir / f"reliability{suffix}.png"
            draw_reliability(items.targets, items.scores, temperature, path)
        found = scoring.headlines(metrics)
        final |= {f"test_{kind}/{name}": found[name] for name in scoring.SHOWN if name in found}
    if state.best["epoch"] >= 0:
        final[f"val_best/{metric}"] = state.best["value"]
    state.show_final(final)


def take_weights(state: TrainState, kind: str) -> int:
    """Give the trained model the weights to test: "last", "best" or "ema"; return their epoch.

    The average, "ema", is kept in checkpoint-ema.pth.
    """
    last, best = state.plan.optim.epochs - 1, state.best["epoch"]
    if kind == "ema":
        mean = state.model.state_dict() | state.average
        state.write("ema", {"model": mean, "epoch": last})
        state.model.load_state_dict(mean)
    elif kind == "best" and best < 0:
        logger.warning("no best epoch could be saved; the last one stands for it")
    elif kind == "best" and best != last:
        content = checkpoint.load(state.run.output_dir / "checkpoint-best.pth")
        state.model.load_state_dict(content["model"])
    return best if kind == "best" and best >= 0 else last
