"""Waveform spans (mono, 16 kHz) and their log-mel filter bank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from hicmae.io import UnreadableClip, one_line

if TYPE_CHECKING:
    import torch  # imported where it is used: tools that only read wavs need not wait for it

SAMPLE_RATE = 16000
HOP = 160  # samples between spectrogram steps: 10 ms, as AudioMAE
WINDOW = 400  # samples in one analysis window: 25 ms
SHORTEST_SPAN = 1024  # samples; a span must be longer, or the whole wav is taken

# Mean and standard deviation of AudioSet's filter bank; twice the deviation, as AudioMAE.
FBANK_MEAN, FBANK_STD = -4.2677393, 4.5689974


def fbank(
    waveform: np.ndarray | torch.Tensor, size: tuple[int, int] = (256, 128), gain: float = 1.0
) -> torch.Tensor:
    """Compute `fbanks` of one waveform: (1, T, F)."""
    return fbanks([waveform], [gain], size)[0]


def fbanks(
    waveforms: Sequence[np.ndarray | torch.Tensor],
    gains: Sequence[float],
    size: tuple[int, int] = (256, 128),
) -> torch.Tensor:
    """Compute normalised Kaldi log-mel filter banks (B, 1, T, F) float32, on the waveforms' device.

    The arithmetic is torchaudio's `compliance.kaldi.fbank` (htk_compat, hanning window, no dither,
    no energy), less what it does for steps that are cut off, and its window and filters made once.

    Each waveform is (S,) float in [-1, 1] at 16 kHz, at least one window of 25 ms, and is
    multiplied by its gain after its mean is taken off. Of `size` (T, F), T is in steps of 10 ms;
    longer features are cut, shorter ones padded with zeros before the normalisation.
    """
    import torch

    target_length, num_mel_bins = size
    steps = []
    for waveform, gain in zip(waveforms, gains, strict=True):
        samples = torch.as_tensor(waveform, dtype=torch.float32)
        if len(samples) < WINDOW:
            raise ValueError(f"a waveform has {len(samples)} samples, expected at least {WINDOW}")
        samples = (samples - samples.mean()) * gain
        steps.append(samples.unfold(0, WINDOW, HOP)[:target_length])
    frames = torch.cat(steps)  # (steps of all, samples of a window)
    taper, filters = (table.to(frames.device) for table in _tables(num_mel_bins))
    frames -= frames.mean(dim=1, keepdim=True)
    # Products before differences: fused, they round otherwise, which quiet bins would show.
    emphasised = frames.clone()
    emphasised[:, 1:] -= 0.97 * frames[:, :-1]
    emphasised[:, 0] -= 0.97 * frames[:, 0]
    spectrum = torch.fft.rfft(emphasised.mul_(taper), n=2 * (len(filters) - 1))
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    features = (power @ filters).clamp_min_(torch.finfo(torch.float32).eps).log_()
    padded = features.new_zeros(len(steps), 1, target_length, num_mel_bins)
    for row, part in zip(padded, features.split([len(part) for part in steps]), strict=True):
        row[0, : len(part)] = part
    return padded.sub_(FBANK_MEAN).div_(2 * FBANK_STD)


@lru_cache(maxsize=8)
def _tables(num_mel_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the window's taper and the mel filters (bins of the spectrum, F)."""
    import torch
    from torchaudio.compliance import kaldi

    # 20 Hz to Nyquist, no vocal tract warping: Kaldi's defaults
    settings = 512, float(SAMPLE_RATE), 20.0, 0.0, 100.0, -500.0, 1.0
    filters, _ = kaldi.get_mel_banks(num_mel_bins, *settings)
    taper = torch.hann_window(WINDOW, periodic=False)
    return taper, torch.nn.functional.pad(filters, (0, 1)).T.contiguous()


class WavFile:
    """A mono 16 kHz wav, opened once for all the spans that are read of it."""

    path: str

    def __init__(self, path: str | None) -> None:
        if path is None or not os.path.isfile(path):
            raise UnreadableClip(f"audio '{path}' does not exist")
        try:
            file = soundfile.SoundFile(os.fsencode(path))  # bytes: a name need not be UTF-8
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless, e.g. .raw
            raise UnreadableClip(f"audio '{path}' cannot be opened: {one_line(error)}") from None
        problem, advice = "", "; convert it with preprocess/face_and_audio/extract_audio.py"
        if file.samplerate != SAMPLE_RATE:
            problem = f"sample rate {file.samplerate} Hz, expected {SAMPLE_RATE}{advice}"
        elif file.channels != 1:
            problem = f"{file.channels} channels, expected 1{advice}"
        elif file.frames < WINDOW:
            problem = f"{file.frames} samples, expected at least the {WINDOW} of one 25 ms window"
        if problem:
            raise UnreadableClip(f"audio '{path}' has {problem}")
        self.path, self.file = path, file

    def __len__(self) -> int:
        return self.file.frames

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples `start` to `stop` (exclusive) as (stop - start,) float32 in [-1, 1]."""
        try:
            self.file.seek(start)
            samples = self.file.read(stop - start, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise UnreadableClip(f"audio '{self.path}' cannot be read: {one_line(error)}") from None
        if len(samples) != stop - start:
            text = f"got {len(samples)} of {stop - start} samples from {start}"
            raise UnreadableClip(f"audio '{self.path}' is cut off: {text}")
        return samples

    def sound(self, start: int, stop: int) -> np.ndarray:
        """Read samples; UnreadableClip where some are not finite, or the whole wav is silent."""
        samples = self.read(start, stop)
        if not np.isfinite(samples).all():
            raise UnreadableClip(f"audio '{self.path}' holds values that are not finite")
        value = samples[0]
        if (samples == value).all() and (self.read(0, len(self)) == value).all():
            raise UnreadableClip(f"audio '{self.path}' is silent: all its samples are {value:g}")
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
    """Return the span `start` to `stop` (exclusive), cut to the wav at `path` of `num_samples`.

    Instead of 1024 samples or fewer it is the whole of a wav of less than `target_length` steps of
    10 ms; of a longer one it is an error.
    """
    start, stop = max(start, 0), min(stop, num_samples)
    if stop - start > SHORTEST_SPAN:
        return start, stop
    if num_samples >= target_length * HOP:
        count = f"{num_samples} samples but only {max(stop - start, 0)} belong to the chosen frames"
        advice = f"expected more than {SHORTEST_SPAN}; check that it is the sound of this video"
        raise UnreadableClip(f"audio '{path}' has {count}, {advice}")
    return 0, num_samples


def span_features(
    wav: WavFile,
    spans: Sequence[tuple[int, int]],
    gains: Sequence[float],
    size: tuple[int, int] = (256, 128),
) -> torch.Tensor:
    """Return `fbanks` of size (T, F) of the spans that `span_or_whole` makes of (start, stop)."""
    cut = [span_or_whole(wav.path, *span, len(wav), size[0]) for span in spans]
    return fbanks([wav.sound(*span) for span in cut], gains, size)
