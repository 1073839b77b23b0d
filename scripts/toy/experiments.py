"""Experiments on the synthetic benchmark, with the settings of scripts/demo.py.

    python scripts/toy/experiments.py modalities    audio, video, both, and one that is missing
    python scripts/toy/experiments.py labels        pre-trained or not, on few and many labels
    python scripts/toy/experiments.py ablations     the parts of HiCMAE, one left out at a time

Each starts from a finished demo, makes the runs that are not there yet, and prints a table, which
table.md holds too. A run that was cut off goes on; one whose command has changed, or that of the
run it starts from, starts over. How the settings were chosen stands in scripts/toy/README.md.
"""

import argparse
import itertools
import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

from hicmae import EmotionRecognizer
from hicmae.config.flags import new_parser
from hicmae.data.clip_list import read_labelled_list, write_list
from hicmae.io import describe, write_whole
from hicmae.training.checkpoint import numbered
from hicmae.training.evaluate import classification_metrics
from scripts import demo
from scripts.demo import Run, flag_value

ROOT = Path(__file__).resolve().parents[2]
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

FULL, PROBE = "full fine-tuning", "linear probe"
LEAST_STEPS = {FULL: 200, PROBE: 300}  # few labels make short epochs
PROBE_FLAGS = ["--linear_probe", "--lr", "0.4"]
K, KNN_FEATURES = 10, "video_last+audio_last+fusion_video+fusion_audio"

# In place of the demo's epochs, so that all variants take about 40 minutes on two cores.
PRETRAIN = ["--epochs", "5", "--image_freq", "0"]
FINETUNE = ["--epochs", "20", "--warmup_epochs", "1", "--image_freq", "0", "--no-export"]
NO_PRETRAINING = "no --finetune"
# name -> title, changed flags of run_pretraining.py, and of run_finetuning.py
VARIANTS = {
    "baseline": ("HiCMAE, with the demo's settings", "", ""),
    "baseline_again": ("the same, pre-trained with another seed", "--seed 1", ""),
    "no_pretraining": ("no pre-training", NO_PRETRAINING, ""),
    "no_skips": ("no hierarchical skip connections", "--no-skip_connections", ""),
    "no_contrast": ("no contrastive loss", "--contrastive_levels none", ""),
    "top_contrast": ("contrast of the top level only", "--contrastive_levels top", ""),
    "no_feature_fusion": ("no hierarchical feature fusion", "", "--no-hierarchical_fusion"),
    "video_first": ("fusion: video first", *2 * ["--fusion_order video_first"]),
    "audio_first": ("fusion: audio first", *2 * ["--fusion_order audio_first"]),
    "masks_50_50": ("masking ratios 0.5 and 0.5", "--mask_ratio 0.5 --mask_ratio_audio 0.5", ""),
    "masks_90_80": ("masking ratios 0.9 and 0.8, the paper's",
                    "--mask_ratio 0.9 --mask_ratio_audio 0.8", ""),
    "weight_0.025": ("loss weight 0.025", "--loss_weight 0.025", ""),
    "weight_0.1": ("loss weight 0.1", "--loss_weight 0.1", ""),
}  # fmt: skip


# Runs


def last_checkpoint(run: Path) -> Path:
    """Return the checkpoint of the highest epoch; exit where there is none."""
    if not (found := numbered(run)):
        raise SystemExit(f"error: no checkpoint-<epoch>.pth in '{run}'; run scripts/demo.sh first")
    return found[-1][1]


def run_all(runs: Sequence[Run], extra: str = "") -> None:
    """Make the runs that are not finished, with the demo's flags before their own."""
    for run in tqdm(runs, desc="runs", unit="run", dynamic_ncols=True):
        flags = [*demo.FLAGS[run.script], *run.flags, *shlex.split(extra)]
        demo.make(run._replace(flags=flags), quiet=True)


