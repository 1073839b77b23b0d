"""One clip: its class, and everything that is drawn for it, each part from its own generator.

The class enters at exactly two places: `draw_expression` reads the valence, `draw_delivery` reads
the arousal. Both draw the same random numbers whatever the class; no other part sees the class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from preprocess.toy.speakers import Speaker, draw_speaker
from preprocess.toy.speech import CONTROLS_PER_FRAME, FRAME_RATE, SpeechPlan, plan_speech, smooth

VALENCES = ("neg", "neu", "pos")
AROUSALS = ("low", "high")
CLASSES = tuple(f"{valence}_{arousal}" for valence in VALENCES for arousal in AROUSALS)
SPEECH_STREAM, FACE_STREAM, VOICE_STREAM, MOTION_STREAM, SCENE_STREAM = 21, 22, 23, 24, 25
SOUND_STREAM, CLASS_STREAM = 26, 27
PRETRAIN_SPEAKERS_FROM = 1000  # labelled speakers count from 0, so the two sets never share one


@dataclass(frozen=True)
class ClipKey:
    """Which clip: the numbers that all its random draws are seeded with."""

    seed: int
    speaker: int
    clip: int

    def rng(self, stream: int) -> np.random.Generator:
        """The generator of one part of this clip."""
        return np.random.default_rng([self.seed, stream, self.speaker, self.clip])

    @property
    def name(self) -> str:
        """For example s03_c007 (labelled) or p03_c007 (pre-training)."""
        if self.for_pretraining:
            return f"p{self.speaker - PRETRAIN_SPEAKERS_FROM:03d}_c{self.clip:03d}"
        return f"s{self.speaker:03d}_c{self.clip:03d}"

    @property
    def for_pretraining(self) -> bool:
        """True for the unlabelled speakers."""
        return self.speaker >= PRETRAIN_SPEAKERS_FROM


@dataclass(frozen=True)
class Expression:
    """What the face shows: offsets from the resting face in face units, up is positive."""

    corner: float  # mouth corners
    stretch: float  # mouth width
    brow_inner: float
    brow_outer: float
    knit: float  # brows drawn together
    lower_lid: float
    upper_lid: float  # share of the eye's height
    fold: float  # depth of the line from nose to mouth corner, 0..1
    furrow: float  # depth of the lines between the brows, 0..1
    crows_feet: float  # depth of the lines beside the eyes, 0..1
    teeth: float  # more or less of the upper teeth in the open mouth, share
    wander: float  # slow change of the intensity within the clip, 0..1


@dataclass(frozen=True)
class Delivery:
    """How the voice speaks."""

    f0: float  # Hz, level of this clip
    pitch_range: float  # semitones, factor of the intonation
    tilt: float  # dB an octave
    breath: float  # dB, aspiration relative to the pulses
    open_quotient: float
    jitter: float
    shimmer: float


@dataclass(frozen=True)
class Motion:
    """How the head moves: amplitudes, before the speaker's liveliness."""

    yaw: float  # radians
    pitch: float
    roll: float
    shift: float  # frame pixels
    pace: float  # factor of all frequencies
    turn: float  # mean yaw, radians
    tilt: float  # mean roll, radians
    nod: float  # how much the head follows the loudness
    mouth: float  # factor of the mouth opening


@dataclass(frozen=True)
class Scene:
    """Camera, light and room."""

    light: float
    brightness: float
    warmth: float
    zoom: float
    noise: float  # dB of the background noise relative to the voice
    colour: float  # dB an octave of the microphone


@dataclass(frozen=True)
class Clip:
    """All that is needed to draw and to voice one clip."""

    key: ClipKey
    speaker: Speaker
    label: int
    speech: SpeechPlan
    expression: Expression
    delivery: Delivery
    motion: Motion
    scene: Scene


