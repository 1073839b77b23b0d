"""Who speaks, and what happens in one clip; each part draws from its own random numbers.

The class enters at exactly two places: `draw_expression` reads the valence, `draw_delivery` reads
the arousal. Both draw the same random numbers whatever the class; no other part sees the class.

What a speaker's face and voice share are two numbers from -1 to 1: `age` (a child's round head and
short, clear vocal tract .. a long head with white hair, a long and breathy tract) and `build`
(slender, long hair, high voice .. broad, bearded, deep). What a clip's picture and sound share are
the mouth, which follows the sounds, and `energy`: gestures, wide eyes and lips and a near face
with a loud voice.

Lengths on a face are in face units: half the distance between the eyes is 25, the origin lies
midway between them, x to the right, y down. Colours are RGB 0..255.
"""

from types import SimpleNamespace as Traits
from typing import Any, NamedTuple

import numpy as np

VALENCES = ("neg", "neu", "pos")
AROUSALS = ("low", "high")
CLASSES = tuple(f"{valence}_{arousal}" for valence in VALENCES for arousal in AROUSALS)
PRETRAIN_SPEAKERS_FROM = 1000  # labelled speakers count from 0, so the two sets never share one
# Of random numbers, in this order.
STREAMS = "speaker class speech expression delivery scene tracks wall detector sound".split()

FRAME_RATE = 25
CONTROL_RATE = 100  # one value of a curve every 10 ms
CONTROLS_PER_FRAME = 4
FRAMES = (40, 52)  # fewest and most of a clip

HAIR_STYLES = ("bald", "short", "side", "fringe")
SKINS = ((250, 220, 196), (240, 196, 164), (222, 170, 130), (190, 136, 98), (140, 94, 66))
HAIRS = ((26, 22, 24), (64, 40, 26), (112, 62, 30), (134, 44, 28))
IRISES = ((70, 44, 26), (70, 110, 60), (64, 108, 160), (96, 100, 108))

SOUND_FIELDS = ("f1", "f2", "f3", "level", "voiced", "noise_hz", "opening", "rounding")
SOUNDS = np.array([  # formants in Hz, the rest 0..1; lips from -1 spread to 1 rounded
    (500, 1500, 2500, 0.00, 0, 4000, 0.00, 0.0),  # silence, and the closure of p, t, k
    (750, 1250, 2500, 1.00, 1, 4000, 1.00, 0.0),  # a
    (520, 1850, 2500, 0.90, 1, 4000, 0.65, -0.6),  # e
    (300, 2250, 2950, 0.80, 1, 4000, 0.35, -1.0),  # i
    (500, 880, 2400, 0.90, 1, 4000, 0.65, 0.8),  # o
    (330, 800, 2250, 0.80, 1, 4000, 0.30, 1.0),  # u
    (270, 1100, 2200, 0.45, 1, 4000, 0.00, 0.0),  # m
    (360, 1150, 2700, 0.50, 1, 4000, 0.25, 0.0),  # l
    (350, 1600, 2600, 0.30, 0, 6000, 0.15, -0.4),  # s
    (350, 1800, 2500, 0.30, 0, 3000, 0.20, 0.6),  # sh
    (350, 1100, 2300, 0.20, 0, 4500, 0.05, 0.0),  # f
])  # fmt: skip
VOWELS, CONSONANTS = np.arange(1, 6), np.array([0, 6, 7, 8, 9, 10])


class ClipKey(NamedTuple):
    """Which clip: the numbers that all its random draws are seeded with."""

    seed: int
    speaker: int
    clip: int

    def rng(self, part: str) -> np.random.Generator:
        """Return the generator of one part of this clip."""
        return np.random.default_rng([self.seed, STREAMS.index(part), self.speaker, self.clip])

    @property
    def speaker_name(self) -> str:
        """For example s003 (labelled) or p003 (pre-training)."""
        unlabelled = self.speaker - PRETRAIN_SPEAKERS_FROM
        return f"p{unlabelled:03d}" if unlabelled >= 0 else f"s{self.speaker:03d}"

    @property
    def name(self) -> str:
        """For example s003_c007."""
        return f"{self.speaker_name}_c{self.clip:03d}"


