"""The still parts of a clip: head texture with shading and hair, its outline, background and shoulders."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

from preprocess.toy.clips import SCENE_STREAM, Clip
from preprocess.toy.speakers import FaceTraits

FRAME_SIZE = 224
TEXTURE_SCALE = 1.5  # texture pixels per face unit: finer than the frame, which gives smooth edges
ORIGIN = np.array([135.0, 132.0])  # of the face, in texture pixels
TEXTURE_SIZE = (276, 270)  # rows, columns
SUBPIXEL = 4  # bits: polygons are placed to 1/16 of a pixel
GRID_Y, GRID_X = np.mgrid[: TEXTURE_SIZE[0], : TEXTURE_SIZE[1]].astype(np.float32)
GRID_X, GRID_Y = (GRID_X - ORIGIN[0]) / TEXTURE_SCALE, (GRID_Y - ORIGIN[1]) / TEXTURE_SCALE  # face units
ANGLE = np.arctan2(GRID_X, -(GRID_Y + 5)).astype(np.float32)  # 0 straight up


@dataclass(frozen=True)
class Portrait:
    """Images of one clip that do not change from frame to frame."""

    texture: np.ndarray  # (rows, columns, 3) uint8, the head without brows, eyes and mouth
    alpha: np.ndarray  # (rows, columns) float32, 1 inside the head
    background: np.ndarray  # (224, 224, 3) uint8
    shade: np.ndarray  # (rows, columns) float32, light on the skin, about 0.5..1.2


def to_texture(points: np.ndarray) -> np.ndarray:
    """Face units (n, 2) -> fixed-point texture pixels for OpenCV."""
    return np.rint((points * TEXTURE_SCALE + ORIGIN) * (1 << SUBPIXEL)).astype(np.int32)


def fill(image: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon given in face units."""
    cv2.fillPoly(image, [to_texture(points)], colour.tolist(), cv2.LINE_AA, SUBPIXEL)


def mask_of(points: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """A polygon in face units as (rows, columns) float32 0..1, its edge softened by `blur` pixels."""
    mask = np.zeros(TEXTURE_SIZE, np.uint8)
    fill(mask, points, np.array([255]))
    if blur:
        mask = cv2.GaussianBlur(mask, (0, 0), blur)
    return mask.astype(np.float32) / 255


def closed_curve(control: list[tuple[float, float]], count: int) -> np.ndarray:
    """A smooth closed curve through the control points: (count, 2)."""
    points = np.array([*control, control[0]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1) ** 0.7)])
    return CubicSpline(along, points, bc_type="periodic")(np.linspace(0, along[-1], count, endpoint=False))


