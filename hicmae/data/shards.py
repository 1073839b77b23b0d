"""Lists of packed clips: which shard holds a clip, and where in it.

`preprocess/pack_clips.py` writes beside each shard `NAME.tar` its `NAME.index.json`. A folder of
them is a list of clips like any other, and each index file alone is one too.

Read the frames and the sound of packed clips, each by its place in a shard.

A clip is three members of a tar: `KEY.json` says what is in the others, `KEY.mjpeg` holds its
frames, images one after the other, `KEY.wav` its sound. Nothing is ever extracted to disk.
"""

import functools
import io
import json
import os
import re
import stat
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from hicmae.data.audio import WINDOW
from hicmae.data.media import FrameTimes
from hicmae.data.video import MAX_PIXELS
from hicmae.io import UnreadableClip, one_line

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


MAX_OPEN = 8  # shards a process keeps open


SAMPLE_TYPES = ("<i2", "<f4")  # of the sound


_LARGEST_INFO = 1 << 26  # bytes


_MOST = 1 << 40  # of a size, a checksum, a time; sums of many stay in int64


# The colours and the order that Pillow gives, whose JPEG decoder is slower than OpenCV's.
_AS_PILLOW = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class OpenShards:
    """The open shards of this process, the last used last.

    Reading is by `os.pread`, which moves no position, so a forked worker may use, and close, what
    it has inherited.
    """

    def __init__(self, most: int = MAX_OPEN) -> None:
        self.most = most
        self.handles: OrderedDict[Shard, int] = OrderedDict()

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Return bytes of a shard; UnreadableClip where it is missing, cut off or another file."""
        try:
            data = os.pread(self._handle(shard), size, offset)
        except OSError as error:
            self.close(shard)
            raise UnreadableClip(f"shard '{shard.path}' cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise UnreadableClip(f"shard '{shard.path}' is cut off: it ends before {offset + size}")
        return data

    def close(self, shard: Shard) -> None:
        """Close a shard if it is open."""
        handle = self.handles.pop(shard, None)
        if handle is not None:
            os.close(handle)

    def _handle(self, shard: Shard) -> int:
        if shard in self.handles:
            self.handles.move_to_end(shard)
            return self.handles[shard]
        handle = os.open(shard.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size != shard.size:
            os.close(handle)
            raise UnreadableClip(
                f"shard '{shard.path}' has {status.st_size} bytes, expected {shard.size}; it was "
                "cut off or exchanged: delete it and its index, and run pack_clips.py again"
            )
        self.handles[shard] = handle
        while len(self.handles) > self.most:
            os.close(self.handles.popitem(last=False)[1])
        return handle


_open_shards = OpenShards()


class PackedVideo:
    """The frames of a packed clip."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip = clip.video, clip
        self.sizes = _numbers(clip, info, "sizes")
        self.checksums = _numbers(clip, info, "crc32")
        self.ends = np.cumsum(self.sizes)
        if self.ends[-1] != clip.places.frames_size:
            raise _damaged(clip, "its frames do not fill their place")
        self.info = info

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) RGB frames at `indices`."""
        return [self._read(index) for index in indices]

    def check(self) -> None:
        """Raise UnreadableClip if a frame is not what was packed."""
        for index in range(len(self)):
            self._data(index)

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends; UnreadableClip without times."""
        return self._times.between(first, last)

    @functools.cached_property
    def _times(self) -> FrameTimes:
        if self.info.get("begins") is None:
            raise UnreadableClip(
                f"video '{self.path}' has no frame times, expected a video file in pre-training"
            )
        begins, ends = (_numbers(self.clip, self.info, key, "if") for key in ("begins", "ends"))
        return FrameTimes(begins.astype(np.float32), ends.astype(np.float32))

    def _read(self, index: int) -> np.ndarray:
        frame = decode_image(self._data(index))
        if frame is None:
            raise _damaged(self.clip, f"frame {index} is no image")
        return frame

    def _data(self, index: int) -> bytes:
        size = int(self.sizes[index])
        start = self.clip.places.frames + int(self.ends[index]) - size
        data = _open_shards.read(self.clip.shard, start, size)
        if zlib.crc32(data) != self.checksums[index]:
            raise _damaged(self.clip, f"frame {index} is not what was packed")
        return data


