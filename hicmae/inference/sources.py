"""What inference is asked about: picture and sound of a clip by time.

`path` and `heard` name where the two come from; nothing is decoded before it is wanted. `times`
(n,) are seconds of the frames, ascending from 0; `frames` yields (H, W, 3) uint8 RGB; `sound` (S,)
is float32 in [-1, 1], mono, 16 kHz, beginning with the picture.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.clip_list import AnyClip, PackedClip
from hicmae.data.film import FRAME_RATE, Film
from hicmae.data.media import NoPicture, NoSound, Sound, read_sound, streams_of, to_mono
from hicmae.data.shards import open_packed
from hicmae.data.video import NOT_READ, FrameFolder, Video
from hicmae.io import UnreadableClip

File = str | Path | None


class MediaFile:
    """A video or sound file, or a video with the sound of another file; the two begin together.

    Of two files only that of a stream which is read must be there.
    """

    def __init__(self, path: str | Path, audio: File = None, streams: str = "av") -> None:
        self.path, self.heard = str(path), str(path if audio is None else audio)
        self.has_picture = self.has_sound = False
        if audio is None or "v" in streams:
            self.has_picture, self.has_sound = streams_of(self.path)
        if audio is not None:
            self.has_sound = "a" in streams and streams_of(self.heard)[1]

    @cached_property
    def film(self) -> Film:
        """The picture; its times are read from the packets."""
        return Film(self.path)

    @property
    def times(self) -> np.ndarray:
        """Seconds of the frames."""
        return self.film.clock.times

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at ascending indices, upright and of one size."""
        return self.film.frames(indices)

    @cached_property
    def sound(self) -> np.ndarray | Sound:
        """Samples; NoSound where there are none."""
        if not self.has_sound:
            raise NoSound(f"'{self.heard}' has no sound")
        together = self.has_picture and self.heard == self.path
        return read_sound(self.heard, self.film.clock.origin if together else None)


class FaceFrames:
    """Frames of a face with their sound: a folder and a file, or a packed clip.

    Frames without times are spread over the sound, as in training; `rate` a second counts where
    there is none either. `read` gives the sound of `heard`.
    """

    has_picture = True

    def __init__(
        self, video: Video, heard: str, read: Callable[[], np.ndarray | Sound] | None, rate: float
    ) -> None:
        self.path, self.heard = video.path, heard
        self.video, self.read, self.rate = video, read, rate

    @cached_property
    def times(self) -> np.ndarray:
        """Seconds of the frames."""
        if self.video.frame_times is not None:
            return self.video.frame_times.begins.astype(float)
        count, rate = len(self.video), self.rate
        if self.read is not None and count > 1:
            with suppress(UnreadableClip):  # where it is heard, that has been said
                rate = (count - 1) / max(len(self.sound) / SAMPLE_RATE, 1e-3)
        return np.arange(count) / rate

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`."""
        return (self.video.read([index])[0] for index in indices)

    @cached_property
    def sound(self) -> np.ndarray | Sound:
        """Samples; NoSound where there are none."""
        if self.read is None:
            raise NoSound(f"'{self.path}' is a folder of frames without sound; name its sound file")
        return self.read()


class Arrays:
    """Frames (T, H, W, 3) uint8 RGB and a waveform in memory, or one of them.

    The waveform, (S,) or (channels, S), floats in [-1, 1] or int16, begins with the first frame;
    other rates than 16000 Hz are resampled. ValueError for another shape, type or rate.
    """

    path = heard = "arrays"

    def __init__(
        self,
        frames: np.ndarray | None,
        fps: float = 25.0,
        waveform: np.ndarray | None = None,
        sample_rate: float = SAMPLE_RATE,
    ) -> None:
        for name, rate in (("fps", fps), ("sample_rate", sample_rate)):
            if not (isinstance(rate, (int, float)) and 0 < rate < 1e7):
                raise ValueError(f"{name} must be a positive number, got {rate!r}")
        if frames is None and waveform is None:
            raise UnreadableClip("neither frames nor a waveform are given")
        self.has_picture = frames is not None
        self.images = np.zeros((0, 1, 1, 3), np.uint8) if frames is None else np.asarray(frames)
        kind, shape = self.images.dtype, self.images.shape
        if len(shape) != 4 or shape[-1] != 3 or kind != np.uint8:
            raise ValueError(f"frames are {kind} {shape}, expected uint8 (T, H, W, 3) in RGB")
        if self.has_picture and not self.images.size:
            raise NoPicture(f"frames are empty: shape {shape}")
        self.times = np.arange(len(self.images)) / float(fps)
        self.samples = None if waveform is None else to_mono(np.asarray(waveform), sample_rate)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at `indices`."""
        yield from self.images[np.asarray(indices, int)]

    @property
    def sound(self) -> np.ndarray | Sound:
        """Samples; NoSound where there are none."""
        if self.samples is None:
            raise NoSound("no waveform is given")
        return self.samples


Asked = str | Path | PackedClip | Arrays
AskedClip = Asked | AnyClip | tuple[Asked, File]  # a clip, of a list or not, or with its sound
Source = MediaFile | FaceFrames | Arrays


def clip_and_sound(asked: AskedClip) -> tuple[Asked, File]:
    """Split what was asked about into a clip and the file heard instead of its own sound."""
    is_alone = isinstance(asked, PackedClip) or not isinstance(asked, tuple)
    pair: Any = (asked, None) if is_alone else asked
    return pair[0], pair[1]


def open_source(
    clip: Asked, audio: File = None, frame_rate: float = FRAME_RATE, streams: str = "av"
) -> Source:
    """Open a video, a sound file, a folder of frames or a packed clip; UnreadableClip in one line.

    `audio` is heard instead of the file's own sound; `frame_rate` is that of frames without sound.
    What is not among the `streams` read need not be there.
    """
    if isinstance(clip, Arrays):
        return clip
    if isinstance(clip, PackedClip):
        video, wav = open_packed(clip)
        read = None if clip.audio == NOT_READ else partial(wav.read, 0, len(wav))
        return FaceFrames(video, wav.path, read, frame_rate)
    if not os.path.isdir(clip) or (audio is not None and streams == "a"):
        return MediaFile(clip, audio, streams)
    heard = str(clip if audio is None else audio)
    read_own = None if audio is None else partial(read_sound, heard)
    return FaceFrames(FrameFolder(str(clip)), heard, read_own, frame_rate)
