"""Fine-tune and test HiCMAE on labelled clips.

``python run_finetuning.py --data_path FOLDER --nb_classes K --finetune FILE --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_finetuning.py ...``; ``--help`` lists every flag.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import hicmae  # noqa: F401  (registers the models)
from hicmae.config.common import ClipConfig, DataConfig, OptimConfig, RunConfig
from hicmae.config.finetuning import (
    LOWER_IS_BETTER,
    AugmentConfig,
    ClassifierConfig,
    ScoreConfig,
    complete,
)
from hicmae.config.flags import add_arguments, as_dict, new_parser, parse_configs
from hicmae.data.clip_list import Clip, read_labelled_list
from hicmae.data.dataset import LabelledClips, TestClips
from hicmae.data.loading import ClipSampler, SkippedClips, make_loader
from hicmae.training import checkpoint, distributed
from hicmae.training.engine import train_one_epoch
from hicmae.training.evaluate import headline, predict, score, summary, write_results
from hicmae.training.logger import RunLogger
from hicmae.training.session import (
    Session,
    distribute,
    make_optimization,
    num_parameters,
    open_session,
    resume_training,
    run_command,
    save_training,
    steps_per_epoch,
)
from hicmae.training.supervised import make_augment, make_loss

logger = logging.getLogger("hicmae")

CONFIGS = {
    "run": RunConfig,
    "data": DataConfig,
    "clip": ClipConfig,
    "classifier": ClassifierConfig,
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "score": ScoreConfig,
}
DEFAULTS = {"batch_size": 14, "epochs": 50, "lr": 1e-3, "min_lr": 1e-6, "opt_betas": (0.9, 0.999)}


class Lists(NamedTuple):
    """The clips of a fold."""

    train: list[Clip]
    val: list[Clip]
    test: list[Clip]
    val_file: str  # where the validation clips come from


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    parser = new_parser(__doc__)
    for config in CONFIGS.values():
        add_arguments(parser, config, **(DEFAULTS if config is OptimConfig else {}))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and test; `argv` replaces the command line."""
    parser = build_parser()
    configs = parse_configs(parser, CONFIGS, argv)
    try:
        configs["score"], configs["augment"] = complete(
            configs["classifier"], configs["score"], configs["augment"]
        )
    except ValueError as error:
        parser.error(str(error))
    with open_session(configs["run"], as_dict(configs)) as session:
        if configs["score"].eval:
            test_only(session, configs)
        else:
            finetune(session, configs)


def finetune(session: Session, configs: dict[str, Any]) -> None:
    """Train, keep the epoch that validates best, then test the last and the best epoch."""
    run, optim, classifier = configs["run"], configs["optim"], configs["classifier"]
    lists = read_lists(configs)
    train_set, sampler, loader = training_loader(session, configs, lists.train)
    steps = steps_per_epoch(len(loader), optim.accum_iter)
    val_loader = eval_loader(session, configs, lists.val, num_segments=1, centre=True)

    torch.manual_seed(run.seed)
    model = make_model(configs).to(session.device)
    if classifier.finetune:
        checkpoint.load_pretrained(model, classifier.finetune)
    optimization = make_optimization(
        model, optim, session.precision, steps, classifier.layer_decay
    )
    state = resume_training(run, session, model, optimization)
    best = state.get("best", {"epoch": -1, "value": None})
    first_epoch = state["epoch"] + 1
    trained = distribute(model, session.device)
    compute_loss = make_loss(classifier, configs["augment"], configs["score"])
    skipped = SkippedClips(
        session.output_dir / "skipped_clips.csv", len(train_set), configs["data"].max_bad_clips
    )
    with RunLogger(
        session.output_dir,
        session.log_dir,
        distributed.is_main(),
        resume_step=first_epoch * steps,
        resume_epoch=first_epoch,
    ) as run_logger:
        for epoch in range(first_epoch, optim.epochs):
            sampler.set_epoch(epoch)
            means = train_one_epoch(
                trained,
                loader,
                compute_loss,
                optimization,
                epoch=epoch,
                epochs=optim.epochs,
                steps=steps,
                seed=run.seed,
                logger=run_logger,
                skipped=skipped,
                print_freq=run.print_freq,
            )
            metrics = evaluate(session, configs, model, val_loader, "validation")
            value = headline(metrics, configs["score"].val_metric)
            if is_better(value, best["value"], configs["score"].val_metric):
                best = {"epoch": epoch, "value": value}
                save_training(session, "best", model, optimization, epoch, best=best)
            save_training(session, str(epoch), model, optimization, epoch, best=best)
            if distributed.is_main():
                checkpoint.prune(session.output_dir, run.save_ckpt_freq)
                log_epoch(run_logger, epoch, steps, means, metrics, num_parameters(model))
            logger.info(
                "epoch %d: validation %s; best %s %.4f in epoch %d",
                epoch,
                summary(metrics, shown_metrics(classifier.task)),
                configs["score"].val_metric,
                best["value"],
                best["epoch"],
            )
    test_last_and_best(session, configs, model, lists, best)


