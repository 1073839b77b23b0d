"""Measure speed and memory against the plain rendition of the method in tests/plain.

    python scripts/benchmark.py pretrain --model b --batch_size 4 --json FILE
    python scripts/benchmark.py all --device cpu      what saved/benchmarks holds (half an hour)
    python scripts/benchmark.py table saved/benchmarks

Steps of both are taken in turns, so that a busy machine slows both alike. Each command has --help.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import json
import multiprocessing
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

import hicmae  # noqa: F401  (registers the models)
from hicmae.config import (
    CPU_GEMM,
    add_arguments,
    check_not_negative,
    check_positive,
    from_flags,
    new_parser,
    option,
)
from hicmae.data.batches import LabelledBatch, PretrainBatch, ViewBatch
from hicmae.data.masking import random_mask, tube_mask
from hicmae.io import aligned, choose_device, describe, markdown, readable
from hicmae.models import cpu_gemm
from hicmae.models.layers import split_tokens
from hicmae.models.losses import pretrain_loss
from hicmae.training.evaluate import predict
from hicmae.training.loop import train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import (
    DTYPES,
    EXPECTED,
    Precision,
    checkpoint_activations,
    choose_precision,
    compiled,
)
from hicmae.training.state import MetricBuffer, TrainState
from scripts import benchmark_data as data
from scripts.benchmark_data import SIZES, Step, Times, device_name, measure_in_turns, plain

TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning", "infer": "testing"}
DROP_PATH, LAYER_DECAY = 0.1, 0.75  # of fine-tuning
LEARNING_RATE = 1e-4
# A test clip has two windows in time and two crops, which are the same pixels in square frames:
# ours computes each window once, the plain baseline all four views, one after the other.
WINDOWS, CROPS = 2, 2


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    model: str = option("b", "t, s, b, or a registered model's name", metavar="SIZE")
    batch_size: tuple[int, ...] = option((4,), "clips of a step; the best of several is reported")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = option("auto", "arithmetic of ours", choices=("auto", "fp32", "fp16", "bf16"))
    compile: bool = option(False, "torch.compile ours")
    cuda_graphs: bool = option(False, "with --compile: replay a pass by one launch")
    checkpoint_activations: bool = option(False, "compute blocks again in the backward pass")
    cpu_gemm: str = option("auto", "library of fp32 products on a CPU", choices=CPU_GEMM)
    steps: int = option(20, "measured steps of each variant")
    warmup: int = option(3, "steps before that")
    seed: int = option(0, "seed of weights, clips and masks")
    plain: bool = option(True, "measure the plain baseline of tests/plain too, in turns")
    memory: bool = option(True, "measure peak memory, each variant in a process of its own")
    peaks: bool = option(True, "measure the device's matrix products and copies too")
    errors: bool = option(True, "compare with float64")
    profile: bool = option(False, "show the operators that take most of the time")
    depth: int = option(10, "blocks of each modality encoder")
    fusion_depth: int = option(2, "layers of the fusion encoder")
    levels: tuple[int, ...] = option((3, 6, 9), "encoder blocks that feed the decoders")
    num_frames: int = option(16, "frames of a clip")
    input_size: int = option(160, "height and width of a frame")
    input_size_audio: tuple[int, ...] = option((256, 128), "spectrogram steps and mel bins")

    def __post_init__(self) -> None:
        check_positive(self, "steps", "depth", "fusion_depth", "num_frames", "input_size")
        check_not_negative(self, "warmup", "seed")
        if not timm.is_model(f"avit_dim{self.width}_patch16_160_a256"):
            raise ValueError(f"--model {self.model} is not known; use t, s, b or a registered name")
        if any(size < 1 for size in self.batch_size):
            raise ValueError(f"--batch_size must be at least 1, got {list(self.batch_size)}")
        if self.cuda_graphs and not self.compile:
            raise ValueError("--cuda_graphs replays compiled passes; add --compile")
        if len(self.input_size_audio) != 2:
            raise ValueError(
                f"--input_size_audio takes steps and mel bins, got {list(self.input_size_audio)}"
            )

    @property
    def width(self) -> int:
        """Return the encoder width D."""
        found = re.search(r"dim(\d+)", self.model)
        return SIZES.get(self.model.lower(), int(found[1]) if found else 0)

    def arithmetic(self) -> Precision:
        """Choose device and precision as training does."""
        device = choose_device(self.device)
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError("--cuda_graphs needs a GPU; leave it out")
        return choose_precision(self.precision, device)


# Models, clips and steps of the three tasks


def make_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> Any:
    """Create the model of a task, with weights that depend on --seed alone."""
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {
        "num_frames": config.num_frames,
        "img_size": config.input_size,
        "img_size_audio": config.input_size_audio,
        "cpu_gemm": config.cpu_gemm,
        "drop_path_rate": drop_path,
    }
    if task == "pretrain":
        return timm.create_model(
            f"pretrain_hicmae_dim{config.width}_patch16_160_a256",
            encoder_depth=config.depth,
            encoder_depth_audio=config.depth,
            encoder_fusion_depth=config.fusion_depth,
            decoder_depth=len(config.levels) + 1,
            decoder_depth_audio=len(config.levels) + 1,
            return_intermediate_features=config.levels,
            **options,
        )
    depths = {"depth": config.depth, "depth_audio": config.depth}
    return timm.create_model(
        f"avit_dim{config.width}_patch16_160_a256",
        num_classes=6,
        fusion_depth=config.fusion_depth,
        **depths,
        **options,
    )


def plain_model(task: str, config: BenchmarkConfig, drop_path: float = 0.0) -> nn.Module:
    """Create the plain model with the weights and sizes of ours."""
    ours = make_model(task, config)
    sizes = {
        "dim": config.width,
        "heads": ours.encoder.blocks[0].attn.num_heads,
        "depth": config.depth,
        "depth_audio": config.depth,
        "fusion_depth": config.fusion_depth,
        "num_frames": config.num_frames,
        "img_size": (config.input_size, config.input_size),
        "img_size_audio": config.input_size_audio,
    }
    if task == "pretrain":
        decoder = {
            "decoder_dim": ours.decoder.head.in_features,
            "decoder_heads": ours.decoder.blocks[0].attn.num_heads,
        }
        model = plain("model").PlainPretraining(**sizes, **decoder, keep=config.levels)
    else:
        model = plain("model").PlainClassifier(**sizes, num_classes=6, drop=drop_path)
    model.load_state_dict(ours.state_dict())
    return model


def random_batch(task: str, config: BenchmarkConfig, count: int, device: Any) -> Any:
    """Draw normalised clips of the model's geometry; the same on every device.

    Masks are on the CPU. Targets are soft, as mixup and cutmix leave them.
    """
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    side, (steps, mel_bins) = config.input_size, config.input_size_audio
    grid = (config.num_frames // 2, side // 16, side // 16)
    masks = [tube_mask(grid, 0.9, rng) for _ in range(count)]
    audio_masks = [random_mask(steps * mel_bins // 256, 0.8, rng) for _ in range(count)]
    video = torch.randn(count, 3, config.num_frames, side, side, generator=generator).to(device)
    audio = torch.randn(count, 1, steps, mel_bins, generator=generator).to(device)
    names = ("",) * count
    if task == "pretrain":
        mask, audio_mask = (torch.from_numpy(np.stack(part)) for part in (masks, audio_masks))
        return PretrainBatch(video, mask, audio, audio_mask, names, ())
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
    splits = [
        split_tokens(mask, None, "mask").to(video.device)
        for mask in (batch.video_mask, batch.audio_mask)
    ]
    output = model(video, splits[0], audio, splits[1])
    loss = pretrain_loss(output, video, splits[0], audio, splits[1]).total
    return torch.cat([part.flatten() for part in output[:2]]), loss


def with_levers(config: BenchmarkConfig, model: nn.Module) -> nn.Module:
    """Apply --checkpoint_activations and --compile as training does."""
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return compiled(model, config.cuda_graphs) if config.compile else model


def our_step(task: str, config: BenchmarkConfig, precision: Precision, count: int) -> Step:
    """Build our step for `count` clips, the one of hicmae.training."""
    model = make_model(task, config, DROP_PATH if task == "finetune" else 0.0)
    model = model.to(precision.device)
    if task == "infer":
        windows = random_batch(task, config, count * WINDOWS, precision.device)
        numbers = torch.arange(count)
        clip_of = numbers.repeat_interleave(WINDOWS)
        views = ViewBatch(
            *windows[:2], clip_of, numbers, torch.zeros_like(numbers), ("",) * count, ()
        )
        scored = with_levers(config, model.eval())
        return lambda: predict(scored, [views], precision, "classification", "")
    tuning = task == "finetune"
    groups = parameter_groups(model, 0.05, LAYER_DECAY if tuning else None)
    optimizer = make_optimizer(groups, LEARNING_RATE, (0.9, 0.999) if tuning else (0.9, 0.95))
    state = TrainState(model, optimizer, precision.grad_scaler(), MetricBuffer(1))
    trained = with_levers(config, model.train())
    batches = [random_batch(task, config, count, precision.device)]

    def compute_loss(network: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return compute(network, batch)[1], {}

    return lambda: train_step(trained, batches, compute_loss, state, precision)


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


# Figures of a task


def count_flops(task: str, config: BenchmarkConfig) -> dict[str, float]:
    """Count the matrix products of one clip: forward by part of the model, and backward.

    Nothing is computed. What checkpointing or fused attention compute again is not counted: it is
    no use to the method.
    """
    model = make_model(task, config).to("meta")
    batch = random_batch(task, config, 1, "meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, loss = compute(model, batch)
        forward = {name: sum(part.values()) for name, part in counter.get_flop_counts().items()}
        if task != "infer":
            loss.backward()
    prefix, views = type(model).__name__, WINDOWS if task == "infer" else 1
    names = [name for name, _ in model.named_children()]
    names = [name for name in names if "to_decoder" not in name]  # it works inside the decoder
    parts = {name: forward.get(f"{prefix}.{name}", 0) for name in names}
    parts["backward"] = counter.get_total_flops() - forward["Global"]
    return {name: float(views * count) for name, count in parts.items() if count}


def measure_errors(task: str, config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Compare ours with the same model in float64: prediction, and in training loss and gradient.

    The error is the largest difference over the largest magnitude.
    """
    model = make_model(task, config).to(precision.device)
    batch = random_batch(task, config, 2, precision.device)
    results = []
    for network, own in ((copy.deepcopy(model).double(), Precision("fp32", precision.device)),
                         (with_levers(config, model), precision)):  # fmt: skip
        network.train(task != "infer")
        with own.autocast():
            prediction, loss = compute(network, batch)
        if task == "infer":
            results.append([prediction.double().softmax(dim=-1)])
            continue
        loss.backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        results.append([prediction, loss, torch.cat(gradients)])
    errors = {}
    for name, true, mine in zip(("prediction", "loss", "gradient"), *results, strict=False):
        true, mine = true.detach().double(), mine.detach().double()
        errors[f"{name}_error"] = float((mine - true).abs().max() / true.abs().max())
    return errors


