"""The still parts of a clip: head with shading and hair, background and shoulders.

A head is drawn on a texture, in face units (see `preprocess.toy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

from preprocess.toy.clips import Clip

FRAME_SIZE = 224
EYES = (-25.0, 25.0)  # x of their middles
HAIR_LENGTHS = {"long": 94.0, "bob": 60.0, "curly": 34.0}  # y of its end, for hair seen behind
TEXTURE_SCALE = 1.5  # texture pixels per face unit: finer than the frame, which gives smooth edges
ORIGIN = np.array([135.0, 132.0])  # of the face, in texture pixels
TEXTURE_SIZE = (276, 270)  # rows, columns
SUBPIXEL = 4  # bits: polygons are placed to 1/16 of a pixel
FIXED_SCALE = TEXTURE_SCALE * (1 << SUBPIXEL)
FIXED_ORIGIN = ORIGIN * (1 << SUBPIXEL) + 0.5  # rounds, since the texture has no negative positions
ROWS, COLUMNS = np.mgrid[: TEXTURE_SIZE[0], : TEXTURE_SIZE[1]].astype(np.float32)
GRID_X = (COLUMNS - float(ORIGIN[0])) / TEXTURE_SCALE  # face units, float32
GRID_Y = (ROWS - float(ORIGIN[1])) / TEXTURE_SCALE
ANGLE = np.arctan2(GRID_X, -(GRID_Y + 5)).astype(np.float32)  # around the crown, 0 straight up
WHITE = np.array([255])  # of a mask

Point = tuple[float, float]
Box = tuple[slice, slice]  # rows and columns of the texture


def to_texture(points: np.ndarray) -> np.ndarray:
    """Face units (n, 2) -> fixed-point texture pixels for OpenCV."""
    return (points * FIXED_SCALE + FIXED_ORIGIN).astype(np.int32)


def pixel_of(x: float, y: float) -> tuple[int, int]:
    """Row and column of the texture at a point in face units."""
    return round(y * TEXTURE_SCALE + float(ORIGIN[1])), round(x * TEXTURE_SCALE + float(ORIGIN[0]))


def box_of(x: float, y: float, half_width: float, half_height: float) -> Box:
    """Rows and columns of the texture around a point in face units."""
    corner = np.array([x - half_width, y - half_height]) * TEXTURE_SCALE + ORIGIN
    left, top = np.rint(corner).astype(int)
    wide, high = int(2 * half_width * TEXTURE_SCALE), int(2 * half_height * TEXTURE_SCALE)
    return slice(top, top + high), slice(left, left + wide)


# Shapes, (n, 2) points in face units


def curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two (n,) coordinates as one line."""
    return np.stack([x, y], axis=1)


