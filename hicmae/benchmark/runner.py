"""Running a workload: variants in turns, memory, peaks, errors, and the figures made of them."""

import argparse
import gc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hicmae.benchmark import flops, peer
from hicmae.benchmark.context import device_name
from hicmae.benchmark.memory import peak_memory
from hicmae.benchmark.peaks import measure_peaks
from hicmae.benchmark.settings import BenchmarkConfig, prepare_device
from hicmae.benchmark.timing import StepTimes, measure_in_turns
from hicmae.benchmark.workload import Step, Workload
from hicmae.config import add_arguments as add_config
from hicmae.config import from_args
from hicmae.io import aligned, readable
from hicmae.models.cpu_gemm import library
from hicmae.training.optim import Optimization, make_optimizer, parameter_groups
from hicmae.training.run import Precision, checkpoint_activations, compiled

LEARNING_RATE = 1e-4
TOP_OPERATORS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model benchmark."""
    add_config(parser, BenchmarkConfig)


Model = TypeVar("Model", bound=nn.Module)


def seeded(config: BenchmarkConfig, make: Callable[[], Model]) -> Model:
    """Create a model whose weights depend on --seed alone."""
    torch.manual_seed(config.seed)
    return make()


def with_levers(config: BenchmarkConfig, model: nn.Module) -> nn.Module:
    """Apply --checkpoint_activations and --compile as training does."""
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return compiled(model, config.cuda_graphs) if config.compile else model


def prepared(
    config: BenchmarkConfig,
    model: nn.Module,
    precision: Precision,
    layer_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
) -> tuple[nn.Module, Optimization]:
    """Return the model as it trains, and the optimiser of training."""
    groups = parameter_groups(model, 0.05, layer_decay)
    constant = np.full(1, LEARNING_RATE), np.full(1, 0.05)
    optimizer = make_optimizer(groups, LEARNING_RATE, betas)
    optimization = Optimization(optimizer, precision.grad_scaler(), precision, *constant)
    return with_levers(config, model.train()), optimization


def plain_sizes(config: BenchmarkConfig) -> dict[str, Any]:
    """Return depths and clip geometry under the names of the plain models."""
    return {
        "depth": config.depth,
        "depth_audio": config.depth,
        "fusion_depth": config.fusion_depth,
        "num_frames": config.num_frames,
        "img_size": (config.input_size, config.input_size),
        "img_size_audio": config.input_size_audio,
    }


def run(workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every batch size; return the figures of the fastest, with all of them inside.

    Raises:
        ValueError, RuntimeError: settings that do not fit the machine or each other.
    """
    config = from_args(args, BenchmarkConfig)
    precision = prepare_device(config)
    on_cpu = precision == Precision("fp32", torch.device("cpu"))
    common = {
        "device": device_name(precision.device),
        "model": f"hicmae dim{config.width}",
        "precision": precision.name,
        "plain_precision": "fp16" if precision.device.type == "cuda" else "fp32",
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        "checkpoint_activations": config.checkpoint_activations,
        "cpu_gemm": library(config.cpu_gemm) if on_cpu else None,
    }
    peaks = measure_peaks(precision) if config.peaks else {}
    batches = [_measure(workload, config, precision, size) for size in config.batch_size]
    if config.peaks:  # again, as a neighbour may have slowed the first time
        peaks = {n: max(peaks[n], value) for n, value in measure_peaks(precision).items()}
    best = max(batches, key=lambda row: row["clips_per_s"])
    parts = workload.flops(config)
    figures = {**common, **best, **peaks, "flops_per_clip": flops.total(parts)}
    figures["flops_per_s"] = figures["flops_per_clip"] * best["clips_per_s"]
    if config.peaks:
        figures["share_of_peak"] = figures["flops_per_s"] / peaks["peak_flops_per_s"]
    if config.errors:
        figures |= workload.errors(config, precision)
    return {**figures, "flops_by_part": parts, "batches": batches}


def _measure(
    workload: Workload, config: BenchmarkConfig, precision: Precision, batch: int
) -> dict[str, Any]:
    """Measure one batch size."""
    variants: dict[str, Step] = {"ours": workload.make_ours(config, precision, batch)}
    if config.plain:
        variants["plain"] = workload.make_plain(config, precision, batch)
    if config.peer and workload.name == "pretrain" and peer.is_installed():
        variants["peer"] = peer.make_step(config, precision, batch)
    times = measure_in_turns(variants, config.steps, config.warmup, precision.device)
    figures = {"batch_size": batch, "steps": config.steps, **_rates(times, workload, batch)}
    if config.profile:
        figures["operators"] = _top_operators(variants["ours"])
    variants.clear()
    gc.collect()
    if config.memory:
        figures |= _memory(workload, config, batch)
    return figures


