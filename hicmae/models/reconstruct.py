"""What a pre-training model predicts, turned back into frames and spectrograms to look at."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hicmae.models.encoder import ModalityEncoder
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

    The arguments are those of `pretrain_loss`, with the precision of the forward pass; a group
    size of None says that the target has no frame differences.
    """
    encoders = (cast(ModalityEncoder, part) for part in (model.eval().encoder, model.encoder_audio))
    size, size_audio = (encoder.patch_embed.patch_size for encoder in encoders)
    split = split_tokens(video_mask, None, "video_mask").to(video.device)
    split_audio = split_tokens(audio_mask, None, "audio_mask").to(audio.device)
    with autocast:
        output = model(video, split, audio, split_audio)
    pixels, audio = unnormalize(video.float()), audio.float()
    how, how_audio = (normalize_target, frame_diff_group_size), (normalize_target_audio,)
    rebuilt = rebuild(output.video.float(), pixels, split, size, *how)
    rebuilt_audio = rebuild(output.audio.float(), audio, split_audio, size_audio, *how_audio)
    shown = pixels.clamp(0, 1)
    clips = zip(
        shown,
        _replaced(shown, split.masked, size, 0.5),
        rebuilt.clamp(0, 1),
        audio[:, 0],
        _replaced(audio, split_audio.masked, size_audio, float("nan"))[:, 0],
        rebuilt_audio[:, 0],
        strict=True,
    )
    return [Reconstruction(*(part.cpu() for part in clip)) for clip in clips]


def rebuild(
    predicted: Tensor,
    clip: Tensor,
    split: TokenSplit,
    patch_size: Sequence[int],
    normalize: bool = True,
    frame_diff_group_size: int | None = None,
) -> Tensor:
    """Put predictions (B, M, P) in the place of masked patches, undoing what targets undergo.

    The clip is (B, 3, T, H, W) pixels or a (B, 1, T, F) spectrogram, and so is the result. A
    normalised patch gets the mean and deviation of the true one, which the model does not predict.
    With perfect predictions the result is the clip itself.
    """
    patches = cut_patches(clip, patch_size)
    grid = token_grid(clip.shape[2:], patch_size, "clip")
    std, mean = torch.std_mean(patches, dim=tuple(range(3, patches.dim())), keepdim=True)
    scale, offset = (std + TARGET_EPS, mean) if normalize else (1.0, 0.0)
    target, group_size = join_patches((patches - offset) / scale, grid), frame_diff_group_size
    if group_size is not None:
        target = frame_differences(target, group_size)
    values = predicted.unflatten(2, (*patch_size, clip.shape[1])).movedim(-1, 2)
    target = _replaced(target, split.masked, patch_size, values)
    if group_size is not None:  # each group's first frame comes back to its later ones
        first, later = target.unflatten(2, (-1, group_size)).split((1, group_size - 1), dim=3)
        target = torch.cat((first, later + first), dim=3).flatten(2, 3)
    return join_patches(cut_patches(target, patch_size) * scale + offset, grid)


def _replaced(
    clip: Tensor, index: Tensor, patch_size: Sequence[int], values: Tensor | float
) -> Tensor:
    """Return the clip with other values, (B, M, C, *patch_size), in the patches at `index`."""
    patches = cut_patches(clip, patch_size).clone()
    patches[torch.arange(len(clip), device=clip.device)[:, None], index] = values
    return join_patches(patches, token_grid(clip.shape[2:], patch_size, "clip"))