def measure_peaks(config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Return FLOP/s of a square matrix product in the precision, and bytes/s of a copy.

    On a CPU in fp32 the library of choice and torch's own are tried; the better one counts.
    """
    from torch.utils.benchmark import Timer  # its import writes warnings where no GPU is

    device, on_gpu = precision.device, precision.device.type == "cuda"
    side, elements = (8192, 2**28) if on_gpu else (1536, 2**26)
    left, right = (torch.rand(side, side, dtype=DTYPES[precision.name], device=device)
                   for _ in range(2))  # fmt: skip
    source = torch.rand(elements, device=device)
    names = {"left": left, "right": right, "source": source, "target": torch.empty_like(source)}
    names["linear"] = cpu_gemm.linear

    def seconds(statement: str) -> float:
        timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
        return min(timer.timeit(3).mean for _ in range(4))

    products = [seconds("left @ right")]
    if cpu_gemm.serves(left) and cpu_gemm.library(config.cpu_gemm) == "onednn":
        products.append(seconds("linear(left, right)"))
    moved = 2 * source.numel() * source.element_size()  # read and written
    return {
        "peak_flops_per_s": 2 * side**3 / min(products),
        "peak_bytes_per_s": moved / seconds("target.copy_(source)"),
    }


def _resident_peak() -> float:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's size before exec
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_memory(task: str, variant: str, config: BenchmarkConfig, count: int) -> float:
    """Return the bytes that two steps take, in a process in which nothing else ran.

    On a GPU what torch's allocator has given out, on a CPU the resident memory beyond that of
    Python and its libraries. The second step finds the optimiser's state.
    """
    precision = config.arithmetic()
    on_gpu = precision.device.type == "cuda"
    before = 0.0 if on_gpu else _resident_peak()
    step = STEPS[variant](task, config, precision, count)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() if on_gpu else _resident_peak() - before


def _memory(task: str, config: BenchmarkConfig, count: int) -> dict[str, float]:
    figures = {}
    for variant, prefix in (("ours", ""), ("plain", "plain_"))[: 1 + config.plain]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            try:
                peak = process.submit(peak_memory, task, variant, config, count).result()
            except Exception as error:  # whatever ends the other process
                raise RuntimeError(
                    f"measuring the memory of {variant} failed: {describe(error)}; lower "
                    "--batch_size or add --no-memory"
                ) from error
        figures[f"{prefix}peak_memory"] = peak
    if config.plain:
        figures["peak_memory_ratio"] = figures["peak_memory"] / figures["plain_peak_memory"]
    return figures


def top_operators(step: Step, count: int = 20) -> list[dict[str, Any]]:
    """Return the operators in which one step spends most of its time."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as recorded:
        step()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, attribute))[:count]
    return [
        {"operator": e.key, "calls": e.count, "ms": getattr(e, attribute) / 1e3} for e in events
    ]


