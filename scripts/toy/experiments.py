"""Experiments on the synthetic benchmark, with the settings of scripts/demo.sh.

    python scripts/toy/experiments.py modalities    audio, video, both, and one that is missing
    python scripts/toy/experiments.py labels        pre-trained or not, on few and many labels
    python scripts/toy/experiments.py ablations     the parts of HiCMAE, one left out at a time

Each starts from a finished demo, makes the runs that are not there yet, and prints a table, which
OUT/table.md holds too. --jobs 2 makes two runs at a time. How the settings were chosen stands in
scripts/toy/README.md.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from runs import ROOT, Run, demo_flags, flag_value, last_checkpoint, run_all

sys.path.insert(0, str(ROOT))  # works without installation

from hicmae import EmotionRecognizer
from hicmae.data.clip_list import read_labelled_list, write_list
from hicmae.training.evaluate import classification_metrics

# What the benchmark's design allows in percent: sound cannot tell valences apart, the picture
# cannot tell arousals apart.
MODALITIES = {"a": ("audio", 33.3), "v": ("video", 50.0), "av": ("audio and video", 100.0)}
MISSING = {  # name -> modality that is read, how the other one is filled in
    "both streams": (None, "error"),
    "no sound, zeros": ("v", "zeros"),
    "no sound, drop": ("v", "drop"),
    "no picture, zeros": ("a", "zeros"),
    "no picture, drop": ("a", "drop"),
}

LEAST_STEPS = 200  # of full fine-tuning: few labels make short epochs
PROBE_STEPS, PROBE_LR = 300, "0.4"
WARMUP_STEPS = "30"
K, KNN_FEATURES = 10, "video_last+audio_last+fusion_video+fusion_audio"

# In place of the demo's epochs, so that all variants take about 40 minutes on two cores.
PRETRAIN = ["--epochs", "5", "--image_freq", "0"]
FINETUNE = ["--epochs", "20", "--warmup_epochs", "1", "--image_freq", "0", "--no-export"]


class Variant(NamedTuple):
    """One change of the demo's settings."""

    title: str
    pretrain: str | None = ""  # flags of run_pretraining.py; None: no pre-training
    finetune: str = ""  # flags of run_finetuning.py

    @property
    def flags(self) -> str:
        """Its flags, each once."""
        if self.pretrain is None:
            return "no --finetune"
        return self.pretrain if self.pretrain == self.finetune else self.pretrain + self.finetune


