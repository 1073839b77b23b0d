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
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

RESUMABLE = os.EX_TEMPFAIL  # 75, exit code of a run that was stopped, saved, and can go on
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 5.0  # seconds in which a repeated SIGTERM is the same one, come by two ways
ROOT = Path(__file__).resolve().parents[1]
ADVICE = {  # by how machines meet
    "c10d": "with the same RDZV_ENDPOINT: one of them, and a port open there",
    "static": "each with its own NODE_RANK, with MASTER_ADDR and MASTER_PORT of machine 0, a port "
    "that is free there and open between them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script of these arguments (default: the command line); return the exit code."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("script", help="run_pretraining.py or run_finetuning.py")
    parser.add_argument("flags", nargs="...", help="of the script; before it those of torchrun")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        parser.parse_args(words)
    if words and not words[0].startswith("-"):
        try:
            words = [*flags_of(os.environ), *words]
        except ValueError as error:
            return _fail(str(error), 2)
    single = words[:1] != [] and not words[0].startswith("-")
    if os.environ.get("DRY_RUN") == "1":
        print(shlex.join([sys.executable, *([] if single else [__file__]), *words]))
        return 0
    if missing := [name for name in ("torch", "timm") if find_spec(name) is None]:
        install = f"{sys.executable} -m pip install -r {ROOT}/requirements.txt"
        return _fail(f"'{sys.executable}' lacks {', '.join(missing)}; run '{install}'", 2)
    if single:
        os.execv(sys.executable, [sys.executable, *words])
    return torchrun(words)


def flags_of(env: Mapping[str, str]) -> list[str]:
    """Return the flags of torchrun that the variables mean; none for a single process.

    Raises:
        ValueError: a variable is wrong, or the machines could not meet.
    """
    env = {name: text for name, text in env.items() if text}
    if "SLURM_STEP_ID" in env and "NNODES" not in env:
        env |= _slurm(env)
    gpus = "1" if env.get("DEVICE") == "cpu" else env.get("GPUS", env.get("NPROC", "gpu"))
    nodes, wait = env.get("NNODES", "1"), env.get("JOIN_TIMEOUT", "600")
    for name, text in {"GPUS": gpus, "NNODES": nodes, "JOIN_TIMEOUT": wait}.items():
        if text != "gpu" and (not text.isdecimal() or int(text) < 1):
            raise ValueError(f"{name} must be a whole number above 0, got '{text}'")
    if nodes == "1":
        return [] if gpus == "1" else ["--standalone", "--nproc_per_node", gpus]
    flags = ["--nnodes", nodes, "--nproc_per_node", gpus]
    if "RDZV_ENDPOINT" in env:
        flags += ["--rdzv_backend", "c10d", "--rdzv_endpoint", env["RDZV_ENDPOINT"]]
        flags += ["--rdzv_id", env.get("RDZV_ID", "hicmae")]
        return [*flags, "--rdzv_conf", f"join_timeout={wait},read_timeout={wait}"]
    if "MASTER_ADDR" not in env:
        raise ValueError(
            f"NNODES={nodes}, but the machines have no place to meet; set MASTER_ADDR to the name "
            "or IP of machine 0 on all of them"
        )
    rank = env.get("NODE_RANK", "")
    if not rank.isdecimal() or int(rank) >= int(nodes):
        span = f"from 0 to {int(nodes) - 1}"
        raise ValueError(f"NODE_RANK must be the number of this machine {span}, got '{rank}'")
    flags += ["--node_rank", rank, "--master_addr", env["MASTER_ADDR"]]
    flags += ["--master_port", env.get("MASTER_PORT", "29500")]
    return [*flags, "--rdzv_conf", f"timeout={wait}"]


def _slurm(env: Mapping[str, str]) -> dict[str, str]:
    """Return what SLURM knows of the machines of this step, as variables."""
    nodes, tasks = (env.get(f"SLURM_STEP_NUM_{name}", "1") for name in ("NODES", "TASKS"))
    if tasks != nodes:
        raise ValueError(
            f"SLURM started {tasks} tasks on {nodes} machine(s); use --ntasks-per-node=1, each "
            "starts a process for every GPU"
        )
    if nodes == "1":
        return {}
    names = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
    hosts = subprocess.run(names, check=True, capture_output=True, text=True).stdout.split()
    port = str(20000 + int(env["SLURM_JOB_ID"]) % 10000)  # jobs on one machine get different ones
    meet = {
        "MASTER_ADDR": env.get("MASTER_ADDR", hosts[0]),
        "MASTER_PORT": env.get("MASTER_PORT", port),
    }
    return {"NNODES": nodes, "NODE_RANK": env["SLURM_NODEID"], **meet}


def torchrun(words: Sequence[str]) -> int:
    """Run torchrun with these arguments; return the exit code."""
    # torch reads this once, as it is loaded: its stack traces would bury the one line of an error.
    quiet = "TORCH_CPP_LOG_LEVEL" not in os.environ
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    if quiet:
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # the processes say what they have to say
    # torchrun would answer SIGTERM by ending the processes; here they are told.
    parser = run.get_args_parser()
    args = parser.parse_args(["--signals_to_handle", "SIGINT,SIGHUP,SIGQUIT", *words])
    if args.nproc_per_node == "gpu":  # without a GPU, one process says so
        args.nproc_per_node = str(max(torch.cuda.device_count(), 1))
        if args.standalone and args.nproc_per_node == "1":
            program = [sys.executable, args.training_script, *args.training_script_args]
            os.execv(sys.executable, program)
    if args.nproc_per_node != "1":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    endpoint = run.get_rdzv_endpoint(args)
    try:
        if args.nnodes != "1" and not args.standalone and endpoint:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isdigit():
                raise OSError(f"the address must be <host>:<port>, got '{endpoint}'")
            # torchrun would look for a name that nobody knows until its time is over.
            socket.getaddrinfo(host.strip("[]"), port)
        with forwarded_signals():
            run.run(args)
    except ChildFailedError as error:
        codes = {f.exitcode for f in error.failures.values()}
        # A process that SIGUSR1 met before it could listen has trained nothing that would be lost.
        if RESUMABLE in codes and codes <= {RESUMABLE, -signal.SIGUSR1}:
            return RESUMABLE
        rank, first = min(error.failures.items(), key=lambda item: item[1].timestamp)
        code = first.exitcode
        ended = f"exit code {code}" if code > 0 else f"signal {-code}"
        text = f"process {rank} ended first, with {ended}; what it said stands above"
        return _fail(text, code if code > 0 else 128 - code)
    except (RendezvousError, DistError, OSError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or ["not all of them came in time"])[0]
        where = f"the {args.nnodes} machines do not reach each other at {endpoint}"
        advice = f"start all of them, {ADVICE[args.rdzv_backend]}"
        return _fail(f"{where}: {reason.rstrip('.')}; {advice}")
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextmanager
def forwarded_signals() -> Iterator[None]:
    """Pass SIGTERM and SIGUSR1 on to the training processes.

    A second SIGTERM, later than `SAME_REQUEST`, ends them after torchrun's 30 seconds.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    terms: list[float] = []  # when SIGTERM came

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            terms.append(time.monotonic())
        lists = Path("/proc/self/task").glob("*/children")  # Linux
        workers = [int(pid) for path in lists for pid in path.read_text().split()]
        again = number == signal.SIGTERM and terms[-1] - terms[0] > SAME_REQUEST
        if again or not workers:
            name = signal.Signals(number).name
            raise SignalException(f"stopped by {name}", sigval=signal.Signals(number))
        for pid in workers:
            os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, code: int = 1) -> int:
    sys.stderr.write(f"launch: error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
