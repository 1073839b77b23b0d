"""Who speaks: the traits of one synthetic speaker, drawn once from (seed, speaker)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPEAKER_STREAM = 11
HAIR_STYLES = ("bald", "short", "parted", "fringe", "curly", "bob", "long")
SKIN_RGB = np.array(
    [
        (246, 214, 190),
        (236, 193, 160),
        (222, 172, 134),
        (194, 139, 102),
        (152, 103, 72),
        (108, 71, 50),
    ]
)
HAIR_RGB = np.array(
    [
        (28, 24, 24),
        (58, 38, 28),
        (104, 68, 40),
        (164, 116, 62),
        (214, 182, 122),
        (142, 62, 32),
        (168, 166, 164),
    ]
)
IRIS_RGB = np.array([(70, 44, 26), (112, 76, 40), (96, 112, 62), (84, 122, 158), (104, 116, 124)])


@dataclass(frozen=True)
class FaceTraits:
    """The resting face. Lengths in face units, colours BGR 0..255, angles in radians."""

    face_width: float  # half width at the cheekbones
    jaw_width: float  # half width at the jaw corners
    chin_width: float
    chin_y: float
    top_y: float
    ear_size: float
    eye_width: float  # half width
    eye_height: float  # half height when open
    eye_slant: float
    brow_y: float
    brow_length: float
    brow_thickness: float
    rest_brow_inner: float  # the speaker's own brow shape, up is positive
    rest_brow_outer: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    rest_corner: float  # the speaker's own mouth corners, up is positive
    rest_lid: float  # the speaker's own lower lid, up is positive
    lines: float  # the speaker's own furrow and crow's feet, 0..1
    beard: float  # 0 none .. 1 full
    glasses: float  # 0 none, else radius of the lenses
    freckles: float
    hair_volume: float
    hair_line: float
    hair_part: float
    hair_style: str
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    clothes: tuple[float, float, float]
    wall: tuple[float, float, float]
    light: float  # direction the light comes from, 0 from the front, + from the right
    size: float  # frame pixels per face unit
    centre_x: float  # frame pixels
    centre_y: float
    liveliness: float  # factor of all head motion
    blinks: float  # per second


@dataclass(frozen=True)
class VoiceTraits:
    """The relaxed voice."""

    f0: float  # Hz
    tract: float  # factor of all formants
    f4: float  # Hz, before `tract`
    f5: float
    bandwidth: float  # factor of all bandwidths
    tilt: float  # dB an octave, the speaker's own
    breath: float  # dB, the speaker's own
    open_quotient: float
    jitter: float
    shimmer: float
    tempo: float  # factor of the syllable rate


@dataclass(frozen=True)
class Speaker:
    """One speaker: a number, a face and a voice."""

    number: int
    face: FaceTraits
    voice: VoiceTraits


def draw_speaker(seed: int, number: int) -> Speaker:
    """Draw speaker `number`; large faces have deep voices and long vocal tracts, loosely."""
    rng = np.random.default_rng([seed, SPEAKER_STREAM, number])
    build = float(np.clip(rng.choice([-0.6, 0.6]) + 0.25 * rng.standard_normal(), -1, 1))
    return Speaker(number, draw_face(build, rng), draw_voice(build, rng))


def draw_voice(build: float, rng: np.random.Generator) -> VoiceTraits:
    """Draw a voice; `build` (-1 small .. 1 large) shifts the pitch by up to half an octave."""
    return VoiceTraits(
        f0=float(np.clip(148 * 2 ** ((-5.5 * build + 1.8 * rng.standard_normal()) / 12), 92, 235)),
        tract=float(np.clip(1.06 - 0.09 * build + 0.025 * rng.standard_normal(), 0.9, 1.22)),
        f4=float(rng.uniform(3200, 3700)),
        f5=float(rng.uniform(4200, 4900)),
        bandwidth=float(rng.uniform(0.8, 1.25)),
        tilt=float(rng.normal(0, 0.7)),
        breath=float(rng.normal(0, 1.5)),
        open_quotient=float(rng.normal(0, 0.025)),
        jitter=float(rng.uniform(0.003, 0.009)),
        shimmer=float(rng.uniform(0.02, 0.07)),
        tempo=float(rng.uniform(0.9, 1.12)),
    )


def draw_face(build: float, rng: np.random.Generator) -> FaceTraits:
    """Draw a face; `build` widens the jaw, thickens the brows and allows a beard."""

    def near(mean: float, spread: float) -> float:
        """A normal draw cut at two standard deviations, so that no face breaks."""
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    width = near(51 + 1.5 * build, 2.6)
    style = draw_style(build, rng)
    skin, hair, iris = draw_colours(rng)
    lips = 0.62 * skin + 0.38 * np.array([78.0, 60.0, 190.0]) * (0.5 + skin.mean() / 400)
    return FaceTraits(
        face_width=width,
        jaw_width=width * near(0.83 + 0.05 * build, 0.03),
        chin_width=near(17 + 4 * build, 3),
        chin_y=near(82 + 2 * build, 2.5),
        top_y=near(-57, 2.5),
        ear_size=near(1.0, 0.1),
        eye_width=near(12.2, 0.9),
        eye_height=near(5.3, 0.45),
        eye_slant=near(0.4, 0.7),
        brow_y=near(-16, 0.9),
        brow_length=near(15.5, 1.1),
        brow_thickness=near(3.0 + 0.8 * build, 0.5),
        rest_brow_inner=near(0, 0.6),
        rest_brow_outer=near(0, 0.7),
        nose_length=near(28, 1.8),
        nose_width=near(9.5 + 0.8 * build, 1.2),
        mouth_y=near(52, 1.4),
        mouth_width=near(20, 1.2),
        lip_upper=near(4.4 - 0.6 * build, 0.6),
        lip_lower=near(5.8 - 0.6 * build, 0.7),
        rest_corner=near(0, 0.65),
        rest_lid=near(0, 0.22),
        lines=float(rng.uniform(0, 0.35)),
        beard=float(rng.uniform(0.3, 0.8)) if build > 0 and rng.random() < 0.4 else 0.0,
        glasses=float(rng.uniform(15, 18)) if rng.random() < 0.18 else 0.0,
        freckles=float(rng.uniform(0.3, 1)) if rng.random() < 0.2 else 0.0,
        hair_volume=near(0.13, 0.025),
        hair_line=near(-40, 2.5),
        hair_part=float(rng.uniform(-0.42, 0.42)),
        hair_style=style,
        skin=as_colour(skin),
        hair=as_colour(hair),
        iris=as_colour(iris),
        lips=as_colour(lips),
        clothes=as_colour(rng.uniform(25, 210) + rng.uniform(-30, 30, 3)),
        wall=as_colour(rng.uniform(60, 205) + rng.uniform(-24, 24, 3)),
        light=float(rng.uniform(-1.0, 1.0)),
        size=near(0.90, 0.03),
        centre_x=near(112, 2.0),
        centre_y=near(73, 1.5),
        liveliness=float(rng.uniform(0.6, 1.3)),
        blinks=float(rng.uniform(0.2, 0.6)),
    )


def draw_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw skin, hair and iris, BGR float (3,); light hair and eyes are rarer with dark skin."""
    tone = rng.uniform(0, len(SKIN_RGB) - 1)
    skin = blend_colours(SKIN_RGB, tone, rng, 6)
    fair = max(0.05, 1 - tone / 3)
    hair_odds = np.array([1.3, 1.2, 1.0, fair, fair, 0.8 * fair, 0.5])
    hair_at = rng.choice(len(HAIR_RGB), p=hair_odds / hair_odds.sum())
    hair = blend_colours(HAIR_RGB[[hair_at]], 0, rng, 10)
    iris_odds = np.array([1.5, 1.0, 0.8 * fair, fair, 0.6 * fair])
    iris_at = rng.choice(len(IRIS_RGB), p=iris_odds / iris_odds.sum())
    return skin, hair, blend_colours(IRIS_RGB[[iris_at]], 0, rng, 8)


def draw_style(build: float, rng: np.random.Generator) -> str:
    """Draw one of HAIR_STYLES; long hair more often with a small build."""
    weights = np.array(
        [0.8, 2.2, 2.0, 0.7, 0.9, 0.2, 0.4] if build > 0 else [0, 0.4, 0.8, 1.0, 0.9, 1.6, 2.2]
    )
    return HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=weights / weights.sum())]


def blend_colours(
    palette_rgb: np.ndarray, at: float, rng: np.random.Generator, spread: float
) -> np.ndarray:
    """The colour at position 0..n-1 of a palette (n, 3), a little changed; BGR float (3,)."""
    low = min(int(at), max(len(palette_rgb) - 2, 0))
    high = min(low + 1, len(palette_rgb) - 1)
    colour = palette_rgb[low] + (at - low) * (palette_rgb[high].astype(float) - palette_rgb[low])
    return np.clip(colour + spread * rng.uniform(-1, 1, 3), 4, 250)[::-1]


def as_colour(colour: np.ndarray) -> tuple[float, float, float]:
    """Round to one decimal, so that tables stay short."""
    blue, green, red = np.round(np.clip(colour, 4, 250), 1)
    return float(blue), float(green), float(red)
