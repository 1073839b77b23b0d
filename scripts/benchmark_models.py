"""Models, clips and steps of scripts/benchmark.py: ours, and those of the plain rendition."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import CPU_GEMM, Settings, option
from hicmae.data.batches import LabelledBatch, PretrainBatch, ViewBatch
from hicmae.data.masking import random_mask, tube_mask
from hicmae.io import choose_device
from hicmae.models.layers import split_tokens
from hicmae.models.losses import pretrain_loss
from hicmae.training.evaluate import predict
from hicmae.training.loop import train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import Precision, checkpoint_activations, choose_precision, compiled
from hicmae.training.state import MetricBuffer, TrainState
from scripts.benchmark_data import Step, plain

LEVERS = ("compile", "cuda_graphs", "checkpoint_activations")
DROP_PATH, LAYER_DECAY = 0.1, 0.75  # of fine-tuning
# A test clip has two windows in time and two crops, which are the same pixels in square frames:
# ours computes each window once, the plain baseline all four views, one after the other.
WINDOWS, CROPS = 2, 2


class Size(NamedTuple):
    """A model and its clips; without more than the width, the published ones."""

    width: int
    depth: int = 10
    fusion_depth: int = 2
    levels: tuple[int, ...] = (3, 6, 9)
    num_frames: int = 16
    side: int = 160
    audio: tuple[int, int] = (256, 128)


SIZES = {"t": Size(256), "s": Size(384), "b": Size(512),
         "tiny": Size(128, 2, 1, (0, 1), 4, 32, (32, 16))}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """What to measure."""

    model: str = option("b", "HiCMAE-T, -S, -B, or a tiny one to try this out", choices=[*SIZES])
    batch_size: tuple[int, ...] = option((4,), "clips of a step, the best of several", "> 0")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option("auto", "arithmetic of ours", choices=("auto", "fp32", "fp16", "bf16"))
    compile: bool = option(False, "torch.compile ours")
    cuda_graphs: bool = option(False, "with --compile: replay a pass by one launch")
    checkpoint_activations: bool = option(False, "compute blocks again in the backward pass")
    cpu_gemm: str = option("auto", "library of fp32 products on a CPU", choices=CPU_GEMM)
    steps: int = option(20, "measured steps of each variant", "> 0")
    warmup: int = option(3, "steps before that")
    seed: int = option(0, "seed of weights, clips and masks")
    plain: bool = option(True, "measure the plain baseline of tests/plain too, in turns")
    memory: bool = option(True, "measure peak memory, each variant in a process of its own")
    peaks: bool = option(True, "measure the device's matrix products too")
    errors: bool = option(True, "compare with float64")
    profile: bool = option(False, "show the operators that take most of the time")

    def _check(self) -> None:
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")

    @property
    def size(self) -> Size:
        """Return the sizes of the model."""
        return SIZES[self.model]

    def arithmetic(self) -> Precision:
        """Choose device and precision as training does."""
        device = choose_device(self.device)
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError("--cuda_graphs needs a GPU; leave it out")
        return choose_precision(self.precision, device)


def make_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> Any:
    """Create the model of a task, with weights that depend on --seed alone."""
    size, suffix = config.size, f"dim{config.size.width}_patch16_160_a256"
    options: dict[str, Any] = {
        "num_frames": size.num_frames, "img_size": size.side, "img_size_audio": size.audio,
        "cpu_gemm": config.cpu_gemm, "drop_path_rate": drop_path,
    }  # fmt: skip
    torch.manual_seed(config.seed)
    if task == "pretrain":
        decoders = dict.fromkeys(("decoder_depth", "decoder_depth_audio"), len(size.levels) + 1)
        encoders = dict.fromkeys(("encoder_depth", "encoder_depth_audio"), size.depth)
        options |= {"encoder_fusion_depth": size.fusion_depth, **encoders, **decoders}
        options["return_intermediate_features"] = size.levels
        return timm.create_model(f"pretrain_hicmae_{suffix}", **options)
    options |= {"depth": size.depth, "depth_audio": size.depth, "fusion_depth": size.fusion_depth}
    return timm.create_model(f"avit_{suffix}", num_classes=6, **options)


def plain_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> nn.Module:
    """Create the plain model with the weights and sizes of ours."""
    ours, size = make_model(task, config), config.size
    options = {
        "dim": size.width, "heads": ours.encoder.blocks[0].attn.num_heads, "depth": size.depth,
        "depth_audio": size.depth, "fusion_depth": size.fusion_depth,
        "num_frames": size.num_frames, "img_size": (size.side, size.side),
        "img_size_audio": size.audio,
    }  # fmt: skip
    if task == "pretrain":
        decoder = {"decoder_dim": ours.decoder.head.in_features, "keep": size.levels}
        decoder["decoder_heads"] = ours.decoder.blocks[0].attn.num_heads
        model = plain("model").PlainPretraining(**options, **decoder)
    else:
        model = plain("model").PlainClassifier(**options, num_classes=6, drop=drop_path)
    model.load_state_dict(ours.state_dict())
    return model


def random_batch(task: str, config: BenchmarkConfig, count: int, device: Any) -> Any:
    """Draw normalised clips of the model's geometry; the same on every device.

    Masks are on the CPU. Targets are soft, as mixup and cutmix leave them.
    """
    size, names = config.size, ("",) * count
    generator = torch.Generator().manual_seed(config.seed)
    shape = (count, 3, size.num_frames, size.side, size.side)
    video = torch.randn(shape, generator=generator).to(device)
    audio = torch.randn(count, 1, *size.audio, generator=generator).to(device)
    if task == "pretrain":
        rng = np.random.default_rng(config.seed)
        grid = (size.num_frames // 2, size.side // 16, size.side // 16)
        num_audio = size.audio[0] * size.audio[1] // 256
        masks = torch.tensor(np.stack([tube_mask(grid, 0.9, rng) for _ in range(count)]))
        audio_masks = np.stack([random_mask(num_audio, 0.8, rng) for _ in range(count)])
        return PretrainBatch(video, masks, audio, torch.tensor(audio_masks), names, ())
    generator.manual_seed(config.seed + 1)
    target = torch.rand(count, 6, generator=generator).softmax(dim=-1)
    return LabelledBatch(video, audio, target.to(device), names, ())


def compute(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return prediction and loss of a batch; clips of a float64 model are lifted to it."""
    dtype = next(model.parameters()).dtype
    video, audio = batch.video.to(dtype), batch.audio.to(dtype)
    if isinstance(batch, LabelledBatch):
        scores = model(video, audio)
        precise = scores.to(torch.promote_types(dtype, torch.float32))
        return scores, F.cross_entropy(precise, batch.target)
    split, split_audio = (
        split_tokens(mask, None, "mask").to(video.device)
        for mask in (batch.video_mask, batch.audio_mask)
    )
    output = model(video, split, audio, split_audio)
    loss = pretrain_loss(output, video, split, audio, split_audio).total
    return torch.cat([part.flatten() for part in output[:2]]), loss