def rates(times: dict[str, Times], task: str, count: int) -> dict[str, Any]:
    """Make clips a second and ratios of step times."""
    figures: dict[str, Any] = {}
    for name, values in times.items():
        prefix = "" if name == "ours" else f"{name}_"
        figures |= {f"{prefix}{key}": value for key, value in values.summary().items()}
        figures[f"{prefix}clips_per_s"] = count / figures[f"{prefix}step_s"]
    if "plain" in times:
        figures["ratio"] = figures["plain_step_s"] / figures["step_s"]
        figures["ratio_cpu_time"] = figures["plain_cpu_s"] / figures["cpu_s"]
        if task == "infer":
            figures["ratio_per_view"] = figures["ratio"] / CROPS
            figures["ratio_per_view_cpu_time"] = figures["ratio_cpu_time"] / CROPS
    return figures


def measure(task: str, config: BenchmarkConfig, precision: Precision, count: int) -> dict[str, Any]:
    """Measure one batch size."""
    names = ("ours", "plain") if config.plain else ("ours",)
    variants = {name: STEPS[name](task, config, precision, count) for name in names}
    times = measure_in_turns(variants, config.steps, config.warmup, precision.device)
    figures = {"batch_size": count, "steps": config.steps, **rates(times, task, count)}
    if config.profile:
        figures["operators"] = top_operators(variants["ours"])
    variants.clear()
    gc.collect()
    return figures | (_memory(task, config, count) if config.memory else {})


