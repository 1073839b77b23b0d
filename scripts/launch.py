"""Start one process for each GPU, on this machine and others: torchrun, with what clusters need.

    python scripts/launch.py --nproc_per_node 4 run_pretraining.py ...

takes the flags of torchrun. On top of it, machines that do not find each other end in one line
instead of a trace; SIGTERM and SIGUSR1 reach the training processes, which get the time they need
to save; and the exit code is theirs, so that a batch system can tell a stopped run, which goes on,
from a failed one.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

# torch reads this once, as it is loaded: its stack traces would bury the one line of an error here.
LOG_LEVEL = os.environ.get("TORCH_CPP_LOG_LEVEL")
os.environ["TORCH_CPP_LOG_LEVEL"] = LOG_LEVEL or "FATAL"

import torch.distributed as dist  # noqa: E402
from torch.distributed import run as torchrun  # noqa: E402
from torch.distributed.elastic.multiprocessing import (  # noqa: E402
    ProcessFailure,
    SignalException,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: E402

if LOG_LEVEL is None:
    del os.environ["TORCH_CPP_LOG_LEVEL"]  # the training processes say what they have to say

RESUMABLE = os.EX_TEMPFAIL  # 75, exit code of a run that was stopped, saved, and can go on
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 5.0  # seconds in which a repeated SIGTERM is the same one, come by two ways


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun with these arguments (default: the command line); return the exit code."""
    # torchrun would answer SIGTERM by ending the processes; Forwarder tells them instead.
    flags = ["--signals_to_handle", "SIGINT,SIGHUP,SIGQUIT"]
    args = torchrun.parse_args([*flags, *(sys.argv[1:] if argv is None else argv)])
    try:
        _check_address(args)
        with Forwarder():
            torchrun.run(args)
    except ChildFailedError as error:
        return _exit_code(error.failures)
    except (RendezvousError, dist.DistError, OSError) as error:
        where = torchrun.get_rdzv_endpoint(args)
        problem = f"the {args.nnodes} machines do not reach each other at {where}"
        return _fail(f"{problem}: {_reason(error)}; {_advice(args)}")
    except SignalException as error:
        return 128 + error.sigval
    return 0


class Forwarder:
    """While it is entered, SIGTERM and SIGUSR1 go to the training processes.

    A second SIGTERM, later than `SAME_REQUEST`, ends them after torchrun's 30 seconds.
    """

    def __enter__(self) -> None:
        self.first_term: float | None = None
        self.before = {number: signal.signal(number, self._forward) for number in FORWARDED}

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.first_term is not None and now - self.first_term > SAME_REQUEST
        workers = _children()
        if not workers or (number == signal.SIGTERM and again):
            name = signal.Signals(number).name
            raise SignalException(f"stopped by {name}", sigval=signal.Signals(number))
        if number == signal.SIGTERM and self.first_term is None:
            self.first_term = now
        for pid in workers:
            os.kill(pid, number)


def _children() -> list[int]:
    """Return the processes this one has started (Linux)."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def _exit_code(failures: Mapping[int, ProcessFailure]) -> int:
    codes = [failure.exitcode for failure in failures.values()]
    # A process that SIGUSR1 met before it could listen has trained nothing that would be lost.
    if RESUMABLE in codes and set(codes) <= {RESUMABLE, -signal.SIGUSR1}:
        return RESUMABLE
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    ended = f"exit code {first.exitcode}" if first.exitcode > 0 else f"signal {-first.exitcode}"
    _fail(f"process {rank} ended first, with {ended}; what it said stands above")
    return first.exitcode if first.exitcode > 0 else 128 - first.exitcode


def _check_address(args: argparse.Namespace) -> None:
    """Refuse a name nobody knows at once; torchrun would try until its time is over."""
    endpoint = torchrun.get_rdzv_endpoint(args)
    if args.nnodes == "1" or args.standalone or not endpoint:
        return
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise RendezvousError(f"the address must be <host>:<port>, got '{endpoint}'")
    socket.getaddrinfo(host.strip("[]"), port)


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["not all of them came in time"]
    return lines[0].rstrip(".")


def _advice(args: argparse.Namespace) -> str:
    if args.rdzv_backend == "static":
        return (
            "start all of them, each with its own NODE_RANK, with MASTER_ADDR and MASTER_PORT of "
            "machine 0, on a port that is free there and open between them"
        )
    return "start all of them, with the same RDZV_ENDPOINT: one of them, and a port open there"


def _fail(message: str) -> int:
    sys.stderr.write(f"launch: error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
