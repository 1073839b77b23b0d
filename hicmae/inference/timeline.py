"""Answers over time for players and annotators: a page with the film, subtitles, tiers for ELAN."""

import base64
import html
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from hicmae.data.film import Film
from hicmae.data.media import AUDIO_SUFFIXES, first_stream, opened
from hicmae.inference.clips import Clip, View
from hicmae.inference.pictures import LONGEST_GAP, over_time, spans, write_overlay
from hicmae.inference.recognizer import Prediction
from hicmae.inference.style import colour, template
from hicmae.io import check_writable, encodable, whole_file, write_csv, write_whole

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 1000**2  # of a film inside a page
LONGEST_SIDE = 854  # pixels of a film that is converted
LEAST_RATE, SOUND_RATE = 150_000, 128_000  # bits a second of a film that can still be watched
CHUNK = 3 * 2**18  # bytes of a film at once; whole groups of base64
# What browsers play: in an mp4 these codecs and pixels; sounds by the ending of their names.
PLAYED = {("h264", "yuv420p"), ("h264", "yuvj420p"), ("aac", "")}
SOUNDS = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".m4a": "audio/mp4"}
SOUNDS |= {".flac": "audio/flac", ".ogg": "audio/ogg"}
MOST_MOMENTS = 300  # windows of a clip of which a page shows what the model read
THUMBNAIL, SHEET_ROW = 96, 8  # pixels of a frame; frames in a row
# By person and window: frames and a spectrogram, each a JPEG in base64.
Sheets = Mapping[tuple[int, int], tuple[str, str]]


class Stretch(NamedTuple):
    """Neighbouring windows with the same answer, in seconds from the first frame."""

    begin: float
    end: float
    label: str
    shares: tuple[float, ...] = ()  # probabilities of the windows; () in regression


def stretches(prediction: Prediction) -> list[Stretch]:
    """Return who says what when, in order; windows without an answer leave a gap.

    In regression each window is a stretch, whose label names all values.
    """
    parts = [span for span in spans(prediction) if span[1] < span[2]]
    if prediction.task == "regression":
        return [Stretch(b, e, prediction.said(w.scores)) for w, b, e in parts if w.scores]
    found: list[Stretch] = []
    for label, run in groupby(parts, lambda span: span[0].label):
        if label is not None:
            windows, begins, ends = zip(*run, strict=True)
            shares = tuple(max(window.scores.values()) for window in windows)
            found.append(Stretch(begins[0], ends[-1], label, shares))
    return found


def _cues(people: Sequence[Prediction]) -> Iterator[tuple[float, float, list[str]]]:
    """Yield begin, end and a line for each person with an answer; cues do not overlap."""
    lanes = [stretches(person) for person in people]
    edges = sorted({t for lane in lanes for part in lane for t in part[:2]})
    for begin, end in pairwise(edges):
        lines = []
        for person, lane in zip(people, lanes, strict=True):
            who = f"{_who(person)}: " if len(people) > 1 else ""
            for part in (s for s in lane if s.begin <= begin and end <= s.end):
                share = f" {100 * np.mean(part.shares):.0f} %" if part.shares else ""
                lines.append(" ".join(f"{who}{part.label}{share}".split()))
        if lines:
            yield begin, end, lines


def _who(person: Prediction) -> str:
    return f"Person {person.person + 1}"


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}{mark}{milliseconds % 1000:03}"


def write_subtitles(people: Sequence[Prediction], path: str | Path, for_web: bool = False) -> None:
    """Write subtitles that any player shows (SRT), or for the <track> of a web page (WebVTT)."""
    blocks, late = ["WEBVTT\n"] if for_web else [], begin_of(people[0].file)
    for number, (begin, end, lines) in enumerate(_cues(people), 1):
        times = " --> ".join(_clock(t + late, "." if for_web else ",") for t in (begin, end))
        text = "\n".join(lines)
        text = html.escape(text, quote=False) if for_web else text
        blocks.append(f"{times}\n{text}\n" if for_web else f"{number}\n{times}\n{text}\n")
    write_whole(path, encodable("\n".join(blocks)))


