"""Time fine-tuning steps of ours and of the plain baseline, in turns, on random clips."""

import argparse
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hicmae.benchmark import runner
from hicmae.benchmark.flops import Parts, classifier_forward, training_step
from hicmae.benchmark.settings import BenchmarkConfig
from hicmae.benchmark.workload import (
    Step,
    Workload,
    flat_gradient,
    heads_of,
    plain,
    random_clips,
    training_errors,
)
from hicmae.data.batches import LabelledBatch
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.training.loop import LossParts, train_step
from hicmae.training.run import Precision

DROP_PATH, LAYER_DECAY = 0.1, 0.75
BETAS = (0.9, 0.999)


def labelled_batch(
    config: BenchmarkConfig, model: HiCMAEClassifier, batch: int, device: Any
) -> Any:
    """Draw clips with soft targets (B, K), as mixup and cutmix leave them."""
    clips = random_clips(config, model, batch, device)
    generator = torch.Generator().manual_seed(config.seed + 1)
    target = torch.rand(batch, model.head.out_features, generator=generator).softmax(dim=-1)
    return LabelledBatch(clips.video, clips.audio, target.to(device), ("",) * batch, ())


def compute_loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, LossParts]:
    """Return the loss of the scripts once a batch is mixed."""
    return F.cross_entropy(model(batch.video, batch.audio).float(), batch.target), {}


def make_ours(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build our fine-tuning step, the one of `hicmae.training.loop`."""
    model = runner.seeded(config, lambda: config.classifier(DROP_PATH)).to(precision.device)
    batches = [labelled_batch(config, model, batch, precision.device)]
    trained, optimization = runner.prepared(config, model, precision, LAYER_DECAY, BETAS)
    return lambda: train_step(trained, batches, compute_loss, optimization)


def plain_model(
    config: BenchmarkConfig, ours: HiCMAEClassifier, drop_path: float = 0.0
) -> nn.Module:
    """Build the plain classifier with the weights and sizes of ours."""
    model = plain("model").PlainClassifier(
        dim=config.width,
        heads=heads_of(ours.encoder),
        num_classes=ours.head.out_features,
        drop=drop_path,
        **runner.plain_sizes(config),
    )
    model.load_state_dict(ours.state_dict())
    return model


def make_plain(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build the plain fine-tuning step."""
    ours = runner.seeded(config, config.classifier)
    device = precision.device
    data = labelled_batch(config, ours, batch, device)
    model = plain_model(config, ours, DROP_PATH).to(device)
    trainer = plain("training").PlainTrainer(model, device, BETAS)
    return lambda: trainer.finetune_step(data.video, data.audio, data.target)


def count_flops(config: BenchmarkConfig) -> Parts:
    """Count the operations of a step by part, for each clip."""
    return training_step(classifier_forward(config.classifier()))


def measure_errors(config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Compare ours with the same model in float64: scores, loss and gradients."""
    model = runner.seeded(config, config.classifier).to(precision.device)
    data = labelled_batch(config, model, 2, precision.device)
    exact = _backward(copy.deepcopy(model).double(), data, Precision("fp32", precision.device))
    own = _backward(runner.with_levers(config, model), data, precision)
    return training_errors(own, exact)


def _backward(model: nn.Module, data: Any, precision: Precision) -> tuple[Tensor, ...]:
    dtype = next(model.parameters()).dtype
    with precision.autocast():
        scores = model(data.video.to(dtype), data.audio.to(dtype))
    loss = F.cross_entropy(scores.to(torch.promote_types(dtype, torch.float32)), data.target)
    loss.backward()
    return scores, loss, flat_gradient(model)


WORKLOAD = Workload("finetune", make_ours, make_plain, count_flops, measure_errors)
add_arguments = runner.add_arguments
show = runner.show


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the figures."""
    return runner.run(WORKLOAD, args)
