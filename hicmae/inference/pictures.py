"""Pictures of answers: scores over time, and a copy of the film with the answers drawn in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw, ImageFont
from tqdm import tqdm

from hicmae.data.film import Film
from hicmae.data.media import (
    Damage,
    NoPicture,
    decoded,
    first_stream,
    needed_stream,
    opened,
    packets_of,
)
from hicmae.inference.recognizer import Prediction
from hicmae.inference.style import OKABE_ITO, STYLE, check_format, save_figure
from hicmae.io import check_writable, whole_file

OTHER, UNKNOWN = "#999999", "#dddddd"  # classes beyond those that have a colour; no answer
DASHES = ("-", "--", "-.", ":")  # besides the colours, for prints and for eyes that see none
FILMS = (".mp4", ".mov", ".mkv")
LONGEST_GAP = 1.0  # seconds between two boxes over which the face is thought to be there
MOST_BARS = 8
COPIED = ("aac", "mp3", "ac3", "eac3")  # what mp4 players hear; other sound becomes AAC
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC
QUALITY = {"crf": "20", "preset": "veryfast"}


def draw_timeline(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Draw the scores of each window over time, one panel for each prediction.

    Up to eight classes or outputs are lines at the middles of the windows, more are shades. Grey
    marks time about which nothing can be said, a bar on top when this person speaks.
    """
    if not predictions:
        raise ValueError("no clip was answered, so there is no timeline to draw")
    check_format(path)
    count = len(predictions[0].scores)
    height = 2.2 if count <= len(OKABE_ITO) else 0.8 + 0.17 * count
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, height * len(predictions) + 0.4))
        axes = figure.subplots(len(predictions), squeeze=False)[:, 0]
        for panel, prediction in zip(axes, predictions, strict=True):
            (_lines if count <= len(OKABE_ITO) else _shades)(panel, prediction)
            panel.set_xlim(0, prediction.duration)
            person = f", person {prediction.person + 1}" if prediction.person else ""
            if prediction.speaker is not None:
                person += f", speaks {100 * prediction.speaker:.0f} %"
                edges, top = over_time(prediction)[1], panel.get_xaxis_transform()
                spans = zip(edges, np.diff(edges), prediction.windows, strict=False)
                bars = [(begin, width) for begin, width, window in spans if window.speaker]
                panel.broken_barh(bars, (1.0, 0.035), color="black", transform=top, clip_on=False)
                panel.text(1.01, 1.0, "speaks", transform=panel.transAxes, fontsize=8)
            answer = ", ".join(f"{name} {value:.2f}" for name, value in prediction.values.items())
            if prediction.label is not None:
                answer = f"{prediction.label} ({100 * max(prediction.scores.values()):.0f} %)"
            panel.set_title(f"{Path(prediction.file).name}{person}: {answer}", loc="left", pad=9)
        axes[-1].set_xlabel("time (s)")
        with whole_file(path) as part:
            save_figure(figure, part)
    return Path(path)


def _lines(panel: Axes, prediction: Prediction) -> None:
    """Draw a line for each class or output; the likeliest class is named by a strip below."""
    centres, edges, scores = over_time(prediction)
    for k, name in enumerate(prediction.scores):
        look: dict[str, Any] = {"color": OKABE_ITO[k], "linestyle": DASHES[k % len(DASHES)]}
        marker = "o" if len(centres) <= 40 else None
        panel.plot(centres, scores[:, k], marker=marker, markersize=3, label=name, **look)
    for window in prediction.windows:
        if not window.scores:
            panel.axvspan(window.start, window.end, color=UNKNOWN, linewidth=0)
    panel.set_ylabel("value")
    if prediction.task == "classification":
        panel.set_ylim(-0.08, 1.02)
        panel.set_ylabel("probability")
        for left, right, row in zip(edges, edges[1:], scores, strict=False):
            if not np.isnan(row).any():
                colour = OKABE_ITO[int(row.argmax())]
                panel.axvspan(left, right, 0, 0.06 / 1.1, color=colour, linewidth=0)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _shades(panel: Axes, prediction: Prediction) -> None:
    """Draw a row of shades for each class or output."""
    _, edges, scores = over_time(prediction)
    names, is_share = list(prediction.scores), prediction.task == "classification"
    rows = np.arange(len(names) + 1) - 0.5
    shown = np.ma.masked_invalid(scores.T)
    image = panel.pcolormesh(edges, rows, shown, cmap="cividis", vmin=0 if is_share else None)
    panel.set_facecolor(UNKNOWN)
    panel.grid(False)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    what = "probability" if is_share else "value"
    panel.figure.colorbar(image, ax=panel, label=what, pad=0.01)


