"""Time the reading of clips on one core: from mp4 and from shards, beside a plain loader.

``python -m hicmae.benchmark loader`` makes clips like VoxCeleb2's (224 x 224, 25 frames a second,
8 s, H.264 at 220 kbit/s, 16 kHz wav), packs them, and loads the same windows in turns: by the plain
loader of tests/plain, from the mp4, and from the shard; once and `--num_samples` times a clip. Ours
yields uint8 pixels, which training normalises on its device; the rows "normalised" do that here as
the plain loader does. Everything else is work of the CPU in all rows. Files are in the page cache.
Rates count the CPU time of this process, so that neighbours on the machine do not weigh.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hicmae.benchmark.context import processor
from hicmae.benchmark.loader_clips import make_clips
from hicmae.benchmark.timing import StepTimes, measure_in_turns
from hicmae.benchmark.workload import plain
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import Clip
from hicmae.data.dataset import PretrainClips, open_streams
from hicmae.data.loader import item_generator
from hicmae.data.shards import PackedClips, read_packed
from hicmae.data.video import face_box
from hicmae.io import aligned

CACHE = "saved/benchmarks/clips"
VOXCELEB2_CLIPS = 1_092_009
SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; return the figures."""
    for name in ("num_clips", "steps", "num_samples"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 1 <= args.quality <= 100:
        raise ValueError(f"--quality must be from 1 to 100, got {args.quality}")
    load_clip = plain("loader").load_clip
    clips = make_clips(Path(args.cache), args.num_clips)
    with tempfile.TemporaryDirectory(prefix="hicmae-loader-") as folder, one_thread():
        packed, pack_seconds = pack(clips, Path(folder), args.quality)
        variants = {
            "plain": plain_items(load_clip, clips),
            "mp4": own_items(clips, 1),
            "mp4_normalised": normalised(own_items(clips, 1)),
            "mp4_samples": own_items(clips, args.num_samples),
            "shards": own_items(packed, 1),
            "shards_normalised": normalised(own_items(packed, 1)),
            "shards_samples": own_items(packed, args.num_samples),
        }
        steps = {name: items.__next__ for name, items in variants.items()}
        times = measure_in_turns(steps, args.steps, 2, torch.device("cpu"))
        loss = packing_loss(clips, packed)
    samples = {name: args.num_samples if "samples" in name else 1 for name in variants}
    rows = {name: rates(times[name], samples[name], times["plain"]) for name in variants}
    return {
        "device": f"cpu ({processor()}), one core",
        "model": "pretraining clips",
        "batch_size": 1,
        "num_samples": args.num_samples,
        "clips_per_s": rows["mp4"]["clips_per_s"],
        "plain_clips_per_s": rows["plain"]["clips_per_s"],
        "ratio": rows["mp4"]["ratio"],
        "variants": rows,
        **sizes(clips, packed),
        "jpeg_quality": args.quality,
        "jpeg_psnr_db": loss,
        "pack_cpu_s_per_clip": pack_seconds,
        "pack_voxceleb2_core_hours": pack_seconds * VOXCELEB2_CLIPS / 3600,
    }


def plain_items(load_clip: Callable[..., Any], clips: list[Clip]) -> Iterator[Any]:
    """Yield clips as the plain loader gives them, endlessly."""
    for item in endless_items(len(clips)):
        clip = clips[item.index]
        yield load_clip(clip.video, clip.audio, item_generator(SEED, item))


def own_items(clips: list[Clip] | PackedClips, num_samples: int) -> Iterator[PretrainBatch]:
    """Yield items of the pre-training data set, endlessly; with one sample, the plain ones."""
    dataset = PretrainClips(clips, num_samples=num_samples, seed=SEED)
    # Packed clips have their own order; by name it is that of the files.
    order = sorted(range(len(clips)), key=lambda index: clips[index].video)
    for item in endless_items(len(clips)):
        yield dataset[item._replace(index=order[item.index])]


def normalised(items: Iterator[PretrainBatch]) -> Iterator[PretrainBatch]:
    """Yield items with float pixels."""
    return (item.to("cpu") for item in items)


def endless_items(num_clips: int) -> Iterator[ClipIndex]:
    """Yield the items of one epoch after the other."""
    for epoch in itertools.count():
        for index in range(num_clips):
            yield ClipIndex(epoch, index)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, as workers do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pack(clips: list[Clip], folder: Path, quality: int) -> tuple[PackedClips, float]:
    """Pack clips into one shard; return them and the CPU seconds of one clip."""
    try:
        from preprocess.face_and_audio.batch import Outcome
        from preprocess.packing import PackJob, Settings, encode, write_shard
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"preprocess/ cannot be imported ({error}); run from the repository's root"
        ) from error
    start = time.process_time()
    jobs = [PackJob(clip.video, clip.video, "", str(clip.audio), clip) for clip in clips]
    settings = Settings(True, None, quality)
    encoded = (Outcome(job, details=encode(job, settings)) for job in jobs)
    write_shard(folder / "clips-000000.tar", encoded, 1 << 62)
    seconds = (time.process_time() - start) / len(clips)
    return read_packed(folder), seconds


