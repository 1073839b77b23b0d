"""A copy of a video with boxes, answers and bars drawn in, and with its sound."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from hicmae.inference.decoding import NoPicture, first_stream, needed_stream, opened
from hicmae.inference.drawing import Annotator
from hicmae.inference.files import check_writable, whole_file
from hicmae.inference.results import Prediction

FILMS = (".mp4", ".mov", ".mkv")
COPIED = ("aac", "mp3", "ac3", "eac3")  # what mp4 players hear; other sound becomes AAC
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC
QUALITY = {"crf": "20", "preset": "veryfast"}


def write_overlay(
    video: str | Path, predictions: Sequence[Prediction], path: str | Path, progress: bool = False
) -> Path:
    """Write the annotated copy of a video; it appears only when it is whole.

    Args:
        video: the file that was asked about.
        predictions: for each person in it; the bars are those of the first.
        path: .mp4, .mov or .mkv.
        progress: show a progress bar.

    Raises:
        UnreadableClip: the video has no picture or cannot be decoded.
        ValueError: a file ending that is no film's.
    """
    check_writable(path, FILMS)
    if Path(video).is_dir():
        raise NoPicture(f"'{video}' is a folder of frames; an annotated copy needs a video")
    bar_options = {"leave": False, "disable": not progress}
    with opened(str(video)) as source, whole_file(path) as part:
        if first_stream(source, "video") is None:
            raise NoPicture(f"'{video}' has no picture to draw on")
        picture = needed_stream(source, "video")
        sound = first_stream(source, "audio")
        inputs = [picture] if sound is None else [picture, sound]
        picture.thread_type = "AUTO"
        begin = max(source.start_time or 0, 0) / 1e6  # seconds; streams keep their distance
        with av.open(str(part), "w") as target:
            drawer = _PictureWriter(target, picture, predictions, begin)
            hearing = None if sound is None else _SoundWriter(target, sound, begin)
            with tqdm(total=picture.frames or None, desc="overlay", **bar_options) as bar:
                early = []  # sound before the first frame: writing starts when its size is known
                for packet in source.demux(*inputs):
                    if packet.stream is picture:
                        bar.update(drawer.take(packet))
                    else:
                        early.append(packet)
                    if drawer.started and hearing is not None:
                        for waiting in early:
                            hearing.take(waiting)
                        early.clear()
            drawer.close()
            if hearing is not None:
                hearing.close()
    return Path(path)


class _PictureWriter:
    """Decodes, draws and encodes the picture."""

    def __init__(
        self,
        target: OutputContainer,
        source: Stream,
        predictions: Sequence[Prediction],
        begin: float,
    ) -> None:
        self.target, self.predictions, self.begin = target, predictions, begin
        rate = source.average_rate or Fraction(25)
        self.stream = target.add_stream("libx264", rate=rate, options=QUALITY)
        self.stream.pix_fmt = "yuv420p"
        # As fine as the source's clock, so that frames of changing length keep their times.
        self.unit = source.time_base or 1 / rate
        self.stream.codec_context.time_base = self.unit
        self.converter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.annotators: list[Annotator] = []
        self.first: float | None = None
        self.last_pts = -1

    @property
    def started(self) -> bool:
        """Whether the size of the frames is known, so that the file can begin."""
        return self.first is not None

    def take(self, packet: Packet) -> int:
        """Draw on the frames of a packet; returns how many there were."""
        frames = packet.decode()
        for frame in frames:
            self._draw(frame)
        return len(frames)

    def _draw(self, frame: av.VideoFrame) -> None:
        self.size = self.size or (frame.width, frame.height)
        image = self.converter.reformat(frame, *self.size, format="rgb24").to_ndarray()
        # Upright, as the copy does not say how the telephone was held; and even, as H.264 wants.
        upright: np.ndarray = np.rot90(image, round(frame.rotation / 90))
        height, width = (side - side % 2 for side in upright.shape[:2])
        image = np.ascontiguousarray(upright[:height, :width])
        time = frame.time if frame.time is not None else (self.last_pts + 1) * float(self.unit)
        if self.first is None:
            self.first = time
            self.stream.width, self.stream.height = width, height
            self.annotators = [
                Annotator(prediction, (width, height), with_bars=k == 0)
                for k, prediction in enumerate(self.predictions)
            ]
        for annotator in self.annotators:
            annotator.draw(image, time - self.first)
        drawn = av.VideoFrame.from_ndarray(image, format="rgb24")
        self.last_pts = max(round((time - self.begin) / self.unit), self.last_pts + 1)
        drawn.pts, drawn.time_base = self.last_pts, self.unit
        self.target.mux(self.stream.encode(drawn))

    def close(self) -> None:
        """Write what the encoder holds back."""
        if self.first is not None:
            self.target.mux(self.stream.encode(None))


class _SoundWriter:
    """Copies the sound, or makes AAC of what mp4 players do not know."""

    def __init__(self, target: OutputContainer, source: AudioStream, begin: float) -> None:
        self.target, self.begin = target, begin
        codec = source.codec_context
        self.copies = codec is not None and codec.codec.canonical_name in COPIED
        self.resampler: AudioResampler | None = None
        if self.copies:
            self.stream = target.add_stream_from_template(source)
        elif codec is not None:
            rate = min(RATES, key=lambda known: abs(known - codec.sample_rate))
            layout = codec.layout.name if codec.layout.nb_channels <= 6 else "stereo"
            self.stream = target.add_stream("aac", rate=rate, layout=layout)
            self.resampler = AudioResampler("fltp", layout, rate, frame_size=1024)

    def take(self, packet: Packet) -> None:
        """Pass a packet on."""
        if self.copies:
            if packet.dts is None:  # the end
                return
            shift = round(self.begin / (packet.time_base or 1))
            packet.dts -= shift
            if packet.pts is not None:
                packet.pts -= shift
            packet.stream = self.stream
            self.target.mux(packet)
        elif self.resampler is not None:
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame):
                    if frame.pts is not None:
                        frame.pts -= round(self.begin / frame.time_base)
                    self._encode(self.resampler.resample(frame))

    def close(self) -> None:
        """Write what resampler and encoder hold back."""
        if self.resampler is not None:
            self._encode(self.resampler.resample(None))
            self.target.mux(self.stream.encode(None))

    def _encode(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            self.target.mux(self.stream.encode(frame))
