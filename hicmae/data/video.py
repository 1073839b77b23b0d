"""The frames of a clip: which ones, folders of them, how they are cut, resized and normalised."""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image, ImageOps

from hicmae.io import UnreadableClip, imagenet, one_line

if TYPE_CHECKING:
    import torch  # imported where it is used: tools that only read frames need not wait for it

MODALITIES = ("av", "a", "v")
NOT_READ = "-"  # in lists: in place of the stream that a modality leaves out
SOURCE_CROPS = ("auto", "voxceleb2", "none")
VOXCELEB2_SIZE = (224, 224)  # of its frames as their authors ship them

FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")
MEMORY = 256 * 1024**2  # bytes of frames that are kept instead of being decoded twice
MAX_PIXELS = 1 << 26  # of a frame; more is no face but something to fill the memory with

# What Pillow raises for broken image files; its PNG reader uses SyntaxError.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# Weights of this many parts are exact in Pillow's arithmetic (22 bits) and in torch's (15 bits).
_EXACT_PARTS = 1024

_DIGITS = str.maketrans("123456789", "000000000")

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class FrameTimes(NamedTuple):
    """When each frame begins and ends, in seconds; two (frames,) float32 arrays, ascending."""

    begins: np.ndarray
    ends: np.ndarray


class Video:
    """The frames of a clip: a folder, a film, or a packed clip; images carry no `frame_times`."""

    path: str
    frame_times: FrameTimes | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the (H, W, 3) uint8 RGB frames at `indices`, which ascend without repetition."""
        raise NotImplementedError

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        if self.frame_times is None:
            text = "has no frame times, expected a video file in pre-training"
            raise UnreadableClip(f"video '{self.path}' {text}")
        return float(self.frame_times.begins[first]), float(self.frame_times.ends[last])


def read_frames(video: Video, windows: Iterable[np.ndarray]) -> dict[int, np.ndarray]:
    """Return every frame that some window needs, by index; each is decoded once."""
    wanted = sorted({int(index) for window in windows for index in window})
    return dict(zip(wanted, video.read(wanted), strict=True))


class LookedAt:
    """The frames of a source at some indices, decoded once if they fit into memory.

    `options` are those of the source's `frames`.
    """

    def __init__(self, source: Any, indices: Sequence[int], **options: Any) -> None:
        self.source, self.indices, self.options = source, list(indices), options
        self.kept: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        frames = iter(self.kept or self.source.frames(self.indices, **self.options))
        first = next(frames)
        if first.nbytes * len(self.indices) <= MEMORY:
            self.kept = self.kept or [first, *frames]
            frames = iter(self.kept[1:])
        yield first
        yield from frames


def natural_key(name: str) -> list[str | int]:
    """Return what sorts names as people count: 2.jpg before 10.jpg."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)]


class FrameFolder(Video):
    """A folder of frames, in the natural order of their names."""

    def __init__(self, path: str) -> None:
        try:
            names = os.listdir(path)
        except OSError as error:
            raise UnreadableClip(f"video '{path}' cannot be read: {error.strerror}") from None
        self.path = path
        frames = (n for n in names if n.lower().endswith(FRAME_EXTENSIONS) and n[0] != ".")
        self.names = sorted(frames)
        if len({name.translate(_DIGITS) for name in self.names}) > 1:  # else it is their order
            self.names.sort(key=natural_key)
        if not self.names:
            expected = f"expected {' '.join(FRAME_EXTENSIONS)} files"
            raise UnreadableClip(f"video folder '{path}' holds no frame, {expected}")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Return the frames at `indices`, see `Video`."""
        frames = []
        for index in indices:
            path = os.path.join(self.path, self.names[index])
            try:
                with Image.open(path) as image:
                    check_frame_size(f"frame '{path}'", *image.size)
                    frames.append(to_rgb(image))
            except IMAGE_ERRORS as error:
                raise UnreadableClip(f"frame '{path}' cannot be read: {one_line(error)}") from None
        return frames


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB, upright; 16-bit grey is scaled to 8 bit."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).round().astype(np.uint8))
    with contextlib.suppress(*IMAGE_ERRORS, KeyError, TypeError, struct.error):  # of broken EXIF
        if image.getexif().get(0x0112, 1) != 1:  # the tag that says how the camera was held
            ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image.convert("RGB"))


def check_frame_size(what: str, width: int, height: int) -> None:
    """Raise UnreadableClip for a frame that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        text = f"{what} has {width} x {height} pixels"
        raise UnreadableClip(f"{text}, expected at most {MAX_PIXELS}; make it smaller")


# Which frames


def pretrain_frames(
    total_frames: int, start: int = 0, num_frames: int = 16, sampling_rate: int = 4
) -> np.ndarray:
    """Return (num_frames,) int64: `start`, `start + sampling_rate`, ... of a pre-training clip.

    In a shorter video the last index reached is repeated.
    """
    return _repeat_last(np.arange(start, total_frames, sampling_rate)[:num_frames], num_frames)