def head_outline(face: FaceTraits) -> np.ndarray:
    """The outline of skull and jaw: (96, 2), clockwise from the top."""
    width, top = face.face_width, face.top_y
    right = [
        (0.58 * width, top + 8),
        (0.93 * width, top + 32),
        (width, 4.0),
        (0.97 * width, 28.0),
        (face.jaw_width, 54.0),
        (face.chin_width, face.chin_y - 4),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return closed_curve([(0.0, top), *right, (0.0, face.chin_y), *left], 96)


def make_portrait(clip: Clip) -> Portrait:
    """Draw the still images of a clip."""
    face = clip.speaker.face
    rng = clip.key.rng(SCENE_STREAM + 100)
    outline = head_outline(face)
    shade = light_on_face(face, clip.scene.light)
    texture = np.zeros((*TEXTURE_SIZE, 3), np.float32)
    alpha = np.zeros(TEXTURE_SIZE, np.float32)
    hair = hair_colours(face, clip.scene.light)
    behind = hair_behind(face)
    if behind is not None:
        paint(texture, alpha, mask_of(behind, 0.8), hair * 0.72)
    skin = skin_colours(face, shade, rng)
    for side in (-1, 1):
        ear = ellipse(side * (face.face_width + 2.5), 8, 6.5 * face.ear_size, 12.5 * face.ear_size)
        paint(texture, alpha, mask_of(ear, 0.6), skin * 0.88)
        inner = ellipse(side * (face.face_width + 3.2), 8, 3.2 * face.ear_size, 7.5 * face.ear_size)
        paint(texture, alpha, mask_of(inner, 1.2), skin * 0.72)
    head = mask_of(outline, 0.6)
    paint(texture, alpha, head, skin)
    if face.beard:
        beard = beard_mask(face) * head * (0.35 + 0.55 * face.beard)
        paint(texture, alpha, beard, hair * 0.8 * np.clip(shade, 0.6, 1)[..., None])
    front = hair_in_front(face)
    if front is not None:
        shadow = np.roll(mask_of(front, 4), 5, axis=0) * head * 0.3
        texture *= 1 - shadow[..., None]
        paint(texture, alpha, mask_of(front, 0.9), hair)
    tone = clip.scene.brightness * np.array([1 - clip.scene.warmth, 1, 1 + clip.scene.warmth])
    return Portrait(
        texture=to_bytes(texture * tone),
        alpha=alpha,
        background=draw_background(clip, rng, tone),
        shade=shade * clip.scene.brightness,
    )


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Float colours 0..255 -> uint8."""
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def paint(texture: np.ndarray, alpha: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour` over the texture where the mask is; the outline alpha grows with it.

    Colours stay unmixed with the black of an empty texture, so the head has no dark rim.
    """
    share = np.where(alpha > 0.02, mask, np.minimum(1, mask * 50))[..., None]
    texture += share * (colour - texture)
    np.maximum(alpha, mask, out=alpha)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, count: int = 32) -> np.ndarray:
    """An ellipse as (count, 2) points."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)], axis=1)


def bump(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """A Gaussian hill on the texture grid: (rows, columns) float32."""
    across = np.exp(-0.5 * ((GRID_X[0] - x) / radius_x) ** 2)
    down = np.exp(-0.5 * ((GRID_Y[:, 0] - y) / radius_y) ** 2)
    return np.outer(down, across)


def light_on_face(face: FaceTraits, light: float) -> np.ndarray:
    """Lambert shading of a rounded head with nose, sockets and chin: (rows, columns) float32."""
    x = np.clip(GRID_X / (1.12 * face.face_width), -1, 1)
    y = np.clip((GRID_Y - 10) / 92, -1, 1)
    z = np.sqrt(np.clip(1 - x**2 - 0.6 * y**2, 0.03, 1))
    facing = 0.55 * light * x - 0.35 * y + 0.85 * z
    shade = 0.5 + 0.58 * np.clip(facing, 0, 1.3)
    nose = face.nose_length
    shade += 0.10 * bump(0, 0.45 * nose, 2.6, 0.36 * nose) + 0.12 * bump(0.6 * light, nose - 3, 3.6, 3.2)
    side = -np.sign(light) if light else 1.0
    shade -= 0.10 * min(abs(light) + 0.3, 1) * bump(side * 6.5, 0.6 * nose, 3.0, 0.35 * nose)
    shade -= 0.13 * bump(0, nose + 5, face.nose_width * 0.9, 2.6)
    for eye in (-25, 25):
        shade -= 0.11 * bump(eye, -3.5, face.eye_width * 1.05, 6.5)
        shade += 0.05 * bump(1.24 * eye, 20, 9, 8)
    shade += 0.05 * bump(0, face.chin_y - 9, 8, 5) - 0.10 * bump(0, face.mouth_y + 12, 10, 3)
    return shade.astype(np.float32)


def skin_colours(face: FaceTraits, shade: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Skin with light, blush, nostrils, texture and freckles: (rows, columns, 3) float32."""
    colour = np.array(face.skin, np.float32) * shade[..., None]
    warm = 0.07 * (bump(-29, 26, 11, 9) + bump(29, 26, 11, 9) + 0.8 * bump(0, face.nose_length, 7, 6))
    colour *= 1 + warm[..., None].astype(np.float32) * np.array([-1.0, -1.0, 0.5], np.float32)
    rows, columns = TEXTURE_SIZE
    grain = cv2.GaussianBlur(rng.standard_normal((rows, columns)).astype(np.float32), (0, 0), 1.2)
    if face.freckles:
        area = bump(0, 16, 26, 9) * face.freckles
        grain = grain - 2.2 * area * (grain > 0.42)
    colour *= 1 + 0.035 * grain[..., None]
    for side in (-1, 1):
        nostril = ellipse(side * 0.5 * face.nose_width, face.nose_length + 1.5, 0.27 * face.nose_width, 1.7)
        colour *= 1 - 0.6 * mask_of(nostril, 1.0)[..., None]
        turn = np.linspace(-1.2, 1.3, 12)
        wing = np.stack(
            [
                side * (0.62 * face.nose_width + 0.4 * face.nose_width * np.cos(turn)),
                face.nose_length - 2.5 + 4.6 * np.sin(turn),
            ],
            axis=1,
        )
        colour *= 1 - 0.22 * line_mask(wing, 2, 1.1)[..., None]
    return colour


