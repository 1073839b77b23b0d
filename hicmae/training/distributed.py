"""Process group: start and stop, rank, gather with gradient, gather of predictions.

Everything here also works in a single process, where it does nothing or returns its argument.
"""

import gc
import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
TIMEOUT = timedelta(minutes=30)  # longest wait of one rank for another, e.g. while rank 0 saves


def start(
    device: str = "auto", backend: str | None = None, timeout: timedelta = TIMEOUT
) -> torch.device:
    """Pick this process's device and, under torchrun, join the process group.

    Args:
        device: "cuda", "cpu", or "auto" for a GPU when there is one.
        backend: "nccl" or "gloo"; None: nccl for GPUs, gloo for CPUs.
        timeout: how long a collective waits for the other ranks before it fails.

    Returns:
        The device this process trains on.
    """
    local_rank, world = _torchrun_environment()
    chosen = _choose_device(device, local_rank)
    if world > 1 and not dist.is_initialized():
        backend = backend or ("nccl" if chosen.type == "cuda" else "gloo")
        device_id = chosen if backend == "nccl" else None
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    return chosen


def _torchrun_environment() -> tuple[int, int]:
    """Return (local rank, world size) from the variables torchrun sets."""
    world = _environment_int("WORLD_SIZE", 1)
    if world > 1:
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in os.environ]
        if missing:
            raise RuntimeError(
                f"WORLD_SIZE is {world} but {', '.join(missing)} is not set; start with torchrun, "
                "or unset WORLD_SIZE for a single process"
            )
    return _environment_int("LOCAL_RANK", 0), world


def _environment_int(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise RuntimeError(
            f"environment variable {name} must be a number of at least 0, got '{value}'"
        )
    return int(value)


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device must be auto, cuda or cpu, got '{device}'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count == 0:
        raise RuntimeError(
            "--device cuda, but torch sees no GPU; check the driver and CUDA_VISIBLE_DEVICES, "
            "or use --device cpu"
        )
    if device == "cpu" or count == 0:
        return torch.device("cpu")
    if local_rank >= count:
        raise RuntimeError(
            f"process {local_rank} of this machine has no GPU of its own: torch sees {count}; "
            f"start torchrun with --nproc_per_node={count}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def stop() -> None:
    """Leave the process group, if any.

    Call it when models and optimisers are out of scope: garbage is collected first, because a DDP
    wrapper that outlives its group can abort the interpreter at exit.
    """
    gc.collect()
    if dist.is_initialized():
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


def barrier() -> None:
    """Wait until every process is here."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


class _GatherWithGrad(torch.autograd.Function):
    """All-gather along the first axis whose backward sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Join every rank's tensor along the first axis, in rank order, keeping gradients.

    The gradient that comes back is the sum over ranks; with a loss averaged over ranks (what DDP
    does to gradients) parameters get the gradient of the one-process loss on the joined batch.

    Args:
        tensor: (B, ...), the same shape on every rank.

    Returns:
        (world_size * B, ...).
    """
    return tensor if world_size() == 1 else _GatherWithGrad.apply(tensor)


def gather_objects(items: list[Item]) -> list[Item]:
    """Return the items of all ranks in rank order, on every rank; lengths may differ."""
    if world_size() == 1:
        return list(items)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_mean(values: dict[str, float]) -> dict[str, float]:
    """Return each value's mean over the ranks; every rank must pass the same keys."""
    if world_size() == 1 or not values:
        return dict(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    keys = sorted(values)
    total = torch.tensor([float(values[key]) for key in keys], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    mean = dict(zip(keys, (total / world_size()).tolist(), strict=True))
    return {key: mean[key] for key in values}
