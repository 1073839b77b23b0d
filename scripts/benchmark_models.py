"""What scripts/benchmark.py measures of a model: its steps beside the plain ones, and its formats.

Ours and the plain rendition of tests/plain have the same weights and clips, and take turns.
"""

import gc
import itertools
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hicmae import finetuning, pretraining
from hicmae.config import ClipConfig, FinetuneConfigs, PretrainConfigs, RunConfig
from hicmae.config.flags import from_dict
from hicmae.data.batches import LabelledBatch, PretrainBatch, ViewBatch
from hicmae.data.dataset import PretrainClips
from hicmae.inference import formats
from hicmae.inference.commands import read_items
from hicmae.inference.export import export_checkpoint
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.io import choose_device
from hicmae.models import cpu_gemm
from hicmae.models.layers import split_tokens
from hicmae.models.losses import pretrain_loss
from hicmae.training import distributed
from hicmae.training.checkpoint import WEIGHTS
from hicmae.training.evaluate import classification_metrics, predict
from hicmae.training.loop import ComputeLoss, as_trained, train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import DTYPES, Precision, choose_precision
from scripts.benchmark import LEVERS, NOT_SET, SIZES, TINY, FormatsConfig, TaskConfig
from tests.plain.model import plain_like
from tests.plain.training import PlainTrainer, score_views

CPU = torch.device("cpu")
CLASSES = 6  # of fine-tuning
GPU_ROUND = 5  # steps between two turns on a GPU, so that its queue runs full
# A test clip has two windows in time and two crops, which are the same pixels in square frames:
# ours computes each window once, the plain baseline all four views, one after the other.
WINDOWS, CROPS = 2, 2

Step = Callable[..., object]
Configs = PretrainConfigs | FinetuneConfigs


# Time and machine


def processor() -> str:
    """Name the processor and how many of its cores are here."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*: (.*)", text, flags=re.M)
    return f"{named[1] if named else platform.processor()}, {os.cpu_count()} cores"


def device_name(device: torch.device = CPU) -> str:
    """Name what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({processor()})"


class Mark:
    """A point in the device's own time: on a GPU, when it has done all that was asked before."""

    def __init__(self, device: torch.device = CPU) -> None:
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
    variants: Mapping[Any, Step], steps: int, warmup: int, device: torch.device = CPU
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


def compared(
    times: pd.DataFrame, base: object, clips: int | Mapping[str, int] = 1, middle: str = "median"
) -> pd.DataFrame:
    """Return by variant its seconds, wall and CPU, clips a second, and their ratios to the base.

    `clips` are those of a step, of each variant. The middle of the times is "median" or "mean".
    """
    groups = times.groupby("variant", sort=False)
    table = groups.agg(middle).rename(columns={"wall": "step_s", "cpu": "cpu_s"})
    for name, share in (("quartile1", 0.25), ("quartile3", 0.75), ("p95", 0.95)):
        table[f"step_s_{name}"] = groups.wall.quantile(share)
    number = pd.Series(clips, table.index)
    table["clips_per_s"], per_cpu_s = number / table.step_s, number / table.cpu_s
    table["ratio"] = table.clips_per_s / table.clips_per_s[base]
    table["ratio_cpu_time"] = per_cpu_s / per_cpu_s[base]
    return table


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process in which nothing else has run."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


# Models, clips and steps, which are the same in each run


def arithmetic(config: TaskConfig | RunConfig) -> Precision:
    """Choose device and precision as training does."""
    return choose_precision(config.precision, choose_device(config.device))


def settings_of(task: str, config: TaskConfig) -> Configs:
    """Return the settings of a run of the task with this model; the others are as published."""
    stage = "pretrain_hicmae" if task == "pretrain" else "avit"
    flags = {name: getattr(config, name) for name in (*LEVERS, "cpu_gemm")}
    flags |= {"model": f"{stage}_dim{SIZES[config.model]}_patch16_160_a256", "nb_classes": CLASSES}
    flags |= dict.fromkeys(("output_dir", "data_path"), NOT_SET)
    flags |= TINY if config.model == "tiny" else {}
    if task == "pretrain":
        return from_dict(PretrainConfigs, flags)
    return from_dict(FinetuneConfigs, flags | {"opt_betas": (0.9, 0.999)})


