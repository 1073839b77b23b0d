import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hicmae.data import video as film
from tests.golden_inputs import golden

GOLDEN = golden("golden_data")


# which frames


@pytest.mark.parametrize("key", GOLDEN["eval_views"])
@pytest.mark.parametrize("segments", [2, 5])
def test_test_windows_equal_the_original_without_repetition(key, segments):
    expected = [tuple(v["frames"]) for v in GOLDEN["eval_views"][key] if v["segments"] == segments]
    windows = film.test_windows(int(key.split("x")[0]), segments)
    assert [tuple(window.tolist()) for window in windows] == list(dict.fromkeys(expected))


def test_windows_are_centred_distinct_and_of_any_length_and_stride():
    (window,) = film.test_windows(120, 1)
    assert window.tolist() == list(range(28, 92, 4))
    assert all(len(film.test_windows(frames, 7)) == 1 for frames in (1, 5, 16, 63, 64))
    windows = film.test_windows(40, 2, num_frames=8, sampling_rate=3)
    assert [w.tolist() for w in windows] == [[*range(0, 24, 3)], [*range(18, 42, 3)]]


@pytest.mark.parametrize("key", GOLDEN["train_clips"])
def test_train_frames_equal_the_original(key):
    expected = GOLDEN["train_clips"][key]
    for end, frames in expected.get("by_end", {None: expected.get("frames")}).items():
        chosen = film.train_frames(int(key), end and int(end))
        assert chosen.tolist() == frames


def test_validation_takes_the_centre_and_tiny_clips_their_last_frame():
    assert film.train_frames(200).tolist() == film.train_frames(200, 132).tolist()
    assert film.train_frames(65).tolist() == film.train_frames(65, 64).tolist()
    for total in (1, 2, 3):
        assert film.train_frames(total).tolist() == [total - 1] * 16


def test_pretrain_frames_step_from_the_start_and_repeat_the_last_one_reached():
    assert film.pretrain_frames(200, 136).tolist() == list(range(136, 200, 4))
    assert film.pretrain_frames(11).tolist() == [0, 4] + [8] * 14
    assert film.pretrain_frames(63).tolist() == list(range(0, 64, 4))


# geometry and pixels


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("multiscale")])
def test_multi_scale_crops_equal_the_original(key):
    width, height = map(int, key.split("_")[1].split("x"))
    expected = GOLDEN[key]
    assert [list(size) for size in film.crop_sizes(width, height)] == expected["pairs"]
    for size in film.crop_sizes(width, height):
        offsets = film.crop_offsets(width, height, *size)
        assert json.loads(json.dumps(offsets)) == expected["offsets"][f"{size[0]}x{size[1]}"]


def test_drawn_crops_stay_in_their_region_and_reach_every_size():
    rng = np.random.default_rng(0)
    boxes = {film.draw_crop((30, 10, 190, 202), rng) for _ in range(600)}
    tiny = np.array([film.draw_crop((7, 11, 11, 20), rng) for _ in range(99)])
    assert (tiny >= (7, 11, 8, 12)).all() and (tiny <= (10, 19, 11, 20)).all()
    lefts, tops, rights, bottoms = np.array(list(boxes)).T
    assert lefts.min() == 30 and tops.min() == 10 and rights.max() == 190 and bottoms.max() == 202
    sizes = {(right - left, bottom - top) for left, top, right, bottom in boxes}
    assert sizes == set(film.crop_sizes(160, 192))


@pytest.mark.parametrize(
    "size, box", [(96, (32, 0, 192, 160)), (192, (16, 0, 208, 192)), (208, (0, 0, 224, 224))]
)
def test_only_frames_of_voxceleb2_are_cut_to_the_face_as_the_input_needs(size, box):
    assert film.source_box("voxceleb2", size, 224, 224) == box
    assert film.source_box("none", size, 224, 224) == (0, 0, 224, 224)
    assert film.source_box("voxceleb2", size, 224, 220) == (0, 0, 224, 220)


def test_normalisation_is_imagenets_for_clips_and_batches():
    video = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    normalised = film.normalise(video)
    assert torch.equal(normalised[1], film.normalise(video[1]))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (video[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(normalised[:, channel].double(), expected, atol=1e-5, rtol=0)


# resizing


def one_by_one(frames, size, box=None) -> np.ndarray:
    return np.stack([film.resize(Image.fromarray(image), size, box) for image in frames])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("width, height", film.crop_sizes(160, 160))
def test_every_crop_of_pretraining_is_resized_as_pillow_does(width, height, monkeypatch):
    frames, box = noise(3, 160, 160, 3), (160 - width, 0, 160, height)
    expected = one_by_one(frames, (160, 160), box)
    monkeypatch.setattr(film, "resize", None)  # the fast way takes them all
    found = film.resize_frames(frames, (160, 160), box)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(film.to_tensor(found), expected.transpose(3, 0, 1, 2))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(1, 9))
def test_any_size_is_resized_as_pillow_does(width, height, new_width, new_height):
    frames, size = noise(2, height, width, 3), (16 * new_width, 16 * new_height)
    for some in (frames, [*frames, noise(32, 32, 3)]):
        expected = one_by_one(some, size)
        np.testing.assert_array_equal(film.resize_frames(some, size), expected)


def test_resizing_a_box_looks_at_nothing_outside_it():
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[10:20, 5:25] = 255
    assert (film.resize_frames([picture] * 2, (64, 48), (5, 10, 25, 20)) == 255).all()
