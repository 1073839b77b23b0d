"""What inference is asked about: picture and sound of a clip by time.

`path` and `heard` name where the two come from; nothing is decoded before it is wanted.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.film import FRAME_RATE, Film
from hicmae.data.media import NoPicture, NoSound, read_sound, streams_of, to_mono
from hicmae.data.video import FrameFolder
from hicmae.io import UnreadableClip


class MediaFile:
    """A video or sound file, or a video with the sound of another file; the two begin together."""

    def __init__(self, path: str | Path, audio: str | Path | None = None) -> None:
        """Open the file; UnreadableClip in one line where that cannot be done."""
        self.path = self.heard = str(path)
        self.has_picture, self.has_sound = streams_of(self.path)
        if audio is not None:
            self.heard = str(audio)
            self.has_sound = streams_of(self.heard)[1]

    @cached_property
    def film(self) -> Film:
        """The picture; NoPicture where there is only sound."""
        if not self.has_picture:
            raise NoPicture(f"'{self.path}' has no picture, only sound")
        return Film(self.path)

    @property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames, ascending from 0; read from the packets, not decoded."""
        return self.film.clock.times

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at ascending indices upright, (H, W, 3) uint8 RGB of one size."""
        return self.film.frames(indices)

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32 in [-1, 1], mono, 16 kHz, beginning with the picture."""
        if not self.has_sound:
            raise NoSound(f"'{self.heard}' has no sound")
        together = self.has_picture and self.heard == self.path
        return read_sound(self.heard, self.film.clock.origin if together else None)


class Folder:
    """A folder of frames with the sound of another file, if any."""

    has_picture = True

    def __init__(self, path: str | Path, frame_rate: float, audio: str | Path | None) -> None:
        """List the frames; `frame_rate` counts where there is no sound to tell the time by."""
        self.path, self.frame_rate = str(path), frame_rate
        self.heard = self.path if audio is None else str(audio)
        self.folder = FrameFolder(self.path)
        self.has_sound = audio is not None and streams_of(self.heard)[1]

    @cached_property
    def times(self) -> np.ndarray:
        """(n,) seconds of the frames: spread over the sound, as in training."""
        count, rate = len(self.folder), self.frame_rate
        if self.has_sound and count > 1:
            rate = (count - 1) / max(len(self._samples) / SAMPLE_RATE, 1e-3)
        return np.arange(count) / rate

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`, (H, W, 3) uint8 RGB."""
        return (self.folder.read([index])[0] for index in indices)

    @cached_property
    def _samples(self) -> np.ndarray:
        if not self.has_sound:
            raise NoSound(f"'{self.path}' is a folder of frames without sound; name its sound file")
        return read_sound(self.heard)

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
        if frames is None and waveform is None:
            raise UnreadableClip("neither frames nor a waveform are given")
        self.has_picture, self.has_sound = frames is not None, waveform is not None
        self.images = np.zeros((0, 1, 1, 3), np.uint8) if frames is None else np.asarray(frames)
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                f"frames are {self.images.dtype} {self.images.shape}, expected uint8 (T, H, W, 3) "
                "in RGB"
            )
        if self.has_picture and not self.images.size:
            raise NoPicture(f"frames are empty: shape {self.images.shape}")
        self.times = np.arange(len(self.images)) / float(fps)
        self.samples = None if waveform is None else to_mono(np.asarray(waveform), sample_rate)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`."""
        yield from self.images[np.asarray(indices, int)]

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32, mono, 16 kHz."""
        if self.samples is None:
            raise NoSound("no waveform is given")
        return self.samples


Source = MediaFile | Folder | Arrays


def open_source(
    path: str | Path, audio: str | Path | None = None, frame_rate: float = FRAME_RATE
) -> Source:
    """Open a video, a sound file or a folder of frames.

    Args:
        path: what to read.
        audio: sound to take instead of the file's own.
        frame_rate: of a folder of frames without sound.
    """
    return Folder(path, frame_rate, audio) if os.path.isdir(path) else MediaFile(path, audio)
