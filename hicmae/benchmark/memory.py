"""Peak memory of one variant, measured in a process in which nothing else ran.

`python -m hicmae.benchmark.memory`, with a JSON object on standard input, is that process.
"""

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hicmae.benchmark.settings import BenchmarkConfig, prepare_device
from hicmae.benchmark.workload import named_workload

STEPS = 2  # the second one finds the optimiser's state and the gradients' buffers


def peak_memory(workload: str, variant: str, config: BenchmarkConfig, batch: int) -> float:
    """Return the bytes a variant takes for a step: weights, optimiser, activations.

    On a GPU what torch's allocator has given out, on a CPU the resident memory beyond that of
    Python and its libraries.

    Args:
        workload: name of the sub-command.
        variant: "ours" or "plain".
        config: of the benchmark.
        batch: clips of a step.

    Raises:
        RuntimeError: the process failed.
    """
    task = {"workload": workload, "variant": variant, "batch": batch, "config": asdict(config)}
    done = subprocess.run(
        [sys.executable, "-m", "hicmae.benchmark.memory"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"measuring the memory of {variant} failed: {reason}; lower --batch_size or add "
            "--no-memory"
        )
    return float(done.stdout.strip().splitlines()[-1])


def _resident_peak() -> float:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's size before exec
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def main() -> None:
    """Measure what standard input describes; print the bytes."""
    task = json.load(sys.stdin)
    values: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v for n, v in task["config"].items()
    }
    config = BenchmarkConfig(**values)
    precision = prepare_device(config)
    workload = named_workload(task["workload"])
    on_gpu = precision.device.type == "cuda"
    before = 0.0 if on_gpu else _resident_peak()
    make = workload.make_ours if task["variant"] == "ours" else workload.make_plain
    step = make(config, precision, task["batch"])
    for _ in range(STEPS):
        step()
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident_peak() - before
    sys.stdout.write(f"{peak}{os.linesep}")


if __name__ == "__main__":
    main()
