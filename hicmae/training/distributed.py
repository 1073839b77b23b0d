"""Process group: start and stop, rank, gather with gradient, messages between ranks.

Everything here also works in a single process, where it does nothing or returns its argument.
Messages go over CPUs, so that they neither wait for a GPU nor take its memory.
"""

import gc
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")
TIMEOUT = timedelta(minutes=30)  # longest wait of one rank for another, e.g. while rank 0 saves
JOIN_TIMEOUT = timedelta(minutes=10)  # longest wait for all of them to start, as torchrun's

_messages: dist.ProcessGroup | None = None  # group of CPU messages; None: the one group there is
_batch: int | None = None  # clips of every rank's batch, once they have agreed


def start(
    device: str = "auto",
    backend: str | None = None,
    timeout: timedelta = TIMEOUT,
    join_timeout: timedelta = JOIN_TIMEOUT,
) -> torch.device:
    """Pick this process's device and, under torchrun, join the process group.

    Args:
        device: "cuda", "cpu", or "auto" for a GPU when there is one.
        backend: "nccl" or "gloo"; None: nccl for GPUs, gloo for CPUs.
        timeout: how long a collective waits for the other ranks before it fails.
        join_timeout: how long this rank waits for the others to start.

    Returns:
        The device this process trains on.

    Raises:
        RuntimeError: the other ranks, or the device, are not there.
    """
    global _messages
    local_rank, world = _torchrun_environment()
    chosen = _choose_device(device, local_rank)
    if world > 1 and not dist.is_initialized():
        backend = backend or ("nccl" if chosen.type == "cuda" else "gloo")
        store = _meet(join_timeout)
        store.set_timeout(timeout)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("default_pg", store),
            rank=_environment_int("RANK", 0),
            world_size=world,
            timeout=timeout,
            device_id=chosen if backend == "nccl" else None,
        )
        if backend == "nccl":
            _messages = dist.new_group(backend="gloo", timeout=timeout)
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


def _meet(timeout: timedelta) -> dist.Store:
    """Wait for the other ranks at the address that torchrun, or the user, has named."""
    rank, address = os.environ["RANK"], os.environ["MASTER_ADDR"]
    port = _environment_int("MASTER_PORT", 0)
    try:
        if rank != "0":
            _wait_for_listener(address, port, timeout.total_seconds())
        store, _, _ = next(rendezvous("env://", timeout=timeout))
    except (OSError, dist.DistError) as error:
        raise RuntimeError(
            f"rank {rank} of {os.environ['WORLD_SIZE']} did not meet the others at {address}:{port}"
            f" within {timeout.total_seconds():g} s ({str(error).splitlines()[0].rstrip('.')}); "
            "MASTER_ADDR must name the machine of rank 0, MASTER_PORT a port that is free and open "
            "there, and every rank must be started"
        ) from error
    return store


def _wait_for_listener(address: str, port: int, seconds: float) -> None:
    """Wait until a port answers: torch's own wait would fill the screen with C++ frames."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except socket.gaierror:
            raise  # nobody knows the name
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


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
    global _messages, _batch
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
    _messages = _batch = None


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
        joined = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(joined, tensor.contiguous())
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


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


def check_equal_batches(count: int) -> None:
    """Refuse batches of different sizes, which a gather would mix up or wait for without end.

    The ranks tell each other once; after that each of them only compares with what was agreed.

    Args:
        count: clips of this rank's batch.

    Raises:
        ValueError: ranks hold different numbers of clips, or another number than before.
    """
    global _batch
    if _batch is None:
        counts = gather_objects([count])
        if len(set(counts)) > 1:
            raise ValueError(
                f"the ranks' batches hold {counts} clips, expected equally many; use one "
                "--batch_size and --num_samples on all machines"
            )
        _batch = count
    if count != _batch:
        raise ValueError(
            f"a batch holds {count} clips, expected {_batch} as before: ranks gather their clips "
            "only while all batches are of one size; leave the last, smaller batch out"
        )


def gather_objects(items: list[Item]) -> list[Item]:
    """Return the items of all ranks in rank order, on every rank; lengths may differ."""
    if world_size() == 1:
        return list(items)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items, group=_messages)
    return [item for part in parts for item in part]


def from_main(item: Item) -> Item:
    """Return what rank 0 passes, on every rank; the others' argument is ignored."""
    if world_size() == 1:
        return item
    box = [item]
    dist.broadcast_object_list(box, group=_messages)
    return box[0]


def highest(values: Sequence[int]) -> list[int]:
    """Return the largest of each value over the ranks, on every rank."""
    if world_size() == 1:
        return list(values)
    table = torch.tensor(values)
    dist.all_reduce(table, dist.ReduceOp.MAX, group=_messages)
    return table.tolist()


def any_rank(flag: Tensor) -> Tensor:
    """Return whether a flag, () bool on the training device, is set on any rank."""
    if world_size() == 1:
        return flag
    count = flag.float()
    dist.all_reduce(count)
    return count > 0


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
