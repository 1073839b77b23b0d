"""The light decoder: rebuilds masked patches, reading encoder levels through skip connections.

The pre-training model and its sizes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.models import register_model
from torch import Tensor, nn

from hicmae.models.encoder import (
    CrossModalFusion,
    ModalityEncoder,
    as_pair,
    audio_encoder,
    check_depths,
    pooled_unit,
    video_encoder,
)
from hicmae.models.layers import (
    Block,
    CSBlock,
    LayerNorm,
    Linear,
    TokenSplit,
    drop_path_rates,
    init_xavier,
    sincos_positions,
    split_tokens,
)
from hicmae.models.registry import model_options


class SkipDecoder(nn.Module):
    """Block 0 sees the fused tokens only; block i >= 1 also reads encoder level number -i.

    So the deepest kept level enters block 1 and the shallowest the last one (paper, section 3.3).
    Without skip connections every block is like block 0.

    Args:
        num_tokens: N of the whole clip, for the position table.
        embed_dim: decoder width.
        depth: number of blocks, one more than the number of skip connections if there are any.
        num_heads: attention heads of a block.
        patch_values: P, values to predict for one masked patch.
        drop_path: stochastic-depth rate of the last block.
        init_values: start of the layer-scale gammas, 0 leaves them out.
        skip_connections: whether blocks after the first read encoder levels.
    """

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_values: int,
        drop_path: float = 0.0,
        init_values: float = 0.0,
        skip_connections: bool = True,
    ) -> None:
        super().__init__()
        self.skip_connections = skip_connections
        self.blocks = nn.ModuleList(
            (CSBlock if index and skip_connections else Block)(
                embed_dim, num_heads, drop_path=rate, init_values=init_values
            )
            for index, rate in enumerate(drop_path_rates(drop_path, depth))
        )
        self.norm = LayerNorm(embed_dim)
        self.head = Linear(embed_dim, patch_values)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(num_tokens, embed_dim), persistent=False)

    def forward(self, tokens: Tensor, skips: Sequence[Tensor], num_masked: int) -> Tensor:
        """Predict the masked patches.

        Args:
            tokens: (B, V + M, decoder width), the M mask tokens last, positions added.
            skips: (B, V, decoder width) each, shallow first, positions added; without skip
                connections none of them is read.
            num_masked: M.

        Returns:
            (B, M, P), in the order of the mask tokens.
        """
        tokens = self.blocks[0](tokens)
        if self.skip_connections:
            for block, skip in zip(self.blocks[1:], reversed(skips), strict=True):
                tokens = block(tokens, skip)
        else:
            for block in self.blocks[1:]:
                tokens = block(tokens)
        return self.head(self.norm(tokens[:, -num_masked:]))


class HiCMAEOutput(NamedTuple):
    """Predictions of the masked patches and the pooled features that are contrasted."""

    video: Tensor  # (B, M, P), P = tubelet_size * 16 * 16 * 3, (frame, y, x, channel) order
    audio: Tensor  # (B, M, P), P = 16 * 16, (time, frequency) order
    video_levels: list[Tensor]  # (B, D) each, unit length, shallow first
    audio_levels: list[Tensor]


class HiCMAE(nn.Module):
    """Hierarchical contrastive masked autoencoder (arXiv 2401.05698, section 3).

    Args:
        embed_dim: encoder width D.
        num_heads: attention heads of encoder and fusion blocks.
        decoder_embed_dim: decoder width.
        decoder_num_heads: attention heads of decoder blocks.
        encoder_depth: blocks of the video encoder.
        encoder_depth_audio: blocks of the audio encoder.
        decoder_depth: blocks of the video decoder, one more than the kept levels (any number
            without skip connections).
        decoder_depth_audio: blocks of the audio decoder, likewise.
        encoder_fusion_depth: layers of the fusion encoder.
        return_intermediate_features: 0-based encoder blocks whose output feeds the decoders and
            the contrast, ascending.
        skip_connections: whether the decoders read these levels; without them, their blocks are
            of plain self-attention and see fused tokens only.
        fusion_order: see `CrossModalFusion`.
        drop_path_rate: stochastic depth of the last block of every stack.
        init_values: start of the layer-scale gammas, 0 leaves them out.
        num_frames: T of a video clip.
        img_size: H and W of a video clip, one number or a pair.
        img_size_audio: (T, F) of a spectrogram.
        tubelet_size: frames of one video token.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        num_heads: int = 8,
        decoder_embed_dim: int = 384,
        decoder_num_heads: int = 6,
        encoder_depth: int = 10,
        encoder_depth_audio: int = 10,
        decoder_depth: int = 4,
        decoder_depth_audio: int = 4,
        encoder_fusion_depth: int = 2,
        return_intermediate_features: Sequence[int] = (3, 6, 9),
        skip_connections: bool = True,
        fusion_order: str = "both",
        drop_path_rate: float = 0.0,
        init_values: float = 0.0,
        num_frames: int = 16,
        img_size: int | Sequence[int] = 160,
        img_size_audio: Sequence[int] = (256, 128),
        tubelet_size: int = 2,
    ) -> None:
        super().__init__()
        check_depths(
            encoder_depth=encoder_depth,
            encoder_depth_audio=encoder_depth_audio,
            encoder_fusion_depth=encoder_fusion_depth,
        )
        self.level_blocks = tuple(return_intermediate_features)
        _check_levels(self.level_blocks, encoder_depth, encoder_depth_audio)
        if skip_connections:
            _check_skips(
                self.level_blocks,
                decoder_depth=decoder_depth,
                decoder_depth_audio=decoder_depth_audio,
            )
        else:
            check_depths(decoder_depth=decoder_depth, decoder_depth_audio=decoder_depth_audio)

        stack: dict[str, Any] = {"drop_path": drop_path_rate, "init_values": init_values}
        encoder = {"embed_dim": embed_dim, "num_heads": num_heads, **stack}
        self.encoder = video_encoder(
            num_frames, as_pair(img_size), tubelet_size, depth=encoder_depth, **encoder
        )
        self.encoder_audio = audio_encoder(img_size_audio, depth=encoder_depth_audio, **encoder)
        self.encoder_fusion = CrossModalFusion(
            depth=encoder_fusion_depth, order=fusion_order, **encoder
        )

        stack["skip_connections"] = skip_connections
        decoder = {"embed_dim": decoder_embed_dim, "num_heads": decoder_num_heads, **stack}
        self.decoder = _decoder_of(self.encoder, depth=decoder_depth, **decoder)
        self.decoder_audio = _decoder_of(self.encoder_audio, depth=decoder_depth_audio, **decoder)
        self.encoder_to_decoder = Linear(embed_dim, decoder_embed_dim, bias=False)
        self.encoder_to_decoder_audio = Linear(embed_dim, decoder_embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.mask_token_audio = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self._init_weights()

    def _init_weights(self) -> None:
        stacks = (self.encoder, self.encoder_audio, self.encoder_fusion)
        for stack in (*stacks, self.decoder, self.decoder_audio):
            stack.apply(init_xavier)
        for token in (self.mask_token, self.mask_token_audio):
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of two and more dimensions that weight decay must not touch."""
        return {"mask_token", "mask_token_audio"}

    def forward(
        self,
        video: Tensor,
        video_mask: Tensor | TokenSplit,
        audio: Tensor,
        audio_mask: Tensor | TokenSplit,
    ) -> HiCMAEOutput:
        """Encode what is visible and predict what is masked.

        Args:
            video: (B, 3, T, H, W), ImageNet-normalised.
            video_mask: (B, Nv) bool, True = masked, equally many in every row.
            audio: (B, 1, T, F), normalised log-mel spectrogram.
            audio_mask: (B, Na) bool.

        Raises:
            ValueError: a clip or mask that does not fit the model's geometry.
        """
        split = split_tokens(video_mask, self.encoder.patch_embed.num_tokens, "video_mask")
        split_audio = split_tokens(
            audio_mask, self.encoder_audio.patch_embed.num_tokens, "audio_mask"
        )
        video_tokens, video_levels = self.encoder(video, split.visible, self.level_blocks)
        audio_tokens, audio_levels = self.encoder_audio(
            audio, split_audio.visible, self.level_blocks
        )
        fused_video, fused_audio = self.encoder_fusion(video_tokens, audio_tokens)
        return HiCMAEOutput(
            video=_rebuild(
                self.decoder,
                self.encoder_to_decoder,
                self.mask_token,
                fused_video,
                video_levels,
                split,
            ),
            audio=_rebuild(
                self.decoder_audio,
                self.encoder_to_decoder_audio,
                self.mask_token_audio,
                fused_audio,
                audio_levels,
                split_audio,
            ),
            video_levels=[pooled_unit(level) for level in video_levels],
            audio_levels=[pooled_unit(level) for level in audio_levels],
        )


def _check_levels(levels: tuple[int, ...], depth: int, depth_audio: int) -> None:
    shallowest = min(depth, depth_audio)
    ascending = all(a < b for a, b in zip(levels, levels[1:], strict=False))
    if not ascending or any(not 0 <= level < shallowest for level in levels):
        raise ValueError(
            f"return_intermediate_features is {levels}, expected ascending block indices from 0 to "
            f"{shallowest - 1} (encoder_depth {depth}, encoder_depth_audio {depth_audio})"
        )


def _check_skips(levels: tuple[int, ...], **depths: int) -> None:
    for name, depth in depths.items():
        if depth != len(levels) + 1:
            raise ValueError(
                f"{name} is {depth}, expected {len(levels) + 1}: "
                f"one block and one more for each kept level {levels}"
            )


def _decoder_of(encoder: ModalityEncoder, **options: Any) -> SkipDecoder:
    embed = encoder.patch_embed
    patch_values = embed.proj.weight[0].numel()
    return SkipDecoder(num_tokens=embed.num_tokens, patch_values=patch_values, **options)


def _rebuild(
    decoder: SkipDecoder,
    project: nn.Linear,
    mask_token: Tensor,
    fused: Tensor,
    levels: list[Tensor],
    split: TokenSplit,
) -> Tensor:
    """Predict one modality's masked patches (B, M, P) from fused tokens and levels (B, V, D)."""
    visible_positions = decoder.positions[split.visible]
    masked = mask_token + decoder.positions[split.masked]
    visible = project(fused) + visible_positions
    read = levels if decoder.skip_connections else ()
    skips = [project(level) + visible_positions for level in read]
    tokens = torch.cat((visible, masked.to(visible.dtype)), dim=1)
    return decoder(tokens, skips, num_masked=split.masked.shape[1])


@register_model
def pretrain_hicmae_dim128_patch16_160_a256(pretrained: bool = False, **kwargs: object) -> HiCMAE:
    """Build a very small model for demonstrations and tests."""
    return HiCMAE(128, 4, 64, 2, **model_options(pretrained, kwargs))


@register_model
def pretrain_hicmae_dim256_patch16_160_a256(pretrained: bool = False, **kwargs: object) -> HiCMAE:
    """Build HiCMAE-T (the decoder width, 128, is this project's choice)."""
    return HiCMAE(256, 4, 128, 2, **model_options(pretrained, kwargs))


@register_model
def pretrain_hicmae_dim384_patch16_160_a256(pretrained: bool = False, **kwargs: object) -> HiCMAE:
    """Build HiCMAE-S."""
    return HiCMAE(384, 6, 192, 3, **model_options(pretrained, kwargs))


@register_model
def pretrain_hicmae_dim512_patch16_160_a256(pretrained: bool = False, **kwargs: object) -> HiCMAE:
    """Build HiCMAE-B."""
    return HiCMAE(512, 8, 384, 6, **model_options(pretrained, kwargs))
