"""Measure speed and memory against the plain rendition of the method in tests/plain.

    python scripts/benchmark.py pretrain --model b --batch_size 4 --json FILE
    python scripts/benchmark.py all --device cpu      what saved/benchmarks holds (half an hour)
    python scripts/benchmark.py table saved/benchmarks

Steps of both are taken in turns, so that a busy machine slows both alike. Each command has --help.
"""

import argparse
import datetime
import inspect
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import soundfile
import torch
from matplotlib.cbook import get_sample_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import PretrainConfigs
from hicmae.config.flags import Settings, add_arguments, from_dict, from_flags, new_parser, option
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import Clip, PackedClips, read_packed, write_list
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import epoch_batches, item_generator
from hicmae.io import check_writable, describe, whole_file, write_whole
from hicmae.pretraining import make_dataset, make_loss, make_model
from hicmae.training import distributed
from hicmae.training.loop import as_trained, clip_loader, train_step
from hicmae.training.optim import make_optimizer, parameter_groups
from hicmae.training.run import EXPECTED, Run, choose_precision
from preprocess import pack_clips
from scripts import benchmark_models as models
from scripts.benchmark_formats import FormatsConfig, run_formats
from scripts.benchmark_models import Mark, measure_in_turns, summary

VOXCELEB2_CLIPS, EPOCHS = 1_091_581, 100  # of the published pre-training
CACHE = "saved/benchmarks/clips"
NOT_SET = "-"  # stands for a path that a benchmark does not need

# Clips like VoxCeleb2's: a moving face at a realistic bit rate

