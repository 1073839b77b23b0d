"""HiCMAE from nothing to scores, on the synthetic talking-face benchmark (preprocess/toy_av.py).

Started by scripts/demo.sh. Reads nothing. Writes saved/data/toy_av/ and saved/demo/. Variables:
FOLDS ("1 2") of the two speaker-independent folds, DEVICE (auto), DRY_RUN=1 prints the commands.
A step whose command has changed starts over, with everything that depends on it.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
DATA, DEMO = ROOT / "saved/data/toy_av", ROOT / "saved/demo"
DRY_RUN = os.environ.get("DRY_RUN") == "1"

SEED, PRETRAIN_EPOCHS, FINETUNE_EPOCHS = "0", 15, 40
SHIPPED = "toy_pretrained"  # comes with the package, see scripts/toy/README.md
TITLES = {
    "random": "random weights",
    "own": f"its own pre-training, {PRETRAIN_EPOCHS} epochs",
    "shipped": "the shipped pre-training",
}
# What the benchmark's design allows: no sound tells valences apart, no picture arousals.
CEILINGS = {"chance": 16.67, "video only, at most": 50.0, "audio only, at most": 33.33}
# Half of the cores load clips, beside the arithmetic; at this width fp32 is the faster one.
WORKERS = min(((os.cpu_count() or 1) + 1) // 2, 8)
BOTH = f"""
    --device {os.environ.get("DEVICE", "auto")} --seed {SEED}
    --precision fp32 --num_workers {WORKERS} --image_freq 5
    --num_frames 4 --sampling_rate 8 --input_size 64 --input_size_audio 128 128
"""
PRETRAIN = f"""{BOTH}
    --model pretrain_hicmae_dim128_patch16_160_a256
    --encoder_depth 2 --encoder_depth_audio 2 --encoder_fusion_depth 1
    --decoder_depth 3 --decoder_depth_audio 3 --return_intermediate_features 0 1
    --batch_size 64 --epochs {PRETRAIN_EPOCHS} --warmup_epochs 3 --lr 0.004 --min_lr 1e-5
    --mask_ratio 0.75 --mask_ratio_audio 0.75 --contrast_mask_ratio 0 --clip_grad 5
    --use_frame_diff_as_target --no-normalize_target_audio --loss_weight 0.1
"""
FINETUNE = f"""{BOTH}
    --model avit_dim128_patch16_160_a256 --nb_classes 6
    --depth 2 --depth_audio 2 --fusion_depth 1
    --batch_size 32 --epochs {FINETUNE_EPOCHS} --warmup_epochs 2 --lr 0.016 --min_lr 1e-4
    --layer_decay 1 --drop_path 0 --aa none --reprob 0 --crop_scale 1 1
    --mixup 0 --cutmix 0 --smoothing 0.1 --roll_mag_aug --clip_grad 1 --val_metric uar
