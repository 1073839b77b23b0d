"""Measure speed and memory against the plain rendition of the method in tests/plain.

    python scripts/benchmark.py pretrain --model b --batch_size 4 --json FILE
    python scripts/benchmark.py all --device cpu      what saved/benchmarks holds (half an hour)
    python scripts/benchmark.py table saved/benchmarks

Steps of both are taken in turns, so that a busy machine slows both alike. Each command has --help.
"""

import argparse
import datetime
import inspect
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import CPU_GEMM, PRECISIONS, PretrainConfigs
from hicmae.config.flags import Settings, add_arguments, from_dict, from_flags, new_parser, option
from hicmae.io import EXPECTED, check_writable, describe, write_whole

TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning", "infer": "testing"}
LEVERS = ("compile", "cuda_graphs", "checkpoint_activations")
CACHE = "saved/benchmarks/clips"
NOT_SET = "-"  # stands for a path that a benchmark does not need

# What to measure


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
    precision: str = option("auto", "arithmetic of ours", choices=PRECISIONS)
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

    def _refused(self) -> dict[str, object]:
        alone = self.cuda_graphs and not self.compile
        return {"--cuda_graphs needs compiled passes; add --compile": alone}


@dataclass(frozen=True)
class LoaderConfig(Settings):
    """What to measure."""

    num_clips: int = option(8, "clips to make", "> 0")
    steps: int = option(40, "items of each kind", "> 0")
    num_samples: int = option(4, "samples of a clip at once", "> 0")
    cache: str = option(CACHE, "where clips are kept", metavar="DIR")


@dataclass(frozen=True)
class FeedConfig(Settings):
    """What to measure."""

    steps: int = option(50, "measured steps", "> 0")
    warmup: int = option(10, "steps before, not measured", ">= 0")
    shards: str = option("", "a second source: the same clips, packed", metavar="DIR")
    make_clips: int = option(0, f"instead of --data_path: clips made in {CACHE}", ">= 0")


@dataclass(frozen=True)
class FacesConfig(Settings):
    """What to measure."""

    checkpoint: str = option("toy", "a classifier, for the first prediction")
    detect_every: tuple[int, ...] = option((1, 8, 25), "frames from one search to the next", "> 0")
    steps: int = option(3, "measured passes of each", "> 0")
    cache: str = option(CACHE, "where clips are kept", metavar="DIR")


@dataclass(frozen=True)
class FormatsConfig(Settings):
    """What to measure."""

    checkpoint: str = option("", "a classifier, e.g. toy; without: random weights of --model")
    model: str = option("t", "size with random weights", choices=[*SIZES])
    data_path: str = option("-", "labelled list, or its folder, for differences and UAR")
    batch_size: int = option(8, "clips at once for the throughput", "> 0")
    steps: int = option(40, "measured passes of each format", "> 0")
    warmup: int = option(3, "passes before that")
    seed: int = option(0, "seed of random weights and clips")


def run_task(args: argparse.Namespace) -> dict[str, Any]:
    """Time a step, by ours and by the plain baseline, in turns, on random clips.

    The figures are those of the batch size that is fastest, with those of all of them inside.
    """
    from scripts import benchmark_models

    return benchmark_models.run_task(args.command, from_flags(vars(args), BenchmarkConfig))