class Clip(NamedTuple):
    """All that is needed to draw and to voice one clip; each part has named numbers."""

    key: ClipKey
    label: int
    face: Traits  # of the speaker
    voice: Traits  # of the speaker
    expression: Traits
    delivery: Traits
    scene: Traits
    speech: Traits  # see `plan_speech`

    def row(self) -> dict[str, object]:
        """Return the line of meta.csv: every parameter, named <part>.<parameter>."""
        valence, arousal = divmod(self.label, len(AROUSALS))
        named = {"speaker": self.key.speaker_name, "class": CLASSES[self.label]}
        row = {"clip": self.key.name, **named, "label": self.label, "valence": valence}
        row |= {"arousal": arousal, "frames": self.speech.frames}
        for part in ("expression", "delivery", "scene", "face", "voice"):
            row |= {f"{part}.{name}": value for name, value in vars(getattr(self, part)).items()}
        return row


def plan_clip(key: ClipKey, label: int) -> Clip:
    """Draw the parameters of one clip of class `label` = valence * 2 + arousal."""
    valence, arousal = divmod(label, len(AROUSALS))
    rng = ClipKey(key.seed, key.speaker, 0).rng("speaker")
    age, build = rng.uniform(-1, 1, 2).tolist()
    face, voice = draw_face(age, build, rng), draw_voice(age, build, rng)
    expression = draw_expression(valence, key.rng("expression"))
    delivery = draw_delivery(arousal, voice, key.rng("delivery"))
    scene = draw_scene(key.rng("scene"))
    speech = plan_speech(voice.tempo, scene.energy, key.rng("speech"))
    return Clip(key, label, face, voice, expression, delivery, scene, speech)


def numbers(**values: Any) -> Traits:
    """Name the numbers of one part; as plain floats, so that tables stay short."""
    plain = {n: v if isinstance(v, str) else np.round(v, 4).tolist() for n, v in values.items()}
    return Traits(**plain)


# Who speaks


def draw_voice(age: float, build: float, rng: np.random.Generator) -> Traits:
    """Draw a relaxed voice."""
    noise = rng.uniform(-1.7, 1.7, 6)
    return numbers(
        f0=145 * 2 ** ((-9 * build - 2 * age + 0.5 * noise[0]) / 12),  # Hz
        tract=1.09 - 0.15 * age + 0.01 * noise[1],  # factor of all formants
        breath=-19 + 8 * age + noise[2],  # dB beside the pulses
        roughness=0.02 + 0.012 * age + 0.003 * noise[3],  # of periods
        tilt=0.7 * noise[4],  # dB an octave, the speaker's own
        tempo=2 ** (0.12 * noise[5]),  # factor of the syllable rate
    )


def draw_face(age: float, build: float, rng: np.random.Generator) -> Traits:
    """Draw a resting face: lengths in face units, colours RGB."""
    noise = rng.uniform(-1.7, 1.7, 16)
    width = 50 + 7 * build + noise[0]
    odds = np.array([0.12, 0.4, 0.28, 0.2] if build > 0 else [0, 0.1, 0.5, 0.4])
    skin, light = _colour(SKINS, rng), 0.5 + 0.5 * age
    hair = _colour(HAIRS, rng) * (1 - light) + np.array([232, 226, 214]) * light
    return numbers(
        width=width,  # half width at the cheekbones
        jaw=width * (0.77 + 0.15 * build + 0.01 * noise[2]),  # half width at its corners
        chin_width=20 + 11 * build + noise[3],
        chin_y=76 + 16 * age + noise[4],
        top_y=-66 + 5 * age + noise[5],
        eye_width=13 - 2 * age + 0.4 * noise[6],  # half width
        eye_height=7.2 - 2.2 * age + 0.3 * noise[7],  # half height when open
        brow_y=-17 - 0.5 * build + 0.8 * noise[8],
        brow_thickness=4.8 + 3.2 * build + 0.3 * noise[9],
        nose_length=24 + 6 * age + noise[10],
        nose_width=7.5 + 1.5 * build + 0.5 * noise[11],
        mouth_y=49 + 6 * age + 0.7 * noise[12],
        mouth_width=20 + 0.8 * noise[13],
        rest_corner=0.8 * noise[14],  # what rests is the speaker's own; up is positive
        rest_brow=0.7 * noise[15],
        beard=np.clip(0.3 + 0.7 * build, 0, 1) if build > -0.2 else 0,  # how full
        hair_end=34 + 60 * max(0.1 - build, 0),  # how far down it hangs behind
        hair_volume=12 * max(-build, 0),
        lips=0.5 - 0.5 * build,  # how red and full
        neck=34 + 18 * build,  # half width
        lines=max(age, 0),  # of age, on forehead and cheeks
        hair_part=rng.uniform(-0.6, 0.6),
        hair_style=HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=odds)],
        skin=skin,
        hair=hair,
        iris=_colour(IRISES, rng),
        clothes=rng.uniform(30, 225, 3),
        liveliness=rng.uniform(0.7, 1.3),  # factor of all head motion
    )


