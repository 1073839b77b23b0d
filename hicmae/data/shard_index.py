"""Lists of packed clips: which shard holds a clip, and where in it.

`preprocess/pack_clips.py` writes beside each shard `NAME.tar` its `NAME.index.json`. A folder of
them is a list of clips like any other, and each index file alone is one too.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIX = ".index.json"
FORMAT = "hicmae-shard-1"
_LARGEST_INDEX = 1 << 30  # bytes; a shard's index is of some 100 KB
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")


class Shard(NamedTuple):
    """A tar file: its path, its size in bytes, and its SHA-256 as written."""

    path: str
    size: int
    sha256: str


class Places(NamedTuple):
    """Offset and size in a shard, in bytes, of each member of a clip."""

    info: int
    info_size: int
    frames: int
    frames_size: int
    wav: int
    wav_size: int


class PackedClip(NamedTuple):
    """A clip in a shard; the first three fields are those of `Clip`, names instead of paths."""

    video: str
    audio: str | None
    label: int | tuple[float, ...] | None
    shard: Shard
    places: Places


class PackedClips(Sequence[PackedClip]):
    """The clips of some shards, in arrays: a million of them must not weigh on every worker.

    Attributes:
        shards: in order of their names.
        shard_of: (clips,) int32, the shard of each clip; clips of a shard stand together.
    """

    def __init__(self, indexes: Sequence[tuple[Shard, list[list[Any]]]]) -> None:
        self.shards = [shard for shard, _ in indexes]
        rows = [row for _, rows in indexes for row in rows]
        counts = [len(rows) for _, rows in indexes]
        self.shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._places = np.array([row[3:] for row in rows], np.int64).reshape(-1, 6)
        names = [json.dumps(row[:3]).encode() for row in rows]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self.shard_of)

    def __getitem__(self, index: Any) -> Any:
        """Return a clip, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative numbers, and IndexError
        start = self._ends[index - 1] if index else 0
        video, audio, label = json.loads(self._names[start : self._ends[index]])
        label = tuple(label) if isinstance(label, list) else label
        shard = self.shards[self.shard_of[index]]
        return PackedClip(video, audio, label, shard, Places(*self._places[index].tolist()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedClips):
            return NotImplemented
        return self.shards == other.shards and self._names == other._names

    __hash__ = None  # type: ignore[assignment]  # Python's way to say: compared by content


def is_packed(path: str | Path) -> bool:
    """Tell whether a path is a folder with the indexes of shards, or one index."""
    path = Path(path)
    if path.name.endswith(SUFFIX):
        return path.is_file()
    return path.is_dir() and next(_index_files(path), None) is not None


def read_packed(path: str | Path) -> PackedClips:
    """Read the clips of a folder of shards, or of one index.

    Raises:
        ValueError: an index is not one, or has been tampered with. A shard that is missing or
            broken shows when a clip of it is read.
    """
    path = Path(path)
    files = sorted(_index_files(path)) if path.is_dir() else [path]
    return PackedClips([read_index(file) for file in files])


def read_index(path: Path) -> tuple[Shard, list[list[Any]]]:
    """Return the shard of an index, and the rows [video, audio, label, *Places] of its clips."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_INDEX:
                raise ValueError("it is no ordinary file")
            content = json.load(file)
        shard, rows = _checked_shard(content, path.parent), content["clips"]
        if not isinstance(rows, list) or not rows:
            raise ValueError("it names no clip")
        for row in rows:
            _check_row(row, shard.size)
    except OSError as error:
        reason: object = error.strerror
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
    else:
        return shard, rows
    text = " ".join(str(reason).split())[:200]
    raise ValueError(
        f"index '{path}' cannot be used: {text}; pack its clips again with preprocess/pack_clips.py"
    )


def _checked_shard(content: Any, folder: Path) -> Shard:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"expected an object with format {FORMAT!r}")
    name, size, sha256 = content["shard"], content["size"], content["sha256"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"expected the plain name of a .tar beside it, got {str(name)[:80]!r}")
    if not _is_size(size) or not isinstance(sha256, str):
        raise ValueError("expected the shard's size and sha256")
    return Shard(str(folder / name), size, sha256)


def _check_row(row: Any, shard_size: int) -> None:
    """Refuse a row that is not [video, audio, label, *Places] with all places in the shard."""
    if not isinstance(row, list) or len(row) != 3 + len(Places._fields):
        raise ValueError(f"expected rows of {3 + len(Places._fields)} values")
    video, audio, label, *places = row
    if not isinstance(video, str) or not isinstance(audio, str | None):
        raise ValueError("expected names of video and audio")
    numbers = label if isinstance(label, list) else [0 if label is None else label]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"clip {video[:80]!r} has an impossible label")
    if not all(map(_is_size, places)):
        raise ValueError(f"clip {video[:80]!r} has an impossible place")
    if any(places[k] + places[k + 1] > shard_size for k in (0, 2, 4)):
        raise ValueError(f"clip {video[:80]!r} is outside its shard")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _index_files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                yield folder / entry.name
