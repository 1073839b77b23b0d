"""Rebuilt clips: perfect predictions must give back the clip, whatever the target is."""

import pytest
import torch

from hicmae.models import losses
from hicmae.models.layers import split_tokens
from hicmae.visualize.clips import rebuild
from tests.small_models import mask_of


def masked(rows, length):
    return split_tokens(mask_of(rows, length), length, "mask")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("group", [None, 2, 4])
def test_perfect_video_predictions_give_back_the_clip(normalize, group):
    torch.manual_seed(0)
    video = torch.randn(2, 3, 4, 32, 48, dtype=torch.float64)
    tubes = [[0, 2, 3, 6, 8, 9], [1, 4, 5, 7, 10, 11]]  # the same cells in both tubelet rows
    split = masked(tubes, 12)
    target = losses.video_target(video, split.masked, 2, normalize, group)
    pixels = losses.unnormalize(video)
    rebuilt = rebuild(target, pixels, split, (2, 16, 16), normalize, group)
    torch.testing.assert_close(rebuilt, pixels)


def test_wrong_predictions_change_masked_pixels_only():
    pixels, predicted = torch.rand(1, 3, 4, 32, 48).double(), torch.zeros(1, 2, 1536).double()
    rebuilt = rebuild(predicted, pixels, masked([[0, 6]], 12), (2, 16, 16), True, 2)
    changed = (rebuilt - pixels).abs() > 1e-9
    assert changed[..., :16, :16].any()
    assert not changed[..., 16:, :].any() and not changed[..., 16:].any()


@pytest.mark.parametrize("normalize", [True, False])
def test_perfect_audio_predictions_give_back_the_spectrogram(normalize):
    audio = torch.randn(2, 1, 64, 32, dtype=torch.float64)
    split = masked([[0, 3, 4], [1, 2, 7]], 8)
    target = losses.audio_target(audio, split.masked, normalize)
    torch.testing.assert_close(rebuild(target, audio, split, (16, 16), normalize), audio)
