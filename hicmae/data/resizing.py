"""Resize frames to the pixels that Pillow gives, by a faster way where one gives the very same."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

# Weights of this many parts are exact in Pillow's arithmetic (22 bits) and in torch's (15 bits).
_EXACT_PARTS = 1024


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Resize an image, or its part in `box`, to (width, height), bilinear as Pillow does it."""
    if box is not None:  # not resize's own box, which blends in pixels from around it
        image = image.crop(box)
    return image.resize(size, Image.Resampling.BILINEAR)


def resize_frames(
    frames: Sequence[np.ndarray], size: tuple[int, int], box: Box | None = None
) -> torch.Tensor:
    """Resize T frames, or their part in `box`, as `resize` does.

    Args:
        frames: (H, W, 3) uint8 each.
        size: width and height of the result.
        box: the same part of each.

    Returns:
        (3, T, height, width) uint8; not contiguous, as it is copied to its batch anyway.
    """
    left, top, right, bottom = box or (0, 0, frames[0].shape[1], frames[0].shape[0])
    alike = all(frame.shape == frames[0].shape for frame in frames)
    if alike and _is_exact(right - left, size[0]) and _is_exact(bottom - top, size[1]):
        part = np.stack([frame[top:bottom, left:right] for frame in frames])
        pixels = torch.from_numpy(part).permute(0, 3, 1, 2)  # (T, 3, h, w), channels last
        if part.shape[1:3] != (size[1], size[0]):
            pixels = interpolate(pixels, (size[1], size[0]), mode="bilinear", antialias=True)
        return pixels.permute(1, 0, 2, 3)
    images = [resize(Image.fromarray(frame), size, box) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(3, 0, 1, 2)


def _is_exact(before: int, after: int) -> bool:
    """Tell whether enlarging `before` pixels to `after` takes weights that are exact fractions.

    A new pixel's centre lies at (2 i + 1) before / (2 after) - 1/2 of the old ones, so its weights
    are multiples of 1 / (2 after / gcd). Shrinking averages over more pixels, with other weights.
    """
    parts = 2 * after // math.gcd(before, after)
    return before <= after and _EXACT_PARTS % parts == 0
