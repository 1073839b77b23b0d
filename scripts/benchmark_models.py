"""What scripts/benchmark.py measures of a model: times, operations, memory and errors of a step.

Ours and the plain rendition of tests/plain have the same weights and clips, and take turns.
"""

import copy
import gc
import importlib
import itertools
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hicmae.models  # noqa: F401  (registers the models)
from hicmae.data.batches import LabelledBatch, PretrainBatch, ViewBatch
from hicmae.data.masking import random_mask, tube_mask
from hicmae.io import choose_device
from hicmae.models import cpu_gemm
from hicmae.models.layers import split_tokens
from hicmae.models.losses import pretrain_loss
from hicmae.training import distributed, run
from hicmae.training.evaluate import predict
from hicmae.training.loop import as_trained, train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from scripts.benchmark import LEVERS, SIZES, BenchmarkConfig

DROP_PATH, LAYER_DECAY, CLASSES = 0.1, 0.75, 6  # of fine-tuning
GPU_ROUND = 5  # steps between two turns on a GPU, so that its queue runs full
# A test clip has two windows in time and two crops, which are the same pixels in square frames:
# ours computes each window once, the plain baseline all four views, one after the other.
WINDOWS, CROPS = 2, 2

Step = Callable[[], object]


# Time and machine


def processor() -> str:
    """Name the processor and how many of its cores are here."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*: (.*)", text, flags=re.M)
    return f"{named[1] if named else platform.processor()}, {os.cpu_count()} cores"


def device_name(device: torch.device) -> str:
    """Name what computes."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"cpu ({processor()})"


