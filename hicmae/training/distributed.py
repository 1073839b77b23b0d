"""Several processes: start and stop, who this one is, and what they tell each other.

In a single process this does nothing or returns its argument. Messages go over the CPU (gloo), so
that they neither wait for a GPU nor take its memory.
"""

import gc
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hicmae.io import EXPECTED, choose_device, one_line

Item = TypeVar("Item")
TIMEOUT = timedelta(minutes=30)  # longest wait of one rank for another, e.g. while rank 0 saves


def start(device: str = "auto") -> torch.device:
    """Choose this process's device, its own GPU, and join the process group under torchrun.

    ValueError: the device is not there. RuntimeError: the other ranks are not after TIMEOUT.
    """
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT, device_id=chosen if on_gpu else None)
        except dist.DistError as error:
            raise RuntimeError(
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others "
                f"at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({one_line(error)}); "
                "start all of them with torchrun, and see that this address is rank 0's machine"
            ) from error
    return chosen


def stop() -> None:
    """Leave the process group, if any, when models and optimisers are out of scope."""
    if dist.is_initialized():
        gc.collect()  # a DDP wrapper that outlives its group can abort the interpreter at exit
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process writes files and logs."""
    return rank() == 0


def broadcast(item: Item) -> Item:
    """Return rank 0's item on every rank; what the others pass is ignored."""
    box = [item]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def on_main(function: Callable[[], Item]) -> Item | None:
    """Call a function on rank 0 only, and return its result there; its error ends all ranks."""
    result: Item | None = None
    problem: Exception | None = None
    if is_main():
        try:
            result = function()
        except EXPECTED as error:
            problem = error
    if problem := broadcast(problem):
        raise problem
    return result


def gather_objects(items: list[Item]) -> list[Item]:
    """Return the items of all ranks in rank order, on every rank; lengths may differ."""
    parts = [list(items)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def highest(values: Sequence[int]) -> list[int]:
    """Return the largest of each value over the ranks, on every rank."""
    table = torch.tensor(values)
    if world_size() > 1:
        dist.all_reduce(table, dist.ReduceOp.MAX)
    return table.tolist()


def any_rank(flag: Tensor) -> Tensor:
    """Return whether a flag, () bool on the training device, is set on any rank."""
    count = flag.float()
    if world_size() > 1:
        dist.all_reduce(count)
    return count > 0
