"""Pre-training on unlabelled clips: data, model and loss, then epoch by epoch."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hicmae.config import ClipConfig, PretrainConfigs, PretrainLossConfig, PretrainModelConfig
from hicmae.config.flags import parse_configs
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import decide_source_crop, read_pretrain_list
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import SkippedClips
from hicmae.models.layers import split_tokens
from hicmae.models.losses import contrasted, contrastive_accuracy, pretrain_loss
from hicmae.training import distributed, loop
from hicmae.training.logs import read_lines
from hicmae.training.optim import num_parameters, shared_batches
from hicmae.training.run import Run, open_run
from hicmae.training.state import TrainState, find_checkpoint, make_state, resume, settings_to_keep

logger = logging.getLogger("hicmae")


def main(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> None:
    """Pre-train as the command line says by flag, without the defaults of its parser."""
    kept = settings_to_keep(given, ClipConfig, PretrainModelConfig)
    configs = parse_configs(parser, PretrainConfigs, {**kept, **given})
    with open_run(configs.run) as run:
        optim = shared_batches(configs.optim, distributed.world_size())
        pretrain(run, configs._replace(optim=optim))


def pretrain(run: Run, configs: PretrainConfigs) -> None:
    """Build data, model and optimiser, then train epoch by epoch."""
    dataset, epochs = make_dataset(configs), configs.optim.epochs
    # The run keeps what was decided.
    configs = configs._replace(data=replace(configs.data, source_crop=dataset.source_crop))
    loader = loop.clip_loader(run, dataset, configs.optim.batch_size)
    warn_of_contrast(configs)

    torch.manual_seed(run.config.seed)
    model = make_model(configs).to(run.device)
    logger.info("%s: %.2f M parameters", configs.model.model_name, num_parameters(model) / 1e6)
    state = make_state(run, configs, model, loader, {"training": dataset.clips})
    resume(state, find_checkpoint(run))

    trained, compute_loss = loop.as_trained(model, run.config, run.device), make_loss(configs.loss)
    record = run.output_dir / "skipped_clips.csv"
    skipped = SkippedClips(record, len(dataset), configs.data.max_bad_clips)
    with state.open_logs():
        for epoch in range(state.epoch, epochs):
            means = loop.train_one_epoch(trained, loader, compute_loss, state, skipped)
            if distributed.is_main() and run.draws(epoch):
                log_images(state, dataset, configs.loss)
            state.end_epoch(means)
        state.finish()
    state.show_final(final_metrics(run))
    logger.info("pre-training done: %s/checkpoint-%d.pth", run.output_dir, epochs - 1)


def make_dataset(configs: PretrainConfigs) -> PretrainClips:
    """Read the list, train.csv in a folder, or shards, and describe how clips are drawn."""
    data, size, options = configs.data, configs.clip.input_size, loop.clip_options(configs)
    clips = read_pretrain_list(data.data_path, data.data_root)
    crop = decide_source_crop(data.source_crop, data.data_path, clips, size)
    return PretrainClips(clips, source_crop=crop, **vars(configs.mask), **options)


def warn_of_contrast(configs: PretrainConfigs) -> None:
    """Warn where a sample is contrasted with nothing: its loss is 0, its accuracy 1."""
    loss, clips = configs.loss, configs.optim.batch_size * configs.data.num_samples
    if loss.gather:
        clips *= distributed.world_size()
    if clips == 1 and loss.loss_weight and loss.contrastive_levels != "none":
        logger.warning(
            "the contrast gets 1 sample a pass (--batch_size 1), expected 2 or more: its loss is "
            "always 0 and its accuracy 1; raise --batch_size, use --gather_negatives with several "
            "processes, or say --contrastive_levels none"
        )


def make_model(configs: PretrainConfigs) -> nn.Module:
    """Create the model of the chosen size, depths and clip geometry."""
    options = {**vars(configs.model), **configs.clip.of_model()}
    return timm.create_model(**options, cpu_gemm=configs.run.cpu_gemm)


def make_loss(config: PretrainLossConfig) -> loop.ComputeLoss:
    """Return the function that takes a batch to its loss and the parts to log."""

    def compute_loss(model: nn.Module, batch: PretrainBatch) -> tuple[Tensor, loop.LossParts]:
        # The masks are still on the CPU: splitting them there costs a GPU no synchronisation.
        split, split_audio, *light = (
            split_tokens(mask, None, name, name.startswith("contrast")).to(batch.video.device)
            for name, mask in batch._asdict().items()
            if "mask" in name and mask is not None
        )
        output = model(batch.video, split, batch.audio, split_audio, light)
        loss = pretrain_loss(output, batch.video, split, batch.audio, split_audio, **vars(config))
        parts = {"loss_video": loss.video, "loss_audio": loss.audio}
        if loss.contrast is not None:
            parts["loss_contrastive"] = loss.contrast
        levels = contrasted(len(output.video_levels), config.contrastive_levels)
        both = (output.video_levels, output.audio_levels)
        accuracies = contrastive_accuracy(*([stream[k] for k in levels] for stream in both))
        parts |= {f"contrastive_acc_{k}": v for k, v in zip(levels, accuracies, strict=True)}
        return loss.total, parts

    return compute_loss


def final_metrics(run: Run) -> dict[str, float]:
    """Return losses and contrastive accuracies of the last epoch, maybe of an earlier start."""
    last = read_lines(run.output_dir / "log.txt")[-1:]
    return {
        f"train_last/{name.removeprefix('train_')}": value
        for name, value in (last[0] if last else {}).items()
        if name.startswith(("train_loss", "train_contrastive_acc")) and value is not None
    }


def log_images(state: TrainState, dataset: PretrainClips, loss: PretrainLossConfig) -> None:
    """Show what the model makes of the first clips of the list, always with the same masks."""
    # Imported where it is drawn: the other ranks need no matplotlib.
    from hicmae.inference.style import figure_to_image
    from hicmae.visualize.clips import rebuild_clips, reconstruction_figure

    items = [dataset[ClipIndex(0, index)] for index in range(min(2, len(dataset)))]
    rebuilt = rebuild_clips(state.model, dataset.collate(items), loss, state.run.precision)
    for index, clip in enumerate(rebuilt[:: dataset.num_samples]):  # one draw of each clip
        image = figure_to_image(reconstruction_figure([clip]))
        state.logs.board.image(f"reconstruction/{index}", image, state.last_step)
