"""Layers and patches against slow loops and simple truths."""

import math

import pytest
import torch

from hicmae.models.layers import (
    Block,
    CrossAttention,
    CSBlock,
    TokenSplit,
    cut_patches,
    join_patches,
    sincos_positions,
    split_tokens,
    token_grid,
)


def test_positions_follow_the_formula():
    table = sincos_positions(5, 6)
    for p in range(5):
        for j in range(6):
            angle = p / 10000 ** (2 * (j // 2) / 6)
            expected = math.sin(angle) if j % 2 == 0 else math.cos(angle)
            assert table[p, j].item() == pytest.approx(expected, abs=1e-6)
    assert table.dtype == torch.float32


@pytest.mark.parametrize("cross", [False, True])
def test_attention_has_no_key_bias_and_equals_a_loop(cross):
    torch.manual_seed(0)
    layer = (CrossAttention(12, 3) if cross else Block(12, 3).attn).double()
    torch.nn.init.normal_(layer.q_bias)
    torch.nn.init.normal_(layer.v_bias)
    x, context = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 7))
    inputs = (x, context) if cross else (x,)
    weights = torch.cat((layer.q.weight, layer.kv.weight)) if cross else layer.qkv.weight
    query, key, value = (
        tokens @ w.T
        for tokens, w in zip((x, inputs[-1], inputs[-1]), weights.chunk(3), strict=True)
    )
    query, value, read = query + layer.q_bias, value + layer.v_bias, torch.zeros_like(x)
    for b in range(2):
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):  # one a head
            scores = query[b, :, part] @ key[b, :, part].T / 4**0.5
            read[b, :, part] = scores.softmax(dim=-1) @ value[b, :, part]
    torch.testing.assert_close(layer(*inputs), layer.proj(read))


@pytest.mark.parametrize("block", [Block, CSBlock])
def test_layer_scale_of_zero_weight_turns_a_block_into_identity(block):
    layer = block(8, 2, init_values=0.5)
    gammas = {n: p for n, p in layer.named_parameters() if n.startswith("gamma")}
    assert gammas.keys() == {"gamma_1", "gamma_2"} | ({"gamma_0"} if block is CSBlock else set())
    for gamma in gammas.values():
        assert (gamma == 0.5).all()
        torch.nn.init.zeros_(gamma)
    x = torch.randn(2, 3, 8)
    inputs = (x, torch.randn(2, 4, 8)) if block is CSBlock else (x,)
    torch.testing.assert_close(layer(*inputs), x)


def test_stochastic_depth_acts_in_training_only():
    torch.manual_seed(0)
    layer, x = CSBlock(8, 2, drop_path=0.9), torch.randn(64, 3, 8)
    assert (layer(x, x) == x).all(dim=(1, 2)).any(), "most clips lose all branches"
    assert not (layer.eval()(x, x) == x).all(dim=(1, 2)).any()


@pytest.mark.parametrize("size, patch", [((4, 6, 10), (2, 3, 5)), ((6, 8), (3, 2))])
def test_cutting_and_joining_patches_restores_the_clip(size, patch):
    clip = torch.randn(2, 3, *size)
    grid = token_grid(size, patch, "clip")
    patches = cut_patches(clip, patch)
    assert patches.shape == (2, math.prod(grid), 3, *patch)
    assert torch.equal(join_patches(patches, grid), clip)
    index = torch.tensor([[3, 0], [2, 3]])
    expected = torch.stack([patches[0, index[0]], patches[1, index[1]]])
    assert torch.equal(cut_patches(clip, patch, index), expected)


def test_tokens_are_ordered_time_row_column_with_columns_fastest():
    clip = torch.arange(4 * 6 * 15).reshape(1, 1, 4, 6, 15)
    patches = cut_patches(clip, (2, 3, 5))
    for t in range(2):
        for y in range(2):
            for x in range(3):
                expected = clip[0, 0, 2 * t : 2 * t + 2, 3 * y : 3 * y + 3, 5 * x : 5 * x + 5]
                assert torch.equal(patches[0, 6 * t + 3 * y + x, 0], expected)


def test_mask_is_split_in_position_order():
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    split = split_tokens(mask, 5, "video_mask")
    assert split.visible.tolist() == [[1, 3, 4], [0, 1, 4]]
    assert split.masked.tolist() == [[0, 2], [2, 3]]
    assert split_tokens(split, 5, "video_mask") is split
    assert isinstance(split.to("cpu"), TokenSplit)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.zeros(2, 5, dtype=torch.bool), "masks 0 of 5 tokens"),
        (torch.ones(2, 5, dtype=torch.bool), "masks 5 of 5 tokens"),
        (torch.tensor([[True, False], [True, True]]), r"expected torch.bool \(B, 5\)"),
        (torch.zeros(2, 5), "torch.float32"),
        (torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 0]]).bool(), r"\[2, 1\]"),
    ],
)
def test_unusable_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        split_tokens(mask, 5, "video_mask")