VIDEO_FIRST, AUDIO_FIRST = "--fusion_order video_first", "--fusion_order audio_first"
VARIANTS = {
    "baseline": Variant("HiCMAE, with the demo's settings"),
    "baseline_again": Variant("the same, pre-trained with another seed", "--seed 1"),
    "no_pretraining": Variant("no pre-training", None),
    "no_skips": Variant("no hierarchical skip connections", "--no-skip_connections"),
    "no_contrast": Variant("no contrastive loss", "--contrastive_levels none"),
    "top_contrast": Variant("contrast of the top level only", "--contrastive_levels top"),
    "no_feature_fusion": Variant(
        "no hierarchical feature fusion", finetune="--no-hierarchical_fusion"
    ),
    "video_first": Variant("fusion: video first", VIDEO_FIRST, VIDEO_FIRST),
    "audio_first": Variant("fusion: audio first", AUDIO_FIRST, AUDIO_FIRST),
    "masks_50_50": Variant("masking ratios 0.5 and 0.5", "--mask_ratio 0.5 --mask_ratio_audio 0.5"),
    "masks_90_80": Variant(
        "masking ratios 0.9 and 0.8, the paper's", "--mask_ratio 0.9 --mask_ratio_audio 0.8"
    ),
    "weight_0.025": Variant("loss weight 0.025", "--loss_weight 0.025"),
    "weight_0.1": Variant("loss weight 0.1", "--loss_weight 0.1"),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, run in (("modalities", modalities), ("labels", labels), ("ablations", ablations)):
        command = commands.add_parser(name, help=run.__doc__.splitlines()[0])
        command.set_defaults(run=run)
        for flag, default, text in (
            ("--data", "saved/data/toy_av", "the synthetic benchmark"),
            ("--demo", "saved/demo", "finished runs of scripts/demo.sh"),
            ("--out", f"saved/toy/{name}", "folder of the runs and of the table"),
        ):
            place = {"type": Path, "default": ROOT / default, "metavar": "DIR"}
            command.add_argument(flag, **place, help=f"{text} ({default})")
        command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
        command.add_argument("--extra", default="", metavar="FLAGS", help="more flags of every run")
    ints = {"nargs": "+", "type": int, "metavar": "N"}
    labels_, ablations_ = commands.choices["labels"], commands.choices["ablations"]
    labels_.add_argument("--folds", **ints, default=[1], help="of the benchmark (1)")
    labels_.add_argument("--seeds", **ints, default=[0, 1, 2], help="of labels and runs (0 1 2)")
    labels_.add_argument(
        "--shares", nargs="+", type=float, default=[0.1, 0.3, 1.0], help="of labels (0.1 0.3 1)"
    )
    labels_.add_argument(
        "--longer", type=int, metavar="EPOCHS", help="of one more pre-training to compare (none)"
    )
    ablations_.add_argument("--folds", **ints, default=[1, 2], help="of the benchmark (1 2)")
    ablations_.add_argument("--seeds", **ints, default=[0], help="of fine-tuning (0)")
    ablations_.add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help=f"of {', '.join(VARIANTS)}"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs, print the table and write it."""
    args = make_parser().parse_args(argv)
    text = args.run(args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def modalities(args: argparse.Namespace) -> str:
    """Fine-tune on one stream, and leave one out at test time."""
    folds = sorted((args.demo / "folds").glob("fold*"))
    if not folds:
        raise SystemExit(f"error: no folds in '{args.demo / 'folds'}'; run scripts/demo.sh first")
    start = ["--finetune", str(last_checkpoint(args.demo / "pretrain"))]
    runs = [
        Run(
            args.out / modality / fold.name,
            "run_finetuning.py",
            [*start, "--data_path", str(args.data / fold.name), "--modality", modality],
        )
        for modality in ("a", "v")
        for fold in folds
    ]
    run_all(runs, args.jobs, args.extra)
    folders = {"a": args.out / "a", "v": args.out / "v", "av": args.demo / "folds"}
    reports = report(list(folders.values()), args)["runs"]
    rows = []
    for modality, found in zip(folders, reports, strict=True):
        name, ceiling = MODALITIES[modality]
        scores, (low, high) = found["total"]["last"], found["intervals"]["last"]["uar"]
        rows.append(
            {
                "streams": name,
                "can reach": f"{ceiling:.1f}",
                "UAR": f"{100 * scores['uar']:.2f}",
                "95 % interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "WAR": f"{100 * scores['war']:.2f}",
            }
        )
    return table(rows) + "\n" + table(missing(folds, args.data))


def missing(folds: Sequence[Path], data: Path) -> list[dict[str, str]]:
    """Score the models of both streams, the folds together, when one stream is missing."""
    rows = []
    for name, (modality, way) in MISSING.items():
        labels, scores = [], []
        for fold in folds:
            clips = read_labelled_list(data / fold.name / "test.csv")
            recognizer = EmotionRecognizer.from_checkpoint(
                fold / "export/last", modality=modality, missing_modality=way
            )
            pairs = [(clip.video, clip.audio) for clip in clips]
            answers = recognizer.each(pairs, protocol="test")
            scores += [list(answer.scores.values()) for answer in answers]
            labels += [clip.label for clip in clips]
        metrics = classification_metrics(np.array(labels), np.array(scores))
        true = np.array(scores)[np.arange(len(labels)), labels]
        shown = {name.upper(): f"{100 * metrics[name]:.2f}" for name in ("uar", "war")}
        nll = f"{-np.log(true.clip(1e-9)).mean():.2f}"
        rows.append({"streams at test time": name, **shown, "NLL": nll})
    return rows


def labels(args: argparse.Namespace) -> str:
    """Compare pre-trained and random starts: fine-tuning, a probe, k-NN; few and many labels.

    Scores are those of the test speakers after the last epoch. Validation after each epoch, which
    decides nothing here, is left to one clip.
    """
    starts = pretrainings(args)
    trained, runs = [], []
    for share in sorted(args.shares, reverse=True):  # the longest runs first
        for fold, seed in [(fold, seed) for fold in args.folds for seed in args.seeds]:
            lists = one_validation_clip(args.data / f"fold{fold}", args.out / f"lists/fold{fold}")
            for kind in ("full fine-tuning", "linear probe"):
                for start, checkpoint in starts.items():
                    row = {"start": start, "kind": kind, "share": share, "fold": fold, "seed": seed}
                    place = f"{start}_{kind}".replace(" ", "_")
                    folder = args.out / place / f"share{100 * share:g}/fold{fold}_seed{seed}"
                    flags = label_flags(row, lists, checkpoint, args.extra)
                    runs.append(Run(folder, "run_finetuning.py", flags))
                    trained.append({**row, "folder": folder, "lists": lists})
    run_all(runs, args.jobs, args.extra)
    rows = [{**row, "uar": 100 * metrics_of(row["folder"])["uar"]} for row in trained]
    rows += [
        {**row, "kind": f"{K}-NN", "uar": neighbours(row, starts[row["start"]])}
        for row in trained
        if row["kind"] == "linear probe"
    ]
    found = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    found.drop(columns=["folder", "lists"]).to_csv(args.out / "results.csv", index=False)
    return spreads(found)


def pretrainings(args: argparse.Namespace) -> dict[str, Path | None]:
    """Return the checkpoint of every start by its name; random weights have none."""
    demo = last_checkpoint(args.demo / "pretrain")
    starts: dict[str, Path | None] = {f"{int(demo.stem[11:]) + 1} epochs": demo}
    if args.longer:
        flags = ["--data_path", str(args.data / "pretrain.csv"), "--epochs", str(args.longer)]
        product = f"checkpoint-{args.longer - 1}.pth"
        run = Run(args.out / f"pretrain{args.longer}", "run_pretraining.py", flags, product)
        run_all([run])
        starts[f"{args.longer} epochs"] = run.folder / product
    return {**starts, "random": None}


def one_validation_clip(fold: Path, folder: Path) -> Path:
    """Write the lists of a fold with a single validation clip."""
    for name in ("train", "val", "test"):
        clips = list(read_labelled_list(fold / f"{name}.csv"))
        write_list(folder / f"{name}.csv", clips[:1] if name == "val" else clips)
    (folder / "classes.txt").write_bytes((fold.parent / "classes.txt").read_bytes())
    return folder


def label_flags(
    row: dict[str, Any], lists: Path, checkpoint: Path | None, extra: str = ""
) -> list[str]:
    """Return the flags of one run; its length is ours unless `extra` gives one."""
    flags = ["--data_path", str(lists), "--seed", str(row["seed"])]
    flags += ["--label_share", f"{row['share']:g}", "--no-export", "--image_freq", "0"]
    flags += ["--save_ckpt_freq", "100000", "--keep_ckpts", "1"]
    probe = row["kind"] == "linear probe"
    demo = demo_flags("run_finetuning.py")
    clips = round(len(read_labelled_list(lists / "train.csv")) * row["share"])
    steps = clips // int(flag_value(demo, "--batch_size"))
    if not steps:
        raise SystemExit(f"error: --shares {row['share']:g} leaves {clips} clips, fewer than one "
                         "batch; give a larger share")  # fmt: skip
    if "--epochs" not in extra.split():
        least = math.ceil((PROBE_STEPS if probe else LEAST_STEPS) / steps)
        epochs = least if probe else max(least, int(flag_value(demo, "--epochs")))
        flags += ["--epochs", str(epochs), "--warmup_steps", WARMUP_STEPS]
    flags += ["--finetune", str(checkpoint)] if checkpoint else []
    return flags + (["--linear_probe", "--lr", PROBE_LR] if probe else [])


def neighbours(row: dict[str, Any], checkpoint: Path | None) -> float:
    """Return the UAR of k-NN in percent; random weights are those that the probe has kept."""
    out = row["folder"] / "knn"
    model = checkpoint or last_checkpoint(row["folder"])
    places = ["--checkpoint", model, "--data_path", row["lists"], "--output_dir", out]
    draws = ["--features", KNN_FEATURES, "--k", K, "--label_share", row["share"], "--seed"]
    run_module("hicmae.knn", *places, *draws, row["seed"])
    return 100 * metrics_of(next(out.glob(f"*/k{K}/*")))["uar"]


def spreads(found: pd.DataFrame) -> str:
    """Lay out mean and standard deviation over folds and seeds, a column for each share."""
    groups = found.groupby(["kind", "start", "share"], sort=False)["uar"]
    shown = groups.agg(lambda uar: f"{uar.mean():.1f}" + f" ± {uar.std():.1f}" * (len(uar) > 1))
    wide = shown.unstack("share", sort=False)
    wide = wide[sorted(wide.columns)].rename(columns=lambda share: f"{100 * share:g} % of labels")
    wide.index = [f"{start}, {kind}" for kind, start in wide.index]
    return wide.to_markdown(stralign="right") + "\n"


def ablations(args: argparse.Namespace) -> str:
    """Pre-train and fine-tune variants that each change one thing.

    "baseline_again" is pre-trained with another seed: differences as small as its own are noise.
    """
    chosen = [name for name in VARIANTS if name == "baseline" or name in (args.only or VARIANTS)]
    data = ["--data_path", str(args.data / "pretrain.csv")]
    epochs = int(flag_value([*PRETRAIN, *args.extra.split()], "--epochs"))
    pretrained = {name: args.out / "pretrain" / pretraining_of(name) for name in chosen}
    product = f"checkpoint-{epochs - 1}.pth"
    flags = {pretrained[name]: (VARIANTS[name].pretrain or "").split() for name in reversed(chosen)
             if VARIANTS[name].pretrain is not None}  # fmt: skip
    runs = [
        Run(folder, "run_pretraining.py", [*PRETRAIN, *data, *more], product)
        for folder, more in flags.items()
    ]
    run_all(runs, args.jobs, args.extra)
    runs = []
    for name in chosen:
        start = ["--finetune", str(pretrained[name] / product)]
        start = [] if VARIANTS[name].pretrain is None else start
        for fold, seed in [(fold, seed) for fold in args.folds for seed in args.seeds]:
            folder = args.out / "finetune" / name / f"seed{seed}" / f"fold{fold}"
            lists = ["--data_path", str(args.data / f"fold{fold}"), "--seed", str(seed)]
            more = [*FINETUNE, *VARIANTS[name].finetune.split(), *start, *lists]
            runs.append(Run(folder, "run_finetuning.py", more))
    run_all(runs, args.jobs, args.extra)
    return table([ablation_row(name, pretrained[name], args) for name in chosen])


def pretraining_of(name: str) -> str:
    """Name the pre-training of a variant: its own, or the baseline's where it changes nothing."""
    return name if VARIANTS[name].pretrain else "baseline"


def ablation_row(name: str, pretrained: Path, args: argparse.Namespace) -> dict[str, str]:
    """Gather losses, scores and the paired difference to the baseline, means over seeds."""
    losses: dict[str, float] = {}
    if VARIANTS[name].pretrain is not None:
        losses = json.loads((pretrained / "log.txt").read_text().splitlines()[-1])
    accuracies = [value for key, value in losses.items() if "contrastive_acc" in key]
    scores, halves, differences, paired = [], [], [], []
    for seed in args.seeds:
        folder, baseline = (args.out / "finetune" / v / f"seed{seed}" for v in (name, "baseline"))
        both = report([baseline, folder], args) if name != "baseline" else None
        found = both["runs"][1] if both else report([folder], args)
        scores += [fold["last"]["uar"] for fold in found["folds"]]
        low, high = found["intervals"]["last"]["uar"]
        halves.append((high - low) / 2)
        for comparison in both["comparisons"] if both else ():
            for d in comparison["differences"]:
                if comparison["kind"] == "last" and d["metric"] == "uar":
                    differences.append(d["value"] - d["baseline"])
                    paired.append((d["high"] - d["low"]) / 2)
    spread = f" ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    named = {"loss video": "loss_video", "audio": "loss_audio", "contrast": "loss_contrastive"}
    return {
        "variant": VARIANTS[name].title,
        "flags": VARIANTS[name].flags or "-",
        **{k: f"{losses[f'train_{v}']:.4f}" if f"train_{v}" in losses else "-"
           for k, v in named.items()},
        "top accuracy": f"{100 * accuracies[-1]:.1f}" if accuracies else "-",
        "UAR": f"{100 * np.mean(scores):.1f}{spread}",
        "95 %": f"{100 * np.mean(halves):.1f}",
        "difference": f"{100 * np.mean(differences):+.1f}" if differences else "-",
        "its 95 %": f"{100 * np.mean(paired):.1f}" if paired else "-",
    }  # fmt: skip


def metrics_of(run: Path) -> dict[str, Any]:
    """Return the scores after the last epoch."""
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def report(folders: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Score experiments by hicmae.report, with intervals by speakers; compared with the first."""
    file = args.out / "report.json"
    titles = [str(number) for number in range(len(folders))]
    meta = ["--speaker_file", args.data / "meta.csv"]
    run_module("hicmae.report", *folders, "--titles", *titles, *meta, "--json", file)
    return json.loads(file.read_text(encoding="utf-8"))


def run_module(name: str, *arguments: object) -> None:
    """Run a module of the package; exit with what it says where it fails."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"error: {name} failed")


def table(rows: list[dict[str, str]]) -> str:
    """Lay out rows in Markdown as they are, no string read as a number."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n"


if __name__ == "__main__":
    main()