def make_model(configs: Configs) -> Any:
    """Create the model of some settings, always with the same weights."""
    torch.manual_seed(0)
    stage: Any = pretraining if isinstance(configs, PretrainConfigs) else finetuning
    return stage.make_model(configs)


def random_batch(task: str, clip: ClipConfig, count: int, device: Any) -> Any:
    """Draw normalised clips of a geometry for a task; the same on every device.

    Masks are on the CPU. Targets are soft, as mixup and cutmix leave them.
    """
    generator, names = torch.Generator().manual_seed(0), ("",) * count
    shape = (count, 3, clip.num_frames, clip.input_size, clip.input_size)
    video = torch.randn(shape, generator=generator).to(device)
    audio = torch.randn(count, 1, *clip.input_size_audio, generator=generator).to(device)
    if task == "pretrain":
        dataset = PretrainClips([], **vars(clip), num_samples=count)
        video_mask, audio_mask = dataset.masks(0.9, 0.8, np.random.default_rng(0))
        return PretrainBatch(video, video_mask, audio, audio_mask, names, ())
    target = torch.rand(count, CLASSES, generator=generator.manual_seed(1)).softmax(dim=-1)
    return LabelledBatch(video, audio, target.to(device), names, ())


def compute(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return prediction and loss of a batch; clips of a float64 model are lifted to it."""
    dtype = next(model.parameters()).dtype
    video, audio = batch.video.to(dtype), batch.audio.to(dtype)
    if isinstance(batch, LabelledBatch):
        scores = model(video, audio)
        precise = scores.to(torch.promote_types(dtype, torch.float32))
        return scores, F.cross_entropy(precise, batch.target)
    masks = batch.video_mask, batch.audio_mask
    split, split_audio = (split_tokens(mask, None, "mask").to(video.device) for mask in masks)
    output = model(video, split, audio, split_audio)
    loss = pretrain_loss(output, video, split, audio, split_audio, frame_diff=True).total
    return torch.cat([part.flatten() for part in output[:2]]), loss


def trainer(configs: Configs, precision: Precision, compute_loss: ComputeLoss) -> Step:
    """Return a step of the training scripts on batches, of a fresh model."""
    model, optim = make_model(configs).to(precision.device).train(), configs.optim
    layer_decay = configs.classifier.layer_decay if isinstance(configs, FinetuneConfigs) else None
    groups = parameter_groups(model, optim.weight_decay, layer_decay)
    optimizer, scaler = make_optimizer(groups, optim.lr, optim.opt_betas), precision.grad_scaler()
    trained = as_trained(model, configs.run, precision.device)
    return lambda batches: train_step(trained, batches, compute_loss, optimizer, scaler, precision)


def our_step(task: str, config: TaskConfig, count: int) -> Step:
    """Build our step for `count` clips, the one of hicmae.training."""
    configs, precision = settings_of(task, config), arithmetic(config)
    device = precision.device
    if task != "infer":
        step = trainer(configs, precision, lambda model, batch: (compute(model, batch)[1], {}))
        return partial(step, [random_batch(task, configs.clip, count, device)])
    model = as_trained(make_model(configs).to(device).eval(), configs.run, device)
    video, audio = random_batch(task, configs.clip, count * WINDOWS, device)[:2]
    numbers, names = torch.arange(count), ("",) * count
    views = ViewBatch(video, audio, numbers.repeat_interleave(WINDOWS), numbers, numbers, names, ())
    return lambda: predict(model, [views], precision, "")


def plain_step(task: str, config: TaskConfig, count: int) -> Step:
    """Build the plain step for the same clips."""
    configs, device = settings_of(task, config), choose_device(config.device)
    model = plain_like(make_model(configs)).to(device)
    if task == "infer":
        clips = random_batch(task, configs.clip, count * WINDOWS, device)
        windows = [(clips.video[k::WINDOWS], clips.audio[k::WINDOWS]) for k in range(WINDOWS)]
        return lambda: score_views(model, windows * CROPS, device).mean(dim=0)
    step = getattr(PlainTrainer(model, device, configs.optim.opt_betas), f"{task}_step")
    batch = random_batch(task, configs.clip, count, device)
    return partial(step, *(part.to(device) for part in batch if isinstance(part, Tensor)))


STEPS = {"": our_step, "plain_": plain_step}  # by the prefix of their figures


# Figures of a step


def count_flops(task: str, config: TaskConfig) -> float:
    """Count the operations of matrix products of one clip, on the meta device.

    What checkpointing or fused attention compute again is not counted: it is no use to the method.
    """
    configs = settings_of(task, config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        batch = random_batch(task, configs.clip, 1, "meta")
        _, loss = compute(make_model(configs).to("meta"), batch)
        if task != "infer":
            loss.backward()
    return float(counter.get_total_flops() * (WINDOWS if task == "infer" else 1))


def measure_errors(task: str, config: TaskConfig) -> dict[str, float]:
    """Compare ours with the same model in float64: prediction, and in training loss and gradient.

    The error is the largest difference over the largest magnitude. No path is dropped.
    """
    configs, precision = settings_of(task, config), arithmetic(config)
    device = precision.device
    batch = random_batch(task, configs.clip, 2, device)

    def answer(model: nn.Module, own: Precision) -> dict[str, Tensor]:
        with own.autocast():
            prediction, loss = compute(model, batch)
        if task == "infer":
            return {"prediction": prediction.detach().double().softmax(dim=-1)}
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        answers = {"prediction": prediction, "loss": loss, "gradient": torch.cat(gradients)}
        return {name: value.detach().double() for name, value in answers.items()}

    exact = answer(make_model(configs).to(device).double().eval(), Precision("fp32", device))
    model = as_trained(make_model(configs).to(device).eval(), configs.run, device)
    mine = answer(model, precision)
    return {
        f"{name}_error": float((mine[name] - true).abs().max() / true.abs().max())
        for name, true in exact.items()
    }


def peak_rate(config: TaskConfig) -> float:
    """Return FLOP/s of a square matrix product, on a CPU in fp32 by the better library."""
    precision = arithmetic(config)
    side, dtype = 8192 if precision.device.type == "cuda" else 1536, DTYPES[precision.name]
    left, right = torch.rand(2, side, side, dtype=dtype, device=precision.device)
    products: dict[str, Step] = {"torch": lambda: left @ right}
    if cpu_gemm.serves(left) and cpu_gemm.library(config.cpu_gemm) == "onednn":
        products["onednn"] = lambda: cpu_gemm.linear(left, right)
    times = measure_in_turns(products, 12, 1, precision.device)
    return 2 * side**3 / float(times.wall.min())


def resident() -> float:
    """Return the most bytes of memory that this process has had; on Linux alone."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024


def peak_memory(task: str, variant: str, config: TaskConfig, count: int) -> float:
    """Return the bytes that two steps take, in a process in which nothing else ran.

    On a GPU what torch's allocator has given out, on a CPU (of Linux) the resident memory beyond
    that of Python and its libraries.
    """
    before, on_gpu = resident(), choose_device(config.device).type == "cuda"
    step = STEPS[variant](task, config, count)
    for _ in range(2):  # the second step finds the optimiser's state
        step()
    return torch.cuda.max_memory_allocated() if on_gpu else resident() - before


def measure(task: str, config: TaskConfig, count: int) -> dict[str, Any]:
    """Measure one batch size: times, clips a second, ratios and memory."""
    variants = [*STEPS][: 1 + config.plain]
    steps = {name: STEPS[name](task, config, count) for name in variants}
    times = measure_in_turns(steps, config.steps, config.warmup, choose_device(config.device))
    steps.clear()
    gc.collect()
    rows = compared(times, variants[-1], count)
    if config.more:
        rows["peak_memory"] = [alone(peak_memory, task, name, config, count) for name in variants]
    figures: dict[str, Any] = {"batch_size": count, "steps": config.steps}
    for name, row in rows.iterrows():
        figures |= row.add_prefix(name).to_dict()
    for ratio in ("ratio", "ratio_cpu_time"):  # of the base to itself
        del figures[variants[-1] + ratio]
    if config.plain and config.more:
        figures["peak_memory_ratio"] = figures["peak_memory"] / figures["plain_peak_memory"]
    if config.plain and task == "infer":
        figures["ratio_per_view"] = figures["ratio"] / CROPS
    return figures


def run_task(task: str, config: TaskConfig) -> dict[str, Any]:
    """Measure a step, see `TaskConfig`."""
    distributed.start(config.device)
    flops, library = count_flops(task, config), cpu_gemm.library(config.cpu_gemm)
    precision = arithmetic(config)
    on_gpu = precision.device.type == "cuda"
    peak = peak_rate(config) if config.more else 0.0
    batches = [measure(task, config, count) for count in config.batch_size]
    best = max(batches, key=lambda row: row["clips_per_s"])
    figures = {
        "device": device_name(precision.device),
        "model": f"hicmae dim{SIZES[config.model]}",
        "precision": precision.name,
        "plain_precision": "fp16" if on_gpu else "fp32",
        **{lever: getattr(config, lever) for lever in LEVERS},
        "cpu_gemm": None if on_gpu or precision.name != "fp32" else library,
        **best,
        "flops_per_clip": flops,
        "flops_per_s": flops * best["clips_per_s"],
    }
    if config.more:  # measured again, as a neighbour may have slowed the first time
        figures["peak_flops_per_s"] = max(peak, peak_rate(config))
        figures["share_of_peak"] = figures["flops_per_s"] / figures["peak_flops_per_s"]
        figures |= measure_errors(task, config)
    return {**figures, "batches": batches}


# Formats of a classifier


def run_formats(config: FormatsConfig) -> dict[str, Any]:
    """Measure the formats, see `FormatsConfig`."""
    items = read_items(config.data_path) if config.data_path != "-" else []
    few = [clip for clip, _ in formats.spread(items)]
    asked, reading = (few, {}) if few else ([str(formats.EXAMPLE)], {"faces": "cut"})
    with TemporaryDirectory(prefix="hicmae-formats-") as name:
        folder, source = Path(name), config.checkpoint or Path(name, "random.pth")
        if not config.checkpoint:
            configs = settings_of("infer", TaskConfig(model=config.model))
            weights = make_model(configs).state_dict()
            torch.save({"model": weights, "args": vars(configs.clip)}, source)
        export_checkpoint(source, folder)
        ours = EmotionRecognizer.from_checkpoint(folder, "cpu", "fp32")
        kinds = {"fp32": ours, "bf16": replace(ours, precision=Precision("bf16", CPU))}
        sizes = dict.fromkeys(kinds, (folder / WEIGHTS).stat().st_size)
        for kind in ("onnx", "int8"):
            path = folder / formats.FORMATS[kind].file
            formats.write(ours, path, kind, asked, **reading)
            kinds[kind] = replace(ours, model=formats.open_onnx(path)[0])
            sizes[kind] = path.stat().st_size
    one, many = (network_times(kinds, config, count) for count in (1, config.batch_size))
    rows = []
    for kind, recognizer in kinds.items():
        row = {
            "format": kind,
            "p50_s": one.step_s[kind],
            "p95_s": one.step_s_p95[kind],
            "clips_per_s": many.clips_per_s[kind],
            "p50_ratio": one.ratio[kind],
            "p95_ratio": one.step_s_p95["fp32"] / one.step_s_p95[kind],
            "throughput_ratio": many.ratio[kind],
            "cpu_ratio": many.ratio_cpu_time[kind],
            "megabytes": sizes[kind] / 1e6,
            **formats.compare(ours, recognizer, asked, **reading),
        }
        if items:  # UAR of the test protocol, in percent
            answers = recognizer.each([clip for clip, _ in items], protocol="test")
            scores = [[*answer.scores.values()] for answer in answers]
            labels = [int(label[0]) for _, label in items]
            row["uar"] = 100 * float(classification_metrics(labels, scores)["uar"])
        rows.append(row)
    device = f"{device_name()}, {torch.get_num_threads()} threads"
    model = config.checkpoint or f"random weights of HiCMAE-{config.model.upper()}"
    about = {"device": device, "model": model, "batch_size": config.batch_size}
    table = pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4g")
    return {"text": f"{model}, {device}:\n\n{table}", **about, "formats": rows}


def network_times(
    kinds: Mapping[str, EmotionRecognizer], config: FormatsConfig, count: int
) -> pd.DataFrame:
    """Time the network of each format on so many random clips, see `compared`."""
    told = kinds["fp32"].config
    video, audio = random_batch("infer", told.preprocessing, count, CPU)[:2]
    given = (video if "v" in told.modality else None, audio if "a" in told.modality else None)

    def step(recognizer: EmotionRecognizer) -> None:
        with torch.inference_mode(), recognizer.precision.autocast():
            recognizer.model(*given)

    steps = {kind: partial(step, recognizer) for kind, recognizer in kinds.items()}
    return compared(measure_in_turns(steps, config.steps, config.warmup), "fp32", count)
