"""Training steps exactly as a run makes them, watched from outside."""

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import timm
import torch

from hicmae.benchmark.settings import SIZES
from hicmae.config import DataConfig, RunConfig, add_arguments, from_args
from hicmae.data.batches import PretrainBatch
from hicmae.data.loader import SkippedClips
from hicmae.training import distributed
from hicmae.training.logs import RunLogger
from hicmae.training.loop import as_trained, train_one_epoch
from hicmae.training.pretraining import PretrainConfigs, make_loss, make_model
from hicmae.training.run import Session, make_optimization

NOT_SET = "-"  # stands for a path that a benchmark does not need


def add_training_flags(parser: argparse.ArgumentParser, data_path: str = NOT_SET) -> None:
    """Add the flags of run_pretraining.py, so that what is measured is what is trained."""
    for config in PretrainConfigs.__annotations__.values():
        own = {RunConfig: {"output_dir": NOT_SET}, DataConfig: {"data_path": data_path}}
        add_arguments(parser, config, **own.get(config, {}))


def training_configs(args: argparse.Namespace, output_dir: str) -> PretrainConfigs:
    """Build the settings from parsed flags; the run writes to a folder of its own.

    Raises:
        ValueError: from a setting's own check.
    """
    types = PretrainConfigs.__annotations__
    if args.model.lower() in SIZES:
        args.model = f"pretrain_hicmae_dim{SIZES[args.model.lower()]}_patch16_160_a256"
    if not timm.is_model(args.model):
        raise ValueError(f"--model {args.model} is not known; use t, s, b or a registered name")
    configs = PretrainConfigs(**{name: from_args(args, types[name]) for name in types})
    return configs._replace(run=replace(configs.run, output_dir=output_dir, log_dir=""))


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Refuse flags below a least value."""
    for name, bound in least.items():
        if getattr(args, name) < bound:
            raise ValueError(f"--{name} must be at least {bound}, got {getattr(args, name)}")


class Steps(NamedTuple):
    """What was seen of some steps, one number each, in seconds."""

    durations: list[float]  # from asking for the batch to asking for the next one
    waits: list[float]  # of these, the time in which the device could only wait for the batch
    cpu: list[float]  # of this process on all cores; neighbours on the machine do not count

    @property
    def wait_share(self) -> float:
        """Return the share of the time that the device waited for batches."""
        return sum(self.waits) / sum(self.durations)


def spread(durations: Sequence[float], name: str = "step_s") -> dict[str, float]:
    """Return the median of some durations under a name, and their quartiles beside it."""
    low, median, high = np.percentile(durations, (25, 50, 75)).tolist()
    return {name: median, f"{name}_quartile1": low, f"{name}_quartile3": high}


class _Mark:
    """A point in the device's own time: on a GPU, when it has done all that was asked before."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.time, self.cpu = time.perf_counter(), time.process_time()

    def until(self, other: "_Mark") -> float:
        """Return the seconds from here to a later mark."""
        if self.event is None or other.event is None:
            return other.time - self.time
        return self.event.elapsed_time(other.event) / 1e3


class _Watched:
    """Hands batches on, and notes when each was asked for and when it was there."""

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self.batches, self.device = iter(batches), device
        self.asked: list[_Mark] = []
        self.given: list[_Mark] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.asked.append(_Mark(self.device))
            batch = next(self.batches)
            self.given.append(_Mark(self.device))
            yield batch

    def steps(self, accum_iter: int, warmup: int) -> Steps:
        """Sum up, once all steps are done."""
        end = _Mark(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        pairs = list(itertools.pairwise([*self.asked[::accum_iter], end]))
        durations = [a.until(b) for a, b in pairs]
        cpu = [b.cpu - a.cpu for a, b in pairs]
        waits = [a.until(b) for a, b in zip(self.asked, self.given, strict=True)]
        groups = range(0, len(waits), accum_iter)
        waits = [sum(waits[first : first + accum_iter]) for first in groups]
        return Steps(durations[warmup:], waits[warmup:], cpu[warmup:])


class Trainer:
    """Model, loss and optimiser of a pre-training run, as run_pretraining.py puts them together.

    Args:
        session: device, precision, seed and a folder for the logs.
        configs: settings of the run.
        steps: most steps that `run` is ever asked for, warm-up included.
        exchange: whether several processes exchange their gradients.
        ddp_options: see `distribute`.
    """

    def __init__(
        self,
        session: Session,
        configs: PretrainConfigs,
        steps: int,
        exchange: bool = True,
        **ddp_options: Any,
    ) -> None:
        self.session, self.configs = session, configs
        torch.manual_seed(session.run.seed)
        model = make_model(configs).to(session.device)
        self.optimization = make_optimization(model, configs.optim, session.precision, steps)
        self.model = as_trained(model, session.run, session.device, exchange, **ddp_options)
        self.compute_loss = make_loss(configs.loss)

    def run(self, batches: Iterable[PretrainBatch], steps: int, warmup: int) -> Steps:
        """Train for warmup + steps steps; return what was seen of the latter."""
        watched = _Watched(batches, self.session.device)
        folder = self.session.output_dir
        with RunLogger(folder, main=distributed.is_main(), resume_step=0) as logger:
            train_one_epoch(
                self.model,
                watched,
                self.compute_loss,
                self.optimization,
                epoch=0,
                epochs=1,
                steps=warmup + steps,
                seed=self.session.run.seed,
                logger=logger,
                skipped=SkippedClips(folder / "skipped_clips.csv", 1, 1.0),
                print_freq=self.session.run.print_freq,
                max_bad_steps=self.session.run.max_bad_steps,
            )
            return watched.steps(self.configs.optim.accum_iter, warmup)
