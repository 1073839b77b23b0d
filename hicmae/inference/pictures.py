"""Pictures of answers: scores over time, and a copy of the film with the answers drawn in."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, pairwise
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
from hicmae.data.media import Damage, NoPicture, decoded, first_stream, needed_stream, opened
from hicmae.inference.clips import Window
from hicmae.inference.recognizer import Prediction
from hicmae.inference.style import OKABE_ITO, save_figure, styled
from hicmae.io import check_writable, whole_file

OTHER, UNKNOWN = "#999999", "#dddddd"  # classes beyond those that have a colour; no answer
DASHES = ("-", "--", "-.", ":")  # besides the colours, for prints and for eyes that see none
FILMS = (".mp4", ".mov", ".mkv")
LONGEST_GAP = 1.0  # seconds between two boxes over which the face is thought to be there
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC
QUALITY = {"crf": "20", "preset": "veryfast"}


@styled
def draw_timeline(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Draw the scores of each window over time, one panel for each prediction.

    Lines go through the middles of the windows, of the eight likeliest classes or outputs at most.
    Grey marks time about which nothing can be said, a strip below the likeliest class, a bar on top
    when this person speaks.
    """
    if not predictions:
        raise ValueError("no clip was answered, so there is no timeline to draw")
    figure = Figure(figsize=(7.5, 2.2 * len(predictions) + 0.4))
    axes = figure.subplots(len(predictions), squeeze=False)[:, 0]
    for panel, prediction in zip(axes, predictions, strict=True):
        _draw_panel(panel, prediction)
        person = f", person {prediction.person + 1}" if prediction.person else ""
        title = f"{Path(prediction.file).name}{person}: {prediction.answer}"
        panel.set_title(title, loc="left", pad=9)
    axes[-1].set_xlabel("time (s)")
    return save_figure(figure, path)


def _draw_panel(panel: Axes, prediction: Prediction) -> None:
    centres, scores = over_time(prediction)
    names, is_share = list(prediction.scores), prediction.task == "classification"
    shown = sorted(np.argsort(-np.nanmean(scores, axis=0))[: len(OKABE_ITO)].tolist())
    for k, index in enumerate(shown):
        look: dict[str, Any] = {"color": OKABE_ITO[k], "linestyle": DASHES[k % len(DASHES)]}
        look |= {"marker": "o" if len(centres) <= 40 else None, "markersize": 3}
        panel.plot(centres, scores[:, index], label=names[index], **look)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    panel.set_ylabel("probability" if is_share else "value")
    panel.set_xlim(0, prediction.duration)
    if is_share:
        panel.set_ylim(-0.08, 1.02)
    top = panel.get_xaxis_transform()
    for (window, begin, end), row in zip(spans(prediction), scores, strict=True):
        if not window.scores:
            panel.axvspan(window.start, window.end, color=UNKNOWN, linewidth=0)
        elif is_share and (best := int(row.argmax())) in shown:
            colour = OKABE_ITO[shown.index(best)]
            panel.axvspan(begin, end, 0, 0.06 / 1.1, color=colour, linewidth=0)
        if window.speaker:
            bar = [(begin, end - begin)], (1.0, 0.035)
            panel.broken_barh(*bar, color="black", transform=top, clip_on=False)
    if prediction.speaker is not None:
        panel.text(1.01, 1.0, "speaks", transform=panel.transAxes, fontsize=8)


