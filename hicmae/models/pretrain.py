"""The pre-training model, its light decoders with skip connections, and its sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hicmae.models import layers
from hicmae.models.encoder import CrossModalFusion, HubModel, audio_encoder, register, video_encoder
from hicmae.models.layers import TokenSplit, pooled_unit, split_tokens


class SkipDecoder(nn.Module):
    """Block 0 sees the fused tokens only; block i >= 1 also reads encoder level number -i.

    So the deepest kept level enters block 1 and the shallowest the last one (paper, section 3.3).
    Without skip connections every block is like block 0. The embedding of the same modality says
    how many tokens there are and what a patch holds; the options are those of `stack`.
    """

    def __init__(
        self, patches: layers.PatchEmbed, embed_dim: int, depth: int, skips: bool, **options: Any
    ) -> None:
        super().__init__()
        self.skip_connections = skips
        later = layers.CSBlock if skips else layers.Block
        self.blocks = layers.stack([layers.Block, *[later] * (depth - 1)], embed_dim, **options)
        self.norm = layers.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, patches.proj.weight[0].numel())
        positions = layers.sincos_positions(patches.num_tokens, embed_dim)
        self.positions = nn.Buffer(positions, persistent=False)

    def forward(
        self,
        fused: Tensor,
        levels: Sequence[Tensor],
        split: TokenSplit,
        project: nn.Module,
        mask_token: Tensor,
    ) -> Tensor:
        """Predict the masked patches of one modality, (B, M, P) in position order.

        The visible tokens after the fusion encoder and the levels, shallow first, are (B, V, D)
        each, which `project` maps to the decoder's width; `mask_token`, (1, 1, width), stands for
        each of the M masked tokens.
        """
        positions = self.positions[split.visible]
        visible = project(fused) + positions
        masked = mask_token + self.positions[split.masked]
        tokens = torch.cat((visible, masked.to(visible.dtype)), dim=1)
        tokens = self.blocks[0](tokens)
        skips: list[Any] = [()] * (len(self.blocks) - 1)
        if self.skip_connections:
            skips = [(project(level) + positions,) for level in levels]
        for block, skip in zip(self.blocks[1:], reversed(skips), strict=True):
            tokens = block(tokens, *skip)
        return self.head(self.norm(tokens[:, -masked.shape[1] :]))


class HiCMAEOutput(NamedTuple):
    """Predictions of the masked patches and the pooled features that are contrasted."""

    video: Tensor  # (B, M, P), P = tubelet_size * 16 * 16 * 3, (frame, y, x, channel) order
    audio: Tensor  # (B, M, P), P = 16 * 16, (time, frequency) order
    video_levels: list[Tensor]  # (B, D) each, unit length, shallow first
    audio_levels: list[Tensor]


class HiCMAE(HubModel):
    """Hierarchical contrastive masked autoencoder (arXiv 2401.05698, section 3).

    `return_intermediate_features` are the encoder blocks, 0-based and ascending, whose output feeds
    the decoders and the contrast. Decoders have one block more than there are of these, but any
    number without `skip_connections`: then their blocks are of plain self-attention and see fused
    tokens only. For `fusion_order` see `CrossModalFusion`, for `init_values` see `Block`; the
    `drop_path_rate` is that of the last block of every stack. Clips have `num_frames`, `img_size`
    (H = W, or both) and `img_size_audio` (T, F); a video token is `tubelet_size` frames deep.
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
        self.level_blocks = tuple(return_intermediate_features)
        depths = {"encoder_depth": encoder_depth, "encoder_depth_audio": encoder_depth_audio}
        narrow_depths = {"decoder_depth": decoder_depth, "decoder_depth_audio": decoder_depth_audio}
        layers.check_sizes(**depths, **narrow_depths, encoder_fusion_depth=encoder_fusion_depth)
        _check_levels(self.level_blocks, depths, narrow_depths if skip_connections else {})
        stack: dict[str, Any] = {"drop_path": drop_path_rate, "init_values": init_values}
        wide = {"embed_dim": embed_dim, "num_heads": num_heads, **stack}
        clip = num_frames, img_size, tubelet_size
        self.encoder = video_encoder(*clip, depth=encoder_depth, **wide)
        self.encoder_audio = audio_encoder(img_size_audio, depth=encoder_depth_audio, **wide)
        wide |= {"depth": encoder_fusion_depth, "order": fusion_order}
        self.encoder_fusion = CrossModalFusion(**wide)

        narrow = {"embed_dim": decoder_embed_dim, "num_heads": decoder_num_heads, **stack}
        narrow["skips"] = skip_connections
        patches, patches_audio = self.encoder.patch_embed, self.encoder_audio.patch_embed
        self.decoder = SkipDecoder(patches, depth=decoder_depth, **narrow)
        self.decoder_audio = SkipDecoder(patches_audio, depth=decoder_depth_audio, **narrow)
        self.encoder_to_decoder = nn.Linear(embed_dim, decoder_embed_dim, bias=False)
        self.encoder_to_decoder_audio = nn.Linear(embed_dim, decoder_embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.mask_token_audio = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))

        for name, part in self.named_children():
            if not name.startswith("encoder_to_decoder"):
                layers.init_linears(part, nn.init.xavier_uniform_)
        for token in (self.mask_token, self.mask_token_audio):
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)

    def forward(
        self,
        video: Tensor,
        video_mask: Tensor | TokenSplit,
        audio: Tensor,
        audio_mask: Tensor | TokenSplit,
        contrast_masks: Sequence[Tensor | TokenSplit] = (),
    ) -> HiCMAEOutput:
        """Encode what is visible of normalised clips and predict what is masked.

        Video is (B, 3, T, H, W), its mask (B, Nv) bool, True = masked, equally many in every row;
        audio, the log-mel spectrogram, is (B, 1, T, F), its mask (B, Na). With `contrast_masks` of
        video and audio, the pooled levels come from a second pass of the encoders over what these
        leave, possibly everything. ValueError where a mask does not fit the model's geometry.
        """
        counts = self.encoder.patch_embed.num_tokens, self.encoder_audio.patch_embed.num_tokens
        split = split_tokens(video_mask, counts[0], "video_mask")
        split_audio = split_tokens(audio_mask, counts[1], "audio_mask")

        kept = self.level_blocks
        tokens, levels = self.encoder(video, split.visible, kept)
        tokens_audio, levels_audio = self.encoder_audio(audio, split_audio.visible, kept)
        fused, fused_audio = self.encoder_fusion(tokens, tokens_audio)
        last = self.encoder_to_decoder, self.mask_token
        rebuilt = self.decoder(fused, levels, split, *last)
        last_audio = self.encoder_to_decoder_audio, self.mask_token_audio
        rebuilt_audio = self.decoder_audio(fused_audio, levels_audio, split_audio, *last_audio)
        if contrast_masks:
            light = split_tokens(contrast_masks[0], counts[0], "contrast_mask", True)
            levels = self.encoder(video, light.visible, kept).levels
            light = split_tokens(contrast_masks[1], counts[1], "contrast_mask_audio", True)
            levels_audio = self.encoder_audio(audio, light.visible, kept).levels
        pooled, pooled_audio = (list(map(pooled_unit, each)) for each in (levels, levels_audio))
        return HiCMAEOutput(rebuilt, rebuilt_audio, pooled, pooled_audio)


def _check_levels(kept: Sequence[int], encoders: dict[str, int], decoders: dict[str, int]) -> None:
    """Refuse levels that the encoders do not have, or decoders with another number of skips."""
    shallowest = min(encoders.values())
    if list(kept) != sorted({level for level in kept if 0 <= level < shallowest}):
        raise ValueError(
            f"return_intermediate_features is {kept}, expected ascending block indices from 0 to "
            f"{shallowest - 1} ({', '.join(f'{name} {depth}' for name, depth in encoders.items())})"
        )
    for name, depth in decoders.items():
        if depth != len(kept) + 1:
            raise ValueError(
                f"{name} is {depth}, expected {len(kept) + 1}, one more than kept levels {kept}"
            )


# Widths and attention heads of encoders and decoders: a very small model for demonstrations and
# tests, HiCMAE-T (the decoder width, 128, is this project's choice), HiCMAE-S and HiCMAE-B.
for _sizes in ((128, 4, 64, 2), (256, 4, 128, 2), (384, 6, 192, 3), (512, 8, 384, 6)):
    register(f"pretrain_hicmae_dim{_sizes[0]}_patch16_160_a256", HiCMAE, *_sizes)
