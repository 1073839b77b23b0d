"""Measures around the model, for scripts/benchmark.py: reading clips, feeding a device, ranks.

It also holds what all benchmarks share: how steps are timed and what a machine is called.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import itertools
import json
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import soundfile
import timm
import torch
import torch.multiprocessing as mp
from matplotlib.cbook import get_sample_data

from hicmae.config import PretrainConfigs, add_arguments, from_flags
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import Clip, write_list
from hicmae.data.dataset import PretrainClips, open_streams
from hicmae.data.loader import (
    ClipSampler,
    epoch_batches,
    item_generator,
    make_loader,
)
from hicmae.data.masking import random_mask, tube_mask
from hicmae.data.shards import PackedClips, read_packed
from hicmae.data.video import face_box
from hicmae.io import aligned
from hicmae.training import distributed
from hicmae.training.loop import as_trained, train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import choose_precision
from hicmae.training.state import MetricBuffer, TrainState
from preprocess import pack_clips
from run_pretraining import make_dataset, make_loss, make_model

SIZES = {"t": 256, "s": 384, "b": 512}
VOXCELEB2_CLIPS, EPOCHS = 1_091_581, 100  # of the published pre-training
CACHE = "saved/benchmarks/clips"
NOT_SET = "-"  # stands for a path that a benchmark does not need
GPU_ROUND = 5  # steps between two turns on a GPU, so that its queue runs full

Step = Callable[[], object]


# Time and machine


def processor() -> str:
    """Name the processor and how many of its cores are here."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores"


def device_name(device: torch.device) -> str:
    """Name what computes."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"cpu ({processor()})"


def plain(module: str) -> ModuleType:
    """Import a module of the plain baseline, tests/plain."""
    try:
        return importlib.import_module(f"tests.plain.{module}")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the plain baseline, tests/plain of the repository, cannot be imported ({error}); "
            "take the whole repository, or add --no-plain where there is such a flag"
        ) from error


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Refuse flags below a least value."""
    for name, bound in least.items():
        if getattr(args, name) < bound:
            raise ValueError(f"--{name} must be at least {bound}, got {getattr(args, name)}")


class Mark:
    """A point in the device's own time: on a GPU, when it has done all that was asked before."""

    def __init__(self, device: torch.device) -> None:
        self.event: Any = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def until(self, later: Mark) -> float:
        """Return the seconds to a later mark, once the device has reached it."""
        if self.event is None:
            return later.wall - self.wall
        later.event.synchronize()
        return self.event.elapsed_time(later.event) / 1e3


class Times(NamedTuple):
    """Seconds of every measured step."""

    wall: list[float]
    cpu: list[float]  # of this process on all cores; neighbours on the machine do not count
    waits: list[float]  # of the wall time, what the device could only wait for its batch

    def summary(self) -> dict[str, float]:
        """Return median and quartiles of the wall time, and the median of the CPU time."""
        low, median, high = np.percentile(self.wall, (25, 50, 75)).tolist()
        quartiles = {"step_s_quartile1": low, "step_s_quartile3": high}
        return {"step_s": median, **quartiles, "cpu_s": float(np.median(self.cpu))}


def measure_in_turns(
    variants: Mapping[str, Step], steps: int, warmup: int, device: torch.device
) -> dict[str, Times]:
    """Time every variant, step by step in turns, so that a machine's drift meets all alike.

    Args:
        variants: name -> one step.
        steps: measured for each variant, at least one.
        warmup: steps of each variant before that; the first compiles and fills caches.
        device: says how to time.
    """
    for step in variants.values():
        for _ in range(warmup):
            step()
    times = {name: Times([], [], []) for name in variants}
    chunk = GPU_ROUND if device.type == "cuda" else 1
    for first in range(0, steps, chunk):
        for name, step in variants.items():
            marks = [Mark(device)]
            for _ in range(min(chunk, steps - first)):
                step()
                marks.append(Mark(device))
            for one, other in itertools.pairwise(marks):
                times[name].wall.append(one.until(other))
                times[name].cpu.append(other.cpu - one.cpu)
    return times


