"""Transformer layers: attention, cross-attention, pre-norm blocks, fixed positions.

Parameter names are those of the released checkpoints (``q_bias``, ``v_bias``, ``qkv.weight``, ...).

Clips as grids of patches: cutting, gathering the wanted ones, and splitting tokens by a mask.

One set of functions serves video tubelets (three axes) and spectrogram patches (two axes).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from hicmae.models import cpu_gemm as onednn

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def sincos_positions(num_tokens: int, dim: int) -> Tensor:
    """Make the fixed sine-cosine position table of "Attention is all you need", section 3.5.

    Args:
        num_tokens: rows; all axes of the token grid are flattened to one position.
        dim: width; even columns hold sines, odd columns cosines.

    Returns:
        (num_tokens, dim) float32, computed in float64.
    """
    column = torch.arange(dim, dtype=torch.float64)
    rate = torch.pow(10000.0, -2.0 * torch.div(column, 2, rounding_mode="floor") / dim)
    angle = torch.arange(num_tokens, dtype=torch.float64)[:, None] * rate
    angle[:, 0::2] = angle[:, 0::2].sin()
    angle[:, 1::2] = angle[:, 1::2].cos()
    return angle.float()


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (..., in) to (..., out) by the fastest library for the device."""
    compute = onednn.linear if onednn.serves(values) else F.linear
    return compute(values, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` computed by `linear`."""

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(values, self.weight, self.bias)


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    batch, length, width = tokens.shape
    return tokens.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head scaled dot-product attention, (B, N, D) in and out; scale head_dim ** -0.5."""
    query, key, value = (_split_heads(tokens, num_heads) for tokens in (query, key, value))
    split = onednn.serves(query) and onednn.pays_for_attention(query, key)
    compute = onednn.attention if split else F.scaled_dot_product_attention
    return compute(query, key, value).transpose(1, 2).flatten(2)


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"embed dim {dim} is not divisible by {num_heads} attention heads")


class Attention(nn.Module):
    """Self-attention whose query and value have a bias and whose key has none."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Let every token read every token.

        Args:
            tokens: (B, N, D).

        Returns:
            (B, N, D).
        """
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        query, key, value = linear(tokens, self.qkv.weight, bias).chunk(3, dim=-1)
        return self.proj(_attend(query, key, value, self.num_heads))


class CrossAttention(nn.Module):
    """Attention whose queries come from one set of tokens, keys and values from another."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = Linear(dim, dim, bias=False)
        self.kv = Linear(dim, 2 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Let every token read every context token.

        Args:
            tokens: (B, N, D).
            context: (B, any length, D).

        Returns:
            (B, N, D).
        """
        query = linear(tokens, self.q.weight, self.q_bias)
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        key, value = linear(context, self.kv.weight, bias).chunk(2, dim=-1)
        return self.proj(_attend(query, key, value, self.num_heads))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform every token by itself, (B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


def _layer_scale(dim: int, init_values: float) -> nn.Parameter | None:
    return nn.Parameter(init_values * torch.ones(dim)) if init_values > 0 else None


def _residual(drop_path: nn.Module, branch: Tensor, gamma: Tensor | None) -> Tensor:
    return drop_path(branch if gamma is None else gamma * branch)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP.

    Args:
        dim: token width D.
        num_heads: attention heads; D must be divisible by it.
        mlp_ratio: hidden width of the MLP over D.
        drop_path: probability that a residual branch of a clip is dropped (stochastic depth).
        init_values: start value of the layer-scale gammas; 0 leaves them out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        init_values: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.gamma_1 = _layer_scale(dim, init_values)
        self.gamma_2 = _layer_scale(dim, init_values)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens (B, N, D) to (B, N, D)."""
        tokens = tokens + _residual(self.drop_path, self.attn(self.norm1(tokens)), self.gamma_1)
        return tokens + _residual(self.drop_path, self.mlp(self.norm2(tokens)), self.gamma_2)


class CSBlock(nn.Module):
    """Cross-attention to a context, then self-attention, then MLP, all pre-norm.

    It mixes the modalities in the fusion encoder and reads the skip connections in the decoders.
    The arguments are those of `Block`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        init_values: float = 0.0,
    ) -> None:
        super().__init__()
        self.cross_norm1 = LayerNorm(dim)
        self.cross_norm2 = LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.gamma_0 = _layer_scale(dim, init_values)
        self.gamma_1 = _layer_scale(dim, init_values)
        self.gamma_2 = _layer_scale(dim, init_values)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Transform tokens (B, N, D), reading context (B, any length, D), to (B, N, D)."""
        cross = self.cross_attn(self.cross_norm1(tokens), self.cross_norm2(context))
        tokens = tokens + _residual(self.drop_path, cross, self.gamma_0)
        tokens = tokens + _residual(self.drop_path, self.attn(self.norm1(tokens)), self.gamma_1)
        return tokens + _residual(self.drop_path, self.mlp(self.norm2(tokens)), self.gamma_2)


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Stochastic-depth rates that rise linearly from 0 to `drop_path` over `depth` blocks."""
    return torch.linspace(0, drop_path, depth, dtype=torch.float64).tolist()


def init_xavier(module: nn.Module) -> None:
    """Initialise linear layers Xavier-uniform with zero bias (for `Module.apply`)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_trunc_normal(module: nn.Module) -> None:
    """Initialise linear layers truncated normal, std 0.02, with zero bias (for `Module.apply`)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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
