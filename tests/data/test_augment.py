import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup

from hicmae.data.augment import ClipTransform, mix_batch, seeded_globals
from hicmae.data.batches import LabelledBatch
from hicmae.data.video import normalise, to_tensor
from hicmae.io import UnreadableClip
from tests.conftest import frame

SIZE = 36
NOTHING = {"aa": "none", "reprob": 0, "scale": (1, 1), "ratio": (1, 1), "flip": 0}
PICTURE = Image.fromarray(frame(20, SIZE, SIZE))
TARGET = torch.tensor([3, 0, 1, 1])


def transformed(seed: int = 0, **strength) -> torch.Tensor:
    """Return (3, T, H, W) of a still film: copies of one picture, each an image of its own."""
    images = [PICTURE.copy() for _ in range(5)]
    return ClipTransform(SIZE, **strength)(images, np.random.default_rng(seed))


def batch(size: int = 4) -> LabelledBatch:
    generator = torch.Generator().manual_seed(size)
    video = torch.randn(size, 3, 2, 10, 14, generator=generator)
    audio = torch.randn(size, 1, 6, 5, generator=generator)
    return LabelledBatch(video, audio, TARGET[:size], tuple("abcd"[:size]), ())


def test_without_transforms_the_clip_is_only_normalised():
    expected = normalise(to_tensor([PICTURE] * 5))
    assert torch.equal(transformed(**NOTHING), expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_still_film_stays_still(seed):
    video = transformed(seed, reprob=0)
    shared = ClipTransform(SIZE, reprob=0)([PICTURE] * 5, np.random.default_rng(seed))
    assert torch.equal(shared, video), "a repeated frame is transformed as its copies are"
    assert video.shape == (3, 5, SIZE, SIZE) and video.dtype == torch.float32
    # the last digit depends on where a value falls in the interpolation's vector registers
    torch.testing.assert_close(video, video[:, :1].expand_as(video), atol=1e-6, rtol=0)


def test_rand_augment_changes_the_picture_and_its_draws_differ():
    only = {**NOTHING, "aa": "rand-m7-n4-mstd0.5-inc1"}
    clips = [transformed(seed, **only) for seed in range(8)]
    different = {clip.numpy().tobytes() for clip in [*clips, transformed(**NOTHING)]}
    assert len(different) >= 7


def test_the_generator_decides_everything_and_global_state_is_left_alone():
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    first = transformed(3, reprob=1)
    with pytest.raises(KeyError), seeded_globals(9):
        raise KeyError
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert torch.equal(first, transformed(3, reprob=1))
    assert not torch.equal(first, transformed(4, reprob=1))


@pytest.mark.parametrize("policy", ["rand-m2-n8-p1", "rand-m15-mmax20-n8-p1-inc1"])
def test_posterizing_of_any_strength_raises_nothing(policy):
    transform = ClipTransform(SIZE, aa=policy)
    posterizers = [op for op in transform.rand_augment.ops if op.name.startswith("Posterize")]
    (operation,) = posterizers
    assert operation(PICTURE).getextrema() == ((0, 0),) * 3  # no bit is left, as in Pillow 12


def test_what_an_augmentation_raises_costs_the_clip_alone(monkeypatch):
    transform = ClipTransform(SIZE)

    def failing(_image):
        raise ZeroDivisionError("in a library")

    monkeypatch.setattr(transform, "rand_augment", failing)
    with pytest.raises(UnreadableClip, match="cannot be augmented: ZeroDivisionError: in a lib"):
        transform([PICTURE], np.random.default_rng(0))


def test_flip_mirrors_columns():
    assert torch.equal(transformed(**{**NOTHING, "flip": 1}), transformed(**NOTHING).flip(-1))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_takes_one_box_in_all_frames(mode):
    only = {**NOTHING, "reprob": 1, "remode": mode}
    erased = transformed(**only) != transformed(**NOTHING)  # (3, T, H, W)
    box = erased.any(0)
    assert (box == box[0]).all()
    rows, columns = box[0].any(1).sum(), box[0].any(0).sum()
    assert 0 < rows * columns < SIZE * SIZE and box[0].sum() == rows * columns


def test_random_resized_crop_is_bilinear_without_antialias():
    video, whole = transformed(2, **{**NOTHING, "scale": (0.3, 0.3)}), transformed(**NOTHING)
    side = round((0.3 * SIZE * SIZE) ** 0.5)
    candidates = (
        torch.nn.functional.interpolate(
            whole[:, 0, top : top + side, left : left + side][None], (SIZE, SIZE), mode="bilinear"
        )[0]
        for top in range(SIZE - side + 1)
        for left in range(SIZE - side + 1)
    )
    assert min((video[:, 0] - candidate).abs().max() for candidate in candidates) < 1e-6


def test_unknown_policy_is_refused():
    for policy in ("augmix-m3", "rand-q7", "rand-m7-nX1", "rand-m7.5"):
        with pytest.raises(ValueError, match=f"--aa .* 'rand-m7.*, got '{policy}'"):
            ClipTransform(SIZE, aa=policy)


def mixer(mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0, **options) -> Mixup:
    return Mixup(mixup_alpha, cutmix_alpha, **{"num_classes": 5} | options)


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_seed_mixes_the_video_as_timm_does(alphas, seed):
    plain = batch()
    np.random.seed(seed)
    mixed = mix_batch(plain, mixer(*alphas, prob=0.9))
    np.random.seed(seed)
    video, target = mixer(*alphas, prob=0.9)(plain.video.clone().flatten(1, 2), TARGET)
    assert torch.equal(mixed.video.flatten(1, 2), video)
    torch.testing.assert_close(mixed.target, target)
    assert torch.equal(mixed.audio, plain.audio)
    assert torch.equal(plain.video, batch().video)  # the plain batch is left as it was


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("has_video", [True, False])
def test_audio_is_blended_with_the_share_of_the_targets(alphas, has_video):
    plain = batch() if has_video else batch()._replace(video=None)
    np.random.seed(3)
    mixed = mix_batch(plain, mixer(*alphas, label_smoothing=0), mix_audio=has_video)
    share = mixed.target[0, 3].item()
    assert 0 < share < 1 and (mixed.video is None) == (not has_video)
    torch.testing.assert_close(mixed.audio, share * plain.audio + (1 - share) * plain.audio.flip(0))


def test_an_odd_batch_mixes_its_middle_with_itself_also_without_sound():
    plain = batch(3)._replace(audio=None)
    np.random.seed(2)
    mixed = mix_batch(plain, mixer(cutmix_alpha=0, label_smoothing=0), mix_audio=True)
    torch.testing.assert_close(mixed.video[1], plain.video[1])
    assert mixed.target[1].tolist() == [1, 0, 0, 0, 0]
    assert mixed.audio is None and not torch.equal(mixed.video, plain.video)


def test_numbers_as_targets_cannot_be_mixed():
    with pytest.raises(ValueError, match="needs class indices .* got numbers; set --mixup 0"):
        mix_batch(batch()._replace(target=torch.rand(4, 2)), mixer())
