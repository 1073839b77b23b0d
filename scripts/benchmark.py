"""Measure speed and memory against the plain rendition of the method in tests/plain.

    python scripts/benchmark.py pretrain --model b --batch_size 4 --json FILE
    python scripts/benchmark.py all --device cpu      what saved/benchmarks holds (half an hour)
    python scripts/benchmark.py table saved/benchmarks

Steps of both are taken in turns, so that a busy machine slows both alike. Each command has --help.
"""

import argparse
import copy
import datetime
import gc
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import PretrainConfigs, add_arguments, from_flags, new_parser
from hicmae.io import describe, write_whole
from hicmae.models import cpu_gemm
from hicmae.training import distributed
from hicmae.training.run import DTYPES, EXPECTED, Precision
from scripts import benchmark_data as data
from scripts.benchmark_data import NOT_SET, device_name, measure_in_turns, summary
from scripts.benchmark_models import (
    CROPS,
    LEVERS,
    SIZES,
    STEPS,
    WINDOWS,
    BenchmarkConfig,
    compute,
    make_model,
    random_batch,
    with_levers,
)

TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning", "infer": "testing"}
PREFIXES = {"ours": "", "plain": "plain_"}  # of figures


# Figures of a task


def count_flops(task: str, config: BenchmarkConfig) -> dict[str, float]:
    """Count the matrix products of one clip: forward by part of the model, and backward.

    Nothing is computed. What checkpointing or fused attention compute again is not counted: it is
    no use to the method.
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


def measure_errors(task: str, config: BenchmarkConfig, precision: Precision) -> dict[str, float]:
    """Compare ours with the same model in float64: prediction, and in training loss and gradient.

    The error is the largest difference over the largest magnitude.
    """
    batch = random_batch(task, config, 2, precision.device)

    def answer(model: nn.Module, own: Precision) -> dict[str, Tensor]:
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
    exact = answer(copy.deepcopy(model).double(), Precision("fp32", precision.device))
    mine = answer(with_levers(config, model), precision)
    return {
        f"{name}_error": float((mine[name] - true).abs().max() / true.abs().max())
        for name, true in exact.items()
    }


def peak_rate(config: BenchmarkConfig, precision: Precision) -> float:
    """Return FLOP/s of a square matrix product in the precision.

    On a CPU in fp32 the library of choice and torch's own are tried; the better one counts.
    """
    from torch.utils.benchmark import Timer  # its import writes warnings where no GPU is

    side, dtype = 8192 if precision.device.type == "cuda" else 1536, DTYPES[precision.name]
    left, right = torch.rand(2, side, side, dtype=dtype, device=precision.device)
    products = ["left @ right"]
    if cpu_gemm.serves(left) and cpu_gemm.library(config.cpu_gemm) == "onednn":
        products.append("linear(left, right)")
    names = {"left": left, "right": right, "linear": cpu_gemm.linear}
    threads = torch.get_num_threads()
    timers = [Timer(product, globals=names, num_threads=threads) for product in products]
    return 2 * side**3 / min(timer.timeit(3).mean for timer in timers for _ in range(4))


def peak_memory(task: str, variant: str, config: BenchmarkConfig, count: int) -> float:
    """Return the bytes that two steps take, in a process in which nothing else ran.

    On a GPU what torch's allocator has given out, on a CPU (of Linux) the resident memory beyond
    that of Python and its libraries. The second step finds the optimiser's state.
    """

    def resident() -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return float(re.findall(r"VmHWM:\s*(\d+)", status)[0]) * 1024

    precision = config.arithmetic()
    on_gpu = precision.device.type == "cuda"
    before = 0.0 if on_gpu else resident()
    step = STEPS[variant](task, config, precision, count)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() if on_gpu else resident() - before


def measure(task: str, config: BenchmarkConfig, precision: Precision, count: int) -> dict[str, Any]:
    """Measure one batch size: times, clips a second, ratios and memory."""
    names = [*STEPS][: 1 + config.plain]
    steps = {name: STEPS[name](task, config, precision, count) for name in names}
    times = measure_in_turns(steps, config.steps, config.warmup, precision.device)
    figures: dict[str, Any] = {"batch_size": count, "steps": config.steps}
    if config.profile:
        on_gpu = precision.device.type == "cuda"
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu]
        with profile(activities=activities, acc_events=True) as recorded:
            steps["ours"]()
        spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        print(recorded.key_averages().table(sort_by=spent, row_limit=20))
    steps.clear()
    gc.collect()
    for name in names:
        prefix = PREFIXES[name]
        found = summary(times[times.variant == name])
        figures |= {f"{prefix}{key}": value for key, value in found.items()}
        figures[f"{prefix}clips_per_s"] = count / found["step_s"]
        if config.memory:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                try:
                    peak = process.submit(peak_memory, task, name, config, count).result()
                except EXPECTED as error:
                    raise RuntimeError(
                        f"measuring the memory of {name} failed: {describe(error)}; lower "
                        "--batch_size or add --no-memory"
                    ) from error
            figures[f"{prefix}peak_memory"] = peak
    if config.plain:
        figures["ratio"] = figures["plain_step_s"] / figures["step_s"]
        figures["ratio_cpu_time"] = figures["plain_cpu_s"] / figures["cpu_s"]
        if task == "infer":
            figures["ratio_per_view"] = figures["ratio"] / CROPS
        if config.memory:
            figures["peak_memory_ratio"] = figures["peak_memory"] / figures["plain_peak_memory"]
    return figures


def run_task(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every batch size; return the figures of the fastest, with all of them inside."""
    task, config = args.command, from_flags(vars(args), BenchmarkConfig)
    precision = config.arithmetic()
    on_gpu = precision.device.type == "cuda"
    fp32_on_cpu = precision.name == "fp32" and not on_gpu
    peak = peak_rate(config, precision) if config.peaks else 0.0
    batches = [measure(task, config, precision, count) for count in config.batch_size]
    best = max(batches, key=lambda row: row["clips_per_s"])
    parts = count_flops(task, config)
    figures = {
        "device": device_name(precision.device),
        "model": f"hicmae dim{config.size.width}",
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


def shown(figures: dict[str, Any]) -> str:
    """Lay out single figures one below the other, then each list of rows as a table."""
    tables = {name: rows for name, rows in figures.items() if isinstance(rows, (dict, list))}
    single = {name: value for name, value in figures.items() if name not in tables}
    frames = [pd.DataFrame({"": single})]
    for name, rows in tables.items():
        nested = isinstance(rows, list) or isinstance([*rows.values()][0], dict)
        table = pd.DataFrame(rows if nested else {name: rows})
        frames.append(table.T if isinstance(rows, list) else table)
    form = "{:.5g}".format
    return "\n\n".join(
        frame.map(lambda cell: form(cell) if isinstance(cell, float) else str(cell)).to_markdown(
            disable_numparse=True
        )
        for frame in frames
    )


# table and all


def run_table(args: argparse.Namespace) -> dict[str, Any]:
    """Make a Markdown table for each device, from the files of model benchmarks."""
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
    order = [*TASKS]
    rows.sort(key=lambda row: (order.index(row["benchmark"]), row["model"], row["precision"]))
    texts = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        dates = ", ".join(sorted({row["date"][:10] for row in mine}))
        table = pd.DataFrame([cells_of(row) for row in mine])
        markdown = table.to_markdown(index=False, disable_numparse=True)
        texts.append(f"{device}, {dates}:\n\n{markdown}")
    return {"text": "\n\n".join(texts), "rows": rows}


COLUMNS = {
    "faster than plain": ("ratio", "{:.2f}x"),
    "in CPU time": ("ratio_cpu_time", "{:.2f}x"),
    "per forward pass": ("ratio_per_view", "{:.2f}x"),
    "memory of plain's": ("peak_memory_ratio", "{:.0%}"),
    "share of measured peak": ("share_of_peak", "{:.0%}"),
    "error against float64": ("prediction_error", "{:.0e}"),
}


def cells_of(row: dict[str, Any]) -> dict[str, str]:
    """Return what a table says of one file."""
    levers = [name.replace("_", " ") for name in LEVERS if row.get(name)]
    library = f" ({row['cpu_gemm']})" if row.get("cpu_gemm") else ""
    names = {f"hicmae dim{size.width}": f"HiCMAE-{name.upper()}" for name, size in SIZES.items()}
    return {
        "task": TASKS[row["benchmark"]],
        "model": names.get(row["model"], row["model"]),
        "clips a step": str(row["batch_size"]),
        "arithmetic": ", ".join([row["precision"] + library, *levers]),
        **{name: form.format(row[key]) if key in row else "" for name, (key, form)
           in COLUMNS.items()},
    }  # fmt: skip


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

TASK_HELP = "Time {}, by ours and by the plain baseline, in turns, on random clips."
RUN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    **dict.fromkeys(TASKS, run_task),
    "loader": data.run_loader, "feed": data.run_feed, "table": run_table, "all": run_all,
}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *configs: type, **defaults: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        options: dict[str, Any] = {"allow_abbrev": False, "formatter_class": formatter}
        command = commands.add_parser(name, description=text, help=text.splitlines()[0], **options)
        for config in configs:
            add_arguments(command, config, **defaults)
        command.add_argument("--json", metavar="FILE", help="write the figures there as one object")
        return command

    for task, what in TASKS.items():
        add(task, TASK_HELP.format(what), BenchmarkConfig)
    add("loader", data.LOADER_HELP, data.LoaderConfig)
    training = PretrainConfigs.__annotations__.values()
    add("feed", data.FEED_HELP, *training, data.FeedConfig, output_dir=NOT_SET, data_path=NOT_SET)
    table = add("table", "Print tables for a page, from the JSON files of a folder.")
    table.add_argument("folder", metavar="FOLDER", help="holds the files that --json wrote")
    every = add("all", "Measure all that saved/benchmarks holds.")
    every.add_argument("--device", choices=[*ALL], required=True, help="where to compute")
    every.add_argument(
        "--output_dir", default="saved/benchmarks", metavar="DIR", help="folder of the JSON files"
    )
    every.add_argument("flags", nargs="*", help="after --: more flags of every command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(argv)
    variables = [f"{n}={os.environ[n]}" for n in ("OMP_NUM_THREADS",) if n in os.environ]
    context = {  # the machine and its other load before the start
        "command": " ".join([*variables, "python scripts/benchmark.py", shlex.join(argv)]),
        "benchmark": args.command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": data.processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }
    try:
        figures = RUN[args.command](args)
        if distributed.is_main():
            print(figures.pop("text", None) or shown(figures))
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
