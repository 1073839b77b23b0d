import numpy as np
import pytest

from hicmae.data.masking import random_mask, tube_mask

GRID = (4, 5, 3)  # tubelets, height, width: all different, so a swapped axis cannot pass


@pytest.mark.parametrize("mask_ratio, masked_per_row", [(0.5, 7), (0.9, 13)])
def test_tube_mask_repeats_one_mask_through_time(mask_ratio, masked_per_row):
    mask = tube_mask(GRID, mask_ratio, np.random.default_rng(0)).reshape(4, 15)
    assert mask.dtype == bool
    assert (mask == mask[0]).all()
    assert mask[0].sum() == masked_per_row


def test_published_masks_leave_80_video_and_26_audio_tokens():
    rng = np.random.default_rng(1)
    assert (~tube_mask((8, 10, 10), 0.9, rng)).sum() == 80
    assert (~random_mask(128, 0.8, rng)).sum() == 26


def test_masks_reach_every_cell_and_differ_between_draws():
    rng = np.random.default_rng(2)
    masks = np.stack([random_mask(12, 0.5, rng) for _ in range(60)])
    assert (masks.sum(1) == 6).all()
    assert masks.any(0).all() and not masks.all(0).any()


def test_masks_follow_the_generator():
    first, second = (tube_mask(GRID, 0.5, np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()


def test_mask_that_hides_nothing_is_refused():
    message = (
        "mask_ratio 0.2 hides 0 of 4 patches in a 2x2 grid; "
        "at least one patch must stay visible and one masked"
    )
    with pytest.raises(ValueError, match=message):
        tube_mask((8, 2, 2), 0.2, np.random.default_rng(0))


def test_mask_that_hides_everything_is_refused():
    with pytest.raises(ValueError, match="mask_ratio 1.0 hides 6 of 6 tokens"):
        random_mask(6, 1.0, np.random.default_rng(0))
