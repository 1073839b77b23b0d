"""One clip: who speaks, its class, and all that is drawn for it, each part by its own generator.

The class enters at exactly two places: `draw_expression` reads the valence, `draw_delivery` reads
the arousal. Both draw the same random numbers whatever the class; no other part sees the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from preprocess.toy.speech import CONTROLS_PER_FRAME, FRAME_RATE, plan_speech, smooth

VALENCES = ("neg", "neu", "pos")
AROUSALS = ("low", "high")
CLASSES = tuple(f"{valence}_{arousal}" for valence in VALENCES for arousal in AROUSALS)
PRETRAIN_SPEAKERS_FROM = 1000  # labelled speakers count from 0, so the two sets never share one
SPEAKER_STREAM = 11
STREAMS = {  # of random numbers, one for each part of a clip
    **{"speech": 21, "face": 22, "voice": 23, "motion": 24, "scene": 25, "sound": 26, "class": 27},
    **{"detector": 31, "tracks": 124, "portrait": 125},
}

Traits = SimpleNamespace  # the numbers of one part, by name

HAIR_STYLES = ("bald", "short", "parted", "fringe", "curly", "bob", "long")
SKIN_RGB = [(246, 214, 190), (236, 193, 160), (222, 172, 134), (194, 139, 102), (152, 103, 72)]
SKIN_RGB += [(108, 71, 50)]
HAIR_RGB = [(28, 24, 24), (58, 38, 28), (104, 68, 40), (164, 116, 62), (214, 182, 122)]
HAIR_RGB += [(142, 62, 32), (168, 166, 164)]
IRIS_RGB = [(70, 44, 26), (112, 76, 40), (96, 112, 62), (84, 122, 158), (104, 116, 124)]


@dataclass(frozen=True)
class ClipKey:
    """Which clip: the numbers that all its random draws are seeded with."""

    seed: int
    speaker: int
    clip: int

    def rng(self, part: str) -> np.random.Generator:
        """Return the generator of one part of this clip."""
        return np.random.default_rng([self.seed, STREAMS[part], self.speaker, self.clip])

    @property
    def for_pretraining(self) -> bool:
        """True for the unlabelled speakers."""
        return self.speaker >= PRETRAIN_SPEAKERS_FROM

    @property
    def speaker_name(self) -> str:
        """For example s003 (labelled) or p003 (pre-training)."""
        if self.for_pretraining:
            return f"p{self.speaker - PRETRAIN_SPEAKERS_FROM:03d}"
        return f"s{self.speaker:03d}"

    @property
    def name(self) -> str:
        """For example s003_c007."""
        return f"{self.speaker_name}_c{self.clip:03d}"


@dataclass(frozen=True)
class Clip:
    """All that is needed to draw and to voice one clip; each part has named numbers."""

    key: ClipKey
    label: int
    speech: Traits
    face: Traits  # of the speaker
    voice: Traits  # of the speaker
    expression: Traits
    delivery: Traits
    motion: Traits
    scene: Traits

    def row(self) -> dict[str, object]:
        """Return the line of meta.csv: every parameter, named <part>.<parameter>."""
        valence, arousal = divmod(self.label, len(AROUSALS))
        row: dict[str, object] = {
            "clip": self.key.name,
            "speaker": self.key.speaker_name,
            "class": CLASSES[self.label],
            "label": self.label,
            "valence": valence,
            "arousal": arousal,
            "frames": self.speech.frames,
            "speech.tempo": self.speech.tempo,
            "speech.loudness": self.speech.loudness,
            "speech.pause_share": self.speech.pause_share,
        }
        for part in ("expression", "delivery", "motion", "scene", "face", "voice"):
            row |= {f"{part}.{name}": value for name, value in vars(getattr(self, part)).items()}
        return row


def plan_clip(key: ClipKey, label: int) -> Clip:
    """Draw the parameters of one clip of class `label` = valence * 2 + arousal."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be in 0..{len(CLASSES) - 1}, got {label}; see classes.txt")
    valence, arousal = divmod(label, len(AROUSALS))
    face, voice = draw_speaker(key.seed, key.speaker)
    return Clip(
        key=key,
        label=label,
        speech=plan_speech(voice, key.rng("speech")),
        face=face,
        voice=voice,
        expression=draw_expression(valence, key.rng("face")),
        delivery=draw_delivery(arousal, voice, key.rng("voice")),
        motion=draw_motion(key.rng("motion")),
        scene=draw_scene(face, key.rng("scene")),
    )


