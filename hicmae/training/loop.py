"""The steps since the last look at the device, and what an epoch adds up to.

The training loop, one for both stages; `compute_loss` is all that differs.

The epochs of a run, from where it stands to the end.
"""

import itertools
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from hicmae.config import RunConfig
from hicmae.data.loader import SkippedClips, epoch_batches
from hicmae.training import distributed
from hicmae.training.logs import (
    HParams,
    Progress,
    RunLogger,
    begin_hparams,
    end_hparams,
    hparams_of,
    provenance,
)
from hicmae.training.optim import Optimization, set_learning_rate
from hicmae.training.run import Session, checkpoint_activations, compiled, seed_step

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from hicmae.training.checkpoint import Saver


class Watched:
    """The batches of an evaluation, with something to do before each, on all ranks together.

    Ranks may have unequal numbers of batches, so all take as many turns as the longest.

    Args:
        loader: of `make_loader`, in list order.
        check: called before each batch; may raise to stop.
    """

    def __init__(self, loader: DataLoader[Any], check: Callable[[], None]) -> None:
        self.loader, self.check = loader, check

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        (turns,) = distributed.highest([len(self.loader)])
        batches = epoch_batches(self.loader, epoch=0)
        for _ in range(turns):
            self.check()
            batch = next(batches, None)
            if batch is not None:
                yield batch


class StepRecord(NamedTuple):
    """One step's figures, still on the device so that no step has to wait for it.

    `tensors` holds `loss`, `skipped` (whether the weights were left alone) and whatever else.
    """

    step: int
    tensors: dict[str, Tensor]
    names: list[str]


