"""Films: one clock, and frames by their numbers.

Seconds count from the first frame that a film displays; a frame is the one whose time stamp says
so. PyAV reads every film; of an mp4 of H.264 that is whole, only what is needed is decoded, which
gives the same frames in less time.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from hicmae.data import media
from hicmae.data.media import Damage, decoded, needed_stream, opened, packets_of
from hicmae.data.video import FrameFolder, FrameTimes, Video, check_frame_size
from hicmae.io import UnreadableClip

logger = logging.getLogger(__name__)

FRAME_RATE = 25.0  # frames a second where a file does not say
MOST_KEPT = 16 * 1024**2  # bytes of a film whose packets a worker keeps; `Film` reads larger ones
SEEK_GAP = 8.0  # seconds between wanted frames from which jumping is cheaper than decoding

_PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # all decoders turn these into the very same RGB
_SLICE, _IDR_SLICE = 1, 5  # kinds of NAL units of H.264
HAS_THREADS = int(av.__version__.split(".")[0]) >= 17  # since then they convert frames


class Clock(NamedTuple):
    """When each frame of a film is displayed.

    Attributes:
        stamps: (n,) int64 time stamps, ascending, each of one frame.
        unit: seconds a tick.
        lengths: (n,) int64 ticks that each frame lasts.
        is_indexed: each frame is one packet with this stamp, from a key frame on, none dropped.
        is_counted: frames do not tell their stamps; the k-th displayed one has the k-th.
        delay: ticks by which stamps are too late for the sound; an avi counts frames from 0.
    """

    stamps: np.ndarray
    unit: float
    lengths: np.ndarray
    is_indexed: bool = False
    is_counted: bool = False
    delay: int = 0

    @property
    def origin(self) -> float:
        """Return when the first frame is displayed, in the file's own seconds."""
        return float((self.stamps[0] - self.delay) * self.unit)

    @property
    def times(self) -> np.ndarray:
        """Return the (n,) seconds from the origin at which frames begin."""
        return (self.stamps - self.stamps[0]) * self.unit

    @property
    def duration(self) -> float:
        """Return the seconds from the origin to the end of the last frame."""
        return float((self.stamps[-1] + self.lengths[-1] - self.stamps[0]) * self.unit)

    @property
    def is_constant(self) -> bool:
        """Tell whether the frames follow each other evenly, within half a frame's length."""
        times, steps = self.times, max(len(self.stamps) - 1, 1)
        even = np.linspace(0.0, times[-1], len(times))
        return bool((np.abs(times - even) <= max(times[-1], 1e-3) / steps / 2).all())


def read_clock(container: InputContainer, kept: list[av.Packet] | None = None) -> Clock:
    """Make the clock of a film from its video packets, which are added to those `kept`.

    Films whose packets do not tell which frames there will be, and when, are decoded once.
    NoPicture: no frame is displayed. UnreadableClip: too many packets are damaged.
    """
    stream, damage = needed_stream(container, "video"), Damage()
    hides_frames = stream.codec_context.name == "vp8"
    frames: list[tuple[Any, int]] = []  # stamp and length
    first, discarded = None, 0
    for packet in packets_of(container, stream, damage):
        if not packet.size:
            continue
        if kept is not None:
            kept.append(packet)
        if hides_frames and not bytes(packet)[0] >> 4 & 1:
            continue
        first = first or packet
        if packet.is_discard:  # decoded for others' sake, before the beginning of a cut film
            discarded += 1
        else:
            frames.append((packet.pts, packet.duration or 0))
    damage.check(container.name, "video")
    stamps = {stamp for stamp, _ in frames}
    told = None not in stamps and len(stamps) == len(frames) > 0
    # An avi has no stamps: FFmpeg makes them of the order of packets, the first of which is at 0.
    is_avi = container.format.name == "avi"
    told &= not (is_avi and stream.codec_context.has_b_frames)
    start = first.dts if first is not None and is_avi else None
    # The last means frames before the first key frame.
    if not (first and told and first.is_keyframe) or (first.pts > min(stamps) and not discarded):
        file = os.stat(container.name)
        return _decoded_clock(container.name, file.st_size, file.st_mtime_ns, start)
    ticks, lengths = np.array(sorted(frames), np.int64).T
    unit, delay = float(stream.time_base), 0 if start is None else int(ticks[0] - start)
    return Clock(ticks, unit, _filled(ticks, lengths), not discarded, False, delay)


