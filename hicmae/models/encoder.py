"""The modality encoders and the cross-modal fusion encoder (paper, section 3.2)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from hicmae.models.layers import (
    Block,
    CSBlock,
    LayerNorm,
    cut_patches,
    drop_path_rates,
    linear,
    sincos_positions,
    token_grid,
)

PATCH_SIZE = 16  # pixels, mel bins and spectrogram steps alike
FUSION_ORDERS = ("both", "video_first", "audio_first")


class EncoderOutput(NamedTuple):
    """What a modality encoder returns; every tensor went through the encoder's one final norm."""

    tokens: Tensor  # (B, V, D) after the last block
    levels: list[Tensor]  # the kept blocks, shallow first: (B, V, D) each, or (B, D) when pooled


class PatchEmbed(nn.Module):
    """Linear embedding of patches; the weights are stored as the convolution they equal.

    Args:
        size: clip size without batch and channels, (T, H, W) or (T, F).
        patch_size: length of a patch along each of these axes.
        channels: 3 for RGB frames, 1 for a spectrogram.
        embed_dim: D.
        name: "video" or "audio", for error messages.
    """

    def __init__(
        self,
        size: Sequence[int],
        patch_size: Sequence[int],
        channels: int,
        embed_dim: int,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.clip_shape = (channels, *size)
        self.patch_size = tuple(patch_size)
        self.grid = token_grid(size, patch_size, name)
        self.num_tokens = math.prod(self.grid)
        conv: Any = nn.Conv3d if len(self.grid) == 3 else nn.Conv2d
        self.proj: nn.Conv3d | nn.Conv2d = conv(
            channels, embed_dim, self.patch_size, stride=self.patch_size
        )

    def forward(self, clip: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed all patches, or only those that are wanted.

        Args:
            clip: (B, C, T, H, W) video or (B, 1, T, F) spectrogram.
            index: (B, V) positions of the wanted tokens; None embeds all N.

        Returns:
            (B, V, D).
        """
        if tuple(clip.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"{self.name} has shape {tuple(clip.shape)}, expected "
                f"(B, {', '.join(map(str, self.clip_shape))}); create the model with the "
                "num_frames, img_size or img_size_audio of the clips"
            )
        patches = cut_patches(clip, self.patch_size, index).flatten(2)  # (B, V, P)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ModalityEncoder(nn.Module):
    """A ViT without class token over the visible tokens of one modality.

    Args:
        size, patch_size, channels, name: see `PatchEmbed`.
        embed_dim: D.
        depth: number of blocks L.
        num_heads: attention heads of a block.
        drop_path: stochastic-depth rate of the last block.
        init_values: start of the layer-scale gammas, 0 leaves them out.
    """

    def __init__(
        self,
        size: Sequence[int],
        patch_size: Sequence[int],
        channels: int,
        name: str,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        init_values: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(size, patch_size, channels, embed_dim, name)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, drop_path=rate, init_values=init_values)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = LayerNorm(embed_dim)
        self.positions: Tensor
        positions = sincos_positions(self.patch_embed.num_tokens, embed_dim)
        self.register_buffer("positions", positions, persistent=False)

    def forward(
        self,
        clip: Tensor,
        visible: Tensor | None,
        level_blocks: Sequence[int],
        pool: bool = False,
    ) -> EncoderOutput:
        """Encode the visible tokens and keep the levels that others read.

        Args:
            clip: (B, C, T, H, W) or (B, 1, T, F), normalised.
            visible: (B, V) positions of the visible tokens; None encodes all N.
            level_blocks: 0-based indices of the blocks whose output is kept, ascending.
            pool: average each level over its tokens, to (B, D).
        """
        positions = self.positions if visible is None else self.positions[visible]
        tokens = self.patch_embed(clip, visible) + positions
        levels = []
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index == last or index in level_blocks:
                normed = self.norm(tokens)
                if index in level_blocks:
                    levels.append(normed.mean(dim=1) if pool else normed)
        return EncoderOutput(normed, levels)


def video_encoder(
    num_frames: int, img_size: Sequence[int], tubelet_size: int, **block_options: Any
) -> ModalityEncoder:
    """Build the encoder of (B, 3, T, H, W) clips in tubelets of tubelet_size x 16 x 16."""
    patch = (tubelet_size, PATCH_SIZE, PATCH_SIZE)
    return ModalityEncoder((num_frames, *img_size), patch, 3, "video", **block_options)


def audio_encoder(img_size_audio: Sequence[int], **block_options: Any) -> ModalityEncoder:
    """Build the encoder of (B, 1, T, F) spectrograms in patches of 16 x 16."""
    return ModalityEncoder(img_size_audio, (PATCH_SIZE, PATCH_SIZE), 1, "audio", **block_options)


class CrossModalFusion(nn.Module):
    """Layers in which the modalities read each other.

    Args:
        embed_dim: D.
        depth: number of layers.
        num_heads: attention heads of a block.
        drop_path: stochastic-depth rate of the last layer.
        init_values: start of the layer-scale gammas, 0 leaves them out.
        order: in each layer, "both": each stream reads the other's input to the layer;
            "video_first", "audio_first": that stream does, and the other one then reads its
            output. All three have the same parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        init_values: float = 0.0,
        order: str = "both",
    ) -> None:
        super().__init__()
        if order not in FUSION_ORDERS:
            raise ValueError(f"fusion_order is {order!r}, expected one of {FUSION_ORDERS}")
        self.order = order
        rates = drop_path_rates(drop_path, depth)
        options = {"init_values": init_values}
        self.blocks = nn.ModuleList(
            CSBlock(embed_dim, num_heads, drop_path=rate, **options) for rate in rates
        )
        self.blocks_audio = nn.ModuleList(
            CSBlock(embed_dim, num_heads, drop_path=rate, **options) for rate in rates
        )
        self.norm = LayerNorm(embed_dim)
        self.norm_audio = LayerNorm(embed_dim)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the streams.

        Args:
            video: (B, Nv, D).
            audio: (B, Na, D).

        Returns:
            The two streams, same shapes, after a norm each.
        """
        for block, block_audio in zip(self.blocks, self.blocks_audio, strict=True):
            if self.order == "both":
                video, audio = block(video, audio), block_audio(audio, video)
            elif self.order == "video_first":
                video = block(video, audio)
                audio = block_audio(audio, video)
            else:
                audio = block_audio(audio, video)
                video = block(video, audio)
        return self.norm(video), self.norm_audio(audio)


def pooled_unit(tokens: Tensor) -> Tensor:
    """Average (B, V, D) over tokens and scale to unit length, (B, D)."""
    return F.normalize(tokens.mean(dim=1), dim=-1)


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Read an image size given as one number or as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_depths(**depths: int) -> None:
    """Refuse a stack of fewer than one block.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, depth in depths.items():
        if depth < 1:
            raise ValueError(f"{name} must be at least 1, got {depth}")