# Clips like VoxCeleb2's: a moving face at a realistic bit rate

SIDE, FRAME_RATE, SECONDS, SAMPLE_RATE = 224, 25, 8, 16000
BIT_RATE = 220_000  # of H.264; VoxCeleb2's files are about this large
# What ffmpeg takes by default, and what is usual in VoxCeleb2: few keyframes, three B-frames.
ENCODER = {"preset": "medium", "threads": "1"}
FACE_CENTRE, FACE_SCALE = (264, 220), 0.6  # of the portrait: pupils about 50 pixels apart
GRAIN = 5.0  # standard deviation of the camera's noise, in grey levels


def make_clips(folder: Path, count: int) -> list[Clip]:
    """Return `count` clips in `folder`; those that an earlier call made are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = (SIDE, FRAME_RATE, SECONDS, BIT_RATE, sorted(ENCODER.items()), GRAIN)
    recipe = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]  # no older kind is taken
    clips = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        video, audio = (folder / f"clip{seed:04d}-{recipe}.{kind}" for kind in ("mp4", "wav"))
        for path, write in ((video, _write_video), (audio, _write_voice)):
            if not path.exists():
                part = path.with_suffix(".part")
                write(part, rng)
                part.replace(path)
        clips.append(Clip(str(video), str(audio), None))
    return clips


def _write_video(path: Path, rng: np.random.Generator) -> None:
    portrait = np.asarray(cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False))))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=ENCODER)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        phases = rng.uniform(0, 2 * np.pi, 6)
        for index in range(FRAME_RATE * SECONDS):
            picture = _picture(portrait, index / FRAME_RATE, phases, rng)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _picture(
    portrait: np.ndarray, seconds: float, phases: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the face: it sways and nods, its mouth opens, the light changes, the camera is noisy."""
    sway = np.sin(2 * np.pi * np.array([0.3, 0.5, 0.4, 0.25, 2.3, 0.1]) * seconds + phases)
    turn = cv2.getRotationMatrix2D(FACE_CENTRE, 6 * sway[0], FACE_SCALE * (1 + 0.05 * sway[3]))
    turn[:, 2] += [SIDE / 2 - FACE_CENTRE[0] + 8 * sway[1], SIDE / 2 - 220 + 5 * sway[2]]
    size = (SIDE, SIDE)
    picture = cv2.warpAffine(portrait, turn, size, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    x, y = turn @ (FACE_CENTRE[0], FACE_CENTRE[1] + 75, 1)
    mouth = (13, int(4 + 4 * sway[4]))
    cv2.ellipse(picture, (int(x), int(y)), mouth, 0, 0, 360, (40, 30, 70), -1)
    picture *= 1 + 0.06 * sway[5]
    picture += rng.normal(0, GRAIN, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _write_voice(path: Path, rng: np.random.Generator) -> None:
    """Write something with syllables, harmonics and breath."""
    seconds = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * seconds)) / SAMPLE_RATE
    voiced = sum(np.sin(k * pitch + phase) / k for k, phase in enumerate(rng.uniform(0, 6, 20), 1))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * seconds + rng.uniform(0, 6)), 0, None)
    voice = 0.15 * syllables * voiced + rng.normal(0, 0.005, len(seconds))
    soundfile.write(path, voice, SAMPLE_RATE, subtype="PCM_16", format="WAV")


# loader

