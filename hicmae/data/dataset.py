"""Open the video and the sound of a clip, wherever they are.

Clips as tensors: for pre-training, for training and validation with labels, and as test views.

An item of each data set is already a batch, of one clip: `num_samples` samples or several views of
it, none where it was skipped. `collate` joins items to a larger batch of the same type.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hicmae.data import audio as wav
from hicmae.data import media
from hicmae.data import video as film
from hicmae.data.audio import SAMPLE_RATE, Wav, WavFile
from hicmae.data.augment import Augment, ClipTransform
from hicmae.data.clip_list import AnyClip
from hicmae.data.loader import (
    ClipIndex,
    Deadline,
    LabelledBatch,
    PretrainBatch,
    ViewBatch,
    item_generator,
    joined,
    read_or_replace,
    read_or_skip,
)
from hicmae.data.masking import random_mask, tube_mask
from hicmae.data.media import Video, open_video
from hicmae.data.shards import PackedClip, open_packed

FRAME_RATE = 25  # frames a second that are assumed where only the audio is read


def open_streams(clip: AnyClip) -> tuple[Video, Callable[[], Wav]]:
    """Open the video of a clip; its sound is opened when it is called for."""
    if isinstance(clip, PackedClip):
        video, sound = open_packed(clip)
        return video, lambda: sound
    return open_video(clip.video), lambda: WavFile(clip.audio)


def open_wanted(clip: AnyClip, modality: str) -> tuple[Video | None, Wav | None, int]:
    """Open the streams that a modality reads; return them and the number of frames."""
    video: Video | None
    sound: Wav | None
    if isinstance(clip, PackedClip):
        video, sound = open_packed(clip)
    else:
        sound = WavFile(clip.audio) if "a" in modality else None
        video = open_video(clip.video) if "v" in modality else None
    if "v" not in modality:
        return None, sound, max(round(len(sound or ()) * FRAME_RATE / SAMPLE_RATE), 1)
    return video, sound if "a" in modality else None, len(video or ())


PATCH_SIZE = 16


MODALITIES = ("av", "a", "v")


class PretrainClips(Dataset[PretrainBatch]):
    """Random windows of unlabelled clips with the masks of their tokens.

    Args:
        clips: of `read_pretrain_list`.
        num_frames: T of the video.
        sampling_rate: distance of neighbouring frames.
        input_size: H = W in pixels.
        input_size_audio: (T, F) of the spectrogram.
        tubelet_size: frames in a token.
        mask_ratio: share of masked video tokens.
        mask_ratio_audio: share of masked audio tokens.
        roll_mag_aug: vary the magnitude of the audio.
        num_samples: windows, crops and masks taken from each clip that is opened.
        seed: of all draws, together with epoch and index.
        clip_timeout: seconds after which a clip counts as unreadable; 0: no limit.
    """

    collate = staticmethod(joined)

    def __init__(
        self,
        clips: Sequence[AnyClip],
        *,
        num_frames: int = 16,
        sampling_rate: int = 4,
        input_size: int = 160,
        input_size_audio: tuple[int, int] = (256, 128),
        tubelet_size: int = 2,
        mask_ratio: float = 0.9,
        mask_ratio_audio: float = 0.8,
        roll_mag_aug: bool = False,
        num_samples: int = 1,
        seed: int = 0,
        clip_timeout: float = 0.0,
    ) -> None:
        self.deadline = Deadline(clip_timeout)
        self.clips, self.seed, self.num_samples = clips, seed, num_samples
        self.num_frames, self.sampling_rate, self.input_size = num_frames, sampling_rate, input_size
        self.input_size_audio, self.roll_mag_aug = input_size_audio, roll_mag_aug
        self.mask_ratio, self.mask_ratio_audio = mask_ratio, mask_ratio_audio
        side = _parts("input_size", input_size, PATCH_SIZE)
        self.grid = (_parts("num_frames", num_frames, tubelet_size), side, side)
        steps, mel_bins = (
            _parts("input_size_audio", size, PATCH_SIZE) for size in input_size_audio
        )
        self.num_audio_tokens = steps * mel_bins

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: ClipIndex) -> PretrainBatch:
        """Return `num_samples` samples of the clip, or of another one if it cannot be read."""
        rng = item_generator(self.seed, item)
        batch, skipped = read_or_replace(self.clips, item.index, self._read, rng, self.deadline)
        return batch._replace(skipped=skipped)

    def _read(self, clip: AnyClip, rng: np.random.Generator) -> PretrainBatch:
        video, sound = open_streams(clip)
        free = len(video) - self.num_frames * self.sampling_rate
        starts = [int(rng.integers(free + 1)) if free > 0 else 0 for _ in range(self.num_samples)]
        sampling = (self.num_frames, self.sampling_rate)
        windows = [film.pretrain_frames(len(video), start, *sampling) for start in starts]
        gains = [wav.draw_gain(rng) if self.roll_mag_aug else 1.0 for _ in windows]
        spans = [self._span(video, window) for window in windows]
        audio = wav.span_features(sound(), spans, gains, self.input_size_audio)
        frames = media.read_frames(video, windows)
        masks = [tube_mask(self.grid, self.mask_ratio, rng) for _ in windows]
        ratio, num_tokens = self.mask_ratio_audio, self.num_audio_tokens
        audio_masks = [random_mask(num_tokens, ratio, rng) for _ in windows]
        pixels = [self._crop([frames[k] for k in window], rng) for window in windows]
        return PretrainBatch(
            video=torch.stack(pixels),
            video_mask=torch.from_numpy(np.stack(masks)),
            audio=audio,
            audio_mask=torch.from_numpy(np.stack(audio_masks)),
            names=(clip.video,) * self.num_samples,
            skipped=(),
        )

    def _span(self, video: media.Video, window: np.ndarray) -> tuple[int, int]:
        first, last = int(window[0]), min(int(window[-1]) + self.sampling_rate, len(video) - 1)
        start, stop = (int(time * wav.SAMPLE_RATE) for time in video.times(first, last))
        return start, stop

    def _crop(self, frames: list[np.ndarray], rng: np.random.Generator) -> Tensor:
        height, width = frames[0].shape[:2]
        box = film.draw_crop(film.face_box(width, height), rng)
        return film.resize_frames(frames, (self.input_size, self.input_size), box)


class LabelledClips(Dataset[LabelledBatch]):
    """Random, augmented windows of labelled clips, for training.

    Args:
        clips: of `read_labelled_list`.
        task: "classification" or "regression".
        num_frames: T of the video.
        sampling_rate: mean distance of neighbouring frames.
        input_size: H = W in pixels.
        input_size_audio: (T, F) of the spectrogram.
        augment: transforms of the video, None for none.
        roll_mag_aug: vary the magnitude of the audio.
        num_samples: windows taken from each clip that is opened.
        modality: "av", or "a" / "v" to read one stream only; frames of an unread video are counted
            at 25 a second of the audio.
        seed: of all draws, together with epoch and index.
        clip_timeout: seconds after which a clip counts as unreadable; 0: no limit.
    """

    collate = staticmethod(joined)

    def __init__(
        self,
        clips: Sequence[AnyClip],
        *,
        task: str = "classification",
        num_frames: int = 16,
        sampling_rate: int = 4,
        input_size: int = 160,
        input_size_audio: tuple[int, int] = (256, 128),
        augment: Augment | None = None,
        roll_mag_aug: bool = False,
        num_samples: int = 1,
        modality: str = "av",
        seed: int = 0,
        clip_timeout: float = 0.0,
    ) -> None:
        self.deadline = Deadline(clip_timeout)
        self.clips, self.task, self.seed = clips, task, seed
        self.modality = _checked_modality(modality)
        self.num_frames, self.sampling_rate = num_frames, sampling_rate
        self.input_size, self.input_size_audio = input_size, input_size_audio
        self.num_samples, self.roll_mag_aug = num_samples, roll_mag_aug
        self.transform = ClipTransform(augment, input_size) if augment else None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: ClipIndex) -> LabelledBatch:
        """Return `num_samples` samples of the clip, or of another one if it cannot be read."""
        rng = item_generator(self.seed, item)
        batch, skipped = read_or_replace(self.clips, item.index, self._read, rng, self.deadline)
        return batch._replace(skipped=skipped)

    def _read(self, clip: AnyClip, rng: np.random.Generator) -> LabelledBatch:
        video, sound, total_frames = open_wanted(clip, self.modality)
        windows = [self._window(total_frames, rng) for _ in range(self.num_samples)]
        pixels = features = None
        if sound is not None:
            span = self.num_frames * self.sampling_rate
            gains = [wav.draw_gain(rng) if self.roll_mag_aug else 1.0 for _ in windows]
            features = wav.window_features(
                sound, windows, span, total_frames, self.input_size_audio, gains
            )
        if video is not None:
            images = _squares(media.read_frames(video, windows), self.input_size)
            clips = [self._pixels([images[k] for k in window], rng) for window in windows]
            pixels = torch.stack(clips)
        target = _target(clip, self.task).repeat_interleave(self.num_samples, dim=0)
        return LabelledBatch(pixels, features, target, (clip.video,) * self.num_samples, ())

    def _window(self, total_frames: int, rng: np.random.Generator) -> np.ndarray:
        span = self.num_frames * self.sampling_rate
        end = int(rng.integers(span, total_frames)) if total_frames > span else None
        return film.train_frames(total_frames, end, self.num_frames, self.sampling_rate)

    def _pixels(self, images: list[Image.Image], rng: np.random.Generator) -> Tensor:
        return film.to_tensor(images) if self.transform is None else self.transform(images, rng)


class TestClips(Dataset[ViewBatch]):
    """The distinct views of each clip: windows in time, crops along the longer side.

    Args:
        clips, task, num_frames, sampling_rate, input_size, input_size_audio, modality: as in
            LabelledClips.
        num_segments: windows spread over the clip.
        num_crops: crops spread over a frame; square frames have one.
        centre: give one view instead, for validation: the window that training would draw from the
            middle, resized to a square.
        allow_skip: leave unreadable clips out instead of stopping.
        clip_timeout: seconds after which a clip counts as unreadable; 0: no limit.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    def __init__(
        self,
        clips: Sequence[AnyClip],
        *,
        task: str = "classification",
        num_segments: int = 2,
        num_crops: int = 2,
        centre: bool = False,
        num_frames: int = 16,
        sampling_rate: int = 4,
        input_size: int = 160,
        input_size_audio: tuple[int, int] = (256, 128),
        modality: str = "av",
        allow_skip: bool = False,
        clip_timeout: float = 0.0,
    ) -> None:
        self.deadline = Deadline(clip_timeout)
        self.clips, self.task, self.allow_skip = clips, task, allow_skip
        self.modality = _checked_modality(modality)
        self.num_segments, self.num_crops, self.centre = num_segments, num_crops, centre
        self.num_frames, self.sampling_rate = num_frames, sampling_rate
        self.input_size, self.input_size_audio = input_size, input_size_audio

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: ClipIndex) -> ViewBatch:
        """Return the views of a clip, none if it cannot be read and may be skipped."""
        clip = self.clips[item.index]
        target, index = _target(clip, self.task), torch.tensor([item.index])
        streams, skipped = read_or_skip(clip, self._read, self.allow_skip, self.deadline)
        if streams is None:
            video, audio = _nothing(self)
            return ViewBatch(video, audio, index[:0], index[:0], target[:0], (), skipped)
        video, audio = streams
        num_views = next(len(views) for views in streams if views is not None)
        return ViewBatch(
            video, audio, torch.zeros(num_views).long(), index, target, (clip.video,), ()
        )

    @staticmethod
    def collate(items: Sequence[ViewBatch]) -> ViewBatch:
        """Join items to one batch, with `view_clip` counted through it."""
        first_clips = itertools.accumulate((len(item.clip_index) for item in items), initial=0)
        view_clip = [
            item.view_clip + first for item, first in zip(items, first_clips, strict=False)
        ]
        return joined(items)._replace(view_clip=torch.cat(view_clip))

    def _read(self, clip: AnyClip) -> tuple[Tensor | None, Tensor | None]:
        video, sound, total_frames = open_wanted(clip, self.modality)
        sampling = (self.num_frames, self.sampling_rate)
        if self.centre:
            windows = [film.train_frames(total_frames, None, *sampling)]
        else:
            windows = film.test_windows(total_frames, self.num_segments, *sampling)
        pixels, features, num_crops = None, None, 1
        if video is not None:
            pixels, num_crops = self._views(media.read_frames(video, windows), windows)
        if sound is not None:
            span = self.num_frames * self.sampling_rate
            features = wav.window_features(
                sound, windows, span, total_frames, self.input_size_audio
            ).repeat_interleave(num_crops, dim=0)
        return pixels, features

    def _views(
        self, frames: dict[int, np.ndarray], windows: list[np.ndarray]
    ) -> tuple[Tensor, int]:
        side, (height, width) = self.input_size, next(iter(frames.values())).shape[:2]
        size, boxes = (side, side), [(0, 0, side, side)]
        if not self.centre:
            size, boxes = film.view_crops(width, height, side, self.num_crops)
        resized = film.resize_frames(list(frames.values()), size)
        place = {index: k for k, index in enumerate(frames)}
        views = []
        for window in windows:
            pixels = resized[:, [place[int(k)] for k in window]]
            views += [pixels[..., top:bottom, left:right] for left, top, right, bottom in boxes]
        return torch.stack(views), len(boxes)


