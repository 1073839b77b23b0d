"""Clips as tensors: for pre-training, for training with labels, and as views to validate and test.

An item of each data set is already a batch, of one clip: `num_samples` samples or several views of
it, none where it was skipped. `collate` joins items to a larger batch of the same type.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hicmae.data import audio as wav
from hicmae.data import batches
from hicmae.data import video as film
from hicmae.data.augment import ClipTransform
from hicmae.data.batches import ClipIndex, LabelledBatch, PretrainBatch, ViewBatch
from hicmae.data.clip_list import AnyClip, PackedClip, name_of
from hicmae.data.film import FRAME_RATE, open_video
from hicmae.data.loader import call_in_time, item_generator, read_or_replace
from hicmae.data.masking import random_mask, tube_mask
from hicmae.data.shards import open_packed
from hicmae.io import UnreadableClip

PATCH_SIZE = 16
Opened = tuple[film.Video | None, wav.WavFile | None, int]  # streams that are read, frame count


@dataclass(eq=False, repr=False)
class ClipDataset(Dataset):
    """What the data sets have in common: random windows of clips, drawn by (seed, epoch, index).

    A window has `num_frames` frames, on average `sampling_rate` apart, of `input_size` pixels a
    side, and a spectrogram of `input_size_audio` (T, F); a token is `tubelet_size` frames deep.
    `num_samples` windows are taken from each clip that is opened. `modality` is "av", or "a" / "v"
    to read one stream only; frames of an unread video are counted at 25 a second of the audio.
    `roll_mag_aug` varies the magnitude of the audio. A clip that takes more than `clip_timeout`
    seconds counts as unreadable; 0: no limit.
    """

    clips: Sequence[AnyClip]
    _: KW_ONLY
    num_frames: int = 16
    sampling_rate: int = 4
    input_size: int = 160
    input_size_audio: tuple[int, int] = (256, 128)
    tubelet_size: int = 2
    task: str = "classification"
    modality: str = "av"
    num_samples: int = 1
    roll_mag_aug: bool = False
    seed: int = 0
    clip_timeout: float = 0.0

    def __post_init__(self) -> None:
        """Name what windows and frames need; `span` is the frames that a window covers."""
        self.sampling = self.num_frames, self.sampling_rate
        self.span = self.num_frames * self.sampling_rate
        self.size = self.input_size, self.input_size

    def __getitem__(self, item: ClipIndex) -> Any:
        """Return `num_samples` samples of the clip, or of another one if it cannot be read."""
        rng = item_generator(self.seed, item)
        batch, skipped = read_or_replace(self.clips, item.index, self.read, rng, self.clip_timeout)
        return batch._replace(skipped=skipped)

    def read(self, clip: AnyClip, rng: np.random.Generator) -> Any:
        """Return the batch of one clip, or raise UnreadableClip."""
        raise NotImplementedError

    collate = staticmethod(batches.joined)

    def __len__(self) -> int:
        return len(self.clips)

    def open(self, clip: AnyClip) -> Opened:
        """Open the streams that the modality reads; return them and the number of frames."""
        video: film.Video | None
        sound: wav.WavFile | None
        if isinstance(clip, PackedClip):
            video, sound = open_packed(clip)
        else:
            sound = wav.WavFile(clip.audio) if "a" in self.modality else None
            video = open_video(clip.video) if "v" in self.modality else None
        if "v" not in self.modality:
            return None, sound, max(round(len(sound or ()) * FRAME_RATE / wav.SAMPLE_RATE), 1)
        return video, sound if "a" in self.modality else None, len(video or ())

    def gains(self, rng: np.random.Generator) -> list[float]:
        """Draw the magnitude of the sound of each sample: beta(10, 10) + 0.5, around 1."""
        count = range(self.num_samples)
        return [float(rng.beta(10, 10) + 0.5) if self.roll_mag_aug else 1.0 for _ in count]

    def streams(
        self,
        opened: Opened,
        windows: Sequence[np.ndarray],
        gains: Sequence[float],
        augment: Callable[[Sequence[Image.Image]], Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return pixels (B, 3, T, H, W) and filter banks (B, 1, T, F) of a labelled clip's windows.

        Frames are squashed to squares. The sound of a window begins with its first frame and is as
        long as a span, at most to the last frame. Frames of a film lie at their times, those of a
        folder evenly over the wav. None: the stream is not read.
        """
        video, sound, total = opened
        pixels = features = None
        if sound is not None:
            spans = []
            for first in (int(window[0]) for window in windows):
                if video is not None and video.frame_times is not None:
                    spans.append(_samples(video, first, min(first + self.span, total) - 1))
                else:
                    last = min(first + self.span, total - 1)
                    spans.append(wav.frames_to_samples(first, last, total, len(sound)))
            features = wav.span_features(sound, spans, gains, self.input_size_audio)
        if video is not None:
            frames = film.read_frames(video, windows)
            squares = film.resize_frames([*frames.values()], self.size)
            places = [np.searchsorted([*frames], window) for window in windows]
            if augment is None:
                pixels = torch.stack([film.to_tensor(squares[place]) for place in places])
            else:
                images = [Image.fromarray(square) for square in squares]
                pixels = torch.stack([augment([images[k] for k in place]) for place in places])
        return pixels, features

    def target(self, clip: AnyClip) -> Tensor:
        """Return the label as (1,) int64 or (1, K) float32; without a label -1 or K = 0."""
        if self.task == "classification":
            return torch.tensor([-1 if clip.label is None else clip.label])
        return torch.tensor([() if clip.label is None else clip.label], dtype=torch.float32)


