"""What is particular to fine-tuning: labelled clips, classifier, losses and scoring."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import (
    AugmentConfig,
    ClassifierConfig,
    ClipConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    ScoreConfig,
)
from hicmae.data import splits as holdout
from hicmae.data import splits as label_share
from hicmae.data.augment import Augment, Mixup, mix_batch
from hicmae.data.batches import LabelledBatch
from hicmae.data.clip_list import AnyClip, find_list, names_of_run, read_labelled_list
from hicmae.data.dataset import LabelledClips, TestClips
from hicmae.data.loader import ClipSampler, make_loader
from hicmae.data.splits import find_speakers, group_clips, item_name
from hicmae.io import write_whole
from hicmae.models.losses import REGRESSION_LOSSES
from hicmae.training import distributed
from hicmae.training.evaluate import (
    Batches,
    average_clips,
    predict,
    score,
    write_predictions,
    write_results,
)
from hicmae.training.loop import ComputeLoss, LossParts
from hicmae.training.run import Session

logger = logging.getLogger(__name__)

Clips = Sequence[AnyClip]


class FinetuneConfigs(NamedTuple):
    """All settings of a fine-tuning run, in the order of ``--help``."""

    run: RunConfig
    data: DataConfig
    clip: ClipConfig
    classifier: ClassifierConfig
    augment: AugmentConfig
    optim: OptimConfig
    score: ScoreConfig


class Lists(NamedTuple):
    """The clips of a fold."""

    train: Clips
    val: Clips
    test: Clips
    val_file: str  # where the validation clips come from
    held_out: str = ""  # content of val_file where they are held out of the training list
    labelled: str = ""  # content of train_clips.csv where only a share of them is trained on


def read_list(configs: FinetuneConfigs, path: Path, scored: bool = True) -> Clips:
    """Read one list of the run's task; if it is `scored`, check the items of --average_clips."""
    classifier = configs.classifier
    clips = read_labelled_list(path, classifier.task, classifier.nb_classes, configs.data.data_root)
    if scored and configs.score.average_clips:
        labels = [clip.label for clip in clips]
        group_clips([clip.video for clip in clips], labels, configs.score.average_clips)
    return clips


def read_lists(configs: FinetuneConfigs) -> Lists:
    """Read train, validation and test lists; say plainly when validation is the test list.

    With --val_split speaker or clip, validation clips are taken out of the training list instead;
    of the test list only the lines are read.
    """
    folder = Path(configs.data.data_path)
    train = read_list(configs, folder / "train.csv", scored=False)
    test = read_list(configs, test_file := folder / "test.csv")
    held_out = ""
    if configs.score.val_split == "list":
        val_file = _val_file(configs)
        val = test if val_file == test_file else read_list(configs, val_file)
    else:
        val_file = Path(configs.run.output_dir) / holdout.HOLDOUT_FILE
        train, val, held_out = _hold_out(configs, train)
    train, labelled = _take_share(configs, train)
    if val == test:
        logger.warning(
            "the best epoch is chosen on %s, the same clips as the test list, as in the published "
            "protocol: best-epoch results are optimistic, last-epoch results are not",
            val_file,
        )
    else:
        logger.info("the best epoch is chosen on %s, apart from the test list", val_file)
    counts = len(train), len(val), len(test)
    logger.info("clips: %d for training, %d for validation, %d for testing", *counts)
    logger.info("names: %s", ", ".join(label_names(configs)))
    return Lists(train, val, test, str(val_file), held_out, labelled)


def _val_file(configs: FinetuneConfigs) -> Path:
    """Return --val_path, else val.csv, else test.csv."""
    if configs.score.val_path:
        return Path(configs.score.val_path)
    folder = Path(configs.data.data_path)
    return folder / ("val.csv" if find_list(folder / "val.csv") else "test.csv")


def _hold_out(configs: FinetuneConfigs, clips: Clips) -> tuple[Clips, Clips, str]:
    """Take validation clips out of the training list.

    Returns:
        Training clips, validation clips, the table of these.
    """
    score, folder = configs.score, Path(configs.data.data_path)
    if score.val_split == "speaker":
        speakers = score.speaker_file, score.speaker_pattern
        groups = find_speakers([c.video for c in clips], folder, configs.data.data_root, *speakers)
    elif score.average_clips:  # an item stays whole
        groups = [item_name(clip.video, score.average_clips) for clip in clips]
    else:
        groups = [clip.video for clip in clips]
    seed, modality = configs.run.seed, configs.classifier.modality
    held = holdout.hold_out(clips, groups, score.val_share, seed, modality)
    holdout.describe_holdout(held, score.val_split)
    if find_list(folder / "val.csv"):
        logger.info("'%s' is not used", folder / "val.csv")
    return held.train, held.val, holdout.holdout_table(held, score.val_split)


def _take_share(configs: FinetuneConfigs, clips: Clips) -> tuple[Clips, str]:
    """Return --label_share of the training clips, and the table of these where it is not all."""
    share = configs.score.label_share
    if share == 1:
        return clips, ""
    taken = label_share.take_share(clips, share, configs.run.seed)
    label_share.describe_share(taken, len(clips), share)
    return taken, label_share.share_table(taken)


