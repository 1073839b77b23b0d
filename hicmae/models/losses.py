"""Targets and losses of pre-training (paper, sections 3.3 and 3.4) and of regression.

Pure functions: they read a model's output and the clips, never the model.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

from hicmae.io import imagenet
from hicmae.models import layers
from hicmae.models.layers import PATCH_SIZE, TokenSplit, cut_patches, split_tokens
from hicmae.models.pretrain import HiCMAEOutput

TARGET_EPS = 1e-6  # added to the standard deviation of a patch
Levels = Sequence[Tensor]  # pooled features of one modality, (B, D) each, shallow first


class PretrainLoss(NamedTuple):
    """The pre-training loss and its parts, all scalars."""

    total: Tensor  # video + audio + loss_weight * contrast
    video: Tensor
    audio: Tensor
    contrast: Tensor | None  # unweighted sum over the contrasted levels; None: there are none


def pretrain_loss(
    output: HiCMAEOutput,
    video: Tensor,
    video_mask: Tensor | TokenSplit,
    audio: Tensor,
    audio_mask: Tensor | TokenSplit,
    loss_weight: float = 0.0025,
    temperature: float = 0.07,
    frame_diff: bool = False,
    frame_diff_group_size: int = 2,
    target_diff_weight: float | None = None,
    normalize_target: bool = True,
    normalize_target_audio: bool = True,
    gather: bool = False,
    contrastive_levels: str = "all",
) -> PretrainLoss:
    """Compare predictions with the masked patches and contrast the modalities at every level.

    The output is the model's for these normalised clips, video (B, 3, T, H, W) and audio
    (B, 1, T, F), and masks, (B, N) bool, True = masked, or their `TokenSplit`. With `frame_diff`
    later frames of a group are differences to its first; `normalize_target` and
    `normalize_target_audio` standardise each patch, of video each channel by itself. For the other
    arguments see `video_mse`, `contrasted` and `contrastive_loss`.
    """
    tubelet_size = output.video.shape[-1] // (video.shape[1] * PATCH_SIZE**2)
    group_size = frame_diff_group_size if frame_diff else None
    with torch.no_grad():
        masked = split_tokens(video_mask, None, "video_mask").masked
        masked_audio = split_tokens(audio_mask, None, "audio_mask").masked
        target = video_target(video, masked, tubelet_size, normalize_target, group_size)
        target_audio = audio_target(audio, masked_audio, normalize_target_audio)
    loss_video = video_mse(_precise(output.video), target, tubelet_size, target_diff_weight)
    loss_audio = F.mse_loss(_precise(output.audio), target_audio)
    total = loss_video + loss_audio
    levels = contrasted(len(output.video_levels), contrastive_levels)
    if not levels:
        return PretrainLoss(total, loss_video, loss_audio, None)
    chosen = output.video_levels[levels.start :], output.audio_levels[levels.start :]
    contrast = contrastive_loss(*chosen, temperature, gather)
    return PretrainLoss(total + loss_weight * contrast, loss_video, loss_audio, contrast)


def _precise(tensor: Tensor) -> Tensor:
    """Lift half-precision activations to float32; leave float32 and float64 alone."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def unnormalize(video: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: (B, 3, T, H, W) back to pixel values in [0, 1]."""
    mean, std = imagenet(video.device, video.dtype)
    return video * std + mean


