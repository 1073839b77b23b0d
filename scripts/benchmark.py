"""Measure speed and memory against the plain rendition of the method in tests/plain.

    python scripts/benchmark.py pretrain --model b --batch_size 4 --json FILE
    python scripts/benchmark.py table saved/benchmarks

Steps of both are taken in turns, so that a busy machine slows both alike. Each command has --help.
"""

import argparse
import datetime
import inspect
import json
import os
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import CPU_GEMM, PRECISIONS, PretrainConfigs
from hicmae.config.flags import Settings, add_arguments, exit_code, from_flags, new_parser, option
from hicmae.io import check_writable, write_whole

TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning", "infer": "testing"}
LEVERS = ("compile", "cuda_graphs", "checkpoint_activations")
NOT_SET = "-"  # stands for a path that a benchmark does not need

SIZES = {"t": 256, "s": 384, "b": 512, "tiny": 128}  # widths; all else is as published, but:
TINY: dict[str, Any] = {"encoder_depth": 2, "encoder_depth_audio": 2, "encoder_fusion_depth": 1}
TINY |= {"decoder_depth": 3, "decoder_depth_audio": 3, "return_intermediate_features": (0, 1)}
TINY |= {"num_frames": 4, "input_size": 32, "input_size_audio": (32, 16)}  # all by flag


class TaskConfig(Settings):
    """Time a step, by ours and by the plain baseline, in turns, on random clips.

    The figures are those of the batch size that is fastest, with those of all of them inside.
    """

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
    plain: bool = option(True, "measure the plain baseline of tests/plain too, in turns")
    more: bool = option(True, "measure memory, the device's matrix products and errors too")


class FormatsConfig(Settings):
    """Compare PyTorch in fp32 and bf16, ONNX and ONNX of 8 bits, on the CPU.

    A clip is what the network reads at once. Speed is that of the network alone, in turns, as a
    ratio to fp32. Differences are those of probabilities of windows, on 16 clips of the list or on
    the film of the package. UAR is that of the test protocol on all clips of the list.
    """

    checkpoint: str = option("", "a classifier, e.g. toy; without: random weights of --model")
    model: str = option("t", "size with random weights", choices=[*SIZES])
    data_path: str = option("-", "labelled list, or its folder, for differences and UAR")
    batch_size: int = option(8, "clips at once for the throughput", "> 0")
    steps: int = option(40, "measured passes of each format", "> 0")
    warmup: int = option(3, "passes before that")


class LoaderConfig(Settings):
    """Time the reading of clips on one core, beside a plain loader.

    Clips like VoxCeleb2's (224 x 224, 25 frames a second, 8 s, H.264 at 220 kbit/s, 16 kHz wav) are
    made and packed. The same windows are loaded in turns: by the plain loader of tests/plain, from
    the mp4 and from the shard, once and --num_samples times a clip; ours are not yet normalised.
    Files are in the page cache. Ratios are to the plain loader.
    """

    num_clips: int = option(8, "clips to make", "> 0")
    steps: int = option(40, "items of each kind", "> 0")
    num_samples: int = option(4, "samples of a clip at once", "> 0")


class FeedConfig(Settings):
    """Does the loader keep the device busy, and what does VoxCeleb2 need.

    It takes the flags of run_pretraining.py and trains for some steps from --data_path, a list or
    shards, and from one batch that is always there (fixed). Their difference is what the data cost:
    wait_share is the share of the time in which the device had nothing to do but wait for a batch,
    slower_share the loss of clips/s. On a CPU the loader takes cores from the model as well. By
    torchrun it trains in several processes; compare fixed_clips_per_s for the cost of exchanging.
    """

    steps: int = option(50, "measured steps", "> 0")
    warmup: int = option(10, "steps before, not measured", ">= 0")
    make_clips: int = option(0, "instead of --data_path: clips made for it", ">= 0")


class FacesConfig(Settings):
    """Where the seconds of a first hicmae-predict go, and what searching faces less often costs.

    The film is one of 8 s like VoxCeleb2's, of a face whose eyes are where they are known to be.
    Stages are shares of CPU time of a fresh process with one thread. Faces are found in its frames
    once these are decoded, in turns; `eye_error` is the mean distance of the smoothed eyes from the
    true ones, as a share of the distance between the eyes.
    """

    checkpoint: str = option("toy", "a classifier, for the first prediction")
    detect_every: tuple[int, ...] = option((1, 8, 25), "frames from one search to the next", "> 0")
    steps: int = option(3, "measured passes of each", "> 0")


class GrowthConfig(Settings):
    """Show how speed changes with batch, processes and length of the list, on a CPU.

    Rows are pre-training steps on random clips, as many in each process; and lists, to be read, and
    from there to the first batch of an epoch. Ratios compare clips, or lines, a second with the
    first row: in CPU time, over all processes, 1 is linear and less is worse than that. Memory is
    the most of the process, beyond that of Python and its libraries.
    """

    models: tuple[str, ...] = option(("tiny", "t"), "sizes whose steps are measured")
    batch_size: tuple[int, ...] = option((1, 2, 4, 8), "clips of a step", "> 0")
    ranks: tuple[int, ...] = option((1, 2), "processes that train HiCMAE-T by gloo", "> 0")
    lines: tuple[int, ...] = option((10_000, 100_000, 1_000_000), "lines of lists", "> 0")
    steps: int = option(5, "measured steps of each", "> 0")