def _rates(times: dict[str, StepTimes], workload: Workload, batch: int) -> dict[str, Any]:
    """Make clips a second and ratios of step times."""
    figures: dict[str, Any] = {}
    for name, values in times.items():
        prefix = "" if name == "ours" else f"{name}_"
        figures |= {f"{prefix}{key}": value for key, value in values.summary().items()}
        figures[f"{prefix}clips_per_s"] = batch / figures[f"{prefix}step_s"]
    for name in times.keys() - {"ours"}:
        ratio = "ratio" if name == "plain" else f"{name}_ratio"
        figures[ratio] = figures[f"{name}_step_s"] / figures["step_s"]
        figures[f"{ratio}_cpu_time"] = figures[f"{name}_cpu_s"] / figures["cpu_s"]
    if "plain" in times and workload.views != (1, 1):
        ours, plain = workload.views
        figures["ratio_per_view"] = figures["ratio"] * ours / plain
        figures["ratio_per_view_cpu_time"] = figures["ratio_cpu_time"] * ours / plain
    return figures


def _memory(workload: Workload, config: BenchmarkConfig, batch: int) -> dict[str, float]:
    figures = {"peak_memory": peak_memory(workload.name, "ours", config, batch)}
    if config.plain:
        figures["plain_peak_memory"] = peak_memory(workload.name, "plain", config, batch)
        figures["peak_memory_ratio"] = figures["peak_memory"] / figures["plain_peak_memory"]
    return figures


def _top_operators(step: Step) -> list[dict[str, Any]]:
    """Return the operators in which one step spends most of its time."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as recorded:
        step()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, attribute))
    return [
        {"operator": e.key, "calls": e.count, "ms": getattr(e, attribute) / 1e3}
        for e in events[:TOP_OPERATORS]
    ]


def show(figures: dict[str, Any]) -> str:
    """Show the figures as tables: variants, parts of the count, and single figures."""
    rows: list[tuple[str, ...]] = []
    rows += [("batch", "variant", "step s", "quartiles", "CPU s", "clips/s", "ratio", "memory MiB")]
    for row in figures["batches"]:
        rows += [_variant_row(row, name) for name in ("ours", "plain", "peer") if _has(row, name)]
    parts = figures["flops_by_part"]
    counted = [("part", "FLOP a clip", "share")]
    counted += [
        (part, readable(count) + "FLOP", f"{count / flops.total(parts):.1%}")
        for part, count in parts.items()
    ]
    texts = [aligned(rows), aligned(counted), aligned(_single_figures(figures))]
    if "operators" in figures:
        operators = [
            (o["operator"], str(o["calls"]), f"{o['ms']:.1f}") for o in figures["operators"]
        ]
        texts.append(aligned([("operator", "calls", "ms"), *operators]))
    return "\n".join(texts)


def _has(row: dict[str, Any], name: str) -> bool:
    return name == "ours" or f"{name}_step_s" in row


def _variant_row(row: dict[str, Any], name: str) -> tuple[str, ...]:
    prefix = "" if name == "ours" else f"{name}_"
    ratio = row.get({"plain": "ratio"}.get(name, f"{name}_ratio"))
    memory = row.get(f"{prefix}peak_memory")
    return (
        str(row["batch_size"]),
        {"peer": "VideoMAE (transformers; video only)"}.get(name, name),
        f"{row[f'{prefix}step_s']:.4f}",
        f"{row[f'{prefix}step_s_quartile1']:.4f}-{row[f'{prefix}step_s_quartile3']:.4f}",
        f"{row[f'{prefix}cpu_s']:.3f}",
        f"{row[f'{prefix}clips_per_s']:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if memory is None else f"{memory / 2**20:.0f}",
    )


def _single_figures(figures: dict[str, Any]) -> list[tuple[str, str]]:
    shown = [(name, str(figures[name])) for name in ("device", "model", "precision", "cpu_gemm")]
    shown.append(("best batch", str(figures["batch_size"])))
    shown.append(("achieved", readable(figures["flops_per_s"]) + "FLOP/s"))
    if "share_of_peak" in figures:
        shown.append(("measured peak", readable(figures["peak_flops_per_s"]) + "FLOP/s"))
        shown.append(("measured copy", readable(figures["peak_bytes_per_s"]) + "B/s"))
        shown.append(("share of peak", f"{figures['share_of_peak']:.1%}"))
    for name in ("ratio", "ratio_cpu_time", "ratio_per_view", "peak_memory_ratio"):
        if name in figures:
            shown.append((name.replace("_", " "), f"{figures[name]:.2f}"))
    errors = [(n.replace("_", " "), f"{v:.1e}") for n, v in figures.items() if n.endswith("_error")]
    return shown + errors