def _colour(palette: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> np.ndarray:
    return np.clip(palette[rng.integers(len(palette))] + rng.uniform(-8, 8, 3), 4, 250)


# What this clip shows and how it sounds


def draw_expression(valence: int, rng: np.random.Generator) -> Traits:
    """Draw offsets from the resting face, up is positive; valence 0 negative .. 2 positive."""
    signed, noise = (valence - 1) * rng.uniform(0.75, 1.2), rng.uniform(-1.7, 1.7, 7)
    up, down = max(signed, 0.0), max(-signed, 0.0)
    return numbers(
        corner=6.0 * up - 5.5 * down + 0.9 * noise[0],  # of the mouth
        stretch=3.0 * up - 1.0 * down + 0.8 * noise[1],  # of the mouth's half width
        brow_inner=1.5 * up - 5.0 * down + 0.8 * noise[2],
        brow_outer=1.5 * up + 2.0 * down + 0.8 * noise[3],
        lower_lid=2.6 * up + 0.3 * noise[4],
        upper_lid=1.2 * down + 0.3 * noise[5],  # lowered
        cheeks=np.clip(0.35 + 0.2 * up + 0.15 * noise[6], 0, 1),  # how red
    )


def draw_delivery(arousal: int, voice: Traits, rng: np.random.Generator) -> Traits:
    """Draw how the voice speaks beside its rest; arousal 0 low, 1 high."""
    noise = rng.uniform(-1.7, 1.7, 4)
    return numbers(
        f0=voice.f0 * 2 ** (((-1.5, 3.5)[arousal] + 0.8 * noise[0]) / 12),  # Hz
        pitch_range=(0.8, 3.6)[arousal] * 2 ** (0.3 * noise[1]),  # semitones
        tilt=(-7.0, -1.5)[arousal] + voice.tilt + 0.8 * noise[2],  # dB an octave
        bandwidth=(1.3, 0.8)[arousal] * 2 ** (0.1 * noise[3]),  # factor, of the formants
    )


def draw_scene(rng: np.random.Generator) -> Traits:
    """Draw the energy, which gestures and loudness share, the pose, camera, light and room."""
    energy = rng.uniform(-1, 1)
    return numbers(
        energy=energy,
        turn=rng.uniform(-0.25, 0.25),  # mean yaw, radians
        tilt=rng.uniform(-0.08, 0.08),  # mean roll
        pace=rng.uniform(0.8, 1.3),  # factor of the frequencies of all motion
        blinks=rng.uniform(0.2, 0.6),  # per second
        light=rng.uniform(-1, 1),  # where it comes from, 0 the front, + the right
        brightness=rng.uniform(0.85, 1.08),
        zoom=1 + 0.14 * energy + rng.uniform(-0.02, 0.02),
        x=rng.uniform(-3, 3),  # of the face beside its place, pixels
        y=rng.uniform(-2, 2),
        wall=rng.uniform(110, 190) + rng.uniform(-15, 15, 3),
        noise=rng.uniform(-45, -34),  # dB of the background beside the voice
        colour=rng.uniform(-0.6, 0.6),  # dB an octave of the microphone
    )


def plan_speech(tempo: float, energy: float, rng: np.random.Generator) -> Traits:
    """Plan an utterance: slow syllables in phrases, so that four frames of a clip see which.

    Returns `frames`, `loudness` in dB re full scale of the voiced sound, and (K,) curves at
    CONTROL_RATE, K = frames * CONTROLS_PER_FRAME: the SOUND_FIELDS, `level` with rms 1, and
    `accent`, which the intonation follows.
    """
    frames, most = int(rng.integers(FRAMES[0], FRAMES[1] + 1)), 16  # most syllables
    count = frames * CONTROLS_PER_FRAME
    sounds = np.stack([rng.choice(CONSONANTS, most), rng.choice(VOWELS, most), np.zeros(most)], 1)
    length = rng.uniform(0.26, 0.46, most) / tempo
    share = rng.uniform(0.25, 0.4, most)
    is_last = rng.random(most) < 0.35  # of its phrase: a pause follows
    pause = np.where(is_last, rng.uniform(0.2, 0.5, most), 0)
    seconds = np.stack([length * share, length * (1 - share), pause], 1)
    strength, accent = rng.uniform(0.6, 1.0, most), rng.normal(0, 0.7, most)
    edges = np.cumsum(seconds) * CONTROL_RATE + rng.integers(4, 20)
    which = np.searchsorted(edges, np.arange(count), side="right").clip(0, 3 * most - 1)
    which[: int(edges[0] - seconds[0, 0] * CONTROL_RATE)] = 2  # silence before the first sound
    which[-8:] = 2
    gain = strength[which // 3]
    at = dict(zip(SOUND_FIELDS, SOUNDS[sounds.ravel().astype(int)[which]].T, strict=True))
    level = smooth(at["level"] * gain, 9) + 1e-4
    formants = {name: smooth(at[name], 7) for name in ("f1", "f2", "f3")}
    return Traits(
        frames=frames,
        loudness=-24 + 6 * energy,
        level=level / np.sqrt(np.mean(level**2)),
        voiced=smooth(at["voiced"], 5),
        noise_hz=at["noise_hz"],
        opening=smooth(at["opening"] * (0.5 + 0.5 * gain), 11) * (1 + 0.2 * energy),
        rounding=smooth(at["rounding"], 13),
        accent=smooth(accent[which // 3], 15),
        **formants,
    )


def make_tracks(clip: Clip) -> Traits:
    """Make what moves, never from the class: (frames,) each.

    Mouth 0..1.2, lips -1..1, eyelids 1 open .. 0 shut, gaze in face units, angles in radians, x and
    y in pixels, intensity a factor of the expression.
    """
    rng, scene, speech = clip.key.rng("tracks"), clip.scene, clip.speech
    count = speech.frames
    live = clip.face.liveliness * 2 ** (0.9 * scene.energy)
    middles = np.arange(count) * CONTROLS_PER_FRAME + CONTROLS_PER_FRAME // 2
    loud = smooth(speech.level / speech.level.max(), 25)[middles]
    drift = np.stack([slow_noise(count, 12 / scene.pace, rng) for _ in range(8)])
    drift[:5] *= live
    eyelids = np.ones(count)
    for start in np.flatnonzero(rng.random(count) < scene.blinks / FRAME_RATE):
        eyelids[start : start + 5] = (0.5, 0, 0, 0.4, 0.8)[: count - start]
    return Traits(
        opening=np.clip(speech.opening[middles], 0, 1.2),
        rounding=speech.rounding[middles],
        eyelids=eyelids,
        gaze_x=np.clip(2.0 * drift[5], -3.5, 3.5),
        gaze_y=np.clip(0.7 * drift[6], -1.5, 1.5),
        yaw=np.clip(scene.turn + 0.10 * drift[0], -0.5, 0.5),
        pitch=np.clip(0.05 * drift[1] + 0.2 * live * (loud - loud.mean()), -0.3, 0.3),
        roll=np.clip(scene.tilt + 0.05 * drift[2], -0.25, 0.25),
        x=np.clip(scene.x + 1.5 * drift[3], -7, 7),
        y=np.clip(scene.y + 0.8 * drift[4], -4, 4),
        intensity=np.clip(1 + 0.12 * drift[7], 0.7, 1.3),
    )


def slow_noise(count: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) with a deviation of about 1 that takes a new value about every `step` frames."""
    knots = rng.standard_normal(int(count / step) + 3)
    return smooth(np.interp(np.arange(count) / step, np.arange(len(knots)), knots), 7) * 1.3


def smooth(curve: np.ndarray, width: int) -> np.ndarray:
    """Smooth a curve with a Hann window of `width` values, an odd number."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(np.asarray(curve, dtype=float), width // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")
