"""Random numbers: seeded anew for each step, carried over in checkpoints, and `--deterministic`.

What may be traded for speed or memory without changing what is computed: one flag each.

Stopping on request: SIGTERM and SIGUSR1 end a run after the step in hand, on every rank.

Arithmetic of the forward pass: fp32, bf16 without a scaler, fp16 with one.

The output folder: one run at a time, no leftovers of a killed one, small files written whole.

What both entry scripts do around training: device, folder, logs, signals, exit codes, parts.
"""

import errno
import fcntl
import functools
import gc
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.backends import cuda, cudnn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from hicmae.config import OptimConfig, RunConfig
from hicmae.data.loader import ClipSampler, end, make_loader
from hicmae.io import write_whole
from hicmae.models.layers import Block, CSBlock
from hicmae.training import distributed
from hicmae.training.logs import setup_logging
from hicmae.training.optim import (
    Optimization,
    cosine_schedule,
    layer_scales,
    make_optimizer,
    parameter_groups,
)

logger = logging.getLogger(__name__)


class RunShape(NamedTuple):
    """The clips of a run and how its steps share them."""

    clips: dict[str, str]  # one line for each list, of `describe_clips`
    steps: int  # optimisation steps of an epoch
    total_batch: int  # clips of a step, over all batches and ranks
    world_size: int


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


def compiled(model: nn.Module, cuda_graphs: bool = False) -> nn.Module:
    """Return the model as torch.compile runs it, for batches of one size.

    Parameters are shared with the model, whose own state dict keeps its names: save that one.

    Args:
        model: may be wrapped by DistributedDataParallel.
        cuda_graphs: replay the kernels of a whole pass with one launch (GPUs only).
    """
    mode = "reduce-overhead" if cuda_graphs else None
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of every transformer block and compute it anew in the backward pass.

    Gradients stay the same bit by bit. The model's parameter names do not change.
    """
    for module in model.modules():
        if isinstance(module, (Block, CSBlock)):
            # An instance's own method hides that of its class.
            module.forward = functools.partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False
            )


# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on where this one stopped.
RESUMABLE = 75


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the script exits with `RESUMABLE`."""


class StopRequest:
    """Remembers the signal that asked this process to stop, 0 until then."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Serve as a signal handler; the run looks at `number` after each step."""
        self.number = number

    def check(self) -> None:
        """Stop where any rank was asked to; every rank calls it.

        Raises:
            Stopped: and nothing needed to be saved.
        """
        (number,) = distributed.highest([self.number])
        if number:
            raise Stopped(f"stopped by {name_of(number)}")


def name_of(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request instead of the end of the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # python allows no handlers there
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(NamedTuple):
    """What the forward pass computes in, and on which device."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of a forward pass; it does nothing in fp32."""
        enabled = self.name != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=enabled)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler fp16 needs; for the others it passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Resolve "auto" and refuse what the device cannot do.

    Args:
        name: "auto", "fp32", "bf16" or "fp16".
        device: where the model runs.

    Raises:
        ValueError: fp16 without a GPU, or bf16 on a GPU that lacks it.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        name = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and not on_gpu:
        raise ValueError("--precision fp16 needs a GPU, got --device cpu; use bf16 or fp32")
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError("--precision bf16 is not supported by this GPU; use fp16 or fp32")
    return Precision(name, device)


WAIT = 20.0  # seconds until a killed run's last processes are surely gone


_OURS = re.compile(
    r"(checkpoint-.+\.pth|bad_steps-.+\.pth|steps\.jsonl|log\.txt|config\.json"
    r"|pred\w*\.csv|(?:val|train)_clips\.csv|metrics\w*\.json)\.tmp"
)


_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOLCK)


