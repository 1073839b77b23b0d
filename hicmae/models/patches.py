"""Clips as grids of patches: cutting, gathering the wanted ones, and splitting tokens by a mask.

One set of functions serves video tubelets (three axes) and spectrogram patches (two axes).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenSplit(NamedTuple):
    """Token positions of every clip, visible and masked, each in position order.

    Made from a bool mask on the CPU, it spares a GPU the synchronisation a bool mask costs.
    """

    visible: Tensor  # (B, V) int64
    masked: Tensor  # (B, M) int64

    def to(self, device: torch.device | str) -> "TokenSplit":
        """Move both index tensors; from pinned memory, so that a GPU's queue is not waited for."""
        on_gpu = torch.device(device).type == "cuda"
        pinned = (index.pin_memory() if on_gpu and not index.is_cuda else index for index in self)
        return TokenSplit(*(index.to(device, non_blocking=True) for index in pinned))


def split_tokens(mask: Tensor | TokenSplit, num_tokens: int, name: str) -> TokenSplit:
    """Turn a mask into the positions of the visible and of the masked tokens.

    Args:
        mask: (B, N) bool, True = masked; a `TokenSplit` is returned as it is.
        num_tokens: the N that is expected.
        name: how the mask is called in an error message.

    Raises:
        ValueError: wrong shape or type, rows that mask different numbers of tokens, or nothing or
            everything masked.
    """
    if isinstance(mask, TokenSplit):
        return mask
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != num_tokens:
        raise ValueError(
            f"{name} is {mask.dtype} {tuple(mask.shape)}, expected torch.bool (B, {num_tokens}); "
            "its length must be the number of tokens of the model's clip geometry"
        )
    counts = mask.sum(dim=1)
    num_masked = int(counts[0])
    if not 0 < num_masked < num_tokens:
        raise ValueError(
            f"{name} masks {num_masked} of {num_tokens} tokens; "
            "at least one must stay visible and one masked"
        )
    if bool((counts != num_masked).any()):
        raise ValueError(
            f"{name} masks {counts.tolist()} tokens a clip; "
            "all clips of a batch must mask equally many"
        )
    order = mask.byte().argsort(dim=1, stable=True)  # visible (0) first, each in position order
    return TokenSplit(order[:, : num_tokens - num_masked], order[:, num_tokens - num_masked :])


def token_grid(size: Sequence[int], patch_size: Sequence[int], name: str) -> tuple[int, ...]:
    """Count the patches along each axis, e.g. (16, 160, 160) by (2, 16, 16) -> (8, 10, 10).

    Raises:
        ValueError: an axis is not a positive multiple of the patch.
    """
    if any(s <= 0 or s % p for s, p in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"{name} size {tuple(size)} is not a positive multiple of the patch {tuple(patch_size)}"
        )
    return tuple(s // p for s, p in zip(size, patch_size, strict=True))


def cut_patches(clip: Tensor, patch_size: Sequence[int], index: Tensor | None = None) -> Tensor:
    """Cut a clip into non-overlapping patches, all of them or only those at `index`.

    Args:
        clip: (B, C, *size), e.g. (B, C, T, H, W) or (B, C, T, F).
        patch_size: one length an axis of `size`.
        index: (B, n) token positions, last axis fastest; None takes all N in order.

    Returns:
        (B, n, C, *patch_size); only the wanted patches are ever copied.
    """
    batch, channels, *size = clip.shape
    grid = token_grid(size, patch_size, "clip")
    axes = len(grid)
    split = [length for pair in zip(grid, patch_size, strict=True) for length in pair]
    clip = clip.reshape(batch, channels, *split)
    if index is None:
        order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
        return clip.permute(order).reshape(batch, math.prod(grid), channels, *patch_size)
    rows = torch.arange(batch, device=clip.device)[:, None]
    wanted: list[Tensor | slice] = [rows, slice(None)]
    for coordinate in torch.unravel_index(index, grid):
        wanted += [coordinate, slice(None)]
    return clip[tuple(wanted)]


def join_patches(patches: Tensor, grid: Sequence[int]) -> Tensor:
    """Put all patches of a clip back together; the inverse of `cut_patches` without an index.

    Args:
        patches: (B, N, C, *patch_size), N = product of `grid`.
        grid: patches along each axis.

    Returns:
        (B, C, *size).
    """
    batch, _, channels, *patch_size = patches.shape
    axes = len(grid)
    clip = patches.reshape(batch, *grid, channels, *patch_size)
    order = [0, 1 + axes]
    for axis in range(axes):
        order += [1 + axis, 2 + axes + axis]
    size = [g * p for g, p in zip(grid, patch_size, strict=True)]
    return clip.permute(order).reshape(batch, channels, *size)