def band(x: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The polygon between two curves over the same x."""
    return np.concatenate([curve(x, upper), curve(x, lower)[::-1]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """An ellipse of 32 points."""
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return curve(x + radius_x * np.cos(turn), y + radius_y * np.sin(turn))


def mirrored(
    right: Sequence[tuple[float, float]], middle: float = 0.0
) -> list[tuple[float, float]]:
    """The other side of a face: the points in reverse."""
    return [(2 * middle - x, y) for x, y in reversed(right)]


def closed_curve(control: Sequence[Point], count: int) -> np.ndarray:
    """A smooth closed curve of `count` points through the control points."""
    points = np.array([*control, control[0]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1) ** 0.7)])
    moments = np.linspace(0, along[-1], count, endpoint=False)
    return CubicSpline(along, points, bc_type="periodic")(moments)


# Paint


def fill(image: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon."""
    cv2.fillPoly(image, [to_texture(points)], colour.tolist(), cv2.LINE_AA, SUBPIXEL)


def line(image: np.ndarray, points: np.ndarray, colour: np.ndarray, thickness: int) -> None:
    """Draw an anti-aliased line."""
    fixed = [to_texture(points)]
    cv2.polylines(image, fixed, False, colour.tolist(), thickness, cv2.LINE_AA, SUBPIXEL)


def mask_of(points: np.ndarray, blur: float, thickness: int = 0) -> np.ndarray:
    """A polygon, or a line where it has a thickness, as (rows, columns) float32 0..1.

    Its edge is softened by `blur` pixels.
    """
    mask = np.zeros(TEXTURE_SIZE, np.uint8)
    if thickness:
        line(mask, points, WHITE, thickness)
    else:
        fill(mask, points, WHITE)
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255


def bump(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """A Gaussian hill on the texture grid: (rows, columns) float32."""
    across = np.exp(-0.5 * ((GRID_X[0] - float(x)) / radius_x) ** 2)
    down = np.exp(-0.5 * ((GRID_Y[:, 0] - float(y)) / radius_y) ** 2)
    return np.outer(down, across)


def paint(texture: np.ndarray, alpha: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour` over the texture where the mask is; the outline alpha grows with it.

    Colours stay unmixed with the black of an empty texture, so the head has no dark rim.
    """
    share = np.where(alpha > 0.02, mask, np.minimum(1, mask * 50))[..., None]
    texture += share * (colour - texture)
    np.maximum(alpha, mask, out=alpha)


def blend(image: np.ndarray, box: Box, shape: np.ndarray, opacity: int, paint: np.ndarray) -> None:
    """Lay `paint`, a colour or an image of the box, over `image` within a soft-edged polygon."""
    part = image[box]
    mask = np.zeros(part.shape[:2], np.uint8)
    corner = np.array([box[1].start, box[0].start]) * (1 << SUBPIXEL)
    cv2.fillPoly(mask, [to_texture(shape) - corner], opacity, cv2.LINE_AA, SUBPIXEL)
    share = cv2.GaussianBlur(mask, (3, 3), 0)[..., None] * np.float32(1 / 255)
    part[:] = part + share * (paint - part)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Float colours 0..255 -> uint8."""
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


# The still parts of a clip


@dataclass(frozen=True)
class Portrait:
    """Images of one clip that do not change from frame to frame."""

    texture: np.ndarray  # (rows, columns, 3) uint8, the head without brows, eyes and mouth
    alpha: np.ndarray  # (rows, columns) float32, 1 inside the head
    background: np.ndarray  # (224, 224, 3) uint8
    shade: np.ndarray  # (rows, columns) float32, light on the skin, about 0.5..1.2


def make_portrait(clip: Clip) -> Portrait:
    """Draw the still images of a clip."""
    face, scene, rng = clip.face, clip.scene, clip.key.rng("portrait")
    shade = light_on_face(face, scene.light)
    texture = np.zeros((*TEXTURE_SIZE, 3), np.float32)
    alpha = np.zeros(TEXTURE_SIZE, np.float32)
    hair = hair_colours(face, scene.light)
    if face.hair_style in HAIR_LENGTHS:
        paint(texture, alpha, mask_of(hair_behind(face), 0.8), hair * 0.72)
    skin = skin_colours(face, shade, rng)
    for side in (-1, 1):
        ear = ellipse(side * (face.face_width + 2.5), 8, 6.5 * face.ear_size, 12.5 * face.ear_size)
        paint(texture, alpha, mask_of(ear, 0.6), skin * 0.88)
        inner = ellipse(side * (face.face_width + 3.2), 8, 3.2 * face.ear_size, 7.5 * face.ear_size)
        paint(texture, alpha, mask_of(inner, 1.2), skin * 0.72)
    head = mask_of(head_outline(face), 0.6)
    paint(texture, alpha, head, skin)
    if face.beard:
        beard = beard_mask(face) * head * (0.35 + 0.55 * face.beard)
        paint(texture, alpha, beard, hair * 0.8 * np.clip(shade, 0.6, 1)[..., None])
    if face.hair_style != "bald":
        front = hair_in_front(face)
        shadow = np.roll(mask_of(front, 4), 5, axis=0) * head * 0.3
        texture *= 1 - shadow[..., None]
        paint(texture, alpha, mask_of(front, 0.9), hair)
    tone = scene.brightness * np.array([1 - scene.warmth, 1, 1 + scene.warmth])
    background = draw_background(clip, rng, tone)
    return Portrait(to_bytes(texture * tone), alpha, background, shade * scene.brightness)


def head_outline(face: SimpleNamespace) -> np.ndarray:
    """The outline of skull and jaw: (96, 2), clockwise from the top."""
    width, top = face.face_width, face.top_y
    right = [(0.58 * width, top + 8), (0.93 * width, top + 32), (width, 4.0), (0.97 * width, 28.0)]
    right += [(face.jaw_width, 54.0), (face.chin_width, face.chin_y - 4)]
    return closed_curve([(0.0, top), *right, (0.0, face.chin_y), *mirrored(right)], 96)


def light_on_face(face: SimpleNamespace, light: float) -> np.ndarray:
    """Lambert shading of a rounded head with nose, sockets and chin: (rows, columns) float32."""
    x = np.clip(GRID_X / (1.12 * face.face_width), -1, 1)
    y = np.clip((GRID_Y - 10) / 92, -1, 1)
    z = np.sqrt(np.clip(1 - x**2 - 0.6 * y**2, 0.03, 1))
    facing = 0.55 * light * x - 0.35 * y + 0.85 * z
    shade = 0.5 + 0.58 * np.clip(facing, 0, 1.3)
    nose = face.nose_length
    ridge = 0.10 * bump(0, 0.45 * nose, 2.6, 0.36 * nose)
    shade += ridge + 0.12 * bump(0.6 * light, nose - 3, 3.6, 3.2)
    side = -np.sign(light) if light else 1.0
    shade -= 0.10 * min(abs(light) + 0.3, 1) * bump(side * 6.5, 0.6 * nose, 3.0, 0.35 * nose)
    shade -= 0.13 * bump(0, nose + 5, face.nose_width * 0.9, 2.6)
    for eye in EYES:
        shade -= 0.11 * bump(eye, -3.5, face.eye_width * 1.05, 6.5)
        shade += 0.05 * bump(1.24 * eye, 20, 9, 8)
    shade += 0.05 * bump(0, face.chin_y - 9, 8, 5) - 0.10 * bump(0, face.mouth_y + 12, 10, 3)
    return shade.astype(np.float32)


def skin_colours(face: SimpleNamespace, shade: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Skin with light, blush, nostrils, texture and freckles: (rows, columns, 3) float32."""
    colour = np.array(face.skin, np.float32) * shade[..., None]
    cheeks = bump(-29, 26, 11, 9) + bump(29, 26, 11, 9)
    warm = 0.07 * (cheeks + 0.8 * bump(0, face.nose_length, 7, 6))
    colour *= 1 + warm[..., None].astype(np.float32) * np.array([-1.0, -1.0, 0.5], np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal(TEXTURE_SIZE).astype(np.float32), (0, 0), 1.2)
    if face.freckles:
        area = bump(0, 16, 26, 9) * face.freckles
        grain = grain - 2.2 * area * (grain > 0.42)
    colour *= 1 + 0.035 * grain[..., None]
    width, turn = face.nose_width, np.linspace(-1.2, 1.3, 12)
    for side in (-1, 1):
        nostril = ellipse(side * 0.5 * width, face.nose_length + 1.5, 0.27 * width, 1.7)
        colour *= 1 - 0.6 * mask_of(nostril, 1.0)[..., None]
        across = side * (0.62 * width + 0.4 * width * np.cos(turn))
        wing = curve(across, face.nose_length - 2.5 + 4.6 * np.sin(turn))
        colour *= 1 - 0.22 * mask_of(wing, 1.1, thickness=2)[..., None]
    return colour


def hair_colours(face: SimpleNamespace, light: float) -> np.ndarray:
    """Hair with strands and a soft highlight: (rows, columns, 3) float32."""
    rng = np.random.default_rng(int(1e6 * face.hair_volume * face.face_width))
    count = 48 if face.hair_style == "curly" else 150
    strands = np.convolve(rng.standard_normal(count + 2), [0.3, 0.4, 0.3], mode="valid")
    turn = (ANGLE - 0.5 * face.hair_part) / np.pi * 0.5 + 0.5
    wave = 0.012 * np.sin(GRID_Y / 9) if face.hair_style in ("curly", "long") else 0
    streak = np.interp(turn + wave, np.linspace(0, 1, count), strands)
    highlight = 0.3 * bump(18 * light, face.top_y + 12, 30, 9)
    falloff = np.clip(1 + 0.12 * light * GRID_X / 50, 0.7, 1.2)
    tone = np.clip((1 + 0.22 * streak + highlight) * falloff, 0.35, 1.8)
    return (np.array(face.hair, np.float32) * tone[..., None] + 6).astype(np.float32)


def hair_arc(face: SimpleNamespace, volume: float, low: float) -> np.ndarray:
    """The outer edge of the hair over the skull, from the left ear to the right: (40, 2)."""
    turn = np.linspace(-1, 1, 40) * (np.pi / 2 + low)
    width, height = face.face_width * (1 + 0.75 * volume) + 2, -face.top_y * (1 + volume) + 4
    curls = 1.02 + 0.04 * np.abs(np.sin(turn * 5.5)) if face.hair_style == "curly" else 1.0
    return curve(width * np.sin(turn) * curls, 4 - (height + 4) * np.cos(turn) * curls)


def hair_behind(face: SimpleNamespace) -> np.ndarray:
    """Long hair behind the head: (n, 2)."""
    width, down = face.face_width, HAIR_LENGTHS[face.hair_style]
    right = [(1.2 * width, 30.0), (1.17 * width, down - 8), (0.98 * width, down)]
    right += [(0.55 * width, down - 2)]
    return np.concatenate([hair_arc(face, face.hair_volume + 0.03, 0.0), right, mirrored(right)])


def hair_in_front(face: SimpleNamespace) -> np.ndarray:
    """Hair over the forehead, between the outer arc and the hairline: (n, 2)."""
    line, part = face.hair_line, face.hair_part
    if face.hair_style == "fringe":
        control = [(0.97, 2), (0.9, -20), (0.6, -29), (0.2, -27)]
        control += [(-0.2, -28), (-0.6, -29), (-0.9, -20), (-0.97, 2)]
    elif face.hair_style in ("parted", "long", "bob"):
        control = [(0.98, 4), (0.92, -18), (0.68, line + 6), (part + 0.1, line - 7)]
        control += [(part - 0.12, line - 6), (-0.68, line + 7), (-0.92, -17), (-0.98, 4)]
    else:
        control = [(1.0, 2), (0.93, -20), (0.78, line + 4), (0.35, line - 3)]
        control += [(-0.35, line - 3), (-0.78, line + 4), (-0.93, -20), (-1.0, 2)]
    points = np.array([(x * face.face_width, y) for x, y in control])
    edge = CubicSpline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, 40))
    return np.concatenate([hair_arc(face, face.hair_volume, 0.12), edge])


def beard_mask(face: SimpleNamespace) -> np.ndarray:
    """Where a beard grows: chin, jaw and upper lip, soft at the edge."""
    width, mouth = face.jaw_width, face.mouth_y
    left = [(-face.face_width - 2, 20), (-0.86 * width, 38), (-0.55 * width, mouth - 7)]
    below = [(width + 4, 60), (0, face.chin_y + 4), (-width - 4, 60)]
    lip = (0, face.nose_length + 9)
    return mask_of(closed_curve([*left, lip, *mirrored(left), *below], 64), 4)


def draw_background(clip: Clip, rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
    """A blurred wall with soft shapes, neck and shoulders: (224, 224, 3) uint8."""
    wall, size = clip.face.wall, (FRAME_SIZE, FRAME_SIZE)
    small: np.ndarray = np.full((56, 56, 3), wall, np.float32)
    small *= np.linspace(1.15, 0.8, 56, dtype=np.float32)[:, None, None]
    small *= (1 + 0.15 * clip.scene.light * np.linspace(-1, 1, 56, dtype=np.float32))[None, :, None]
    for _ in range(4):
        x, y, wide, high = rng.integers((-10, -10, 8, 10), (50, 50, 30, 40)).tolist()
        colour = np.array(wall) * rng.uniform(0.6, 1.3) + rng.uniform(-18, 18, 3)
        cv2.rectangle(small, (x, y), (x + wide, y + high), colour.tolist(), -1)
    small = cv2.GaussianBlur(np.clip(small, 10, 245), (0, 0), 2.2)
    image = to_bytes(cv2.resize(small, size, interpolation=cv2.INTER_CUBIC) * tone)
    draw_shoulders(image, clip, tone)
    return image


def draw_shoulders(image: np.ndarray, clip: Clip, tone: np.ndarray) -> None:
    """Neck, collar and shoulders below the resting head, shaded from the light's side."""
    face = clip.face
    middle, chin = face.centre_x, face.centre_y + face.size * face.chin_y
    neck = face.size * (0.62 * face.jaw_width)
    body = [(middle - 112, 230), (middle - 92, 196), (middle - neck - 16, 178)]
    body += [(middle - neck - 2, chin + 14)]
    collar = [(middle - neck - 4, chin + 8), (middle - neck * 0.5, chin + 32)]
    column = [(middle - neck, chin - 45), (middle + neck, chin - 45)]
    column += [(middle + neck + 3, chin + 22), (middle, chin + 34), (middle - neck - 3, chin + 22)]
    ramp = np.linspace(1 - 0.25 * clip.scene.light, 1 + 0.25 * clip.scene.light, FRAME_SIZE)
    light = np.outer(np.linspace(1.1, 0.8, FRAME_SIZE), ramp).astype(np.float32)[..., None]
    for points, colour, factor in (
        ([*body, *mirrored(body, middle)], face.clothes, 1.0),
        ([*collar, (middle, chin + 40), *mirrored(collar, middle)], face.skin, 0.75),
        (column, face.skin, 0.75),
        ([(x, min(y, chin + 14)) for x, y in column], face.skin, 0.6),  # the chin's shadow
    ):
        mask = np.zeros(image.shape[:2], np.uint8)
        fixed = np.rint(np.array(points) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, SUBPIXEL)
        share = cv2.GaussianBlur(mask, (0, 0), 1.0 if factor > 0.6 else 3.0)[..., None]
        layer = np.minimum(light * (np.array(colour) * factor * tone).astype(np.float32), 255)
        image[:] = image + share * np.float32(1 / 255) * (layer - image) + np.float32(0.5)
