"""Transformer blocks, fixed positions, and clips as patches and tokens.

Parameter names are those of the released checkpoints (``q_bias``, ``v_bias``, ``qkv.weight``, ...).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PATCH_SIZE = 16  # pixels, mel bins and spectrogram steps alike
# A clip and the grid of its patches, by the number of axes: video (t, h, w), spectrogram (t, f).
CLIP = {3: "b c (t p) (h q) (w r)", 2: "b c (t p) (f q)"}
GRID = {3: "b t h w c p q r", 2: "b t f c p q"}

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


def sincos_positions(num_tokens: int, dim: int) -> Tensor:
    """Make the fixed position table of "Attention is all you need", section 3.5, in float64.

    Returns (num_tokens, dim) float32: all axes of the token grid are flattened to one position,
    even columns hold sines, odd columns cosines.
    """
    column = torch.arange(dim, dtype=torch.float64)
    rate = torch.pow(10000.0, -2.0 * torch.div(column, 2, rounding_mode="floor") / dim)
    angle = torch.arange(num_tokens, dtype=torch.float64)[:, None] * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class Attention(nn.Module):
    """Attention of tokens to each other or, `crossed`, to a context; keys have no bias."""

    def __init__(self, dim: int, num_heads: int, crossed: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        if crossed:
            self.q = nn.Linear(dim, dim, bias=False)
            self.kv = nn.Linear(dim, 2 * dim, bias=False)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Let every token (B, N, D) read them all, or the context (B, any length, D); (B, N, D)."""
        no_bias = torch.zeros_like(self.v_bias)
        if context is None:
            bias = torch.cat((self.q_bias, no_bias, self.v_bias))
            parts = F.linear(tokens, self.qkv.weight, bias).chunk(3, dim=-1)
        else:
            query = F.linear(tokens, self.q.weight, self.q_bias)
            bias = torch.cat((no_bias, self.v_bias))
            parts = (query, *F.linear(context, self.kv.weight, bias).chunk(2, dim=-1))
        heads = [rearrange(part, "b n (h d) -> b h n d", h=self.num_heads) for part in parts]
        read = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return self.proj(rearrange(read, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then MLP.

    Tokens are `dim` wide, which `num_heads` divides; in training a residual branch of a clip is
    dropped with probability `drop_path` and otherwise scaled (stochastic depth); `init_values`
    start the layer-scale gammas, 0 leaves them out.

    Blocks are our own, as timm brings torchvision and torch's compiler: seconds of every start.
    """

    reads_context = False
    gamma_0: nn.Parameter | None
    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(
        self, dim: int, num_heads: int, drop_path: float = 0.0, init_values: float = 0.0
    ) -> None:
        if dim % num_heads:
            raise ValueError(f"embed dim {dim} is not divisible by {num_heads} attention heads")
        super().__init__()
        if self.reads_context:  # first, as optimisers number the parameters of checkpoints
            self.cross_norm1 = LayerNorm(dim)
            self.cross_norm2 = LayerNorm(dim)
            self.cross_attn = Attention(dim, num_heads, crossed=True)
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        layers = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.GELU(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path = drop_path
        for number in range(0 if self.reads_context else 1, 3):
            gamma = nn.Parameter(init_values * torch.ones(dim)) if init_values > 0 else None
            self.register_parameter(f"gamma_{number}", gamma)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens (B, N, D)."""
        tokens = tokens + self._branch(self.attn(self.norm1(tokens)), self.gamma_1)
        return tokens + self._branch(self.mlp(self.norm2(tokens)), self.gamma_2)

    def _branch(self, branch: Tensor, gamma: Tensor | None) -> Tensor:
        branch = branch if gamma is None else gamma * branch
        if not self.training or not self.drop_path:
            return branch
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.drop_path)
        return branch * kept.div_(1 - self.drop_path)


class CSBlock(Block):
    """Cross-attention to a context, then self-attention, then MLP, all pre-norm.

    It mixes the modalities in the fusion encoder and reads the skip connections in the decoders.
    """

    reads_context = True

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        """Transform tokens (B, N, D), reading context (B, any length, D), to (B, N, D)."""
        read = self.cross_attn(self.cross_norm1(tokens), self.cross_norm2(context))
        return super().forward(tokens + self._branch(read, self.gamma_0))


def stack(
    kinds: Sequence[type[Block]], dim: int, drop_path: float = 0.0, **options: Any
) -> nn.ModuleList:
    """Make blocks of these kinds, see `Block`, whose rates rise linearly from 0 to `drop_path`."""
    rates = torch.linspace(0, drop_path, len(kinds), dtype=torch.float64, device="cpu").tolist()
    pairs = zip(kinds, rates, strict=True)
    return nn.ModuleList(kind(dim, drop_path=rate, **options) for kind, rate in pairs)


def check_sizes(**sizes: int) -> None:
    """Refuse a stack without a block, or a head without an output."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def pooled_unit(tokens: Tensor) -> Tensor:
    """Average (B, V, D) over tokens and scale to unit length, (B, D)."""
    return F.normalize(tokens.mean(dim=1), dim=-1)


def init_linears(module: nn.Module, fill: Callable[[Tensor], Any]) -> None:
    """Initialise the weights of all linear layers inside by `fill`, their biases with zeros."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            fill(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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


def split_tokens(
    mask: Tensor | TokenSplit, num_tokens: int | None, name: str, may_hide_none: bool = False
) -> TokenSplit:
    """Turn a mask, (B, N) bool and True = masked, into positions; a `TokenSplit` stays as it is.

    N must be `num_tokens` where that is given; messages call the mask by its name.

    Raises:
        ValueError: wrong shape or type, rows that mask different numbers of tokens, or nothing or
            everything masked (but nothing where it `may_hide_none`).
    """
    if isinstance(mask, TokenSplit):
        return mask
    num_tokens = mask.shape[-1] if num_tokens is None else num_tokens
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != num_tokens:
        raise ValueError(
            f"{name} is {mask.dtype} {tuple(mask.shape)}, expected torch.bool (B, {num_tokens}); "
            "its length must be the number of tokens of the model's clip geometry"
        )
    counts = mask.sum(dim=1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"{name} masks {counts} tokens, expected equally many of each clip")
    masked, least, most = counts[0], int(not may_hide_none), num_tokens - 1
    if not least <= masked <= most:
        raise ValueError(
            f"{name} masks {masked} of {num_tokens} tokens, expected {least} to {most}"
        )
    order = mask.byte().argsort(dim=1, stable=True)  # visible (0) first, each in position order
    return TokenSplit(*order.split((num_tokens - masked, masked), dim=1))


def token_grid(size: Sequence[int], patch_size: Sequence[int], name: str) -> tuple[int, ...]:
    """Count the patches along each axis, e.g. (16, 160, 160) by (2, 16, 16) -> (8, 10, 10)."""
    if any(s <= 0 or s % p for s, p in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"{name} size {tuple(size)} is not a positive multiple of the patch {tuple(patch_size)}"
        )
    return tuple(s // p for s, p in zip(size, patch_size, strict=True))


def cut_patches(clip: Tensor, patch_size: Sequence[int], index: Tensor | None = None) -> Tensor:
    """Cut a clip, (B, C, T, H, W) or (B, C, T, F), into non-overlapping patches.

    Returns (B, n, C, *patch_size), all N in order, last axis fastest, or those at the positions of
    the index (B, n); only the wanted patches are ever copied.
    """
    axes = len(patch_size)
    lengths = dict(zip("pqr", patch_size, strict=False))
    patches = rearrange(clip, f"{CLIP[axes]} -> {GRID[axes]}", **lengths)  # a view
    if index is None:
        return patches.flatten(1, axes)
    wanted: list[Tensor] = []
    for length in reversed(patches.shape[1 : 1 + axes]):  # plain numbers: no copy to a GPU
        wanted.insert(0, index % length)
        index = index // length
    wanted.insert(0, torch.arange(len(clip), device=clip.device)[:, None])
    return patches[tuple(wanted)]


def join_patches(patches: Tensor, grid: Sequence[int]) -> Tensor:
    """Put all patches of a clip, (B, N, C, *patch_size), back together on their grid."""
    return rearrange(patches.unflatten(1, grid), f"{GRID[len(grid)]} -> {CLIP[len(grid)]}")


class PatchEmbed(nn.Module):
    """Linear embedding of patches; the weights are stored as the convolution they equal.

    The size of a clip, without batch and channels, is (T, H, W) or (T, F), as is that of a patch;
    messages call the clip by its name.
    """

    def __init__(
        self, size: Sequence[int], patch_size: Sequence[int], channels: int, dim: int, name: str
    ) -> None:
        super().__init__()
        self.name = name
        self.clip_shape = (channels, *size)
        self.patch_size = tuple(patch_size)
        self.grid = token_grid(size, patch_size, name)
        self.num_tokens = math.prod(self.grid)
        conv: Any = nn.Conv3d if len(self.grid) == 3 else nn.Conv2d
        self.proj: nn.Conv3d | nn.Conv2d = conv(channels, dim, *[self.patch_size] * 2)

    def forward(self, clip: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed all patches of (B, C, *size), or those at the index (B, V), as (B, V, D)."""
        if tuple(clip.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"{self.name} has shape {tuple(clip.shape)}, expected (B, "
                f"{', '.join(map(str, self.clip_shape))}); create the model with the num_frames, "
                "img_size or img_size_audio of the clips"
            )
        patches = cut_patches(clip, self.patch_size, index).flatten(2)  # (B, V, P)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