class Mark:
    """A point in the device's own time: on a GPU, when it has done all that was asked before."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def until(self, later: "Mark") -> float:
        """Return the seconds to a later mark, once the device has reached it."""
        if self.event is None:
            return later.wall - self.wall
        later.event.synchronize()
        return self.event.elapsed_time(later.event) / 1e3


def measure_in_turns(
    variants: Mapping[str, Step], steps: int, warmup: int, device: torch.device
) -> pd.DataFrame:
    """Time `steps` of every variant in turns, so that a machine's drift meets all alike.

    Each has `warmup` steps before; the first compiles and fills caches. Returns a row a step:
    variant, wall in seconds, and cpu, those of this process on all cores.
    """
    for step in variants.values():
        for _ in range(warmup):
            step()
    rows: list[tuple[str, float, float]] = []
    chunk = GPU_ROUND if device.type == "cuda" else 1
    for first in range(0, steps, chunk):
        for name, step in variants.items():
            marks = [Mark(device)]
            for _ in range(min(chunk, steps - first)):
                step()
                marks.append(Mark(device))
            pairs = itertools.pairwise(marks)
            rows += [(name, one.until(other), other.cpu - one.cpu) for one, other in pairs]
    return pd.DataFrame(rows, columns=["variant", "wall", "cpu"])


def summary(times: pd.DataFrame, prefix: str = "") -> dict[str, float]:
    """Return median and quartiles of the wall time of a step, and the median of its CPU time."""
    low, median, high = times.wall.quantile([0.25, 0.5, 0.75])
    found = {"step_s": median, "step_s_quartile1": low, "step_s_quartile3": high}
    found["cpu_s"] = times.cpu.median()
    return {prefix + name: value for name, value in found.items()}


def plain(module: str) -> ModuleType:
    """Import a module of the plain baseline, tests/plain."""
    try:
        return importlib.import_module(f"tests.plain.{module}")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the plain baseline, tests/plain of the repository, cannot be imported ({error}); "
            "take the whole repository, or add --no-plain where there is such a flag"
        ) from error


# Models and clips


def arithmetic(config: BenchmarkConfig) -> run.Precision:
    """Choose device and precision as training does."""
    device = choose_device(config.device)
    if config.cuda_graphs and device.type != "cuda":
        raise ValueError("--cuda_graphs needs a GPU; leave it out")
    return run.choose_precision(config.precision, device)


def make_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> Any:
    """Create the model of a task, with weights that depend on --seed alone."""
    size, prefix = SIZES[config.model], "encoder_" if task == "pretrain" else ""
    options: dict[str, Any] = {
        "num_frames": size.num_frames, "img_size": size.side, "img_size_audio": size.audio,
        "cpu_gemm": config.cpu_gemm, "drop_path_rate": drop_path, f"{prefix}depth": size.depth,
        f"{prefix}depth_audio": size.depth, f"{prefix}fusion_depth": size.fusion_depth,
    }  # fmt: skip
    if task == "pretrain":
        options |= dict.fromkeys(("decoder_depth", "decoder_depth_audio"), len(size.levels) + 1)
        options["return_intermediate_features"] = size.levels
    else:
        options["num_classes"] = CLASSES
    torch.manual_seed(config.seed)
    name = "pretrain_hicmae" if task == "pretrain" else "avit"
    return timm.create_model(f"{name}_dim{size.width}_patch16_160_a256", **options)


def plain_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> nn.Module:
    """Create the plain model with the weights and sizes of ours."""
    ours, size = make_model(task, config), SIZES[config.model]
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
        model = plain("model").PlainClassifier(**options, num_classes=CLASSES, drop=drop_path)
    model.load_state_dict(ours.state_dict())
    return model


def random_batch(task: str, config: BenchmarkConfig, count: int, device: Any) -> Any:
    """Draw normalised clips of the model's geometry; the same on every device.

    Masks are on the CPU. Targets are soft, as mixup and cutmix leave them.
    """
    size, names = SIZES[config.model], ("",) * count
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
    target = torch.rand(count, CLASSES, generator=generator).softmax(dim=-1)
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
    loss = pretrain_loss(output, video, split, audio, split_audio, frame_diff=True).total
    return torch.cat([part.flatten() for part in output[:2]]), loss


# Steps


def our_step(task: str, config: BenchmarkConfig, precision: run.Precision, count: int) -> Step:
    """Build our step for `count` clips, the one of hicmae.training."""
    tuning = task == "finetune"
    model = make_model(task, config, DROP_PATH if tuning else 0.0).to(precision.device)
    if task == "infer":
        video, audio = random_batch(task, config, count * WINDOWS, precision.device)[:2]
        numbers = torch.arange(count)
        clip_of, targets = numbers.repeat_interleave(WINDOWS), torch.zeros_like(numbers)
        views = ViewBatch(video, audio, clip_of, numbers, targets, ("",) * count, ())
        scored = as_trained(model.eval(), config, precision.device)
        return lambda: predict(scored, [views], precision, "classification", "")
    groups = parameter_groups(model, 0.05, LAYER_DECAY if tuning else None)
    optimizer = make_optimizer(groups, 1e-4, (0.9, 0.999) if tuning else (0.9, 0.95))
    scaler = precision.grad_scaler()
    trained = as_trained(model.train(), config, precision.device)
    batches = [random_batch(task, config, count, precision.device)]
    how = optimizer, scaler, precision
    return lambda: train_step(
        trained, batches, lambda model, batch: (compute(model, batch)[1], {}), *how
    )


def plain_step(task: str, config: BenchmarkConfig, precision: run.Precision, count: int) -> Step:
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


STEPS = {"": our_step, "plain_": plain_step}  # by the prefix of their figures


# Figures


def count_flops(task: str, config: BenchmarkConfig) -> dict[str, float]:
    """Count the matrix products of one clip on the meta device: forward by part, and backward.

    What checkpointing or fused attention compute again is not counted: it is no use to the method.
    """
    model = make_model(task, config).to("meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, loss = compute(model, random_batch(task, config, 1, "meta"))
        forward = {name: sum(part.values()) for name, part in counter.get_flop_counts().items()}
        if task != "infer":
            loss.backward()
    prefix, views = type(model).__name__, WINDOWS if task == "infer" else 1
    # The projections to the decoder work inside it.
    parts = {name: forward.get(f"{prefix}.{name}", 0) for name, _ in model.named_children()
             if "to_decoder" not in name}  # fmt: skip
    parts["backward"] = counter.get_total_flops() - forward["Global"]
    return {name: float(views * count) for name, count in parts.items() if count}


def measure_errors(task: str, config: BenchmarkConfig, precision: run.Precision) -> dict[str, Any]:
    """Compare ours with the same model in float64: prediction, and in training loss and gradient.

    The error is the largest difference over the largest magnitude.
    """
    batch = random_batch(task, config, 2, precision.device)

    def answer(model: nn.Module, own: run.Precision) -> dict[str, Tensor]:
        model.train(task != "infer")
        with own.autocast():
            prediction, loss = compute(model, batch)
        if task == "infer":
            return {"prediction": prediction.detach().double().softmax(dim=-1)}
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        answers = {"prediction": prediction, "loss": loss, "gradient": torch.cat(gradients)}
        return {name: value.detach().double() for name, value in answers.items()}

    model = make_model(task, config).to(precision.device)
    exact = answer(copy.deepcopy(model).double(), run.Precision("fp32", precision.device))
    mine = answer(as_trained(model, config, precision.device), precision)
    return {
        f"{name}_error": float((mine[name] - true).abs().max() / true.abs().max())
        for name, true in exact.items()
    }


def peak_rate(config: BenchmarkConfig, precision: run.Precision) -> float:
    """Return FLOP/s of a square matrix product, on a CPU in fp32 by the better library."""
    from torch.utils.benchmark import Timer  # its import writes warnings where no GPU is

    side, dtype = 8192 if precision.device.type == "cuda" else 1536, run.DTYPES[precision.name]
    left, right = torch.rand(2, side, side, dtype=dtype, device=precision.device)
    products = ["left @ right"]
    if cpu_gemm.serves(left) and cpu_gemm.library(config.cpu_gemm) == "onednn":
        products.append("linear(left, right)")
    names = {"left": left, "right": right, "linear": cpu_gemm.linear}
    threads = torch.get_num_threads()
    timers = [Timer(product, globals=names, num_threads=threads) for product in products]
    return 2 * side**3 / min(timer.timeit(3).mean for timer in timers for _ in range(4))


def resident() -> float:
    """Return the most bytes of memory that this process has had; on Linux alone."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024


