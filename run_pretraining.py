"""Pre-train HiCMAE on unlabelled clips.

``python run_pretraining.py --data_path LIST --output_dir DIR``

Several GPUs: ``torchrun --nproc_per_node=4 run_pretraining.py ...``; ``--help`` lists every flag.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

import hicmae  # noqa: F401  (registers the models)
from hicmae.config.common import ClipConfig, DataConfig, OptimConfig, RunConfig
from hicmae.config.flags import add_arguments, as_dict, new_parser, parse_configs
from hicmae.config.pretraining import MaskConfig, PretrainLossConfig, PretrainModelConfig
from hicmae.data.clip_list import read_pretrain_list
from hicmae.data.dataset import PretrainClips
from hicmae.data.loading import (
    ClipIndex,
    ClipSampler,
    PretrainBatch,
    SkippedClips,
    make_loader,
)
from hicmae.models.patches import split_tokens
from hicmae.training import checkpoint, distributed
from hicmae.training.engine import ComputeLoss, LossParts, train_one_epoch
from hicmae.training.logger import RunLogger
from hicmae.training.losses import contrastive_accuracy, pretrain_loss
from hicmae.training.reconstruct import reconstruct
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
from hicmae.visualize import figure_to_image, reconstruction_figure

logger = logging.getLogger("hicmae")

CONFIGS = {
    "run": RunConfig,
    "data": DataConfig,
    "clip": ClipConfig,
    "model": PretrainModelConfig,
    "mask": MaskConfig,
    "loss": PretrainLossConfig,
    "optim": OptimConfig,
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every flag of this script."""
    parser = new_parser(__doc__)
    for config in CONFIGS.values():
        add_arguments(parser, config)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train; `argv` replaces the command line."""
    configs = parse_configs(build_parser(), CONFIGS, argv)
    with open_session(configs["run"], as_dict(configs)) as session:
        pretrain(session, configs)


def pretrain(session: Session, configs: dict[str, Any]) -> None:
    """Build data, model and optimiser, then train epoch by epoch."""
    run, optim = configs["run"], configs["optim"]
    dataset = make_dataset(configs)
    sampler = ClipSampler(
        len(dataset),
        shuffle=True,
        seed=run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
    )
    loader = make_loader(
        dataset, sampler, optim.batch_size, run.num_workers, True, session.device.type
    )
    steps = steps_per_epoch(len(loader), optim.accum_iter)

    torch.manual_seed(run.seed)
    model = timm.create_model(
        configs["model"].model,
        **configs["model"].model_options(),
        **configs["clip"].model_options(),
    ).to(session.device)
    logger.info("%s: %.2f M parameters", configs["model"].model, num_parameters(model) / 1e6)
    optimization = make_optimization(model, optim, session.precision, steps)
    first_epoch = resume_training(run, session, model, optimization)["epoch"] + 1
    trained = distribute(model, session.device)
    compute_loss = make_loss(configs["loss"])
    skipped = SkippedClips(
        session.output_dir / "skipped_clips.csv", len(dataset), configs["data"].max_bad_clips
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
            save_training(session, str(epoch), model, optimization, epoch)
            if distributed.is_main():
                checkpoint.prune(session.output_dir, run.save_ckpt_freq)
                log_epoch(run_logger, epoch, steps, means, num_parameters(model))
                if run.image_freq and (epoch + 1) % run.image_freq == 0:
                    log_images(run_logger, session, model, dataset, configs, (epoch + 1) * steps)
    logger.info("pre-training done: %s", checkpoint.numbered(session.output_dir)[-1][1])


def make_dataset(configs: dict[str, Any]) -> PretrainClips:
    """Read the list and describe how clips are drawn from it."""
    data, clip, mask = configs["data"], configs["clip"], configs["mask"]
    return PretrainClips(
        read_pretrain_list(data.data_path, data.data_root),
        num_frames=clip.num_frames,
        sampling_rate=clip.sampling_rate,
        input_size=clip.input_size,
        input_size_audio=clip.input_size_audio,
        tubelet_size=clip.tubelet_size,
        mask_ratio=mask.mask_ratio,
        mask_ratio_audio=mask.mask_ratio_audio,
        roll_mag_aug=data.roll_mag_aug,
        num_samples=data.num_samples,
        seed=configs["run"].seed,
    )


def make_loss(config: PretrainLossConfig) -> ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""

    def compute_loss(model: nn.Module, batch: PretrainBatch) -> tuple[Tensor, LossParts]:
        # The masks are still on the CPU: splitting them there costs the GPU no synchronisation.
        device = batch.video.device
        split = split_tokens(batch.video_mask, batch.video_mask.shape[1], "video_mask")
        split_audio = split_tokens(batch.audio_mask, batch.audio_mask.shape[1], "audio_mask")
        split, split_audio = split.to(device), split_audio.to(device)
        output = model(batch.video, split, batch.audio, split_audio)
        loss = pretrain_loss(
            output, batch.video, split, batch.audio, split_audio, **config.loss_options()
        )
        parts = {
            "loss_video": loss.video,
            "loss_audio": loss.audio,
            "loss_contrastive": loss.contrast,
        }
        accuracies = contrastive_accuracy(output.video_levels, output.audio_levels)
        parts |= {f"contrastive_acc_{i}": value for i, value in enumerate(accuracies)}
        return loss.total, parts

    return compute_loss


def log_epoch(
    run_logger: RunLogger, epoch: int, steps: int, means: dict[str, float], parameters: int
) -> None:
    """Write the epoch's line to log.txt and its means to TensorBoard."""
    run_logger.scalars((epoch + 1) * steps, means, prefix="epoch")
    train = {f"train_{name}": value for name, value in means.items()}
    run_logger.epoch({**train, "epoch": epoch, "n_parameters": parameters})


def log_images(
    run_logger: RunLogger,
    session: Session,
    model: nn.Module,
    dataset: PretrainClips,
    configs: dict[str, Any],
    step: int,
) -> None:
    """Show what the model makes of the first clips of the list, always with the same masks."""
    samples = [dataset[ClipIndex(0, index)] for index in range(min(2, len(dataset)))]
    batch = dataset.collate(samples).to(session.device)
    loss = configs["loss"]
    rebuilt = reconstruct(
        model,
        batch.video,
        batch.video_mask,
        batch.audio,
        batch.audio_mask,
        session.precision,
        loss.frame_diff_group_size if loss.use_frame_diff_as_target else None,
        loss.normalize_target,
        loss.normalize_target_audio,
    )
    for index, clip in enumerate(rebuilt[:2]):
        image = figure_to_image(reconstruction_figure(*clip))
        run_logger.image(f"reconstruction/{index}", image, step)


if __name__ == "__main__":
    sys.exit(run_command(main))
