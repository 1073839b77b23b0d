"""Draw a face's box, its answer and the bars of its scores into frames.

A copy of a video with boxes, answers and bars drawn in, and with its sound.

The picture of a clip's scores over time.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from hicmae.data.media import NoPicture, UprightRgb, first_stream, needed_stream, opened
from hicmae.inference.results import Prediction
from hicmae.inference.style import OKABE_ITO, STYLE, save_figure
from hicmae.io import check_writable, whole_file

LONGEST_GAP = 1.0  # seconds between two boxes over which the face is thought to be there


MOST_BARS = 8


OTHER = "#999999"  # colour of classes beyond those that have one


DARK = (20, 20, 20)


class Annotator:
    """Draws one person's answers; frames must all have one size.

    Args:
        prediction: of that person.
        size: width and height of the frames.
        with_bars: draw the scores of all classes in the corner.
    """

    def __init__(self, prediction: Prediction, size: tuple[int, int], with_bars: bool) -> None:
        self.prediction, self.size = prediction, size
        self.names = list(prediction.scores)
        answered = [window for window in prediction.windows if window.scores]
        self.centres = np.array([(window.start + window.end) / 2 for window in answered])
        rows = [[window.scores[name] for name in self.names] for window in answered]
        self.scores = np.array(rows)
        self.font_size = max(round(min(size) / 24), 9)
        self.thickness = max(round(min(size) / 200), 1)
        order = np.argsort(-self.scores.mean(0)) if len(answered) else np.arange(0)
        self.shown = sorted(order[:MOST_BARS]) if with_bars else []

    def draw(self, frame: np.ndarray, time: float) -> None:
        """Draw into a frame (H, W, 3) uint8 RGB, in place, what is said about a moment."""
        scores = self._at(time)
        box = self._box(time)
        if box is not None:
            best = int(scores.argmax())
            _outline(frame, box, _colour(best), self.thickness)
            _paste(frame, self._label(best, scores), box[0], box[1])
        if self.shown:
            self._bars(frame, scores)

    def _at(self, time: float) -> np.ndarray:
        """Return the scores at a moment, on the way between the windows around it."""
        return np.array([np.interp(time, self.centres, column) for column in self.scores.T])

    def _box(self, time: float) -> np.ndarray | None:
        """Return left, top, right, bottom at a moment; None where the face was not seen."""
        boxes = self.prediction.boxes
        if not len(boxes):
            return None
        times = boxes[:, 0]
        after = int(np.searchsorted(times, time))
        near = times[max(after - 1, 0)], times[min(after, len(times) - 1)]
        if near[1] - near[0] > LONGEST_GAP or min(abs(time - t) for t in near) > LONGEST_GAP:
            return None
        return np.array([np.interp(time, times, boxes[:, k]) for k in range(1, 5)]).round()

    def _label(self, best: int, scores: np.ndarray) -> np.ndarray:
        if self.prediction.task == "regression":
            text = "  ".join(
                f"{name} {score:+.2f}" for name, score in zip(self.names, scores, strict=True)
            )
            return text_image(text, self.font_size, _colour(0))
        text = f"{self.names[best]} {100 * scores[best]:.0f} %"
        return text_image(text, self.font_size, _colour(best))

    def _bars(self, frame: np.ndarray, scores: np.ndarray) -> None:
        """Draw a bar for each shown class or output, from the lower left corner up."""
        line = round(1.5 * self.font_size)
        labels = [text_image(self.names[k], self.font_size, DARK) for k in self.shown]
        margin, width = line // 3, max(round(self.size[0] / 4), 20)
        left = margin + max(label.shape[1] for label in labels)
        top = self.size[1] - margin - line * len(self.shown)
        panel = frame[max(top - margin, 0) :, : left + width + 2 * margin]
        panel[:] = panel // 3  # darker, so that the writing can be read on any picture
        low, high = self._range()
        for row, (k, label) in enumerate(zip(self.shown, labels, strict=True)):
            y = top + row * line
            _paste(frame, label, margin, y + label.shape[0])
            share = float(np.clip((scores[k] - low) / (high - low), 0, 1))
            bar = slice(max(y + line // 6, 0), max(y + line - line // 6, 0))
            frame[bar, left + margin : left + margin + round(share * width)] = _colour(int(k))

    def _range(self) -> tuple[float, float]:
        """Return the scores of an empty and of a full bar."""
        if self.prediction.task == "classification":
            return 0.0, 1.0
        low, high = float(self.scores.min()), float(self.scores.max())
        return low, max(high, low + 1e-6)


@lru_cache(maxsize=512)
def text_image(text: str, size: int, background: tuple[int, int, int]) -> np.ndarray:
    """Return (h, w, 3) pixels of a text in white or black on a colour."""
    font = _font(size)
    left, top, right, bottom = font.getbbox(text)
    pad = max(size // 4, 2)
    ascent, descent = font.getmetrics()
    image = Image.new("RGB", (round(right - left) + 2 * pad, ascent + descent + pad), background)
    bright = np.dot(background, (0.299, 0.587, 0.114)) > 140
    ImageDraw.Draw(image).text((pad - left, pad // 2), text, (0, 0, 0) if bright else "white", font)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font that matplotlib brings: there is one on every machine, and it has most scripts.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


@lru_cache(maxsize=64)
def _colour(index: int) -> tuple[int, int, int]:
    code = OKABE_ITO[index] if index < len(OKABE_ITO) else OTHER
    code = "#FFFFFF" if code == "#000000" else code  # the bars stand on dark ground
    red, green, blue = (int(code[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue


def _outline(frame: np.ndarray, box: np.ndarray, colour: Sequence[int], thickness: int) -> None:
    """Draw a rectangle, cut at the edges of the frame."""
    height, width = frame.shape[:2]
    left, right = (int(np.clip(x, 0, width - 1)) for x in box[[0, 2]])
    top, bottom = (int(np.clip(y, 0, height - 1)) for y in box[[1, 3]])
    frame[top : top + thickness, left:right] = colour
    frame[max(bottom - thickness, 0) : bottom, left:right] = colour
    frame[top:bottom, left : left + thickness] = colour
    frame[top:bottom, max(right - thickness, 0) : right] = colour


def _paste(frame: np.ndarray, image: np.ndarray, left: float, bottom: float) -> None:
    """Put an image into a frame with its lower left corner at a place, moved inside if need be."""
    height, width = frame.shape[:2]
    image = image[:height, :width]
    x = int(np.clip(left, 0, width - image.shape[1]))
    y = int(np.clip(bottom - image.shape[0], 0, height - image.shape[0]))
    frame[y : y + image.shape[0], x : x + image.shape[1]] = image


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
        self.to_rgb = UprightRgb()
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
        # Upright, as the copy does not say how the telephone was held; and even, as H.264 wants.
        upright = self.to_rgb(frame)
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


MOST_LINES = len(OKABE_ITO)  # more classes than colours: shades instead of lines


DASHES = ("-", "--", "-.", ":")  # besides the colours, for prints and for eyes that see none


def draw_timeline(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Draw the scores of each window over time, one panel for each prediction.

    Up to eight classes or outputs are lines at the middles of the windows, more are shades. Grey
    marks time about which nothing can be said.

    Args:
        predictions: of one model.
        path: .png, .pdf or .svg.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not predictions:
        raise ValueError("no clip was answered, so there is no timeline to draw")
    names = list(predictions[0].scores)
    height = 2.2 if len(names) <= MOST_LINES else 0.8 + 0.17 * len(names)
    with matplotlib.rc_context(STYLE):
        figure = Figure((7.5, height * len(predictions) + 0.4))
        axes = figure.subplots(len(predictions), 1, squeeze=False)
        for panel, prediction in zip(axes[:, 0], predictions, strict=True):
            (_lines if len(names) <= MOST_LINES else _shades)(panel, prediction, names)
            panel.set_xlim(0, prediction.duration)
            panel.set_title(_title(prediction), loc="left")
        axes[-1, 0].set_xlabel("time (s)")
        with whole_file(path) as part:
            save_figure(figure, part)
    return Path(path)


def _lines(panel: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    """Draw a line for each class or output; the likeliest class is named by a strip below."""
    centres, scores = _scores(prediction, names)
    marker = "o" if len(centres) <= 40 else None
    for k, name in enumerate(names):
        panel.plot(
            centres,
            scores[:, k],
            color=OKABE_ITO[k],
            linestyle=DASHES[k % len(DASHES)],
            marker=marker,
            markersize=3,
            label=name,
        )
    for window in prediction.windows:
        if not window.scores:
            panel.axvspan(window.start, window.end, color="#dddddd", linewidth=0)
    if prediction.task == "classification":
        panel.set_ylim(-0.08, 1.02)
        panel.set_ylabel("probability")
        for left, right, index in _stretches(prediction, scores):
            panel.axvspan(left, right, 0, 0.06 / 1.1, color=OKABE_ITO[index], linewidth=0)
    else:
        panel.set_ylabel("value")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _shades(panel: Axes, prediction: Prediction, names: Sequence[str]) -> None:
    """Draw a row of shades for each class or output."""
    centres, scores = _scores(prediction, names)
    edges = _edges(centres, prediction.duration)
    image = panel.pcolormesh(
        edges,
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(scores.T),
        cmap="cividis",
        vmin=0 if prediction.task == "classification" else None,
    )
    panel.set_facecolor("#dddddd")
    panel.grid(False)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    what = "probability" if prediction.task == "classification" else "value"
    panel.figure.colorbar(image, ax=panel, label=what, pad=0.01)


def _scores(prediction: Prediction, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles (W,) of the windows and their scores (W, K), nan where there are none."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    rows = [[window.scores.get(name, np.nan) for name in names] for window in prediction.windows]
    return centres, np.array(rows, float)


def _edges(centres: np.ndarray, duration: float) -> np.ndarray:
    """Return where each window's share of the time axis begins and ends, (W + 1,)."""
    return np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [duration]])


def _stretches(prediction: Prediction, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return start, end and likeliest class of each window's share of the time axis."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    edges = _edges(centres, prediction.duration)
    return [
        (edges[k], edges[k + 1], int(row.argmax()))
        for k, row in enumerate(scores)
        if not np.isnan(row).any()
    ]


def _title(prediction: Prediction) -> str:
    person = f", person {prediction.person + 1}" if prediction.person else ""
    if prediction.label is None:
        values = ", ".join(f"{name} {value:.2f}" for name, value in prediction.scores.items())
        return f"{Path(prediction.file).name}{person}: {values}"
    share = 100 * prediction.scores[prediction.label]
    return f"{Path(prediction.file).name}{person}: {prediction.label} ({share:.0f} %)"