LOADER_HELP = """Time the reading of clips on one core, beside a plain loader.

Clips like VoxCeleb2's (224 x 224, 25 frames a second, 8 s, H.264 at 220 kbit/s, 16 kHz wav) are
made and packed, and the same windows are loaded in turns: by the plain loader of tests/plain, from
the mp4, and from the shard; once and --num_samples times a clip. Ours yields uint8 pixels, which
training normalises on its device; the rows "normalised" do that here, as the plain loader does.
Files are in the page cache. Rates count the CPU time of this process.
"""
VARIANTS = {
    "plain": "plain loader, mp4 + wav",
    "mp4": "ours, mp4 + wav",
    "mp4_normalised": "ours, mp4 + wav, normalised",
    "mp4_samples": "ours, mp4 + wav, {} samples",
    "shards": "ours, shards",
    "shards_normalised": "ours, shards, normalised",
    "shards_samples": "ours, shards, {} samples",
}


def add_loader_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `loader`."""
    group = parser.add_argument_group("What to measure")
    group.add_argument("--num_clips", type=int, default=8, help="clips to make (default: 8)")
    group.add_argument("--steps", type=int, default=40, help="items of each kind (default: 40)")
    group.add_argument(
        "--num_samples", type=int, default=4, help="samples of a clip at once (default: 4)"
    )
    group.add_argument("--quality", type=int, default=95, help="of the shards' JPEG (default: 95)")
    group.add_argument(
        "--cache", default=CACHE, metavar="DIR", help=f"where clips are kept (default: {CACHE})"
    )


def run_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the figures."""
    check_least(args, num_clips=1, steps=1, num_samples=1)
    load_clip = plain("loader").load_clip
    clips = make_clips(Path(args.cache), args.num_clips)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers do
    with tempfile.TemporaryDirectory(prefix="hicmae-loader-") as folder:
        packed, pack_seconds = pack(clips, Path(folder), args.quality)
        variants: dict[str, Iterator[Any]] = {"plain": plain_items(load_clip, clips)}
        for name, source in (("mp4", clips), ("shards", packed)):
            variants[name] = own_items(source, 1)
            variants[f"{name}_normalised"] = (item.to("cpu") for item in own_items(source, 1))
            variants[f"{name}_samples"] = own_items(source, args.num_samples)
        steps = {name: items.__next__ for name, items in variants.items()}
        times = measure_in_turns(steps, args.steps, 2, torch.device("cpu"))
        files = {kind: os.path.getsize(getattr(clips[0], f)) for kind, f in KINDS.items()}
        files["shard"] = sum(shard.size for shard in packed.shards) / len(clips)
        loss = packing_loss(clips, packed)
    torch.set_num_threads(threads)
    samples = {name: args.num_samples if "samples" in name else 1 for name in variants}
    rows = {name: _rates(times[name], samples[name], times["plain"]) for name in variants}
    return {
        "device": f"cpu ({processor()}), one core",
        "model": "pretraining clips",
        "batch_size": 1,
        "num_samples": args.num_samples,
        "clips_per_s": rows["mp4"]["clips_per_s"],
        "plain_clips_per_s": rows["plain"]["clips_per_s"],
        "ratio": rows["mp4"]["ratio"],
        "variants": rows,
        **{f"{kind}_bytes_per_clip": size for kind, size in files.items()},
        "jpeg_quality": args.quality,
        "jpeg_psnr_db": loss,
        "pack_cpu_s_per_clip": pack_seconds,
        "pack_voxceleb2_core_hours": pack_seconds * VOXCELEB2_CLIPS / 3600,
    }


KINDS = {"mp4": "video", "wav": "audio"}


def plain_items(load_clip: Callable[..., Any], clips: list[Clip]) -> Iterator[Any]:
    """Yield clips as the plain loader gives them, endlessly."""
    for item in endless_items(len(clips)):
        clip = clips[item.index]
        yield load_clip(clip.video, clip.audio, item_generator(0, item))


def own_items(clips: list[Clip] | PackedClips, num_samples: int) -> Iterator[PretrainBatch]:
    """Yield items of the pre-training data set, endlessly; with one sample, the plain ones."""
    dataset = PretrainClips(clips, num_samples=num_samples, seed=0)
    # Packed clips have their own order; by name it is that of the files.
    order = sorted(range(len(clips)), key=lambda index: clips[index].video)
    for item in endless_items(len(clips)):
        yield dataset[item._replace(index=order[item.index])]


