"""Where and how a run computes: device, arithmetic, randomness, its folder, signals, exit codes."""

import fcntl
import gc
import json
import logging
import multiprocessing
import os
import random
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.backends import cudnn

import hicmae
from hicmae.config import RunConfig
from hicmae.data.loader import end
from hicmae.io import PART, Stopped, check_writable, write_whole
from hicmae.training import distributed
from hicmae.training.logs import setup_logging

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(NamedTuple):
    """What the forward pass computes in, and on which device."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of a forward pass; it does nothing in fp32."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler fp16 needs; for the others it passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Resolve "auto", "fp32", "bf16" or "fp16"; ValueError where the device cannot do it."""
    on_gpu = device.type == "cuda"
    if name == "auto":  # older GPUs only emulate bf16
        fast = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if fast else "fp16" if on_gpu else "fp32"
    if name == "fp16" and not on_gpu:
        raise ValueError(f"--precision fp16 needs a GPU, got {device.type}; use bf16 or fp32")
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError("--precision bf16 is not supported by this GPU; use fp16 or fp32")
    return Precision(name, device)


class Run:
    """Where and how to run: the same for training and testing."""

    signal = 0  # that asked this process to stop

    def __init__(self, config: RunConfig, precision: Precision) -> None:
        self.config, self.precision = config, precision
        self.device = precision.device  # where the model lives
        self.output_dir = Path(config.output_dir)  # of checkpoints, logs and results
        self.log_dir = Path(config.log_dir or config.output_dir)  # of TensorBoard's files
        versions = f"hicmae {hicmae.__version__}, torch {torch.__version__}"
        self.command = f"{versions}: {shlex.join([sys.executable, *sys.argv])}"

    def draws(self, epoch: int) -> bool:
        """Return whether pictures are drawn after an epoch."""
        return self.config.image_freq > 0 and (epoch + 1) % self.config.image_freq == 0

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Serve as a signal handler; the run looks at `signal` after each step."""
        self.signal = number

    def check_stop(self) -> None:
        """Raise Stopped where any rank was asked to stop; every rank calls it."""
        (number,) = distributed.highest([self.signal])
        if number:
            raise Stopped(f"stopped by {signal.Signals(number).name}")


@contextmanager
def open_run(config: RunConfig, trains: bool = True) -> Iterator[Run]:
    """Start the process group and the logs, listen to signals, and clean up at the end.

    Where it `trains`, the output folder must be this run's alone, and leftovers of a killed run
    go; a mere test may look on while another run trains.
    """
    others = set(multiprocessing.active_children())

    def end_workers() -> None:
        gc.collect()  # loaders that nobody uses any more end their processes themselves
        end([child for child in multiprocessing.active_children() if child not in others])

    with ExitStack() as stack:
        set_arithmetic(config.deterministic, config.tf32)
        device = distributed.start(config.device)
        stack.callback(distributed.stop)
        stack.callback(end_workers)
        run = Run(config, choose_precision(config.precision, device))
        if threading.current_thread() is threading.main_thread():  # elsewhere python allows no
            for number in (signal.SIGTERM, signal.SIGUSR1):  # handlers
                stack.callback(signal.signal, number, signal.signal(number, run.note))
        is_main = distributed.is_main()
        if trains and is_main:
            stack.enter_context(own_folder(run.output_dir))
            check_writable(run.log_dir / "events")
        setup_logging(run.output_dir, is_main)
        for path in run.output_dir.glob(f"{PART}*") if trains and is_main else ():
            path.unlink(missing_ok=True)
            logger.info("removed '%s', which a killed run left half-written", path.name)
        logger.info("%s", run.command)
        precision = run.precision.name + (" with TF32" if config.tf32 else "")
        text = "device %s, precision %s, %d process(es), output in %s"
        logger.info(text, device, precision, distributed.world_size(), run.output_dir)
        yield run


@contextmanager
def own_folder(folder: Path, wait: float = 20.0) -> Iterator[None]:
    """Hold a folder by a file lock, which ends with the process; RuntimeError: it is another's."""
    check_writable(folder / "config.json")
    descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RuntimeError(
                        f"another run is writing to '{folder}'; wait for it, end it, or choose "
                        "another --output_dir"
                    ) from error
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
        os.close(descriptor)


def write_settings(run: Run, settings: Mapping[str, Any]) -> None:
    """Write config.json; only rank 0 does."""
    if distributed.is_main():
        write_whole(run.output_dir / "config.json", json.dumps(settings, indent=2) + "\n")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed python, numpy and torch, so that a step's randomness depends on nothing before it."""
    mixed = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def set_arithmetic(deterministic: bool, tf32: bool) -> None:
    """Choose how GPUs compute, before one is touched.

    `deterministic` allows only algorithms that give the same bits every time: attention without
    fused kernels, whose backward passes may add up in any order.
    """
    if deterministic:  # cuBLAS reads it when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    cudnn.deterministic = deterministic
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(not deterministic)
    torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = tf32
