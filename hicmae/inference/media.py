"""Pictures and sound of what a model is asked about: a file, a folder of frames, or arrays.

A source has `times`, the moment of each frame in seconds from the first one, `frames(indices)` and
`sound()`; `path` and `heard` name where the two come from. Nothing is decoded before it is wanted.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.clip_list import UnreadableClip
from hicmae.data.video import FrameFolder
from hicmae.inference.decoding import (
    NoPicture,
    NoSound,
    first_stream,
    frames_at,
    in_step,
    needed_stream,
    opened,
    read_sound,
    to_mono,
)

FRAME_RATE = 25.0  # where a file does not say


class MediaFile:
    """A video or sound file, read with FFmpeg's libraries."""

    def __init__(self, path: str | Path) -> None:
        """Open the file; UnreadableClip in one line where that cannot be done."""
        self.path = self.heard = str(path)
        with opened(self.path) as container:
            self.has_picture = first_stream(container, "video") is not None
            self.has_sound = first_stream(container, "audio") is not None
        if not self.has_picture and not self.has_sound:
            raise UnreadableClip(f"'{self.path}' holds neither picture nor sound")

    @cached_property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames, ascending from 0; read from the packets, not decoded."""
        if not self.has_picture:
            raise NoPicture(f"'{self.path}' has no picture, only sound")
        with opened(self.path) as container:
            stream = needed_stream(container, "video")
            stamps = [
                packet.pts if packet.pts is not None else packet.dts
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
            unit, rate = float(stream.time_base or 0), float(stream.average_rate or FRAME_RATE)
        if not stamps:
            raise NoPicture(f"'{self.path}' holds no frame")
        if any(stamp is None for stamp in stamps):  # a raw stream: only their number is known
            return np.arange(len(stamps)) / rate
        times = np.sort(np.array(stamps, float)) * unit
        return times - times[0]

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at ascending indices upright, (H, W, 3) uint8 RGB of one size.

        A frame is found by its time, so that jumping over parts that nobody wants is safe.
        """
        wanted = self.times[np.asarray(indices, int)]
        with opened(self.path) as container:
            stream = needed_stream(container, "video")
            decoded = frames_at(container, stream, wanted, self._nearly)
            converter = VideoReformatter()  # one for all frames: setting it up takes half the time
            size, last, count = None, None, 0
            for frame in decoded:
                size = size or (frame.width, frame.height)
                image = converter.reformat(frame, *size, format="rgb24").to_ndarray()
                # Telephones store how they were held beside the picture.
                last = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                count += 1
                yield last
        if last is None or count < 0.95 * len(wanted):
            raise UnreadableClip(
                f"'{self.path}' ends before its time: {count} of {len(wanted)} frames can be "
                "decoded; it is cut off or damaged"
            )
        yield from itertools.repeat(last, len(wanted) - count)

    @property
    def _nearly(self) -> float:
        """Return how much earlier than asked for a frame's time may be: half a frame."""
        steps = np.diff(self.times)
        return float(np.median(steps)) / 2 if len(steps) else 0.0

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32 in [-1, 1], mono, 16 kHz, beginning with the picture."""
        if not self.has_sound:
            raise NoSound(f"'{self.path}' has no sound")
        samples, begin = read_sound(self.path)
        return samples if begin is None else in_step(samples, begin)


class Folder:
    """A folder of frames with the sound of another file, if any."""

    has_picture = True

    def __init__(self, path: str | Path, frame_rate: float, audio: str | Path | None) -> None:
        """List the frames; `frame_rate` counts where there is no sound to tell the time by."""
        self.path, self.frame_rate = str(path), frame_rate
        self.heard = self.path if audio is None else str(audio)
        self.folder = FrameFolder(self.path)
        self.audio = None if audio is None else MediaFile(audio)
        self.has_sound = self.audio is not None and self.audio.has_sound

    @cached_property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames: spread over the sound, as in training."""
        count = len(self.folder)
        rate = self.frame_rate
        if self.has_sound and count > 1:
            rate = (count - 1) / max(len(self._samples) / SAMPLE_RATE, 1e-3)
        return np.arange(count) / rate

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`, (H, W, 3) uint8 RGB."""
        for index in indices:
            yield np.asarray(self.folder.read([index])[0])

    @cached_property
    def _samples(self) -> np.ndarray:
        if self.audio is None:
            raise NoSound(f"'{self.path}' is a folder of frames without sound; name its sound file")
        return self.audio.sound()

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32, mono, 16 kHz."""
        return self._samples


class Arrays:
    """Frames and waveform already in memory."""

    path = heard = "arrays"

    def __init__(
        self,
        frames: np.ndarray | None,
        fps: float,
        waveform: np.ndarray | None,
        sample_rate: float,
    ) -> None:
        """Check what is given: (T, H, W, 3) uint8 RGB; (S,) or (channels, S) in [-1, 1] or int16.

        Raises:
            ValueError: of another shape or type, or a rate that is none.
        """
        for name, rate in (("fps", fps), ("sample_rate", sample_rate)):
            if not (isinstance(rate, (int, float)) and 0 < rate < 1e7):
                raise ValueError(f"{name} must be a positive number, got {rate!r}")
        if frames is not None:
            frames = np.asarray(frames)
            if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
                raise ValueError(
                    f"frames are {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3) in RGB"
                )
            if not frames.size:
                raise NoPicture(f"frames are empty: shape {frames.shape}")
        self.images, self.fps = frames, float(fps)
        self.samples = None if waveform is None else to_mono(np.asarray(waveform), sample_rate)
        self.has_picture, self.has_sound = frames is not None, waveform is not None
        if frames is None and waveform is None:
            raise UnreadableClip("neither frames nor a waveform are given")

    @property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames."""
        if self.images is None:
            raise NoPicture("no frames are given")
        return np.arange(len(self.images)) / self.fps

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`."""
        if self.images is None:
            raise NoPicture("no frames are given")
        yield from self.images[np.asarray(indices, int)]

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32, mono, 16 kHz."""
        if self.samples is None:
            raise NoSound("no waveform is given")
        return self.samples


class WithSound:
    """A video with the sound of another file."""

    def __init__(self, video: MediaFile, audio: str | Path) -> None:
        """Join the two; they begin together."""
        self.video, self.audio = video, MediaFile(audio)
        self.path, self.heard, self.frames = video.path, self.audio.path, video.frames
        self.has_picture, self.has_sound = video.has_picture, self.audio.has_sound
        self.sound = self.audio.sound

    @property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames."""
        return self.video.times


Source = MediaFile | Folder | Arrays | WithSound


def open_source(
    path: str | Path, audio: str | Path | None = None, frame_rate: float = FRAME_RATE
) -> Source:
    """Open a video, a sound file or a folder of frames.

    Args:
        path: what to read.
        audio: sound to take instead of the file's own.
        frame_rate: of a folder of frames without sound.
    """
    if os.path.isdir(path):
        return Folder(path, frame_rate, audio)
    video = MediaFile(path)
    return video if audio is None else WithSound(video, audio)