@contextmanager
def own_folder(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Hold a folder for one run; the lock ends with the process, whatever ends it.

    Args:
        folder: made if missing.
        wait: seconds to wait for another run to end.

    Raises:
        RuntimeError: another run still writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        _unlock(descriptor)


def _lock(descriptor: int, folder: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(
                    f"another run is writing to '{folder}'; wait for it, end it, or choose another "
                    "--output_dir"
                ) from error
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.debug("'%s' is on a file system without locks: %s", folder, error)
            return


def _unlock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
    except OSError as error:
        logger.debug("no lock to release: %s", error)
    os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of a killed run."""
    for path in folder.glob("*.tmp"):
        if _OURS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
            logger.info("removed '%s', which a killed run left half-written", path.name)


EXPECTED = (ValueError, OSError, RuntimeError)  # what bad input raises; the message is enough


class Session(NamedTuple):
    """A process's place in the run."""

    output_dir: Path
    log_dir: Path
    precision: Precision
    run: RunConfig
    settings: dict[str, Any]  # all flags as plain values
    stop: StopRequest

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.precision.device


@contextmanager
def open_session(
    run: RunConfig, settings: dict[str, Any], trains: bool = True
) -> Iterator[Session]:
    """Start the process group and the logs, listen to signals, and clean up at the end.

    Args:
        run: where and how to run.
        settings: all flags as plain values.
        trains: whether the output folder must be this run's alone, and leftovers of a killed run
            in it are removed; a mere test may look on while another run trains.
    """
    others = set(multiprocessing.active_children())
    output_dir = Path(run.output_dir)
    with ExitStack() as stack:
        stack.enter_context(determinism(run.deterministic))
        device = distributed.start(run.device)
        stack.callback(distributed.stop)
        stack.callback(_end_workers, others)
        stop = stack.enter_context(stop_request())
        precision = choose_precision(run.precision, device)
        if trains and distributed.is_main():
            stack.enter_context(own_folder(output_dir))
        setup_logging(output_dir, distributed.is_main())
        if trains and distributed.is_main():
            remove_leftovers(output_dir)
        logger.info(
            "device %s, precision %s, %d process(es), output in %s",
            device,
            precision.name,
            distributed.world_size(),
            output_dir,
        )
        log_dir = Path(run.log_dir or output_dir)
        yield Session(output_dir, log_dir, precision, run, settings, stop)


def _end_workers(others: set[Any]) -> None:
    """Let loaders that nobody uses any more end their processes, then end those that are left."""
    gc.collect()
    end([child for child in multiprocessing.active_children() if child not in others])


def write_settings(session: Session) -> None:
    """Write config.json; only rank 0 does."""
    if distributed.is_main():
        text = json.dumps(session.settings, indent=2) + "\n"
        write_whole(session.output_dir / "config.json", text)


def run_command(main: Callable[[Sequence[str] | None], None]) -> int:
    """Run an entry script; show expected errors as one line and keep the trace in run.log.

    Returns:
        The exit code: 0 done, 1 an error, 75 (`RESUMABLE`) stopped by SIGTERM or SIGUSR1 with the
        state saved, 130 interrupted at the keyboard.
    """
    try:
        main(None)
    except Stopped as stopped:
        text = "%s; start the same command again to go on (exit code %d)"
        logger.warning(text, stopped, RESUMABLE)
        return RESUMABLE
    except EXPECTED as error:
        record = logging.LogRecord(__name__, logging.ERROR, "", 0, "%s", (error,), sys.exc_info())
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: interrupted\n")
        return 130
    return 0


def make_optimization(
    model: nn.Module,
    optim: OptimConfig,
    precision: Precision,
    steps: int,
    layer_decay: float | None = None,
) -> Optimization:
    """Build optimiser, schedules and loss scaler for `steps` optimisation steps an epoch."""
    world_size = distributed.world_size()
    lr, min_lr = (optim.scaled(value, world_size) for value in (optim.lr, optim.min_lr))
    groups = parameter_groups(model, optim.weight_decay, layer_decay)
    logger.info(
        "total batch %d, learning rate %.3g to %.3g, %d steps an epoch",
        optim.batch_size * optim.accum_iter * world_size,
        lr,
        min_lr,
        steps,
    )
    last_decay = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    return Optimization(
        optimizer=make_optimizer(groups, lr, optim.opt_betas, optim.opt_eps),
        scaler=precision.grad_scaler(),
        precision=precision,
        lr=cosine_schedule(
            lr,
            min_lr,
            optim.epochs,
            steps,
            min(optim.warmup_epochs, optim.epochs),
            warmup_steps=optim.warmup_steps,
        ),
        weight_decay=cosine_schedule(optim.weight_decay, last_decay, optim.epochs, steps),
        accum_iter=optim.accum_iter,
        clip_grad=optim.clip_grad,
        layer_scales=layer_scales(model, layer_decay),
    )


def run_shape(loader: DataLoader, optim: OptimConfig, clips: dict[str, str]) -> RunShape:
    """Return how the steps of an epoch share the clips, alike for all numbers of processes.

    Args:
        loader: of `training_loader`.
        optim: its batches.
        clips: description of each list, of `describe_clips`.

    Raises:
        ValueError: an epoch is shorter than one step.
    """
    batches, world_size = len(loader), distributed.world_size()
    if batches < optim.accum_iter:
        raise ValueError(
            f"an epoch has {batches} batch(es) a process, fewer than --accum_iter "
            f"{optim.accum_iter}; lower --accum_iter or --batch_size"
        )
    total_batch = optim.batch_size * optim.accum_iter * world_size
    num_clips = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    return RunShape(clips, max(num_clips // total_batch, 1), total_batch, world_size)


def training_loader(session: Session, dataset: Dataset, batch_size: int) -> DataLoader:
    """Build the loader of this rank's share of the training clips, shuffled anew each epoch."""
    sampler = ClipSampler(
        len(dataset),  # type: ignore[arg-type]  # ours have a length
        shuffle=True,
        seed=session.run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=True,
        shards=getattr(dataset.clips, "shard_of", None),  # type: ignore[attr-defined]  # ours have
    )
    workers = session.run.num_workers
    return make_loader(dataset, sampler, batch_size, workers, True, session.device.type)


def num_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
