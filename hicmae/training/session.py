"""What both entry scripts do around training: device, logs, settings file, resuming, saving."""

import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from hicmae.config.common import OptimConfig, RunConfig
from hicmae.data.loading import ClipSampler, make_loader
from hicmae.training import checkpoint, distributed
from hicmae.training.engine import Optimization
from hicmae.training.logger import setup_logging
from hicmae.training.optim import cosine_schedule, make_optimizer, parameter_groups
from hicmae.training.precision import Precision, choose_precision

logger = logging.getLogger(__name__)

EXPECTED = (ValueError, OSError, RuntimeError)  # what bad input raises; the message is enough


class Session(NamedTuple):
    """A process's place in the run."""

    output_dir: Path
    log_dir: Path
    precision: Precision
    settings: dict[str, Any]  # all flags as plain values

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.precision.device


@contextmanager
def open_session(run: RunConfig, settings: dict[str, Any]) -> Iterator[Session]:
    """Start the process group and the logs, write config.json, and clean up at the end."""
    device = distributed.start(run.device)
    try:
        precision = choose_precision(run.precision, device)
        output_dir = Path(run.output_dir)
        setup_logging(output_dir, distributed.is_main())
        if distributed.is_main():
            text = json.dumps(settings, indent=2) + "\n"
            (output_dir / "config.json").write_text(text, encoding="utf-8")
        logger.info(
            "device %s, precision %s, %d process(es), output in %s",
            device,
            precision.name,
            distributed.world_size(),
            output_dir,
        )
        yield Session(output_dir, Path(run.log_dir or output_dir), precision, settings)
    finally:
        gc.collect()
        distributed.stop()


def run_command(main: Callable[[Sequence[str] | None], None]) -> int:
    """Run an entry script; show expected errors as one line and keep the trace in run.log."""
    try:
        main(None)
    except EXPECTED as error:
        record = logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (error,), sys.exc_info())
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
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
    )


def steps_per_epoch(batches: int, accum_iter: int) -> int:
    """Return the optimisation steps of an epoch.

    Raises:
        ValueError: an epoch is shorter than one step.
    """
    if batches < accum_iter:
        raise ValueError(
            f"an epoch has {batches} batch(es) a process, fewer than --accum_iter {accum_iter}; "
            "lower --accum_iter or --batch_size"
        )
    return batches // accum_iter


def training_loader(
    session: Session, dataset: Dataset, batch_size: int, run: RunConfig
) -> DataLoader:
    """Build the loader of this rank's share of the training clips, shuffled anew each epoch."""
    sampler = ClipSampler(
        len(dataset),  # type: ignore[arg-type]
        shuffle=True,
        seed=run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
    )
    return make_loader(dataset, sampler, batch_size, run.num_workers, True, session.device.type)


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for several processes; alone it is returned as it is."""
    if distributed.world_size() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def resume_training(
    run: RunConfig, session: Session, model: nn.Module, optimization: Optimization
) -> dict[str, Any]:
    """Load the state of an earlier run into model and optimiser.

    Returns:
        The checkpoint, or a fresh start: {"epoch": -1}.

    Raises:
        ValueError: --resume names a checkpoint of another model or other settings.
    """
    state, path = None, Path(run.resume)
    if run.resume:
        state = checkpoint.load(path)
    elif run.auto_resume:
        found = checkpoint.newest(session.output_dir)
        path, state = found if found else (path, None)
    if state is None:
        return {"epoch": -1}
    missing = {"model", "optimizer", "epoch"} - state.keys()
    if missing or not isinstance(state["epoch"], int):
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed: it lacks "
            f"{sorted(missing) or 'an epoch number'}; use --finetune for released weights"
        )
    try:
        model.load_state_dict(state["model"])
        optimization.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint '{path}' does not fit this model ({reason}); "
            "repeat the run's model flags, or choose another --output_dir"
        ) from error
    if state.get("scaler"):
        optimization.scaler.load_state_dict(state["scaler"])
    logger.info("resumed from %s after epoch %d", path, state["epoch"])
    return state


def save_training(
    session: Session,
    name: str,
    model: nn.Module,
    optimization: Optimization,
    epoch: int,
    **more: Any,
) -> None:
    """Write `checkpoint-<name>.pth` with the keys of the original; only rank 0 does."""
    if not distributed.is_main():
        return
    state = {
        "model": model.state_dict(),
        "optimizer": optimization.optimizer.state_dict(),
        "scaler": optimization.scaler.state_dict(),
        "epoch": epoch,
        "args": session.settings,
        **more,
    }
    checkpoint.save(session.output_dir / f"checkpoint-{name}.pth", state)


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
