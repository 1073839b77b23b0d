"""Where a run comes from: its command, the state of the code, the machine. Markdown for a board.

Nothing here may fail or delay a run: what cannot be found out is left out.
"""

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TIMEOUT = 5.0  # seconds for git, which may have to look at many files on a slow disk
SHOWN = 20  # changed files


def provenance(device: torch.device, precision: str, processes: int) -> dict[str, str]:
    """Return the texts of a run by name."""
    return {
        "command": command(),
        "git": git_state(),
        "environment": environment(device, precision, processes),
    }


def command() -> str:
    """Return the command line, one flag a line, ready to be pasted into a shell."""
    lines = [f"cd {shlex.quote(os.getcwd())}", shlex.quote(sys.executable or "python")]
    for word in sys.argv:
        if word.startswith("--"):
            lines[-1] += " \\"
            lines.append(f"    {shlex.quote(word)}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return _code(lines)


def git_state(root: Path = ROOT) -> str:
    """Return commit, branch and changed files of the code in use."""
    if not (root / ".git").exists():  # an installed package may lie in some other repository
        return "The code is not in a git checkout."
    commit = _git(root, "log", "-1", "--format=%h of %cs: %s%n%H")
    status = _git(root, "status", "--porcelain", "--branch", "--untracked-files=normal")
    if commit is None or status is None:
        return "The state of the code is not known: git is missing, refuses or takes too long."
    (title, full), (branch, *changed) = commit.splitlines(), status.splitlines()
    tree = f"{len(changed)} changed or new" if changed else "clean: as committed"
    rows = {
        "commit": title,
        "full name": full,
        "branch": branch.removeprefix("## ").split("...")[0],
        "files": tree,
    }
    left = [f"... and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return _table("code", rows) + ("\n" + _code(changed[:SHOWN] + left) if changed else "")


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command prints; None where it prints nothing, fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode("utf-8", "backslashreplace")
    return text if done.returncode == 0 and text.strip() else None


def environment(device: torch.device, precision: str, processes: int) -> str:
    """Return machine and versions as a table."""
    rows = {
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
        "host": socket.gethostname(),
        "device": _device_name(device),
        "processes": str(processes),
        "precision": precision,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
    }
    if torch.version.cuda:
        cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
        rows["CUDA"] = torch.version.cuda + (f", cuDNN {cudnn}" if cudnn else "")
    if "SLURM_JOB_ID" in os.environ:
        rows["Slurm job"] = os.environ["SLURM_JOB_ID"]
    return _table("machine", rows)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {_cpu_name()}, {torch.get_num_threads()} thread(s)"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _code(lines: list[str]) -> str:
    """Indent, which Markdown leaves as it is, whatever the lines hold."""
    return "\n".join(f"    {part}" for line in lines for part in line.splitlines()) + "\n"


def _table(title: str, rows: Mapping[str, str]) -> str:
    cells = (f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items())
    return "\n".join((f"| {title} | |", "|---|---|", *cells)) + "\n"