def endless_items(num_clips: int) -> Iterator[ClipIndex]:
    """Yield the items of one epoch after the other."""
    for epoch in itertools.count():
        for index in range(num_clips):
            yield ClipIndex(epoch, index)


def pack(clips: list[Clip], folder: Path, quality: int) -> tuple[PackedClips, float]:
    """Pack clips; return them and the CPU seconds of one clip."""
    write_list(folder / "clips.csv", [clip._replace(label=0) for clip in clips])
    flags = ["--output_dir", str(folder / "packed"), "--quality", str(quality)]
    before = sum(os.times()[:4])  # of this process and its children
    if pack_clips.main([str(folder / "clips.csv"), *flags, "--num_workers", "1"]):
        raise RuntimeError("the clips could not be packed; see the lines above")
    seconds = (sum(os.times()[:4]) - before) / len(clips)
    return read_packed(folder / "packed"), seconds


def _rates(times: Times, samples: int, baseline: Times) -> dict[str, float]:
    """Return clips a second, and how many times those of the plain loader.

    All variants load the same windows, whose costs differ: totals compare, medians would not.
    """
    cpu, wall = (samples * len(part) / sum(part) for part in times[:2])
    plain_cpu, plain_wall = (len(part) / sum(part) for part in baseline[:2])
    return {
        "num_samples": samples,
        "clips_per_s": cpu,
        "ratio": cpu / plain_cpu,
        "wall_clips_per_s": wall,
        "wall_ratio": wall / plain_wall,
        **times.summary(),
    }


def packing_loss(clips: list[Clip], packed: PackedClips) -> float:
    """Return the mean PSNR in dB of packed frames against those they were made from."""
    stored = {clip.video: clip for clip in packed}
    ratios = []
    for clip in clips:
        video, again = open_streams(clip)[0], open_streams(stored[clip.video])[0]
        indices = range(0, len(video), 25)
        for frame, other in zip(video.read(indices), again.read(indices), strict=True):
            left, top, right, bottom = face_box(*frame.shape[1::-1])
            error = frame[top:bottom, left:right].astype(np.float64) - other
            ratios.append(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9)))
    return float(np.mean(ratios))


def show_loader(figures: dict[str, Any]) -> str:
    """Make a table of the ways to read, and say what packing costs."""
    table = [("", "clips/s a core", "ratio", "on the clock", "CPU ms/clip")]
    for key, name in VARIANTS.items():
        row = figures["variants"][key]
        cells = (f"{row['clips_per_s']:.1f}", f"{row['ratio']:.2f}", f"{row['wall_ratio']:.2f}")
        named = name.format(figures["num_samples"])
        table.append((named, *cells, f"{1e3 / row['clips_per_s']:.1f}"))
    mp4, wav, shard = (figures[f"{kind}_bytes_per_clip"] / 1e3 for kind in ("mp4", "wav", "shard"))
    return (
        f"{figures['device']}\n\n{aligned(table)}\n"
        f"A clip: {mp4:.0f} KB of mp4 and {wav:.0f} KB of wav, or {shard:.0f} KB in a shard "
        f"(JPEG {figures['jpeg_quality']}, {figures['jpeg_psnr_db']:.1f} dB).\n"
        f"Packing: {figures['pack_cpu_s_per_clip']:.2f} CPU s a clip, "
        f"{figures['pack_voxceleb2_core_hours']:.0f} core hours for VoxCeleb2's clips.\n"
    )


