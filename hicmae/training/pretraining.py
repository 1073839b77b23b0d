"""What is particular to pre-training: its clips, model, loss and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import (
    ClipConfig,
    DataConfig,
    MaskConfig,
    OptimConfig,
    PretrainLossConfig,
    PretrainModelConfig,
    RunConfig,
)
from hicmae.data.batches import PretrainBatch, joined
from hicmae.data.clip_list import read_pretrain_list
from hicmae.data.dataset import PretrainClips
from hicmae.models.layers import split_tokens
from hicmae.models.losses import contrasted, contrastive_accuracy, pretrain_loss
from hicmae.models.reconstruct import Reconstruction, reconstruct
from hicmae.training import distributed
from hicmae.training.loop import ComputeLoss, LossParts
from hicmae.training.run import Precision


class PretrainConfigs(NamedTuple):
    """All settings of a pre-training run, in the order of ``--help``."""

    run: RunConfig
    data: DataConfig
    clip: ClipConfig
    model: PretrainModelConfig
    mask: MaskConfig
    loss: PretrainLossConfig
    optim: OptimConfig

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Mapping[str, Any]], **data: str
    ) -> "PretrainConfigs":
        """Rebuild the settings that a checkpoint holds under ``args``, with other data."""
        values = {name: dict(settings[name]) for name in cls._fields}
        values["data"] |= data
        types = cls.__annotations__
        return cls(**{name: types[name](**value) for name, value in values.items()})


def make_dataset(configs: PretrainConfigs) -> PretrainClips:
    """Read the list, train.csv in a folder, or shards, and describe how clips are drawn."""
    return PretrainClips(
        read_pretrain_list(configs.data.data_path, configs.data.data_root),
        **configs.clip.dataset_options(),
        tubelet_size=configs.clip.tubelet_size,
        mask_ratio=configs.mask.mask_ratio,
        mask_ratio_audio=configs.mask.mask_ratio_audio,
        roll_mag_aug=configs.data.roll_mag_aug,
        num_samples=configs.data.num_samples,
        seed=configs.run.seed,
        clip_timeout=configs.data.clip_timeout,
    )


def make_model(configs: PretrainConfigs) -> nn.Module:
    """Create the model of the chosen size, depths and clip geometry."""
    options = {**configs.model.model_options(), **configs.clip.model_options()}
    return timm.create_model(configs.model.model, cpu_gemm=configs.run.cpu_gemm, **options)


def make_loss(config: PretrainLossConfig) -> ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""

    def compute_loss(model: nn.Module, batch: PretrainBatch) -> tuple[Tensor, LossParts]:
        # The masks are still on the CPU: splitting them there costs a GPU no synchronisation.
        device = batch.video.device
        num_tokens, num_audio_tokens = batch.video_mask.shape[1], batch.audio_mask.shape[1]
        split = split_tokens(batch.video_mask, num_tokens, "video_mask").to(device)
        split_audio = split_tokens(batch.audio_mask, num_audio_tokens, "audio_mask").to(device)
        if config.gather_negatives:
            distributed.check_equal_batches(len(batch.video))
        output = model(batch.video, split, batch.audio, split_audio)
        loss = pretrain_loss(
            output, batch.video, split, batch.audio, split_audio, **config.loss_options()
        )
        parts = {"loss_video": loss.video, "loss_audio": loss.audio}
        if loss.contrast is not None:
            parts["loss_contrastive"] = loss.contrast
        levels = contrasted(len(output.video_levels), config.contrastive_levels)
        accuracies = contrastive_accuracy(
            [output.video_levels[level] for level in levels],
            [output.audio_levels[level] for level in levels],
        )
        parts |= {f"contrastive_acc_{k}": v for k, v in zip(levels, accuracies, strict=True)}
        return loss.total, parts

    return compute_loss


def rebuild_clips(
    model: nn.Module,
    items: Sequence[PretrainBatch],
    config: PretrainLossConfig,
    precision: Precision,
) -> list[Reconstruction]:
    """Rebuild the masked patches of some items of the data set."""
    batch = joined(items).to(precision.device)
    return reconstruct(
        model,
        batch.video,
        batch.video_mask,
        batch.audio,
        batch.audio_mask,
        precision.autocast(),
        config.frame_diff_group_size if config.use_frame_diff_as_target else None,
        config.normalize_target,
        config.normalize_target_audio,
    )