def with_levers(config: BenchmarkConfig, model: nn.Module) -> nn.Module:
    """Apply --checkpoint_activations and --compile as training does."""
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return compiled(model, config.cuda_graphs) if config.compile else model


def our_step(task: str, config: BenchmarkConfig, precision: Precision, count: int) -> Step:
    """Build our step for `count` clips, the one of hicmae.training."""
    tuning = task == "finetune"
    model = make_model(task, config, DROP_PATH if tuning else 0.0).to(precision.device)
    if task == "infer":
        video, audio = random_batch(task, config, count * WINDOWS, precision.device)[:2]
        numbers = torch.arange(count)
        clip_of, targets = numbers.repeat_interleave(WINDOWS), torch.zeros_like(numbers)
        views = ViewBatch(video, audio, clip_of, numbers, targets, ("",) * count, ())
        scored = with_levers(config, model.eval())
        return lambda: predict(scored, [views], precision, "classification", "")
    groups = parameter_groups(model, 0.05, LAYER_DECAY if tuning else None)
    optimizer = make_optimizer(groups, 1e-4, (0.9, 0.999) if tuning else (0.9, 0.95))
    state = TrainState(model, optimizer, precision.grad_scaler(), MetricBuffer(1))
    trained = with_levers(config, model.train())
    batches = [random_batch(task, config, count, precision.device)]
    return lambda: train_step(
        trained, batches, lambda model, batch: (compute(model, batch)[1], {}), state, precision
    )


def plain_step(task: str, config: BenchmarkConfig, precision: Precision, count: int) -> Step:
    """Build the plain step for the same clips."""
    device, training = precision.device, plain("training")
    model = plain_model(task, config, DROP_PATH if task == "finetune" else 0.0).to(device)
    if task == "infer":
        clips = random_batch(task, config, count * WINDOWS, device)
        windows = [(clips.video[k::WINDOWS], clips.audio[k::WINDOWS]) for k in range(WINDOWS)]
        return lambda: training.score_views(model, windows * CROPS, device).mean(dim=0)
    batch = random_batch(task, config, count, device)
    if task == "finetune":
        trainer = training.PlainTrainer(model, device, (0.9, 0.999))
        return lambda: trainer.finetune_step(*batch[:3])
    trainer = training.PlainTrainer(model, device)
    clips = [part.to(device) for part in batch[:4]]
    return lambda: trainer.pretrain_step(*clips)


STEPS = {"ours": our_step, "plain": plain_step}