@dataclass(eq=False, repr=False, kw_only=True)
class PretrainClips(ClipDataset):
    """Random windows of unlabelled clips with the masks of their tokens.

    With a `contrast_mask_ratio`, 0 included, a second pair of masks hides that share of both
    streams. `source_crop` is what `decide_source_crop` says.
    """

    mask_ratio: float = 0.9
    mask_ratio_audio: float = 0.8
    source_crop: str = "none"
    contrast_mask_ratio: float | None = None

    def __post_init__(self) -> None:
        """Count the tokens, as (time, height, width) and of the audio."""
        super().__post_init__()
        side, (steps, bins) = self.input_size // PATCH_SIZE, self.input_size_audio
        self.grid = self.num_frames // self.tubelet_size, side, side
        self.num_audio_tokens = (steps // PATCH_SIZE) * (bins // PATCH_SIZE)

    def read(self, clip: AnyClip, rng: np.random.Generator) -> PretrainBatch:
        """Return `num_samples` samples of a clip."""
        video, sound, total = self.open(clip)
        assert video is not None and sound is not None  # both are read in pre-training
        free = total - self.span
        starts = [int(rng.integers(free + 1)) if free > 0 else 0 for _ in range(self.num_samples)]
        windows = [film.pretrain_frames(total, start, *self.sampling) for start in starts]
        gains = self.gains(rng)
        # From the beginning of a window to the end of the frame after it.
        spans = [_samples(video, start, min(start + self.span, total - 1)) for start in starts]
        audio = wav.span_features(sound, spans, gains, self.input_size_audio)
        frames = film.read_frames(video, windows)
        masks = self.masks(self.mask_ratio, self.mask_ratio_audio, rng)
        shape = (self.num_samples, 3, self.num_frames, *self.size)
        pixels = torch.empty(shape, dtype=torch.uint8)
        for sample, window in zip(pixels, windows, strict=True):
            height, width = frames[int(window[0])].shape[:2]
            region = film.source_box(self.source_crop, self.size[0], width, height)
            box = film.draw_crop(region, rng)
            resized = film.resize_frames([frames[k] for k in window], self.size, box)
            film.to_tensor(resized, sample)
        ratio = self.contrast_mask_ratio
        light = [] if ratio is None else self.masks(ratio, ratio, rng)
        names = (name_of(clip),) * self.num_samples
        return PretrainBatch(pixels, masks[0], audio, masks[1], names, (), *light)

    def masks(self, ratio: float, ratio_audio: float, rng: np.random.Generator) -> list[Tensor]:
        """Draw (num_samples, N) masks of the video's tokens and of the audio's."""
        count = range(self.num_samples)
        video = [tube_mask(self.grid, ratio, rng) for _ in count]
        audio = [random_mask(self.num_audio_tokens, ratio_audio, rng) for _ in count]
        return [torch.from_numpy(np.stack(masks)) for masks in (video, audio)]


@dataclass(eq=False, repr=False, kw_only=True)
class LabelledClips(ClipDataset):
    """Random windows of labelled clips, augmented, for training."""

    transform: ClipTransform | None = None

    def read(self, clip: AnyClip, rng: np.random.Generator) -> LabelledBatch:
        """Return `num_samples` samples of a clip."""
        opened = self.open(clip)
        _, sound, total = opened
        windows = []
        for _ in range(self.num_samples):
            end = int(rng.integers(self.span, total)) if total > self.span else None
            windows.append(film.train_frames(total, end, *self.sampling))
        gains = [] if sound is None else self.gains(rng)
        augment = None if self.transform is None else partial(self.transform, rng=rng)
        pixels, features = self.streams(opened, windows, gains, augment)
        target = self.target(clip).repeat_interleave(self.num_samples, dim=0)
        return LabelledBatch(pixels, features, target, (name_of(clip),) * self.num_samples, ())


@dataclass(eq=False, repr=False, kw_only=True)
class TestClips(ClipDataset):
    """The distinct views of each clip; nothing is drawn here.

    They are `num_segments` windows spread over the clip; `centre` gives one view instead, for
    validation: the window that training would draw from the middle. Frames are squashed to a
    square, as in training. `allow_skip` leaves unreadable clips out instead of stopping.
    """

    __test__: ClassVar[bool] = False  # not a test, whatever pytest makes of its name

    num_segments: int = 2
    centre: bool = False
    allow_skip: bool = False

    def __getitem__(self, item: ClipIndex) -> ViewBatch:
        """Return the views of a clip, none if it cannot be read and may be skipped."""
        clip, index = self.clips[item.index], torch.tensor([item.index])
        name, target = name_of(clip), self.target(clip)
        try:
            streams = call_in_time(self.clip_timeout, name, self._streams, clip)
        except UnreadableClip as error:
            if not self.allow_skip:
                advice = "mend it or leave such clips out with --skip_bad_test_clips"
                text = f"evaluation clip '{name}' cannot be read: {error}; {advice}"
                raise RuntimeError(text) from error
            skipped, nothing = (batches.SkippedClip(name, str(error)),), index[:0]
            return ViewBatch(None, None, nothing, nothing, target[:0], (), skipped)
        views = torch.zeros(next(len(stream) for stream in streams if stream is not None)).long()
        return ViewBatch(*streams, views, index, target, (name,), ())

    @staticmethod
    def collate(items: Sequence[Any]) -> Any:
        """Join items to one batch, with `view_clip` counted through it."""
        firsts = itertools.accumulate((len(item.clip_index) for item in items), initial=0)
        counted = zip(items, firsts, strict=False)
        return batches.joined([item._replace(view_clip=item.view_clip + k) for item, k in counted])

    def _streams(self, clip: AnyClip) -> tuple[Tensor | None, Tensor | None]:
        opened = self.open(clip)
        _, _, total = opened
        if self.centre:
            windows = [film.train_frames(total, None, *self.sampling)]
        else:
            windows = film.test_windows(total, self.num_segments, *self.sampling)
        return self.streams(opened, windows, [1.0] * len(windows))


def _samples(video: film.Video, first: int, last: int) -> tuple[int, int]:
    """Return the samples from the beginning of frame `first` to the end of frame `last`."""
    begin, end = video.times(first, last)
    return int(begin * wav.SAMPLE_RATE), int(end * wav.SAMPLE_RATE)
