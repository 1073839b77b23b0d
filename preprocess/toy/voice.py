"""The sound of one clip: glottal pulses and breath through formants, on the planned envelope."""

import numpy as np

from preprocess.toy.plan import CONTROL_RATE, FRAME_RATE, Clip, smooth

SAMPLE_RATE = 16000
HOP = SAMPLE_RATE // CONTROL_RATE  # samples of one control value
FFT = 512
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)
BANDWIDTHS = np.array([80.0, 100.0, 140.0, 220.0])  # Hz, of the formants
OVERSAMPLING = 2  # the pulses close abruptly; made at 32 kHz they alias little
PEAK = 0.95


def synthesise(clip: Clip) -> np.ndarray:
    """Make the sound: (frames * 640,) float32 in -1..1 at 16 kHz, exactly as long as the video."""
    rng, speech = clip.key.rng("sound"), clip.speech
    count = speech.frames * SAMPLE_RATE // FRAME_RATE
    pulses, openness = glottal_pulses(clip, count, rng)
    hiss = rng.standard_normal(count) * 10 ** (clip.voice.breath / 20) * (0.3 + openness)
    sources = np.stack([pulses, hiss, rng.standard_normal(count)])
    sound = impose_envelope(vocal_tract(sources, clip), speech.level)
    fall = np.sqrt(1 + np.fft.rfftfreq(count, 1 / SAMPLE_RATE) / 300)  # of the room's noise
    room = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) / fall, count)
    sound = sound + room * 10 ** (clip.scene.noise / 20) / np.sqrt(np.mean(room**2))
    sound *= 10 ** (speech.loudness / 20)
    return (sound * min(1.0, PEAK / np.abs(sound).max())).astype(np.float32)


def glottal_pulses(clip: Clip, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rosenberg pulses, whose periods and heights are a little rough.

    Returns (2, count): derivative of the glottal flow, rms 1; the flow, 0 shut .. 1, for breath.
    """
    from scipy.signal import resample_poly  # here, as no --help should wait for it

    delivery, speech, knots = clip.delivery, clip.speech, len(clip.speech.level)
    drift = smooth(rng.standard_normal(knots), 51) * 2
    semitones = delivery.pitch_range * (speech.accent + np.linspace(0.6, -0.6, knots) + drift)
    moments = np.linspace(0, knots - 1, count * OVERSAMPLING)
    steps = np.interp(moments, np.arange(knots), delivery.f0 * 2 ** (semitones / 12))
    steps /= SAMPLE_RATE * OVERSAMPLING
    cycle = np.cumsum(steps).astype(int)
    rough = 1 + clip.voice.roughness * rng.standard_normal((2, cycle[-1] * 2 + 2))
    phase = np.cumsum(steps * rough[0, cycle])
    number = phase.astype(int)
    phase -= number
    peak, close = 0.4, 0.6  # of a period: the flow rises, falls, and is shut
    up, down = np.pi * phase / peak, 0.5 * np.pi * (phase - peak) / (close - peak)
    parts = [phase < peak, phase < close]
    flow = np.select(parts, [0.5 - 0.5 * np.cos(up), np.cos(down)], 0)
    change = np.select(parts, [0.5 / peak * np.sin(up), -0.5 / (close - peak) * np.sin(down)], 0)
    change *= rough[1, number]
    change = resample_poly(change - change.mean(), 1, OVERSAMPLING)
    return np.stack([change / np.sqrt(np.mean(change**2)), flow[::OVERSAMPLING]])


def vocal_tract(sources: np.ndarray, clip: Clip) -> np.ndarray:
    """Filter (3, count): pulses and breath by formants, noise by its own band; overlap and add."""
    speech, count = clip.speech, sources.shape[1]
    padded = np.pad(sources, ((0, 0), (HOP, HOP))).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP, axis=1)[:, ::HOP]
    spectra = np.fft.rfft(windows * np.hanning(2 * HOP + 1)[:-1].astype(np.float32), FFT)
    at = np.minimum(np.arange(spectra.shape[1]), len(speech.level) - 1)
    formants = np.stack([speech.f1, speech.f2, speech.f3, np.full(len(speech.f1), 3500.0)])[:, at]
    gains = np.ones((len(at), len(FREQUENCIES)), np.float32)  # 1 at 0 Hz
    for hertz, width in zip(formants[..., None] * clip.voice.tract, BANDWIDTHS, strict=True):
        ratio = (FREQUENCIES / hertz).astype(np.float32)
        damping = (clip.delivery.bandwidth * width / hertz).astype(np.float32)
        gains /= np.sqrt((1 - ratio**2) ** 2 + (damping * ratio) ** 2 + 1e-4)
    octaves = np.log2(np.maximum(FREQUENCIES, 300) / 300)
    tilt, colour = (10 ** (x * octaves / 20) for x in (clip.delivery.tilt, clip.scene.colour))
    band = np.exp(-0.5 * ((FREQUENCIES - speech.noise_hz[at, None]) / 1300) ** 2)
    voiced = speech.voiced[at, None]
    mixed = (spectra[0] * tilt + spectra[1]) * (np.maximum(gains, 1e-3) * voiced)
    mixed = (mixed + spectra[2] * (band * (1 - voiced))) * colour
    pieces = np.fft.irfft(mixed, FFT).astype(np.float32)
    out = np.zeros((len(pieces) + 3, HOP), np.float32)  # a piece reaches over 3.2 hops
    pieces = np.pad(pieces, ((0, 0), (0, 4 * HOP - FFT))).reshape(len(pieces), 4, HOP)
    for k in range(4):
        out[k : len(out) - 3 + k] += pieces[:, k]
    return out.ravel()[HOP : HOP + count].astype(float)


def impose_envelope(sound: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Make the short-time rms follow `level` whatever the voice quality: arousal must not show."""
    from scipy.ndimage import uniform_filter1d

    target = np.interp(np.arange(len(sound)) / HOP, np.arange(len(level)) + 0.5, level)
    for _ in range(2):  # a gain that moves within its own window misses a little
        power = sound**2
        for _ in range(3):
            power = uniform_filter1d(power, 240)
        reached = np.sqrt(np.maximum(power, 0))
        sound = sound * (target / (reached + 1e-3 * reached.max()))
    return sound