# Steps of run_pretraining.py, for feed and ranks


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of run_pretraining.py, so that what is measured is what is trained."""
    for config in PretrainConfigs.__annotations__.values():
        add_arguments(parser, config, output_dir=NOT_SET, data_path=NOT_SET)


def training_configs(args: argparse.Namespace) -> PretrainConfigs:
    """Build the settings from parsed flags."""
    if args.model.lower() in SIZES:
        args.model = f"pretrain_hicmae_dim{SIZES[args.model.lower()]}_patch16_160_a256"
    if not timm.is_model(args.model):
        raise ValueError(f"--model {args.model} is not known; use t, s, b or a registered name")
    groups = PretrainConfigs.__annotations__.items()
    return PretrainConfigs(**{name: from_flags(vars(args), kind) for name, kind in groups})


def train(
    configs: PretrainConfigs,
    device: torch.device,
    batches: Iterable[PretrainBatch],
    steps: int,
    warmup: int,
    exchange: bool = True,
) -> Times:
    """Train a fresh model for warmup + steps steps; return the times of the latter.

    Args:
        configs: settings of the run.
        device: of this process.
        batches: at least as many as the steps take.
        steps: to be measured.
        warmup: steps before.
        exchange: whether several processes exchange their gradients.
    """
    torch.manual_seed(configs.run.seed)
    precision = choose_precision(configs.run.precision, device)
    model = make_model(configs).to(device).train()
    optimizer = make_optimizer(parameter_groups(model, 0.05), configs.optim.lr)
    state = TrainState(model, optimizer, precision.grad_scaler(), MetricBuffer(1))
    trained = as_trained(model, configs.run, device, exchange)
    compute_loss, batches = make_loss(configs.loss), iter(batches)
    marks = []
    for _ in range(warmup + steps):
        asked = Mark(device)
        group = list(itertools.islice(batches, configs.optim.accum_iter))
        marks.append((asked, Mark(device)))
        train_step(trained, group, compute_loss, state, precision)
    pairs = itertools.pairwise([*(asked for asked, _ in marks[warmup:]), Mark(device)])
    wall, cpu = zip(*((a.until(b), b.cpu - a.cpu) for a, b in pairs), strict=True)
    return Times(list(wall), list(cpu), [a.until(given) for a, given in marks[warmup:]])


# feed

FEED_HELP = """Does the loader keep the device busy, and what does VoxCeleb2 need.

It takes the flags of run_pretraining.py and trains for some steps from each source and from one
batch that is always there. Their difference is what the data cost.
"""
FEED_NOTE = """
Waits: share of the time in which the device had nothing to do but wait for a batch. Slower: loss of
clips/s against steps on one batch; on a CPU the loader takes cores from the model as well.
"""


def add_feed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `feed`: those of pre-training, and what to measure."""
    add_training_flags(parser)
    group = parser.add_argument_group("What to measure")
    group.add_argument("--steps", type=int, default=50, help="measured steps (default: 50)")
    group.add_argument(
        "--warmup", type=int, default=10, help="steps before, not measured (default: 10)"
    )
    group.add_argument("--shards", metavar="DIR", help="a second source: the same clips, packed")
    group.add_argument(
        "--make_clips",
        type=int,
        metavar="N",
        help=f"instead of --data_path: N clips like VoxCeleb2's, made in {CACHE}",
    )


