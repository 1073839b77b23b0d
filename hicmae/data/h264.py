"""H.264 in mp4, decoded no further than the wanted frames need; the pixels are the same."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from hicmae.data.clip_list import check_frame_size

PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # both decoders turn these into the very same RGB
_SLICE, _IDR_SLICE = 1, 5  # kinds of NAL units

# Kept, as each new one computes its tables again: as long as decoding five frames.
_to_rgb = VideoReformatter()
# Since PyAV 17 it would start threads for every frame; before, there was no such choice.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class FrameTimes(NamedTuple):
    """When each frame begins and ends, in seconds; two (frames,) float32 arrays, ascending."""

    begins: np.ndarray
    ends: np.ndarray

    def between(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends."""
        return float(self.begins[first]), float(self.ends[last])


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


class H264Video:
    """An mp4 whose frames can be told by their time stamps; `open_h264` makes it where that is so.

    Decoding starts at the last keyframe before which no wanted frame needs anything, stops with the
    last wanted frame, and leaves out unwanted frames to which no other refers: often half of all.
    """

    def __init__(self, path: str, container: av.container.InputContainer) -> None:
        self.path, self.container = path, container
        self.codec = container.streams.video[0].codec_context
        self.codec.thread_count = 1  # workers share the cores
        self.packets = [p for p in container.demux(video=0) if p.size]
        self.is_indexed = _is_indexed(self.packets)
        if self.is_indexed:
            self.stamps = sorted(packet.pts for packet in self.packets if packet.pts is not None)
            self.frame_times = packet_times(self.packets)

    def __len__(self) -> int:
        return len(self.packets)

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.frame_times.between(first, last)

    def read(self, indices: Sequence[int]) -> list[np.ndarray] | None:
        """Return the (H, W, 3) RGB frames at `indices`, or None where anything is odd."""
        wanted = {self.stamps[index] for index in indices}
        places = [place for place, packet in enumerate(self.packets) if packet.pts in wanted]
        first, last = self._start(places[0]), places[-1]
        frames: dict[int, np.ndarray] = {}
        try:
            self.codec.flush_buffers()
            for packet in self.packets[first : last + 1]:
                self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                _keep(self.codec.decode(packet), wanted, frames)
            _keep(self.codec.decode(None), wanted, frames)
            self.codec.flush_buffers()  # or it would take no more packets
        except av.FFmpegError:
            return None
        found = [frames.get(self.stamps[index]) for index in indices]
        whole = [frame for frame in found if frame is not None]
        return whole if len(whole) == len(found) else None

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


def open_h264(path: str) -> H264Video | None:
    """Open an mp4 for partial decoding; None where it is none, or broken, or not to be trusted.

    Raises:
        UnreadableClip: the frames of a video, of any kind, are too large.
    """
    try:
        path.encode()  # a name that is not UTF-8 is no name to decord: it shall say so
        container = av.open(
            os.path.abspath(path),
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        )
        streams = container.streams.video
        if not streams:
            return None
        codec = streams[0].codec_context
        check_frame_size(f"video '{path}'", codec.width, codec.height)
        is_mp4 = "mp4" in container.format.name.split(",")
        # Not codec.pix_fmt: where it is not known, PyAV 17 crashes.
        pixels = codec.format.name if codec.format else ""
        if not is_mp4 or codec.name != "h264" or pixels not in PIXEL_FORMATS:
            return None
        video = H264Video(path, container)
    except (av.FFmpegError, OSError, UnicodeError):
        return None
    return video if video.is_indexed else None


def _is_indexed(packets: Sequence[av.Packet]) -> bool:
    """Tell whether every packet is one whole frame with a time stamp of its own."""
    if not packets or not packets[0].is_keyframe:
        return False
    if any(packet.pts is None or packet.is_corrupt or packet.is_discard for packet in packets):
        return False
    return len({packet.pts for packet in packets}) == len(packets)


def _keep(
    decoded: Iterable[av.VideoFrame], wanted: set[int], frames: dict[int, np.ndarray]
) -> None:
    for frame in decoded:
        if frame.pts in wanted and not frame.is_corrupt and not frame.rotation:
            frames[frame.pts] = _to_rgb.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray()
