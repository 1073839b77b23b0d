"""From scratch against pre-trained, all layers against a probe, on few and many labels.

    python scripts/toy/labels.py [--jobs 2] [--longer 80]

Full fine-tuning and a linear probe (--linear_probe), each from random weights and from the demo's
pre-training, on 10 %, 30 % and all of the training labels of fold 1 (--label_share), three seeds
each; and k-NN (hicmae.knn) without any training. A seed decides which labels there are, the start
and the order. --longer N pre-trains for N epochs with the demo's other flags and adds lines for
that. Scores are those of the test speakers after the last epoch. OUT/table.md, OUT/results.json and
a plot are written; runs that are there already are not made again.

The settings are the demo's, but for the length and the learning rate of the probe:

- Full fine-tuning takes the demo's epochs, or as many as make LEAST_STEPS steps: few labels make
  short epochs.
- A probe takes PROBE_STEPS steps with PROBE_LR.

These three were chosen on the 72 clips of the validation speakers of fold 1, with the pre-trained
model of an earlier demo (--list val.csv scores these clips); scratch got no choice of its own. Four
runs were then timed on the test list, and one best-epoch score was seen; nothing was changed after.
On 10 % and 30 % of the labels, 150 to 600 steps, a seed each, made no difference that so few clips
can show. The rate of the probe was chosen among 0.1, 0.4, 1.6 and 6.4 on features extracted once,
not by real runs. k-NN is shown for one k and one kind of features, chosen beforehand. Validation
after each epoch, which decides nothing here, is left to a single clip. The 200 epochs of README
are what there was time for, after 80 (4 of them warm-up) had done better on the validation clips
than the earlier demo's 10 (probe 45.8 against 25.0, a seed each).
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runs import ROOT, Run, demo_flags, last_checkpoint, new_parser, run_all

sys.path.insert(0, str(ROOT))  # works without installation

from matplotlib import pyplot as plt

from hicmae import EmotionRecognizer, knn
from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from hicmae.data.splits import take_share
from hicmae.inference.style import OKABE_ITO, STYLE, save_figure
from hicmae.io import markdown

LEAST_STEPS = 200
PROBE_STEPS = 300
PROBE_LR = "0.4"
WARMUP_STEPS = 30
K = 10
KNN_FEATURES = "video_last+audio_last+fusion_video+fusion_audio"
CHANCE = 100 / 6
INITS = ("pretrained", "longer", "scratch")
KINDS = {"full": "full fine-tuning", "probe": "linear probe", "knn": f"{K}-NN"}


class Setting(NamedTuple):
    """One run of the experiment, or one k-NN evaluation."""

    init: str  # of INITS
    kind: str  # of KINDS
    share: float  # of the labels
    fold: int
    seed: int

    def folder(self, out: Path) -> Path:
        """Return the output folder of the run."""
        place = f"share{100 * self.share:g}/fold{self.fold}_seed{self.seed}"
        return out / f"{self.init}_{self.kind}" / place


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(__doc__, "labels")
    for flag, kind, default, text in (
        ("--folds", int, [1], "of the benchmark"),
        ("--seeds", int, [0, 1, 2], "of labels, start and order"),
        ("--shares", float, [0.1, 0.3, 1.0], "of the labels"),
    ):
        shown = " ".join(map(str, default))
        parser.add_argument(flag, nargs="+", type=kind, default=default, help=f"{text} ({shown})")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is made (all)"
    )
    parser.add_argument(
        "--list", default="test.csv", metavar="NAME", help="of a fold, to score (test.csv)"
    )
    parser.add_argument(
        "--longer", type=int, metavar="EPOCHS", help="of one more pre-training to compare (none)"
    )
    figure = "figs/toy_labels.png"
    parser.add_argument(
        "--figure", type=Path, default=ROOT / figure, metavar="FILE", help=f"plot ({figure})"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = make_parser().parse_args(argv)
    starts = pretrainings(args)
    folds = {k: copy_lists(args.data / f"fold{k}", args.out, args.list) for k in args.folds}
    settings = [
        Setting(init, kind, share, fold, seed)
        for kind in args.kinds
        for share in sorted(args.shares, reverse=True)  # the longest runs first
        for fold in args.folds
        for seed in args.seeds
        for init in [*starts, "scratch"]
    ]
    trained = [setting for setting in settings if setting.kind != "knn"]
    runs = [make_run(s, args, folds[s.fold], starts.get(s.init)) for s in trained]
    run_all(runs, args.jobs, args.extra)
    found = {s: read_uar(s.folder(args.out)) for s in trained}
    if "knn" in args.kinds:
        found |= neighbours(args, folds, starts)
    found = {setting: found[setting] for setting in settings if setting in found}
    epochs = {init: int(path.stem.rpartition("-")[2]) + 1 for init, path in starts.items()}
    write(args, found, epochs)


def pretrainings(args: argparse.Namespace) -> dict[str, Path]:
    """Return the demo's checkpoint and that of the longer pre-training, which is made if asked."""
    starts = {"pretrained": last_checkpoint(args.demo / "pretrain")}
    if args.longer:
        flags = ["--data_path", str(args.data / "pretrain.csv"), "--epochs", str(args.longer)]
        product = f"checkpoint-{args.longer - 1}.pth"
        run = Run(args.out / f"pretrain{args.longer}", "run_pretraining.py", flags, product)
        run_all([run])
        starts["longer"] = run.folder / product
    return starts


