"""The epochs of a run, from where it stands to the end."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from hicmae.config.common import RunConfig
from hicmae.data.loading import SkippedClips
from hicmae.training import distributed, hparams
from hicmae.training.engine import ComputeLoss, Optimization, train_one_epoch
from hicmae.training.logger import RunLogger
from hicmae.training.provenance import provenance
from hicmae.training.saving import Saver
from hicmae.training.session import Session
from hicmae.training.speed import checkpoint_activations, compiled
from hicmae.training.window import BadSteps
from hicmae.training.workers import epoch_batches

logger = logging.getLogger(__name__)

# Chosen by `python -m hicmae.benchmark ranks`. static_graph is not among them: it forbids the
# passes without synchronisation that --accum_iter makes.
DDP_OPTIONS = {"gradient_as_bucket_view": True}


def distribute(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """Wrap the model for several processes; alone it is returned as it is.

    Args:
        model: on its device; every parameter takes part in every step.
        device: of this process.
        options: of DistributedDataParallel, in place of ours (`hicmae.benchmark ranks` compares).
    """
    if distributed.world_size() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, **{**DDP_OPTIONS, **options})


def as_trained(
    model: nn.Module, run: RunConfig, device: torch.device, exchange: bool = True, **options: Any
) -> nn.Module:
    """Return the model as it trains: for several processes, compiled, saving memory, as asked.

    Args:
        model: on its device; it shares its parameters with what is returned.
        run: says what is asked.
        device: of this process.
        exchange: False leaves the processes to themselves (to measure what the exchange costs).
        options: see `distribute`.
    """
    if run.checkpoint_activations:
        checkpoint_activations(model)
    trained = distribute(model, device, **options) if exchange else model
    return compiled(trained, run.cuda_graphs) if run.compile else trained


def train_epochs(
    session: Session,
    model: nn.Module,
    loader: DataLoader,
    compute_loss: ComputeLoss,
    optimization: Optimization,
    saver: Saver,
    max_bad_clips: float,
) -> Iterator[tuple[int, dict[str, float], RunLogger]]:
    """Train epoch by epoch, handing over after each; then `saver.end_epoch` must be called.

    Args:
        session: of this process.
        model: not wrapped for several processes yet; changed in place.
        loader: of `training_loader`.
        compute_loss: see `train_one_epoch`.
        optimization: its schedules say how many epochs there are.
        saver: knows where the run stands.
        max_bad_clips: share of unreadable clips at which training stops.

    Yields:
        Epoch, means over its steps, and the logger of the run.
    """
    steps = saver.shape.steps
    epochs = len(optimization.lr) // steps
    if saver.place.epoch >= epochs:
        logger.info("training is finished: all %d epochs are done", epochs)
        return
    trained = as_trained(model, session.run, session.device)
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    skipped = SkippedClips(session.output_dir / "skipped_clips.csv", num_clips, max_bad_clips)
    with open_logs(session, saver) as saver.logger:
        for epoch in range(saver.place.epoch, epochs):
            saver.check()
            done, state = saver.take_resumed()
            try:
                means = train_one_epoch(
                    trained,
                    epoch_batches(loader, epoch, first=done * optimization.accum_iter),
                    compute_loss,
                    optimization,
                    epoch=epoch,
                    epochs=epochs,
                    steps=steps,
                    seed=session.run.seed,
                    logger=saver.logger,
                    skipped=skipped,
                    print_freq=session.run.print_freq,
                    max_bad_steps=session.run.max_bad_steps,
                    done=done,
                    state=state,
                    after_step=saver.step_done,
                )
            except BadSteps as bad:
                raise RuntimeError(saver.dump(bad)) from bad
            # The last step's number: it is dropped, or not, together with that step on resume.
            shown = {name: m for name, m in means.items() if m or name != "bad_steps"}
            saver.logger.scalars((epoch + 1) * steps - 1, shown, prefix="epoch")
            yield epoch, means, saver.logger


def open_logs(session: Session, saver: Saver) -> RunLogger:
    """Open the logs, without what they hold beyond the place where the run goes on."""
    done = saver.steps_done
    # Where only validation is left of an epoch, its figures may stand at its last step already;
    # they go, and `train_one_epoch` shows that step again.
    validates = saver.place.step == saver.shape.steps
    run_logger = RunLogger(
        session.output_dir,
        session.log_dir,
        distributed.is_main(),
        resume_step=done,
        resume_epoch=saver.place.epoch,
        purge_step=done - validates,
    )
    if distributed.is_main():
        facts = provenance(session.device, session.precision.name, distributed.world_size())
        run_logger.texts(done - validates, facts, prefix="run")
        hparams.begin(session.log_dir, compared_settings(session, saver))
    return run_logger


def compared_settings(session: Session, saver: Saver) -> hparams.Settings:
    """Return the settings that TensorBoard shows beside those of other runs."""
    shape = saver.shape
    return hparams.chosen(
        session.settings, total_batch=shape.total_batch, processes=shape.world_size
    )


def show_end(
    session: Session,
    saver: Saver,
    metrics: Mapping[str, float],
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show in TensorBoard, once, what came out of a run that is over.

    Args:
        session: of this process; only rank 0 writes.
        saver: of the run.
        metrics: final numbers by tag.
        images: pictures, (H, W, 3) uint8, by tag.
    """
    if distributed.is_main():
        settings = compared_settings(session, saver)
        hparams.end(session.log_dir, settings, metrics, saver.steps_done, images)