def line_mask(points: np.ndarray, thickness: int, blur: float) -> np.ndarray:
    """A line through points in face units as (rows, columns) float32 0..1."""
    mask = np.zeros(TEXTURE_SIZE, np.uint8)
    cv2.polylines(mask, [to_texture(points)], False, 255, thickness, cv2.LINE_AA, SUBPIXEL)
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255


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


def hair_colours(face: FaceTraits, light: float) -> np.ndarray:
    """Hair with strands and a soft highlight: (rows, columns, 3) float32."""
    rng = np.random.default_rng(int(1e6 * face.hair_volume * face.face_width))
    count = 48 if face.hair_style == "curly" else 150
    strands = np.convolve(rng.standard_normal(count + 2), [0.3, 0.4, 0.3], mode="valid")
    part = 0.5 * face.hair_part
    turn = (ANGLE - part) / np.pi * 0.5 + 0.5
    wave = 0.012 * np.sin(GRID_Y / 9) if face.hair_style in ("curly", "long") else 0
    streak = np.interp((turn + wave).ravel(), np.linspace(0, 1, count), strands).reshape(TEXTURE_SIZE)
    highlight = 0.3 * bump(18 * light, face.top_y + 12, 30, 9)
    falloff = np.clip(1 + 0.12 * light * GRID_X / 50, 0.7, 1.2)
    tone = np.clip((1 + 0.22 * streak + highlight) * falloff, 0.35, 1.8)
    return (np.array(face.hair, np.float32) * tone[..., None] + 6).astype(np.float32)


def hair_arc(face: FaceTraits, volume: float, low: float) -> np.ndarray:
    """The outer edge of the hair over the skull, from the left ear to the right: (40, 2)."""
    turn = np.linspace(-1, 1, 40) * (np.pi / 2 + low)
    width, height = face.face_width * (1 + 0.75 * volume) + 2, -face.top_y * (1 + volume) + 4
    if face.hair_style == "curly":
        wobble = 1 + 0.045 * np.abs(np.sin(turn * 5.5)) + 0.1
    else:
        wobble = np.ones_like(turn)
    return np.stack([width * np.sin(turn) * wobble, 4 - (height + 4) * np.cos(turn) * wobble], axis=1)


def hair_behind(face: FaceTraits) -> np.ndarray | None:
    """Hair behind the head: (n, 2), None for short styles."""
    if face.hair_style not in ("long", "bob", "curly"):
        return None
    width = face.face_width
    arc = hair_arc(face, face.hair_volume + 0.03, 0.0)
    down = {"long": 94.0, "bob": 60.0, "curly": 34.0}[face.hair_style]
    right = [(1.2 * width, 30.0), (1.17 * width, down - 8), (0.98 * width, down), (0.55 * width, down - 2)]
    left = [(-x, y) for x, y in reversed(right)]
    return np.concatenate([arc, right, left])


