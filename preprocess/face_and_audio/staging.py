"""Results that appear under their final name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PART = ".part-"  # begins temporary names; hidden, so that nothing takes them for data
STALE = 24 * 3600  # seconds after which a temporary file belongs to no running process


@contextlib.contextmanager
def staged(output: str) -> Iterator[Path]:
    """Yield a temporary name beside `output` that takes its place if all goes well.

    What is made there may be a file or a folder. Otherwise it is deleted, and what was there stays.
    """
    final = Path(output)
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final.parent)
    part = final.with_name(PART + uuid.uuid4().hex[:12])  # short: names have a limit
    old = part.with_name(part.name + "-old")
    try:
        yield part
        if part.is_dir() and final.exists():  # a folder cannot replace one
            final.rename(old)
        part.replace(final)
    finally:
        for leftover in (part, old):
            _remove(leftover)


@lru_cache(maxsize=4096)
def _sweep(folder: Path) -> None:
    """Delete what killed runs left in a folder; once a process."""
    with os.scandir(folder) as entries:
        old = [entry.path for entry in entries if entry.name.startswith(PART)]
    for path in old:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - os.stat(path).st_mtime > STALE:
                _remove(Path(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