def read_lists(configs: dict[str, Any]) -> Lists:
    """Read train, validation and test lists; say plainly when validation is the test list."""
    data, classifier, chosen = configs["data"], configs["classifier"], configs["score"].val_path
    folder = Path(data.data_path)

    def read(path: Path) -> list[Clip]:
        return read_labelled_list(path, classifier.task, classifier.nb_classes, data.data_root)

    test_file = folder / "test.csv"
    val_file = Path(chosen) if chosen else folder / "val.csv"
    if not chosen and not val_file.exists():
        val_file = test_file
    lists = Lists(read(folder / "train.csv"), read(val_file), read(test_file), str(val_file))
    if lists.val == lists.test:
        logger.warning(
            "the best epoch is chosen on %s, the same clips as the test list, as in the published "
            "protocol: best-epoch results are optimistic, last-epoch results are not",
            val_file,
        )
    else:
        logger.info("the best epoch is chosen on %s, apart from the test list", val_file)
    counts = tuple(map(len, lists[:3]))
    logger.info("clips: %d for training, %d for validation, %d for testing", *counts)
    return lists


def training_loader(
    session: Session, configs: dict[str, Any], clips: list[Clip]
) -> tuple[LabelledClips, ClipSampler, DataLoader]:
    """Build the data set of augmented clips, its sampler and its loader."""
    run, data, clip = configs["run"], configs["data"], configs["clip"]
    dataset = LabelledClips(
        clips,
        train=True,
        task=configs["classifier"].task,
        num_frames=clip.num_frames,
        sampling_rate=clip.sampling_rate,
        input_size=clip.input_size,
        input_size_audio=clip.input_size_audio,
        augment=make_augment(configs["augment"]),
        roll_mag_aug=data.roll_mag_aug,
        num_samples=data.num_samples,
        modality=configs["classifier"].modality,
        seed=run.seed,
    )
    sampler = ClipSampler(
        len(dataset),
        shuffle=True,
        seed=run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
    )
    batch_size = configs["optim"].batch_size
    loader = make_loader(
        dataset, sampler, batch_size, run.num_workers, True, session.device.type
    )
    return dataset, sampler, loader


def eval_loader(
    session: Session,
    configs: dict[str, Any],
    clips: list[Clip],
    num_segments: int,
    centre: bool = False,
) -> DataLoader:
    """Build the loader of whole clips with their views: this rank's share, or all of them."""
    run, clip, score_config = configs["run"], configs["clip"], configs["score"]
    dataset = TestClips(
        clips,
        task=configs["classifier"].task,
        num_segments=num_segments,
        num_crops=1 if centre else score_config.test_num_crop,
        centre=centre,
        num_frames=clip.num_frames,
        sampling_rate=clip.sampling_rate,
        input_size=clip.input_size,
        input_size_audio=clip.input_size_audio,
        allow_skip=score_config.skip_bad_test_clips,
        modality=configs["classifier"].modality,
    )
    shared = score_config.dist_eval
    sampler = ClipSampler(
        len(dataset),
        shuffle=False,
        seed=run.seed,
        rank=distributed.rank() if shared else 0,
        world_size=distributed.world_size() if shared else 1,
        pad=False,
    )
    batch_size = configs["optim"].batch_size
    return make_loader(dataset, sampler, batch_size, run.num_workers, False, session.device.type)


