"""Losses against slow loops written from the specification."""

import math

import numpy as np
import pytest
import torch

from hicmae.data import video as video_data
from hicmae.models import losses
from hicmae.models.layers import split_tokens
from hicmae.models.pretrain import HiCMAEOutput
from tests.golden_inputs import golden

GRID = (2, 2, 3)  # tubelets in time, rows, columns
VIDEO_MASKED = [[1, 2, 5, 7, 8, 11], [0, 1, 2, 6, 7, 8]]
AUDIO_MASKED = [[0, 3, 4], [1, 2, 7]]


def clips():
    generator = torch.Generator().manual_seed(3)
    video = torch.randn(2, 3, 4, 32, 48, generator=generator, dtype=torch.float64)
    audio = torch.randn(2, 1, 64, 32, generator=generator, dtype=torch.float64)
    return video, mask_of(VIDEO_MASKED, 12), audio, mask_of(AUDIO_MASKED, 8)


def mask_of(rows, length):
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, positions in zip(mask, rows, strict=True):
        row[positions] = True
    return mask


def output_for(video_masked=6, audio_masked=3, levels=2):
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def unit():
        return torch.nn.functional.normalize(random(2, 5), dim=-1)

    return HiCMAEOutput(
        random(2, video_masked, 1536),
        random(2, audio_masked, 256),
        [unit() for _ in range(levels)],
        [unit() for _ in range(levels)],
    )


def video_target_by_hand(video, normalize, group):
    """Loop over clips, tubelets and channels; all 12 tokens, (frame, y, x, channel) order."""
    pixels = video.numpy() * np.array(video_data.IMAGENET_STD).reshape(1, 3, 1, 1, 1)
    pixels = pixels + np.array(video_data.IMAGENET_MEAN).reshape(1, 3, 1, 1, 1)
    pixels = pixels.copy()
    cells = [(t, y, x) for t in range(2) for y in range(2) for x in range(3)]
    if normalize:
        for b in range(2):
            for t, y, x in cells:
                for c in range(3):
                    cell = pixels[
                        b, c, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16
                    ]
                    cell[...] = (cell - cell.mean()) / (cell.std(ddof=1) + 1e-6)
    if group:
        original = pixels.copy()
        for frame in range(4):
            if frame % group:
                pixels[:, :, frame] = original[:, :, frame] - original[:, :, frame - frame % group]
    rows = []
    for b in range(2):
        row = []
        for t, y, x in cells:
            cell = pixels[b, :, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            row.append([cell[c, f, i, j] for f in range(2) for i in range(16)
                        for j in range(16) for c in range(3)])  # fmt: skip
        rows.append(row)
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("group", [None, 2, 4])
def test_video_targets_equal_a_loop(normalize, group):
    video, mask, _, _ = clips()
    masked = split_tokens(mask, 12, "video_mask").masked
    target = losses.video_target(video, masked, 2, normalize, group)
    everything = video_target_by_hand(video, normalize, group)
    expected = torch.stack([everything[b, VIDEO_MASKED[b]] for b in range(2)])
    torch.testing.assert_close(target, expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_audio_targets_equal_a_loop(normalize):
    _, _, audio, mask = clips()
    masked = split_tokens(mask, 8, "audio_mask").masked
    target = losses.audio_target(audio, masked, normalize)
    for b in range(2):
        for row, position in enumerate(AUDIO_MASKED[b]):
            y, x = divmod(position, 2)
            cell = audio[b, 0, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten()
            if normalize:
                cell = (cell - cell.mean()) / (cell.std() + 1e-6)
            torch.testing.assert_close(target[b, row], cell)


def test_frames_that_the_group_does_not_divide_are_refused():
    video, mask, _, _ = clips()
    masked = split_tokens(mask, 12, "video_mask").masked
    with pytest.raises(ValueError, match="frame_diff_group_size 3 does not divide the 4 frames"):
        losses.video_target(video, masked, 2, True, 3)


def test_target_diff_weight_weighs_first_and_second_frames():
    video, video_mask, audio, audio_mask = clips()
    output = output_for()
    target = video_target_by_hand(video, True, 2)
    target = torch.stack([target[b, VIDEO_MASKED[b]] for b in range(2)])
    error = (output.video - target).square()
    first, second = error[..., :768].mean(), error[..., 768:].mean()
    loss = losses.pretrain_loss(
        output, video, video_mask, audio, audio_mask, target_diff_weight=0.8
    )
    torch.testing.assert_close(loss.video, 0.2 * first + 0.8 * second)
    plain = losses.pretrain_loss(output, video, video_mask, audio, audio_mask)
    torch.testing.assert_close(plain.video, error.mean())


def info_nce_by_hand(video, audio, temperature):
    total = 0.0
    for a, b in ((video, audio), (audio, video)):
        for i in range(len(a)):
            logits = [float(a[i] @ b[j]) / temperature for j in range(len(b))]
            total -= logits[i] - math.log(sum(math.exp(value) for value in logits))
    return 0.5 * total / len(video)


def test_contrast_is_the_sum_of_symmetric_info_nce_over_levels():
    output = output_for(levels=3)
    expected = sum(
        info_nce_by_hand(v, a, 0.2)
        for v, a in zip(output.video_levels, output.audio_levels, strict=True)
    )
    value = losses.contrastive_loss(output.video_levels, output.audio_levels, 0.2)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_total_adds_the_weighted_contrast_to_both_reconstruction_losses():
    inputs = clips()
    loss = losses.pretrain_loss(output_for(), *inputs, loss_weight=0.3)
    assert loss.total.item() == pytest.approx(
        (loss.video + loss.audio + 0.3 * loss.contrast).item(), rel=1e-12
    )


def test_contrastive_accuracy_counts_clips_whose_own_audio_is_nearest():
    video = [torch.eye(4)]
    audio = [torch.eye(4)[[0, 1, 3, 2]]]
    assert losses.contrastive_accuracy(video, audio)[0].item() == 0.5


def test_half_precision_predictions_are_compared_in_float32():
    video, video_mask, audio, audio_mask = clips()
    output = output_for()
    half = HiCMAEOutput(
        output.video.bfloat16(),
        output.audio.bfloat16(),
        [v.bfloat16() for v in output.video_levels],
        [a.bfloat16() for a in output.audio_levels],
    )
    loss = losses.pretrain_loss(half, video.float(), video_mask, audio.float(), audio_mask)
    assert {part.dtype for part in loss} == {torch.float32}


def test_regression_losses_equal_the_golden_values():
    values = golden("golden_data")
    rng = np.random.RandomState(5)
    target = rng.rand(50, 3)
    prediction = np.clip(target + 0.2 * rng.standard_normal((50, 3)), 0, 1)
    target, prediction = torch.from_numpy(target), torch.from_numpy(prediction)
    for name in ("ccc", "pcc"):
        loss = losses.REGRESSION_LOSSES[name](prediction, target)
        assert loss.item() == pytest.approx(values[f"regression_{name}_loss"], rel=1e-9)


@pytest.mark.parametrize("name", ["ccc", "pcc"])
def test_correlation_losses_stay_finite_for_constant_predictions(name):
    prediction = torch.full((4, 2), 0.5, requires_grad=True)
    loss = losses.REGRESSION_LOSSES[name](prediction, torch.rand(4, 2))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(prediction.grad).all()
