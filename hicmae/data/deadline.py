"""A limit to the time that a clip may take, as some files hang a decoder or a file system."""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hicmae.data.clip_list import UnreadableClip

Result = TypeVar("Result")


class _Helper:
    """A thread that works through calls, one at a time; left behind when one does not return."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue = queue.SimpleQueue()
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: a process ends without waiting for what hangs.
        threading.Thread(target=self._serve, daemon=True, name="clip reader").start()

    def _serve(self) -> None:
        while (call := self.calls.get()) is not None:
            try:
                self.answers.put((call(), None))
            except BaseException as error:  # raised again where the answer is waited for
                self.answers.put((None, error))


class Deadline:
    """Runs calls that must return within a time.

    Args:
        seconds: for a call; 0: no limit, and no thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._helper: _Helper | None = None
        self._process = 0

    def call(self, name: str, function: Callable[..., Result], *args: Any) -> Result:
        """Return function(*args); what it raises comes through.

        Args:
            name: of the clip, for the message.
            function: runs in another thread of this process.
            args: of the function.

        Raises:
            UnreadableClip: it has not returned in time; its thread is left to itself.
        """
        if not self.seconds:
            return function(*args)
        if self._helper is None or self._process != os.getpid():  # a fork has no threads
            self._helper, self._process = _Helper(), os.getpid()
        self._helper.calls.put(lambda: function(*args))
        try:
            result, error = self._helper.answers.get(timeout=self.seconds)
        except queue.Empty:
            self._helper.calls.put(None)  # should it ever return, the thread ends
            self._helper = None
            raise UnreadableClip(
                f"clip '{name}' was not read in {self.seconds:g} s; look at the file and its disk, "
                "or raise --clip_timeout"
            ) from None
        if error is not None:
            raise error
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Leave the thread out: a worker process starts its own."""
        return {"seconds": self.seconds, "_helper": None, "_process": 0}


NO_DEADLINE = Deadline(0.0)
