"""What both entry scripts do around training: device, folder, logs, signals, exit codes, parts."""

import gc
import json
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hicmae.config.common import OptimConfig, RunConfig
from hicmae.data.loading import ClipSampler, make_loader
from hicmae.models.onednn import choose_cpu_gemm
from hicmae.training import distributed
from hicmae.training.changes import RunShape
from hicmae.training.engine import Optimization
from hicmae.training.logger import setup_logging
from hicmae.training.optim import (
    cosine_schedule,
    layer_scales,
    make_optimizer,
    parameter_groups,
)
from hicmae.training.output import own_folder, remove_leftovers, write_whole
from hicmae.training.precision import Precision, choose_precision
from hicmae.training.randomness import determinism
from hicmae.training.signals import RESUMABLE, Stopped, StopRequest, stop_request
from hicmae.training.workers import end

logger = logging.getLogger(__name__)

EXPECTED = (ValueError, OSError, RuntimeError)  # what bad input raises; the message is enough


class Session(NamedTuple):
    """A process's place in the run."""

    output_dir: Path
    log_dir: Path
    precision: Precision
    run: RunConfig
    settings: dict[str, Any]  # all flags as plain values
    stop: StopRequest

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.precision.device


@contextmanager
def open_session(
    run: RunConfig, settings: dict[str, Any], trains: bool = True
) -> Iterator[Session]:
    """Start the process group and the logs, listen to signals, and clean up at the end.

    Args:
        run: where and how to run.
        settings: all flags as plain values.
        trains: whether the output folder must be this run's alone, and leftovers of a killed run
            in it are removed; a mere test may look on while another run trains.
    """
    others = set(multiprocessing.active_children())
    output_dir = Path(run.output_dir)
    with ExitStack() as stack:
        stack.enter_context(determinism(run.deterministic))
        device = distributed.start(run.device)
        stack.callback(distributed.stop)
        stack.callback(_end_workers, others)
        stop = stack.enter_context(stop_request())
        precision = choose_precision(run.precision, device)
        choose_cpu_gemm(run.cpu_gemm)
        if trains and distributed.is_main():
            stack.enter_context(own_folder(output_dir))
        setup_logging(output_dir, distributed.is_main())
        if trains and distributed.is_main():
            remove_leftovers(output_dir)
        logger.info(
            "device %s, precision %s, %d process(es), output in %s",
            device,
            precision.name,
            distributed.world_size(),
            output_dir,
        )
        log_dir = Path(run.log_dir or output_dir)
        yield Session(output_dir, log_dir, precision, run, settings, stop)


def _end_workers(others: set[Any]) -> None:
    """Let loaders that nobody uses any more end their processes, then end those that are left."""
    gc.collect()
    end([child for child in multiprocessing.active_children() if child not in others])


def write_settings(session: Session) -> None:
    """Write config.json; only rank 0 does."""
    if distributed.is_main():
        text = json.dumps(session.settings, indent=2) + "\n"
        write_whole(session.output_dir / "config.json", text)


def run_command(main: Callable[[Sequence[str] | None], None]) -> int:
    """Run an entry script; show expected errors as one line and keep the trace in run.log.

    Returns:
        The exit code: 0 done, 1 an error, 75 (`RESUMABLE`) stopped by SIGTERM or SIGUSR1 with the
        state saved, 130 interrupted at the keyboard.
    """
    try:
        main(None)
    except Stopped as stopped:
        text = "%s; start the same command again to go on (exit code %d)"
        logger.warning(text, stopped, RESUMABLE)
        return RESUMABLE
    except EXPECTED as error:
        record = logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (error,), sys.exc_info())
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: interrupted\n")
        return 130
    return 0


def make_optimization(
    model: nn.Module,
    optim: OptimConfig,
    precision: Precision,
    steps: int,
    layer_decay: float | None = None,
) -> Optimization:
    """Build optimiser, schedules and loss scaler for `steps` optimisation steps an epoch."""
    world_size = distributed.world_size()
    lr, min_lr = (optim.scaled(value, world_size) for value in (optim.lr, optim.min_lr))
    groups = parameter_groups(model, optim.weight_decay, layer_decay)
    logger.info(
        "total batch %d, learning rate %.3g to %.3g, %d steps an epoch",
        optim.batch_size * optim.accum_iter * world_size,
        lr,
        min_lr,
        steps,
    )
    last_decay = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    return Optimization(
        optimizer=make_optimizer(groups, lr, optim.opt_betas, optim.opt_eps),
        scaler=precision.grad_scaler(),
        precision=precision,
        lr=cosine_schedule(
            lr,
            min_lr,
            optim.epochs,
            steps,
            min(optim.warmup_epochs, optim.epochs),
            warmup_steps=optim.warmup_steps,
        ),
        weight_decay=cosine_schedule(optim.weight_decay, last_decay, optim.epochs, steps),
        accum_iter=optim.accum_iter,
        clip_grad=optim.clip_grad,
        layer_scales=layer_scales(model, layer_decay),
    )


def run_shape(loader: DataLoader, optim: OptimConfig, clips: dict[str, str]) -> RunShape:
    """Return how the steps of an epoch share the clips, alike for all numbers of processes.

    Args:
        loader: of `training_loader`.
        optim: its batches.
        clips: description of each list, of `describe_clips`.

    Raises:
        ValueError: an epoch is shorter than one step.
    """
    batches, world_size = len(loader), distributed.world_size()
    if batches < optim.accum_iter:
        raise ValueError(
            f"an epoch has {batches} batch(es) a process, fewer than --accum_iter "
            f"{optim.accum_iter}; lower --accum_iter or --batch_size"
        )
    total_batch = optim.batch_size * optim.accum_iter * world_size
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    return RunShape(clips, max(num_clips // total_batch, 1), total_batch, world_size)


def training_loader(session: Session, dataset: Dataset, batch_size: int) -> DataLoader:
    """Build the loader of this rank's share of the training clips, shuffled anew each epoch."""
    sampler = ClipSampler(
        len(dataset),  # type: ignore[arg-type]  # ours have a length
        shuffle=True,
        seed=session.run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
        shards=getattr(dataset.clips, "shard_of", None),  # type: ignore[attr-defined]  # ours have
    )
    workers = session.run.num_workers
    return make_loader(dataset, sampler, batch_size, workers, True, session.device.type)


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
