"""What is said: random syllables with pauses, their loudness, formants and mouth shape.

A plan knows neither valence nor arousal. Mouth and sound both follow it, so everything that they
share (tempo, pauses, loudness, envelope) is the same in every class.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 16000
FRAME_RATE = 25
CONTROL_RATE = 200  # one control value every 5 ms
CONTROLS_PER_FRAME = CONTROL_RATE // FRAME_RATE
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE


class Sound(NamedTuple):
    """One vowel or consonant. Formants in Hz for a tract factor of 1, the rest 0..1."""

    f1: float
    f2: float
    f3: float
    level: float  # loudness relative to a stressed vowel
    voiced: float
    noise_hz: float  # centre of the frication noise
    noise_width: float
    opening: float  # of the mouth
    rounding: float  # of the lips, -1 spread .. 1 rounded


VOWELS = (
    Sound(740, 1250, 2500, 1.00, 1, 0, 1, 1.00, 0.0),
    Sound(640, 1680, 2450, 0.95, 1, 0, 1, 0.85, -0.3),
    Sound(500, 1850, 2500, 0.90, 1, 0, 1, 0.65, -0.5),
    Sound(310, 2220, 2900, 0.80, 1, 0, 1, 0.40, -0.9),
    Sound(560, 950, 2450, 0.95, 1, 0, 1, 0.75, 0.5),
    Sound(430, 880, 2350, 0.85, 1, 0, 1, 0.55, 0.8),
    Sound(330, 900, 2250, 0.80, 1, 0, 1, 0.40, 1.0),
    Sound(510, 1450, 2450, 0.80, 1, 0, 1, 0.60, 0.0),
)
GLIDES = (
    Sound(270, 1050, 2200, 0.45, 1, 0, 1, 0.03, 0.0),  # as m: nasal, lips closed
    Sound(270, 1550, 2500, 0.45, 1, 0, 1, 0.25, 0.0),  # n
    Sound(360, 1100, 2700, 0.55, 1, 0, 1, 0.35, 0.0),  # l
    Sound(400, 1250, 1700, 0.55, 1, 0, 1, 0.30, 0.4),  # r
    Sound(300, 720, 2200, 0.50, 1, 0, 1, 0.20, 1.0),  # w
    Sound(280, 2150, 2950, 0.50, 1, 0, 1, 0.25, -0.6),  # y
)
FRICATIVES = (
    Sound(350, 1600, 2600, 0.28, 0, 6000, 1600, 0.22, -0.3),  # s
    Sound(350, 1800, 2500, 0.30, 0, 3400, 1200, 0.25, 0.5),  # sh
    Sound(350, 1100, 2300, 0.16, 0, 4500, 3000, 0.10, 0.0),  # f
    Sound(300, 1500, 2500, 0.32, 0.6, 5500, 1800, 0.22, -0.2),  # z
)
STOPS = (
    Sound(250, 800, 2200, 0.03, 0, 900, 900, 0.00, 0.0),  # p: closure, then a burst of this colour
    Sound(250, 1700, 2600, 0.03, 0, 4200, 1800, 0.18, 0.0),  # t
    Sound(250, 1900, 2300, 0.03, 0, 2200, 900, 0.22, 0.0),  # k
    Sound(220, 900, 2200, 0.14, 1, 900, 900, 0.00, 0.0),  # b
    Sound(220, 1700, 2600, 0.14, 1, 4000, 1800, 0.18, 0.0),  # d
)
SILENCE = Sound(480, 1450, 2450, 0.0, 0, 3000, 2500, 0.0, 0.0)


class Segment(NamedTuple):
    """A sound, its length in seconds, its own loudness factor, and whether it starts an accent."""

    sound: Sound
    seconds: float
    loudness: float
    accent: float


def plan_speech(voice: SimpleNamespace, rng: np.random.Generator) -> SimpleNamespace:
    """Plan an utterance of 65 to 100 frames (2.6 to 4 s).

    `accent` is what the intonation follows. Curves are (K,) at CONTROL_RATE, formants (3, K);
    K = frames * CONTROLS_PER_FRAME.
    """
    frames = int(rng.integers(65, 101))
    tempo = float(rng.uniform(3.2, 5.2) * voice.tempo)
    loudness = float(rng.uniform(-30, -22))
    count = frames * CONTROLS_PER_FRAME
    segments = draw_segments(frames / FRAME_RATE, tempo, rng)
    steps = np.array([segment.sound for segment in segments])  # (segments, 9)
    edges = np.cumsum([segment.seconds for segment in segments]) * CONTROL_RATE
    starts = np.concatenate([[0], edges])
    which = np.minimum(np.searchsorted(edges, np.arange(count), side="right"), len(segments) - 1)
    gain = np.array([segment.loudness for segment in segments])[which]
    at = steps[which].T  # (9, count)
    silent = at[3] == 0
    opening = smooth(at[7] * (0.55 + 0.45 * gain), 0.11)
    within = (np.arange(count) - starts[which]) / np.diff(edges, prepend=0)[which]
    swell = 1 - (at[3] > 0.7) * 0.45 * (within - 0.4) ** 2 / 0.36  # vowels rise, then die away
    level = smooth(at[3] * gain * swell, 0.06)
    return SimpleNamespace(
        frames=frames,
        tempo=tempo,  # syllables a second within phrases
        loudness=loudness,  # dB re full scale, rms of the voiced sound
        pause_share=float(silent.mean()),
        level=(level / np.sqrt(np.mean(level**2))).astype(np.float32),  # rms 1
        formants=np.stack([smooth(curve * wander(count, rng), 0.07) for curve in at[:3]]),
        voiced=smooth(at[4], 0.02),
        noise=smooth((at[5] > 0) * (at[4] < 1), 0.015),
        noise_hz=at[5],
        noise_width=at[6],
        accent=smooth(np.array([segment.accent for segment in segments])[which], 0.12),
        opening=np.clip(opening * smooth(np.sqrt(level / level.max()), 0.06) * 1.25, 0, 1),
        rounding=smooth(at[8], 0.12),
    )


def draw_segments(seconds: float, tempo: float, rng: np.random.Generator) -> list[Segment]:
    """Draw syllables in phrases of 3 to 7, pauses between them, silence before and after."""
    segments = [Segment(SILENCE, float(rng.uniform(0.05, 0.2)), 0.0, 0.0)]
    length = segments[0].seconds
    left = phrase = int(rng.integers(3, 8))
    end = seconds - float(rng.uniform(0.08, 0.2))
    while length < end:
        if left == 0:
            new = [Segment(SILENCE, float(rng.uniform(0.16, 0.42)), 0.0, 0.0)]
            left = phrase = int(rng.integers(3, 8))
        else:
            new = draw_syllable(1 / tempo, 0.5 * (2 * left / phrase - 1), rng)
            left -= 1
        segments += new
        length += sum(segment.seconds for segment in new)
    while segments and length > end:  # never cut a syllable in the middle
        length -= segments.pop().seconds
    return [*segments, Segment(SILENCE, 1e3, 0.0, 0.0)]


def draw_syllable(seconds: float, tone: float, rng: np.random.Generator) -> list[Segment]:
    """Draw consonant + vowel (+ consonant) of about `seconds`, with an accent around `tone`."""
    seconds *= float(rng.uniform(0.75, 1.3))
    loudness = float(rng.uniform(0.55, 1.0))
    accent = float(rng.normal(tone, 0.5))
    kind = rng.choice(4, p=[0.3, 0.25, 0.3, 0.15])
    vowel = VOWELS[rng.integers(len(VOWELS))]
    onset: list[Segment] = []
    if kind < 3:
        sounds = (GLIDES, FRICATIVES, STOPS)[kind]
        sound = sounds[rng.integers(len(sounds))]
        share = float(rng.uniform(0.22, 0.36))
        onset = [Segment(sound, seconds * share, loudness, accent)]
        if kind == 2:
            burst = sound._replace(level=0.22, voiced=0.3 * sound.voiced, opening=0.35)
            onset.append(Segment(burst, 0.018, loudness, accent))
    rest = seconds - sum(segment.seconds for segment in onset)
    if rng.random() >= 0.25:
        return [*onset, Segment(vowel, rest, loudness, accent)]
    is_glide = rng.random() < 0.5
    coda = GLIDES[rng.integers(2, len(GLIDES))] if is_glide else FRICATIVES[rng.integers(4)]
    parts = [Segment(vowel, rest * 0.72, loudness, accent)]
    return [*onset, *parts, Segment(coda, rest * 0.28, loudness, accent)]


def wander(count: int, rng: np.random.Generator) -> np.ndarray:
    """A factor of a few percent that drifts, since no vowel is spoken twice the same."""
    knots = 1 + 0.04 * np.clip(rng.standard_normal(count // 20 + 2), -2, 2)
    return np.interp(np.arange(count) / 20, np.arange(len(knots)), knots)


def smooth(curve: np.ndarray, seconds: float) -> np.ndarray:
    """Smooth a control curve with a Hann window of `seconds`."""
    width = max(3, int(round(seconds * CONTROL_RATE)) | 1)
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(np.asarray(curve, dtype=float), width // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")