SIDE, FRAME_RATE, SECONDS, SAMPLE_RATE = 224, 25, 8, 16000
BIT_RATE = 220_000  # of H.264; VoxCeleb2's files are about this large
# What ffmpeg takes by default, and what is usual in VoxCeleb2: few keyframes, three B-frames.
ENCODER = {"preset": "medium", "threads": "1"}
FACE_CENTRE = np.array([264, 220])  # of the portrait
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
            sway = np.sin(2 * np.pi * np.array([0.3, 0.5, 0.4, 0.25]) * index / FRAME_RATE + phases)
            centre = tuple(FACE_CENTRE.tolist())
            turn = cv2.getRotationMatrix2D(centre, 6 * sway[0], 0.6 + 0.03 * sway[3])
            turn[:, 2] += SIDE / 2 - FACE_CENTRE + [8 * sway[1], 5 * sway[2]]
            picture = cv2.warpAffine(portrait, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
            noisy = (picture + rng.normal(0, GRAIN, picture.shape)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_voice(path: Path, rng: np.random.Generator) -> None:
    seconds = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    voice = sum(0.1 / k * np.sin(2 * np.pi * 140 * k * seconds) for k in range(1, 20))
    voice = voice * np.sin(2 * np.pi * 3 * seconds) + rng.normal(0, 0.005, len(seconds))
    soundfile.write(path, voice, SAMPLE_RATE, subtype="PCM_16")


# loader


@dataclass(frozen=True)
class LoaderConfig(Settings):
    """What to measure."""

    num_clips: int = option(8, "clips to make", "> 0")
    steps: int = option(40, "items of each kind", "> 0")
    num_samples: int = option(4, "samples of a clip at once", "> 0")
    cache: str = option(CACHE, "where clips are kept", metavar="DIR")


def run_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Time the reading of clips on one core, beside a plain loader.

    Clips like VoxCeleb2's (224 x 224, 25 frames a second, 8 s, H.264 at 220 kbit/s, 16 kHz wav) are
    made and packed, and the same windows are loaded in turns: by the plain loader of tests/plain,
    from the mp4, and from the shard; once and --num_samples times a clip. Ours yields uint8 pixels,
    which training normalises on its device. Files are in the page cache. Rates count the CPU time
    of this process; ratios are to the plain loader.
    """
    config = from_flags(vars(args), LoaderConfig)
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


@dataclass(frozen=True)
class FeedConfig(Settings):
    """What to measure."""

    steps: int = option(50, "measured steps", "> 0")
    warmup: int = option(10, "steps before, not measured", ">= 0")
    shards: str = option("", "a second source: the same clips, packed", metavar="DIR")
    make_clips: int = option(0, f"instead of --data_path: clips made in {CACHE}", ">= 0")


def run_feed(args: argparse.Namespace) -> dict[str, Any]:
    """Does the loader keep the device busy, and what does VoxCeleb2 need.

    It takes the flags of run_pretraining.py and trains for some steps from each source and from one
    batch that is always there (fixed). Their difference is what the data cost: wait_share is the
    share of the time in which the device had nothing to do but wait for a batch, slower_share the
    loss of clips/s. On a CPU the loader takes cores from the model as well. Started by torchrun, it
    trains in several processes that exchange gradients; compare fixed_clips_per_s for their cost.
    """
    config = from_flags(vars(args), FeedConfig)
    configs = from_dict(PretrainConfigs, vars(args))
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


# Tables

COLUMNS = {
    "faster than plain": ("ratio", "{:.2f}x"),
    "in CPU time": ("ratio_cpu_time", "{:.2f}x"),
    "per forward pass": ("ratio_per_view", "{:.2f}x"),
    "memory of plain's": ("peak_memory_ratio", "{:.0%}"),
    "share of measured peak": ("share_of_peak", "{:.0%}"),
    "error against float64": ("prediction_error", "{:.0e}"),
}


def run_table(args: argparse.Namespace) -> dict[str, Any]:
    """Make a Markdown table for each device, from the files of model benchmarks."""
    rows, order = [], [*models.TASKS]
    for path in sorted(Path(args.folder).glob("*.json")):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: no JSON ({error}); run its benchmark again") from error
        if isinstance(figures, dict) and figures.get("benchmark") in order:
            rows.append(figures)
    if not rows:
        raise ValueError(f"'{args.folder}' holds no JSON file of pretrain, finetune or infer; run "
                         "python scripts/benchmark.py all")  # fmt: skip
    rows.sort(key=lambda row: (order.index(row["benchmark"]), row["model"], row["precision"]))
    texts = []
    for device, mine in pd.Series(rows).groupby([row["device"] for row in rows], sort=False):
        dates = ", ".join(sorted({row["date"][:10] for row in mine}))
        table = pd.DataFrame(map(cells_of, mine)).to_markdown(index=False, disable_numparse=True)
        texts.append(f"{device}, {dates}:\n\n{table}")
    return {"text": "\n\n".join(texts), "rows": rows}


def cells_of(row: dict[str, Any]) -> dict[str, str]:
    """Return what a table says of one file."""
    names = {f"hicmae dim{size.width}": f"HiCMAE-{name.upper()}"
             for name, size in models.SIZES.items()}  # fmt: skip
    library = f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else ""
    levers = [name.replace("_", " ") for name in models.LEVERS if row.get(name)]
    cells = {
        "task": models.TASKS[row["benchmark"]],
        "model": names.get(row["model"], row["model"]),
        "clips a step": str(row["batch_size"]),
        "arithmetic": ", ".join([row["precision"] + library, *levers]),
    }
    figures = {name: form.format(row[key]) if key in row else ""
               for name, (key, form) in COLUMNS.items()}  # fmt: skip
    return cells | figures


# All of saved/benchmarks

FAST = "--compile --cuda_graphs --steps 40 --warmup 10"
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
        "pretrain_b": f"--batch_size 40 {FAST}",
        "pretrain_b_best": f"--batch_size 80 160 320 {FAST}",
        "pretrain_b_eager": "--batch_size 40 160 --steps 40 --warmup 10",
        "pretrain_b_saving": "--batch_size 320 --compile --checkpoint_activations --no-plain",
        "pretrain_b_fp16": f"--batch_size 40 --precision fp16 {FAST}",
        "finetune_b": f"--batch_size 14 {FAST}",
        "finetune_b_best": f"--batch_size 28 56 112 {FAST}",
        "infer_b": f"--batch_size 14 {FAST}",
        "infer_b_best": f"--batch_size 56 112 224 {FAST}",
    },
}


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what saved/benchmarks holds, each in a process of its own; return the table."""
    # All cores; threads that wait give the core away, as other programs may need it.
    defaults = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive"}
    for name, flags in ALL[args.device].items():
        print(f"== {name}", flush=True)
        path = str(Path(args.output_dir, f"{args.device}_{name}.json"))
        command = [name.split("_")[0], "--device", args.device, "--json", path]
        command = [sys.executable, __file__, *command, *flags.split(), *args.flags]
        if subprocess.run(command, env=defaults | os.environ, check=False).returncode:
            raise RuntimeError(f"{name} failed; see above")
    return run_table(argparse.Namespace(folder=args.output_dir))


# Command line


# name -> a function that returns figures, or a `text` to print, and dataclasses of its flags; its
# docstring is shown by --help.
BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Sequence[type]]] = {
    **dict.fromkeys(models.TASKS, (models.run_task, [models.BenchmarkConfig])),
    "loader": (run_loader, [LoaderConfig]),
    "feed": (run_feed, [*PretrainConfigs.__annotations__.values(), FeedConfig]),
    "formats": (run_formats, [FormatsConfig]),
    "table": (run_table, []),
    "all": (run_all, []),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, configs) in BENCHMARKS.items():
        about, style = inspect.getdoc(run) or "", argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, description=about, help=about.splitlines()[0],
                                      allow_abbrev=False, formatter_class=style)  # fmt: skip
        for config in configs:
            add_arguments(command, config, output_dir=NOT_SET, data_path=NOT_SET)
        command.add_argument("--json", metavar="FILE", help="write the figures there as one object")
    table, every = commands.choices["table"], commands.choices["all"]
    table.add_argument("folder", metavar="FOLDER", help="holds the files that --json wrote")
    every.add_argument("--device", choices=[*ALL], required=True, help="where to compute")
    every.add_argument("--output_dir", default="saved/benchmarks", metavar="DIR", help="of results")
    every.add_argument("flags", nargs="*", help="after --: more flags of every command")
    args = parser.parse_args(argv)
    threads = os.environ.get("OMP_NUM_THREADS")
    program = f"OMP_NUM_THREADS={threads} " * bool(threads) + "python scripts/benchmark.py"
    context = {  # the machine and its other load before the start
        "command": f"{program} {shlex.join(argv)}",
        "benchmark": args.command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": models.processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }
    try:
        if args.json:
            check_writable(args.json)  # before an hour of work
        figures = BENCHMARKS[args.command][0](args)
        if distributed.is_main():
            print(figures.pop("text", None) or json.dumps(figures, indent=2))
            if args.json:
                write_whole(args.json, json.dumps({**context, **figures}, indent=2) + "\n")
    except EXPECTED as error:
        sys.stderr.write(f"benchmark.py {args.command}: error: {describe(error)}\n")
        return 1
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
