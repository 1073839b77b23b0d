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
from hicmae.data.loading import ClipSampler, SkippedClips, make_loader
from hicmae.training import checkpoint, distributed
from hicmae.training.engine import ComputeLoss, Optimization, train_one_epoch
from hicmae.training.logger import RunLogger, setup_logging
from hicmae.training.optim import cosine_schedule, make_optimizer, parameter_groups
from hicmae.training.precision import Precision, choose_precision

logger = logging.getLogger(__name__)

EXPECTED = (ValueError, OSError, RuntimeError)  # what bad input raises; the message is enough


class Session(NamedTuple):
    """A process's place in the run."""

    output_dir: Path
    log_dir: Path
    precision: Precision
    run: RunConfig
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
        yield Session(output_dir, Path(run.log_dir or output_dir), precision, run, settings)
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


def training_loader(session: Session, dataset: Dataset, batch_size: int) -> DataLoader:
    """Build the loader of this rank's share of the training clips, shuffled anew each epoch."""
    sampler = ClipSampler(
        len(dataset),  # type: ignore[arg-type]
        shuffle=True,
        seed=session.run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
    )
    workers = session.run.num_workers
    return make_loader(dataset, sampler, batch_size, workers, True, session.device.type)


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for several processes; alone it is returned as it is."""
    if distributed.world_size() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def resume_training(
    session: Session, model: nn.Module, optimization: Optimization
) -> dict[str, Any]:
    """Load the state of an earlier run into model and optimiser.

    Returns:
        The checkpoint, or a fresh start: {"epoch": -1}.

    Raises:
        ValueError: --resume names a checkpoint of another model or other settings.
    """
    state, path = None, Path(session.run.resume)
    if session.run.resume:
        state = checkpoint.load(path)
    elif session.run.auto_resume:
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


def train_epochs(
    session: Session,
    model: nn.Module,
    loader: DataLoader,
    compute_loss: ComputeLoss,
    optimization: Optimization,
    first_epoch: int,
    max_bad_clips: float,
) -> Iterator[tuple[int, dict[str, float], RunLogger]]:
    """Train epoch by epoch, handing over after each for validation and saving.

    Args:
        session: of this process.
        model: not wrapped for several processes yet; changed in place.
        loader: of `training_loader`.
        compute_loss: see `train_one_epoch`.
        optimization: its schedules say how many epochs there are.
        first_epoch: 0, or the first that a resumed run has left.
        max_bad_clips: share of unreadable clips at which training stops.

    Yields:
        Epoch, means over its steps, and the logger of the run.
    """
    trained = distribute(model, session.device)
    steps = len(loader) // optimization.accum_iter
    epochs = len(optimization.lr) // steps
    num_clips = len(loader.dataset)  # type: ignore[arg-type]
    skipped = SkippedClips(session.output_dir / "skipped_clips.csv", num_clips, max_bad_clips)
    with RunLogger(
        session.output_dir,
        session.log_dir,
        distributed.is_main(),
        resume_step=first_epoch * steps,
        resume_epoch=first_epoch,
    ) as run_logger:
        for epoch in range(first_epoch, epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
            means = train_one_epoch(
                trained,
                loader,
                compute_loss,
                optimization,
                epoch=epoch,
                epochs=epochs,
                steps=steps,
                seed=session.run.seed,
                logger=run_logger,
                skipped=skipped,
                print_freq=session.run.print_freq,
            )
            run_logger.scalars((epoch + 1) * steps, means, prefix="epoch")
            yield epoch, means, run_logger


def save_training(
    session: Session,
    name: str,
    model: nn.Module,
    optimization: Optimization,
    epoch: int,
    **more: Any,
) -> None:
    """Write `checkpoint-<name>.pth` with the keys of the original, and prune; only rank 0 does."""
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
    checkpoint.prune(session.output_dir, session.run.save_ckpt_freq)


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