class TableConfig(Settings):
    """Make a Markdown table for each device, from the files of model benchmarks in a folder."""

    folder: str = option("", "holds the files that --json wrote", positional=True)


# Tables

COLUMNS = {
    "task": ("task", "{}"),
    "model": ("name", "{}"),
    "clips a step": ("batch_size", "{}"),
    "arithmetic": ("arithmetic", "{}"),
    "faster than plain": ("ratio", "{:.2f}x"),
    "in CPU time": ("ratio_cpu_time", "{:.2f}x"),
    "per forward pass": ("ratio_per_view", "{:.2f}x"),
    "memory of plain's": ("peak_memory_ratio", "{:.0%}"),
    "share of measured peak": ("share_of_peak", "{:.0%}"),
    "error against float64": ("prediction_error", "{:.0e}"),
}


def run_table(config: TableConfig) -> dict[str, Any]:
    """Make the tables; `text` holds them."""
    import pandas as pd  # no --help waits for it

    names = {f"hicmae dim{width}": f"HiCMAE-{size.upper()}" for size, width in SIZES.items()}
    by_device: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(Path(config.folder).glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: no JSON ({error}); run its benchmark again") from error
        if isinstance(row, dict) and row.get("benchmark") in TASKS:
            library = f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else ""
            levers = [name.replace("_", " ") for name in LEVERS if row.get(name)]
            row["arithmetic"] = ", ".join([row["precision"] + library, *levers])
            row["task"], row["name"] = TASKS[row["benchmark"]], names.get(row["model"])
            by_device.setdefault(row["device"], []).append(row)
    if not by_device:
        raise ValueError(
            f"'{config.folder}' holds no JSON file of {', '.join(TASKS)}; write some with python "
            "scripts/benchmark.py pretrain --json FILE"
        )
    texts = []
    for device, rows in by_device.items():
        rows.sort(key=lambda r: ([*TASKS].index(r["benchmark"]), r["model"], r["precision"]))
        dates = sorted({row["date"][:10] for row in rows})
        table = pd.DataFrame({
            title: ["" if row.get(key) is None else form.format(row[key]) for row in rows]
            for title, (key, form) in COLUMNS.items()
        })  # fmt: skip
        shown = table.to_markdown(index=False, disable_numparse=True)
        texts.append(f"{', '.join([device, *dates])}:\n\n{shown}")
    return {"text": "\n\n".join(texts), "devices": by_device}


# Command line

# command -> what runs it, and dataclasses of its flags, of which the last one says what it does
BENCHMARKS: dict[str, tuple[str, Sequence[type]]] = {
    **dict.fromkeys(TASKS, ("benchmark_models:run_task", [TaskConfig])),
    "formats": ("benchmark_models:run_formats", [FormatsConfig]),
    "loader": ("benchmark_data:run_loader", [LoaderConfig]),
    "faces": ("benchmark_data:run_faces", [FacesConfig]),
    "feed": ("benchmark_data:run_feed", [*PretrainConfigs.__annotations__.values(), FeedConfig]),
    "growth": ("benchmark_data:run_growth", [GrowthConfig]),
    "table": ("benchmark:run_table", [TableConfig]),
}


def measure(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Run the command of these words of a command line, and print and write its figures."""
    import torch  # no --help waits for it

    from hicmae.training import distributed
    from scripts.benchmark_models import processor

    threads = os.environ.get("OMP_NUM_THREADS")
    program = f"OMP_NUM_THREADS={threads} " * bool(threads) + "python scripts/benchmark.py"
    context = {  # the machine and its other load before the start
        "command": f"{program} {shlex.join(words)}",
        "benchmark": args.command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }
    if args.json:
        check_writable(args.json)  # before an hour of work
    try:
        place, configs = BENCHMARKS[args.command]
        run = pkgutil.resolve_name(f"scripts.{place}")
        task = [args.command] if args.command in TASKS else []
        figures = run(*task, *(from_flags(vars(args), config) for config in configs))
        if distributed.is_main():
            print(figures.pop("text", None) or json.dumps(figures, indent=2))
            if args.json:
                write_whole(args.json, json.dumps({**context, **figures}, indent=2) + "\n")
    finally:
        distributed.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit code."""
    parser, words = new_parser(__doc__), list(sys.argv[1:] if argv is None else argv)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, configs) in BENCHMARKS.items():
        about, style = inspect.getdoc(configs[-1]) or "", argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, description=about, help=about.splitlines()[0],
                                      formatter_class=style)  # fmt: skip
        for config in configs:
            add_arguments(command, config, output_dir=NOT_SET, data_path=NOT_SET)
        command.add_argument("--json", metavar="FILE", help="write the figures there as one object")
    args = parser.parse_args(words)
    return exit_code(partial(measure, args, words), failed=1, on_stderr=True)


if __name__ == "__main__":
    sys.exit(main())
