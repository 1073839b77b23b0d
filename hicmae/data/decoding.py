"""Frames of a clip by their numbers: from a folder of images, or from a video file."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import av
import numpy as np
from PIL import Image

from hicmae.data.clip_list import UnreadableClip, check_frame_size, one_line
from hicmae.data.h264 import H264Video, open_h264, packet_times

try:
    import decord
except ImportError:  # no wheels outside Linux x86-64; PyAV gives the same frames there
    decord = None
else:
    decord.logging.set_level(decord.logging.FATAL)  # what is wrong with a clip is in our message

FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")

# What Pillow raises for broken image files; its PNG reader uses SyntaxError.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class FrameFolder:
    """A folder of frames, in the order of their names."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            raise UnreadableClip(
                f"video folder '{path}' cannot be read: {error.strerror}"
            ) from None
        self.names = sorted(
            name
            for name in names
            if name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith(".")
        )
        if not self.names:
            raise UnreadableClip(
                f"video folder '{path}' holds no frame, expected {' '.join(FRAME_EXTENSIONS)} files"
            )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) RGB frames at `indices`."""
        return [self._read(os.path.join(self.path, self.names[index])) for index in indices]

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Raise UnreadableClip: images carry no times."""
        raise UnreadableClip(
            f"video folder '{self.path}' has no frame times, expected a video file in pre-training"
        )

    @staticmethod
    def _read(path: str) -> np.ndarray:
        try:
            with Image.open(path) as image:
                check_frame_size(f"frame '{path}'", *image.size)
                return np.asarray(image.convert("RGB"))
        except _IMAGE_ERRORS as error:
            raise UnreadableClip(f"frame '{path}' cannot be read: {one_line(error)}") from None


class DecordVideo:
    """A video file read with decord; frames between the wanted ones are skipped, not converted."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # An absolute name, as FFmpeg would take "a:b.mp4" for a protocol.
            self.reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise UnreadableClip(f"video '{path}' cannot be opened: {one_line(error)}") from None
        if len(self.reader) == 0:
            raise UnreadableClip(f"video '{path}' holds no frame")

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) RGB frames at `indices`, which ascend without repetition."""
        try:
            return list(self.reader.get_batch(list(indices)).asnumpy())
        except (decord.DECORDError, RuntimeError):
            # decord also fails on some sound files, e.g. all of width 48.
            return PyAVVideo(self.path).read(indices)

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        times = self.reader.get_frame_timestamp([first, last])
        return float(times[0][0]), float(times[1][1])


class PyAVVideo:
    """A video file read with PyAV, for machines without decord.

    Frames are counted in order rather than sought: seeking is off by one in some containers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with av.open(os.path.abspath(path), metadata_errors="replace") as container:
                stream = next(iter(container.streams.video), None)
                packets = [] if stream is None else list(container.demux(stream))
                self.frame_times = packet_times(packets)
        except av.FFmpegError as error:
            raise UnreadableClip(f"video '{path}' cannot be opened: {one_line(error)}") from None
        if not len(self.frame_times.begins):
            raise UnreadableClip(f"video '{path}' holds no frame")

    def __len__(self) -> int:
        return len(self.frame_times.begins)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) RGB frames at `indices`, which ascend without repetition."""
        wanted, images = set(indices), []
        try:
            with av.open(os.path.abspath(self.path), metadata_errors="replace") as container:
                decoded = itertools.islice(container.decode(video=0), max(wanted) + 1)
                images = [
                    frame.to_ndarray(format="rgb24")
                    for index, frame in enumerate(decoded)
                    if index in wanted
                ]
        except av.FFmpegError as error:
            raise UnreadableClip(
                f"video '{self.path}' cannot be decoded: {one_line(error)}"
            ) from None
        if len(images) != len(wanted):
            raise UnreadableClip(
                f"video '{self.path}' cannot be decoded: it ends before frame {max(wanted)}"
            )
        return images

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.frame_times.between(first, last)


class Mp4Video:
    """An mp4 read by `H264Video`, which decodes least; by the others where that finds it odd."""

    def __init__(self, video: H264Video) -> None:
        self.path, self.video = video.path, video

    def __len__(self) -> int:
        return len(self.video)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) RGB frames at `indices`, which ascend without repetition."""
        frames = self.video.read(indices)
        return whole_file_video(self.path).read(indices) if frames is None else frames

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.video.times(first, last)


class Video(Protocol):
    """The frames of a clip: a folder, a video file, or a packed clip."""

    path: str

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) uint8 RGB frames at `indices`, which ascend without repetition."""
        ...

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        ...


def open_video(path: str) -> Video:
    """Open a folder of frames or a video file; UnreadableClip where there is nothing to read."""
    if os.path.isdir(path):
        return FrameFolder(path)
    if not os.path.isfile(path):
        raise UnreadableClip(f"video '{path}' does not exist")
    if os.path.getsize(path) == 0:
        raise UnreadableClip(f"video '{path}' is an empty file")
    video = open_h264(path)
    return whole_file_video(path) if video is None else Mp4Video(video)


def whole_file_video(path: str) -> DecordVideo | PyAVVideo:
    """Open a video file of any kind, to be decoded frame by frame."""
    return DecordVideo(path) if decord is not None else PyAVVideo(path)
