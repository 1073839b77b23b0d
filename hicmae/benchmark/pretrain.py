"""Time pre-training steps of ours and of the plain baseline, in turns, on random clips."""

import argparse
import copy
from typing import Any

import torch
from torch import Tensor, nn

from hicmae.benchmark import runner
from hicmae.benchmark.flops import Parts, pretrain_flops
from hicmae.benchmark.settings import BenchmarkConfig
from hicmae.benchmark.workload import (
    Clips,
    Step,
    Workload,
    flat_gradient,
    heads_of,
    plain,
    random_clips,
    training_errors,
)
from hicmae.config import PretrainLossConfig
from hicmae.data.batches import PretrainBatch
from hicmae.models.pretrain import HiCMAE
from hicmae.training.loop import ComputeLoss, train_step
from hicmae.training.pretraining import make_loss
from hicmae.training.run import Precision

LOSS = PretrainLossConfig(use_frame_diff_as_target=True)  # as in the VoxCeleb2 script


def make_ours(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build our pre-training step, the one of `hicmae.training.loop`."""
    model = runner.seeded(config, config.pretraining_model).to(precision.device)
    clips = random_clips(config, model, batch, precision.device)
    batches = [PretrainBatch(*clips, names=("",) * batch, skipped=())]
    compute_loss: ComputeLoss = make_loss(LOSS)
    trained, optimization = runner.prepared(config, model, precision)
    return lambda: train_step(trained, batches, compute_loss, optimization)


def plain_model(config: BenchmarkConfig, ours: HiCMAE) -> nn.Module:
    """Build the plain model with the weights and sizes of ours."""
    model = plain("model").PlainPretraining(
        dim=config.width,
        heads=heads_of(ours.encoder),
        decoder_dim=ours.decoder.head.in_features,
        decoder_heads=heads_of(ours.decoder),
        keep=config.levels,
        **runner.plain_sizes(config),
    )
    model.load_state_dict(ours.state_dict())
    return model


def make_plain(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build the plain pre-training step."""
    ours = runner.seeded(config, config.pretraining_model)
    device = precision.device
    clips = Clips(*(part.to(device) for part in random_clips(config, ours, batch, device)))
    trainer = plain("training").PlainTrainer(plain_model(config, ours).to(device), device)
    return lambda: trainer.pretrain_step(*clips)


def count_flops(config: BenchmarkConfig) -> Parts:
    """Count the operations of a step by part, for each clip."""
    return pretrain_flops(config.pretraining_model())


def measure_errors(config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Compare ours with the same model in float64: predictions, loss and gradients."""
    model = runner.seeded(config, config.pretraining_model).to(precision.device)
    clips = random_clips(config, model, 2, precision.device)
    exact = _backward(copy.deepcopy(model).double(), clips, Precision("fp32", precision.device))
    own = _backward(runner.with_levers(config, model), clips, precision)
    return training_errors(own, exact)


def _backward(model: nn.Module, clips: Clips, precision: Precision) -> tuple[Tensor, ...]:
    """Return predictions, loss and gradients, flattened."""
    dtype = next(model.parameters()).dtype
    batch = PretrainBatch(*clips, names=("", ""), skipped=())
    batch = batch._replace(video=clips.video.to(dtype), audio=clips.audio.to(dtype))
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with precision.autocast():
        loss, _ = make_loss(LOSS)(model, batch)
    loss.backward()
    handle.remove()
    predictions = torch.cat([part.detach().flatten() for part in seen[0][:2]])
    return predictions, loss, flat_gradient(model)


WORKLOAD = Workload("pretrain", make_ours, make_plain, count_flops, measure_errors)
add_arguments = runner.add_arguments
show = runner.show


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the figures."""
    return runner.run(WORKLOAD, args)