def _filled(ticks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Let a frame of unknown length last until the next one, the last one as long as usual."""
    if (lengths > 0).all():
        return lengths
    steps = np.diff(ticks)
    usual = int(np.median(steps)) if len(steps) else 1
    return np.where(lengths > 0, lengths, np.append(steps, usual))


@lru_cache(maxsize=4096)
def _decoded_clock(path: str, size: int, changed: int, start: int | None) -> Clock:
    """Make a clock by decoding a film; kept as long as the file has this size and time."""
    with opened(path) as container:
        stream = needed_stream(container, "video")
        stream.thread_type = "AUTO"
        frames = [(frame.pts, frame.key_frame) for frame in decoded(container, stream, Damage())]
        unit, rate = float(stream.time_base or 0), float(stream.average_rate or FRAME_RATE)
    if not frames:
        raise media.NoPicture(f"'{path}' holds no frame that can be decoded")
    known = [(k, stamp) for k, (stamp, _) in enumerate(frames) if stamp is not None]
    ticks, numbers = np.array([stamp for _, stamp in known], np.int64), np.arange(len(frames))
    is_counted = len(known) < len(frames) or bool((np.diff(ticks) < 0).any())
    if len(known) < len(frames):
        unit = unit if known else 1 / rate
        place, stamp = known[0] if known else (0, 0)
        ticks = stamp + np.round((numbers - place) / (rate * unit)).astype(np.int64)
    elif is_counted:  # the right stamps in another order; ascending, as each is of one frame
        ticks = np.maximum.accumulate(np.sort(ticks) - numbers) + numbers
    else:  # what is decoded before the first key frame lacks what it refers to
        ticks = ticks[next((k for k, (_, is_key) in enumerate(frames) if is_key), 0) :]
    ticks = np.unique(ticks)
    delay = 0 if start is None else int(ticks[0] - start)
    return Clock(ticks, unit, _filled(ticks, np.zeros_like(ticks)), False, is_counted, delay)


class UprightRgb:
    """Takes a stream's frames to (H, W, 3) uint8 RGB of the first one's size, as a player would.

    Telephones store how they were held, and whether a picture is mirrored, in a matrix beside it;
    old cameras store pixels that are not square.
    """

    # One for all, as each new one computes its tables again: as long as decoding five frames.
    # Without threads: a forked worker would wait for those of its parent for ever.
    converter = VideoReformatter()
    options: dict[str, Any] = {"threads": 1} if HAS_THREADS else {}

    def __init__(self, stream: Any) -> None:
        ratio = float(stream.sample_aspect_ratio or 1)
        self.aspect = ratio if 0.1 < ratio < 10 else 1.0
        self.size: tuple[int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert one frame; turn and mirror it by quarter turns."""
        if self.size is None:
            self.size = round(frame.width * self.aspect), frame.height
            check_frame_size("a frame", *self.size)
        converted = self.converter.reformat(frame, *self.size, format="rgb24", **self.options)
        image, side_data = converted.to_ndarray(), cast(Any, frame.side_data)
        try:
            data = bytes(side_data[SideData.DISPLAYMATRIX])
        except KeyError:
            return image
        (a, b), (c, d) = np.frombuffer(data, np.int32)[:9].reshape(3, 3)[:2, :2] / 65536
        # (x, y) is shown at (a x + c y, b x + d y)
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:, ::-1] if a < 0 else image
        return np.ascontiguousarray(image[::-1] if d < 0 else image)