def report(folders: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Score experiments by hicmae.report, with intervals by speakers; compared with the first."""
    file, titles = args.output_dir / "report.json", range(len(folders))
    meta = ["--speaker_file", args.data / "meta.csv"]
    words = ["-m", "hicmae.report", *folders, "--titles", *titles, *meta, "--json", file]
    demo.call(words, args.output_dir / "report.log")
    return json.loads(file.read_text(encoding="utf-8"))


def uar_of(run: Path) -> float:
    """Return the UAR after the last epoch in percent."""
    return 100 * json.loads((run / "metrics.json").read_text(encoding="utf-8"))["uar"]


def table(rows: Any, **options: Any) -> str:
    """Lay out rows in Markdown as they are, no string read as a number."""
    return pd.DataFrame(rows).to_markdown(disable_numparse=True, **options) + "\n"


# modalities


def modalities(args: argparse.Namespace) -> str:
    """Fine-tune on one stream, and leave one out at test time."""
    folds = sorted((args.demo / "folds").glob("fold*"))
    if not folds:
        raise SystemExit(f"error: no folds in '{args.demo / 'folds'}'; run scripts/demo.sh first")
    start = ["--finetune", str(last_checkpoint(args.demo / "pretrain"))]
    runs = []
    for modality, fold in itertools.product("av", folds):
        flags = [*start, "--data_path", str(args.data / fold.name), "--modality", modality]
        runs.append(Run(args.output_dir / modality / fold.name, "run_finetuning.py", flags))
    run_all(runs, args.extra)
    rows = []
    reports = report([args.output_dir / "a", args.output_dir / "v", args.demo / "folds"], args)[
        "runs"
    ]
    for (name, ceiling), found in zip(MODALITIES.values(), reports, strict=True):
        scores, (low, high) = found["total"]["last"], found["intervals"]["last"]["uar"]
        rows.append({
            "streams": name,
            "can reach": f"{ceiling:.1f}",
            "UAR": f"{100 * scores['uar']:.2f}",
            "95 % interval": f"{100 * low:.1f} to {100 * high:.1f}",
            "WAR": f"{100 * scores['war']:.2f}",
        })  # fmt: skip
    return table(rows, index=False) + "\n" + table(missing(folds, args.data), index=False)


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


# labels


def labels(args: argparse.Namespace) -> str:
    """Compare pre-trained and random starts: fine-tuning, a probe, k-NN; few and many labels.

    Scores are those of the test speakers after the last epoch. Validation after each epoch, which
    decides nothing here, is left to one clip.
    """
    own = last_checkpoint(args.demo / "pretrain")
    starts: dict[str, Path | None] = {f"{int(own.stem[11:]) + 1} epochs": own}
    if args.longer:
        folder, name = (
            args.output_dir / f"pretrain{args.longer}",
            f"checkpoint-{args.longer - 1}.pth",
        )
        flags = ["--data_path", str(args.data / "packed"), "--epochs", str(args.longer)]
        run_all([Run(folder, "run_pretraining.py", flags, name)])
        starts[f"{args.longer} epochs"] = folder / name
    starts["random"] = None
    lists = {fold: args.output_dir / f"lists/fold{fold}" for fold in args.folds}
    for fold, folder in lists.items():
        for name in ("train", "val", "test"):
            clips = list(read_labelled_list(args.data / f"fold{fold}_all/{name}.csv"))
            write_list(folder / f"{name}.csv", clips[:1] if name == "val" else clips)
        shutil.copyfile(args.data / "classes.txt", folder / "classes.txt")
    runs, rows = [], []
    shares = sorted(args.shares, reverse=True)  # the longest runs first
    for share, fold, seed, kind, start in itertools.product(
        shares, args.folds, args.seeds, LEAST_STEPS, starts
    ):
        place = f"{start}_{kind}/share{100 * share:g}/fold{fold}_seed{seed}".replace(" ", "_")
        flags = label_flags(share, seed, kind, lists[fold], starts[start], args.extra)
        runs.append(Run(args.output_dir / place, "run_finetuning.py", flags))
        rows.append({"start": start, "kind": kind, "share": share, "fold": fold, "seed": seed})
    run_all(runs, args.extra)
    for row, run in zip([*rows], runs, strict=True):
        row["uar"] = uar_of(run.folder)
        if row["kind"] == PROBE:  # random weights are those that the probe has kept
            out, model = run.folder / "knn", starts[row["start"]] or last_checkpoint(run.folder)
            places = ["--checkpoint", model, "--data_path", lists[row["fold"]], "--output_dir", out]
            draws = ["--k", K, "--label_share", row["share"], "--seed", row["seed"]]
            words = ["-m", "hicmae.knn", *places, "--features", KNN_FEATURES, *draws]
            demo.call(words, args.output_dir / "knn.log")
            rows.append(row | {"kind": f"{K}-NN", "uar": uar_of(next(out.glob(f"*/k{K}/*")))})
    found = pd.DataFrame(rows)
    found.to_csv(args.output_dir / "results.csv", index=False)
    # Mean and standard deviation over folds and seeds, a column for each share.
    groups = found.groupby(["kind", "start", "share"], sort=False)["uar"]
    shown = groups.agg(lambda uar: f"{uar.mean():.1f}" + f" ± {uar.std():.1f}" * (len(uar) > 1))
    wide = shown.unstack("share", sort=False).sort_index(axis=1)
    wide = wide.rename(columns=lambda share: f"{100 * share:g} % of labels")
    wide.index = [f"{start}, {kind}" for kind, start in wide.index]
    return table(wide, stralign="right")


def label_flags(
    share: float, seed: int, kind: str, lists: Path, checkpoint: Path | None, extra: str = ""
) -> list[str]:
    """Return the flags of one run; its length is ours unless `extra` gives one."""
    flags = ["--data_path", str(lists), "--seed", str(seed), "--label_share", f"{share:g}"]
    flags += "--no-export --image_freq 0 --save_ckpt_freq 100000 --keep_ckpts 1".split()
    usual = demo.FLAGS["run_finetuning.py"]
    clips = round(len(read_labelled_list(lists / "train.csv")) * share)
    steps = clips // int(flag_value(usual, "--batch_size"))
    if not steps:
        raise SystemExit(f"error: --shares {share:g} leaves {clips} clips, fewer than one batch; "
                         "give a larger share")  # fmt: skip
    if "--epochs" not in extra.split():
        epochs = math.ceil(LEAST_STEPS[kind] / steps)
        if kind == FULL:
            epochs = max(epochs, int(flag_value(usual, "--epochs")))
        flags += ["--epochs", str(epochs), "--warmup_steps", "30"]
    flags += ["--finetune", str(checkpoint)] if checkpoint else []
    return flags + (PROBE_FLAGS if kind == PROBE else [])


# ablations


def ablations(args: argparse.Namespace) -> str:
    """Pre-train and fine-tune variants that each change one thing.

    "baseline_again" is pre-trained with another seed: differences as small as its own are noise.
    """
    chosen = [name for name in VARIANTS if name == "baseline" or name in (args.only or VARIANTS)]
    data = ["--data_path", str(args.data / "packed")]
    epochs = int(flag_value([*PRETRAIN, *args.extra.split()], "--epochs"))
    product, pretrained, runs = f"checkpoint-{epochs - 1}.pth", {}, {}
    for name in chosen:
        flags = VARIANTS[name][1]
        if flags != NO_PRETRAINING:  # of its own, or the baseline's where it changes nothing
            folder = pretrained[name] = (
                args.output_dir / "pretrain" / (name if flags else "baseline")
            )
            more = [*PRETRAIN, *data, *flags.split()]
            runs[folder] = Run(folder, "run_pretraining.py", more, product)
    run_all([*runs.values()], args.extra)
    tuned = []
    for name, fold, seed in itertools.product(chosen, args.folds, args.seeds):
        folder = args.output_dir / "finetune" / name / f"seed{seed}" / f"fold{fold}"
        flags = [*FINETUNE, *VARIANTS[name][2].split()]
        if name in pretrained:
            flags += ["--finetune", str(pretrained[name] / product)]
        flags += ["--data_path", str(args.data / f"fold{fold}"), "--seed", str(seed)]
        tuned.append(Run(folder, "run_finetuning.py", flags))
    run_all(tuned, args.extra)
    rows = [ablation_row(name, pretrained.get(name), args) for name in chosen]
    return table(rows, index=False)


def ablation_row(name: str, pretrained: Path | None, args: argparse.Namespace) -> dict[str, str]:
    """Gather losses, scores and the paired difference to the baseline, means over seeds."""
    losses: dict[str, float] = {}
    if pretrained:
        losses = json.loads((pretrained / "log.txt").read_text().splitlines()[-1])
    named = {"loss video": "loss_video", "audio": "loss_audio", "contrast": "loss_contrastive"}
    parts = {k: losses.get(f"train_{part}") for k, part in named.items()}
    scores, halves, differences, paired = [], [], [], []
    for seed in args.seeds:
        both = report([args.output_dir / "finetune" / variant / f"seed{seed}"
                       for variant in dict.fromkeys(("baseline", name))], args)  # fmt: skip
        found = both.get("runs", [both])[-1]
        scores += [fold["last"]["uar"] for fold in found["folds"]]
        low, high = found["intervals"]["last"]["uar"]
        halves.append((high - low) / 2)
        for comparison in both.get("comparisons", ()):
            for d in comparison["differences"]:
                if comparison["kind"] == "last" and d["metric"] == "uar":
                    differences.append(d["value"] - d["baseline"])
                    paired.append((d["high"] - d["low"]) / 2)

    def mean(values: Sequence[float], form: str = ".1f") -> str:
        return format(100 * np.mean(values), form) if len(values) else "-"

    spread = f" ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    title, *flags = VARIANTS[name]
    return {
        "variant": title,
        "flags": " ".join(dict.fromkeys(filter(None, flags))) or "-",
        **{k: "-" if part is None else f"{part:.4f}" for k, part in parts.items()},
        "top accuracy": mean([v for key, v in losses.items() if "contrastive_acc" in key][-1:]),
        "UAR": mean(scores) + spread,
        "95 %": mean(halves),
        "difference": mean(differences, "+.1f"),
        "its 95 %": mean(paired),
    }


# Command line

EXPERIMENTS = {  # and their own numbers: flag -> default, help
    modalities: {},
    labels: {
        "--folds": ([1], "of the benchmark"),
        "--seeds": ([0, 1, 2], "of labels and runs"),
        "--shares": ([0.1, 0.3, 1.0], "of all labels"),
    },
    ablations: {"--folds": ([1, 2], "of the benchmark"), "--seeds": ([0], "of fine-tuning")},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs, print the table and write it."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="experiment", required=True)
    for run, numbers in EXPERIMENTS.items():
        name = run.__name__
        about = run.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.set_defaults(run=run)
        for flag, default, text in (
            ("--data", "saved/data/toy_av", "the synthetic benchmark"),
            ("--demo", "saved/demo", "finished runs of scripts/demo.sh"),
            ("--output_dir", f"saved/toy/{name}", "folder of the runs and of the table"),
        ):
            place = {"type": Path, "default": ROOT / default, "metavar": "DIR"}
            command.add_argument(flag, **place, help=f"{text} ({default})")
        command.add_argument("--extra", default="", metavar="FLAGS", help="more flags of every run")
        for flag, (default, text) in numbers.items():
            several = {"nargs": "+", "type": type(default[0]), "default": default, "metavar": "N"}
            command.add_argument(flag, **several, help=f"{text} ({' '.join(map(str, default))})")
    commands.choices["labels"].add_argument(
        "--longer", type=int, metavar="EPOCHS", help="of one more pre-training to compare (none)"
    )
    commands.choices["ablations"].add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help=f"of {', '.join(VARIANTS)}"
    )
    args = parser.parse_args(argv)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        text = args.run(args)
        write_whole(args.output_dir / "table.md", text)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {describe(error)}") from error
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