"""
FLAGS = {"run_pretraining.py": PRETRAIN.split(), "run_finetuning.py": FINETUNE.split()}


class Run(NamedTuple):
    """One run of a script."""

    folder: Path  # output folder
    script: str
    flags: Sequence[str]
    product: str = "metrics_best.json"  # what a finished run has left


def flag_value(flags: Sequence[str], name: str) -> str:
    """Return the value that counts: the last one."""
    return flags[len(flags) - [*reversed(flags)].index(name)]


def call(words: Sequence[object], log: Path | None = None) -> None:
    """Run Python with these arguments, which `log` hears; exit with its code where it fails."""
    command = [sys.executable, *map(str, words)]
    if DRY_RUN:
        print(shlex.join(command))
        return
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
    with log.open("ab") if log else nullcontext() as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        trains = log and "--epochs" in words
        code = show_epochs(process, log.parent) if trains else process.wait()
    if code:
        where = f"; see '{log}'" if log else ""
        sys.stderr.write(f"error: {words[0]} stopped with code {code}{where}\n")
        sys.exit(code)


def show_epochs(process: subprocess.Popen, folder: Path) -> int:
    """Show a bar of the epochs in log.txt until a run ends, then a line; return its code."""
    lines, log, code = list[str](), folder / "log.txt", None
    title = "/".join(folder.parts[-2:])
    total = int(flag_value(process.args, "--epochs"))
    pause = 0.1 if sys.stderr.isatty() else 60  # seconds between lines of a file
    look = {"unit": "epoch", "mininterval": pause, "dynamic_ncols": True}
    with tqdm(desc=title, total=total, leave=False, **look) as bar:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(0.5)
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            bar.update(len(lines) - bar.n)
    figures = json.loads(lines[-1]) if lines else {}
    shown = [f"{name} {figures[name]:.4f}" for name in ("train_loss", "val_uar") if name in figures]
    took = timedelta(seconds=round(bar.format_dict["elapsed"]))
    tqdm.write("  ".join([f"   {title}: {len(lines)} epochs, {took}", *shown]), file=sys.stderr)
    return code


def make(run: Run) -> bool:
    """Make a run that is not finished; one cut off goes on, one of another command starts over.

    command.txt keeps its command and those of what it starts from. console.log gets what a training
    says. Returns whether there was something to do.
    """
    words = [run.script, *run.flags, "--output_dir", str(run.folder)]
    if DRY_RUN:
        call(words)
        return True
    text, stamp = shlex.join(words) + "\n", run.folder / "command.txt"
    for flag in ("--data_path", "--finetune"):
        if flag in run.flags:
            origin = Path(flag_value(run.flags, flag)).parent / "command.txt"
            text += origin.read_text(encoding="utf-8") if origin.exists() else ""
    state = "starting"
    if stamp.exists() and stamp.read_text(encoding="utf-8") != text:
        state = "the settings have changed, starting over"
        shutil.rmtree(run.folder)
    elif stamp.exists():
        state = "finished before" if (run.folder / run.product).exists() else "going on"
    tqdm.write(f"== {'/'.join(run.folder.parts[-2:])}: {state}", file=sys.stderr)
    if state == "finished before":
        return False
    run.folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(text, encoding="utf-8")
    call(words, run.folder / "console.log" if "--epochs" in run.flags else None)
    return True


def main() -> None:
    """Make data and runs, draw the pictures, ask a model about a clip, print the table."""
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    new = make(Run(DATA, "preprocess/toy_av.py", ["--seed", SEED], "meta.csv"))
    own, script = DEMO / f"pretrain/checkpoint-{PRETRAIN_EPOCHS - 1}.pth", "run_pretraining.py"
    flags = ["--data_path", str(DATA / "packed"), *FLAGS[script]]
    new |= make(Run(own.parent, script, flags, own.name))
    script = "run_finetuning.py"
    starts = {"random": [], "own": ["--finetune", str(own)], "shipped": ["--finetune", SHIPPED]}
    folds = os.environ.get("FOLDS", "1 2").split()
    for fold, (name, start) in itertools.product(folds, starts.items()):
        flags = ["--data_path", str(DATA / f"fold{fold}"), *start, *FLAGS[script]]
        new |= make(Run(DEMO / name / f"fold{fold}", script, flags))
    shown = [DEMO / f"shipped/fold{fold}" for fold in folds]
    pictures: list[list[object]] = [
        ["reconstruction", "--checkpoint", SHIPPED, "--data_path", DATA / "pretrain.csv"],
        ["curves", *shown],
        ["confusion", *shown, "--classes", DATA / "classes.txt"],
    ]
    for words in pictures:
        path = DEMO / f"{words[0]}.png"
        if new or not path.exists():
            call(["-m", "hicmae.visualize", *words, "--output", path])
    # A film of a test speaker of fold 1; the face is found in it.
    answer = ["--plot", DEMO / "timeline.png", "--overlay", DEMO / "film.mp4"]
    film = [DATA / "labelled/s000/s000_c005.mp4", "--checkpoint", shown[0]]
    call(["-m", "hicmae.inference", "predict", *film, *answer])
    report = ["-m", "hicmae.report", *(DEMO / name for name in starts), "--titles", *starts]
    report += ["--speaker_file", DATA / "meta.csv", "--html", DEMO / "report.html"]
    call([*report, "--json", DEMO / "report.json"], DEMO / "report.log")
    if not DRY_RUN:
        print(table(json.loads((DEMO / "report.json").read_text(encoding="utf-8"))["runs"]))
        print(f"pictures and report.html are in '{DEMO}'", file=sys.stderr)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Lay out the UAR of each start after the last epoch, and what could be reached."""
    lines = [f"{'start':<34}  {'UAR (%)':>8}  95 % interval by speakers"]
    for run in runs:
        uar = 100 * run["total"]["last"]["uar"]
        low, high = (100 * bound for bound in run["intervals"]["last"]["uar"])
        lines.append(f"{TITLES[run['title']]:<34}  {uar:8.2f}  {low:.2f} to {high:.2f}")
    lines += [f"{name:<34}  {most:8.2f}" for name, most in CEILINGS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: '{error.filename}': {error.strerror}")
