"""Losses against slow loops written from the specification, and what the contrast learns."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from hicmae.models import losses
from hicmae.models.layers import split_tokens
from hicmae.models.pretrain import HiCMAEOutput
from tests.golden_inputs import golden
from tests.small_models import clips, pretraining_model

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CELLS = [(t, y, x) for t in range(2) for y in range(2) for x in range(3)]  # 2 x 16 x 16 each


def double_clips():
    return clips(dtype=torch.float64)


def output_for(levels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    video, audio = random(2, 6, 1536).to(dtype), random(2, 3, 256).to(dtype)
    streams = [
        [functional.normalize(random(2, 5), dim=-1).to(dtype) for _ in range(levels)]
        for _ in range(2)
    ]
    return HiCMAEOutput(video, audio, *streams)


def video_target_by_hand(video, mask, normalize, group):
    """Loop over clips, tubelets and channels; (frame, y, x, channel) order."""
    mean, std = (np.array(values).reshape(1, 3, 1, 1, 1) for values in IMAGENET)
    pixels = video.numpy() * std + mean

    def cell(b, c, t, y, x):
        return pixels[b, c, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]

    if normalize:
        for b in range(2):
            for place in CELLS:
                for c in range(3):
                    values = cell(b, c, *place)
                    values[...] = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    if group:
        original = pixels.copy()
        for frame in range(4):
            if frame % group:
                pixels[:, :, frame] = original[:, :, frame] - original[:, :, frame - frame % group]
    rows = [
        [np.stack([cell(b, c, *place) for c in range(3)], axis=-1).ravel() for place in CELLS]
        for b in range(2)
    ]
    target = torch.tensor(np.array(rows))
    return target[mask].view(2, -1, target.shape[-1])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("group", [None, 2, 4])
def test_video_targets_equal_a_loop(normalize, group):
    video, mask, _, _ = double_clips()
    masked = split_tokens(mask, 12, "video_mask").masked
    target = losses.video_target(video, masked, 2, normalize, group)
    torch.testing.assert_close(target, video_target_by_hand(video, mask, normalize, group))


@pytest.mark.parametrize("normalize", [True, False])
def test_audio_targets_equal_a_loop(normalize):
    _, _, audio, mask = double_clips()
    target = losses.audio_target(audio, split_tokens(mask, 8, "audio_mask").masked, normalize)
    for values, (b, position) in zip(target.flatten(0, 1), mask.nonzero().tolist(), strict=True):
        y, x = divmod(position, 2)
        cell = audio[b, 0, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].flatten()
        if normalize:
            cell = (cell - cell.mean()) / (cell.std() + 1e-6)
        torch.testing.assert_close(values, cell)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frame_diff_group_size": 3}, "frame_diff_group_size 3 does not divide the 4 frames"),
        ({"contrastive_levels": "first"}, "contrastive_levels is 'first', expected one of 'all'"),
    ],
)
def test_impossible_targets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        losses.pretrain_loss(output_for(), *double_clips(), frame_diff=True, **options)


def test_target_diff_weight_weighs_first_and_second_frames():
    inputs, output = double_clips(), output_for()
    error = (output.video - video_target_by_hand(*inputs[:2], True, 2)).square()
    first, second = error[..., :768].mean(), error[..., 768:].mean()
    options = {"frame_diff": True}
    loss = losses.pretrain_loss(output, *inputs, target_diff_weight=0.8, **options)
    torch.testing.assert_close(loss.video, 0.2 * first + 0.8 * second)
    torch.testing.assert_close(losses.pretrain_loss(output, *inputs, **options).video, error.mean())


def info_nce_by_hand(video, audio, temperature=0.07):
    total = 0.0
    for a, b in ((video, audio), (audio, video)):
        for i in range(len(a)):
            logits = [float(a[i] @ b[j]) / temperature for j in range(len(b))]
            total -= logits[i] - math.log(sum(math.exp(value) for value in logits))
    return 0.5 * total / len(video)


@pytest.mark.parametrize("which, used", [("all", [0, 1, 2]), ("top", [2]), ("none", [])])
def test_the_contrast_is_symmetric_info_nce_summed_over_the_chosen_levels(which, used):
    output, inputs = output_for(levels=3), double_clips()
    assert list(losses.contrasted(3, which)) == used
    loss = losses.pretrain_loss(
        output, *inputs, loss_weight=0.3, temperature=0.2, contrastive_levels=which
    )
    single = [
        info_nce_by_hand(v, a, 0.2)
        for v, a in zip(output.video_levels, output.audio_levels, strict=True)
    ]
    expected = sum(single[level] for level in used)
    assert (loss.contrast is None) == (not used)
    assert loss.total.item() == pytest.approx((loss.video + loss.audio + 0.3 * expected).item())
    if used:
        assert loss.contrast.item() == pytest.approx(expected, rel=1e-12)


def test_contrastive_accuracy_counts_clips_whose_own_audio_is_nearest():
    audio = torch.eye(4)[[0, 1, 3, 2]]
    assert losses.contrastive_accuracy([torch.eye(4)], [audio])[0].item() == 0.5


@pytest.mark.parametrize("name", ["pretraining", *losses.REGRESSION_LOSSES])
def test_losses_within_autocast_and_their_gradients_are_those_of_float64(name):
    whole = output_for(dtype=torch.bfloat16)  # the same numbers in either precision

    def compute(dtype):
        if name == "pretraining":
            parts = (*whole[:2], *whole[2], *whole[3])
            leaves = [part.to(dtype).requires_grad_() for part in parts]
            output = HiCMAEOutput(*leaves[:2], leaves[2:4], leaves[4:])
            video, video_mask, audio, audio_mask = clips()
            inputs = video.to(dtype), video_mask, audio.to(dtype), audio_mask
            loss = losses.pretrain_loss(output, *inputs, 1.0, frame_diff=True).total
        else:
            generator = torch.Generator().manual_seed(2)
            prediction, target = torch.randn(2, 6, 3, generator=generator).to(dtype)
            leaves = [prediction.requires_grad_()]
            loss = losses.REGRESSION_LOSSES[name](prediction, target)
        return loss, leaves

    with torch.autocast("cpu", torch.bfloat16):
        loss, leaves = compute(torch.float32)
    exact, exact_leaves = compute(torch.float64)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-6)
    found, expected = torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, exact_leaves)
    for gradient, known in zip(found, expected, strict=True):
        assert (gradient - known).abs().max() < 1e-5 * known.abs().max()


def test_regression_losses_equal_the_golden_values_and_stay_finite_for_constants():
    values = golden("golden_data")
    rng = np.random.RandomState(5)
    target = rng.rand(50, 3)
    prediction = np.clip(target + 0.2 * rng.standard_normal((50, 3)), 0, 1)
    target, prediction = torch.from_numpy(target), torch.from_numpy(prediction)
    for name in ("ccc", "pcc"):
        loss = losses.REGRESSION_LOSSES[name](prediction, target)
        assert loss.item() == pytest.approx(values[f"regression_{name}_loss"], rel=1e-9)
        constant = torch.full((4, 2), 0.5, requires_grad=True)
        loss = losses.REGRESSION_LOSSES[name](constant, torch.rand(4, 2))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(constant.grad).all()


@pytest.mark.parametrize("kind", ["none", "balanced", "effective"])
def test_weights_of_classes_weigh_clips_whose_mean_weight_is_one(kind):
    counts = torch.tensor([500, 20, 0, 4])
    weights = losses.class_weights(counts, kind)
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 1, 3, 3, 0, 0])
    logs = scores.log_softmax(dim=1)
    soft = 0.8 * functional.one_hot(target, 4) + 0.05
    w = [1.0] * 4 if weights is None else weights.tolist()
    hard_sum = -sum(w[k] * logs[i, k] for i, k in enumerate(target)) / 6
    soft_sum = -sum(w[k] * soft[i, k] * logs[i, k] for i in range(6) for k in range(4)) / 6
    close = {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(losses.cross_entropy(scores, target, weights), hard_sum, **close)
    torch.testing.assert_close(losses.cross_entropy(scores, soft, weights), soft_sum, **close)
    smooth = losses.cross_entropy(scores, target, weights, smoothing=0.2)
    torch.testing.assert_close(smooth, soft_sum, **close)
    if kind != "none":
        assert sum(n * v for n, v in zip(counts.tolist(), w, strict=True)) == pytest.approx(524)
        effective = [(1 - 0.999**n) / 0.001 for n in (500, 4)]
        ratio = 500 / 4 if kind == "balanced" else effective[0] / effective[1]
        assert w[3] / w[0] == pytest.approx(ratio, rel=1e-4) and w[2] == 1


def test_contrast_finds_what_the_streams_of_a_clip_share():
    """Two colours of the picture are also the two levels of the spectrogram, the rest is noise."""
    depths = {"encoder_depth": 2, "encoder_depth_audio": 2, "encoder_fusion_depth": 1}
    model, scores = pretraining_model(**depths, return_intermediate_features=(0, 1)), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    video, video_mask, audio, audio_mask = clips(12)
    for _ in range(60):
        shade = 1.5 * torch.randn(12, 2)
        tinted = video / 2 + functional.pad(shade, (0, 1))[..., None, None, None]
        loud = audio[torch.randperm(12)] / 2 + shade.repeat_interleave(16, dim=1)[:, None, None]
        inputs = tinted, video_mask, loud, audio_mask
        output = model(*inputs)
        optimizer.zero_grad()
        losses.pretrain_loss(output, *inputs).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        scores.append([float(score) for score in losses.contrastive_accuracy(*output[2:])])
    assert (torch.tensor(scores[-15:]).mean(dim=0) > 3 / 12).all()  # of guessing
