"""Figures as plain text and as Markdown.

Results that appear under their name only when they are whole.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def readable(number: float) -> str:
    """Shorten a number: 1234567 -> 1.23 M."""
    for size, letter in UNITS:
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows in columns, the first one to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))


def describe_figures(figures: dict[str, Any]) -> str:
    """Show every plain figure on a line of its own."""
    plain = {n: v for n, v in figures.items() if isinstance(v, (int, float, str)) and v != ""}
    return aligned([(n, f"{v:.4g}" if isinstance(v, float) else str(v)) for n, v in plain.items()])


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


class UnreadableClip(RuntimeError):
    """A clip's file is missing or broken; the message is one line that names it."""


def one_line(error: Exception) -> str:
    """Return a library's error message on one line, short enough for a log."""
    return " ".join(str(error).split())[:200] or type(error).__name__


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
