"""How throughput scales with ranks: measured for overhead, reasoned on paper for many machines.

``python -m hicmae.benchmark ranks --nproc 2`` trains the same batch in one process, in several that
ignore each other, and in several that exchange gradients, with every option of DDP that matters.
``--paper`` prints bytes of gradients against link speeds instead.
"""

import argparse
import gc
import itertools
import json
import logging
import os
import socket
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from hicmae.benchmark.context import device_name
from hicmae.benchmark.links import Cluster, on_paper
from hicmae.benchmark.links import show as show_paper
from hicmae.benchmark.real_steps import (
    Steps,
    Trainer,
    add_training_flags,
    check_least,
    spread,
    training_configs,
)
from hicmae.data.batches import PretrainBatch
from hicmae.data.masking import random_mask, tube_mask
from hicmae.io import aligned
from hicmae.training import distributed
from hicmae.training.pretraining import PretrainConfigs
from hicmae.training.run import Session, open_session

PATCH_SIZE = 16
NOTE = """
Exchange costs: step time against processes side by side that exchange nothing; what these lose
against one process, they lose to shared memory and cores. CPU time leaves out waiting, and what
else the machine does. Processes of one machine say nothing about a network: see `--paper`.
"""
SEPARATE = "side by side, nothing exchanged"
# What processes do; options of DistributedDataParallel in place of ours.
VARIANTS: dict[str, dict[str, Any]] = {
    SEPARATE: {},
    "copied gradients": {"gradient_as_bucket_view": False},
    "bucket view (ours)": {},
    "bucket view, static graph": {"static_graph": True},
    "bucket view, 5 MB buckets": {"bucket_cap_mb": 5},
    "bucket view, 100 MB buckets": {"bucket_cap_mb": 100},
    "bucket view, gathered negatives": {"gather": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command: those of pre-training, and what to measure."""
    add_training_flags(parser)
    group = parser.add_argument_group("What to measure")
    group.add_argument(
        "--paper", action="store_true", help="print bytes against link speeds; measure nothing"
    )
    group.add_argument("--nproc", type=int, default=2, help="processes (default: 2)")
    group.add_argument("--steps", type=int, default=5, help="measured steps a round (default: 5)")
    group.add_argument("--warmup", type=int, default=2, help="steps before (default: 2)")
    group.add_argument(
        "--rounds", type=int, default=3, help="times that every variant has its turn (default: 3)"
    )
    paper = parser.add_argument_group("On paper")
    paper.add_argument("--machines", type=int, default=8, help="(default: 8)")
    paper.add_argument("--gpus", type=int, default=8, help="of each machine (default: 8)")
    paper.add_argument(
        "--network_gbit",
        type=float,
        nargs="+",
        default=[400.0, 100.0],
        help="link of a machine, Gbit/s (default: 400 100)",
    )
    paper.add_argument(
        "--nvlink_gbyte",
        type=float,
        default=450.0,
        help="link of a GPU inside its machine, GB/s and direction (default: 450, an H100's)",
    )
    paper.add_argument(
        "--flops_per_s",
        type=float,
        help="what a GPU reaches, measured by `hicmae.benchmark pretrain`: adds compute times",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one process, then several; or reckon on paper.

    Raises:
        ValueError: a flag does not fit.
    """
    if args.paper:
        return _on_paper(args)
    check_least(args, nproc=2, steps=1, warmup=0, rounds=1)
    training_configs(args, "unused")  # its errors belong here, not into a process's trace
    with tempfile.TemporaryDirectory(prefix="hicmae-ranks-") as folder:
        for world in (1, args.nproc):
            _spawn(world, args, folder)
        one = _read(folder, 1)
        return summary(one, _read(folder, args.nproc), args)


def _spawn(world: int, args: argparse.Namespace, folder: str) -> None:
    """Run `_one_rank` in several processes.

    Raises:
        RuntimeError: one of them failed; its last line says why.
    """
    try:
        mp.spawn(_one_rank, args=(world, _free_port(), args, folder), nprocs=world)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RuntimeError(f"process {error.error_index} of {world} failed: {reason}") from error


def _on_paper(args: argparse.Namespace) -> dict[str, Any]:
    check_least(args, machines=1, gpus=1, batch_size=1)
    if min(*args.network_gbit, args.nvlink_gbyte, args.flops_per_s or 1) <= 0:
        raise ValueError("--network_gbit, --nvlink_gbyte and --flops_per_s must be above 0")
    cluster = Cluster(args.machines, args.gpus, args.nvlink_gbyte * 1e9)
    rows = on_paper(cluster, args.network_gbit, args.batch_size, args.flops_per_s)
    return {"paper": rows, "cluster": cluster._asdict(), "batch_size": args.batch_size}


def show(figures: dict[str, Any]) -> str:
    """Make a table."""
    if "paper" in figures:
        cluster = Cluster(**figures["cluster"])
        return show_paper(figures["paper"], cluster, figures["batch_size"])
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
    return title + aligned(table) + NOTE


def _read(folder: str, world: int) -> dict[str, Any]:
    return json.loads(Path(folder, f"{world}.json").read_text(encoding="utf-8"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _one_rank(rank: int, world: int, port: int, args: argparse.Namespace, folder: str) -> None:
    """Run in each process: time every variant; rank 0 writes the slowest rank's step times."""
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(_threads(args.nproc))
    configs = training_configs(args, f"{folder}/rank{rank}of{world}")
    with open_session(configs.run, {}) as session:
        logging.getLogger().setLevel(logging.WARNING)
        names = list(VARIANTS) if world > 1 else [SEPARATE]
        seen: dict[str, list[Steps]] = {name: [] for name in names}
        for turn in range(args.rounds):
            for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                seen[name].append(_time(session, configs, name, args))
        ranks = distributed.gather_objects([{n: _summed_up(s) for n, s in seen.items()}])
        if distributed.is_main():
            figures = {
                "device": device_name(session.device),
                "precision": session.precision.name,
                "threads": torch.get_num_threads(),
                "slowest": {n: max((r[n] for r in ranks), key=_step) for n in names},
            }
            Path(folder, f"{world}.json").write_text(json.dumps(figures), encoding="utf-8")


def _threads(processes: int) -> int:
    """Return the threads of each process, as many with one process as with all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // processes, 1)


def _summed_up(rounds: list[Steps]) -> dict[str, float]:
    cpu = list(itertools.chain.from_iterable(steps.cpu for steps in rounds))
    durations = list(itertools.chain.from_iterable(steps.durations for steps in rounds))
    return {**spread(durations), "cpu_s": statistics.median(cpu)}


def _step(seconds: Mapping[str, float]) -> float:
    return seconds["step_s"]


def _time(session: Session, configs: PretrainConfigs, name: str, args: argparse.Namespace) -> Steps:
    """Make some steps of one variant."""
    options = dict(VARIANTS[name])
    if options.pop("gather", False):
        configs = configs._replace(loss=replace(configs.loss, gather_negatives=True))
    batch = synthetic_batch(configs, seed=distributed.rank())
    exchange = name != SEPARATE
    trainer = Trainer(session, configs, args.warmup + args.steps, exchange, **options)
    steps = trainer.run(itertools.repeat(batch), args.steps, args.warmup)
    del trainer
    gc.collect()  # the wrapper's buckets
    return steps


def synthetic_batch(configs: PretrainConfigs, seed: int) -> PretrainBatch:
    """Make a batch of the run's shapes; the arithmetic does not depend on the pixels."""
    rng, clip, mask = np.random.default_rng(seed), configs.clip, configs.mask
    size, side = configs.optim.batch_size, clip.input_size // PATCH_SIZE
    grid = (clip.num_frames // clip.tubelet_size, side, side)
    steps, mel_bins = clip.input_size_audio
    num_audio = steps * mel_bins // PATCH_SIZE**2
    shape = (size, 3, clip.num_frames, clip.input_size, clip.input_size)
    masks = [tube_mask(grid, mask.mask_ratio, rng) for _ in range(size)]
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


def summary(
    one: Mapping[str, Any], several: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Compare: what sharing the machine costs, and what exchanging gradients costs on top.

    Args:
        one: what one process has seen.
        several: what `nproc` processes have seen, the slowest of them, with equal work for each.
        args: of the command.
    """
    clips = args.batch_size * args.accum_iter
    rows = [_row("one process", 1, clips, one["slowest"][SEPARATE])]
    base = several["slowest"][SEPARATE]
    for name, seconds in several["slowest"].items():
        row = _row(name, args.nproc, clips, seconds)
        if name != SEPARATE:
            row["overhead"] = _step(seconds) / _step(base) - 1
            row["overhead_cpu_time"] = seconds["cpu_s"] / base["cpu_s"] - 1
        rows.append(row)
    for row in rows:
        row["efficiency"] = row["clips_per_s"] / (row["processes"] * rows[0]["clips_per_s"])
    ours = next(row for row in rows if row["name"].endswith("(ours)"))
    return {
        "device": several["device"],
        "model": args.model,
        "precision": several["precision"],
        "batch_size": args.batch_size,
        "accum_iter": args.accum_iter,
        "nproc": args.nproc,
        "threads": several["threads"],
        "clips_per_s": ours["clips_per_s"],
        "rows": rows,
    }


def _row(name: str, processes: int, clips: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    rate = processes * clips / _step(seconds)
    return {"name": name, "processes": processes, "clips_per_s": rate, **seconds}
