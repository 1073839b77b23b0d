"""The demo's runs with other flags, several at a time; what is finished is not made again.

The settings come from ``DRY_RUN=1 bash scripts/demo.sh``, so that they stand in one place. A run
that was cut off goes on. One whose command has changed, or that of the run it starts from, starts
over.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("--output_dir", "--finetune", "--data_path")  # of the demo; a run names its own


class Run(NamedTuple):
    """One run of an entry script."""

    folder: Path  # output folder
    script: str  # run_pretraining.py or run_finetuning.py
    flags: Sequence[str]  # on top of the demo's; holds --data_path
    product: str = "metrics_best.json"  # what a finished run has left


@cache
def demo_flags(script: str) -> list[str]:
    """Return the flags that the demo gives an entry script, without its places."""
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts/demo.sh")],
        env={**os.environ, "DRY_RUN": "1", "FOLDS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    commands = [shlex.split(line) for line in shown.splitlines()]
    words = next(words for words in commands if len(words) > 1 and words[1] == script)[2:]
    for flag in PLACES:
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return words


def flag_value(flags: Sequence[str], name: str) -> str:
    """Return the value that counts: the last one."""
    return flags[len(flags) - 1 - list(reversed(flags)).index(name) + 1]


def last_checkpoint(run: Path) -> Path:
    """Return the checkpoint of the highest epoch; exit where there is none."""
    found = {int(p.stem[11:]): p for p in run.glob("checkpoint-*.pth") if p.stem[11:].isdigit()}
    if not found:
        raise SystemExit(f"error: no checkpoint-<epoch>.pth in '{run}'; run scripts/demo.sh first")
    return found[max(found)]


def run_all(runs: Sequence[Run], jobs: int = 1, extra: str = "") -> None:
    """Make the runs that are not finished; `jobs` at a time share the cores.

    Raises:
        SystemExit: a run failed; names its log.
    """
    with ThreadPoolExecutor(jobs) as pool:
        made = pool.map(lambda run: _make(run, jobs, shlex.split(extra)), runs)
        list(tqdm(made, total=len(runs), desc="runs", unit="run", dynamic_ncols=True))


def _make(run: Run, jobs: int, extra: Sequence[str]) -> None:
    flags = [*demo_flags(run.script), *run.flags, *extra, "--output_dir", str(run.folder)]
    command = shlex.join([run.script, *flags]) + "\n"
    if "--finetune" in flags:  # starts over with the run it starts from
        origin = Path(flag_value(flags, "--finetune")).parent / "command.txt"
        command += origin.read_text(encoding="utf-8") if origin.exists() else ""
    stamp, log = run.folder / "command.txt", run.folder / "console.log"
    if stamp.exists() and stamp.read_text(encoding="utf-8") != command:
        shutil.rmtree(run.folder)
    elif (run.folder / run.product).exists():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(command, encoding="utf-8")
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    with log.open("ab") as file:
        code = subprocess.call(
            [sys.executable, str(ROOT / run.script), *flags],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
        )
    if code:
        raise SystemExit(f"error: {run.script} stopped with code {code}; see '{log}'")
