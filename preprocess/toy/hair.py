"""Hair and beard: their shapes, strands and colours."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline

from preprocess.toy.canvas import GRID_X, GRID_Y, TEXTURE_SIZE, bump, closed_curve, mask_of
from preprocess.toy.speakers import FaceTraits

ANGLE = np.arctan2(GRID_X, -(GRID_Y + 5)).astype(np.float32)  # around the crown, 0 straight up


def hair_colours(face: FaceTraits, light: float) -> np.ndarray:
    """Hair with strands and a soft highlight: (rows, columns, 3) float32."""
    rng = np.random.default_rng(int(1e6 * face.hair_volume * face.face_width))
    count = 48 if face.hair_style == "curly" else 150
    strands = np.convolve(rng.standard_normal(count + 2), [0.3, 0.4, 0.3], mode="valid")
    part = 0.5 * face.hair_part
    turn = (ANGLE - part) / np.pi * 0.5 + 0.5
    wave = 0.012 * np.sin(GRID_Y / 9) if face.hair_style in ("curly", "long") else 0
    streak = np.interp((turn + wave).ravel(), np.linspace(0, 1, count), strands).reshape(
        TEXTURE_SIZE
    )
    highlight = 0.3 * bump(18 * light, face.top_y + 12, 30, 9)
    falloff = np.clip(1 + 0.12 * light * GRID_X / 50, 0.7, 1.2)
    tone = np.clip((1 + 0.22 * streak + highlight) * falloff, 0.35, 1.8)
    return (np.array(face.hair, np.float32) * tone[..., None] + 6).astype(np.float32)


def hair_arc(face: FaceTraits, volume: float, low: float) -> np.ndarray:
    """The outer edge of the hair over the skull, from the left ear to the right: (40, 2)."""
    turn = np.linspace(-1, 1, 40) * (np.pi / 2 + low)
    width, height = face.face_width * (1 + 0.75 * volume) + 2, -face.top_y * (1 + volume) + 4
    if face.hair_style == "curly":
        wobble = 1.02 + 0.04 * np.abs(np.sin(turn * 5.5))
    else:
        wobble = np.ones_like(turn)
    return np.stack(
        [width * np.sin(turn) * wobble, 4 - (height + 4) * np.cos(turn) * wobble], axis=1
    )


def hair_behind(face: FaceTraits) -> np.ndarray | None:
    """Hair behind the head: (n, 2), None for short styles."""
    if face.hair_style not in ("long", "bob", "curly"):
        return None
    width = face.face_width
    arc = hair_arc(face, face.hair_volume + 0.03, 0.0)
    down = {"long": 94.0, "bob": 60.0, "curly": 34.0}[face.hair_style]
    right = [
        (1.2 * width, 30.0),
        (1.17 * width, down - 8),
        (0.98 * width, down),
        (0.55 * width, down - 2),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return np.concatenate([arc, right, left])


def hair_in_front(face: FaceTraits) -> np.ndarray | None:
    """Hair over the forehead, between the outer arc and the hairline: (n, 2), None if bald."""
    if face.hair_style == "bald":
        return None
    width, line, part = face.face_width, face.hair_line, face.hair_part
    arc = hair_arc(face, face.hair_volume, 0.12)
    if face.hair_style == "fringe":
        control: list[tuple[float, float]] = [
            (0.97, 2),
            (0.9, -20),
            (0.6, -29),
            (0.2, -27),
            (-0.2, -28),
            (-0.6, -29),
            (-0.9, -20),
            (-0.97, 2),
        ]
    elif face.hair_style in ("parted", "long", "bob"):
        control = [(0.98, 4), (0.92, -18), (0.68, line + 6), (part + 0.1, line - 7)]
        control += [(part - 0.12, line - 6), (-0.68, line + 7), (-0.92, -17), (-0.98, 4)]
    else:
        control = [(1.0, 2), (0.93, -20), (0.78, line + 4), (0.35, line - 3)]
        control += [(-0.35, line - 3), (-0.78, line + 4), (-0.93, -20), (-1.0, 2)]
    points = np.array([(x * width, y) for x, y in control])
    along = np.linspace(0, 1, len(points))
    return np.concatenate([arc, CubicSpline(along, points)(np.linspace(0, 1, 40))])


def beard_mask(face: FaceTraits) -> np.ndarray:
    """Where a beard grows: chin, jaw and upper lip, soft at the edge."""
    width, mouth = face.jaw_width, face.mouth_y
    jaw = closed_curve(
        [
            (-face.face_width - 2, 20),
            (-0.86 * width, 38),
            (-0.55 * width, mouth - 7),
            (0, face.nose_length + 9),
            (0.55 * width, mouth - 7),
            (0.86 * width, 38),
            (face.face_width + 2, 20),
            (width + 4, 60),
            (0, face.chin_y + 4),
            (-width - 4, 60),
        ],
        64,
    )
    return mask_of(jaw, 4)
