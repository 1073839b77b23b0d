"""The modality encoders and the cross-modal fusion encoder (paper, section 3.2)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from hicmae.models.cpu_gemm import install
from hicmae.models.layers import (
    PATCH_SIZE,
    Block,
    CSBlock,
    LayerNorm,
    PatchEmbed,
    drop_path_rates,
    sincos_positions,
)

FUSION_ORDERS = ("both", "video_first", "audio_first")


class EncoderOutput(NamedTuple):
    """What a modality encoder returns; every tensor went through the encoder's one final norm."""

    tokens: Tensor  # (B, V, D) after the last block
    levels: list[Tensor]  # the kept blocks, shallow first: (B, V, D) each, or (B, D) when pooled


class ModalityEncoder(nn.Module):
    """A ViT without class token over the visible tokens of one modality.

    Args:
        patch_embed: of the modality.
        depth: number of blocks L.
        num_heads: attention heads of a block.
        drop_path: stochastic-depth rate of the last block.
        init_values: start of the layer-scale gammas, 0 leaves them out.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        init_values: float = 0.0,
    ) -> None:
        super().__init__()
        embed_dim = patch_embed.proj.out_channels
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, rate, init_values)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = LayerNorm(embed_dim)
        self.positions: Tensor
        positions = sincos_positions(patch_embed.num_tokens, embed_dim)
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
    num_frames: int,
    img_size: int | Sequence[int],
    tubelet_size: int,
    embed_dim: int,
    **options: Any,
) -> ModalityEncoder:
    """Build the encoder of (B, 3, T, H, W) clips in tubelets of tubelet_size x 16 x 16."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    size, patch_size = (num_frames, height, width), (tubelet_size, PATCH_SIZE, PATCH_SIZE)
    return ModalityEncoder(PatchEmbed(size, patch_size, 3, embed_dim, "video"), **options)


def audio_encoder(img_size_audio: Sequence[int], embed_dim: int, **options: Any) -> ModalityEncoder:
    """Build the encoder of (B, 1, T, F) spectrograms in patches of 16 x 16."""
    patch_size = (PATCH_SIZE, PATCH_SIZE)
    return ModalityEncoder(PatchEmbed(img_size_audio, patch_size, 1, embed_dim, "audio"), **options)


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
        self.blocks, self.blocks_audio = (
            nn.ModuleList(
                CSBlock(embed_dim, num_heads, rate, init_values)
                for rate in drop_path_rates(drop_path, depth)
            )
            for _ in range(2)
        )
        self.norm = LayerNorm(embed_dim)
        self.norm_audio = LayerNorm(embed_dim)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the streams (B, Nv, D) and (B, Na, D); same shapes, after a norm each."""
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


def check_sizes(**sizes: int) -> None:
    """Refuse a stack without a block, or a head without an output.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


Model = TypeVar("Model", bound=nn.Module)


def build(
    model: type[Model],
    *sizes: int,
    pretrained: bool = False,
    cpu_gemm: str = "auto",
    **options: Any,
) -> Model:
    """Build a registered model from its sizes and what `timm.create_model` passes on.

    Args:
        model: the class.
        sizes: its first arguments.
        pretrained: must be False.
        cpu_gemm: library of float32 products on a CPU, see `install`.
        options: the class's other arguments, and what timm adds for its own models.

    Raises:
        ValueError: weights were asked for; none are hosted.
    """
    if pretrained:
        raise ValueError(
            "pretrained=True: no weights are hosted for HiCMAE; create the model without it and "
            "load a file with hicmae.training.transfer.load_pretrained (scripts: --finetune)"
        )
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return install(model(*sizes, **options), cpu_gemm)