def record_lists(lists: Lists, output_dir: Path) -> None:
    """Write val_clips.csv and train_clips.csv, where clips were held out or a share was drawn.

    Call it when it is sure that a resumed run has the same clips.
    """
    if lists.held_out and distributed.is_main():
        write_whole(Path(lists.val_file), lists.held_out)
    if lists.labelled and distributed.is_main():
        write_whole(output_dir / label_share.SHARE_FILE, lists.labelled)


def label_names(configs: FinetuneConfigs) -> tuple[str, ...]:
    """Return the names of the classes or outputs; ValueError where --class_names do not fit."""
    classifier = configs.classifier
    settings = {"class_names": classifier.class_names, "data_path": configs.data.data_path}
    return names_of_run(settings, classifier.task, classifier.nb_classes)


def training_clips(configs: FinetuneConfigs, clips: Clips) -> LabelledClips:
    """Describe how augmented clips are drawn; ``--aa none`` turns RandAugment off."""
    augment = configs.augment
    return LabelledClips(
        clips,
        task=configs.classifier.task,
        **configs.clip.dataset_options(),
        augment=Augment(
            aa=None if augment.aa in ("", "none") else augment.aa,
            reprob=augment.reprob,
            remode=augment.remode,
            recount=augment.recount,
            scale=augment.crop_scale,
            flip=augment.flip,
        ),
        roll_mag_aug=configs.data.roll_mag_aug,
        num_samples=configs.data.num_samples,
        modality=configs.classifier.modality,
        seed=configs.run.seed,
        clip_timeout=configs.data.clip_timeout,
    )


def scoring_loader(
    session: Session, configs: FinetuneConfigs, clips: Clips, centre: bool = False
) -> DataLoader:
    """Build the loader of whole clips, this rank's share or, without ``--dist_eval``, all.

    Args:
        session: says where the batches go.
        configs: of the run.
        clips: to score.
        centre: one centred view of each (validation) instead of the test views.
    """
    dataset = TestClips(
        clips,
        task=configs.classifier.task,
        num_segments=configs.score.test_num_segment,
        num_crops=configs.score.test_num_crop,
        centre=centre,
        **configs.clip.dataset_options(),
        allow_skip=configs.score.skip_bad_test_clips,
        modality=configs.classifier.modality,
        clip_timeout=configs.data.clip_timeout,
    )
    shared = configs.score.dist_eval
    sampler = ClipSampler(
        len(dataset),
        shuffle=False,
        seed=configs.run.seed,
        rank=distributed.rank() if shared else 0,
        world_size=distributed.world_size() if shared else 1,
        pad=False,
    )
    batch_size, num_workers = configs.optim.batch_size, configs.run.num_workers
    return make_loader(dataset, sampler, batch_size, num_workers, False, session.device.type)


def make_model(configs: FinetuneConfigs) -> nn.Module:
    """Create the classifier of the chosen size, depths and clip geometry."""
    options = {**configs.classifier.model_options(), **configs.clip.model_options()}
    name = configs.classifier.model
    return timm.create_model(name, cpu_gemm=configs.run.cpu_gemm, **options)


def make_loss(configs: FinetuneConfigs) -> ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""
    if configs.classifier.task == "regression":
        return _regression_loss(configs.score.loss)
    return _classification_loss(configs.classifier.nb_classes, configs.augment)


def _regression_loss(name: str) -> ComputeLoss:
    criterion = REGRESSION_LOSSES[name]

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
        prediction = model(batch.video, batch.audio).float()
        return criterion(prediction, batch.target), {}

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


def evaluate(
    session: Session,
    configs: FinetuneConfigs,
    model: nn.Module,
    loader: Batches,
    description: str,
    suffix: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Score the loader's clips on all ranks; with --average_clips, items instead of clips.

    On the CPU, and with --deterministic, the results do not depend on the batch size or on the
    number of processes. With --average_clips the scores of the single clips go to
    pred_clips<suffix>.csv.

    Args:
        session: where results go and how to compute.
        configs: of the run.
        model: classifier, not wrapped.
        loader: of `scoring_loader`.
        description: shown with the progress.
        suffix: of pred<suffix>.csv and metrics<suffix>.json; None writes nothing.
        facts: put beside the metrics, e.g. the epoch.
    """
    task, fields = configs.classifier.task, configs.score.average_clips
    predictions = clips = predict(
        model,
        loader,
        session.precision,
        task,
        description,
        clip_by_clip=session.device.type == "cpu" or configs.run.deterministic,
        shared=configs.score.dist_eval,
    )
    if fields:
        predictions = average_clips(clips, fields)
        facts |= {"clips": len(clips.names), "items": len(predictions.names)}
    metrics = {**score(predictions, task), **facts}
    if suffix is not None and distributed.is_main():
        write_results(session.output_dir, suffix, predictions, metrics, task)
        if fields:
            write_predictions(session.output_dir / f"pred_clips{suffix}.csv", clips, task)
    return metrics