def copy_lists(fold: Path, out: Path, scored: str) -> Path:
    """Write the lists of a fold with one validation clip, and `scored` as its test list."""
    folder = out / "lists" / Path(scored).stem / fold.name
    sources = {"train": "train.csv", "val": "val.csv", "test": scored}
    lists = {name: read_labelled_list(fold / source) for name, source in sources.items()}
    for name, clips in (lists | {"val": lists["val"][:1]}).items():
        write_list(folder / f"{name}.csv", [clip for clip in clips if isinstance(clip, Clip)])
    names = fold.parent / "classes.txt"
    (folder / "classes.txt").write_text(names.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def make_run(setting: Setting, args: argparse.Namespace, lists: Path, start: Path | None) -> Run:
    """Return the run of a setting, from a checkpoint or from scratch.

    Its length is ours unless --extra gives one.
    """
    flags = ["--data_path", str(lists), "--seed", str(setting.seed)]
    flags += ["--label_share", f"{setting.share:g}"]
    epochs = epochs_of(setting, lists)
    if "--epochs" not in args.extra.split():
        flags += ["--epochs", str(epochs), "--warmup_steps", str(WARMUP_STEPS)]
    flags += ["--no-export", "--save_ckpt_freq", "100000", "--keep_ckpts", "1"]
    flags += ["--image_freq", "0"]  # epochs are short: pictures would take longer than training
    if start:
        flags += ["--finetune", str(start)]
    if setting.kind == "probe":
        flags += ["--linear_probe", "--lr", PROBE_LR]
    return Run(setting.folder(args.out), "run_finetuning.py", flags)


def epochs_of(setting: Setting, lists: Path) -> int:
    """Return how many epochs make as many steps as a run is to have."""
    demo = demo_flags("run_finetuning.py")
    batch_size, epochs = (int(demo[demo.index(f) + 1]) for f in ("--batch_size", "--epochs"))
    count = len(take_share(read_labelled_list(lists / "train.csv"), setting.share, setting.seed))
    if count < batch_size:
        raise SystemExit(
            f"error: --shares {setting.share:g} leaves {count} clips, expected a batch of "
            f"{batch_size} or more; give a larger share"
        )
    steps = count // batch_size
    if setting.kind == "probe":
        return math.ceil(PROBE_STEPS / steps)
    return max(epochs, math.ceil(LEAST_STEPS / steps))


def read_uar(run: Path) -> float:
    """Return the UAR of a run after its last epoch, in percent."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return 100 * float(metrics["uar"])


def neighbours(
    args: argparse.Namespace, folds: dict[int, Path], starts: dict[str, Path]
) -> dict[Setting, float]:
    """Evaluate the pre-trained features and, where probes kept them, those of random weights."""
    found = {}
    for fold, lists in folds.items():
        for init, checkpoint in starts.items():
            found.update(evaluated(args, Setting(init, "knn", 1, fold, 0), checkpoint, lists))
        for seed in args.seeds:
            probe = Setting("scratch", "probe", max(args.shares), fold, seed).folder(args.out)
            if probe.is_dir():
                start = Setting("scratch", "knn", 1, fold, seed)
                found.update(evaluated(args, start, last_checkpoint(probe), lists))
    return found


def evaluated(
    args: argparse.Namespace, start: Setting, checkpoint: Path, lists: Path
) -> Iterator[tuple[Setting, float]]:
    """Yield the UAR of one checkpoint for every share, in percent; pre-trained: for every seed."""
    recognizer = EmotionRecognizer.from_checkpoint(checkpoint)
    name = f"{start.init}, {KINDS['knn']}"
    train = knn.extract(recognizer, read_labelled_list(lists / "train.csv"), name)
    test = knn.extract(recognizer, read_labelled_list(lists / "test.csv"), name)
    for share in args.shares:
        for seed in [start.seed] if start.init == "scratch" else args.seeds:
            chosen = {clip.video for clip in take_share(train.clips, share, seed)}
            kept = [k for k, clip in enumerate(train.clips) if clip.video in chosen]
            part = knn.Labelled(*([values[k] for k in kept] for values in train))
            result = next(knn.evaluate(part, test, [KNN_FEATURES], [min(K, len(kept))]))
            yield start._replace(share=share, seed=seed), 100 * result.metrics["uar"]


def write(args: argparse.Namespace, found: dict[Setting, float], epochs: dict[str, int]) -> None:
    """Print the table; write it, every single score, and the plot.

    Args:
        args: the command line.
        found: UAR in percent.
        epochs: of each pre-training.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [{**setting._asdict(), "list": args.list, "uar": uar} for setting, uar in found.items()]
    (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shares = sorted(args.shares)
    spreads = summarise(found)
    names = {(init, kind): label(kind, epochs.get(init)) for init, kind in spreads}
    table = [
        (names[line], *(shown(spreads[line].get(share)) for share in shares)) for line in spreads
    ]
    header = ("UAR", *(f"{100 * share:g} % of the labels" for share in shares))
    text = markdown(header, table)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    draw(spreads, names, args.figure)


Spreads = dict[tuple[str, str], dict[float, tuple[float, float, int]]]


def summarise(found: dict[Setting, float]) -> Spreads:
    """Return mean, standard deviation and count over folds and seeds by (init, kind) and share."""
    spreads: Spreads = {}
    for init, kind, share in dict.fromkeys((s.init, s.kind, s.share) for s in found):
        values = [v for s, v in found.items() if (s.init, s.kind, s.share) == (init, kind, share)]
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        line = spreads.setdefault((init, kind), {})
        line[share] = statistics.mean(values), deviation, len(values)
    return spreads


def label(kind: str, epochs: int | None) -> str:
    """Name a line of the table and of the plot; without pre-training there are no epochs."""
    if epochs is not None:
        return f"pre-trained for {epochs} epochs, {KINDS[kind]}"
    return f"{'from scratch' if kind == 'full' else 'random weights'}, {KINDS[kind]}"


def shown(spread: tuple[float, float, int] | None) -> str:
    """Format mean and deviation; one run has no deviation."""
    if spread is None:
        return ""
    mean, deviation, count = spread
    return f"{mean:.1f} ± {deviation:.1f}" if count > 1 else f"{mean:.1f}"


def draw(spreads: Spreads, names: dict[tuple[str, str], str], path: Path) -> None:
    """Plot UAR over the share of the labels, a line for each setting."""
    colours = dict(zip(INITS, OKABE_ITO, strict=False))
    styles = {"full": ("-", "o"), "probe": ("--", "s"), "knn": (":", "^")}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.4))
        for place, ((init, kind), line) in enumerate(spreads.items()):
            shift = 1.015 ** (place - (len(spreads) - 1) / 2)  # so that the bars do not hide others
            shares = sorted(line)
            means, deviations, _ = zip(*(line[share] for share in shares), strict=True)
            dashes, marker = styles[kind]
            axes.errorbar(
                [100 * share * shift for share in shares],
                means,
                [0 if math.isnan(d) else d for d in deviations],
                color=colours[init],
                linestyle=dashes,
                marker=marker,
                markersize=4,
                capsize=2,
                label=names[init, kind],
            )
        axes.axhline(CHANCE, color="#666666", linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
        percents = sorted({100 * share for line in spreads.values() for share in line})
        axes.set_xscale("log")
        axes.set_xticks(percents, [f"{percent:g} %" for percent in percents])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("share of the training labels (log scale)")
        axes.set_ylabel("UAR on the test speakers (%)")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        save_figure(figure, path)


if __name__ == "__main__":
    main()
