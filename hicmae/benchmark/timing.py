"""Timing of several variants in turns, so that a machine's drift meets all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

GPU_ROUND = 5  # steps between two turns on a GPU, so that its queue runs full


class StepTimes(NamedTuple):
    """Seconds of every measured step of a variant."""

    wall: list[float]  # between two events of a GPU's queue, or on the clock
    cpu: list[float]  # of this process on all cores; neighbours on the machine do not count

    def summary(self) -> dict[str, float]:
        """Return median and quartiles of the wall time, and the median of the CPU time."""
        low, median, high = np.percentile(self.wall, (25, 50, 75))
        return {
            "step_s": float(median),
            "step_s_quartile1": float(low),
            "step_s_quartile3": float(high),
            "cpu_s": float(np.median(self.cpu)),
        }


def measure_in_turns(
    variants: Mapping[str, Callable[[], object]], steps: int, warmup: int, device: torch.device
) -> dict[str, StepTimes]:
    """Time every variant.

    Args:
        variants: name -> one step.
        steps: measured for each variant, at least one.
        warmup: steps of each variant before that; the first compiles and fills caches.
        device: says how to time.
    """
    for step in variants.values():
        for _ in range(warmup):
            step()
    times = {name: StepTimes([], []) for name in variants}
    chunk = GPU_ROUND if device.type == "cuda" else 1
    for first in range(0, steps, chunk):
        for name, step in variants.items():
            count = min(chunk, steps - first)
            wall, cpu = _time_gpu(step, count) if device.type == "cuda" else _time_cpu(step)
            times[name].wall.extend(wall)
            times[name].cpu.extend(cpu)
    return times


def _time_cpu(step: Callable[[], object]) -> tuple[list[float], list[float]]:
    started, cpu = time.perf_counter(), time.process_time()
    step()
    return [time.perf_counter() - started], [time.process_time() - cpu]


def _time_gpu(step: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    cpu = time.process_time()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    cpu = time.process_time() - cpu
    pairs = zip(events, events[1:], strict=False)
    return [a.elapsed_time(b) / 1e3 for a, b in pairs], [cpu / count] * count