def make_model(configs: dict[str, Any]) -> nn.Module:
    """Create the classifier of the chosen size and clip geometry."""
    classifier = configs["classifier"]
    model = timm.create_model(
        classifier.model, **classifier.model_options(), **configs["clip"].model_options()
    )
    logger.info("%s: %.2f M parameters", classifier.model, num_parameters(model) / 1e6)
    return model


def evaluate(
    session: Session,
    configs: dict[str, Any],
    model: nn.Module,
    loader: DataLoader,
    description: str,
    suffix: str | None = None,
) -> dict[str, Any]:
    """Score the loader's clips on all ranks; with a suffix also write the results."""
    task = configs["classifier"].task
    predictions = predict(model, loader, session.precision, task, description)
    metrics = score(predictions, task)
    if suffix is not None and distributed.is_main():
        write_results(session.output_dir, suffix, predictions, metrics, task)
    return metrics


def is_better(value: float, best: float | None, metric: str) -> bool:
    """Compare two values of a metric; the first epoch always wins."""
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best


def shown_metrics(task: str) -> tuple[str, ...]:
    """Name the metrics worth a line."""
    return ("uar", "war", "weighted_f1") if task == "classification" else ("pcc", "ccc", "rmse")


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
        if isinstance(value, (int, float, dict))
    }
    run_logger.scalars((epoch + 1) * steps, means, prefix="epoch")
    run_logger.scalars((epoch + 1) * steps, single, prefix="val")
    train = {f"train_{name}": value for name, value in means.items()}
    val = {f"val_{name}": value for name, value in single.items()}
    run_logger.epoch({**train, **val, "epoch": epoch, "n_parameters": parameters})


def test_last_and_best(
    session: Session,
    configs: dict[str, Any],
    model: nn.Module,
    lists: Lists,
    best: dict[str, Any],
) -> None:
    """Test the model as it is after the last epoch, then the best epoch's weights."""
    loader = eval_loader(session, configs, lists.test, configs["score"].test_num_segment)
    names = shown_metrics(configs["classifier"].task)
    last_epoch = configs["optim"].epochs - 1
    metrics = evaluate(session, configs, model, loader, "test, last epoch", suffix="")
    logger.info("test, last epoch (%d): %s", last_epoch, summary(metrics, names))
    if best["epoch"] != last_epoch:
        state = checkpoint.load(session.output_dir / "checkpoint-best.pth")
        model.load_state_dict(state["model"])
    metrics = evaluate(session, configs, model, loader, "test, best epoch", suffix="_best")
    logger.info(
        "test, best epoch (%d, chosen by %s on %s): %s",
        best["epoch"],
        configs["score"].val_metric,
        lists.val_file,
        summary(metrics, names),
    )


def test_only(session: Session, configs: dict[str, Any]) -> None:
    """Test one checkpoint: --resume, --finetune, or the newest of the output folder."""
    model = make_model(configs).to(session.device)
    named = configs["run"].resume or configs["classifier"].finetune
    if named:
        checkpoint.load_pretrained(model, named, require_all=True)
    else:
        found = checkpoint.newest(session.output_dir)
        if found is None:
            raise FileNotFoundError(
                f"--eval found no checkpoint-<epoch>.pth in {session.output_dir}; "
                "name a file with --resume"
            )
        logger.info("testing %s", found[0])
        checkpoint.load_pretrained(model, found[1], require_all=True)
    data, classifier = configs["data"], configs["classifier"]
    clips = read_labelled_list(
        Path(data.data_path) / "test.csv", classifier.task, classifier.nb_classes, data.data_root
    )
    loader = eval_loader(session, configs, clips, configs["score"].test_num_segment)
    metrics = evaluate(session, configs, model, loader, "test", suffix="")
    logger.info("test: %s", summary(metrics, shown_metrics(classifier.task)))


if __name__ == "__main__":
    sys.exit(run_command(main))
