"""The steps since the last look at the device, and what an epoch adds up to."""

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hicmae.training import distributed
from hicmae.training.logger import RunLogger


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