def run_task(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every batch size; return the figures of the fastest, with all of them inside."""
    task, config = args.command, from_flags(vars(args), BenchmarkConfig)
    precision = config.arithmetic()
    on_gpu = precision.device.type == "cuda"
    fp32_on_cpu = precision.name == "fp32" and not on_gpu
    peaks = measure_peaks(config, precision) if config.peaks else {}
    batches = [measure(task, config, precision, count) for count in config.batch_size]
    if config.peaks:  # again, as a neighbour may have slowed the first time
        again = measure_peaks(config, precision)
        peaks = {name: max(value, again[name]) for name, value in peaks.items()}
    best = max(batches, key=lambda row: row["clips_per_s"])
    parts = count_flops(task, config)
    figures = {
        "device": device_name(precision.device),
        "model": f"hicmae dim{config.width}",
        "precision": precision.name,
        "plain_precision": "fp16" if on_gpu else "fp32",
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        "checkpoint_activations": config.checkpoint_activations,
        "cpu_gemm": cpu_gemm.library(config.cpu_gemm) if fp32_on_cpu else None,
        **best,
        **peaks,
        "flops_per_clip": sum(parts.values()),
        "flops_per_s": sum(parts.values()) * best["clips_per_s"],
    }
    if config.peaks:
        figures["share_of_peak"] = figures["flops_per_s"] / peaks["peak_flops_per_s"]
    if config.errors:
        figures |= measure_errors(task, config, precision)
    return {**figures, "flops_by_part": parts, "batches": batches}


def show_task(figures: dict[str, Any]) -> str:
    """Show the figures as tables: variants, parts of the count, and single figures."""
    rows = [("batch", "variant", "step s", "quartiles", "CPU s", "clips/s", "memory MiB")]
    for row in figures["batches"]:
        for name, own in (("ours", ""), ("plain", "plain_")):
            if f"{own}step_s" in row:
                quartiles = (f"{row[f'{own}step_s_quartile{k}']:.4f}" for k in (1, 3))
                memory = row.get(f"{own}peak_memory", 0) / 2**20
                step, cpu = f"{row[f'{own}step_s']:.4f}", f"{row[f'{own}cpu_s']:.3f}"
                cells = (step, "-".join(quartiles), cpu, f"{row[f'{own}clips_per_s']:.2f}")
                rows.append((str(row["batch_size"]), name, *cells, f"{memory:.0f}"))
    counted = [("part", "FLOP a clip", "share")] + [
        (part, f"{readable(count)}FLOP", f"{count / figures['flops_per_clip']:.1%}")
        for part, count in figures["flops_by_part"].items()
    ]
    single = [(n, str(figures[n])) for n in ("device", "model", "precision", "batch_size")]
    units = {"flops_per_s": "FLOP/s", "peak_flops_per_s": "FLOP/s", "peak_bytes_per_s": "B/s"}
    single += [(n, f"{readable(figures[n])}{unit}") for n, unit in units.items() if n in figures]
    names = ("share_of_peak", "ratio", "ratio_cpu_time", "ratio_per_view", "peak_memory_ratio")
    single += [(name, f"{figures[name]:.2f}") for name in names if name in figures]
    single += [(n, f"{value:.1e}") for n, value in figures.items() if n.endswith("_error")]
    tables = [rows, counted, single]
    if "operators" in figures:
        operators = figures["operators"]
        tables.append([("operator", "calls", "ms")])
        tables[-1] += [(o["operator"], str(o["calls"]), f"{o['ms']:.1f}") for o in operators]
    return "\n".join(map(aligned, tables))


# table and all


def run_table(args: argparse.Namespace) -> dict[str, Any]:
    """Read the files of model benchmarks."""
    rows = []
    for path in sorted(Path(args.folder).glob("*.json")):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: no JSON ({error}); run its benchmark again") from error
        if isinstance(figures, dict) and figures.get("benchmark") in TASKS:
            rows.append(figures)
    if not rows:
        raise ValueError(
            f"'{args.folder}' holds no JSON file of pretrain, finetune or infer; run "
            "python scripts/benchmark.py all"
        )
    return {"rows": rows}


def show_table(figures: dict[str, Any]) -> str:
    """Make one Markdown table for each device."""
    order = list(TASKS)
    texts = []
    for device in dict.fromkeys(row["device"] for row in figures["rows"]):
        rows = [row for row in figures["rows"] if row["device"] == device]
        rows.sort(key=lambda r: (order.index(r["benchmark"]), r["model"], r["precision"]))
        dates = ", ".join(sorted({row["date"][:10] for row in rows}))
        cells = [_cells(row) for row in rows]
        table = markdown(list(cells[0]), [list(row.values()) for row in cells])
        texts.append(f"{device}, {dates}:\n\n{table}")
    return "\n".join(texts)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    levers = [n for n in ("compile", "cuda_graphs", "checkpoint_activations") if row.get(n)]
    library = f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else ""
    size = row["model"].split()[-1]
    letter = {f"dim{width}": name.upper() for name, width in SIZES.items()}.get(size)

    def shown(key: str, form: str) -> str:
        return format(row[key], form) + ("x" if form == ".2f" else "") if key in row else ""

    return {
        "task": TASKS[row["benchmark"]],
        "model": f"HiCMAE-{letter}" if letter else size,
        "clips a step": str(row["batch_size"]),
        "arithmetic": ", ".join(
            [row["precision"] + library, *(lever.replace("_", " ") for lever in levers)]
        ),
        "faster than plain": shown("ratio", ".2f"),
        "in CPU time": shown("ratio_cpu_time", ".2f"),
        "per forward pass": shown("ratio_per_view", ".2f"),
        "memory of plain's": shown("peak_memory_ratio", ".0%"),
        "share of measured peak": shown("share_of_peak", ".0%"),
        "error against float64": shown("prediction_error", ".0e"),
    }


LEVERS = "--compile --cuda_graphs --steps 40 --warmup 10"
ALL = {
    "cpu": {
        "pretrain_t": "--model t --batch_size 8 --steps 10 --warmup 1",
        "pretrain_b": "--model b --batch_size 4 --steps 15 --warmup 2",
        "finetune_t": "--model t --batch_size 2 --steps 7 --warmup 1",
        "finetune_b": "--model b --batch_size 2 --steps 5 --warmup 1",
        "infer_t": "--model t --batch_size 2 --steps 10 --warmup 1",
        "infer_b": "--model b --batch_size 2 --steps 7 --warmup 1",
        "pretrain_b_bf16": "--model b --batch_size 4 --steps 7 --warmup 1 --precision bf16",
        "infer_b_bf16": "--model b --batch_size 2 --steps 7 --warmup 1 --precision bf16",
        "pretrain_b_mkl": "--model b --batch_size 4 --steps 7 --warmup 1 --cpu_gemm mkl",
        "infer_b_mkl": "--model b --batch_size 2 --steps 7 --warmup 1 --cpu_gemm mkl",
    },
    "cuda": {
        "pretrain_b": f"--batch_size 40 {LEVERS}",
        "pretrain_b_best": f"--batch_size 80 160 320 {LEVERS}",
        "pretrain_b_eager": "--batch_size 40 160 --steps 40 --warmup 10",
        "pretrain_b_saving": "--batch_size 320 --compile --checkpoint_activations --no-plain",
        "pretrain_b_fp16": f"--batch_size 40 --precision fp16 {LEVERS}",
        "finetune_b": f"--batch_size 14 {LEVERS}",
        "finetune_b_best": f"--batch_size 28 56 112 {LEVERS}",
        "infer_b": f"--batch_size 14 {LEVERS}",
        "infer_b_best": f"--batch_size 56 112 224 {LEVERS}",
    },
}


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what saved/benchmarks holds, each in a process of its own; return the table."""
    # All cores; threads that wait give the core away, as other programs may need it.
    defaults = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive"}
    for name, flags in ALL[args.device].items():
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        path = str(Path(args.output_dir, f"{args.device}_{name}.json"))
        command = [name.split("_")[0], "--device", args.device, "--json", path]
        command = [sys.executable, __file__, *command, *flags.split(), *args.flags]
        if subprocess.run(command, env=defaults | os.environ, check=False).returncode:
            raise RuntimeError(f"{name} failed; see above")
    return run_table(argparse.Namespace(folder=args.output_dir))


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `table`."""
    parser.add_argument("folder", metavar="FOLDER", help="holds the files that --json wrote")


def add_all_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `all`."""
    parser.add_argument("--device", choices=list(ALL), required=True, help="where to compute")
    parser.add_argument(
        "--output_dir", default="saved/benchmarks", metavar="DIR", help="folder of the JSON files"
    )
    parser.add_argument("flags", nargs="*", help="after --: more flags of every command")


class Command(NamedTuple):
    """A sub-command."""

    help: str  # its first line stands in the list of commands
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]


