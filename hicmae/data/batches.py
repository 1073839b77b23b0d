"""What data sets give and models take: batches of tensors, each with the names of its clips."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hicmae.data.video import normalise


class ClipIndex(NamedTuple):
    """What a sampler yields: a place in the list, and the epoch, as draws depend on both.

    `again` counts earlier draws of the clip in the epoch, of a balanced sampler.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides the method of tuples, which nobody calls
    again: int = 0


class SkippedClip(NamedTuple):
    """A clip that could not be read: its video's name and the reason on one line."""

    video: str
    reason: str


class PretrainBatch(NamedTuple):
    """Masked clips.

    video (B, 3, T, H, W) uint8, after `to` float32 and normalised; audio (B, 1, T, F) float32;
    masks (B, N) bool, True where masked; names of the B videos; skipped clips; masks of video and
    audio for the contrast, where it has its own.
    """

    video: Tensor
    video_mask: Tensor
    audio: Tensor
    audio_mask: Tensor
    names: tuple[str, ...]
    skipped: tuple[SkippedClip, ...]
    contrast_mask: Tensor | None = None
    contrast_mask_audio: Tensor | None = None

    def to(self, device: torch.device | str) -> "PretrainBatch":
        """Move the clips, and normalise the pixels there; see `_moved`."""
        return _moved(self, device)


class LabelledBatch(NamedTuple):
    """Clips with labels.

    video (B, 3, T, H, W) or None, uint8 where nothing was augmented, after `to` always float32 and
    normalised; audio (B, 1, T, F) float32 or None; target (B,) int64, -1 without a label, or (B, K)
    float32; names of the B videos; skipped clips.
    """

    video: Tensor | None
    audio: Tensor | None
    target: Tensor
    names: tuple[str, ...]
    skipped: tuple[SkippedClip, ...]

    def to(self, device: torch.device | str) -> "LabelledBatch":
        """Move the tensors, and normalise the pixels there."""
        return _moved(self, device)


class ViewBatch(NamedTuple):
    """All views of B clips, V in total; B is 0 where all clips were skipped.

    video (V, 3, T, H, W) or None, uint8, after `to` float32 and normalised; audio (V, 1, T, F)
    float32 or None; view_clip (V,) int64, position in the batch of the clip a view shows;
    clip_index (B,) int64, position in the list; target, names, skipped as in LabelledBatch.
    """

    video: Tensor | None
    audio: Tensor | None
    view_clip: Tensor
    clip_index: Tensor
    target: Tensor
    names: tuple[str, ...]
    skipped: tuple[SkippedClip, ...]

    def to(self, device: torch.device | str) -> "ViewBatch":
        """Move the tensors, and normalise the pixels there."""
        return _moved(self, device)


Batch = TypeVar("Batch", PretrainBatch, LabelledBatch, ViewBatch)


def joined(batches: Sequence[Batch]) -> Batch:
    """Join batches along their first axis: tensors and tuples are concatenated, None is nothing."""
    columns: list[Any] = []
    for column in zip(*batches, strict=True):
        values = [value for value in column if value is not None]
        if values and isinstance(values[0], Tensor):
            columns.append(torch.cat(values))
        else:
            columns.append(tuple(itertools.chain(*values)) if values else None)
    return type(batches[0])(*columns)


def _moved(batch: Batch, device: torch.device | str) -> Batch:
    """Move all tensors but masks, and normalise uint8 pixels on the device.

    Reading a mask on the host, as splitting tokens by it does, then never waits for a GPU.
    """

    def move(value: Any) -> Any:
        moves = isinstance(value, Tensor) and value.dtype != torch.bool
        return value.to(device, non_blocking=True) if moves else value

    moved = type(batch)(*map(move, batch))
    if moved.video is None or moved.video.is_floating_point():
        return moved
    return moved._replace(video=normalise(moved.video))