def over_time(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of the windows (W,), and their scores (W, K), nan where there are none."""
    centres = np.array([(window.start + window.end) / 2 for window in prediction.windows])
    rows = [[w.scores.get(name, np.nan) for name in prediction.scores] for w in prediction.windows]
    return centres, np.array(rows, float)


def spans(prediction: Prediction) -> Iterator[tuple[Window, float, float]]:
    """Yield the windows, and from when to when each has the say: halfway to its neighbours."""
    centres = over_time(prediction)[0].tolist()
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(centres)), prediction.duration]
    return zip(prediction.windows, edges, edges[1:], strict=False)


class Annotator:
    """Draws one person's answers into frames of one size (width, height), in line `row`.

    They are on the face; of a person whose face was never looked for, in the lower left corner.
    """

    def __init__(self, prediction: Prediction, size: tuple[int, int], row: int = 0) -> None:
        self.prediction, self.size, self.row = prediction, size, row
        self.begins = [begin for _, begin, _ in spans(prediction)]
        centres, scores = over_time(prediction)
        answered = ~np.isnan(scores).any(axis=1)
        self.centres, self.scores = centres[answered], scores[answered]
        # The font that matplotlib brings: there is one on every machine, and it has most scripts.
        font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
        self.font = ImageFont.truetype(str(font), max(round(min(size) / 24), 9))

    def draw(self, frame: np.ndarray, time: float) -> np.ndarray:
        """Return a frame (H, W, 3) uint8 RGB with what is said about a moment in seconds."""
        box = box_at(self.prediction.boxes, time)
        if box is None and len(self.prediction.boxes):
            return frame
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        now = [float(np.interp(time, self.centres, column)) for column in self.scores.T]
        text = self.prediction.said(dict(zip(self.prediction.scores, now, strict=True)))
        best = int(np.argmax(now)) if self.prediction.task == "classification" else 0
        colour = OKABE_ITO[best] if best < len(OKABE_ITO) else OTHER
        width = max(round(min(self.size) / 200), 1)
        place = bisect_right(self.begins, time, lo=1) - 1
        if self.prediction.windows[place].speaker:
            text, width = f"speaks: {text}", 3 * width
        # The text is on the box, moved inside the frame if need be.
        pad = max(int(self.font.size) // 4, 2)
        long, high = self.font.getlength(text) + 2 * pad, sum(self.font.getmetrics()) + pad
        left, bottom = 0.0, self.size[1] - self.row * high
        if box is not None:
            draw.rectangle(box.tolist(), outline=colour, width=width)
            left, bottom = box[:2]
        x = max(min(left, self.size[0] - long), 0)
        y = max(min(bottom - high, self.size[1] - high), 0)
        draw.rectangle((x, y, x + long, y + high), fill=colour)
        bright = np.dot(ImageColor.getrgb(colour)[:3], (0.299, 0.587, 0.114)) > 140
        draw.text((x + pad, y + pad / 2), text, "black" if bright else "white", self.font)
        return np.asarray(image)


def box_at(boxes: np.ndarray, time: float) -> np.ndarray | None:
    """Return left, top, right, bottom at a moment; None where the face was not seen."""
    if not len(boxes):
        return None
    times = boxes[:, 0]
    after = int(np.searchsorted(times, time))
    near = times[max(after - 1, 0)], times[min(after, len(times) - 1)]
    if near[1] - near[0] > LONGEST_GAP or min(abs(time - t) for t in near) > LONGEST_GAP:
        return None
    return np.array([np.interp(time, times, side) for side in boxes[:, 1:].T]).round()


def write_overlay(
    video: str | Path,
    predictions: Sequence[Prediction],
    path: str | Path,
    progress: bool = False,
    longest: int = 0,
    options: Mapping[str, str] = QUALITY,
) -> Path:
    """Write the annotated copy of a video, .mp4, .mov or .mkv; it appears only when it is whole.

    The copy is upright, as it does not say how the telephone was held, and keeps time and sound.
    Predictions are one for each person; without any the copy is plain. Its longer side has at most
    `longest` pixels (0: those of the film); `options` are of x264.

    Raises:
        UnreadableClip, ValueError, OSError: the film, the name or the place is of no use.
    """
    check_writable(path, FILMS)
    if Path(video).is_dir():
        raise NoPicture(f"'{video}' is a folder of frames; an annotated copy needs a video")
    film = Film(str(video))
    times, sides = film.clock.times, next(film.frames([0])).shape[:2]
    height, width = (side - side % 2 for side in sides)  # even, as H.264 wants
    share = min(longest / max(width, height), 1) if longest else 1
    drawers = [Annotator(person, (width, height), k) for k, person in enumerate(predictions)]
    bar = tqdm(times, "overlay", leave=False, disable=not progress)
    with opened(film.path) as source, _new_film(path) as target:
        picture = needed_stream(source, "video")
        begin = max(source.start_time or 0, 0) / 1e6  # seconds; streams keep their distance
        offset = max(film.clock.origin - begin, 0)  # of the first frame that is displayed
        copy: Any = target.add_stream("libx264", picture.average_rate or 25, dict(options))
        copy.width, copy.height = (2 * round(max(share * side / 2, 1)) for side in (width, height))
        copy.pix_fmt = "yuv420p"
        unit = picture.time_base or Fraction(1, 90000)  # fine enough for frames of any length
        copy.codec_context.time_base = unit
        sound = _sound(target, source, begin)
        waiting, last = next(sound, None), -1
        for time, image in zip(bar, film.frames(range(len(times))), strict=True):
            image = image[:height, :width]
            for drawer in drawers:
                image = drawer.draw(image, time)
            begins = time + offset
            while waiting is not None and (waiting.dts or 0) * (waiting.time_base or 0) <= begins:
                target.mux(waiting)
                waiting = next(sound, None)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = last = max(round(begins / unit), last + 1)
            frame.time_base = unit
            target.mux(copy.encode(frame))
        target.mux(copy.encode(None))
        target.mux([packet for packet in chain([waiting], sound) if packet is not None])
    return Path(path)


@contextmanager
def _new_film(path: str | Path) -> Iterator[OutputContainer]:
    """Open a film that appears when it is whole; OSError names it where FFmpeg cannot write it."""
    try:
        with whole_file(path) as part, av.open(str(part), "w") as target:
            yield target
    except av.FFmpegError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None


def _sound(target: OutputContainer, source: InputContainer, begin: float) -> Iterator[Packet]:
    """Add the sound of a film to its copy, as AAC; yield packets, counted from `begin` seconds."""
    stream = first_stream(source, "audio")
    if stream is None or stream.codec_context is None:
        return
    codec = stream.codec_context
    rate = min(RATES, key=lambda known: abs(known - codec.sample_rate))
    channels = codec.layout.nb_channels
    named = codec.layout.name if channels <= 6 else "stereo"
    layout = {1: "mono", 2: "stereo"}.get(channels, named)  # a pcm's has no name
    copy = target.add_stream("aac", rate=rate, layout=layout)
    resampler = AudioResampler("fltp", copy.layout, copy.rate, frame_size=1024)
    for frame in chain(decoded(source, stream, Damage()), [None]):  # None: what is held back
        if frame is not None and frame.pts is not None:
            time, frame.time_base = frame.time or 0.0, Fraction(1, frame.sample_rate)
            frame.pts = round((time - begin) * frame.sample_rate)
        for block in resampler.resample(frame):
            yield from copy.encode(block)
    yield from copy.encode(None)
