"""Stopping on request: SIGTERM and SIGUSR1 end a run after the step in hand, on every rank."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hicmae.training import distributed

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on where this one stopped.
RESUMABLE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the script exits with `RESUMABLE`."""


class StopRequest:
    """Remembers the signal that asked this process to stop, 0 until then."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Serve as a signal handler; the run looks at `number` after each step."""
        self.number = number

    def check(self) -> None:
        """Stop where any rank was asked to; every rank calls it.

        Raises:
            Stopped: and nothing needed to be saved.
        """
        (number,) = distributed.highest([self.number])
        if number:
            raise Stopped(f"stopped by {name_of(number)}")


def name_of(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request instead of the end of the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # python allows no handlers there
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
