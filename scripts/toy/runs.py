"""What the experiments of this folder share: the demo's runs with other flags, several at once.

The commands come from ``DRY_RUN=1 bash scripts/demo.sh``, so that the demo's settings stand in one
place. Every run has a folder; one that is finished is not made again, one cut off goes on, and one
whose command has changed, or that of the run it starts from, starts over.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

from hicmae.data.splits import find_speakers
from hicmae.report.scores import KINDS, read_predictions
from hicmae.training.checkpoint import numbered

ROOT = Path(__file__).resolve().parents[2]
PLACE_FLAGS = (
    "--output_dir",
    "--finetune",
    "--data_path",
)  # of a demo's command; a run names its own


class Run(NamedTuple):
    """One run of an entry script.

    Attributes:
        folder: its output folder, which ends in a name that is its own.
        script: "run_pretraining.py" or "run_finetuning.py".
        flags: in place of, or besides, those of the demo; `--data_path` must be among them.
        product: file in `folder` that a finished run has left.
    """

    folder: Path
    script: str
    flags: Sequence[str]
    product: str = "metrics_best.json"


def new_parser(doc: str | None, place: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that every experiment has.

    Args:
        doc: of the script.
        place: default output folder, below saved/toy.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    paths = {
        "--data": ("saved/data/toy_av", "the synthetic benchmark"),
        "--demo": ("saved/demo", "finished runs of scripts/demo.sh"),
        "--out": (f"saved/toy/{place}", "folder of the runs and of the table"),
    }
    for flag, (default, text) in paths.items():
        parser.add_argument(
            flag, type=Path, default=ROOT / default, metavar="DIR", help=f"{text} ({default})"
        )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument(
        "--extra", default="", metavar="FLAGS", help='more flags of every run, as in "--epochs 2"'
    )
    return parser


@cache
def demo_flags(script: str) -> list[str]:
    """Return the flags that the demo gives an entry script, without data and places."""
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts/demo.sh")],
        env={**os.environ, "DRY_RUN": "1", "FOLDS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    commands = [shlex.split(line) for line in shown.splitlines()]
    words = next(words for words in commands if len(words) > 1 and words[1] == script)[2:]
    for flag in PLACE_FLAGS:
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return words


def last_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint-<epoch>.pth of a finished run.

    Raises:
        SystemExit: there is none; says what makes it.
    """
    found = numbered(run)
    if not found:
        raise SystemExit(f"error: no checkpoint-<epoch>.pth in '{run}'; run scripts/demo.sh first")
    return found[-1][1]


def run_all(runs: Sequence[Run], jobs: int = 1, extra: str = "") -> None:
    """Make the runs that are not finished, `jobs` at a time.

    Args:
        runs: none may need what another one makes.
        jobs: the cores are shared out among them.
        extra: more flags of every run, in one string.

    Raises:
        SystemExit: a run failed; names its log.
    """
    with (
        ThreadPoolExecutor(max_workers=jobs) as pool,
        tqdm(total=len(runs), desc="runs", unit="run", dynamic_ncols=True) as bar,
    ):
        waiting = [pool.submit(_make, run, jobs, shlex.split(extra)) for run in runs]
        try:
            for done in as_completed(waiting):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(run: Run, jobs: int, extra: Sequence[str]) -> None:
    flags = [*demo_flags(run.script), *run.flags, *extra, "--output_dir", str(run.folder)]
    command = [sys.executable, str(ROOT / run.script), *flags]
    stamp, log = run.folder / "command.txt", run.folder / "console.log"
    text = shlex.join(command[1:]) + "\n" + _origin(flags)
    if stamp.exists() and stamp.read_text(encoding="utf-8") != text:
        shutil.rmtree(run.folder)
    elif (run.folder / run.product).exists():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(text, encoding="utf-8")
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    with log.open("ab") as file:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file
        ).returncode
    if code:
        raise SystemExit(f"error: {run.script} stopped with code {code}; see '{log}'")


def _origin(flags: Sequence[str]) -> str:
    """Return the command that made what a run starts from, if it was made here too."""
    if "--finetune" not in flags:
        return ""
    stamp = Path(flags[flags.index("--finetune") + 1]).parent / "command.txt"
    return stamp.read_text(encoding="utf-8") if stamp.exists() else ""


def speakers(folders: Sequence[Path], file: Path) -> dict[str, str]:
    """Look up the speaker of every tested clip; clips of one speaker are drawn together."""
    tables = [read_predictions(p) for f in folders for p in sorted(f.glob(f"*/{KINDS['last']}"))]
    clips = list(dict.fromkeys(clip for table in tables for clip in table.clips))
    return dict(zip(clips, find_speakers(clips, Path(), file=str(file)), strict=True))