def run_feed(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every source in one run; return the result."""
    check_least(args, steps=1, warmup=0)
    configs = training_configs(args)
    with tempfile.TemporaryDirectory(prefix="hicmae-feed-") as folder:
        sources = [("files", configs.data.data_path), ("shards", args.shards or NOT_SET)]
        if args.make_clips is not None:
            check_least(args, make_clips=1)
            if configs.data.data_path != NOT_SET:
                raise ValueError("--make_clips stands in for --data_path; give one of them")
            made = Path(folder, "made.csv")
            write_list(made, make_clips(Path(CACHE), args.make_clips))
            sources[0] = ("files", str(made))
        sources = [(kind, path) for kind, path in sources if path != NOT_SET]
        if not sources:
            raise ValueError("no clips to read; give --data_path, --shards or --make_clips")
        device = distributed.start(configs.run.device)
        rows = [_feed(configs, device, *source, args.steps, args.warmup) for source in sources]
    return {
        "device": device_name(device),
        "model": configs.model.model_name,
        "precision": choose_precision(configs.run.precision, device).name,
        "batch_size": configs.optim.batch_size,
        "accum_iter": configs.optim.accum_iter,
        "num_samples": configs.data.num_samples,
        "num_workers": configs.run.num_workers,
        "clips_per_s": rows[-1]["clips_per_s"],
        "sources": rows,
    }


class Repeated(Sequence[Any]):
    """A list read again and again until it is long enough, so that an epoch never ends."""

    def __init__(self, clips: Sequence[Any], length: int) -> None:
        self.clips, self.length = clips, max(length, len(clips))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.clips[index % len(self.clips)]


def _feed(
    configs: PretrainConfigs, device: torch.device, kind: str, path: str, steps: int, warmup: int
) -> dict[str, Any]:
    """Train from one source, from its first batch alone, and read it without a model."""
    dataset = make_dataset(configs._replace(data=replace(configs.data, data_path=path)))
    batch_size, workers = configs.optim.batch_size, configs.run.num_workers
    num_clips = len(dataset)
    # All steps, the reading alone, and what is loaded in advance.
    batches_read = (warmup + 2 * steps) * configs.optim.accum_iter + 4 * workers + 2
    dataset.clips = Repeated(dataset.clips, batch_size * batches_read)
    sampler = ClipSampler(len(dataset), shuffle=True, seed=configs.run.seed, pad=True)
    loader = make_loader(dataset, sampler, batch_size, workers, True, device.type)
    batches = epoch_batches(loader, 0)
    first = next(batches)
    fixed = train(configs, device, itertools.repeat(first), steps, warmup)
    fed = train(configs, device, batches, steps, warmup)
    for _ in range(2 * workers + 1):  # loaded while the last steps still ran
        next(batches)
    start = time.perf_counter()
    loaded = sum(len(batch.names) for batch in itertools.islice(batches, steps))
    alone = loaded / (time.perf_counter() - start)
    del batches
    loader._iterator = None  # ends its workers before the next source starts its own
    rates = feed_rates(fed, fixed, len(first.names) * configs.optim.accum_iter)
    row = {"source": kind, "data_path": path, "clips_in_list": num_clips, **rates}
    row["times_read"] = batch_size * batches_read / num_clips
    row["loader_clips_per_s"] = alone
    return row | voxceleb2(row, max(workers, 1))


def feed_rates(fed: Times, fixed: Times, clips: int) -> dict[str, float]:
    """Compare steps of so many clips fed by the loader with steps on a batch that is there."""
    fed_rate, fixed_rate = (clips * len(part.wall) / sum(part.wall) for part in (fed, fixed))
    return {
        "clips_per_s": fed_rate,
        "fixed_clips_per_s": fixed_rate,
        "wait_share": sum(fed.waits) / sum(fed.wall),
        "slower_share": 1 - fed_rate / fixed_rate,
        **fed.summary(),
        **{f"fixed_{name}": value for name, value in fixed.summary().items()},
    }


def voxceleb2(row: Mapping[str, Any], workers: int) -> dict[str, float]:
    """Compute what VoxCeleb2 x 100 epochs needs on devices like the one that was measured."""
    device_days = VOXCELEB2_CLIPS * EPOCHS / 86400
    return {
        "voxceleb2_device_days": device_days / row["clips_per_s"],
        "voxceleb2_device_days_if_fed": device_days / row["fixed_clips_per_s"],
        "loader_cores_per_device": row["fixed_clips_per_s"] / row["loader_clips_per_s"] * workers,
    }


def show_feed(figures: dict[str, Any]) -> str:
    """Make a table of the sources, and what VoxCeleb2 needs from each."""
    table = [("", "clips/s", "without loading", "waits", "slower", "loader alone")]
    needs = ""
    for row in figures["sources"]:
        fed, fixed, alone = (
            f"{row[f'{name}clips_per_s']:.1f}" for name in ("", "fixed_", "loader_")
        )
        waits, slower = (f"{row[name]:.1%}" for name in ("wait_share", "slower_share"))
        table.append((row["source"], fed, fixed, waits, slower, alone))
        needs += (
            f"\nVoxCeleb2 x {EPOCHS} epochs from {row['source']}: "
            f"{row['voxceleb2_device_days']:.3g} days on one such device, "
            f"{row['voxceleb2_device_days_if_fed']:.3g} if it never waits, for which it needs "
            f"{row['loader_cores_per_device']:.3g} such loader processes\n"
        )
    title = (
        f"{figures['device']}: {figures['model']}, {figures['precision']}, "
        f"{figures['batch_size']} clips, {figures['num_workers']} loader process(es)\n\n"
    )
    return title + aligned(table) + FEED_NOTE + needs


# ranks

RANKS_HELP = """What several processes cost.

The same batch is trained in one process, in several that ignore each other, and in several that
exchange gradients, without and with the negatives of all (--gather_negatives).
"""
RANKS_NOTE = """
Exchange costs: step time against processes side by side that exchange nothing; what these lose
against one process, they lose to shared memory and cores. CPU time leaves out waiting, and what
else the machine does. Processes of one machine say nothing about a network.
"""
ONE = "one process"
SEPARATE, OURS, GATHERED = "side by side, nothing exchanged", "ours", "ours, gathered negatives"


def add_ranks_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ranks`: those of pre-training, and what to measure."""
    add_training_flags(parser)
    group = parser.add_argument_group("What to measure")
    group.add_argument("--nproc", type=int, default=2, help="processes (default: 2)")
    group.add_argument("--steps", type=int, default=5, help="measured steps a round (default: 5)")
    group.add_argument("--warmup", type=int, default=2, help="steps before (default: 2)")
    group.add_argument(
        "--rounds", type=int, default=3, help="times that every variant has its turn (default: 3)"
    )


def run_ranks(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one process, then several; return the figures."""
    check_least(args, nproc=2, steps=1, warmup=0, rounds=1)
    training_configs(args)  # its errors belong here, not into a process's trace
    seen: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hicmae-ranks-") as folder:
        for world in (1, args.nproc):
            try:
                mp.spawn(one_rank, args=(world, _free_port(), args, folder), nprocs=world)
            except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
                reason = str(error).strip().splitlines()[-1]
                raise RuntimeError(
                    f"process {error.error_index} of {world} failed: {reason}"
                ) from error
            figures = json.loads(Path(folder, f"{world}.json").read_text(encoding="utf-8"))
            seen |= figures.pop("slowest")
    rows = compare_ranks(seen, args.batch_size * args.accum_iter, args.nproc)
    ours = next(row for row in rows if row["name"] == OURS)
    flags = {name: getattr(args, name) for name in ("model", "batch_size", "accum_iter", "nproc")}
    return {**figures, **flags, "clips_per_s": ours["clips_per_s"], "rows": rows}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def one_rank(rank: int, world: int, port: int, args: argparse.Namespace, folder: str) -> None:
    """Run in each process: time every variant; rank 0 writes the slowest rank's step times."""
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max((os.cpu_count() or 1) // args.nproc, 1))
    configs = training_configs(args)
    device = distributed.start(configs.run.device)
    names = [SEPARATE, OURS, GATHERED] if world > 1 else [ONE]
    seen: dict[str, list[Times]] = {name: [] for name in names}
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            loss = replace(configs.loss, gather=name == GATHERED)
            batches = itertools.repeat(synthetic_batch(configs, rank))
            one = configs._replace(loss=loss)
            seen[name].append(
                train(one, device, batches, args.steps, args.warmup, exchange=name != SEPARATE)
            )
            gc.collect()  # the wrapper's buckets
    summed = {n: Times(*(sum(part, []) for part in zip(*s, strict=True))) for n, s in seen.items()}
    ranks = distributed.gather_objects([{name: t.summary() for name, t in summed.items()}])
    slowest = {n: max((r[n] for r in ranks), key=lambda row: row["step_s"]) for n in names}
    if distributed.is_main():
        precision = choose_precision(configs.run.precision, device).name
        figures = {"device": device_name(device), "precision": precision, "slowest": slowest}
        figures["threads"] = torch.get_num_threads()
        Path(folder, f"{world}.json").write_text(json.dumps(figures), encoding="utf-8")
    distributed.stop()


def synthetic_batch(configs: PretrainConfigs, seed: int) -> PretrainBatch:
    """Make a batch of the run's shapes; the arithmetic does not depend on the pixels."""
    rng, clip, mask = np.random.default_rng(seed), configs.clip, configs.mask
    size, side = configs.optim.batch_size, clip.input_size // 16
    grid = (clip.num_frames // clip.tubelet_size, side, side)
    steps, mel_bins = clip.input_size_audio
    shape = (size, 3, clip.num_frames, clip.input_size, clip.input_size)
    masks = [tube_mask(grid, mask.mask_ratio, rng) for _ in range(size)]
    num_audio = steps * mel_bins // 256
    audio_masks = [random_mask(num_audio, mask.mask_ratio_audio, rng) for _ in range(size)]
    audio = rng.standard_normal((size, 1, steps, mel_bins), dtype=np.float32)
    return PretrainBatch(
        video=torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
        video_mask=torch.from_numpy(np.stack(masks)),
        audio=torch.from_numpy(audio),
        audio_mask=torch.from_numpy(np.stack(audio_masks)),
        names=("synthetic",) * size,
        skipped=(),
    )


def compare_ranks(
    seen: Mapping[str, Mapping[str, float]], clips: int, nproc: int
) -> list[dict[str, Any]]:
    """Compare what sharing the machine costs, and what exchanging gradients costs on top.

    Args:
        seen: variant -> step_s and cpu_s of the slowest rank; every rank does equal work.
        clips: of a step of one process.
        nproc: processes of all variants but one.
    """
    rows: list[dict[str, Any]] = []
    base = seen[SEPARATE]
    for name, seconds in seen.items():
        processes = 1 if name == ONE else nproc
        row = {"name": name, "processes": processes, **seconds}
        row["clips_per_s"] = processes * clips / seconds["step_s"]
        row["efficiency"] = seen[ONE]["step_s"] / seconds["step_s"]
        if name not in (ONE, SEPARATE):
            row["overhead"] = seconds["step_s"] / base["step_s"] - 1
            row["overhead_cpu_time"] = seconds["cpu_s"] / base["cpu_s"] - 1
        rows.append(row)
    return rows


def show_ranks(figures: dict[str, Any]) -> str:
    """Make a table."""
    names = ("clips/s", "efficiency", "step", "exchange costs", "CPU time", "exchange costs")
    table = [("", "processes", *names)]
    for row in figures["rows"]:
        costs, cpu_costs = (
            f"{row[name]:+.1%}" if name in row else "" for name in ("overhead", "overhead_cpu_time")
        )
        rates = (f"{row['clips_per_s']:.2f}", f"{row['efficiency']:.0%}")
        times = (f"{row['step_s']:.3f} s", costs, f"{row['cpu_s']:.3f} s", cpu_costs)
        table.append((row["name"], str(row["processes"]), *rates, *times))
    title = (
        f"{figures['device']}: {figures['model']}, {figures['precision']}, "
        f"{figures['batch_size']} clips a process, {figures['threads']} thread(s) each\n\n"
    )
    return title + aligned(table) + RANKS_NOTE