def _task(what: str) -> Command:
    text = f"Time {what} by ours and by the plain baseline, in turns, on random clips."
    return Command(text, lambda p: add_arguments(p, BenchmarkConfig), run_task, show_task)


COMMANDS = {
    "pretrain": _task("pre-training steps"),
    "finetune": _task("fine-tuning steps"),
    "infer": _task("the scoring of test clips"),
    "loader": Command(
        data.LOADER_HELP, data.add_loader_flags, data.run_loader, data.show_loader
    ),
    "feed": Command(data.FEED_HELP, data.add_feed_flags, data.run_feed, data.show_feed),
    "ranks": Command(data.RANKS_HELP, data.add_ranks_flags, data.run_ranks, data.show_ranks),
    "table": Command(
        "Print tables for a page, from the JSON files of a folder.",
        add_table_flags, run_table, show_table,
    ),
    "all": Command("Measure all that saved/benchmarks holds.", add_all_flags, run_all, show_table),
}  # fmt: skip


def context(argv: Sequence[str]) -> dict[str, Any]:
    """Describe the run before it starts: command, date, versions, machine, its other load."""
    variables = [f"{n}={os.environ[n]}" for n in ("OMP_NUM_THREADS",) if n in os.environ]
    return {
        "command": " ".join([*variables, "python scripts/benchmark.py", shlex.join(argv)]),
        "benchmark": argv[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": data.processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = new_parser(__doc__ or "")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        options = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        text = command.help.splitlines()[0]
        own = commands.add_parser(name, description=command.help, help=text, **options)
        command.add_flags(own)
        own.add_argument("--json", metavar="FILE", help="write the figures there as one object")
    args = parser.parse_args(argv)
    command = COMMANDS[args.command]
    try:
        before = context(argv)
        figures = command.run(args)
        sys.stdout.write(command.show(figures))
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**before, **figures}, indent=2) + "\n"
            Path(args.json).write_text(text, encoding="utf-8")
    except EXPECTED as error:
        sys.stderr.write(f"benchmark.py {args.command}: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
