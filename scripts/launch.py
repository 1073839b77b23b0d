"""Start a run: one process for each GPU, on this machine and others.

    python scripts/launch.py run_pretraining.py FLAG...
    python scripts/launch.py --nproc_per_node 4 run_pretraining.py FLAG...

Without flags of torchrun before the script, variables say where (scripts/README.md), or SLURM's own
under srun. On top of torchrun, machines that do not find each other end in one line; SIGTERM and
SIGUSR1 reach the training processes, which get the time they need to save; and the exit code is
theirs, which tells a stopped run, which goes on, from a failed one. DRY_RUN=1 prints the command.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

RESUMABLE = os.EX_TEMPFAIL  # 75, exit code of a run that was stopped, saved, and can go on


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script of these arguments (default: the command line); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0 if words else 2
    if not words[0].startswith("-"):
        try:
            words = [*flags_of(os.environ), *words]
        except ValueError as error:
            return _fail(str(error), 2)
    alone = not words[0].startswith("-")  # one process, which needs no torchrun
    if os.environ.get("DRY_RUN") == "1":
        print(shlex.join([sys.executable, *([] if alone else [__file__]), *words]))
        return 0
    if alone:
        os.execv(sys.executable, [sys.executable, *words])
    return torchrun(words)


def flags_of(env: Mapping[str, str]) -> list[str]:
    """Return the flags of torchrun that the variables mean; none for a single process.

    ValueError: a variable is wrong, or the machines could not meet.
    """
    env = {name: text for name, text in env.items() if text}
    if "SLURM_STEP_ID" in env and "NNODES" not in env:
        env = _slurm(env)
    gpus = "1" if env.get("DEVICE") == "cpu" else env.get("GPUS", env.get("NPROC", "gpu"))
    nodes, wait = env.get("NNODES", "1"), env.get("JOIN_TIMEOUT", "600")
    for name, text in {"GPUS": gpus, "NNODES": nodes, "JOIN_TIMEOUT": wait}.items():
        if text != "gpu" and (not text.isdecimal() or int(text) < 1):
            raise ValueError(f"{name} must be a whole number above 0, got '{text}'")
    if nodes == "1":
        return [] if gpus == "1" else ["--standalone", "--nproc_per_node", gpus]
    if "MASTER_ADDR" not in env:
        remedy = "set MASTER_ADDR to the name or IP of machine 0 on all of them"
        raise ValueError(f"NNODES={nodes}, but the machines have no place to meet; {remedy}")
    rank, port = env.get("NODE_RANK", ""), env.get("MASTER_PORT", "29500")
    if not rank.isdecimal() or int(rank) >= int(nodes):
        span = f"from 0 to {int(nodes) - 1}"
        raise ValueError(f"NODE_RANK must be the number of this machine {span}, got '{rank}'")
    place = ["--node_rank", rank, "--master_addr", env["MASTER_ADDR"], "--master_port", port]
    return ["--nnodes", nodes, "--nproc_per_node", gpus, *place, "--rdzv_conf", f"timeout={wait}"]


def _slurm(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with what SLURM knows of the machines of this step."""
    nodes, tasks = (env.get(f"SLURM_STEP_NUM_{name}", "1") for name in ("NODES", "TASKS"))
    if tasks != nodes:
        remedy = "use --ntasks-per-node=1, each starts a process for every GPU"
        raise ValueError(f"SLURM started {tasks} tasks on {nodes} machine(s); {remedy}")
    if nodes == "1":
        return dict(env)
    names = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
    hosts = subprocess.run(names, check=True, capture_output=True, text=True).stdout.split()
    port = str(20000 + int(env["SLURM_JOB_ID"]) % 10000)  # jobs on one machine get different ones
    known = {"MASTER_ADDR": hosts[0], "MASTER_PORT": port}
    return known | env | {"NNODES": nodes, "NODE_RANK": env["SLURM_NODEID"]}


def torchrun(words: Sequence[str]) -> int:
    """Run torchrun with these arguments; return the exit code."""
    # torch reads this once, as it is loaded: its stack traces would bury the one line of an error.
    quiet = "TORCH_CPP_LOG_LEVEL" not in os.environ
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing import SignalException, api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    if quiet:
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # the processes say what they have to say
    # torchrun would answer SIGTERM by ending the processes; here they are told. Its own flag for
    # that, --signals_to_handle, came after torch 2.8.
    api._terminate_process_handler = forward
    args = run.get_args_parser().parse_args(words)
    if args.nproc_per_node == "gpu":  # without a GPU, one process says so
        args.nproc_per_node = str(max(torch.cuda.device_count(), 1))
        if args.standalone and args.nproc_per_node == "1":
            words = [args.training_script, *args.training_script_args]
            os.execv(sys.executable, [sys.executable, *words])
    if args.nproc_per_node != "1":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if args.nnodes != "1":  # torchrun would look for an unknown name until its time is over
            socket.getaddrinfo(args.master_addr, None)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, forward)
        run.run(args)
    except ChildFailedError as error:
        codes = {f.exitcode for f in error.failures.values()}
        # A process that SIGUSR1 met before it could listen has trained nothing that would be lost.
        if RESUMABLE in codes and codes <= {RESUMABLE, -signal.SIGUSR1}:
            return RESUMABLE
        rank, first = error.get_first_failure()
        code = first.exitcode
        ended = f"exit code {code}" if code > 0 else f"signal {-code}"
        text = f"process {rank} ended first, with {ended}; what it said is above"
        return _fail(text, code if code > 0 else 128 - code)
    except (RendezvousError, DistError, OSError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or ["not all of them came in time"])[0]
        endpoint = run.get_rdzv_endpoint(args)
        where = f"the {args.nnodes} machines do not reach each other at {endpoint}"
        return _fail(
            f"{where}: {reason.rstrip('.')}; start all of them, each with its own NODE_RANK, with "
            "MASTER_ADDR and MASTER_PORT of machine 0, a port that is free there and open to them"
        )
    except SignalException as error:
        return 128 + error.sigval
    return 0


def forward(number: int, frame: FrameType | None) -> None:
    """Pass SIGTERM and SIGUSR1 on to the training processes; any other signal ends the launch."""
    from torch.distributed.elastic.multiprocessing import SignalException

    lists = Path("/proc/self/task").glob("*/children")  # Linux
    workers = [int(pid) for path in lists for pid in path.read_text().split()]
    if not workers or number not in (signal.SIGTERM, signal.SIGUSR1):
        raise SignalException(f"stopped by signal {number}", sigval=signal.Signals(number))
    for pid in workers:
        os.kill(pid, number)


def _fail(message: str, code: int = 1) -> int:
    sys.stderr.write(f"launch: error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
