"""Time the scoring of test clips by ours and by the plain baseline, in turns, on random clips.

A clip has two windows in time and two crops of square frames, which are the same pixels. Ours
computes each window once, all clips of a batch together. The plain baseline computes all four views
one after the other, as the original does. `ratio` counts clips, `ratio_per_view` forward passes.
"""

import argparse
import copy
from typing import Any

import torch
from torch import Tensor, nn

from hicmae.benchmark import finetune, runner
from hicmae.benchmark.flops import Parts, classifier_forward
from hicmae.benchmark.settings import BenchmarkConfig
from hicmae.benchmark.workload import Step, Workload, plain, random_clips, relative_error
from hicmae.data.batches import ViewBatch
from hicmae.training.evaluate import predict
from hicmae.training.run import Precision

WINDOWS, CROPS = 2, 2


def make_ours(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build our scoring of a batch of clips, the one of `hicmae.training.evaluate`."""
    model = runner.seeded(config, config.classifier).to(precision.device).eval()
    clips = random_clips(config, model, batch * WINDOWS, precision.device)
    numbers = torch.arange(batch)
    views = ViewBatch(
        clips.video,
        clips.audio,
        numbers.repeat_interleave(WINDOWS),
        numbers,
        torch.zeros_like(numbers),
        ("",) * batch,
        (),
    )
    scored = runner.with_levers(config, model)
    return lambda: predict(scored, [views], precision, "classification", "")


def make_plain(config: BenchmarkConfig, precision: Precision, batch: int) -> Step:
    """Build the plain scoring: view after view, each for all clips of the batch."""
    ours = runner.seeded(config, config.classifier)
    device = precision.device
    clips = random_clips(config, ours, batch * WINDOWS, device)
    windows = [(clips.video[k::WINDOWS], clips.audio[k::WINDOWS]) for k in range(WINDOWS)]
    model, views = finetune.plain_model(config, ours).to(device), windows * CROPS
    score = plain("training").score_views
    return lambda: score(model, views, device).mean(dim=0)


def count_flops(config: BenchmarkConfig) -> Parts:
    """Count the operations by part, for each clip."""
    forward = classifier_forward(config.classifier())
    return {part: WINDOWS * count for part, count in forward.items()}


@torch.inference_mode()
def measure_errors(config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Compare the probabilities of ours with those of the same model in float64."""
    model = runner.seeded(config, config.classifier).to(precision.device).eval()
    clips = random_clips(config, model, 2, precision.device)
    exact = _probabilities(
        copy.deepcopy(model).double(), clips, Precision("fp32", precision.device)
    )
    own = _probabilities(runner.with_levers(config, model), clips, precision)
    return {"prediction_error": relative_error(own, exact)}


def _probabilities(model: nn.Module, clips: Any, precision: Precision) -> Tensor:
    dtype = next(model.parameters()).dtype
    with precision.autocast():
        scores = model(clips.video.to(dtype), clips.audio.to(dtype))
    return scores.double().softmax(dim=-1)


WORKLOAD = Workload(
    "infer", make_ours, make_plain, count_flops, measure_errors, (WINDOWS, WINDOWS * CROPS)
)
add_arguments = runner.add_arguments
show = runner.show


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the figures."""
    return runner.run(WORKLOAD, args)
