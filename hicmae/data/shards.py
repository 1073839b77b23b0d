"""Clips packed into WebDataset shards: how their frames and sound are read.

A clip is three members of a tar: `KEY.json` says what is in the others, `KEY.mjpeg` holds its
frames, images one after the other, `KEY.wav` its sound. They are read by their places in the tar.
"""

import functools
import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NoReturn

import cv2
import numpy as np
from PIL import Image

from hicmae.data.audio import WINDOW, WavFile
from hicmae.data.clip_list import WRONG, PackedClip, Shard
from hicmae.data.video import IMAGE_ERRORS, MAX_PIXELS, NOT_READ, FrameTimes, Video, to_rgb
from hicmae.io import UnreadableClip, one_line

MAX_OPEN = 8  # shards a process keeps open


class _OpenShard:
    """A shard that is closed when nobody has it any more.

    Reading is by `os.pread`, which moves no position, so a forked worker may use, and close, what
    it has inherited.
    """

    def __init__(self, shard: Shard) -> None:
        # O_NONBLOCK: a pipe in place of a shard would never open
        self.handle = os.open(shard.path, os.O_RDONLY | os.O_NONBLOCK)
        if (size := os.fstat(self.handle).st_size) != shard.size:
            raise UnreadableClip(
                f"shard '{shard.path}' has {size} bytes, expected {shard.size}; it was cut off or "
                "exchanged: delete it and its index, and run pack_clips.py again"
            )

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


_open_shard = functools.lru_cache(maxsize=MAX_OPEN)(_OpenShard)


def read_bytes(shard: Shard, offset: int, size: int) -> bytes:
    """Return bytes of a shard; UnreadableClip where it is missing, cut off or another file."""
    try:
        opened = _open_shard(shard)  # held here, or another thread might make the cache drop it
        data = os.pread(opened.handle, size, offset)
    except OSError as error:
        _open_shard.cache_clear()
        raise UnreadableClip(f"shard '{shard.path}' cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise UnreadableClip(f"shard '{shard.path}' is cut off: it ends before {offset + size}")
    return data


class PackedVideo(Video):
    """The frames of a packed clip."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip, self.checksums = clip.video, clip, info["crc32"]
        self.ends = np.cumsum(np.array([0, *info["sizes"]], np.int64))
        is_whole = len(self.checksums) == len(info["sizes"])
        is_whole &= bool(self.checksums) == (clip.video != NOT_READ)
        if not is_whole or self.ends[-1] != clip.places.frames_size:
            raise ValueError("its frames do not fill their place")
        if info["begins"]:
            begins, ends = (np.array(info[name], np.float32) for name in ("begins", "ends"))
            self.frame_times = FrameTimes(begins, ends)

    def __len__(self) -> int:
        return len(self.checksums) or _not_packed(self.clip, "video")

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`."""
        frames = []
        for index in indices:
            start, stop = self.ends[index : index + 2].tolist()
            data = read_bytes(self.clip.shard, self.clip.places.frames + start, stop - start)
            if zlib.crc32(data) != self.checksums[index]:
                raise _damaged(self.clip, f"frame {index} is not what was packed")
            if (frame := decode_image(data)) is None:
                raise _damaged(self.clip, f"frame {index} is no image")
            frames.append(frame)
        return frames


class PackedWav(WavFile):
    """The sound of a packed clip."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip = clip.audio or clip.video, clip
        self.dtype = np.dtype({"<i2": "<i2", "<f4": "<f4"}[info["sample_type"]])
        self.header, self.samples = int(info["wav_header"]), int(info["samples"])
        size = self.header + self.samples * self.dtype.itemsize
        shortest = 0 if clip.audio == NOT_READ else WINDOW
        if self.header < 0 or self.samples < shortest or size > clip.places.wav_size:
            raise ValueError("its sound does not fit its place")

    def __len__(self) -> int:
        return self.samples or _not_packed(self.clip, "audio")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples, see `WavFile`."""
        if not 0 <= start <= stop <= self.samples:
            raise _damaged(self.clip, f"its sound ends before sample {stop}")
        width = self.dtype.itemsize
        offset = self.clip.places.wav + self.header + start * width
        data = read_bytes(self.clip.shard, offset, (stop - start) * width)
        samples = np.frombuffer(data, self.dtype).astype(np.float32)
        return samples / 32768 if width == 2 else samples


def open_packed(clip: PackedClip) -> tuple[PackedVideo, PackedWav]:
    """Read what a packed clip's own description says; UnreadableClip where it is none."""
    data = read_bytes(clip.shard, clip.places.info, clip.places.info_size)
    try:
        info = json.loads(data)
        return PackedVideo(clip, info), PackedWav(clip, info)
    except WRONG as error:
        reason = f"its description: {type(error).__name__}: {one_line(error)}"
        raise _damaged(clip, reason) from None


def decode_image(data: bytes) -> np.ndarray | None:
    """Decode a JPEG or PNG to (H, W, 3) RGB as Pillow does; None where it is none."""
    height, width, channels = jpeg_shape(data)
    try:
        if channels == 3 and height * width <= MAX_PIXELS:
            # the pixels of `to_rgb`, upright too, in less time
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            small = image.width * image.height <= MAX_PIXELS
            return to_rgb(image) if small else None
    except (cv2.error, *IMAGE_ERRORS):
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


def _not_packed(clip: PackedClip, stream: str) -> NoReturn:
    name, other = (clip.audio, "a") if stream == "video" else (clip.video, "v")
    raise UnreadableClip(
        f"clip '{name}' in shard '{clip.shard.path}' was packed without {stream}, as its list says "
        f"'{NOT_READ}'; give --modality {other}"
    )


def _damaged(clip: PackedClip, reason: str) -> UnreadableClip:
    name = " ".join(clip.video.split())
    return UnreadableClip(f"clip '{name}' in shard '{clip.shard.path}' is damaged: {reason}")
