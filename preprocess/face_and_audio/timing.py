"""Prepared clips keep time: which frames become pictures, and how long the wav is.

Fine-tuning hears frame k of n at k / (n - 1) of the wav. So the wav begins with the first displayed
frame and ends when the last prepared one is shown; every frame then has the sound of its moment,
whatever rate the frames were taken at.
"""

import functools
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hicmae.data.audio import SAMPLE_RATE, WINDOW, WavFile
from hicmae.data.film import FRAME_RATE, Clock, Film
from hicmae.data.media import Sound, decode_sound
from hicmae.data.video import Video
from hicmae.io import UnreadableClip
from preprocess.face_and_audio.batch import read_summary
from preprocess.lists import ALIGNED

COLUMNS = ("offset", "film_seconds", "sound_seconds", "rate_kind", "frame_rate")
TOLERANCE = 0.1  # seconds by which a wav may differ from its film
LONGEST = 24 * 3600  # seconds of a film; time stamps beyond are damaged


def last_moment(clock: Clock) -> float:
    """Return the seconds from a film's origin at which its last prepared frame is shown.

    It is when the last frame appears. A film of variable rate may show that one for long; its
    prepared frames go on till the end.
    """
    last = float(clock.times[-1])
    if not clock.is_constant:  # on the grid of the usual rate, or k / (n - 1) would stretch it
        last = round(max(last, clock.duration - 1 / FRAME_RATE) * FRAME_RATE) / FRAME_RATE
    if last > LONGEST:
        raise UnreadableClip(f"its time stamps span {last / 3600:.0f} hours, expected at most 24")
    return last


def chosen_frames(clock: Clock, frame_rate: float) -> np.ndarray:
    """Return the (n,) ascending indices of the frames to prepare.

    A film of constant rate, one whose frames are all displayed within half a frame's length of an
    even grid, gives every frame once. Any other gives, `frame_rate` times a second, the frame that
    appears nearest to that moment; in a long pause that is the frame before it, almost to its end.
    """
    times, last = clock.times, last_moment(clock)
    if clock.is_constant:
        return np.arange(len(times))
    moments = np.arange(round(last * frame_rate) + 1) / frame_rate
    after = np.minimum(np.searchsorted(times, moments), len(times) - 1)
    before = np.maximum(after - 1, 0)
    ahead = times[after] - moments
    is_nearer = (ahead <= moments - times[before]) & (ahead <= 1.5 / frame_rate)
    return np.where(is_nearer, after, before)


def wav_length(clock: Clock) -> int | None:
    """Return how many samples the wav of a film has; None, as many as there are, of one frame."""
    if len(clock.stamps) == 1:
        return None
    return max(round(last_moment(clock) * SAMPLE_RATE), WINDOW)  # training takes none shorter


def columns(clock: Clock | None, sound: Sound | None, damaged: int) -> dict[str, Any]:
    """Return what a summary says of a clip's time: seconds, "" where there is no such stream.

    offset: from the first frame to the first sample; film_seconds and sound_seconds: how long each
    lasts; rate_kind: constant or variable; frame_rate: displayed frames a second, on average;
    damaged: packets that were passed over.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    if clock is not None:
        row["film_seconds"] = f"{clock.duration:.3f}"
        row["rate_kind"] = "constant" if clock.is_constant else "variable"
        row["frame_rate"] = f"{mean_rate(clock):.3f}"
    if sound is not None:
        row["sound_seconds"] = f"{sound.seconds:.3f}"
    if clock is not None and sound is not None:
        row["offset"] = f"{sound.begin - clock.origin:.3f}"
    return {**row, "damaged": damaged}


def columns_of(film: Film) -> dict[str, Any]:
    """Return `columns` of a film, with what its last reading passed over."""
    sound = None
    with suppress(UnreadableClip):
        sound = decode_sound(film.path)
    return columns(film.clock, sound, film.damage["damaged"])


def mean_rate(clock: Clock) -> float:
    """Return how many frames a second are displayed."""
    last = clock.times[-1]
    return float((len(clock.stamps) - 1) / last) if last else FRAME_RATE


def out_of_step(video: Video, wav: WavFile) -> str:
    """Say how the wav of a clip does not fit its film, beyond `TOLERANCE`; "" where it fits.

    Of a folder of frames the summary is asked that extract_face.py wrote above it; where there is
    none, nothing is known. UnreadableClip where a film's sound cannot be read.
    """
    found = []
    if isinstance(video, Film):
        row: Mapping[str, Any] = columns_of(video)
    else:
        row, frames = _row_of(Path(os.path.abspath(video.path))), len(video)
        if row.get("frames", frames) not in (frames, str(frames)):
            found.append(f"extract_face.py wrote {row['frames']} frames, {frames} are there")
    seconds, late = len(wav) / SAMPLE_RATE, float(row.get("offset") or 0)
    if row.get("film_seconds") and row.get("frame_rate"):
        film, last = float(row["film_seconds"]), 1 / float(row["frame_rate"])
        if not film - last - TOLERANCE <= seconds <= film + TOLERANCE:
            found.append(f"the film lasts {film:.2f} s, the wav {seconds:.2f} s")
        elif late < -TOLERANCE:
            # Cut as it should be, it is as long as the film; else as the film's own sound.
            whole = float(row["sound_seconds"])
            if abs(seconds - whole) < abs(seconds - film + last):
                found.append(f"its sound begins {-late:.2f} s before its picture, with it here")
    start = min(int((late - TOLERANCE) * SAMPLE_RATE), len(wav))
    if start > 0 and wav.read(0, start).any():
        found.append(f"sound begins {late:.2f} s after the picture, but at once in the wav")
    return "; ".join(found)


def _row_of(folder: Path) -> Mapping[str, Any]:
    """Return what the summary above a folder of frames says of it."""
    for parent in list(folder.parents)[:-1]:
        if summaries := sorted(parent.glob("extract_face*.csv")):
            name = str(folder.relative_to(parent)).removesuffix(ALIGNED)
            rows = (_rows(path, path.stat().st_mtime_ns).get(name) for path in summaries)
            return next((row for row in rows if row), {})
    return {}


@functools.lru_cache(maxsize=256)
def _rows(summary: Path, changed: int) -> dict[str, dict[str, object]]:
    """Return the rows of a summary by the clip's name without its suffix."""
    return {os.path.splitext(name)[0]: row for name, row in read_summary(summary).items()}
