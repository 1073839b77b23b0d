"""Layers and patches against slow loops and simple truths."""

import math

import pytest
import torch

from hicmae.models.layers import (
    Attention,
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


def attention_by_hand(query, key, value, heads):
    width = query.shape[-1] // heads
    out = torch.zeros(query.shape[0], query.shape[1], value.shape[-1], dtype=query.dtype)
    for b in range(query.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            weights = (query[b, :, part] @ key[b, :, part].T / width**0.5).softmax(dim=-1)
            out[b, :, part] = weights @ value[b, :, part]
    return out


def test_self_attention_has_no_key_bias_and_equals_a_loop():
    torch.manual_seed(0)
    layer = Attention(12, 3).double()
    torch.nn.init.normal_(layer.q_bias)
    torch.nn.init.normal_(layer.v_bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ w.T for w in layer.qkv.weight.chunk(3))
    expected = layer.proj(attention_by_hand(q + layer.q_bias, k, v + layer.v_bias, 3))
    torch.testing.assert_close(layer(x), expected)


def test_cross_attention_reads_keys_and_values_from_the_context():
    torch.manual_seed(0)
    layer = CrossAttention(12, 2).double()
    torch.nn.init.normal_(layer.q_bias)
    torch.nn.init.normal_(layer.v_bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    context = torch.randn(2, 7, 12, dtype=torch.float64)
    k, v = (context @ w.T for w in layer.kv.weight.chunk(2))
    q = x @ layer.q.weight.T + layer.q_bias
    expected = layer.proj(attention_by_hand(q, k, v + layer.v_bias, 2))
    torch.testing.assert_close(layer(x, context), expected)


@pytest.mark.parametrize("block", [Block, CSBlock])
def test_layer_scale_of_zero_weight_turns_a_block_into_identity(block):
    layer = block(8, 2, init_values=0.5)
    names = {n for n, _ in layer.named_parameters() if n.startswith("gamma")}
    assert names == ({"gamma_1", "gamma_2"} | ({"gamma_0"} if block is CSBlock else set()))
    for name in names:
        torch.nn.init.zeros_(getattr(layer, name))
    x = torch.randn(2, 3, 8)
    inputs = (x, torch.randn(2, 4, 8)) if block is CSBlock else (x,)
    torch.testing.assert_close(layer(*inputs), x)


def test_stochastic_depth_acts_in_training_only():
    torch.manual_seed(0)
    layer = Block(8, 2, drop_path=0.9)
    x = torch.randn(64, 3, 8)
    assert (layer(x) == x).all(dim=(1, 2)).any(), "most clips lose both branches"
    layer.eval()
    assert not (layer(x) == x).all(dim=(1, 2)).any()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="embed dim 10 is not divisible by 3 attention heads"):
        Attention(10, 3)


@pytest.mark.parametrize("size, patch", [((4, 6, 10), (2, 3, 5)), ((6, 8), (3, 2))])
def test_cutting_and_joining_patches_restores_the_clip(size, patch):
    clip = torch.randn(2, 3, *size)
    grid = token_grid(size, patch, "clip")
    patches = cut_patches(clip, patch)
    assert patches.shape == (2, math.prod(grid), 3, *patch)
    torch.testing.assert_close(join_patches(patches, grid), clip, rtol=0, atol=0)


def test_tokens_are_ordered_time_row_column_with_columns_fastest():
    clip = torch.arange(4 * 6 * 10).reshape(1, 1, 4, 6, 10)
    patches = cut_patches(clip, (2, 3, 5))
    for t in range(2):
        for y in range(2):
            for x in range(2):
                expected = clip[0, 0, 2 * t : 2 * t + 2, 3 * y : 3 * y + 3, 5 * x : 5 * x + 5]
                assert torch.equal(patches[0, 4 * t + 2 * y + x, 0], expected)


def test_wanted_patches_are_the_same_as_indexing_all():
    clip = torch.randn(2, 3, 4, 6, 10)
    index = torch.tensor([[7, 0, 3], [2, 5, 1]])
    everything = cut_patches(clip, (2, 3, 5))
    expected = torch.stack([everything[0, index[0]], everything[1, index[1]]])
    assert torch.equal(cut_patches(clip, (2, 3, 5), index), expected)


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
        (torch.eye(5, dtype=torch.bool)[:2].logical_or(torch.eye(5)[1:2].bool()), r"\[2, 1\]"),
    ],
)
def test_unusable_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        split_tokens(mask, 5, "video_mask")


def test_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match=r"video size \(16, 150, 160\) is not a positive multiple"):
        token_grid((16, 150, 160), (2, 16, 16), "video")