class Film(Video):
    """The picture of a video file, read with PyAV; opening it looks at its packets only."""

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        if clock is None:
            with opened(path) as container:
                clock = read_clock(container)
        self.path, self.clock, self.damage = path, clock, Damage()
        times, spans = clock.times, clock.lengths * clock.unit
        # In float32, as the original used them.
        self.frame_times = FrameTimes(times.astype(np.float32), (times + spans).astype(np.float32))

    def __len__(self) -> int:
        return len(self.clock.stamps)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`."""
        return list(self.frames(indices, threads=1))

    def frames(self, indices: Sequence[int], threads: int = 0) -> Iterator[np.ndarray]:
        """Yield the frames at ascending indices upright, (H, W, 3) uint8 RGB of one size.

        Where a frame is damaged, the one before is taken; UnreadableClip where too many are.
        `threads` decode; 0: as many as there are cores.
        """
        wanted = self.clock.stamps[np.asarray(indices, int)]
        gaps = np.flatnonzero(np.diff(wanted) * self.clock.unit > SEEK_GAP) + 1
        wrong, damage = 0, Damage()
        self.damage = damage  # of the last reading
        for run in np.split(wanted, gaps):
            for is_right, image in self._displayed(run.tolist(), threads, damage):
                wrong += not is_right
                yield image
        text = f"{wrong} of {len(wanted)} wanted frames of '{self.path}' are damaged"
        if wrong > max(media.MAX_DAMAGED * len(wanted), 1):
            raise UnreadableClip(f"{text}, expected at most {media.MAX_DAMAGED:.0%}")
        if wrong or damage["damaged"]:
            packets = f"{damage['damaged']} of {damage['packets']} packets there"
            logger.warning("%s, %s; the frames before are taken", text, packets)

    def _displayed(
        self, stamps: list[int], threads: int, damage: Damage
    ) -> Iterator[tuple[bool, np.ndarray]]:
        """Yield what is displayed at ascending time stamps, and whether it is that very frame."""
        for back in (0.0, 10.0, 60.0, None):
            with opened(self.path) as container:
                stream = needed_stream(container, "video")
                stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
                frames = self._from(container, stream, stamps[0], back, damage)
                if frames is None:
                    continue
                to_rgb = UprightRgb(stream)
                shown = ahead = None
                for stamp in stamps:
                    while shown is None or shown[0] < stamp:
                        ahead = ahead or next(frames, None)
                        if ahead is None or (shown is not None and ahead[0] > stamp):
                            break
                        shown, ahead = ahead, None
                    if shown is None:
                        raise UnreadableClip(f"'{self.path}' is damaged: no frame can be decoded")
                    yield shown[0] == stamp and not shown[1].is_corrupt, to_rgb(shown[1])
                return

    def _from(
        self, container: InputContainer, stream: Any, stamp: int, back: float | None, damage: Damage
    ) -> Iterator[tuple[int, av.VideoFrame]] | None:
        """Return time stamps and frames from `back` seconds before a stamp on; None: of the file.

        A jump is believed only where it landed early enough, on a frame that is whole; else None.
        """
        frames = decoded(container, stream, damage)
        if self.clock.is_counted:
            return zip(self.clock.stamps.tolist(), frames, strict=False) if back is None else None
        if back is not None:
            unit = self.clock.unit
            if (stamp - self.clock.stamps[0]) * unit < back + SEEK_GAP:
                return None
            try:
                container.seek(int(stamp - back / unit), stream=stream)
            except av.FFmpegError:
                return None
            landed = next(frames, None)
            if landed is None or landed.is_corrupt or landed.pts is None or landed.pts > stamp:
                return None
            frames = itertools.chain([landed], frames)
        return ((frame.pts, frame) for frame in frames if frame.pts is not None)


class H264Film(Film):
    """An mp4 of H.264 of which as little is decoded as possible.

    Decoding starts at the last key frame before which no wanted frame needs anything, stops with
    the last wanted frame, and leaves out unwanted frames to which no other refers: often half of
    all. The pixels are those of decoding everything. `packets` are all of the film's.
    """

    def __init__(self, path: str, clock: Clock, stream: Any, packets: Sequence[av.Packet]) -> None:
        super().__init__(path, clock)
        self.codec, self.packets = stream.codec_context, packets
        self.header, self.to_rgb = self.codec.extradata or b"", UprightRgb(stream)
        self.codec.thread_count = 1  # workers share the cores

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`; by `Film` where any is damaged."""
        stamps = self.clock.stamps[list(indices)].tolist()
        try:
            frames = self._decode(set(stamps))
        except av.FFmpegError:
            frames = {}
        if not frames.keys() >= set(stamps):
            return super().read(indices)
        return [frames[stamp] for stamp in stamps]

    def _decode(self, wanted: set[int]) -> dict[int, np.ndarray]:
        """Return the frames with these time stamps, less those that are damaged."""
        places = [place for place, packet in enumerate(self.packets) if packet.pts in wanted]
        before = range(places[0], 0, -1)
        first = next((k for k in before if is_idr(self.packets[k], self.header)), 0)
        frames: dict[int, np.ndarray] = {}
        self.codec.flush_buffers()  # or it would take no more packets after the last reading
        for packet in [*self.packets[first : places[-1] + 1], None]:
            if packet is not None:
                self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in self.codec.decode(packet):
                if frame.pts in wanted and not frame.is_corrupt:
                    frames[frame.pts] = self.to_rgb(frame)
        return frames


def is_idr(packet: av.Packet, header: bytes) -> bool:
    """Tell whether no picture after a packet of H.264 refers to one before it.

    Other key frames only say that pictures get whole some time after them. `header` is of the film.
    """
    if not packet.is_keyframe or len(header) < 5 or header[0] != 1:  # 1: lengths before NAL units
        return False
    size_bytes, data, position = (header[4] & 3) + 1, bytes(packet), 0
    while position + size_bytes < len(data):
        size = int.from_bytes(data[position : position + size_bytes], "big")
        kind = data[position + size_bytes] & 31
        if kind in (_SLICE, _IDR_SLICE):
            return kind == _IDR_SLICE
        position += size_bytes + size
    return False


def open_video(path: str) -> Video:
    """Open a folder of frames or a film, to read some frames quickly; UnreadableClip: no frame."""
    if os.path.isdir(path):
        folder = FrameFolder(path)
        suffixes = [os.path.splitext(name)[1].lower() for name in os.listdir(path)]
        if sum(suffix in media.VIDEO_SUFFIXES for suffix in suffixes) < len(folder):
            return folder
        raise UnreadableClip(f"video '{path}' is a folder of films, expected one film or frames")
    packets: list[av.Packet] = []
    with opened(path) as container:
        stream = needed_stream(container, "video")
        codec = stream.codec_context
        # Not codec.pix_fmt: where it is not known, PyAV 17 crashes.
        pixels = codec.format.name if codec.format else ""
        is_mp4 = "mp4" in container.format.name.split(",")
        square = float(stream.sample_aspect_ratio or 1) == 1
        is_exact = codec.name == "h264" and is_mp4 and square and pixels in _PIXEL_FORMATS
        is_exact &= os.path.getsize(path) <= MOST_KEPT
        clock = read_clock(container, packets if is_exact else None)
        if is_exact and clock.is_indexed:
            return H264Film(path, clock, stream, packets)
    return Film(path, clock)
