"""What is particular to fine-tuning: labelled clips, classifier, losses and scoring."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hicmae  # noqa: F401  (registers the models)
from hicmae.config.common import ClipConfig, DataConfig, OptimConfig, RunConfig
from hicmae.config.finetuning import AugmentConfig, ClassifierConfig, ScoreConfig
from hicmae.data.augment import Augment, Mixup, mix_batch
from hicmae.data.clip_list import Clip, read_labelled_list
from hicmae.data.dataset import LabelledClips, TestClips
from hicmae.data.loading import ClipSampler, LabelledBatch, make_loader
from hicmae.training import distributed
from hicmae.training.engine import ComputeLoss, LossParts
from hicmae.training.evaluate import predict, score, write_results
from hicmae.training.losses import REGRESSION_LOSSES
from hicmae.training.session import Session

logger = logging.getLogger(__name__)


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

    train: list[Clip]
    val: list[Clip]
    test: list[Clip]
    val_file: str  # where the validation clips come from


def read_list(configs: FinetuneConfigs, path: Path) -> list[Clip]:
    """Read one list of the run's task."""
    classifier = configs.classifier
    return read_labelled_list(path, classifier.task, classifier.nb_classes, configs.data.data_root)


def read_lists(configs: FinetuneConfigs) -> Lists:
    """Read train, validation and test lists; say plainly when validation is the test list."""
    folder, chosen = Path(configs.data.data_path), configs.score.val_path
    test_file = folder / "test.csv"
    val_file = Path(chosen) if chosen else folder / "val.csv"
    if not chosen and not val_file.exists():
        val_file = test_file
    train, val, test = (
        read_list(configs, path) for path in (folder / "train.csv", val_file, test_file)
    )
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
    return Lists(train, val, test, str(val_file))


def training_clips(configs: FinetuneConfigs, clips: list[Clip]) -> LabelledClips:
    """Describe how augmented clips are drawn; ``--aa none`` turns RandAugment off."""
    augment = configs.augment
    return LabelledClips(
        clips,
        task=configs.classifier.task,
        num_frames=configs.clip.num_frames,
        sampling_rate=configs.clip.sampling_rate,
        input_size=configs.clip.input_size,
        input_size_audio=configs.clip.input_size_audio,
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
    )


def scoring_loader(
    session: Session, configs: FinetuneConfigs, clips: list[Clip], centre: bool = False
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
        num_frames=configs.clip.num_frames,
        sampling_rate=configs.clip.sampling_rate,
        input_size=configs.clip.input_size,
        input_size_audio=configs.clip.input_size_audio,
        allow_skip=configs.score.skip_bad_test_clips,
        modality=configs.classifier.modality,
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
    return timm.create_model(configs.classifier.model, **options)


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
    loader: DataLoader,
    description: str,
    suffix: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Score the loader's clips on all ranks.

    Args:
        session: where results go and how to compute.
        configs: of the run.
        model: classifier, not wrapped.
        loader: of `scoring_loader`.
        description: shown with the progress.
        suffix: of pred<suffix>.csv and metrics<suffix>.json; None writes nothing.
        facts: put beside the metrics, e.g. the epoch.
    """
    task = configs.classifier.task
    predictions = predict(model, loader, session.precision, task, description)
    metrics = {**score(predictions, task), **facts}
    if suffix is not None and distributed.is_main():
        write_results(session.output_dir, suffix, predictions, metrics, task)
    return metrics


def shown_metrics(task: str) -> tuple[str, ...]:
    """Name the metrics worth a line."""
    return ("uar", "war", "weighted_f1") if task == "classification" else ("pcc", "ccc", "rmse")