def peak_memory(task: str, variant: str, config: BenchmarkConfig, count: int) -> float:
    """Return the bytes that two steps take, in a process in which nothing else ran.

    On a GPU what torch's allocator has given out, on a CPU (of Linux) the resident memory beyond
    that of Python and its libraries.
    """

    precision = arithmetic(config)
    on_gpu = precision.device.type == "cuda"
    before = 0.0 if on_gpu else resident()
    step = STEPS[variant](task, config, precision, count)
    for _ in range(2):  # the second step finds the optimiser's state
        step()
    return torch.cuda.max_memory_allocated() if on_gpu else resident() - before


def measure(
    task: str, config: BenchmarkConfig, precision: run.Precision, count: int
) -> dict[str, Any]:
    """Measure one batch size: times, clips a second, ratios and memory."""
    variants = [*STEPS][: 1 + config.plain]
    steps = {name: STEPS[name](task, config, precision, count) for name in variants}
    times = measure_in_turns(steps, config.steps, config.warmup, precision.device)
    figures: dict[str, Any] = {"batch_size": count, "steps": config.steps}
    steps.clear()
    gc.collect()
    for name in variants:
        figures |= summary(times[times.variant == name], name)
        figures[f"{name}clips_per_s"] = count / figures[f"{name}step_s"]
        if config.memory:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                peak = process.submit(peak_memory, task, name, config, count)
                figures[f"{name}peak_memory"] = peak.result()
    if config.plain:
        figures["ratio"] = figures["plain_step_s"] / figures["step_s"]
        figures["ratio_cpu_time"] = figures["plain_cpu_s"] / figures["cpu_s"]
        if task == "infer":
            figures["ratio_per_view"] = figures["ratio"] / CROPS
        if config.memory:
            figures["peak_memory_ratio"] = figures["peak_memory"] / figures["plain_peak_memory"]
    return figures


def run_task(task: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Measure a task, see `scripts.benchmark`."""
    distributed.start(config.device)
    precision = arithmetic(config)
    on_gpu = precision.device.type == "cuda"
    fp32_on_cpu = precision.name == "fp32" and not on_gpu
    peak = peak_rate(config, precision) if config.peaks else 0.0
    batches = [measure(task, config, precision, count) for count in config.batch_size]
    best = max(batches, key=lambda row: row["clips_per_s"])
    parts = count_flops(task, config)
    figures = {
        "device": device_name(precision.device),
        "model": f"hicmae dim{SIZES[config.model].width}",
        "precision": precision.name,
        "plain_precision": "fp16" if on_gpu else "fp32",
        **{lever: getattr(config, lever) for lever in LEVERS},
        "cpu_gemm": cpu_gemm.library(config.cpu_gemm) if fp32_on_cpu else None,
        **best,
        "flops_per_clip": sum(parts.values()),
        "flops_per_s": sum(parts.values()) * best["clips_per_s"],
    }
    if config.peaks:  # measured again, as a neighbour may have slowed the first time
        figures["peak_flops_per_s"] = max(peak, peak_rate(config, precision))
        figures["share_of_peak"] = figures["flops_per_s"] / figures["peak_flops_per_s"]
    if config.errors:
        figures |= measure_errors(task, config, precision)
    return {**figures, "flops_by_part": parts, "batches": batches}
