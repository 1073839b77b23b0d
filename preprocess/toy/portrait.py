"""The still parts of a clip: head with shading and hair, background and shoulders."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.toy.canvas import (
    GRID_X,
    GRID_Y,
    SUBPIXEL,
    TEXTURE_SIZE,
    bump,
    closed_curve,
    ellipse,
    line_mask,
    mask_of,
    paint,
)
from preprocess.toy.clips import SCENE_STREAM, Clip
from preprocess.toy.hair import beard_mask, hair_behind, hair_colours, hair_in_front
from preprocess.toy.speakers import FaceTraits

FRAME_SIZE = 224


@dataclass(frozen=True)
class Portrait:
    """Images of one clip that do not change from frame to frame."""

    texture: np.ndarray  # (rows, columns, 3) uint8, the head without brows, eyes and mouth
    alpha: np.ndarray  # (rows, columns) float32, 1 inside the head
    background: np.ndarray  # (224, 224, 3) uint8
    shade: np.ndarray  # (rows, columns) float32, light on the skin, about 0.5..1.2


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


def light_on_face(face: FaceTraits, light: float) -> np.ndarray:
    """Lambert shading of a rounded head with nose, sockets and chin: (rows, columns) float32."""
    x = np.clip(GRID_X / (1.12 * face.face_width), -1, 1)
    y = np.clip((GRID_Y - 10) / 92, -1, 1)
    z = np.sqrt(np.clip(1 - x**2 - 0.6 * y**2, 0.03, 1))
    facing = 0.55 * light * x - 0.35 * y + 0.85 * z
    shade = 0.5 + 0.58 * np.clip(facing, 0, 1.3)
    nose = face.nose_length
    shade += 0.10 * bump(0, 0.45 * nose, 2.6, 0.36 * nose) + 0.12 * bump(
        0.6 * light, nose - 3, 3.6, 3.2
    )
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
    warm = 0.07 * (
        bump(-29, 26, 11, 9) + bump(29, 26, 11, 9) + 0.8 * bump(0, face.nose_length, 7, 6)
    )
    colour *= 1 + warm[..., None].astype(np.float32) * np.array([-1.0, -1.0, 0.5], np.float32)
    rows, columns = TEXTURE_SIZE
    grain = cv2.GaussianBlur(rng.standard_normal((rows, columns)).astype(np.float32), (0, 0), 1.2)
    if face.freckles:
        area = bump(0, 16, 26, 9) * face.freckles
        grain = grain - 2.2 * area * (grain > 0.42)
    colour *= 1 + 0.035 * grain[..., None]
    for side in (-1, 1):
        nostril = ellipse(
            side * 0.5 * face.nose_width, face.nose_length + 1.5, 0.27 * face.nose_width, 1.7
        )
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


def draw_background(clip: Clip, rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
    """A blurred wall with soft shapes, neck and shoulders: (224, 224, 3) uint8."""
    face = clip.speaker.face
    small: np.ndarray = np.full((56, 56, 3), face.wall, np.float32)
    small *= np.linspace(1.15, 0.8, 56, dtype=np.float32)[:, None, None]
    small *= (1 + 0.15 * clip.scene.light * np.linspace(-1, 1, 56, dtype=np.float32))[None, :, None]
    for _ in range(4):
        x, y, wide, high = rng.integers((-10, -10, 8, 10), (50, 50, 30, 40))
        colour = np.array(face.wall) * rng.uniform(0.6, 1.3) + rng.uniform(-18, 18, 3)
        cv2.rectangle(small, (int(x), int(y)), (int(x + wide), int(y + high)), colour.tolist(), -1)
    small = cv2.GaussianBlur(np.clip(small, 10, 245), (0, 0), 2.2)
    image = to_bytes(
        cv2.resize(small, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_CUBIC) * tone
    )
    draw_shoulders(image, clip, tone)
    return image


def draw_shoulders(image: np.ndarray, clip: Clip, tone: np.ndarray) -> None:
    """Neck, collar and shoulders below the resting head, shaded from the light's side."""
    face = clip.speaker.face
    middle, zoom = face.centre_x, face.size
    chin = face.centre_y + zoom * face.chin_y
    neck = zoom * (0.62 * face.jaw_width)
    body = [
        (middle - 112, 230),
        (middle - 92, 196),
        (middle - neck - 16, 178),
        (middle - neck - 2, chin + 14),
    ]
    body += [(2 * middle - x, y) for x, y in reversed(body)]
    ramp = np.linspace(1 - 0.25 * clip.scene.light, 1 + 0.25 * clip.scene.light, FRAME_SIZE)
    light = np.outer(np.linspace(1.1, 0.8, FRAME_SIZE), ramp).astype(np.float32)[..., None]
    parts = [(np.array(body), np.array(face.clothes), 1.0)]
    collar = [(middle - neck - 4, chin + 8), (middle - neck * 0.5, chin + 32), (middle, chin + 40)]
    collar += [(2 * middle - x, y) for x, y in reversed(collar[:-1])]
    column = [
        (middle - neck, chin - 45),
        (middle + neck, chin - 45),
        (middle + neck + 3, chin + 22),
    ]
    column += [(middle, chin + 34), (middle - neck - 3, chin + 22)]
    shadow = [(x, min(y, chin + 14)) for x, y in column]
    parts += [
        (np.array(collar), np.array(face.skin), 0.75),
        (np.array(column), np.array(face.skin), 0.75),
    ]
    parts += [(np.array(shadow), np.array(face.skin), 0.6)]
    for points, colour, factor in parts:
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, SUBPIXEL)
        share = cv2.GaussianBlur(mask, (0, 0), 1.0 if factor > 0.6 else 3.0)[..., None]
        layer = np.minimum(light * (colour * factor * tone).astype(np.float32), 255)
        image[:] = image + share * np.float32(1 / 255) * (layer - image) + np.float32(0.5)
