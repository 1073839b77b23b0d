"""The fine-tuning loss: mixing of batches, label smoothing, cross-entropy or a regression loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from hicmae.config.finetuning import AugmentConfig, ClassifierConfig, ScoreConfig
from hicmae.data.augment import Augment, Mixup, mix_batch
from hicmae.data.dataset import LabelledBatch
from hicmae.training.engine import ComputeLoss, LossParts
from hicmae.training.losses import REGRESSION_LOSSES


def make_augment(config: AugmentConfig) -> Augment:
    """Return what is done to each training clip; ``--aa none`` turns RandAugment off."""
    return Augment(
        aa=None if config.aa in ("", "none") else config.aa,
        reprob=config.reprob,
        remode=config.remode,
        recount=config.recount,
        scale=config.crop_scale,
        flip=config.flip,
    )


def make_loss(
    classifier: ClassifierConfig, augment: AugmentConfig, score: ScoreConfig
) -> ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""
    if classifier.task == "regression":
        return _regression_loss(score.loss)
    return _classification_loss(classifier.nb_classes, augment)


def _regression_loss(name: str) -> ComputeLoss:
    criterion = REGRESSION_LOSSES[name]

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
        prediction = model(batch.video, batch.audio).float()
        return criterion(prediction, batch.target.to(prediction.dtype)), {}

    return compute_loss


def _classification_loss(num_classes: int, augment: AugmentConfig) -> ComputeLoss:
    mixup = None
    if augment.mixes:
        mixup = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob,
            label_smoothing=augment.smoothing,
            num_classes=num_classes,
        )

    def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
        if mixup is not None:
            mixed = mix_batch(batch, mixup, augment.mixup_audio)
            scores = model(mixed.video, mixed.audio).float()
            return F.cross_entropy(scores, mixed.target), {}
        scores = model(batch.video, batch.audio).float()
        accuracy = (scores.detach().argmax(dim=1) == batch.target).float().mean()
        loss = F.cross_entropy(scores, batch.target, label_smoothing=augment.smoothing)
        return loss, {"class_acc": accuracy}

    return compute_loss
