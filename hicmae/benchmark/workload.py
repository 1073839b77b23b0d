"""What a model benchmark consists of: two variants of the same work, and its analytic count."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hicmae.benchmark.flops import Parts
from hicmae.benchmark.settings import BenchmarkConfig
from hicmae.data.masking import random_mask, tube_mask
from hicmae.models.encoder import ModalityEncoder
from hicmae.models.finetune import HiCMAEClassifier
from hicmae.models.layers import Block
from hicmae.models.pretrain import HiCMAE, SkipDecoder
from hicmae.training.run import Precision

Step = Callable[[], object]


class Workload(NamedTuple):
    """One of pretrain, finetune, infer; all functions take the settings first."""

    name: str
    make_ours: Callable[[BenchmarkConfig, Precision, int], Step]  # the int: clips of a step
    make_plain: Callable[[BenchmarkConfig, Precision, int], Step]
    flops: Callable[[BenchmarkConfig], Parts]  # useful operations a clip
    errors: Callable[[BenchmarkConfig, Precision], dict[str, float]]  # ours against float64
    views: tuple[int, int] = (1, 1)  # forward passes a clip: ours, plain


def named_workload(name: str) -> Workload:
    """Return the workload of a sub-command's module."""
    return importlib.import_module(f"hicmae.benchmark.{name}").WORKLOAD


def plain(module: str) -> ModuleType:
    """Import a module of the plain baseline.

    Raises:
        RuntimeError: the repository's tests are not here.
    """
    try:
        return importlib.import_module(f"tests.plain.{module}")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "the plain baseline is tests/plain of the repository and cannot be imported "
            f"({error}); run from the repository's root, or add --no-plain"
        ) from error


class Clips(NamedTuple):
    """Random clips, normalised, on the device, and their masks on the CPU."""

    video: Tensor
    video_mask: Tensor
    audio: Tensor
    audio_mask: Tensor


def random_clips(
    config: BenchmarkConfig,
    model: HiCMAE | HiCMAEClassifier,
    batch: int,
    device: str | torch.device,
) -> Clips:
    """Draw clips and masks of the model's geometry; the same on every device."""
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    video, audio = model.encoder.patch_embed, model.encoder_audio.patch_embed
    frames, rows, columns = video.grid
    masks = [tube_mask((frames, rows, columns), 0.9, rng) for _ in range(batch)]
    audio_masks = [random_mask(audio.num_tokens, 0.8, rng) for _ in range(batch)]
    return Clips(
        torch.randn(batch, *video.clip_shape, generator=generator).to(device),
        torch.from_numpy(np.stack(masks)),
        torch.randn(batch, *audio.clip_shape, generator=generator).to(device),
        torch.from_numpy(np.stack(audio_masks)),
    )


def heads_of(stack: ModalityEncoder | SkipDecoder) -> int:
    """Return the attention heads of an encoder's or decoder's blocks."""
    return cast(Block, stack.blocks[0]).attn.num_heads


def flat_gradient(model: nn.Module) -> Tensor:
    """Return the gradients of all parameters as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative_error(values: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    values, expected = values.detach().double(), expected.detach().double()
    return float((values - expected).abs().max() / expected.abs().max())


def training_errors(own: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, float]:
    """Compare prediction, loss and gradient of a training step with those in float64."""
    names = ("prediction", "loss", "gradient")
    return {
        f"{name}_error": relative_error(mine, true)
        for name, mine, true in zip(names, own, exact, strict=True)
    }