def hair_in_front(face: FaceTraits) -> np.ndarray | None:
    """Hair over the forehead, between the outer arc and the hairline: (n, 2), None if bald."""
    if face.hair_style == "bald":
        return None
    width, line, part = face.face_width, face.hair_line, face.hair_part
    arc = hair_arc(face, face.hair_volume, 0.12)
    if face.hair_style == "fringe":
        control = [(0.97, 2), (0.9, -20), (0.6, -29), (0.2, -27), (-0.2, -28), (-0.6, -29), (-0.9, -20), (-0.97, 2)]
    elif face.hair_style in ("parted", "long", "bob"):
        control = [(0.98, 4), (0.92, -18), (0.68, line + 6), (part + 0.1, line - 7)]
        control += [(part - 0.12, line - 6), (-0.68, line + 7), (-0.92, -17), (-0.98, 4)]
    else:
        control = [(1.0, 2), (0.93, -20), (0.78, line + 4), (0.35, line - 3)]
        control += [(-0.35, line - 3), (-0.78, line + 4), (-0.93, -20), (-1.0, 2)]
    points = np.array([(x * width, y) for x, y in control])
    along = np.linspace(0, 1, len(points))
    return np.concatenate([arc, CubicSpline(along, points)(np.linspace(0, 1, 40))])


def draw_background(clip: Clip, rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
    """A blurred wall with soft shapes, neck and shoulders: (224, 224, 3) uint8."""
    face = clip.speaker.face
    small = np.full((56, 56, 3), face.wall, np.float32)
    small *= np.linspace(1.15, 0.8, 56, dtype=np.float32)[:, None, None]
    small *= (1 + 0.15 * clip.scene.light * np.linspace(-1, 1, 56, dtype=np.float32))[None, :, None]
    for _ in range(4):
        x, y, wide, high = rng.integers((-10, -10, 8, 10), (50, 50, 30, 40))
        colour = np.array(face.wall) * rng.uniform(0.6, 1.3) + rng.uniform(-18, 18, 3)
        cv2.rectangle(small, (int(x), int(y)), (int(x + wide), int(y + high)), colour.tolist(), -1)
    small = cv2.GaussianBlur(np.clip(small, 10, 245), (0, 0), 2.2)
    image = to_bytes(cv2.resize(small, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_CUBIC) * tone)
    draw_shoulders(image, clip, tone)
    return image


def draw_shoulders(image: np.ndarray, clip: Clip, tone: np.ndarray) -> None:
    """Neck, collar and shoulders below the resting head, shaded from the light's side."""
    face = clip.speaker.face
    middle, zoom = face.centre_x, face.size
    chin = face.centre_y + zoom * face.chin_y
    neck = zoom * (0.62 * face.jaw_width)
    body = [(middle - 112, 230), (middle - 92, 196), (middle - neck - 16, 178), (middle - neck - 2, chin + 14)]
    body += [(2 * middle - x, y) for x, y in reversed(body)]
    layer = np.empty_like(image)
    ramp = np.linspace(1 - 0.25 * clip.scene.light, 1 + 0.25 * clip.scene.light, FRAME_SIZE)
    fade = np.linspace(1.1, 0.8, FRAME_SIZE)
    light = (ramp[None, :] * fade[:, None])[..., None]
    parts = [(np.array(body), np.array(face.clothes), 1.0)]
    collar = [(middle - neck - 4, chin + 8), (middle - neck * 0.5, chin + 32), (middle, chin + 40)]
    collar += [(2 * middle - x, y) for x, y in reversed(collar[:-1])]
    column = [(middle - neck, chin - 45), (middle + neck, chin - 45), (middle + neck + 3, chin + 22)]
    column += [(middle, chin + 34), (middle - neck - 3, chin + 22)]
    shadow = [(x, min(y, chin + 14)) for x, y in column]
    parts += [(np.array(collar), np.array(face.skin), 0.75), (np.array(column), np.array(face.skin), 0.75)]
    parts += [(np.array(shadow), np.array(face.skin), 0.6)]
    for points, colour, factor in parts:
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, SUBPIXEL)
        share = cv2.GaussianBlur(mask, (0, 0), 1.0 if factor > 0.6 else 3.0)[..., None] / 255
        layer = np.clip(colour * factor * light * tone, 0, 255)
        image[:] = image + share * (layer - image) + 0.5
