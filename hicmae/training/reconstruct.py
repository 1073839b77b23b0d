"""Predictions turned back into frames and spectrograms, for TensorBoard and for figures."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hicmae.models.encoder import PATCH_SIZE, ModalityEncoder
from hicmae.models.layers import TokenSplit, cut_patches, join_patches, split_tokens, token_grid
from hicmae.models.losses import TARGET_EPS, frame_differences, unnormalize
from hicmae.training.run import Precision


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
    precision: Precision,
    frame_diff_group_size: int | None = 2,
    normalize_target: bool = True,
    normalize_target_audio: bool = True,
) -> list[Reconstruction]:
    """Rebuild the masked patches of every clip of a batch; arguments as for `pretrain_loss`."""
    model.eval()
    tubelet_size = cast(ModalityEncoder, model.encoder).patch_embed.patch_size[0]
    split = split_tokens(video_mask, video_mask.shape[1], "video_mask").to(video.device)
    split_audio = split_tokens(audio_mask, audio_mask.shape[1], "audio_mask").to(audio.device)
    with precision.autocast():
        output = model(video, split, audio, split_audio)
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
    pixels = unnormalize(video.float()).clamp(0, 1)
    hidden = _paint(pixels, split.masked, (tubelet_size, PATCH_SIZE, PATCH_SIZE), 0.5)
    hidden_audio = _paint(audio, split_audio.masked, (PATCH_SIZE, PATCH_SIZE), float("nan"))
    clips = zip(
        pixels,
        hidden,
        rebuilt.clamp(0, 1),
        audio[:, 0],
        hidden_audio[:, 0],
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
    scale = std + TARGET_EPS if normalize else torch.ones_like(std)
    offset = mean if normalize else torch.zeros_like(mean)
    targets = (patches - offset) / scale
    if frame_diff_group_size is not None:
        clip = frame_differences(join_patches(targets, grid), frame_diff_group_size, time_axis=2)
        targets = cut_patches(clip, patch_size)
    values = predicted.unflatten(2, (*patch_size, video.shape[1])).movedim(-1, 2)
    targets = _put(targets, split.masked, values)
    if frame_diff_group_size is not None:
        clip = undo_frame_differences(join_patches(targets, grid), frame_diff_group_size)
        targets = cut_patches(clip, patch_size)
    return join_patches(targets * scale + offset, grid)


def undo_frame_differences(clip: Tensor, group_size: int) -> Tensor:
    """Add each group's first frame to its later frames, (B, C, T, H, W) in and out."""
    groups = clip.unflatten(2, (-1, group_size))
    first = groups[:, :, :, :1]
    return torch.cat((first, groups[:, :, :, 1:] + first), dim=3).flatten(2, 3)


def rebuild_audio(
    predicted: Tensor, audio: Tensor, split: TokenSplit, normalize: bool = True
) -> Tensor:
    """Put predictions (B, M, 256) in the place of masked patches of (B, 1, T, F)."""
    patch_size = (PATCH_SIZE, PATCH_SIZE)
    grid = token_grid(audio.shape[2:], patch_size, "audio")
    patches = cut_patches(audio, patch_size)
    values = predicted.unflatten(2, (1, *patch_size))
    if normalize:
        std, mean = torch.std_mean(patches, dim=(3, 4), keepdim=True)
        rows = torch.arange(len(audio), device=audio.device)[:, None]
        values = values * (std + TARGET_EPS)[rows, split.masked] + mean[rows, split.masked]
    return join_patches(_put(patches, split.masked, values), grid)


def _put(patches: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return patches (B, N, ...) with those at `index` (B, M) replaced by values (B, M, ...)."""
    rows = torch.arange(len(patches), device=patches.device)[:, None]
    patches = patches.clone()
    patches[rows, index] = values.to(patches.dtype)
    return patches


def _paint(clip: Tensor, index: Tensor, patch_size: tuple[int, ...], value: float) -> Tensor:
    """Return the clip with the patches at `index` filled with one value."""
    grid = token_grid(clip.shape[2:], patch_size, "clip")
    patches = cut_patches(clip, patch_size)
    rows = torch.arange(len(clip), device=clip.device)[:, None]
    return join_patches(_put(patches, index, torch.full_like(patches[rows, index], value)), grid)
