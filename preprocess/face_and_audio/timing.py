"""Prepared clips keep time: which frames become pictures, and how long the wav is.

Fine-tuning hears frame k of n at k / (n - 1) of the wav. So the wav begins with the first displayed
frame and ends when the last prepared one is shown; every frame then has the sound of its moment,
whatever rate the frames were taken at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hicmae.data.audio import SAMPLE_RATE, WINDOW
from hicmae.data.film import FRAME_RATE, Clock
from hicmae.data.media import Sound
from hicmae.io import UnreadableClip

COLUMNS = ("offset", "film_seconds", "sound_seconds", "rate_kind", "frame_rate")
LONGEST = 24 * 3600  # seconds of a film; time stamps beyond are damaged


def last_moment(clock: Clock) -> float:
    """Return the seconds from a film's origin at which its last prepared frame is shown.

    It is when the last frame appears. A film of variable rate may show that one for long; its
    prepared frames go on till the end.
    """
    last = float(clock.times[-1])
    if not clock.is_constant:
        last = max(last, clock.duration - 1 / FRAME_RATE)
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


def mean_rate(clock: Clock) -> float:
    """Return how many frames a second are displayed."""
    last = clock.times[-1]
    return float((len(clock.stamps) - 1) / last) if last else FRAME_RATE
