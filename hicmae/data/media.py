"""Read films, sounds and folders of frames.

Training asks a `Video` for frames by their numbers: a folder, or a film read by partial decoding of
H.264, by decord, or by PyAV. What a model is asked about in inference is a `Source`, with `times`,
`frames` and `sound`. Files are opened by `open_container` (PyAV) and by decord, nowhere else.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.video import FrameFolder, FrameTimes, Video, check_frame_size
from hicmae.io import UnreadableClip, one_line

try:
    import decord
except ImportError:  # no wheels outside Linux x86-64; PyAV gives the same frames there
    decord = None
else:
    decord.logging.set_level(decord.logging.FATAL)  # what is wrong with a clip is in our message

FRAME_RATE = 25.0  # frames a second where a file does not say
SEEK_GAP = 8.0  # seconds between wanted frames from which jumping is cheaper than decoding
OUT_OF_STEP = 0.1  # seconds; sound that begins this much apart from the picture is shifted

_PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # all decoders turn these into the very same RGB
_SLICE, _IDR_SLICE = 1, 5  # kinds of NAL units of H.264
# Kept, as each new one computes its tables again: as long as decoding five frames.
_to_rgb = VideoReformatter()
# Since PyAV 17 it would start threads for every frame; before, there was no such choice.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class NoPicture(UnreadableClip):
    """There is no picture where one is needed."""


class NoSound(UnreadableClip):
    """There is no sound where some is needed."""


# Opening with PyAV


def open_container(path: str) -> InputContainer:
    """Open a file, and nothing but a file: what calls itself a film may be a list of addresses."""
    return av.open(
        os.path.abspath(path),  # FFmpeg takes "a:b.mp4" for a protocol
        metadata_errors="replace",
        options={"protocol_whitelist": "file"},
    )


@contextmanager
def opened(path: str) -> Iterator[InputContainer]:
    """Yield a file's container; UnreadableClip in one line for whatever is wrong with it."""
    check_file(path)
    try:
        with open_container(path) as container:
            yield container
    except av.InvalidDataError as error:
        raise UnreadableClip(
            f"'{path}' is no video or sound file, or damaged: {error.strerror}"
        ) from None
    except av.FFmpegError as error:
        raise UnreadableClip(f"'{path}' cannot be decoded: {error.strerror}") from None


def check_file(path: str) -> None:
    """Raise UnreadableClip where a path is no file, or one that is empty or may not be read."""
    if not os.path.isfile(path):  # a pipe, say, would never end
        problem = "is no file" if os.path.exists(path) else "does not exist"
        raise UnreadableClip(f"'{path}' {problem}")
    try:
        with open(path, "rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise UnreadableClip(f"'{path}' cannot be read: {error.strerror}") from None
    if is_empty:
        raise UnreadableClip(f"'{path}' is an empty file")


def first_stream(container: InputContainer, kind: Literal["audio", "video"]) -> Any:
    """Return a file's first stream of a kind, or None; the cover of a song is no video."""
    streams = getattr(container.streams, kind)
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)


def needed_stream(container: InputContainer, kind: Literal["audio", "video"]) -> Any:
    """Return a file's first stream of a kind; UnreadableClip where it cannot be decoded."""
    stream = first_stream(container, kind)
    if stream is None or stream.codec_context is None:
        raise UnreadableClip(f"'{container.name}' has a {kind} stream of an unknown codec")
    if kind == "video":
        check_frame_size(f"a frame of '{container.name}'", stream.width, stream.height)
    return stream


