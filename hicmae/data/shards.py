"""Clips packed into WebDataset shards: how their frames and sound are read.

A clip is three members of a tar: `KEY.json` says what is in the others, `KEY.mjpeg` holds its
frames, images one after the other, `KEY.wav` its sound. They are read by their places in the tar.
"""

import functools
import json
import os
import zlib
from collections.abc import Sequence
from typing import IO, Any, NoReturn

import cv2
import numpy as np

from hicmae.data.audio import WavFile
from hicmae.data.clip_list import PackedClip, Shard
from hicmae.data.video import NOT_READ, FrameTimes, Video
from hicmae.io import UnreadableClip, one_line

MAX_OPEN = 8  # shards a process keeps open


@functools.lru_cache(maxsize=MAX_OPEN)
def _opened(shard: Shard) -> IO[bytes]:
    """Open a shard, which is closed when nobody has it any more."""
    file = open(shard.path, "rb", buffering=0)
    if (size := os.fstat(file.fileno()).st_size) != shard.size:
        text = f"shard '{shard.path}' has {size} bytes, expected {shard.size}: cut off or exchanged"
        raise UnreadableClip(f"{text}; delete it and its index, and run pack_clips.py again")
    return file


def read_bytes(shard: Shard, offset: int, size: int) -> bytes:
    """Return bytes of a shard; UnreadableClip where it is missing, cut off or another file."""
    try:
        file = _opened(shard)  # held here, or another thread might make the cache drop it
        data = os.pread(file.fileno(), size, offset)  # forked workers share no position
    except OSError as error:
        _opened.cache_clear()
        raise UnreadableClip(f"shard '{shard.path}' cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise UnreadableClip(f"shard '{shard.path}' is cut off: it ends before {offset + size}")
    return data


class PackedVideo(Video):
    """The frames of a packed clip, JPEG or PNG."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip, self.checksums = clip.video, clip, info["crc32"]
        self.ends = np.cumsum([0, *info["sizes"]])
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
            data = read_bytes(self.clip.shard, self.clip.frames[0] + start, stop - start)
            if zlib.crc32(data) != self.checksums[index]:
                raise _damaged(self.clip, f"frame {index} is not what was packed")
            # Upright and in RGB: the pixels that Pillow gives, in less time.
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise _damaged(self.clip, f"frame {index} is no image")
            frames.append(image)
        return frames


class PackedWav(WavFile):
    """The sound of a packed clip."""

    def __init__(self, clip: PackedClip, info: dict[str, Any]) -> None:
        self.path, self.clip = clip.audio or clip.video, clip
        self.dtype, self.samples = np.dtype(info["sample_type"]), info["samples"]
        self.start = clip.wav[0] + info["wav_header"]

    def __len__(self) -> int:
        return self.samples or _not_packed(self.clip, "audio")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples, see `WavFile`."""
        if stop > self.samples:
            raise _damaged(self.clip, f"its sound ends before sample {stop}")
        width = self.dtype.itemsize
        data = read_bytes(self.clip.shard, self.start + start * width, (stop - start) * width)
        samples = np.frombuffer(data, self.dtype).astype(np.float32)
        return samples / 32768 if width == 2 else samples


def open_packed(clip: PackedClip) -> tuple[PackedVideo, PackedWav]:
    """Read what a packed clip's own description says; UnreadableClip where it is none."""
    data = read_bytes(clip.shard, *clip.info)
    try:
        info = json.loads(data)
        return PackedVideo(clip, info), PackedWav(clip, info)
    except (LookupError, TypeError, ValueError) as error:
        reason = f"its description: {type(error).__name__}: {one_line(error)}"
        raise _damaged(clip, reason) from None


def _not_packed(clip: PackedClip, stream: str) -> NoReturn:
    name, other = (clip.audio, "a") if stream == "video" else (clip.video, "v")
    text = f"clip '{name}' in shard '{clip.shard.path}' was packed without {stream}"
    raise UnreadableClip(f"{text}, as its list says '{NOT_READ}'; give --modality {other}")


def _damaged(clip: PackedClip, reason: str) -> UnreadableClip:
    name = " ".join(clip.video.split())
    return UnreadableClip(f"clip '{name}' in shard '{clip.shard.path}' is damaged: {reason}")
