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
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import PretrainConfigs
from hicmae.config.flags import add_arguments, new_parser
from hicmae.io import check_writable, describe, write_whole
from hicmae.training import distributed
from hicmae.training.run import EXPECTED
from scripts import benchmark_data as data
from scripts import benchmark_models as models

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
    "loader": (data.run_loader, [data.LoaderConfig]),
    "feed": (data.run_feed, [*PretrainConfigs.__annotations__.values(), data.FeedConfig]),
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
            add_arguments(command, config, output_dir=data.NOT_SET, data_path=data.NOT_SET)
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