def train_frames(
    total_frames: int, end: int | None = None, num_frames: int = 16, sampling_rate: int = 4
) -> np.ndarray:
    """Return the (num_frames,) int64 indices of a labelled clip.

    They are evenly spread over the span of `num_frames * sampling_rate` frames that ends at `end`,
    in [span, total_frames); None takes the centre, as in validation. A video of no more frames
    than a span gives those from its start.
    """
    span = num_frames * sampling_rate
    if total_frames <= span:
        spread = np.linspace(0, total_frames, total_frames // sampling_rate)
        padded = np.concatenate([spread, np.full(num_frames - len(spread), total_frames)])
        return np.clip(padded, 0, total_frames - 1).astype(np.int64)
    end = (span + total_frames) // 2 if end is None else end
    return np.clip(np.linspace(end - span, end, num_frames), end - span, end - 1).astype(np.int64)


def test_windows(
    total_frames: int, num_segments: int = 2, num_frames: int = 16, sampling_rate: int = 4
) -> list[np.ndarray]:
    """Return the distinct windows of a test clip, each (T,) int64.

    `num_segments` windows of every `sampling_rate`-th frame are spread evenly from the first to the
    last frame (one is centred); windows that fall on the same frames are given once.
    """
    frames = _repeat_last(np.arange(0, total_frames, sampling_rate), num_frames)
    slack, last = len(frames) - num_frames, num_segments - 1
    starts = [k * slack // last for k in range(num_segments)] if last else [slack // 2]
    return [frames[start : start + num_frames] for start in dict.fromkeys(starts)]


test_windows.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks


def _repeat_last(indices: np.ndarray, length: int) -> np.ndarray:
    return np.pad(indices, (0, max(length - len(indices), 0)), mode="edge")


# Geometry and pixels


def source_box(source_crop: str, input_size: int, width: int, height: int) -> Box:
    """Return what is kept of a pre-training film's frame, by a decided `--source_crop`."""
    is_voxceleb2 = source_crop == "voxceleb2" and (width, height) == VOXCELEB2_SIZE
    if not is_voxceleb2 or input_size > 192:
        return 0, 0, width, height
    return (32, 0, 192, 160) if input_size <= 160 else (16, 0, 208, 192)


def crop_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the (width, height) pairs of the multi-scale crop: at most one scale apart."""
    sides = [int(min(width, height) * scale) for scale in (1, 0.875, 0.75, 0.66)]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]


def crop_offsets(
    width: int, height: int, crop_width: int, crop_height: int
) -> list[tuple[int, int]]:
    """Return the 13 fixed (x, y) of the multi-scale crop: corners, centre, edges, quarters."""
    x, y = (width - crop_width) // 4, (height - crop_height) // 4
    corners_and_edges = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
    quarters = [(1, 1), (3, 1), (1, 3), (3, 3)]
    return [(i * x, j * y) for i, j in corners_and_edges + quarters]


def draw_crop(region: Box, rng: np.random.Generator) -> Box:
    """Draw one multi-scale crop of a region of an image."""
    left, top, right, bottom = region
    sizes = crop_sizes(right - left, bottom - top)
    width, height = sizes[rng.integers(len(sizes))]
    offsets = crop_offsets(right - left, bottom - top, width, height)
    x, y = offsets[rng.integers(len(offsets))]
    return left + x, top + y, left + x + width, top + y + height


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Resize an image, or its part in `box`, to (width, height), bilinear as Pillow does it."""
    if box is not None:  # not resize's own box, which blends in pixels from around it
        image = image.crop(box)
    return image.resize(size, Image.Resampling.BILINEAR)


def resize_frames(
    frames: Sequence[np.ndarray], size: tuple[int, int], box: Box | None = None
) -> np.ndarray:
    """Resize T frames (H, W, 3) uint8, or their part in `box`, to the pixels that `resize` gives.

    torch does it for frames of one size that are not shrunk, by weights that are exact fractions:
    a new pixel's centre lies at (2 i + 1) before / (2 after) - 1/2 of the old ones, so weights are
    multiples of 1 / (2 after / gcd). Returns (T, height, width, 3) uint8.
    """
    import torch
    from torch.nn.functional import interpolate

    left, top, right, bottom = box or (0, 0, frames[0].shape[1], frames[0].shape[0])
    sides = ((right - left, size[0]), (bottom - top, size[1]))
    is_exact = all(
        old <= new and _EXACT_PARTS % (2 * new // math.gcd(old, new)) == 0 for old, new in sides
    )
    if not is_exact or any(frame.shape != frames[0].shape for frame in frames):
        images = (resize(Image.fromarray(frame), size, box) for frame in frames)
        return np.stack([np.asarray(image) for image in images])
    part = np.stack([frame[top:bottom, left:right] for frame in frames])
    if all(old == new for old, new in sides):
        return part
    pixels = rearrange(torch.from_numpy(part), "t h w c -> t c h w")
    pixels = interpolate(pixels, (size[1], size[0]), mode="bilinear", antialias=True)
    return rearrange(pixels, "t c h w -> t h w c").numpy()


def to_tensor(frames: np.ndarray | Sequence[Any], out: torch.Tensor | None = None) -> torch.Tensor:
    """Return RGB frames of one size, arrays or images, as (3, T, H, W) uint8, in `out` if given."""
    import cv2
    import torch

    stacked = frames if isinstance(frames, np.ndarray) else np.stack(frames)
    planes = torch.empty((3, *stacked.shape[:3]), dtype=torch.uint8) if out is None else out
    # cv2 writes into the planes, in a fifth of the time of a transposition.
    tall, parts = "t h w c -> (t h) w c", "c t h w -> c (t h) w"
    cv2.split(rearrange(stacked, tall), [*rearrange(planes.numpy(), parts)])
    return planes


def normalise(video: torch.Tensor) -> torch.Tensor:
    """Map (..., 3, T, H, W) uint8 pixels to float32, normalised by ImageNet's mean and std."""
    pixels = video.float().div_(255)
    mean, std = imagenet(pixels.device, pixels.dtype)
    return (pixels - mean).div_(std)