def write_elan(people: Sequence[Prediction], path: str | Path) -> None:
    """Write a csv for ELAN, a tier for each person: tier, begin and end in seconds, label."""
    rows, late = [], begin_of(people[0].file)
    for person in people:
        for begin, end, label, _ in stretches(person):
            times = f"{begin + late:.3f}", f"{end + late:.3f}"
            rows.append((_who(person), *times, encodable(label)))
    write_csv(path, ("tier", "begin", "end", "label"), rows)


def begin_of(path: str | Path) -> float:
    """Return the seconds of a file that players show before the first frame; mostly 0."""
    if not Path(path).is_file():
        return 0.0
    with opened(str(path)) as container:
        if first_stream(container, "video") is None:
            return 0.0
        begin = max(container.start_time or 0, 0) / 1e6
    return max(Film(str(path)).clock.origin - begin, 0.0)


class Moments:
    """Small pictures of what a model reads in each window, as `on_view` of the recognizer."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[tuple[int, int], tuple[str, str]]] = defaultdict(dict)

    def __call__(self, clip: Clip, view: View) -> None:
        """Keep one view of a clip."""
        if view.window >= MOST_MOMENTS:
            return
        sheet = spectrogram = ""
        if view.video is not None:
            frames = view.video.numpy().transpose(1, 2, 3, 0)  # (T, H, W, 3)
            width = min(SHEET_ROW, len(frames))
            page = Image.new("RGB", (width * THUMBNAIL, -(-len(frames) // width) * THUMBNAIL))
            for k, frame in enumerate(frames):
                small = Image.fromarray(frame).resize((THUMBNAIL, THUMBNAIL))
                page.paste(small, (k % width * THUMBNAIL, k // width * THUMBNAIL))
            sheet = _jpeg(page)
        if view.audio is not None:
            levels = view.audio[0].numpy().T[::-1]  # (F, T), low tones below
            low, high = np.percentile(levels, (5, 99.5))
            shares = ((levels - low) / max(high - low, 1e-6)).clip(0, 1)
            shades = matplotlib.colormaps["inferno"](shares, bytes=True)[..., :3]
            spectrogram = _jpeg(Image.fromarray(np.ascontiguousarray(shades)))
        self.kept[clip.file][view.person, view.window] = sheet, spectrogram


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_page(
    people: Sequence[Prediction],
    path: str | Path,
    moments: Sheets | None = None,
    progress: bool = False,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Write one HTML file with the film, the boxes, the answers and what they were decided on.

    Nothing else is loaded and nothing sent. A film of more than `most_bytes`, or that browsers do
    not play, is converted, with a progress bar if asked for; one that stays too large is left out,
    which the page and the log say. `people` are all in one film; for `moments` see `Moments`.
    """
    check_writable(path, (".html", ".htm"))
    with tempfile.TemporaryDirectory(prefix="hicmae-") as folder:
        file = Path(people[0].file)
        film, problem = _film_for_page(file, Path(folder), progress, most_bytes)
        if problem:
            logger.warning("'%s' has no film: %s", path, problem)
        page = template("hicmae.inference", "timeline.html")
        told = {"problem": encodable(problem), "film": _in_base64(film)}
        parts = page.generate(**told, **_facts(people, moments or {}, film))
        with whole_file(path) as part, part.open("w", encoding="utf-8") as out:
            out.writelines(parts)


def _in_base64(film: Path | None) -> Iterator[str]:
    """Yield a film in parts, so that a long one takes no memory."""
    if film is not None:
        with film.open("rb") as source:
            for part in iter(lambda: source.read(CHUNK), b""):
                yield base64.b64encode(part).decode("ascii")