def numbers(**values: Any) -> Traits:
    """Name the numbers of one part.

    As plain floats: NumPy's own would make float64 of the float32 images they are multiplied with.
    """
    plain = {n: v if isinstance(v, (str, tuple)) else float(v) for n, v in values.items()}
    return SimpleNamespace(**plain)


# Who speaks


def draw_speaker(seed: int, number: int) -> tuple[Traits, Traits]:
    """Draw face and voice; large faces have deep voices and long vocal tracts, loosely."""
    rng = np.random.default_rng([seed, SPEAKER_STREAM, number])
    build = float(np.clip(rng.choice([-0.6, 0.6]) + 0.25 * rng.standard_normal(), -1, 1))
    return draw_face(build, rng), draw_voice(build, rng)


def draw_voice(build: float, rng: np.random.Generator) -> Traits:
    """Draw a relaxed voice; `build` (-1 small .. 1 large) shifts the pitch by half an octave."""
    return numbers(
        f0=np.clip(148 * 2 ** ((-5.5 * build + 1.8 * rng.standard_normal()) / 12), 92, 235),  # Hz
        tract=np.clip(1.06 - 0.09 * build + 0.025 * rng.standard_normal(), 0.9, 1.22),
        f4=rng.uniform(3200, 3700),  # Hz, before the tract's factor, which all formants have
        f5=rng.uniform(4200, 4900),
        bandwidth=rng.uniform(0.8, 1.25),  # factor
        tilt=rng.normal(0, 0.7),  # dB an octave, the speaker's own
        breath=rng.normal(0, 1.5),  # dB, the speaker's own
        open_quotient=rng.normal(0, 0.025),
        jitter=rng.uniform(0.003, 0.009),
        shimmer=rng.uniform(0.02, 0.07),
        tempo=rng.uniform(0.9, 1.12),  # factor of the syllable rate
    )


def draw_face(build: float, rng: np.random.Generator) -> Traits:
    """Draw a resting face; `build` widens the jaw, thickens the brows and allows a beard.

    Lengths in face units, colours BGR 0..255, angles in radians.
    """

    def near(mean: float, spread: float) -> float:
        """Draw from a normal distribution cut at two standard deviations: no face breaks."""
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    width = near(51 + 1.5 * build, 2.6)
    style = draw_style(build, rng)
    skin, hair, iris = draw_colours(rng)
    lips = 0.62 * skin + 0.38 * np.array([78.0, 60.0, 190.0]) * (0.5 + skin.mean() / 400)
    return numbers(
        face_width=width,  # half width at the cheekbones
        jaw_width=width * near(0.83 + 0.05 * build, 0.03),  # half width at the jaw corners
        chin_width=near(17 + 4 * build, 3),
        chin_y=near(82 + 2 * build, 2.5),
        top_y=near(-57, 2.5),
        ear_size=near(1.0, 0.1),
        eye_width=near(12.2, 0.9),  # half width
        eye_height=near(5.3, 0.45),  # half height when open
        eye_slant=near(0.4, 0.7),
        brow_y=near(-16, 0.9),
        brow_length=near(15.5, 1.1),
        brow_thickness=near(3.0 + 0.8 * build, 0.5),
        rest_brow_inner=near(0, 0.6),  # what rests is the speaker's own; up is positive
        rest_brow_outer=near(0, 0.7),
        nose_length=near(28, 1.8),
        nose_width=near(9.5 + 0.8 * build, 1.2),
        mouth_y=near(52, 1.4),
        mouth_width=near(20, 1.2),
        lip_upper=near(4.4 - 0.6 * build, 0.6),
        lip_lower=near(5.8 - 0.6 * build, 0.7),
        rest_corner=near(0, 0.65),
        rest_lid=near(0, 0.22),
        lines=rng.uniform(0, 0.35),  # the speaker's own furrow and crow's feet
        beard=rng.uniform(0.3, 0.8) if build > 0 and rng.random() < 0.4 else 0,
        glasses=rng.uniform(15, 18) if rng.random() < 0.18 else 0,  # radius of the lenses
        freckles=rng.uniform(0.3, 1) if rng.random() < 0.2 else 0,
        hair_volume=near(0.13, 0.025),
        hair_line=near(-40, 2.5),
        hair_part=rng.uniform(-0.42, 0.42),
        hair_style=style,
        skin=as_colour(skin),
        hair=as_colour(hair),
        iris=as_colour(iris),
        lips=as_colour(lips),
        clothes=as_colour(rng.uniform(25, 210) + rng.uniform(-30, 30, 3)),
        wall=as_colour(rng.uniform(60, 205) + rng.uniform(-24, 24, 3)),
        light=rng.uniform(-1.0, 1.0),  # where it comes from, 0 the front, + the right
        size=near(0.90, 0.03),  # frame pixels per face unit
        centre_x=near(112, 2.0),  # frame pixels
        centre_y=near(73, 1.5),
        liveliness=rng.uniform(0.6, 1.3),  # factor of all head motion
        blinks=rng.uniform(0.2, 0.6),  # per second
    )


