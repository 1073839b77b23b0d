"""Choose the frames of a clip, decode them, and cut, resize and normalise their pixels."""

import itertools
import os
from collections.abc import Iterable, Sequence

import av
import numpy as np
import torch
from PIL import Image

from hicmae.data.clip_list import UnreadableClip, one_line

try:
    import decord
except ImportError:  # no wheels outside Linux x86-64; PyAV gives the same frames there
    decord = None
else:
    decord.logging.set_level(decord.logging.FATAL)  # what is wrong with a clip is in our message

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")

# What Pillow raises for broken image files; its PNG reader uses SyntaxError.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


# Which frames


def pretrain_frames(
    total_frames: int, start: int = 0, num_frames: int = 16, sampling_rate: int = 4
) -> np.ndarray:
    """Return `num_frames` indices `start`, `start + sampling_rate`, ... of a clip for pre-training.

    Args:
        total_frames: frames of the video.
        start: first index, in [0, total_frames - num_frames * sampling_rate]; 0 for shorter videos.
        num_frames: T.
        sampling_rate: distance of neighbouring frames.

    Returns:
        (T,) int64; in a shorter video the last index reached is repeated.
    """
    reached = np.arange(start, total_frames, sampling_rate)[:num_frames]
    return _repeat_last(reached, num_frames)


def train_frames(
    total_frames: int, end: int | None = None, num_frames: int = 16, sampling_rate: int = 4
) -> np.ndarray:
    """Return the indices of a labelled clip: evenly spread over the span that ends at `end`.

    Args:
        total_frames: frames of the video.
        end: in [span, total_frames), span = num_frames * sampling_rate; None takes the centre, as
            in validation. Videos of no more than a span are taken from their start.
        num_frames: T.
        sampling_rate: mean distance of neighbouring frames.

    Returns:
        (T,) int64.
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
    slack = len(frames) - num_frames
    if num_segments == 1:
        starts = [slack // 2]
    else:
        starts = [k * slack // (num_segments - 1) for k in range(num_segments)]
    return [frames[start : start + num_frames] for start in dict.fromkeys(starts)]


test_windows.__test__ = False  # not a test, whatever pytest makes of its name


def _repeat_last(indices: np.ndarray, length: int) -> np.ndarray:
    return np.pad(indices, (0, max(length - len(indices), 0)), mode="edge")


# Decoding


class FrameFolder:
    """A folder of frames, in the order of their names."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            raise UnreadableClip(
                f"video folder '{path}' cannot be read: {error.strerror}"
            ) from None
        self.names = sorted(
            name
            for name in names
            if name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith(".")
        )
        if not self.names:
            raise UnreadableClip(
                f"video folder '{path}' holds no frame, expected {' '.join(FRAME_EXTENSIONS)} files"
            )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Iterable[int]) -> list[Image.Image]:
        """Return the RGB frames at `indices`."""
        return [self._read(os.path.join(self.path, self.names[index])) for index in indices]

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Raise UnreadableClip: images carry no times."""
        raise UnreadableClip(
            f"video folder '{self.path}' has no frame times, expected a video file in pre-training"
        )

    @staticmethod
    def _read(path: str) -> Image.Image:
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except _IMAGE_ERRORS as error:
            raise UnreadableClip(f"frame '{path}' cannot be read: {one_line(error)}") from None


class DecordVideo:
    """A video file read with decord; frames between the wanted ones are skipped, not converted."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # An absolute name, as FFmpeg would take "a:b.mp4" for a protocol.
            self.reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise UnreadableClip(f"video '{path}' cannot be opened: {one_line(error)}") from None
        if len(self.reader) == 0:
            raise UnreadableClip(f"video '{path}' holds no frame")

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return the RGB frames at `indices`, which ascend without repetition."""
        try:
            frames = self.reader.get_batch(list(indices)).asnumpy()  # (T, H, W, 3) uint8
        except (decord.DECORDError, RuntimeError):
            # decord also fails on some sound files, e.g. all of width 48.
            return PyAVVideo(self.path).read(indices)
        return [Image.fromarray(frame) for frame in frames]

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        times = self.reader.get_frame_timestamp([first, last])
        return float(times[0][0]), float(times[1][1])


class PyAVVideo:
    """A video file read with PyAV, for machines without decord.

    Frames are counted in order rather than sought: seeking is off by one in some containers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with av.open(os.path.abspath(path), metadata_errors="replace") as container:
                stream = next(iter(container.streams.video), None)
                packets = [] if stream is None else list(container.demux(stream))
                self.packet_times = sorted(
                    (
                        float(packet.pts * packet.time_base),
                        float((packet.pts + (packet.duration or 0)) * packet.time_base),
                    )
                    for packet in packets
                    if packet.pts is not None
                )
        except av.FFmpegError as error:
            raise UnreadableClip(f"video '{path}' cannot be opened: {one_line(error)}") from None
        if not self.packet_times:
            raise UnreadableClip(f"video '{path}' holds no frame")

    def __len__(self) -> int:
        return len(self.packet_times)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return the RGB frames at `indices`, which ascend without repetition."""
        wanted, images = set(indices), []
        try:
            with av.open(os.path.abspath(self.path), metadata_errors="replace") as container:
                decoded = itertools.islice(container.decode(video=0), max(wanted) + 1)
                images = [
                    frame.to_image() for index, frame in enumerate(decoded) if index in wanted
                ]
        except av.FFmpegError as error:
            raise UnreadableClip(
                f"video '{self.path}' cannot be decoded: {one_line(error)}"
            ) from None
        if len(images) != len(wanted):
            raise UnreadableClip(
                f"video '{self.path}' cannot be decoded: it ends before frame {max(wanted)}"
            )
        return images

    def times(self, first: int, last: int) -> tuple[float, float]:
        """Return when frame `first` begins and frame `last` ends, in seconds."""
        return self.packet_times[first][0], self.packet_times[last][1]


Video = FrameFolder | DecordVideo | PyAVVideo


def open_video(path: str) -> Video:
    """Open a folder of frames or a video file; UnreadableClip where there is nothing to read."""
    if os.path.isdir(path):
        return FrameFolder(path)
    if not os.path.isfile(path):
        raise UnreadableClip(f"video '{path}' does not exist")
    if os.path.getsize(path) == 0:
        raise UnreadableClip(f"video '{path}' is an empty file")
    return DecordVideo(path) if decord is not None else PyAVVideo(path)


def read_frames(video: Video, windows: Iterable[np.ndarray]) -> dict[int, Image.Image]:
    """Return every frame that some window needs, by index; each is decoded once."""
    wanted = sorted({int(index) for window in windows for index in window})
    return dict(zip(wanted, video.read(wanted), strict=True))


# Geometry and pixels


def face_box(width: int, height: int) -> Box:
    """Return the face of a 224 x 224 frame of VoxCeleb2; the whole frame for any other size."""
    return (32, 0, 192, 160) if (width, height) == (224, 224) else (0, 0, width, height)


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
    width, height = right - left, bottom - top
    sizes = crop_sizes(width, height)
    crop_width, crop_height = sizes[rng.integers(len(sizes))]
    offsets = crop_offsets(width, height, crop_width, crop_height)
    x, y = offsets[rng.integers(len(offsets))]
    return left + x, top + y, left + x + crop_width, top + y + crop_height


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Resize an image, or its part in `box`, to (width, height), bilinear as Pillow does it."""
    if box is not None:  # not resize's own box, which blends in pixels from around it
        image = image.crop(box)
    return image.resize(size, Image.Resampling.BILINEAR)