class BadSteps(RuntimeError):
    """Too many steps in a row without a finite loss; `steps` holds their figures and clips."""

    def __init__(self, message: str, steps: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.steps = steps


class Window:
    """Reads the steps' figures from the device, now and then, and logs them.

    Args:
        logger: of the run.
        lr: learning rate of every step of the run.
        weight_decay: the same of the weight decay.
        epoch: 0-based.
        max_bad_steps: steps in a row without a finite loss at which training ends.
        state: of `state`, where a resumed run was within the epoch.
        layer_scales: of `optim.layer_scales`.
    """

    def __init__(
        self,
        logger: RunLogger,
        lr: Sequence[float] | np.ndarray,
        weight_decay: Sequence[float] | np.ndarray,
        epoch: int,
        max_bad_steps: int,
        state: Mapping[str, Any] | None = None,
        layer_scales: Mapping[str, float] | None = None,
    ) -> None:
        state = state or {}
        self.layer_scales = layer_scales or {}
        self.logger, self.lr, self.weight_decay, self.epoch = logger, lr, weight_decay, epoch
        self.max_bad_steps = max_bad_steps
        self._unread: list[StepRecord] = []
        self._sums: dict[str, float] = dict(state.get("sums", {}))
        self._counts: dict[str, int] = dict(state.get("counts", {}))
        self._bad_steps: int = state.get("bad_steps", 0)
        self._bad_in_a_row: list[dict[str, Any]] = list(state.get("bad_in_a_row", ()))
        self._last: dict[str, float] = dict(state.get("last", {}))
        self._start_timing()

    def _start_timing(self) -> None:
        self._steps, self._clips, self._data_time = 0, 0, 0.0
        self._started = time.perf_counter()

    def add(self, record: StepRecord, data_time: float) -> None:
        """Take a step's figures; the device is only asked before too many steps can be bad."""
        self._unread.append(record)
        self._steps += 1
        self._clips += len(record.names)
        self._data_time += data_time
        if len(self._unread) >= self.max_bad_steps:
            self.read()

    def read(self) -> None:
        """Read what is new on the device, and log it step by step.

        Raises:
            BadSteps: too many in a row.
        """
        if not self._unread:
            return
        records, self._unread = self._unread, []
        names = list(records[0].tensors)
        table = torch.stack(
            [torch.stack([r.tensors[n].float() for n in names]) for r in records]
        ).tolist()  # the one synchronisation
        for record, row in zip(records, table, strict=True):
            self._take(record, dict(zip(names, row, strict=True)))

    def _take(self, record: StepRecord, values: dict[str, float]) -> None:
        skipped = bool(values.pop("skipped"))
        lr = float(self.lr[record.step])
        line = {"step": record.step, "epoch": self.epoch, **values, "lr": lr, "skipped": skipped}
        self.logger.step(line)
        self._last = values
        for name, value in values.items():
            counts = not skipped and math.isfinite(value)  # fp16 may overflow the gradient norm
            self._sums[name] = self._sums.get(name, 0.0) + (value if counts else 0.0)
            self._counts[name] = self._counts.get(name, 0) + counts
        if not skipped:
            self._bad_in_a_row = []
            return
        self._bad_steps += 1
        self._bad_in_a_row.append({"step": record.step, "lr": lr, **values, "clips": record.names})
        if len(self._bad_in_a_row) >= self.max_bad_steps:
            raise BadSteps(_explain(self._bad_in_a_row), self._bad_in_a_row)

    def show(self, step: int) -> dict[str, float]:
        """Read what is new, send the figures of the last step to TensorBoard and return them."""
        self.read()
        lr = float(self.lr[step])
        shown = {**self._last, "lr": lr, **self._speed()}
        if self._bad_steps:
            shown["bad_steps"] = self._bad_steps
        decay = float(self.weight_decay[step])
        self.logger.scalars(step, {**shown, "weight_decay": decay}, prefix="train")
        rates = {layer: lr * scale for layer, scale in self.layer_scales.items()}
        self.logger.scalars(step, rates, prefix="lr")
        self._start_timing()
        return shown

    def _speed(self) -> dict[str, float]:
        if not self._steps:
            return {}
        elapsed = time.perf_counter() - self._started
        return {
            "clips_per_s": self._clips * distributed.world_size() / elapsed,
            "data_s": self._data_time / self._steps,
            "step_s": elapsed / self._steps,
            "memory_mib": _memory_mib(),
        }

    def means(self) -> dict[str, float]:
        """Average every figure over the steps that counted; also return how many were bad."""
        means = {
            name: total / self._counts[name] if self._counts[name] else math.nan
            for name, total in self._sums.items()
        }
        return {**means, "bad_steps": float(self._bad_steps)}

    def state(self) -> dict[str, Any]:
        """Return what another window needs to go on from here."""
        return {
            "sums": self._sums,
            "counts": self._counts,
            "bad_steps": self._bad_steps,
            "bad_in_a_row": self._bad_in_a_row,
            "last": self._last,
        }

    def state_of_next(self) -> dict[str, Any]:
        """Return what the next epoch's window takes over: bad steps in a row go on."""
        return {"bad_in_a_row": self._bad_in_a_row}


def _explain(bad: list[dict[str, Any]]) -> str:
    last = bad[-1]
    figures = ("step", "lr", "clips", "loss", "grad_norm")
    parts = ", ".join(f"{name} {last[name]:.4g}" for name in last if name not in figures)
    clips = ", ".join(last["clips"][:8]) + (" ..." if len(last["clips"]) > 8 else "")
    return (
        f"loss or gradients are not finite in {len(bad)} step(s) in a row, the last at step "
        f"{last['step']}: loss is {last['loss']} ({parts}), gradient norm {last['grad_norm']:.4g}, "
        f"lr {last['lr']:.2e}, clips [{clips}]"
    )


def _memory_mib() -> float:
    """Return the peak memory so far: allocated on the GPU in use, or resident of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here


LossParts = dict[str, Tensor]


ComputeLoss = Callable[[nn.Module, Any], tuple[Tensor, LossParts]]


AfterStep = Callable[[int, Window], None]


def train_one_epoch(
    model: nn.Module,
    loader: Iterable,
    compute_loss: ComputeLoss,
    optimization: Optimization,
    *,
    epoch: int,
    epochs: int,
    steps: int,
    seed: int,
    logger: RunLogger,
    skipped: SkippedClips,
    print_freq: int = 10,
    max_bad_steps: int = 10,
    done: int = 0,
    state: Mapping[str, Any] | None = None,
    after_step: AfterStep = lambda done, window: None,
) -> dict[str, float]:
    """Train for one pass over the loader, or the rest of one.

    Args:
        model: in training mode afterwards; may be wrapped by DistributedDataParallel.
        loader: yields batches with `.to(device)`, `.names` and `.skipped`.
        compute_loss: (model, batch on the device) -> loss to minimise, named scalars to log.
        optimization: optimiser, schedules, precision, accumulation.
        epoch: 0-based.
        epochs: of the whole run, for the progress line.
        steps: optimisation steps of an epoch; batches beyond steps * accum_iter are left out.
        seed: of the run.
        logger: gets every step's figures.
        skipped: gets the clips that could not be read.
        print_freq: steps between two looks at the device; nothing is synchronised in between.
        max_bad_steps: in a row without finite loss and gradients; fewer leave the weights alone.
        done: steps of the epoch that an earlier run has made; the loader begins after them.
        state: `Window.state` of that run.
        after_step: gets the steps done and the window; may raise to stop.

    Returns:
        Means over the epoch and all ranks of everything logged.

    Raises:
        BadSteps: `max_bad_steps` in a row.
    """
    model.train()
    lr, weight_decay, layers = optimization.lr, optimization.weight_decay, optimization.layer_scales
    window = Window(logger, lr, weight_decay, epoch, max_bad_steps, state, layers)
    progress = Progress(steps, f"epoch {epoch}/{epochs}", every=print_freq, initial=done)
    if done == steps:  # only what follows the epoch is left; its last step is shown again
        window.show(epoch * steps + done - 1)
        after_step(done, window)
    groups = _groups(loader, optimization.accum_iter, steps - done)
    for step, (batches, data_time) in enumerate(groups, start=epoch * steps + done):
        skipped.record(clip for batch in batches for clip in batch.skipped)
        window.add(_seeded_step(model, batches, compute_loss, optimization, step, seed), data_time)
        done += 1
        looks = done % print_freq == 0 or done == steps
        progress.update(1, window.show(step) if looks else None)
        after_step(done, window)
    progress.close()
    return distributed.all_mean(window.means())


def _groups(loader: Iterable, accum_iter: int, steps: int) -> Iterator[tuple[list[Any], float]]:
    """Yield the batches of each step and the seconds spent waiting for them."""
    batches = iter(loader)
    for _ in range(steps):
        started = time.perf_counter()
        group = list(itertools.islice(batches, accum_iter))
        yield group, time.perf_counter() - started


def _seeded_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
    step: int,
    seed: int,
) -> StepRecord:
    """Make a step of the run, which depends on its number and on nothing before it."""
    seed_step(seed, step, distributed.rank())
    # Plain floats: numpy's would end up in the checkpoint and be refused when it is loaded.
    lr, weight_decay = float(optimization.lr[step]), float(optimization.weight_decay[step])
    set_learning_rate(optimization.optimizer, lr, weight_decay)
    parts = train_step(model, batches, compute_loss, optimization)
    return StepRecord(step, parts, [name for batch in batches for name in batch.names])


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
) -> LossParts:
    """Take one optimisation step with the batches' mean gradient; return its figures unread."""
    parts = _forward_backward(model, batches, compute_loss, optimization)
    return parts | _optimizer_step(model, parts["loss"], optimization)


def _forward_backward(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    optimization: Optimization,
) -> LossParts:
    """Add up the gradients of a step's batches; return the mean of what they report."""
    device = optimization.precision.device
    sums: LossParts = {}
    for index, batch in enumerate(batches):
        # DDP averages gradients over ranks once a step, with the last batch.
        waits = index + 1 < len(batches)
        with getattr(model, "no_sync", nullcontext)() if waits else nullcontext():
            with optimization.precision.autocast():
                loss, parts = compute_loss(model, batch.to(device))
            # A loss that is not finite makes all gradients NaN, and DDP those of all ranks.
            sound = torch.where(loss.detach().isfinite(), 1.0, math.nan)
            optimization.scaler.scale(loss * sound / len(batches)).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)
    return sums


