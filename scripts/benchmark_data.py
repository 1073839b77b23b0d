"""What scripts/benchmark.py measures of data: the reading of clips, and how training is fed."""

import datetime
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import soundfile
import torch
from matplotlib.cbook import get_sample_data

from hicmae.config import PretrainConfigs
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import Clip, PackedClips, read_packed, read_pretrain_list, write_list
from hicmae.data.dataset import PretrainClips
from hicmae.data.film import Film
from hicmae.data.loader import ClipSampler, epoch_batches, item_generator, make_loader
from hicmae.faces import SMOOTHING
from hicmae.faces.detector import Detector
from hicmae.faces.tracking import fill_gaps, main_face, search, smooth
from hicmae.io import whole_file
from hicmae.pretraining import make_dataset, make_loss, make_model
from hicmae.training import distributed
from hicmae.training.loop import as_trained, clip_loader, train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import Run, choose_precision
from hicmae.training.state import describe_clips
from preprocess import pack_clips
from scripts import benchmark_models as models
from scripts.benchmark import (
    CACHE,
    NOT_SET,
    BenchmarkConfig,
    FacesConfig,
    FeedConfig,
    GrowthConfig,
    LoaderConfig,
)
from scripts.benchmark_models import Mark, measure_in_turns, summary

VOXCELEB2_CLIPS, EPOCHS = 1_091_581, 100  # of the published pre-training

# Clips like VoxCeleb2's: a moving face at a realistic bit rate

SIDE, FRAME_RATE, SECONDS, SAMPLE_RATE = 224, 25, 8, 16000
BIT_RATE = 220_000  # of H.264; VoxCeleb2's files are about this large
# What ffmpeg takes by default, and what is usual in VoxCeleb2: few keyframes, three B-frames.
ENCODER = {"preset": "medium", "threads": "1"}
FACE_CENTRE = np.array([264, 220])  # of the portrait
EYES = np.array([[222.0, 189.6], [306.0, 186.6]])  # likewise, by eye
GRAIN = 5.0  # standard deviation of the camera's noise, in grey levels
JPEG_QUALITY = 95  # of shards


def make_clips(folder: Path, count: int) -> list[Clip]:
    """Return `count` clips in `folder`; those that an earlier call made are taken as they are."""
    clips = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        names = [str(folder / f"clip{seed:04d}-{SECONDS}s.{kind}") for kind in ("mp4", "wav")]
        for name, write in zip(names, (_write_video, _write_voice), strict=True):
            if not Path(name).exists():
                with whole_file(name) as part:
                    write(part, rng)
        clips.append(Clip(*names, None))
    return clips


