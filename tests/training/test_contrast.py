"""What the contrast learns: what sound and picture of a clip have in common, and nothing else."""

import pytest
import torch

from hicmae.models.losses import contrastive_accuracy, pretrain_loss
from tests.models.test_models import pretraining_model

BATCH, STEPS = 12, 80


def tinted(generator):
    """Return clips whose two colours are also the two levels of their spectrograms, and masks."""
    shade = 1.5 * torch.randn(BATCH, 2, generator=generator)
    video = torch.randn(BATCH, 3, 4, 32, 48, generator=generator) / 2
    video[:, :2] += shade[:, :, None, None, None]
    audio = torch.randn(BATCH, 1, 64, 32, generator=generator) / 2
    audio += shade[:, None, None, :].repeat_interleave(16, dim=3)
    video_mask, audio_mask = (
        torch.rand(BATCH, count, generator=generator).argsort(dim=1) < count // 2
        for count in (12, 8)
    )
    return video, video_mask, audio, audio_mask


@pytest.mark.parametrize("related", [True, False], ids=["related", "unrelated"])
def test_contrast_finds_what_the_streams_of_a_clip_share(related):
    model = pretraining_model()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scores = []
    for _ in range(STEPS):
        video, video_mask, audio, audio_mask = tinted(generator)
        if not related:
            audio = audio.roll(1, dims=0)  # the sound of another clip
        output = model(video, video_mask, audio, audio_mask)
        loss = pretrain_loss(output, video, video_mask, audio, audio_mask, frame_diff=False)
        optimizer.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        scores.append([float(score) for score in contrastive_accuracy(*output[2:])])
    late = torch.tensor(scores[-20:]).mean(dim=0)
    assert len(late) == 2
    guessing = 1 / BATCH
    assert (late > 3 * guessing).all() if related else (late < 2 * guessing).all()