def plan_clip(key: ClipKey, label: int) -> Clip:
    """Draw the parameters of one clip of class `label` = valence * 2 + arousal."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be in 0..{len(CLASSES) - 1}, got {label}; see classes.txt")
    valence, arousal = divmod(label, len(AROUSALS))
    speaker = draw_speaker(key.seed, key.speaker)
    return Clip(
        key=key,
        speaker=speaker,
        label=label,
        speech=plan_speech(speaker.voice, key.rng(SPEECH_STREAM)),
        expression=draw_expression(valence, key.rng(FACE_STREAM)),
        delivery=draw_delivery(arousal, speaker, key.rng(VOICE_STREAM)),
        motion=draw_motion(key.rng(MOTION_STREAM)),
        scene=draw_scene(speaker, key.rng(SCENE_STREAM)),
    )


def draw_expression(valence: int, rng: np.random.Generator) -> Expression:
    """Draw the expression of one clip; valence 0 negative, 1 neutral, 2 positive."""
    strength = rng.uniform(0.9, 1.15)
    noise = np.clip(rng.standard_normal(11), -2, 2)
    wander = rng.uniform(0.05, 0.15)
    signed = (valence - 1) * strength
    up, down = max(signed, 0.0), max(-signed, 0.0)
    return Expression(
        corner=float(5.2 * up - 4.6 * down + 0.35 * noise[0]),
        stretch=float(2.2 * up - 0.6 * down + 0.4 * noise[1]),
        brow_inner=float(1.8 * up - 3.6 * down + 0.35 * noise[2]),
        brow_outer=float(2.0 * up + 0.8 * down + 0.35 * noise[3]),
        knit=float(2.2 * down + 0.3 * noise[4]),
        lower_lid=float(2.1 * up + 0.2 * down + 0.15 * noise[5]),
        upper_lid=float(-0.06 * up - 0.10 * down + 0.03 * noise[6]),
        fold=float(np.clip(0.2 + 0.6 * up + 0.1 * down + 0.05 * noise[7], 0, 1)),
        furrow=float(np.clip(0.8 * down + 0.08 * noise[8], 0, 1)),
        crows_feet=float(np.clip(0.8 * up + 0.08 * noise[9], 0, 1)),
        teeth=float(0.35 * up - 0.25 * down + 0.05 * noise[10]),
        wander=float(wander),
    )


def draw_delivery(arousal: int, speaker: Speaker, rng: np.random.Generator) -> Delivery:
    """Draw the voice settings of one clip; arousal 0 low, 1 high."""
    noise = np.clip(rng.standard_normal(7), -2, 2)
    traits = speaker.voice
    return Delivery(
        f0=float(traits.f0 * 2 ** (((-1.0, 4.0)[arousal] + 0.7 * noise[0]) / 12)),
        pitch_range=float((1.0, 4.0)[arousal] * 2 ** (0.25 * noise[1])),
        tilt=float((-7.5, -1.0)[arousal] + traits.tilt + 0.5 * noise[2]),
        breath=float((-10.0, -24.0)[arousal] + traits.breath + 1.0 * noise[3]),
        open_quotient=float((0.72, 0.50)[arousal] + traits.open_quotient + 0.02 * noise[4]),
        jitter=float(traits.jitter * 2 ** (0.3 * noise[5])),
        shimmer=float(traits.shimmer * 2 ** (0.3 * noise[6])),
    )


def draw_motion(rng: np.random.Generator) -> Motion:
    """Draw the head motion of one clip."""
    return Motion(
        yaw=float(rng.uniform(0.04, 0.14)),
        pitch=float(rng.uniform(0.02, 0.06)),
        roll=float(rng.uniform(0.015, 0.055)),
        shift=float(rng.uniform(0.8, 2.6)),
        pace=float(rng.uniform(0.7, 1.5)),
        turn=float(rng.uniform(-0.12, 0.12)),
        tilt=float(rng.uniform(-0.05, 0.05)),
        nod=float(rng.uniform(0.0, 0.05)),
        mouth=float(rng.uniform(0.8, 1.2)),
    )


def draw_scene(speaker: Speaker, rng: np.random.Generator) -> Scene:
    """Draw light, zoom and background noise of one clip."""
    return Scene(
        light=float(np.clip(speaker.face.light + rng.normal(0, 0.25), -1.2, 1.2)),
        brightness=float(rng.uniform(0.88, 1.08)),
        warmth=float(rng.uniform(-0.02, 0.04)),
        zoom=float(rng.uniform(0.97, 1.03)),
        noise=float(rng.uniform(-42, -30)),
        colour=float(rng.uniform(-0.7, 0.7)),
    )


@dataclass(frozen=True)
class Tracks:
    """What moves, one value a frame: each (n,). Angles in radians, `x y` in frame pixels."""

    opening: np.ndarray
    rounding: np.ndarray
    intensity: np.ndarray  # factor of the expression
    eyelids: np.ndarray  # 1 open, 0 shut
    gaze_x: np.ndarray
    gaze_y: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    x: np.ndarray
    y: np.ndarray
    zoom: np.ndarray


def make_tracks(clip: Clip) -> Tracks:
    """Make the motion of a clip from its speech plan and motion settings, never from its class."""
    rng = clip.key.rng(MOTION_STREAM + 100)
    face, motion, speech = clip.speaker.face, clip.motion, clip.speech
    count = speech.frames
    live = face.liveliness

    def drift(size: float) -> np.ndarray:
        return size * slow_noise(count, 0.12 * motion.pace, 0.7 * motion.pace, rng)

    middles = np.arange(count) * CONTROLS_PER_FRAME + CONTROLS_PER_FRAME // 2
    loud = smooth(speech.level / speech.level.max(), 0.3)[middles]
    shift_x, shift_y = drift(motion.shift * live), drift(0.6 * motion.shift * live)
    return Tracks(
        opening=np.clip(speech.opening[middles] * motion.mouth, 0, 1.1),
        rounding=speech.rounding[middles],
        intensity=1 + clip.expression.wander * slow_noise(count, 0.1, 0.5, rng),
        eyelids=draw_blinks(count, face.blinks, rng),
        gaze_x=np.clip(1.3 * slow_noise(count, 0.15, 0.8, rng), -2.2, 2.2),
        gaze_y=np.clip(0.5 * slow_noise(count, 0.15, 0.8, rng), -1.0, 1.0),
        yaw=np.clip(motion.turn + drift(motion.yaw * live), -0.3, 0.3),
        pitch=np.clip(
            drift(motion.pitch * live) + motion.nod * live * (loud - loud.mean()), -0.15, 0.15
        ),
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


def clip_row(clip: Clip) -> dict[str, object]:
    """One line of meta.csv: every parameter of the clip, named <part>.<parameter>."""
    valence, arousal = divmod(clip.label, len(AROUSALS))
    row: dict[str, object] = {
        "clip": clip.key.name,
        "speaker": clip.key.name.split("_")[0],
        "class": CLASSES[clip.label],
        "label": clip.label,
        "valence": valence,
        "arousal": arousal,
        "frames": clip.speech.frames,
        "speech.tempo": clip.speech.tempo,
        "speech.loudness": clip.speech.loudness,
        "speech.pause_share": clip.speech.pause_share,
    }
    for part in ("expression", "delivery", "motion", "scene"):
        row |= {f"{part}.{name}": value for name, value in asdict(getattr(clip, part)).items()}
    row |= {f"face.{name}": value for name, value in asdict(clip.speaker.face).items()}
    row |= {f"voice.{name}": value for name, value in asdict(clip.speaker.voice).items()}
    return row