def _write_video(path: Path, rng: np.random.Generator) -> None:
    """Film a face that sways and nods, by a noisy camera."""
    portrait = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    phases = rng.uniform(0, 2 * np.pi, 4)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=ENCODER)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        for index in range(FRAME_RATE * SECONDS):
            turn = _camera(index, phases)
            picture = cv2.warpAffine(portrait, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
            noisy = (picture + rng.normal(0, GRAIN, picture.shape)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _camera(index: int, phases: np.ndarray) -> np.ndarray:
    """Return the (2, 3) transform that takes the portrait to a frame."""
    sway = np.sin(2 * np.pi * np.array([0.3, 0.5, 0.4, 0.25]) * index / FRAME_RATE + phases)
    centre = tuple(FACE_CENTRE.tolist())
    turn = cv2.getRotationMatrix2D(centre, 6 * sway[0], 0.6 + 0.03 * sway[3])
    turn[:, 2] += SIDE / 2 - FACE_CENTRE + [8 * sway[1], 5 * sway[2]]
    return turn


def _write_voice(path: Path, rng: np.random.Generator) -> None:
    seconds = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    voice = sum(0.1 / k * np.sin(2 * np.pi * 140 * k * seconds) for k in range(1, 20))
    voice = voice * np.sin(2 * np.pi * 3 * seconds) + rng.normal(0, 0.005, len(seconds))
    soundfile.write(path, voice, SAMPLE_RATE, subtype="PCM_16")


# faces

# Seconds of this process by what a first prediction does; arguments: checkpoint, film, sound.
COLD = """
import json, sys, time
seconds = {"Python": time.process_time()}
def till_now(name):
    seconds[name] = time.process_time() - sum(seconds.values())
import torch
till_now("torch")
from hicmae.inference import clips, commands, forward
till_now("other imports")
recognizer = commands.EmotionRecognizer.from_checkpoint(sys.argv[1], "cpu")
till_now("model")
def timed(room, name):
    work = getattr(room, name)
    def run(*values):
        start = time.process_time()
        result = work(*values)
        inside[name] = inside.get(name, 0) + time.process_time() - start
        return result
    setattr(room, name, run)
inside = {}
timed(clips, "find_people")
timed(forward, "scores")
recognizer.predict(sys.argv[2], audio=sys.argv[3])
till_now("sound, cutting out, spectrograms")
seconds["sound, cutting out, spectrograms"] -= sum(inside.values())
seconds["decoding and faces"] = inside["find_people"]
seconds["network"] = inside["scores"]
print(json.dumps(seconds))
"""


def run_faces(config: FacesConfig) -> dict[str, Any]:
    """Time the stages of a first prediction, and faces by how often they are searched."""
    clip = make_clips(Path(config.cache), 1)[0]
    command = [sys.executable, "-c", COLD, config.checkpoint, clip.video, clip.audio]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    seconds = json.loads(done.stdout.splitlines()[-1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frames, detector = Film(clip.video).read(range(FRAME_RATE * SECONDS)), Detector()
    found: dict[int, np.ndarray] = {}

    def follow(every: int) -> None:
        faces, size = search(frames, detector, every)
        found[every] = smooth(fill_gaps(main_face(faces, size))[0], SMOOTHING * FRAME_RATE)

    steps = {str(every): partial(follow, every) for every in config.detect_every}
    times = measure_in_turns(steps, config.steps, 1, torch.device("cpu"))
    torch.set_num_threads(threads)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 4)
    turns = np.stack([_camera(index, phases) for index in range(len(frames))])
    eyes = np.einsum("fij,ej->fei", turns[:, :, :2], EYES) + turns[:, None, :, 2]
    apart = np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=1).mean()
    cost = times.groupby("variant").cpu.median()
    return {
        "device": f"cpu ({models.processor()}), one core",
        "model": config.checkpoint,
        "cold_cpu_s": sum(seconds.values()),
        "cold_shares": {name: part / sum(seconds.values()) for name, part in seconds.items()},
        "faces": [
            {
                "detect_every": every,
                "films_per_s": 1 / cost[str(every)],
                "faster": cost[str(min(found))] / cost[str(every)],
                "eye_error": np.linalg.norm(points[:, :2] - eyes, axis=2).mean() / apart,
            }
            for every, points in sorted(found.items())
        ],
    }


# loader


def run_loader(config: LoaderConfig) -> dict[str, Any]:
    """Measure the reading of clips, see `scripts.benchmark`."""
    clips, many = make_clips(Path(config.cache), config.num_clips), config.num_samples
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers do
    with tempfile.TemporaryDirectory(prefix="hicmae-loader-") as folder:
        packed = pack(clips, Path(folder))
        kinds = {  # samples at once, and what yields them
            "plain": (1, plain_items(clips)),
            "mp4": (1, own_items(clips, 1)),
            "mp4_samples": (many, own_items(clips, many)),
            "shards": (1, own_items(packed, 1)),
            "shards_samples": (many, own_items(packed, many)),
        }
        steps = {name: items.__next__ for name, (_, items) in kinds.items()}
        times = measure_in_turns(steps, config.steps, 2, torch.device("cpu"))
    torch.set_num_threads(threads)
    # All variants load the same windows, whose costs differ: totals compare, medians would not.
    samples = pd.Series({name: count for name, (count, _) in kinds.items()})
    rates = 1 / times.groupby("variant")[["cpu", "wall"]].mean().mul(1 / samples, axis=0)
    ratios = rates / rates.loc["plain"]
    table = {"num_samples": samples, "clips_per_s": rates.cpu, "ratio": ratios.cpu}
    table |= {"wall_clips_per_s": rates.wall, "wall_ratio": ratios.wall}
    rows = pd.DataFrame(table, dtype=object).loc[[*kinds]].to_dict("index")
    return {
        "device": f"cpu ({models.processor()}), one core",
        "model": "pretraining clips",
        "batch_size": 1,
        "num_samples": many,
        "clips_per_s": rates.cpu["mp4"],
        "plain_clips_per_s": rates.cpu["plain"],
        "ratio": ratios.cpu["mp4"],
        "jpeg_quality": JPEG_QUALITY,
        "variants": {
            name: row | summary(times[times.variant == name]) for name, row in rows.items()
        },
    }


def endless_items(num_clips: int) -> Iterator[ClipIndex]:
    """Yield the items of one epoch after the other."""
    return (ClipIndex(epoch, k) for epoch in itertools.count() for k in range(num_clips))


def plain_items(clips: list[Clip]) -> Iterator[Any]:
    """Yield clips as the plain loader gives them, endlessly."""
    load_clip = models.plain("loader").load_clip
    for item in endless_items(len(clips)):
        clip = clips[item.index]
        yield load_clip(clip.video, clip.audio, item_generator(0, item))


def own_items(clips: list[Clip] | PackedClips, num_samples: int) -> Iterator[PretrainBatch]:
    """Yield items of the pre-training data set, endlessly; with one sample, the plain ones."""
    dataset = PretrainClips(clips, num_samples=num_samples, seed=0, source_crop="voxceleb2")
    # Packed clips have their own order; by name it is that of the files.
    order = sorted(range(len(clips)), key=lambda index: clips[index].video)
    for item in endless_items(len(clips)):
        yield dataset[item._replace(index=order[item.index])]


def pack(clips: list[Clip], folder: Path, quality: int = JPEG_QUALITY) -> PackedClips:
    """Return the clips, packed into a folder."""
    write_list(folder / "clips.csv", [clip._replace(label=0) for clip in clips])
    flags = ["--output_dir", str(folder / "packed"), "--quality", str(quality)]
    flags += ["--source_crop", "voxceleb2"]
    if pack_clips.main([str(folder / "clips.csv"), *flags, "--num_workers", "1"]):
        raise RuntimeError("the clips could not be packed; see the lines above")
    return read_packed(folder / "packed")


# feed


def run_feed(configs: PretrainConfigs, config: FeedConfig) -> dict[str, Any]:
    """Measure how training is fed, see `scripts.benchmark`."""
    sources = {"files": configs.data.data_path, "shards": config.shards or NOT_SET}
    with tempfile.TemporaryDirectory(prefix="hicmae-feed-") as folder:
        if config.make_clips and sources["files"] == NOT_SET:
            sources["files"] = f"{folder}/made.csv"
            write_list(sources["files"], make_clips(Path(CACHE), config.make_clips))
        sources = {kind: path for kind, path in sources.items() if path != NOT_SET}
        if not sources:
            raise ValueError("no clips to read; give --data_path, --shards or --make_clips")
        device = distributed.start(configs.run.device)
        run = Run(configs.run, choose_precision(configs.run.precision, device))
        rows = []
        for kind, path in sources.items():
            source = configs._replace(data=replace(configs.data, data_path=path))
            rows.append({"source": kind, "data_path": path, **feed(run, source, config)})
    return {
        "device": models.device_name(device),
        "processes": distributed.world_size(),
        "model": configs.model.model_name,
        "precision": run.precision.name,
        "batch_size": configs.optim.batch_size,
        "accum_iter": configs.optim.accum_iter,
        "num_samples": configs.data.num_samples,
        "num_workers": configs.run.num_workers,
        "clips_per_s": rows[-1]["clips_per_s"],
        "sources": rows,
    }


def feed(run: Run, configs: PretrainConfigs, config: FeedConfig) -> dict[str, Any]:
    """Train from one source, from its first batch alone, and read it without a model."""
    dataset = make_dataset(configs)
    workers, passes, steps = run.config.num_workers, configs.optim.accum_iter, config.steps
    num_clips, processes = len(dataset), distributed.world_size()
    # One epoch of all steps, the reading alone, and what is loaded in advance: of a short list
    # clips come again, of a long one they are spread over it.
    wanted = (config.warmup + 2 * steps) * passes + 4 * workers + 2
    wanted *= configs.optim.batch_size * processes
    stride = max(num_clips // wanted, 1)
    dataset.clips = [dataset.clips[k * stride % num_clips] for k in range(wanted)]
    loader = clip_loader(run, dataset, configs.optim.batch_size)
    batches = epoch_batches(loader, 0)
    first = next(batches)
    fixed, _ = train(run, configs, itertools.repeat(first), steps, config.warmup)
    fed, waits = train(run, configs, batches, steps, config.warmup)
    for _ in range(2 * workers + 1):  # loaded while the last steps still ran
        next(batches)
    start = time.perf_counter()
    loaded = sum(len(batch.names) for batch in itertools.islice(batches, steps))
    alone = loaded / (time.perf_counter() - start)
    del batches
    loader._iterator = None  # ends its workers before the next source starts its own
    rates = feed_rates(fed, fixed, waits, len(first.names) * passes * processes)
    cores = rates["fixed_clips_per_s"] / processes / alone * max(workers, 1)
    about = {"clips_in_list": num_clips, "times_read": wanted / num_clips}
    return {**about, **rates, "loader_clips_per_s": alone, "loader_cores_per_device": cores}


def train(
    run: Run, configs: PretrainConfigs, batches: Iterator[PretrainBatch], steps: int, warmup: int
) -> tuple[pd.DataFrame, float]:
    """Train a fresh model of run_pretraining.py on batches, enough for warmup + steps steps.

    Returns:
        The times of the steps, and the seconds in which they could only wait for their batches.
    """
    torch.manual_seed(run.config.seed)
    model = make_model(configs).to(run.device).train()
    optimizer = make_optimizer(parameter_groups(model, 0.05), configs.optim.lr)
    scaler = run.precision.grad_scaler()
    trained, compute_loss = as_trained(model, run.config, run.device), make_loss(configs.loss)
    waits = []

    def step() -> None:
        asked = Mark(run.device)
        group = list(itertools.islice(batches, configs.optim.accum_iter))
        waits.append((asked, Mark(run.device)))
        train_step(trained, group, compute_loss, optimizer, scaler, run.precision)

    times = measure_in_turns({"": step}, steps, warmup, run.device)
    return times, sum(asked.until(given) for asked, given in waits[warmup:])


def feed_rates(
    fed: pd.DataFrame, fixed: pd.DataFrame, waits: float, clips: int
) -> dict[str, float]:
    """Compare steps of so many clips fed by the loader with steps on a batch that is there.

    VoxCeleb2 x 100 epochs takes so many days on devices like those that were measured.
    """
    fed_rate, fixed_rate = clips / fed.wall.mean(), clips / fixed.wall.mean()
    return {
        "clips_per_s": fed_rate,
        "fixed_clips_per_s": fixed_rate,
        "wait_share": waits / fed.wall.sum(),
        "slower_share": 1 - fed_rate / fixed_rate,
        **summary(fed),
        **summary(fixed, "fixed_"),
        "voxceleb2_days": VOXCELEB2_CLIPS * EPOCHS / 86400 / fed_rate,
        "voxceleb2_days_if_fed": VOXCELEB2_CLIPS * EPOCHS / 86400 / fixed_rate,
    }


# How speed grows


def run_growth(config: GrowthConfig) -> dict[str, Any]:
    """Measure what benchmark.run_growth says."""
    cpu = torch.device("cpu")
    rows: list[dict[str, Any]] = []

    def add(what: str, size: int, units: int, wall: float, spent: float, mb: float = 0.0) -> None:
        row = {"what": what, "size": size, "seconds": wall, "cpu_s": spent, "memory_mb": mb or None}
        first = next((row for row in rows if row["what"] == what), row)
        row["per_s"], row["per_cpu_s"] = units / wall, units / spent
        row["ratio"], row["ratio_cpu_time"] = (row[k] / first[k] for k in ("per_s", "per_cpu_s"))
        rows.append(row)

    for size in config.models:
        how = BenchmarkConfig(model=size, device="cpu", precision="fp32")
        steps: dict[str, models.Step] = {
            str(count): models.our_step("pretrain", how, models.arithmetic(how), count)
            for count in config.batch_size
        }
        times = measure_in_turns(steps, config.steps, 1, cpu).groupby("variant").median()
        for count in config.batch_size:
            add(f"clips a step, {size}", count, count, *times.loc[str(count), ["wall", "cpu"]])
    clips = make_clips(Path(config.cache), 2)
    with tempfile.TemporaryDirectory(prefix="hicmae-growth-") as folder:
        path, out = Path(folder, "train.csv"), Path(folder, "step.json")
        for ranks in config.ranks:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={ranks}", str(Path(__file__).with_name("benchmark.py"))]
            command += "pretrain --device cpu --model t --precision fp32 --batch_size 2".split()
            command += "--warmup 1 --no-plain --no-memory --no-peaks --no-errors".split()
            command += ["--steps", str(config.steps), "--json", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = json.loads(out.read_text(encoding="utf-8"))
            add("processes (gloo), t", ranks, 2 * ranks, found["step_s"], found["cpu_s"] * ranks)
        for lines in config.lines:
            write_list(path, (clips[k % len(clips)]._replace(audio=None) for k in range(lines)))
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                marks, peak = process.submit(start_epoch, str(path)).result()
            for what, (one, other) in zip(LISTS, itertools.pairwise(marks), strict=True):
                add(what, lines, lines, other[0] - one[0], other[1] - one[1], peak / 1e6)
    shown = ["what", "size", "memory_mb", "ratio", "ratio_cpu_time"]  # times are in --json
    table = pd.DataFrame(rows, dtype=object)[shown]  # None stays
    device = f"cpu ({models.processor()})"
    title = f"{device}, {datetime.date.today()}, fp32, threads a process: {torch.get_num_threads()}"
    forms = ("", ".0f", ".0f", ".2f", ".2f")
    text = table.to_markdown(index=False, floatfmt=forms, missingval="")
    return {"device": device, "rows": rows, "text": f"{title}:\n\n{text}"}


LISTS = ("lines, to be read", "lines, from there to the first batch")


def start_epoch(path: str) -> tuple[list[tuple[float, float]], float]:
    """Read a list and load a batch; return wall and CPU time at the three marks, and the bytes."""
    before, marks = models.resident(), [Mark(torch.device("cpu"))]
    clips = read_pretrain_list(path)
    marks.append(Mark(torch.device("cpu")))
    describe_clips(clips, "")
    sampler = ClipSampler(len(clips), shuffle=True, seed=0, pad=True)
    next(epoch_batches(make_loader(PretrainClips(clips), sampler, 2, 2, drop_last=True), 0))
    marks.append(Mark(torch.device("cpu")))
    return [(mark.wall, mark.cpu) for mark in marks], models.resident() - before
