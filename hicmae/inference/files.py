"""Results that appear under their name only when they are whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def describe(error: Exception) -> str:
    """Say on one line what an exception means to the user."""
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}"
    return str(error)


def check_writable(path: str | Path, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be written later, before an hour of work.

    Raises:
        ValueError: its name ends in none of `suffixes`.
        OSError: its folder cannot be made or written.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"'{path}' must end in {' or '.join(suffixes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"folder '{path.parent}' cannot be written")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path` that takes its place if all goes well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays, as writers of films and pictures choose their format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide the file from colleagues
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