def draw_style(build: float, rng: np.random.Generator) -> str:
    """Draw one of HAIR_STYLES; long hair more often with a small build."""
    large, small = [0.8, 2.2, 2.0, 0.7, 0.9, 0.2, 0.4], [0, 0.4, 0.8, 1.0, 0.9, 1.6, 2.2]
    weights = np.array(large if build > 0 else small)
    return HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=weights / weights.sum())]


def draw_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw skin, hair and iris, BGR float (3,); light hair and eyes are rarer with dark skin."""
    palette = np.array(SKIN_RGB)
    tone = rng.uniform(0, len(palette) - 1)
    low = int(tone)
    high = min(low + 1, len(palette) - 1)
    skin = palette[low] + (tone - low) * (palette[high].astype(float) - palette[low])
    colours = [_changed(skin, 6, rng)]
    fair = max(0.05, 1 - tone / 3)
    for choices, odds, spread in (
        (HAIR_RGB, [1.3, 1.2, 1.0, fair, fair, 0.8 * fair, 0.5], 10),
        (IRIS_RGB, [1.5, 1.0, 0.8 * fair, fair, 0.6 * fair], 8),
    ):
        chosen = rng.choice(len(choices), p=np.array(odds) / np.sum(odds))
        colours.append(_changed(np.array(choices[chosen]), spread, rng))
    return colours[0], colours[1], colours[2]


def _changed(colour_rgb: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(colour_rgb + spread * rng.uniform(-1, 1, 3), 4, 250)[::-1]


def as_colour(colour: np.ndarray) -> tuple[float, ...]:
    """Round to one decimal, so that tables stay short."""
    return tuple(np.round(np.clip(colour, 4, 250), 1).tolist())


# What this clip shows and how it sounds


def draw_expression(valence: int, rng: np.random.Generator) -> Traits:
    """Draw the expression; valence 0 negative, 1 neutral, 2 positive.

    Offsets from the resting face in face units, up is positive.
    """
    strength = rng.uniform(0.9, 1.15)
    noise = np.clip(rng.standard_normal(11), -2, 2)
    wander = rng.uniform(0.05, 0.15)
    signed = (valence - 1) * strength
    up, down = max(signed, 0.0), max(-signed, 0.0)
    return numbers(
        corner=5.2 * up - 4.6 * down + 0.35 * noise[0],  # of the mouth
        stretch=2.2 * up - 0.6 * down + 0.4 * noise[1],  # of the mouth's width
        brow_inner=1.8 * up - 3.6 * down + 0.35 * noise[2],
        brow_outer=2.0 * up + 0.8 * down + 0.35 * noise[3],
        knit=2.2 * down + 0.3 * noise[4],  # brows drawn together
        lower_lid=2.1 * up + 0.2 * down + 0.15 * noise[5],
        upper_lid=-0.06 * up - 0.10 * down + 0.03 * noise[6],  # share of the eye's height
        fold=np.clip(0.2 + 0.6 * up + 0.1 * down + 0.05 * noise[7], 0, 1),  # nose to mouth corner
        furrow=np.clip(0.8 * down + 0.08 * noise[8], 0, 1),  # between the brows
        crows_feet=np.clip(0.8 * up + 0.08 * noise[9], 0, 1),  # beside the eyes
        teeth=0.35 * up - 0.25 * down + 0.05 * noise[10],  # more or less of the upper teeth
        wander=wander,  # slow change of the intensity within the clip
    )


def draw_delivery(arousal: int, voice: Traits, rng: np.random.Generator) -> Traits:
    """Draw how the voice speaks; arousal 0 low, 1 high."""
    noise = np.clip(rng.standard_normal(7), -2, 2)
    return numbers(
        f0=voice.f0 * 2 ** (((-1.0, 4.0)[arousal] + 0.7 * noise[0]) / 12),  # Hz
        pitch_range=(1.0, 4.0)[arousal] * 2 ** (0.25 * noise[1]),  # semitones
        tilt=(-7.5, -1.0)[arousal] + voice.tilt + 0.5 * noise[2],  # dB an octave
        breath=(-10.0, -24.0)[arousal] + voice.breath + 1.0 * noise[3],  # dB beside the pulses
        open_quotient=(0.72, 0.50)[arousal] + voice.open_quotient + 0.02 * noise[4],
        jitter=voice.jitter * 2 ** (0.3 * noise[5]),
        shimmer=voice.shimmer * 2 ** (0.3 * noise[6]),
    )


def draw_motion(rng: np.random.Generator) -> Traits:
    """Draw the head's motion: amplitudes before the speaker's liveliness, in radians."""
    return numbers(
        yaw=rng.uniform(0.04, 0.14),
        pitch=rng.uniform(0.02, 0.06),
        roll=rng.uniform(0.015, 0.055),
        shift=rng.uniform(0.8, 2.6),  # frame pixels
        pace=rng.uniform(0.7, 1.5),  # factor of all frequencies
        turn=rng.uniform(-0.12, 0.12),  # mean yaw
        tilt=rng.uniform(-0.05, 0.05),  # mean roll
        nod=rng.uniform(0.0, 0.05),  # how much the head follows the loudness
        mouth=rng.uniform(0.8, 1.2),  # factor of the mouth opening
    )


def draw_scene(face: Traits, rng: np.random.Generator) -> Traits:
    """Draw camera, light and room."""
    return numbers(
        light=np.clip(face.light + rng.normal(0, 0.25), -1.2, 1.2),
        brightness=rng.uniform(0.88, 1.08),
        warmth=rng.uniform(-0.02, 0.04),
        zoom=rng.uniform(0.97, 1.03),
        noise=rng.uniform(-42, -30),  # dB of the background beside the voice
        colour=rng.uniform(-0.7, 0.7),  # dB an octave of the microphone
    )


def make_tracks(clip: Clip) -> Traits:
    """Make what moves from speech plan and motion settings, never from the class.

    Returns:
        Tracks of (frames,). Angles in radians, x and y in frame pixels, gaze in face units,
        eyelids 1 open .. 0 shut, intensity a factor of the expression.
    """
    rng = clip.key.rng("tracks")
    face, motion, speech = clip.face, clip.motion, clip.speech
    count, live = speech.frames, face.liveliness

    def drift(size: float) -> np.ndarray:
        return size * slow_noise(count, 0.12 * motion.pace, 0.7 * motion.pace, rng)

    middles = np.arange(count) * CONTROLS_PER_FRAME + CONTROLS_PER_FRAME // 2
    loud = smooth(speech.level / speech.level.max(), 0.3)[middles]
    nod = motion.nod * live * (loud - loud.mean())
    shift_x, shift_y = drift(motion.shift * live), drift(0.6 * motion.shift * live)
    return SimpleNamespace(
        opening=np.clip(speech.opening[middles] * motion.mouth, 0, 1.1),
        rounding=speech.rounding[middles],
        intensity=1 + clip.expression.wander * slow_noise(count, 0.1, 0.5, rng),
        eyelids=draw_blinks(count, face.blinks, rng),
        gaze_x=np.clip(1.3 * slow_noise(count, 0.15, 0.8, rng), -2.2, 2.2),
        gaze_y=np.clip(0.5 * slow_noise(count, 0.15, 0.8, rng), -1.0, 1.0),
        yaw=np.clip(motion.turn + drift(motion.yaw * live), -0.3, 0.3),
        pitch=np.clip(drift(motion.pitch * live) + nod, -0.15, 0.15),
        roll=np.clip(motion.tilt + drift(motion.roll * live), -0.16, 0.16),
        x=np.clip(face.centre_x + shift_x, 104, 120),
        y=np.clip(face.centre_y + shift_y, 69, 77),
        zoom=face.size * clip.scene.zoom * (1 + drift(0.008)),
    )


def slow_noise(count: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random curve with frequencies low..high Hz, standard deviation about 0.7."""
    frequencies = rng.uniform(low, high, 4)
    phases = rng.uniform(0, 2 * np.pi, 4)
    waves = np.sin(2 * np.pi * np.outer(np.arange(count) / FRAME_RATE, frequencies) + phases)
    return waves.sum(axis=1) / 2


def draw_blinks(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Eyelids over time: shut for a frame or two at random moments."""
    lids = np.ones(count)
    shape = np.array([0.75, 0.25, 0.0, 0.2, 0.55, 0.85])
    for start in np.flatnonzero(rng.random(count) < rate / FRAME_RATE):
        part = lids[start : start + len(shape)]
        np.minimum(part, shape[: len(part)], out=part)
    return lids
