"""The light decoder: rebuilds masked patches, reading encoder levels through skip connections."""

from collections.abc import Sequence

from torch import Tensor, nn

from hicmae.models.layers import (
    Block,
    CSBlock,
    LayerNorm,
    Linear,
    drop_path_rates,
    sincos_positions,
)


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