def _squares(frames: dict[int, np.ndarray], side: int) -> dict[int, Image.Image]:
    """Resize frames to squares, as images: RandAugment is Pillow's."""
    pixels = film.resize_frames(list(frames.values()), (side, side)).permute(1, 2, 3, 0)
    images = map(Image.fromarray, pixels.contiguous().numpy())
    return dict(zip(frames, images, strict=True))


def _nothing(clips: LabelledClips | TestClips) -> tuple[Tensor | None, Tensor | None]:
    """Return what a skipped clip adds to a batch: no video and no audio, of the usual shapes."""
    video, audio = (
        (0, 3, clips.num_frames, *(clips.input_size,) * 2),
        (0, 1, *clips.input_size_audio),
    )
    return (
        torch.zeros(video, dtype=torch.uint8) if "v" in clips.modality else None,
        torch.zeros(audio) if "a" in clips.modality else None,
    )


def _target(clip: AnyClip, task: str) -> Tensor:
    """Return the label as (1,) int64 or (1, K) float32; without a label -1 or K = 0."""
    if task == "classification":
        return torch.tensor([-1 if clip.label is None else clip.label])
    return torch.tensor([() if clip.label is None else clip.label], dtype=torch.float32)


def _checked_modality(modality: str) -> str:
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}")
    return modality


def _parts(name: str, size: int, part: int) -> int:
    if size <= 0 or size % part:
        raise ValueError(f"{name} must be a multiple of {part}, got {size}")
    return size // part