def _optimizer_step(model: nn.Module, loss: Tensor, optimization: Optimization) -> LossParts:
    """Clip, step unless the loss is bad, clear the gradients.

    Returns:
        The norm of the gradients before clipping, and whether the loss is bad, on any rank.
    """
    optimizer, scaler = optimization.optimizer, optimization.scaler
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    if optimization.clip_grad:
        nn.utils.clip_grads_with_norm_(model.parameters(), optimization.clip_grad, grad_norm)
    if scaler.is_enabled():
        # The scaler itself leaves out a step; gradients that only overflow are its daily business.
        bad = distributed.any_rank(~loss.isfinite())
        scaler.step(optimizer)
        scaler.update()
    else:
        bad = ~grad_norm.isfinite()
        _step_unless(bad, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm, "skipped": bad}


def _step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step, or leave weights and moments as they are, without waiting for a GPU."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]  # set above
    elif not bad:
        optimizer.step()


# Chosen by `python scripts/benchmark.py ranks`. static_graph is not among them: it forbids the
# passes without synchronisation that --accum_iter makes.
DDP_OPTIONS = {"gradient_as_bucket_view": True}


def distribute(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """Wrap the model for several processes; alone it is returned as it is.

    Args:
        model: on its device; every parameter takes part in every step.
        device: of this process.
        options: of DistributedDataParallel, in place of ours (to compare).
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
    saver: "Saver",
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


def open_logs(session: Session, saver: "Saver") -> RunLogger:
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
        begin_hparams(session.log_dir, compared_settings(session, saver))
    return run_logger


def compared_settings(session: Session, saver: "Saver") -> HParams:
    """Return the settings that TensorBoard shows beside those of other runs."""
    shape = saver.shape
    return hparams_of(session.settings, total_batch=shape.total_batch, processes=shape.world_size)


def show_end(
    session: Session,
    saver: "Saver",
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
        end_hparams(session.log_dir, settings, metrics, saver.steps_done, images)