def _film_for_page(
    file: Path, folder: Path, progress: bool, most_bytes: int
) -> tuple[Path | None, str]:
    """Return the film, or the sound, to put into a page, or why there is none."""
    if not file.is_file():
        return None, f"'{file}' is no film"
    size, suffix = file.stat().st_size, file.suffix.lower()
    text = f"film of {size / 1e6:.0f} MB"
    if suffix in AUDIO_SUFFIXES:
        if suffix in SOUNDS and size <= most_bytes:
            return file, ""
        return None, f"{text}, or of a kind that browsers do not play; make it an mp3"
    with opened(str(file)) as container:
        seconds = (container.duration or 0) / 1e6  # 0: a recording, which cannot be jumped in
        streams = [first_stream(container, "video"), first_stream(container, "audio")]
        coded = [stream.codec_context for stream in streams if stream is not None]
        # Browsers show pixels of no other kind; of an unknown codec there is no context.
        names = {c and (c.name, getattr(c, "pix_fmt", "")) for c in coded}
        is_mp4 = "mp4" in container.format.name.split(",")
    if is_mp4 and seconds and names <= PLAYED and size <= most_bytes:
        return file, ""
    rate = int(0.9 * 8 * most_bytes / max(seconds, 1)) - SOUND_RATE
    if rate < LEAST_RATE:
        longest = 0.9 * 8 * most_bytes / (LEAST_RATE + SOUND_RATE) / 60
        return None, f"{seconds / 60:.0f} minutes; a page holds {longest:.0f} minutes at most"
    options = {"crf": "26", "preset": "veryfast", "maxrate": str(rate), "bufsize": str(2 * rate)}
    copy = write_overlay(file, [], folder / "film.mp4", progress, LONGEST_SIDE, options)
    if copy.stat().st_size > most_bytes:
        return None, f"{text}, more than {most_bytes / 1e6:.0f} MB also when converted"
    return copy, ""


def _facts(people: Sequence[Prediction], moments: Sheets, film: Path | None) -> dict[str, Any]:
    """Return what a page shows besides the film."""
    first, low, high, size = people[0], 0.0, 1.0, (0, 0)
    if first.task == "regression":
        scores = np.concatenate([over_time(person)[1] for person in people])
        low, high = float(np.nanmin(scores)), float(np.nanmax(scores)) + 1e-6
    kind = SOUNDS.get(film.suffix.lower(), "video/mp4") if film else ""
    if kind.startswith("video"):
        height, width = next(Film(first.file).frames([0])).shape[:2]
        size = width, height
    lanes = {person.person: lane for lane, person in enumerate(people)}
    seen = {f"{lanes[who]} {at}": sheets for (who, at), sheets in moments.items() if who in lanes}
    data: dict[str, Any] = {
        **{"people": [_lane(person) for person in people], "moments": seen, "size": size},
        "names": [encodable(name) for name in first.scores],
        "colours": [_class_colour(k) for k in range(len(first.scores))],
        **{"values": first.task == "regression", "low": low, "high": high, "gap": LONGEST_GAP},
        **{"least": first.min_confidence, "offset": begin_of(film) if film else 0.0},
        "seconds": max(person.duration for person in people),
    }
    notes = [encodable(note) for note in dict.fromkeys(n for p in people for n in p.notes)]
    return {"data": data, "kind": kind, "notes": notes, "title": encodable(Path(first.file).name)}


def _lane(person: Prediction) -> dict[str, Any]:
    """Return what the page shows of one person."""
    windows = []
    for window, left, _ in spans(person):
        row = [round(window.scores[name], 4) for name in person.scores if window.scores]
        label = str(window.label) if row and person.task == "classification" else ""
        known = {"begin": round(window.start, 3), "end": round(window.end, 3), "scores": row}
        known |= {"left": round(left, 3), "label": encodable(label), "status": window.status}
        known |= {"fill": _class_colour(int(np.argmax(row))) if label else ""}
        windows.append(known | {"speaks": window.speaker})
    boxes = np.column_stack([person.boxes[:, 0].round(3), person.boxes[:, 1:].round()])
    told = {"number": person.person + 1, "who": _who(person), "answer": encodable(person.answer)}
    return told | {"windows": windows, "boxes": boxes.tolist(), "seconds": person.duration}


def _class_colour(index: int) -> str:
    code = colour(index)
    return "#8a8a8a" if code == "#000000" else code  # seen on light and dark ground
