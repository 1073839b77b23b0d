"""Read the frames and the sound of packed clips, each by its place in a shard.

A clip is three members of a tar: `KEY.json` says what is in the others, `KEY.mjpeg` holds its
frames, images one after the other, `KEY.wav` its sound. Nothing is ever extracted to disk.
"""

import functools
import io
import json
import os
import stat
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hicmae.data.audio import WINDOW
from hicmae.data.clip_list import MAX_PIXELS, UnreadableClip, one_line
from hicmae.data.h264 import FrameTimes
from hicmae.data.shard_index import PackedClip, Shard

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
