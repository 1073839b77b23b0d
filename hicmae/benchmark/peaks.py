"""What the device reaches at best, measured in the run: a large matrix product and a copy."""

import statistics
from collections.abc import Callable

import torch

from hicmae.benchmark.timing import measure_in_turns
from hicmae.models import cpu_gemm as onednn
from hicmae.training.run import DTYPES, Precision


def measure_peaks(precision: Precision) -> dict[str, float]:
    """Return FLOP/s of a square matrix product in the precision, and bytes/s of a copy.

    On a CPU in fp32 both of torch's libraries are tried; the better one counts.
    """
    device, dtype = precision.device, DTYPES[precision.name]
    on_gpu = device.type == "cuda"
    side, elements = (8192, 2**28) if on_gpu else (1536, 2**26)
    left, right = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    source = torch.rand(elements, device=device)
    target = torch.empty_like(source)
    products: dict[str, Callable[[], object]] = {"torch": lambda: left @ right}
    if onednn.serves(left) and onednn.library("auto") == "onednn":
        products["onednn"] = lambda: onednn.linear(left, right)
    times = measure_in_turns({**products, "copy": lambda: target.copy_(source)}, 10, 3, device)
    seconds = {name: min(values.wall) for name, values in times.items()}
    moved = 2 * source.numel() * source.element_size()  # read and written
    return {
        "peak_flops_per_s": 2 * side**3 / min(seconds[name] for name in products),
        "peak_bytes_per_s": moved / statistics.median(times["copy"].wall),
    }
