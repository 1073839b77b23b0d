"""Layers, patches and masks; what they compute is held by test_golden.py and test_losses.py."""

import math

import pytest
import torch

from hicmae.models.layers import (
    Block,
    CSBlock,
    TokenSplit,
    cut_patches,
    join_patches,
    split_tokens,
    token_grid,
)


@pytest.mark.parametrize("block", [Block, CSBlock])
def test_layer_scale_starts_a_gamma_for_each_branch(block):
    state = block(8, 2, init_values=0.5).state_dict()
    gammas = {name: values for name, values in state.items() if name.startswith("gamma")}
    assert [*gammas] == [f"gamma_{k}" for k in range(0 if block is CSBlock else 1, 3)]
    assert all((values == 0.5).all() for values in gammas.values())


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
