import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hicmae.data import video as resizing
from hicmae.data.video import crop_sizes, resize, resize_frames

SIZES = sorted({side for pair in crop_sizes(160, 160) for side in pair})


def one_by_one(frames, size, box=None) -> torch.Tensor:
    images = [np.asarray(resize(Image.fromarray(frame), size, box)) for frame in frames]
    return torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("height", SIZES)
def test_every_crop_of_pretraining_is_resized_as_pillow_does(width, height, monkeypatch):
    frames, box = noise(3, 160, 160, 3), (160 - width, 0, 160, height)
    expected = one_by_one(frames, (160, 160), box)
    monkeypatch.setattr(resizing, "resize", None)  # the fast way takes them all
    assert torch.equal(resize_frames(frames, (160, 160), box), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(1, 9))
def test_any_size_is_resized_as_pillow_does(width, height, new_width, new_height):
    frames, size = noise(2, height, width, 3), (16 * new_width, 16 * new_height)
    assert torch.equal(resize_frames(frames, size), one_by_one(frames, size))


def test_frames_of_unequal_sizes_are_resized_one_by_one():
    frames = [noise(20, 30, 3), noise(32, 32, 3)]
    assert torch.equal(resize_frames(frames, (32, 32)), one_by_one(frames, (32, 32)))


def test_one_colour_stays_what_it_is():
    frames = [np.full((105, 140, 3), 255, np.uint8)] * 2
    assert (resize_frames(frames, (160, 160)) == 255).all()
