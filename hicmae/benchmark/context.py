"""Where and when something was measured."""

import datetime
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def context(argv: Sequence[str]) -> dict[str, Any]:
    """Describe the run before it starts: command, date, versions, machine, its other load.

    Args:
        argv: arguments of `python -m hicmae.benchmark`.
    """
    variables = [f"{n}={os.environ[n]}" for n in ("OMP_NUM_THREADS",) if n in os.environ]
    return {
        "command": " ".join([*variables, "python -m hicmae.benchmark", shlex.join(argv)]),
        "benchmark": argv[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }


def processor() -> str:
    """Name the processor and how many of its cores are here."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores"


def device_name(device: torch.device) -> str:
    """Name what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({processor()})"
