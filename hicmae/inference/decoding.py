"""Decode pictures and sound with FFmpeg's libraries (PyAV)."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, overload

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.clip_list import UnreadableClip, check_frame_size

SEEK_GAP = 8.0  # seconds between wanted frames from which jumping is cheaper than decoding
OUT_OF_STEP = 0.1  # seconds; sound that begins this much apart from the picture is shifted


class NoPicture(UnreadableClip):
    """There is no picture where one is needed."""


class NoSound(UnreadableClip):
    """There is no sound where some is needed."""


@contextmanager
def opened(path: str) -> Iterator[InputContainer]:
    """Yield a file's container; UnreadableClip in one line for whatever is wrong with it."""
    if not os.path.exists(path):
        raise UnreadableClip(f"'{path}' does not exist")
    if not os.path.isfile(path):  # a pipe, say, would never end
        raise UnreadableClip(f"'{path}' is no file")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UnreadableClip(f"'{path}' is an empty file")
        # An absolute name, as FFmpeg takes "a:b.mp4" for a protocol; and no others than files, as
        # what calls itself a video may be a playlist of addresses.
        with av.open(
            os.path.abspath(path),
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        ) as container:
            yield container
    except av.InvalidDataError as error:
        raise UnreadableClip(
            f"'{path}' is no video or sound file, or damaged: {error.strerror}"
        ) from None
    except av.FFmpegError as error:
        raise UnreadableClip(f"'{path}' cannot be decoded: {error.strerror}") from None
    except OSError as error:
        raise UnreadableClip(f"'{path}' cannot be read: {error.strerror}") from None


def frames_at(
    container: InputContainer, stream: VideoStream, wanted: np.ndarray, nearly: float
) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each wanted time, ascending; jump where none is wanted for long."""
    stream.thread_type = "AUTO"
    unit = float(stream.time_base or 0)
    start = None  # time of the first frame
    position, jumped, last = 0, -1, None
    frames = container.decode(stream)
    while position < len(wanted):
        frame = next(frames, None)
        if frame is None:
            return
        time = _time_of(frame, unit, last, nearly)
        start = time if start is None else start
        last = time
        while position < len(wanted) and time - start >= wanted[position] - nearly:
            yield frame
            position += 1
        is_far = position < len(wanted) and wanted[position] - (time - start) > SEEK_GAP
        if is_far and position != jumped:  # once: the next key frame may be behind us
            container.seek(int((start + wanted[position]) / unit), stream=stream)
            frames, jumped = container.decode(stream), position


def _time_of(frame: av.VideoFrame, unit: float, last: float | None, nearly: float) -> float:
    """Return a frame's time; one frame after the one before where it carries none."""
    if frame.pts is not None:
        return frame.pts * unit
    return 0.0 if last is None else last + 2 * nearly


@overload
def first_stream(container: InputContainer, kind: Literal["audio"]) -> AudioStream | None: ...


@overload
def first_stream(container: InputContainer, kind: Literal["video"]) -> VideoStream | None: ...


def first_stream(container: InputContainer, kind: str) -> Stream | None:
    """Return a file's first stream of a kind; the cover of a song is no video."""
    streams = getattr(container.streams, kind)
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)


@overload
def needed_stream(container: InputContainer, kind: Literal["audio"]) -> AudioStream: ...


@overload
def needed_stream(container: InputContainer, kind: Literal["video"]) -> VideoStream: ...


def needed_stream(container: InputContainer, kind: Literal["audio", "video"]) -> Stream:
    """Return a file's first stream of a kind; UnreadableClip where its codec is unknown."""
    stream: Stream | None = first_stream(container, kind)
    if stream is None or stream.codec_context is None:
        raise UnreadableClip(f"'{container.name}' has a {kind} stream of an unknown codec")
    if isinstance(stream, VideoStream):
        check_frame_size(f"a frame of '{container.name}'", stream.width, stream.height)
    return stream


def read_sound(path: str) -> tuple[np.ndarray, float | None]:
    """Read a file's sound as mono 16 kHz float32.

    Returns:
        (S,) samples, and how many seconds after the first frame they begin; None without frames.
    """
    with opened(path) as container:
        stream = needed_stream(container, "audio")
        codec = stream.codec_context
        form = container.format.name, codec.sample_rate, codec.layout.nb_channels
        if form == ("wav", SAMPLE_RATE, 1):  # as in training: nothing is converted
            samples = soundfile.read(os.fsencode(path), dtype="float32")[0]
            if not np.isfinite(samples).all():
                raise UnreadableClip(f"'{path}' holds samples that are not finite numbers")
            return samples, None
        # 16 bit, as extract_audio.py writes it, so that the numbers are those of a wav made before.
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        blocks, first = [], None
        for frame in itertools.chain(container.decode(stream), [None]):  # None: what is held back
            if first is None and frame is not None:
                first = frame.time
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        video = first_stream(container, "video")
        offset = None
        if first is not None and video is not None and video.start_time is not None:
            offset = first - float(video.start_time * (video.time_base or 0))
    if not blocks:
        raise NoSound(f"'{path}' has a sound track without a sample")
    return np.concatenate(blocks).astype(np.float32) / 32768, offset


def in_step(samples: np.ndarray, begin: float) -> np.ndarray:
    """Let sound begin with the picture: silence before late sound, early sound cut."""
    if abs(begin) < OUT_OF_STEP:  # the delay of an encoder, which wavs made before have too
        return samples
    shift = round(begin * SAMPLE_RATE)
    return np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]


def to_mono(waveform: np.ndarray, sample_rate: float) -> np.ndarray:
    """Average channels and resample to 16 kHz."""
    if waveform.ndim not in (1, 2) or not waveform.size:
        raise ValueError(f"waveform has shape {waveform.shape}, expected (S,) or (channels, S)")
    if waveform.dtype == np.int16:
        waveform = waveform / 32768
    elif not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"waveform is {waveform.dtype}, expected floats in [-1, 1] or int16")
    if not np.isfinite(waveform).all():
        raise ValueError("waveform holds values that are not finite")
    samples = np.atleast_2d(waveform).mean(0, dtype=np.float64).astype(np.float32)
    if sample_rate == SAMPLE_RATE:
        return samples
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    block = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    block.sample_rate = round(sample_rate)
    parts = [*resampler.resample(block), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])