def over_time(prediction: Prediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of the windows the middles (W,), edges between them (W + 1,) and scores (W, K)."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    edges = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [prediction.duration]])
    rows = [[w.scores.get(name, np.nan) for name in prediction.scores] for w in prediction.windows]
    return centres, edges, np.array(rows, float)


class Annotator:
    """Draws one person's answers into frames of one size (width, height).

    `with_bars` draws the scores of all classes in the corner.
    """

    def __init__(self, prediction: Prediction, size: tuple[int, int], with_bars: bool) -> None:
        self.prediction, self.size, self.names = prediction, size, list(prediction.scores)
        self.centres, self.edges, scores = over_time(prediction)
        answered = ~np.isnan(scores).any(axis=1)
        self.centres, self.scores = self.centres[answered], scores[answered]
        # The font that matplotlib brings: there is one on every machine, and it has most scripts.
        font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
        self.font = ImageFont.truetype(str(font), max(round(min(size) / 24), 9))
        order = np.argsort(-self.scores.mean(0))
        self.bars = sorted(order[:MOST_BARS].tolist()) if with_bars else []

    def draw(self, frame: np.ndarray, time: float) -> np.ndarray:
        """Return a frame (H, W, 3) uint8 RGB with what is said about a moment in seconds."""
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image, "RGBA")  # colours may be translucent
        scores = np.array([np.interp(time, self.centres, column) for column in self.scores.T])
        box = box_at(self.prediction.boxes, time)
        if box is not None:
            best = int(scores.argmax())
            text, colour = f"{self.names[best]} {100 * scores[best]:.0f} %", _colour(best)
            if self.prediction.task == "regression":
                pairs, colour = zip(self.names, scores, strict=True), _colour(0)
                text = "  ".join(f"{name} {value:+.2f}" for name, value in pairs)
            width, windows = max(round(min(self.size) / 200), 1), self.prediction.windows
            if windows[int(np.searchsorted(self.edges[1:-1], time, "right"))].speaker:
                text, width = f"speaks: {text}", 3 * width
            draw.rectangle(box.tolist(), outline=colour, width=width)
            # The text stands on the box, moved inside the frame if need be.
            pad = max(int(self.font.size) // 4, 2)
            long, high = self.font.getlength(text) + 2 * pad, sum(self.font.getmetrics()) + pad
            x = max(min(box[0], self.size[0] - long), 0)
            y = max(min(box[1] - high, self.size[1] - high), 0)
            draw.rectangle((x, y, x + long, y + high), fill=colour)
            bright = np.dot(ImageColor.getrgb(colour)[:3], (0.299, 0.587, 0.114)) > 140
            draw.text((x + pad, y + pad / 2), text, "black" if bright else "white", self.font)
        if self.bars:
            self._draw_bars(draw, scores)
        return np.asarray(image)

    def _draw_bars(self, draw: ImageDraw.ImageDraw, scores: np.ndarray) -> None:
        """Draw a bar for each shown class or output, in the lower left corner."""
        line = round(1.5 * self.font.size)
        margin, width = line // 3, max(round(self.size[0] / 4), 20)
        left = 2 * margin + max(self.font.getlength(self.names[k]) for k in self.bars)
        top = self.size[1] - margin - line * len(self.bars)
        panel = (0, top - margin, left + width + margin, self.size[1])
        draw.rectangle(panel, fill="#000000AA")  # so that one can read on any picture
        low, high = 0.0, 1.0
        if self.prediction.task == "regression":
            low, high = self.scores.min(), self.scores.max() + 1e-6
        for row, k in enumerate(self.bars):
            y, share = top + row * line, np.clip((scores[k] - low) / (high - low), 0, 1)
            draw.text((margin, y), self.names[k], "white", self.font)
            right = left + round(share * width) - 1  # edges belong to the bar
            if right >= left:
                bar = (left, y + line // 6, right, y + line - line // 6 - 1)
                draw.rectangle(bar, fill=_colour(k))


def box_at(boxes: np.ndarray, time: float) -> np.ndarray | None:
    """Return left, top, right, bottom at a moment; None where the face was not seen."""
    if not len(boxes):
        return None
    times = boxes[:, 0]
    after = int(np.searchsorted(times, time))
    near = times[max(after - 1, 0)], times[min(after, len(times) - 1)]
    if near[1] - near[0] > LONGEST_GAP or min(abs(time - t) for t in near) > LONGEST_GAP:
        return None
    return np.array([np.interp(time, times, boxes[:, k]) for k in range(1, 5)]).round()


@lru_cache(maxsize=64)
def _colour(index: int) -> str:
    code = OKABE_ITO[index] if index < len(OKABE_ITO) else OTHER
    return "#FFFFFF" if code == "#000000" else code  # the bars stand on dark ground


def write_overlay(
    video: str | Path,
    predictions: Sequence[Prediction],
    path: str | Path,
    progress: bool = False,
    longest: int = 0,
    options: Mapping[str, str] = QUALITY,
) -> Path:
    """Write the annotated copy of a video; it appears only when it is whole.

    The copy is upright, as it does not say how the telephone was held, and keeps time and sound.

    Args:
        video: the file that was asked about.
        predictions: for each person in it; the bars are those of the first. []: a plain copy.
        path: .mp4, .mov or .mkv.
        progress: show a progress bar.
        longest: pixels of the longer side of the copy, at most; 0: as the film's.
        options: of x264.

    Raises:
        UnreadableClip, ValueError, OSError: the film, the name or the place is of no use.
    """
    check_writable(path, FILMS)
    if Path(video).is_dir():
        raise NoPicture(f"'{video}' is a folder of frames; an annotated copy needs a video")
    film = Film(str(video))
    times, sides = film.clock.times, next(film.frames([0])).shape[:2]
    height, width = (side - side % 2 for side in sides)  # even, as H.264 wants
    drawers = [Annotator(p, (width, height), with_bars=k == 0) for k, p in enumerate(predictions)]
    bar = tqdm(times, "overlay", leave=False, disable=not progress)
    with (
        opened(film.path) as source,
        whole_file(path) as part,
        _written(path),
        av.open(str(part), "w") as target,
    ):
        picture = needed_stream(source, "video")
        begin = max(source.start_time or 0, 0) / 1e6  # seconds; streams keep their distance
        unit = picture.time_base or Fraction(1, 90000)  # fine enough for frames of any length
        offset = max(film.clock.origin - begin, 0)  # of the first frame that is displayed
        copy = target.add_stream("libx264", picture.average_rate or 25, dict(options))
        copy.width, copy.height = _shrunk(width, height, longest)
        copy.pix_fmt = "yuv420p"
        copy.codec_context.time_base = unit
        sound = _sound(target, source, begin)
        waiting, last = next(sound, None), -1
        for time, image in zip(bar, film.frames(range(len(times))), strict=True):
            image = image[:height, :width]
            for drawer in drawers:
                image = drawer.draw(image, time)
            last = max(round((time + offset) / unit), last + 1)
            begins = time + offset
            while waiting is not None and (waiting.dts or 0) * (waiting.time_base or 0) <= begins:
                target.mux(waiting)
                waiting = next(sound, None)
            target.mux(copy.encode(_frame(image, last, unit)))
        target.mux(copy.encode(None))
        target.mux([packet for packet in chain([waiting], sound) if packet is not None])
    return Path(path)


def _shrunk(width: int, height: int, longest: int) -> tuple[int, int]:
    share = min(longest / max(width, height), 1) if longest else 1
    return 2 * round(max(share * width / 2, 1)), 2 * round(max(share * height / 2, 1))


def _frame(image: np.ndarray, stamp: int, unit: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts, frame.time_base = stamp, unit
    return frame


@contextmanager
def _written(path: str | Path) -> Iterator[None]:
    """Say of what FFmpeg cannot write which file it was to be."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None


def _sound(target: OutputContainer, source: InputContainer, begin: float) -> Iterator[Packet]:
    """Add the sound of a film to its copy, and yield its packets, counted from `begin` seconds."""
    stream = first_stream(source, "audio")
    if stream is None or stream.codec_context is None:
        return
    codec = stream.codec_context
    if codec.codec.canonical_name in COPIED:
        copy = target.add_stream_from_template(stream)
        for packet in packets_of(source, stream, Damage()):
            if packet.dts is not None:  # the last one is empty
                shift = round(begin / (packet.time_base or 1))
                packet.dts -= shift
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.stream = copy
                yield packet
        return
    rate = min(RATES, key=lambda known: abs(known - codec.sample_rate))
    channels = codec.layout.nb_channels
    named = codec.layout.name if channels <= 6 else "stereo"
    layout = {1: "mono", 2: "stereo"}.get(channels, named)  # a pcm's has no name
    copy = target.add_stream("aac", rate=rate, layout=layout)
    resampler = AudioResampler("fltp", copy.layout, copy.rate, frame_size=1024)
    for frame in chain(decoded(source, stream, Damage()), [None]):  # None: what is held back
        if frame is not None and frame.pts is not None:
            frame.pts -= round(begin / (frame.time_base or 1))
        for block in resampler.resample(frame):
            yield from copy.encode(block)
    yield from copy.encode(None)