def rates(times: StepTimes, samples: int, baseline: StepTimes) -> dict[str, float]:
    """Return clips a second, and how many times those of the plain loader.

    All variants load the same windows, whose costs differ: totals compare, medians would not.
    """
    cpu, wall = (samples * len(part) / sum(part) for part in (times.cpu, times.wall))
    plain_cpu, plain_wall = (len(part) / sum(part) for part in (baseline.cpu, baseline.wall))
    return {
        "num_samples": samples,
        "clips_per_s": cpu,
        "ratio": cpu / plain_cpu,
        "wall_clips_per_s": wall,
        "wall_ratio": wall / plain_wall,
        **times.summary(),
    }


def sizes(clips: list[Clip], packed: PackedClips) -> dict[str, float]:
    """Return the bytes of a clip as files and in shards."""
    shard = sum(shard.size for shard in packed.shards)
    return {
        "mp4_bytes_per_clip": sum(os.path.getsize(clip.video) for clip in clips) / len(clips),
        "wav_bytes_per_clip": sum(os.path.getsize(str(clip.audio)) for clip in clips) / len(clips),
        "shard_bytes_per_clip": shard / len(clips),
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


def show(figures: dict[str, Any]) -> str:
    """Make a table of the ways to read, and say what packing costs."""
    several = figures["num_samples"]
    names = {
        "plain": "plain loader, mp4 + wav",
        "mp4": "ours, mp4 + wav",
        "mp4_normalised": "ours, mp4 + wav, normalised",
        "mp4_samples": f"ours, mp4 + wav, {several} samples",
        "shards": "ours, shards",
        "shards_normalised": "ours, shards, normalised",
        "shards_samples": f"ours, shards, {several} samples",
    }
    table = [("", "clips/s a core", "ratio", "on the clock", "CPU ms/clip")]
    for key, name in names.items():
        row = figures["variants"][key]
        cells = (f"{row['clips_per_s']:.1f}", f"{row['ratio']:.2f}", f"{row['wall_ratio']:.2f}")
        table.append((name, *cells, f"{1e3 / row['clips_per_s']:.1f}"))
    kilo = {kind: figures[f"{kind}_bytes_per_clip"] / 1e3 for kind in ("mp4", "wav", "shard")}
    return (
        f"{figures['device']}\n\n{aligned(table)}\n"
        f"A clip: {kilo['mp4']:.0f} KB of mp4 and {kilo['wav']:.0f} KB of wav, or "
        f"{kilo['shard']:.0f} KB in a shard (JPEG {figures['jpeg_quality']}, "
        f"{figures['jpeg_psnr_db']:.1f} dB).\n"
        f"Packing: {figures['pack_cpu_s_per_clip']:.2f} CPU s a clip, "
        f"{figures['pack_voxceleb2_core_hours']:.0f} core hours for VoxCeleb2's "
        f"{VOXCELEB2_CLIPS} clips.\n"
    )
