"""Random numbers: seeded anew for each step, carried over in checkpoints, and `--deterministic`."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.backends import cuda, cudnn


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed python, numpy and torch, so that a step's randomness depends on nothing before it."""
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]
    random.seed(int(mixed))
    np.random.seed(int(mixed))
    torch.manual_seed(int(mixed))


def random_states() -> dict[str, Any]:
    """Return the states of python, numpy and torch in this process, as a checkpoint can hold them.

    `seed_step` makes them irrelevant for the steps; they are kept for whatever else draws.
    """
    version, words, gauss = random.getstate()
    drawn = np.random.get_state(legacy=False)
    keys = torch.from_numpy(drawn["state"]["key"].astype(np.int64))
    position, has_gauss, cached = drawn["state"]["pos"], drawn["has_gauss"], drawn["gauss"]
    return {
        "python": (version, torch.tensor(words), gauss),
        "numpy": (str(drawn["bit_generator"]), keys, position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Undo what was drawn since `random_states`; a state of a device that is missing is left."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Allow only algorithms that give the same bits every time; enter before a GPU is touched.

    Attention then runs without fused kernels, whose backward passes may add up in any order.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fused = {
        cuda.enable_flash_sdp: cuda.flash_sdp_enabled(),
        cuda.enable_mem_efficient_sdp: cuda.mem_efficient_sdp_enabled(),
        cuda.enable_cudnn_sdp: cuda.cudnn_sdp_enabled(),
    }
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    for enable in fused:
        enable(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        for enable, was_enabled in fused.items():
            enable(was_enabled)