class PackedWav:
    """The sound of a packed clip: mono, 16 kHz."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip = clip.audio or clip.video, clip
        kind, header, self.samples = (
            info.get(key) for key in ("sample_type", "wav_header", "samples")
        )
        if kind not in SAMPLE_TYPES or not isinstance(header, int) or header < 0:
            raise _damaged(clip, "its sound is of an unknown kind")
        self.header, self.dtype = header, np.dtype(kind)
        size = self.header + len(self) * self.dtype.itemsize
        if len(self) < WINDOW or size > clip.places.wav_size:
            raise _damaged(clip, "its sound does not fit its place")

    def __len__(self) -> int:
        return self.samples if isinstance(self.samples, int) and self.samples > 0 else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples `start` to `stop` (exclusive) as float32 in [-1, 1]."""
        width = self.dtype.itemsize
        offset = self.clip.places.wav + self.header + start * width
        if not 0 <= start <= stop <= len(self):
            raise _damaged(self.clip, f"its sound ends before sample {stop}")
        data = _open_shards.read(self.clip.shard, offset, (stop - start) * width)
        samples = np.frombuffer(data, self.dtype)
        if width == 2:
            return samples.astype(np.float32) / 32768
        return samples.astype(np.float32)


def open_packed(clip: PackedClip) -> tuple[PackedVideo, PackedWav]:
    """Read what a packed clip's own description says; UnreadableClip where it is none."""
    places = clip.places
    if places.info_size > _LARGEST_INFO:
        raise _damaged(clip, "its description is too large")
    data = _open_shards.read(clip.shard, places.info, places.info_size)
    try:
        info = json.loads(data)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise _damaged(clip, "its description is no JSON object")
    return PackedVideo(clip, info), PackedWav(clip, info)


def decode_image(data: bytes) -> np.ndarray | None:
    """Decode a JPEG or PNG to (H, W, 3) RGB as Pillow does; None where it is none."""
    height, width, channels = jpeg_shape(data)
    try:
        if channels == 3 and height * width <= MAX_PIXELS:
            return cv2.imdecode(np.frombuffer(data, np.uint8), _AS_PILLOW)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return np.asarray(image.convert("RGB"))
    except (cv2.error, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def jpeg_shape(data: bytes) -> tuple[int, int, int]:
    """Return height, width and channels of a JPEG, zeros where it is none; nothing is decoded."""
    position = 2
    while data[:2] == b"\xff\xd8" and position + 9 < len(data) and data[position] == 0xFF:
        if data[position + 1] in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            height, width, channels = struct.unpack_from(">HHB", data, position + 5)
            return height, width, channels
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0, 0


def _numbers(clip: PackedClip, info: dict[str, Any], key: str, kinds: str = "i") -> np.ndarray:
    """Return a list of numbers, one for each frame, none negative, as an array of one of `kinds`.

    Numbers too large for int64, and what is no number, make arrays of other kinds.
    """
    values, sizes = info.get(key), info.get("sizes")
    if not (isinstance(values, list) and isinstance(sizes, list) and len(values) == len(sizes) > 0):
        raise _damaged(clip, f"its description lacks {key} for each frame")
    try:
        array = np.array(values)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    fits = array.ndim == 1 and array.dtype.kind in kinds
    if not fits or not 0 <= array.min() <= array.max() < _MOST:
        raise _damaged(clip, f"its description has impossible {key}")
    return array


def _damaged(clip: PackedClip, reason: str) -> UnreadableClip:
    name = one_line(ValueError(clip.video))
    return UnreadableClip(f"clip '{name}' in shard '{clip.shard.path}' is damaged: {reason}")
