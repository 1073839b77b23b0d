"""Gradients against link speed, on paper: what many machines need, as formulas of known numbers.

Nothing here is measured or estimated: sizes come from the models, operations from the analytic
count, link speeds are the maker's figures, which the caller names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import timm

import hicmae  # noqa: F401  (registers the models)
from hicmae.benchmark.flops import pretrain_flops, total
from hicmae.io import aligned, readable
from hicmae.models.pretrain import HiCMAE
from hicmae.training.run import num_parameters

MODELS = {
    "HiCMAE-T": "pretrain_hicmae_dim256_patch16_160_a256",
    "HiCMAE-S": "pretrain_hicmae_dim384_patch16_160_a256",
    "HiCMAE-B": "pretrain_hicmae_dim512_patch16_160_a256",
}
BYTES = {"fp32": 4, "bf16": 2}  # of one gradient value on a link
FORMULAS = """
gradients  = parameters x 4 bytes (fp32), x 2 where they travel as bf16
all-reduce = 2 (g - 1) / g x gradients / inside + 2 (m - 1) / m x gradients / between
             for m machines of g GPUs; inside: link of a GPU, between: link of a machine
compute    = clips of a GPU x operations a clip / operations a second of a GPU
break-even = operations of a GPU's step / all-reduce: at this speed of a GPU the exchange takes as
             long as the arithmetic; DDP runs it beside the backward pass, two thirds of a step
"""


class Cluster(NamedTuple):
    """Machines with equally many GPUs; links in bytes a second and direction."""

    machines: int
    gpus: int  # of each machine
    inside: float  # one GPU to the others of its machine


def ring_seconds(num_bytes: float, ranks: int, speed: float) -> float:
    """Return the time of a ring all-reduce: every rank sends 2 (n - 1) / n of the bytes."""
    return 2 * (ranks - 1) / ranks * num_bytes / speed


def all_reduce_seconds(num_bytes: float, cluster: Cluster, between: float) -> float:
    """Return the time of an all-reduce in two stages.

    A machine's GPUs reduce-scatter and, at the end, all-gather: together the traffic of one ring.
    In between the machines all-reduce the parts, all bytes once over each machine's link
    (`between`, in bytes a second).
    """
    inside = ring_seconds(num_bytes, cluster.gpus, cluster.inside)
    return inside + ring_seconds(num_bytes, cluster.machines, between)


def on_paper(
    cluster: Cluster, network_gbit: Sequence[float], clips: int, flops_per_s: float | None = None
) -> list[dict[str, Any]]:
    """Return a row for each model, number format and network speed.

    Args:
        cluster: machines and GPUs.
        network_gbit: links of a machine to the others to reckon with, in Gbit a second.
        clips: of one GPU in a step.
        flops_per_s: what a GPU was measured to reach; None leaves its columns out.
    """
    rows = []
    for name, registered in MODELS.items():
        model = cast(HiCMAE, timm.create_model(registered))
        size, operations = num_parameters(model), clips * total(pretrain_flops(model))
        for number, width in BYTES.items():
            for gbit in network_gbit:
                seconds = all_reduce_seconds(size * width, cluster, gbit * 1e9 / 8)
                row: dict[str, Any] = {
                    "model": name,
                    "gradients": number,
                    "gradient_bytes": size * width,
                    "network_gbit_per_s": gbit,
                    "all_reduce_s": seconds,
                    "step_flops_per_gpu": operations,
                    "break_even_flops_per_s": operations / seconds,
                }
                if flops_per_s is not None:
                    row["compute_s"] = operations / flops_per_s
                    row["all_reduce_share_of_compute"] = seconds / row["compute_s"]
                rows.append(row)
    return rows


def show(rows: Sequence[Mapping[str, Any]], cluster: Cluster, clips: int) -> str:
    """Make a table, with the formulas below it."""
    header = ["model", "gradients", "bytes", "Gbit/s", "all-reduce", "operations", "break-even"]
    timed = "compute_s" in rows[0]
    table = [[*header, *(["compute", "all-reduce / compute"] if timed else [])]]
    for row in rows:
        cells = [row["model"], row["gradients"], f"{row['gradient_bytes'] / 1e6:.1f} MB"]
        cells += [f"{row['network_gbit_per_s']:g}", f"{1e3 * row['all_reduce_s']:.1f} ms"]
        cells += [readable(row["step_flops_per_gpu"]).strip()]
        cells += [f"{readable(row['break_even_flops_per_s']).strip()}FLOP/s"]
        if timed:
            share = row["all_reduce_share_of_compute"]
            cells += [f"{1e3 * row['compute_s']:.1f} ms", f"{share:.0%}"]
        table.append(cells)
    title = (
        f"{cluster.machines} machines x {cluster.gpus} GPUs x {clips} clips; inside a machine "
        f"{cluster.inside / 1e9:g} GB/s a GPU and direction\n\n"
    )
    return title + aligned(table) + FORMULAS
