"""The sound of one clip: glottal pulses and breath through formants, on the planned envelope."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from preprocess.toy.clips import Clip
from preprocess.toy.speech import CONTROL_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME, smooth

OVERSAMPLING = 3  # the pulses close abruptly; made at 48 kHz they alias little
WINDOW = 320  # 20 ms, half overlapping
FFT = 1024
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
BANDWIDTHS = (70.0, 90.0, 130.0, 200.0, 260.0)  # Hz
PEAK = 0.95


def synthesise(clip: Clip) -> np.ndarray:
    """Make the sound: (frames * 640,) float32 in -1..1 at 16 kHz, exactly as long as the video."""
    rng, speech = clip.key.rng("sound"), clip.speech
    count = speech.frames * SAMPLES_PER_FRAME
    pulses, openness = glottal_pulses(pitch_contour(clip, rng), clip.delivery, count, rng)
    hiss = rng.standard_normal(count)
    source = pulses + 10 ** (clip.delivery.breath / 20) * hiss * (0.25 + openness)
    sound = vocal_tract(np.stack([source, rng.standard_normal(count)]), clip)
    sound = impose_envelope(sound, speech.level) * 10 ** (speech.loudness / 20)
    sound = sound + room_noise(count, rng) * 10 ** ((speech.loudness + clip.scene.noise) / 20)
    return (sound * min(1.0, PEAK / np.abs(sound).max())).astype(np.float32)


def pitch_contour(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """f0 in Hz at CONTROL_RATE: accents, a fall along the clip and slow drift, times the range."""
    speech, delivery, count = clip.speech, clip.delivery, len(clip.speech.level)
    drift = smooth(rng.standard_normal(count), 0.5) * np.sqrt(0.5 * CONTROL_RATE) * 0.35
    fall = np.linspace(0.6, -0.6, count)
    return delivery.f0 * 2 ** (delivery.pitch_range * (1.5 * speech.accent + fall + drift) / 12)


def glottal_pulses(
    pitch: np.ndarray, delivery: SimpleNamespace, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rosenberg pulses with jitter and shimmer.

    Returns:
        flow_change: (count,) derivative of the glottal flow, rms 1.
        openness: (count,) glottal flow, 0 shut .. 1, which lets breath through.
    """
    fine = count * OVERSAMPLING
    moments = np.linspace(0, len(pitch) - 1, fine)
    hertz = np.interp(moments, np.arange(len(pitch)), pitch)
    rate = SAMPLE_RATE * OVERSAMPLING
    cycle = np.floor(np.cumsum(hertz) / rate).astype(int)
    spread = np.array([[delivery.jitter], [delivery.shimmer]])
    jitter, shimmer = 1 + spread * rng.standard_normal((2, cycle[-1] + 2))
    phase = np.cumsum(hertz * jitter[cycle]) / rate
    number = np.floor(phase).astype(int)
    phase -= number
    close = delivery.open_quotient
    peak = 0.67 * close
    up, down = np.pi * phase / peak, 0.5 * np.pi * (phase - peak) / (close - peak)
    parts = [phase < peak, phase < close]  # the flow rises, then falls
    flow = np.select(parts, [0.5 - 0.5 * np.cos(up), np.cos(down)], 0)
    change = np.select(parts, [0.5 / peak * np.sin(up), -0.5 / (close - peak) * np.sin(down)], 0)
    change *= shimmer[np.minimum(number, shimmer.size - 1)]
    change = resample_poly(change - change.mean(), 1, OVERSAMPLING)
    return change / np.sqrt(np.mean(change**2)), flow[::OVERSAMPLING]


def vocal_tract(sources: np.ndarray, clip: Clip) -> np.ndarray:
    """Filter (2, count) by overlap-add: the voice by formants, the noise by its own band."""
    speech, step, count = clip.speech, WINDOW // 2, sources.shape[1]
    padded = np.pad(sources, ((0, 0), (step, WINDOW)))
    starts = np.arange(0, count + step, step)
    windows = padded[:, starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW + 1)[:-1]
    spectra = np.fft.rfft(windows.astype(np.float32), FFT)  # (2, windows, bins)
    at = np.minimum(starts * CONTROL_RATE // SAMPLE_RATE, len(speech.level) - 1)
    voiced = formant_response(speech.formants[:, at], clip.voice)
    voiced *= (speech.voiced[at, None] * tilt_gain(clip.delivery.tilt)).astype(np.float32)
    distance = (FREQUENCIES - speech.noise_hz[at, None]) / speech.noise_width[at, None]
    band = speech.noise[at, None] * np.exp(-0.5 * distance**2)
    mixed = spectra[0] * voiced + spectra[1] * band.astype(np.float32)
    mixed *= tilt_gain(clip.scene.colour).astype(np.float32)
    pieces = np.fft.irfft(mixed, FFT)
    out = np.zeros(starts[-1] + FFT + step)
    for start, piece in zip(starts, pieces, strict=True):
        out[start : start + FFT] += piece
    return out[step : step + count]


def formant_response(formants: np.ndarray, voice: SimpleNamespace) -> np.ndarray:
    """Five resonators in a row: (3, windows) Hz -> (windows, bins) complex64, 1 at 0 Hz."""
    delay = np.exp(-2j * np.pi * FREQUENCIES / SAMPLE_RATE)
    response = np.ones((formants.shape[1], len(FREQUENCIES)), dtype=np.complex64)
    upper = np.array([[voice.f4], [voice.f5]])
    for hertz, width in zip([*formants, *upper], BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width * voice.bandwidth / SAMPLE_RATE)
        turn = 2 * radius * np.cos(2 * np.pi * hertz * voice.tract / SAMPLE_RATE)
        gain = 1 - turn + radius**2
        below = 1 - turn[:, None].astype(np.complex64) * delay.astype(np.complex64)
        below += (radius**2 * delay**2).astype(np.complex64)
        response *= gain[:, None].astype(np.float32) / below
    return response


def tilt_gain(tilt: float) -> np.ndarray:
    """(bins,) amplitude: `tilt` dB an octave above 400 Hz."""
    return 10 ** (tilt * np.log2(np.maximum(FREQUENCIES, 400) / 400) / 20)


def impose_envelope(sound: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Scale so that the short-time rms follows `level`, whatever the voice quality.

    This keeps the arousal out of everything that the mouth follows. Two rounds, because a gain that
    moves within its own window misses a little.
    """
    moments = np.arange(len(sound)) * (CONTROL_RATE / SAMPLE_RATE)
    target = np.interp(moments, np.arange(len(level)) + 0.5, level)
    for _ in range(2):
        power = sound**2
        for _ in range(3):
            power = uniform_filter1d(power, 200)
        reached = np.sqrt(np.maximum(power, 0))
        sound = sound * (target / (reached + 1e-3 * reached.max()))
    return sound


def room_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) with rms 1 and less power the higher the frequency."""
    fall = np.sqrt(1 + np.fft.rfftfreq(count, 1 / SAMPLE_RATE) / 300)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) / fall, count)
    return noise / np.sqrt(np.mean(noise**2))