def _standardize(values: Tensor, eps: float | Tensor = TARGET_EPS) -> Tensor:
    """Subtract the mean over the last axis and divide by the unbiased deviation plus epsilon."""
    centred = values - values.mean(dim=-1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(values.shape[-1] - 1)
    return centred.div_(std + eps)


def video_target(
    video: Tensor, masked: Tensor, tubelet_size: int, normalize: bool, group_size: int | None
) -> Tensor:
    """Make the values the video decoder has to predict at the positions `masked` (B, M).

    The video is (B, 3, T, H, W), ImageNet-normalised; `normalize` standardises each patch and
    channel over its pixels. Then later frames of a group become differences to its first one; a
    `group_size` of None keeps all frames.

    Returns:
        (B, M, tubelet_size * 16 * 16 * 3) in (frame, y, x, channel) order.
    """
    pixels = _precise(video)
    patch_size = (tubelet_size, PATCH_SIZE, PATCH_SIZE)
    # Where groups coincide with tubelets, the masked ones are all that is ever needed.
    index = masked if group_size in (None, tubelet_size) else None
    patches = cut_patches(pixels if normalize else unnormalize(pixels), patch_size, index)
    if normalize:
        # Standardising undoes shift and scale of a channel by itself; only epsilon has to follow.
        eps = TARGET_EPS / imagenet(pixels.device, pixels.dtype)[1].view(3, 1)
        patches = _standardize(patches.flatten(3), eps).view_as(patches)
    if group_size is not None and index is None:
        if video.shape[2] % group_size:
            raise ValueError(
                f"frame_diff_group_size {group_size} does not divide the {video.shape[2]} "
                "frames of a clip; choose a divisor"
            )
        grid = layers.token_grid(video.shape[2:], patch_size, "video")
        clip = layers.join_patches(patches, grid)
        patches = cut_patches(frame_differences(clip, group_size), patch_size, masked)
    elif group_size is not None:
        patches = frame_differences(patches, group_size, time_axis=3)
    return rearrange(patches, "b n c p q r -> b n (p q r c)")


def frame_differences(clip: Tensor, group_size: int, time_axis: int = 2) -> Tensor:
    """Replace all but the first frame of each group by their difference to that first frame."""
    groups = clip.unflatten(time_axis, (-1, group_size))
    first, later = groups.split((1, group_size - 1), dim=time_axis + 1)
    return torch.cat((first, later - first), dim=time_axis + 1).flatten(time_axis, time_axis + 1)


def audio_target(audio: Tensor, masked: Tensor, normalize: bool = True) -> Tensor:
    """Make the values (B, M, 256) the audio decoder has to predict, in (time, frequency) order.

    The audio is (B, 1, T, F), positions are (B, M); `normalize` standardises each patch.
    """
    values = cut_patches(_precise(audio), (PATCH_SIZE, PATCH_SIZE), masked).flatten(2)
    return _standardize(values) if normalize else values


def video_mse(
    predicted: Tensor, target: Tensor, tubelet_size: int, target_diff_weight: float | None = None
) -> Tensor:
    """Mean squared error over masked patches, (B, M, P) each, of all values, frame slowest.

    A weight w makes it (1 - w) * mse(first frames of tubelets) + w * mse(their later frames).
    """
    if target_diff_weight is None:
        return F.mse_loss(predicted, target)
    split = predicted.shape[-1] // tubelet_size
    first = F.mse_loss(predicted[..., :split], target[..., :split])
    later = F.mse_loss(predicted[..., split:], target[..., split:])
    return (1 - target_diff_weight) * first + target_diff_weight * later


def contrasted(num_levels: int, which: str) -> range:
    """Return which levels to contrast, 0 the shallowest: "all"; "top", the deepest; or "none"."""
    first = {"all": 0, "top": num_levels - 1, "none": num_levels}
    if which not in first:
        choices = ", ".join(map(repr, first))
        raise ValueError(f"contrastive_levels is {which!r}, expected one of {choices}")
    return range(first[which], num_levels)


def contrastive_loss(
    video_levels: Levels, audio_levels: Levels, temperature: float = 0.07, gather: bool = False
) -> Tensor:
    """Sum the symmetric InfoNCE loss over levels, of (B, D) unit-length features each.

    `gather` compares with the clips of all ranks (with their gradients), not only this rank's; B
    must be the same on every rank.
    """
    own = [_precise(level) for level in (*video_levels, *audio_levels)]
    everyone, offset, count = own, 0, len(video_levels)
    if gather and distributed.is_initialized():
        joined = torch.cat(all_gather(torch.cat(own, dim=1)))  # all levels in one message
        everyone = list(joined.split([level.shape[1] for level in own], dim=1))
        offset = len(own[0]) * distributed.get_rank()
    pair = torch.arange(len(own[0]), device=own[0].device) + offset
    losses, device = [], pair.device.type
    knows = torch.amp.is_autocast_available(device)  # "meta", which counts operations, does not
    # Autocast would make products half precise.
    with torch.autocast(device, enabled=False) if knows else nullcontext():
        streams = (own, own[count:], everyone, everyone[count:])
        for video, audio, all_video, all_audio in zip(*streams, strict=False):
            video_to_audio = F.cross_entropy(video @ all_audio.T / temperature, pair)
            audio_to_video = F.cross_entropy(audio @ all_video.T / temperature, pair)
            losses.append(0.5 * (video_to_audio + audio_to_video))
    return torch.stack(losses).sum()


@torch.no_grad()
def contrastive_accuracy(video_levels: Levels, audio_levels: Levels) -> list[Tensor]:
    """Count clips whose own audio is the batch's nearest to their video: a share for each level."""
    accuracies = []
    for video, audio in zip(video_levels, audio_levels, strict=True):
        pair = torch.arange(len(video), device=video.device)
        accuracies.append(((video @ audio.T).argmax(dim=1) == pair).float().mean())
    return accuracies


def _moments(prediction: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Biased variances and covariance over the batch, and the difference of means, (K,) each."""
    mean_p, mean_t = prediction.mean(dim=0), target.mean(dim=0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(dim=0)
    variances = prediction.var(dim=0, correction=0), target.var(dim=0, correction=0)
    return *variances, covariance, mean_p - mean_t


def ccc_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Average 1 - concordance correlation over the outputs of a batch; (B, K) each."""
    var_p, var_t, covariance, offset = _moments(prediction, target)
    return (1 - 2 * covariance / (var_p + var_t + offset**2).clamp_min(1e-8)).mean()


def pcc_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Average 1 - Pearson correlation over the outputs of a batch; (B, K) each."""
    var_p, var_t, covariance, _ = _moments(prediction, target)
    spread = (var_p * var_t).clamp_min(1e-16).sqrt() + 1e-6  # epsilon of the original
    return (1 - covariance / spread).mean()


def class_weights(counts: Tensor, kind: str) -> Tensor | None:
    """Return the weight of each class, (K,), by its number of clips; their mean over clips is 1.

    "balanced" is one over the number; "effective" over the effective number (1 - b^n) / (1 - b)
    with b = 0.999 (Cui et al., Class-Balanced Loss, arXiv 1901.05555); "none" is None. A class
    without clips has weight 1.
    """
    if kind == "none":
        return None
    numbers = counts.double()
    weights = 1 / (numbers if kind == "balanced" else 1 - 0.999**numbers)
    weights = weights * (numbers.sum() / (weights * numbers).nansum())
    return torch.where(counts > 0, weights, 1.0).float()


def cross_entropy(
    scores: Tensor, target: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Average the cross entropy of logits (B, K) and classes (B,) or probabilities (B, K).

    The mean is over clips, also with `weights` of the classes (K,), by which PyTorch divides for
    the one kind of target and not for the other.
    """
    how = "mean" if weights is None else "none"
    return F.cross_entropy(scores, target, weights, label_smoothing=smoothing, reduction=how).mean()


REGRESSION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "ccc": ccc_loss,
    "pcc": pcc_loss,
}