class UprightRgb:
    """Takes decoded frames to (H, W, 3) uint8 RGB of the first one's size, turned as the film says.

    Telephones store how they were held beside the picture.
    """

    def __init__(self) -> None:
        self.converter = VideoReformatter()  # one for all: setting it up takes half the time
        self.size: tuple[int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert one frame."""
        self.size = self.size or (frame.width, frame.height)
        image = self.converter.reformat(frame, *self.size, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


# Frames by their numbers, for training


def packet_times(packets: Iterable[av.Packet]) -> FrameTimes:
    """Return the times of the frames that a video's packets hold, in order of display.

    In float32, as decord gives them and the original used them: a sample of the sound may depend on
    the rounding, and must not depend on the decoder.
    """
    spans = []
    for packet in packets:
        if packet.pts is not None:
            unit = packet.time_base  # a Fraction, whose own products would take as long as decoding
            begin = packet.pts * unit.numerator
            end = begin + (packet.duration or 0) * unit.numerator
            spans.append((begin / unit.denominator, end / unit.denominator))
    begins, ends = np.array(sorted(spans), np.float32).reshape(-1, 2).T
    return FrameTimes(begins, ends)


def open_video(path: str) -> Video:
    """Open a folder of frames or a video file; UnreadableClip where there is nothing to read."""
    if os.path.isdir(path):
        return FrameFolder(path)
    check_file(path)
    return open_h264(path) or whole_file_video(path)


def whole_file_video(path: str) -> Video:
    """Open a video file of any kind, to be decoded frame by frame."""
    return DecordVideo(path) if decord is not None else PyAVVideo(path)


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
        """Return the frames at `indices`, see `Video`."""
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
        with opened(path) as container:
            stream = next(iter(container.streams.video), None)
            self.frame_times = packet_times(container.demux(stream) if stream else ())
        if not len(self):
            raise UnreadableClip(f"video '{path}' holds no frame")

    def __len__(self) -> int:
        return len(self.frame_times.begins)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`."""
        wanted = set(indices)
        with opened(self.path) as container:
            decoded = enumerate(itertools.islice(container.decode(video=0), max(wanted) + 1))
            images = [frame.to_ndarray(format="rgb24") for k, frame in decoded if k in wanted]
        if len(images) != len(wanted):
            raise UnreadableClip(
                f"video '{self.path}' cannot be decoded: it ends before frame {max(wanted)}"
            )
        return images

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.frame_times.between(first, last)


def open_h264(path: str) -> "H264Video | None":
    """Open an mp4 for partial decoding; None where it is none, or broken, or not to be trusted.

    Raises:
        UnreadableClip: the frames of a video, of any kind, are too large.
    """
    try:
        path.encode()  # a name that is not UTF-8 is no name to decord: it shall say so
        container = open_container(path)
        streams = container.streams.video
        if not streams:
            return None
        codec = streams[0].codec_context
        check_frame_size(f"video '{path}'", codec.width, codec.height)
        is_mp4 = "mp4" in container.format.name.split(",")
        # Not codec.pix_fmt: where it is not known, PyAV 17 crashes.
        pixels = codec.format.name if codec.format else ""
        if not is_mp4 or codec.name != "h264" or pixels not in _PIXEL_FORMATS:
            return None
        packets = [packet for packet in container.demux(video=0) if packet.size]
    except (av.FFmpegError, OSError, UnicodeError):
        return None
    return H264Video(path, container, packets) if _is_indexed(packets) else None


def _is_indexed(packets: Sequence[av.Packet]) -> bool:
    """Tell whether every packet is one whole frame with a time stamp of its own."""
    if not packets or not packets[0].is_keyframe:
        return False
    if any(packet.pts is None or packet.is_corrupt or packet.is_discard for packet in packets):
        return False
    return len({packet.pts for packet in packets}) == len(packets)


class H264Video:
    """An mp4 whose frames can be told by their time stamps; `open_h264` makes it where that is so.

    Decoding starts at the last keyframe before which no wanted frame needs anything, stops with the
    last wanted frame, and leaves out unwanted frames to which no other refers: often half of all.
    The pixels are those of decoding everything.
    """

    def __init__(self, path: str, container: InputContainer, packets: list[av.Packet]) -> None:
        self.path, self.container, self.packets = path, container, packets
        self.codec = container.streams.video[0].codec_context
        self.codec.thread_count = 1  # workers share the cores
        self.stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
        self.frame_times = packet_times(packets)

    def __len__(self) -> int:
        return len(self.packets)

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.frame_times.between(first, last)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`; by another decoder where any is odd."""
        stamps = [self.stamps[index] for index in indices]
        try:
            frames = self.decode(set(stamps))
        except av.FFmpegError:
            frames = {}
        if not frames.keys() >= set(stamps):
            return whole_file_video(self.path).read(indices)
        return [frames[stamp] for stamp in stamps]

    def decode(self, wanted: set[int]) -> dict[int, np.ndarray]:
        """Return the frames with these time stamps, less those that are damaged or turned."""
        places = [place for place, packet in enumerate(self.packets) if packet.pts in wanted]
        frames: dict[int, np.ndarray] = {}
        self.codec.flush_buffers()
        for packet in [*self.packets[self._start(places[0]) : places[-1] + 1], None]:
            if packet is not None:
                self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in self.codec.decode(packet):
                if frame.pts in wanted and not frame.is_corrupt and not frame.rotation:
                    rgb = _to_rgb.reformat(frame, format="rgb24", **_ONE_THREAD)
                    frames[frame.pts] = rgb.to_ndarray()
        self.codec.flush_buffers()  # or it would take no more packets
        return frames

    def _start(self, place: int) -> int:
        """Return the last place up to `place` from which everything after can be decoded."""
        for start in range(place, 0, -1):
            if self.packets[start].is_keyframe and self._is_idr(self.packets[start]):
                return start
        return 0

    def _is_idr(self, packet: av.Packet) -> bool:
        """Tell whether no picture after this one refers to one before it.

        Other keyframes only say that pictures get whole some time after them.
        """
        header = self.codec.extradata or b""
        if len(header) < 5 or header[0] != 1:  # 1: lengths stand before the NAL units
            return False
        size_bytes, data, position = (header[4] & 3) + 1, bytes(packet), 0
        while position + size_bytes < len(data):
            size = int.from_bytes(data[position : position + size_bytes], "big")
            kind = data[position + size_bytes] & 31
            if kind in (_SLICE, _IDR_SLICE):
                return kind == _IDR_SLICE
            position += size_bytes + size
        return False


# Picture and sound by time, for inference. `path` and `heard` of a source name where the two come
# from; nothing is decoded before it is wanted.


class MediaFile:
    """A video or sound file, or a video with the sound of another file; the two begin together."""

    def __init__(self, path: str | Path, audio: str | Path | None = None) -> None:
        """Open the file; UnreadableClip in one line where that cannot be done."""
        self.path = self.heard = str(path)
        self.has_picture, self.has_sound = _streams_of(self.path)
        if audio is not None:
            self.heard = str(audio)
            self.has_sound = _streams_of(self.heard)[1]

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
        steps = np.diff(self.times)
        nearly = float(np.median(steps)) / 2 if len(steps) else 0.0  # half a frame early will do
        with opened(self.path) as container:
            stream = needed_stream(container, "video")
            last, count = None, 0
            for last in map(UprightRgb(), frames_at(container, stream, wanted, nearly)):
                count += 1
                yield last
        if last is None or count < 0.95 * len(wanted):
            raise UnreadableClip(
                f"'{self.path}' ends before its time: {count} of {len(wanted)} frames can be "
                "decoded; it is cut off or damaged"
            )
        yield from itertools.repeat(last, len(wanted) - count)

    def sound(self) -> np.ndarray:
        """Return the sound as (S,) float32 in [-1, 1], mono, 16 kHz, beginning with the picture."""
        if not self.has_sound:
            raise NoSound(f"'{self.heard}' has no sound")
        return read_sound(self.heard)


class Folder:
    """A folder of frames with the sound of another file, if any."""

    has_picture = True

    def __init__(self, path: str | Path, frame_rate: float, audio: str | Path | None) -> None:
        """List the frames; `frame_rate` counts where there is no sound to tell the time by."""
        self.path, self.frame_rate = str(path), frame_rate
        self.heard = self.path if audio is None else str(audio)
        self.folder = FrameFolder(self.path)
        self.has_sound = audio is not None and _streams_of(self.heard)[1]

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


def _streams_of(path: str) -> tuple[bool, bool]:
    """Tell whether a file has picture and sound; UnreadableClip where it has neither."""
    with opened(path) as container:
        found = tuple(first_stream(container, kind) is not None for kind in ("video", "audio"))
    if not any(found):
        raise UnreadableClip(f"'{path}' holds neither picture nor sound")
    return found[0], found[1]


def frames_at(
    container: InputContainer, stream: VideoStream, wanted: np.ndarray, nearly: float
) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each wanted time, ascending; jump where none is wanted for long."""
    stream.thread_type = "AUTO"
    unit = float(stream.time_base or 0)
    start = last = None  # times of the first frame, and of the one before
    position, jumped = 0, -1
    frames = container.decode(stream)
    while position < len(wanted):
        frame = next(frames, None)
        if frame is None:
            return
        time = _time_of(frame, unit, last, nearly)
        start, last = time if start is None else start, time
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


def read_sound(path: str) -> np.ndarray:
    """Read a file's sound as (S,) float32 in [-1, 1], mono, 16 kHz, in step with its picture."""
    with opened(path) as container:
        stream = needed_stream(container, "audio")
        codec = stream.codec_context
        form = container.format.name, codec.sample_rate, codec.layout.nb_channels
        if form == ("wav", SAMPLE_RATE, 1):  # as in training: nothing is converted
            samples = soundfile.read(os.fsencode(path), dtype="float32")[0]
            if not np.isfinite(samples).all():
                raise UnreadableClip(f"'{path}' holds samples that are not finite numbers")
            return samples
        # 16 bit, as extract_audio.py writes it, so that the numbers are those of a wav made before.
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        blocks, begin = [], None
        for frame in itertools.chain(container.decode(stream), [None]):  # None: what is held back
            if begin is None and frame is not None:
                begin = frame.time
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        video = first_stream(container, "video")
        late = 0.0
        if begin is not None and video is not None and video.start_time is not None:
            late = begin - float(video.start_time * (video.time_base or 0))
    if not blocks:
        raise NoSound(f"'{path}' has a sound track without a sample")
    return in_step(np.concatenate(blocks).astype(np.float32) / 32768, late)


def in_step(samples: np.ndarray, begin: float) -> np.ndarray:
    """Let sound begin with the picture: silence before late sound, early sound cut."""
    if abs(begin) < OUT_OF_STEP:  # the delay of an encoder, which wavs made before have too
        return samples
    shift = round(begin * SAMPLE_RATE)
    return np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]


def to_mono(waveform: np.ndarray, sample_rate: float) -> np.ndarray:
    """Average channels, (S,) or (channels, S) of floats or int16, and resample to 16 kHz."""
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
