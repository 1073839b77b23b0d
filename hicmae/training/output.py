"""The output folder: one run at a time, no leftovers of a killed one, small files written whole."""

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

WAIT = 20.0  # seconds until a killed run's last processes are surely gone
_OURS = re.compile(
    r"(checkpoint-.+\.pth|bad_steps-.+\.pth|steps\.jsonl|log\.txt|config\.json"
    r"|pred\w*\.csv|(?:val|train)_clips\.csv|metrics\w*\.json)\.tmp"
)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOLCK)


@contextmanager
def own_folder(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Hold a folder for one run; the lock ends with the process, whatever ends it.

    Args:
        folder: made if missing.
        wait: seconds to wait for another run to end.

    Raises:
        RuntimeError: another run still writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        _unlock(descriptor)


def _lock(descriptor: int, folder: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(
                    f"another run is writing to '{folder}'; wait for it, end it, or choose another "
                    "--output_dir"
                ) from error
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.debug("'%s' is on a file system without locks: %s", folder, error)
            return


def _unlock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
    except OSError as error:
        logger.debug("no lock to release: %s", error)
    os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of a killed run."""
    for path in folder.glob("*.tmp"):
        if _OURS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
            logger.info("removed '%s', which a killed run left half-written", path.name)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that `path` is always the old or the new whole file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
