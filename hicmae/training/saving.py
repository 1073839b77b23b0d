"""When and what a run saves, so that one which is killed at any moment goes on as if it had not."""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from hicmae.training import checkpoint, distributed
from hicmae.training.changes import RunShape
from hicmae.training.engine import Optimization
from hicmae.training.logger import RunLogger
from hicmae.training.randomness import random_states
from hicmae.training.session import Session
from hicmae.training.signals import Stopped, name_of
from hicmae.training.window import BadSteps, Window
from hicmae.training.workers import Watched

logger = logging.getLogger(__name__)

NO_BEST: dict[str, Any] = {"epoch": -1, "value": None}


class Place(NamedTuple):
    """How far a run has come."""

    epoch: int  # in hand, 0-based
    step: int  # steps of it that are done


class Saver:
    """Saves every `--save_interval` minutes and at epoch ends, and when the run is asked to stop.

    Every rank calls every method, at the same point of the run; rank 0 writes.

    Args:
        session: of this process.
        model: not wrapped for several processes.
        optimization: its optimiser and scaler are saved.
        shape: clips and steps of the run.
        clock: seconds, unmoved by changes of the time of day.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        optimization: Optimization,
        shape: RunShape,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.model = session, model
        self.optimization, self.shape = optimization, shape
        self.place = Place(0, 0)
        self.best = NO_BEST  # epoch and value of checkpoint-best.pth
        self.origin: dict[str, str] | None = None  # what --resume named when the run began
        self.logger: RunLogger | None = None
        self.resumed: dict[str, Any] | None = None  # `Window.state` that the next window takes
        self._window: Window | None = None
        self._unsaved = False
        self._clock = clock
        self._checked = self._saved = clock()
        self._writing = 0.0

    @property
    def steps_done(self) -> int:
        """Steps of the whole run."""
        return self.place.epoch * self.shape.steps + self.place.step

    def take_resumed(self) -> tuple[int, dict[str, Any] | None]:
        """Return the steps done of the epoch in hand, and the state of their window, once."""
        state, self.resumed = self.resumed, None
        return self.place.step, state

    def step_done(self, done: int, window: Window) -> None:
        """Note a step; save or stop if it is time, but at the end of an epoch its caller saves."""
        self.place = self.place._replace(step=done)
        self._window, self._unsaved = window, True
        if done < self.shape.steps:
            self.check()

    def check(self) -> None:
        """Save if it is time or a signal came, and then stop.

        Raises:
            Stopped: any rank got SIGTERM or SIGUSR1.
        """
        number, due = distributed.highest([self.session.stop.number, int(self._is_due())])
        if self._unsaved and (number or due):
            self._save_state()
        if number:
            state = "but the last ones could NOT be saved" if self._unsaved else "all saved"
            raise Stopped(f"stopped by {name_of(number)} after {self.steps_done} steps, {state}")

    def _is_due(self) -> bool:
        """Return whether the time of another step, and of writing, would be too long to wait."""
        now = self._clock()
        step, self._checked = now - self._checked, now
        interval = 60 * self.session.run.save_interval
        return interval == 0 or now - self._saved + step + self._writing > interval

    def watched(self, loader: DataLoader[Any]) -> Watched:
        """Return the batches of an evaluation; between them the run can be saved and stopped."""
        return Watched(loader, self.check)

    def end_epoch(self) -> None:
        """Save the end of the epoch in hand, after all that belongs to it is logged."""
        self.resumed = self._window.state_of_next() if self._window else self.resumed
        self.place, self._window, self._unsaved = Place(self.place.epoch + 1, 0), None, True
        self._save_state()

    def finish(self) -> None:
        """Make sure that the last state is saved; from here on the model may change.

        Raises:
            OSError: it cannot be.
        """
        if self._unsaved:
            self._save_state()
        if self._unsaved:
            raise OSError(
                f"the state after the last epoch is not saved in '{self.session.output_dir}'; "
                "free space and start the command again: it goes on from the last save"
            )

    def save_best(self, value: float) -> bool:
        """Write the epoch in hand, not yet ended, to checkpoint-best.pth; return the success."""
        best = {"epoch": self.place.epoch, "value": value}
        state = {**self._training_state(), "epoch": self.place.epoch, "best": best}
        saved = self._write("best", state)
        if saved:
            self.best = best
        return saved

    def dump(self, bad: BadSteps) -> str:
        """Write the state in which training failed, with the clips of all ranks.

        Returns:
            The one line that says so.
        """
        steps = distributed.gather_objects([bad.steps])
        path = self.session.output_dir / f"bad_steps-{bad.steps[-1]['step']}.pth"
        written = f"state and clips are in '{path}'"
        if distributed.is_main():
            state = {**self._training_state(), "epoch": self.place.epoch - 1, "bad_steps": steps}
            try:
                checkpoint.save(path, state)
            except OSError as error:
                written = str(error)
        return (
            f"{bad}; {written}; lower --lr, set --clip_grad, or use --precision bf16 or fp32, and "
            "resume"
        )

    def _training_state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimization.optimizer.state_dict(),
            "scaler": self.optimization.scaler.state_dict(),
            "args": self.session.settings,
            "best": self.best,
        }

    def _save_state(self) -> None:
        started, (epoch, step) = self._clock(), self.place
        window = self._read_window()
        own = {"random": random_states(), "window": window}
        state = {
            **self._training_state(),
            "epoch": epoch - 1,  # the last whole one, as in the original
            "progress": {
                "epoch": epoch,
                "step": step,
                "steps_done": self.steps_done,
                "clips_done": step * self.shape.total_batch,
                **self.shape._asdict(),
                "torch": str(torch.__version__),
            },
            "origin": self.origin,
            "ranks": distributed.gather_objects([own]),
        }
        name = f"{epoch}-step{self.steps_done}" if step else f"{epoch - 1}"
        self._unsaved = not self._write(name, state)
        # Counted from the state that was saved; a failed attempt is not repeated at every step.
        self._saved, self._checked = started, self._clock()
        self._writing = self._checked - started

    def _read_window(self) -> dict[str, Any] | None:
        """Bring the logs up to the state that is about to be saved; return the window's part."""
        if self._window is not None:
            self._window.read()
        if self.logger is not None:
            self.logger.sync()
        return None if self._window is None else self._window.state()

    def _write(self, name: str, state: dict[str, Any]) -> bool:
        """Write a checkpoint and prune; without success warn, and leave all files as they were."""
        written = True
        if distributed.is_main():
            run, folder = self.session.run, self.session.output_dir
            try:
                checkpoint.save(folder / f"checkpoint-{name}.pth", state)
                checkpoint.prune(folder, run.save_ckpt_freq, run.keep_ckpts)
            except OSError as error:
                written = False
                logger.warning("%s; training goes on", error)
        return distributed.from_main(written)
