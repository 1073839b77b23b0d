"""Waveform spans (mono, 16 kHz) and their log-mel filter bank."""

import os
from collections.abc import Sequence

import numpy as np
import soundfile
import torch
import torchaudio.compliance.kaldi as kaldi

from hicmae.data.clip_list import UnreadableClip, one_line

SAMPLE_RATE = 16000
HOP = 160  # samples between spectrogram steps: 10 ms, as AudioMAE
WINDOW = 400  # samples in one analysis window: 25 ms
SHORTEST_SPAN = 1024  # samples; a span must be longer, or the whole wav is taken

# Mean and standard deviation of AudioSet's filter bank; twice the deviation, as AudioMAE.
FBANK_MEAN, FBANK_STD = -4.2677393, 4.5689974


def fbank(
    waveform: np.ndarray | torch.Tensor,
    sample_rate: int = SAMPLE_RATE,
    num_mel_bins: int = 128,
    target_length: int = 256,
    gain: float = 1.0,
) -> torch.Tensor:
    """Compute the normalised Kaldi log-mel filter bank of a waveform.

    Args:
        waveform: (S,) float in [-1, 1], at least one window of 25 ms.
        sample_rate: Hz.
        num_mel_bins: F.
        target_length: T, in steps of 10 ms; longer features are cut, shorter ones padded with zeros
            (before the normalisation, so padding is not 0 in the result).
        gain: factor of the waveform after its mean is taken off.

    Returns:
        (1, T, F) float32.
    """
    samples = torch.as_tensor(waveform, dtype=torch.float32)
    samples = (samples - samples.mean()) * gain
    features = kaldi.fbank(
        samples[None],
        htk_compat=True,
        sample_frequency=sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=num_mel_bins,
        dither=0.0,
        frame_shift=10,
    )[:target_length]  # (at most T, F)
    padded = features.new_zeros(target_length, num_mel_bins)
    padded[: len(features)] = features
    return ((padded - FBANK_MEAN) / (2 * FBANK_STD))[None]


def draw_gain(rng: np.random.Generator) -> float:
    """Draw the magnitude augmentation: beta(10, 10) + 0.5, in (0.5, 1.5) around 1."""
    return float(rng.beta(10, 10) + 0.5)


def length_of(path: str | None) -> int:
    """Return the number of samples of a mono 16 kHz wav; UnreadableClip where it is not one."""
    with _open(path) as file:
        return file.frames


def read_span(path: str, start: int, stop: int) -> np.ndarray:
    """Read samples `start` to `stop` (exclusive) of a mono 16 kHz wav, and no others.

    Returns:
        (stop - start,) float32 in [-1, 1]. A span without any sound is accepted only where the rest
        of the wav has some.
    """
    with _open(path) as file:
        samples = _read(file, path, start, stop)
        if not _has_sound(samples) and not _has_sound(_read(file, path, 0, file.frames)):
            raise UnreadableClip(f"audio '{path}' is silent: all its samples are {samples[0]:g}")
    return samples


def frames_to_samples(first: int, last: int, num_frames: int, num_samples: int) -> tuple[int, int]:
    """Return the samples between two frames, frame k being at k / (num_frames - 1) of the wav.

    Integers, so that no rounding of a quotient can shift the span by a sample.
    """
    if num_frames == 1:
        return 0, num_samples
    return first * num_samples // (num_frames - 1), last * num_samples // (num_frames - 1)


def span_or_whole(
    path: str, start: int, stop: int, num_samples: int, target_length: int = 256
) -> tuple[int, int]:
    """Return the span cut to the wav; for 1024 samples or fewer, the whole of a short wav.

    Args:
        path: the wav, for the message.
        start: first sample.
        stop: one past the last sample.
        num_samples: samples of the wav.
        target_length: spectrogram steps of 10 ms; a wav shorter than that is a short one.
    """
    start, stop = max(start, 0), min(stop, num_samples)
    if stop - start > SHORTEST_SPAN:
        return start, stop
    if num_samples >= target_length * HOP:
        raise UnreadableClip(
            f"audio '{path}' has {num_samples} samples but only {max(stop - start, 0)} belong to "
            f"the chosen frames, expected more than {SHORTEST_SPAN}; check that it is the sound of "
            "this video"
        )
    return 0, num_samples


def span_features(
    path: str, start: int, stop: int, size: tuple[int, int] = (256, 128), gain: float = 1.0
) -> torch.Tensor:
    """Return the filter bank of the span that `span_or_whole` makes of `start` and `stop`.

    Args:
        path: mono 16 kHz wav.
        start: first sample.
        stop: one past the last sample.
        size: (T, F).
        gain: factor of the waveform.

    Returns:
        (1, T, F) float32.
    """
    steps, mel_bins = size
    start, stop = span_or_whole(path, start, stop, length_of(path), steps)
    return fbank(read_span(path, start, stop), SAMPLE_RATE, mel_bins, steps, gain)


def window_features(
    path: str,
    windows: Sequence[np.ndarray],
    span: int,
    total_frames: int,
    size: tuple[int, int] = (256, 128),
    gains: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the filter banks of the audio of several windows of a labelled clip.

    Args:
        path: mono 16 kHz wav, as long as the video.
        windows: frames of each window; only where it begins matters.
        span: frames from there to the end of the audio, at most to the last frame.
        total_frames: frames of the video.
        size: (T, F).
        gains: factor of the waveform for each window, 1 by default.

    Returns:
        (len(windows), 1, T, F) float32.
    """
    total_samples = length_of(path)
    features = []
    for window, gain in zip(windows, gains or [1.0] * len(windows), strict=True):
        first = int(window[0])
        last = min(first + span, total_frames - 1)
        start, stop = frames_to_samples(first, last, total_frames, total_samples)
        features.append(span_features(path, start, stop, size, gain))
    return torch.stack(features)


def _open(path: str | None) -> soundfile.SoundFile:
    if path is None or not os.path.isfile(path):
        raise UnreadableClip(f"audio '{path}' does not exist")
    try:
        file = soundfile.SoundFile(os.fsencode(path))  # bytes: a name need not be UTF-8
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless, e.g. .raw
        raise UnreadableClip(f"audio '{path}' cannot be opened: {one_line(error)}") from None
    convert = "convert it with preprocess/face_and_audio/extract_audio.py"
    reason = None
    if file.samplerate != SAMPLE_RATE:
        reason = f"has sample rate {file.samplerate} Hz, expected {SAMPLE_RATE}; {convert}"
    elif file.channels != 1:
        reason = f"has {file.channels} channels, expected 1; {convert}"
    elif file.frames < WINDOW:
        reason = f"has {file.frames} samples, expected at least the {WINDOW} of one 25 ms window"
    if reason is not None:
        file.close()
        raise UnreadableClip(f"audio '{path}' {reason}")
    return file


def _read(file: soundfile.SoundFile, path: str, start: int, stop: int) -> np.ndarray:
    try:
        file.seek(start)
        samples = file.read(stop - start, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise UnreadableClip(f"audio '{path}' cannot be read: {one_line(error)}") from None
    if len(samples) != stop - start:
        raise UnreadableClip(
            f"audio '{path}' is cut off: got {len(samples)} of {stop - start} samples from {start}"
        )
    if not np.isfinite(samples).all():
        raise UnreadableClip(f"audio '{path}' holds values that are not finite")
    return samples


def _has_sound(samples: np.ndarray) -> bool:
    return bool((samples != samples[0]).any())
