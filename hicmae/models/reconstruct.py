"""What a pre-training model predicts, turned back into frames and spectrograms to look at."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from hicmae.models.encoder import PATCH_SIZE, ModalityEncoder
from hicmae.models.layers import TokenSplit, cut_patches, join_patches, split_tokens, token_grid
from hicmae.models.losses import TARGET_EPS, frame_differences, unnormalize


class Reconstruction(NamedTuple):
    """One clip three times: as it was, as the encoder saw it, and rebuilt."""

    video: Tensor  # (3, T, H, W) in [0, 1]
    video_masked: Tensor  # masked patches grey
    video_rebuilt: Tensor  # visible patches as they were
    audio: Tensor  # (T, F), normalised log-mel
    audio_masked: Tensor  # masked patches nan
    audio_rebuilt: Tensor


@torch.inference_mode()
def reconstruct(
    model: nn.Module,
    video: Tensor,
    video_mask: Tensor,
    audio: Tensor,
    audio_mask: Tensor,
    autocast: AbstractContextManager,
    frame_diff_group_size: int | None = 2,
    normalize_target: bool = True,
    normalize_target_audio: bool = True,
) -> list[Reconstruction]:
    """Rebuild the masked patches of every clip of a batch.

    Args:
        model: pre-training model.
        video: as for `pretrain_loss`, like the other arguments of these names.
        video_mask: (B, N) bool.
        audio: spectrograms.
        audio_mask: (B, N) bool.
        autocast: precision of the forward pass.
        frame_diff_group_size: None: the target has no frame differences.
        normalize_target: whether the target's patches are standardised.
        normalize_target_audio: the same of the spectrogram.
    """
    model.eval()
    tubelet_size = cast(ModalityEncoder, model.encoder).patch_embed.patch_size[0]
    split = split_tokens(video_mask, None, "video_mask").to(video.device)
    split_audio = split_tokens(audio_mask, None, "audio_mask").to(audio.device)
    with autocast:
        output = model(video, split, audio, split_audio)
    pixels = unnormalize(video.float()).clamp(0, 1)
    rebuilt = rebuild_video(
        output.video.float(),
        video.float(),
        split,
        tubelet_size,
        frame_diff_group_size,
        normalize_target,
    )
    rebuilt_audio = rebuild_audio(
        output.audio.float(), audio.float(), split_audio, normalize_target_audio
    )
    clips = zip(
        pixels,
        _replaced(pixels, split.masked, (tubelet_size, PATCH_SIZE, PATCH_SIZE), 0.5),
        rebuilt.clamp(0, 1),
        audio[:, 0],
        _replaced(audio, split_audio.masked, (PATCH_SIZE, PATCH_SIZE), float("nan"))[:, 0],
        rebuilt_audio[:, 0],
        strict=True,
    )
    return [Reconstruction(*(part.float().cpu() for part in clip)) for clip in clips]


def rebuild_video(
    predicted: Tensor,
    video: Tensor,
    split: TokenSplit,
    tubelet_size: int = 2,
    frame_diff_group_size: int | None = 2,
    normalize: bool = True,
) -> Tensor:
    """Put predictions in the place of masked patches, undoing differences and normalisation.

    A normalised patch gets the mean and deviation of the true one, which the model does not
    predict. With perfect predictions the result is the clip itself.

    Args:
        predicted: (B, M, P).
        video: (B, 3, T, H, W), ImageNet-normalised.
        split: the clips' visible and masked tokens.
        tubelet_size: frames of a tubelet.
        frame_diff_group_size: as in `video_target`.
        normalize: as in `video_target`.

    Returns:
        (B, 3, T, H, W) pixels, about [0, 1].
    """
    patch_size = (tubelet_size, PATCH_SIZE, PATCH_SIZE)
    grid = token_grid(video.shape[2:], patch_size, "video")
    patches = cut_patches(unnormalize(video), patch_size)
    std, mean = torch.std_mean(patches, dim=(3, 4, 5), keepdim=True)
    scale, offset = (std + TARGET_EPS, mean) if normalize else (1.0, 0.0)
    target = join_patches((patches - offset) / scale, grid)
    if frame_diff_group_size is not None:
        target = frame_differences(target, frame_diff_group_size)
    axes = {"p": tubelet_size, "q": PATCH_SIZE, "r": PATCH_SIZE}
    values = rearrange(predicted, "b n (p q r c) -> b n c p q r", **axes)
    target = _replaced(target, split.masked, patch_size, values)
    if frame_diff_group_size is not None:
        target = undo_frame_differences(target, frame_diff_group_size)
    return join_patches(cut_patches(target, patch_size) * scale + offset, grid)


def undo_frame_differences(clip: Tensor, group_size: int) -> Tensor:
    """Add each group's first frame to its later frames, (B, C, T, H, W) in and out."""
    groups = clip.unflatten(2, (-1, group_size))
    first, later = groups.split((1, group_size - 1), dim=3)
    return torch.cat((first, later + first), dim=3).flatten(2, 3)


def rebuild_audio(
    predicted: Tensor, audio: Tensor, split: TokenSplit, normalize: bool = True
) -> Tensor:
    """Put predictions (B, M, 256) in the place of masked patches of (B, 1, T, F)."""
    patch_size = (PATCH_SIZE, PATCH_SIZE)
    values = predicted.unflatten(2, (1, *patch_size))
    if normalize:
        true = cut_patches(audio, patch_size, split.masked)
        std, mean = torch.std_mean(true, dim=(3, 4), keepdim=True)
        values = values * (std + TARGET_EPS) + mean
    return _replaced(audio, split.masked, patch_size, values)


def _replaced(
    clip: Tensor, index: Tensor, patch_size: Sequence[int], values: Tensor | float
) -> Tensor:
    """Return the clip with other values, (B, M, C, *patch_size), in the patches at `index`."""
    patches = cut_patches(clip, patch_size).clone()
    patches[torch.arange(len(clip), device=clip.device)[:, None], index] = values
    return join_patches(patches, token_grid(clip.shape[2:], patch_size, "clip"))
