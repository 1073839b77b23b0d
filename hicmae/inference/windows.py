"""Which frames and which samples each window of a clip reads."""

from typing import NamedTuple

import numpy as np

from hicmae.data.audio import SAMPLE_RATE, frames_to_samples, span_or_whole
from hicmae.data.dataset import FRAME_RATE
from hicmae.data.video import test_windows
from hicmae.inference.model_config import Preprocessing


class Window(NamedTuple):
    """A stretch of a clip: seconds, and what of it the model reads.

    Attributes:
        start, end: seconds from the first frame.
        frames: (T,) indices of frames; None where no picture is read.
        samples: first sample and one past the last; None where no sound is read.
    """

    start: float
    end: float
    frames: np.ndarray | None
    samples: tuple[int, int] | None


def check_lengths(window: float, overlap: float) -> None:
    """Refuse lengths in seconds that make no windows."""
    if not window > 0:
        raise ValueError(f"window must be longer than 0 seconds, got {window:g}")
    if not 0 <= overlap < window:
        raise ValueError(
            f"overlap must be at least 0 and shorter than the window of {window:g} s, "
            f"got {overlap:g}"
        )


def sliding(
    times: np.ndarray | None,
    num_samples: int | None,
    clip: Preprocessing,
    window: float | None = None,
    overlap: float | None = None,
) -> list[Window]:
    """Slide a window over a clip; the last one ends where the clip does.

    All frames lie on one grid in time, `num_frames` a window, so that neighbouring windows share
    what they read.

    Args:
        times: (n,) seconds of the frames; None reads no picture.
        num_samples: of the sound; None reads no sound.
        clip: sizes of the model's input.
        window: seconds; None takes what the model saw at once in training.
        overlap: seconds; None takes half the window.
    """
    window = clip.clip_seconds if window is None else window
    overlap = window / 2 if overlap is None else overlap
    check_lengths(window, overlap)
    step = window / clip.num_frames
    hop = max(round((window - overlap) / step), 1) * step
    length = _length(times, num_samples)
    starts = [0.0]
    while starts[-1] + window < length - step / 2:
        last = max(int((length - window) / step + 1e-6) * step, starts[-1] + step)
        starts.append(min(starts[-1] + hop, last))
    return [
        Window(
            start,
            min(start + window, length),
            None if times is None else _shown(times, start + step * np.arange(clip.num_frames)),
            None if num_samples is None else _samples(start, start + window, num_samples),
        )
        for start in starts
    ]


def as_tested(
    times: np.ndarray | None,
    num_samples: int | None,
    clip: Preprocessing,
    num_segments: int,
    source: str,
) -> list[Window]:
    """Return the temporal views of the test protocol.

    Args:
        times: as in `sliding`.
        num_samples: likewise.
        clip: likewise.
        num_segments: views, spread evenly.
        source: name of the clip, for messages.
    """
    if times is None:
        seconds = (num_samples or 0) / SAMPLE_RATE
        times = np.arange(max(round(seconds * FRAME_RATE), 1)) / FRAME_RATE
        has_picture = False
    else:
        has_picture = True
    count = len(times)
    windows = []
    for frames in test_windows(count, num_segments, clip.num_frames, clip.sampling_rate):
        first = int(frames[0])
        last = min(first + clip.num_frames * clip.sampling_rate, count - 1)
        samples = None
        if num_samples is not None:
            span = frames_to_samples(first, last, count, num_samples)
            samples = span_or_whole(source, *span, num_samples, clip.input_size_audio[0])
        windows.append(
            Window(
                float(times[first]), float(times[last]), frames if has_picture else None, samples
            )
        )
    return windows


def _length(times: np.ndarray | None, num_samples: int | None) -> float:
    """Return the seconds of a clip: of its picture where that is read."""
    if times is None:
        return (num_samples or 0) / SAMPLE_RATE
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / FRAME_RATE
    return float(times[-1]) + step


def _shown(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the frame shown at each moment, the last one after the end."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    # A quarter of a frame more: files round their times.
    return (np.searchsorted(times, moments + step / 4, side="right") - 1).clip(0)


def _samples(start: float, end: float, num_samples: int) -> tuple[int, int]:
    first = min(round(start * SAMPLE_RATE), num_samples)
    return first, min(round(end * SAMPLE_RATE), num_samples)