def view_crops(
    width: int, height: int, input_size: int, num_crops: int
) -> tuple[tuple[int, int], list[Box]]:
    """Return how a test frame is resized and cut.

    Args:
        width: pixels.
        height: pixels.
        input_size: side of the crops; the short side is resized to it.
        num_crops: crops spread evenly along the longer side; one is centred.

    Returns:
        The (width, height) to resize to, and the distinct boxes to cut from it: one for a square.
    """
    short = min(width, height)
    size = width * input_size // short, height * input_size // short
    slack = max(size) - input_size
    if num_crops == 1:
        starts = [slack // 2]
    else:
        starts = [k * slack // (num_crops - 1) for k in range(num_crops)]
    across = width > height
    corners = [(start, 0) if across else (0, start) for start in dict.fromkeys(starts)]
    return size, [(x, y, x + input_size, y + input_size) for x, y in corners]


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack RGB images of one size to (3, T, H, W) uint8."""
    return (
        torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        .permute(3, 0, 1, 2)
        .contiguous()
    )


def normalise(video: torch.Tensor) -> torch.Tensor:
    """Map (..., 3, T, H, W) uint8 pixels to float32, normalised by ImageNet's mean and std."""
    mean = torch.tensor(IMAGENET_MEAN, device=video.device).view(3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=video.device).view(3, 1, 1, 1)
    return (video.float().div_(255) - mean).div_(std)
