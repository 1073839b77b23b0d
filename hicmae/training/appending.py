"""Files that only grow, which neither a kill nor a full disk can tear."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


class AppendFile:
    """Appends bytes at once, unbuffered; what a full disk refuses is kept and written later.

    Args:
        path: file to append to, made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, data: bytes) -> None:
        """Append `data` after all that waits; warn, once, when there is no space."""
        blocked = bool(self._waiting)
        self._waiting += data
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not blocked:
                text = "could not write '%s': %s; training goes on and will try again"
                logger.warning(text, self.path, error.strerror or error)

    def sync(self) -> None:
        """Try again what waits, and have the system put the file on the disk."""
        self.write(b"")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            logger.warning("could not flush '%s': %s", self.path, error.strerror or error)

    def close(self) -> None:
        """Write what waits, if that is possible now, and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()
