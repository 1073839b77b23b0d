"""Parts of a run small enough to check by hand."""

import numpy as np
import torch

from hicmae.config import OptimConfig, RunConfig
from hicmae.training.run import Run, choose_precision
from hicmae.training.state import MetricBuffer, Plan, TrainState

CPU = torch.device("cpu")


def run_in(folder, precision="fp32", **config):
    config = RunConfig(output_dir=str(folder), **config)
    return Run(config, choose_precision(precision, CPU))


def plan_of(steps, accum_iter=1, lr=0.1, clip_grad=None, **changes):
    """One epoch of steps whose learning rate falls to half of `lr`."""
    optim = OptimConfig(
        batch_size=2, accum_iter=accum_iter, clip_grad=clip_grad, epochs=1, warmup_epochs=0
    )
    values = {"settings": {}, "optim": optim, "clips": {}, "steps": steps, "world_size": 1,
              "total_batch": 2 * accum_iter, "lr": np.linspace(lr, lr / 2, steps),
              "weight_decay": np.zeros(steps), **changes}  # fmt: skip
    return Plan(**values)


def state_of(model, run, plan, make=torch.optim.SGD, **options):
    optimizer = make(model.parameters(), lr=1.0, weight_decay=0.0, **options)
    metrics = MetricBuffer(run.config.max_bad_steps)
    return TrainState(plan, model, optimizer, run.precision.grad_scaler(), metrics)