def run_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Time the reading of clips on one core, beside a plain loader.

    Clips like VoxCeleb2's (224 x 224, 25 frames a second, 8 s, H.264 at 220 kbit/s, 16 kHz wav) are
    made and packed, and the same windows are loaded in turns: by the plain loader of tests/plain,
    from the mp4, and from the shard; once and --num_samples times a clip. Ours yields uint8 pixels,
    which training normalises on its device. Files are in the page cache. Rates count the CPU time
    of this process; ratios are to the plain loader.
    """
    from scripts import benchmark_data

    return benchmark_data.run_loader(from_flags(vars(args), LoaderConfig))


def run_faces(args: argparse.Namespace) -> dict[str, Any]:
    """Where the seconds of a first hicmae-predict go, and what searching faces less often costs.

    The film is one of 8 s like VoxCeleb2's, of a face whose eyes are where they are known to be.
    Stages are shares of CPU time of a fresh process with one thread. Faces are found in its frames
    once these are decoded, in turns; `eye_error` is the mean distance of the smoothed eyes from the
    true ones, as a share of the distance between the eyes.
    """
    from scripts import benchmark_data

    return benchmark_data.run_faces(from_flags(vars(args), FacesConfig))


def run_feed(args: argparse.Namespace) -> dict[str, Any]:
    """Does the loader keep the device busy, and what does VoxCeleb2 need.

    It takes the flags of run_pretraining.py and trains for some steps from each source and from one
    batch that is always there (fixed). Their difference is what the data cost: wait_share is the
    share of the time in which the device had nothing to do but wait for a batch, slower_share the
    loss of clips/s. On a CPU the loader takes cores from the model as well. Started by torchrun, it
    trains in several processes that exchange gradients; compare fixed_clips_per_s for their cost.
    """
    from scripts import benchmark_data

    configs = from_dict(PretrainConfigs, vars(args))
    return benchmark_data.run_feed(configs, from_flags(vars(args), FeedConfig))


def run_formats(args: argparse.Namespace) -> dict[str, Any]:
    """Compare PyTorch in fp32 and bf16, ONNX and ONNX of 8 bits, on the CPU.

    A clip is what the network reads at once. Speed is that of the network alone, in turns, as a
    ratio to fp32. Differences are those of probabilities of windows, on 16 clips of the list or on
    a film made for it. UAR is that of the test protocol on all clips of the list.
    """
    from scripts import benchmark_formats

    return benchmark_formats.run_formats(from_flags(vars(args), FormatsConfig))


@dataclass(frozen=True)
class GrowthConfig(Settings):
    """What to measure."""

    models: tuple[str, ...] = option(("tiny", "t"), "sizes whose steps are measured")
    batch_size: tuple[int, ...] = option((1, 2, 4, 8), "clips of a step", "> 0")
    ranks: tuple[int, ...] = option((1, 2), "processes that train HiCMAE-T by gloo", "> 0")
    lines: tuple[int, ...] = option((10_000, 100_000, 1_000_000), "lines of lists", "> 0")
    steps: int = option(5, "measured steps of each", "> 0")
    cache: str = option(CACHE, "where clips are kept", metavar="DIR")


def run_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Show how speed changes with batch, processes and length of the list, on a CPU.

    Rows are pre-training steps on random clips, as many in each process; and lists, to be read, and
    from there to the first batch of an epoch. Ratios compare clips, or lines, a second with the
    first row: in CPU time, over all processes, 1 is linear and less is worse than that. Memory is
    the most of the process, beyond that of Python and its libraries.
    """
    from scripts import benchmark_data

    return benchmark_data.run_growth(from_flags(vars(args), GrowthConfig))


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
    import pandas as pd

    rows, order = [], [*TASKS]
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
             for name, size in SIZES.items()}  # fmt: skip
    library = f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else ""
    levers = [name.replace("_", " ") for name in LEVERS if row.get(name)]
    cells = {
        "task": TASKS[row["benchmark"]],
        "model": names.get(row["model"], row["model"]),
        "clips a step": str(row["batch_size"]),
        "arithmetic": ", ".join([row["precision"] + library, *levers]),
    }
    return cells | dict.fromkeys(COLUMNS, "") | written(row, COLUMNS)


def written(row: dict[str, Any], columns: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Return the figures that a row has as text, by the titles of columns (key, format)."""
    return {name: form.format(row[key]) for name, (key, form) in columns.items() if key in row}


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
    **dict.fromkeys(TASKS, (run_task, [BenchmarkConfig])),
    "loader": (run_loader, [LoaderConfig]),
    "faces": (run_faces, [FacesConfig]),
    "feed": (run_feed, [*PretrainConfigs.__annotations__.values(), FeedConfig]),
    "formats": (run_formats, [FormatsConfig]),
    "growth": (run_growth, [GrowthConfig]),
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
    import torch  # no --help waits for it

    from hicmae.training import distributed
    from scripts.benchmark_models import processor

    threads = os.environ.get("OMP_NUM_THREADS")
    program = f"OMP_NUM_THREADS={threads} " * bool(threads) + "python scripts/benchmark.py"
    context = {  # the machine and its other load before the start
        "command": f"{program} {shlex.join(argv)}",
        "benchmark": args.command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": processor(),
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
