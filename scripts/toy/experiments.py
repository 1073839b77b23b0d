"""Experiments on the synthetic benchmark, with the settings of scripts/demo.py.

    python scripts/toy/experiments.py EXPERIMENT

Each starts from a finished demo, makes the runs that are not there yet, and prints tables, which
table.md holds too. A run that was cut off goes on; one whose command has changed, or that of the
run it starts from, starts over. UAR is that of the last epoch, pooled over the folds, its mean and
standard deviation over --seeds; intervals draw speakers, differences are paired by clips.
"""

import itertools
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installation

from hicmae.config import Options
from hicmae.config.flags import Settings, command, option
from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from hicmae.data.video import FrameFolder
from hicmae.faces import template
from hicmae.io import write_whole
from scripts import demo
from scripts.demo import ROOT, SHIPPED, Run

PACKAGED = ROOT / "hicmae/checkpoints"
RANDOM, OWN = "", "own"  # what fine-tuning starts from, beside SHIPPED and flags of pre-training
DRAWN = "drawn by preprocess/toy_av.py of hicmae, MIT; there are no people in them"
LICENCES = {"license": "mit", "data_license": DRAWN}
FINETUNE = ["--image_freq", "0", "--no-export", "--save_ckpt_freq", "100000", "--keep_ckpts", "1"]
PROBE = "--linear_probe --lr 0.4"
K, KNN_FEATURES = 10, "video_last+audio_last+fusion_video+fusion_audio"
# The shipped ones: more speakers and epochs than the demo's.
SHIP_SPEAKERS, SHIP_FLAGS = 4000, "--epochs 120 --lr 0.003 --image_freq 0"


class Variant(NamedTuple):
    """A row of a table."""

    title: str
    start: str = OWN  # RANDOM, OWN (of the demo), SHIPPED, or changed flags of pre-training
    finetune: str = ""  # changed flags
    labels: str = ""  # "" few, "_all" all of a fold


STARTS = {  # title of a table, flags of fine-tuning, labels
    "few": ("Few labels: 20 speakers", "", ""),
    "all": ("All labels", "", "_all"),
    "probe": ("Linear probe, all labels", PROBE, "_all"),
}
MODALITIES = [
    Variant("audio and video", SHIPPED, "", "_all"),
    Variant("video", SHIPPED, "--modality v", "_all"),
    Variant("audio", SHIPPED, "--modality a", "_all"),
]
ABLATIONS = [
    Variant("HiCMAE, with the demo's settings", "--seed 0"),
    Variant("the same, pre-trained with another seed", "--seed 1"),
    Variant("no hierarchical skip connections", "--no-skip_connections"),
    Variant("no contrastive loss", "--contrastive_levels none"),
    Variant("contrast of the top level only", "--contrastive_levels top"),
    Variant("no hierarchical feature fusion", "--seed 0", "--no-hierarchical_fusion"),
    Variant("contrast on clips masked like the rest", "--contrast_mask_ratio 0.75"),
    Variant("no pre-training", RANDOM),
]
LARGEST = 10  # clips of the first class for one of the last
LIGHT, ONE_PASS = "--contrast_mask_ratio", "none"  # what that stands for: without the flag
CONTRAST = [Variant("one pass, the paper's", f"{LIGHT} {ONE_PASS}")]
CONTRAST += [Variant(f"a second one, {r} masked", f"{LIGHT} {r}") for r in (0.75, 0.5, 0)]
SEARCHED = 32  # clips among which one is to be found
WAYS = "--class_weights balanced", "--class_weights effective", "--balanced_sampler"
IMBALANCE = [Variant("nothing done about it", SHIPPED, "--ema 0.99", "_long")]
IMBALANCE += [Variant(flags, SHIPPED, flags, "_long") for flags in WAYS]


# Runs


def completed(run: Run, extra: str) -> Run:
    """Return a run with the demo's flags, its own and some more, of which the last ones count."""
    flags = [*demo.FLAGS[run.script], *run.flags, *shlex.split(extra)]
    if LIGHT in flags and demo.flag_value(flags, LIGHT) == ONE_PASS:
        pairs = itertools.pairwise(["", *flags])
        flags = [word for before, word in pairs if LIGHT not in (before, word)]
    if run.script == "run_pretraining.py":  # no scores tell that it is finished
        last = int(demo.flag_value(flags, "--epochs")) - 1
        run = run._replace(product=f"checkpoint-{last}.pth")
    return run._replace(flags=flags)


def slug(flags: str) -> str:
    """Name a folder after flags."""
    return "_".join(flags.replace("--", "").split()) or "random"


def pretrained(start: str, args: Namespace) -> list[str]:
    """Return the flag that names what to start from; pre-train it where it is not there yet."""
    if start in (RANDOM, SHIPPED):
        return ["--finetune", SHIPPED] if start else []
    folder = args.demo / "pretrain"
    if start != OWN:
        run = pretraining(start, args)
        demo.make(completed(run, args.extra))
        folder = run.folder
    return ["--finetune", str(last_checkpoint(folder))]


def pretraining(start: str, args: Namespace) -> Run:
    """Return the run of changed flags of pre-training."""
    flags = ["--data_path", str(args.data / "packed"), "--image_freq", "0", *start.split()]
    flags += ["--epochs", str(args.pretrain_epochs)]
    return Run(args.output_dir / "pretrain" / slug(start), "run_pretraining.py", flags)


def last_checkpoint(run: Path) -> Path:
    """Return the checkpoint of the highest epoch; FileNotFoundError where there is none."""
    from hicmae.training.checkpoint import epoch_ends  # no --help should wait for torch

    if not (ends := epoch_ends(run)):
        raise FileNotFoundError(f"no checkpoint-<epoch>.pth in '{run}'; run scripts/demo.sh first")
    return ends[-1]


def finetuned(variants: Sequence[Variant], name: str, args: Namespace) -> list[list[Path]]:
    """Fine-tune variants on all folds; return for each seed their folders, which hold the folds."""
    runs, places = [], []
    for variant in variants:
        start = pretrained(variant.start, args)
        places.append(args.output_dir / name / slug(f"{variant.start} {variant.finetune}"))
        for seed, fold in itertools.product(args.seeds, args.folds):
            data = args.data / f"fold{fold}{variant.labels}"
            flags = ["--data_path", str(data), "--seed", str(seed), *start, *FINETUNE]
            flags += variant.finetune.split()
            runs.append(Run(places[-1] / f"seed{seed}/fold{fold}", "run_finetuning.py", flags))
    for run in tqdm(runs, desc="runs", unit="run", dynamic_ncols=True):
        demo.make(completed(run, args.extra))
    return [[place / f"seed{seed}" for place in places] for seed in args.seeds]


# Tables


def score(
    variants: Sequence[Variant], folders: list[list[Path]], args: Namespace, **columns: list[str]
) -> str:
    """Compare variants, whose folders are listed by seed, with the first one; in percent."""
    import pandas as pd

    from hicmae.report.scores import build, compare_all
    from hicmae.training.resampling import Plan

    titles, cells = [variant.title for variant in variants], []
    plan = Plan(speaker_file=str(args.data / "meta.csv"))
    for places in folders:
        named = zip(titles, places, strict=True)
        reports = [build(place, plan=plan, title=title) for title, place in named]
        pairs = [pair for pair in compare_all(reports) if pair.kind == "last"]
        gaps = [pair.differences.set_index("metric").loc["uar"] for pair in pairs]
        bounds = [(np.nan, np.nan), *((gap["low"], gap["high"]) for gap in gaps)]
        for report, bound in zip(reports, bounds, strict=True):
            cells.append([report.title, *100 * report.total("last", "uar"), *bound])
    names = ["", "uar", "low", "high", "from", "to"]
    groups = pd.DataFrame(cells, columns=names).groupby("", sort=False)
    mean, gap = groups.mean(), groups.uar.mean() - groups.uar.mean().iloc[0]
    between = map("{:+.1f} to {:+.1f}".format, 100 * mean["from"][1:], 100 * mean["to"][1:])
    shown = {
        "": titles,
        "UAR": with_spread(groups.uar),
        "95 % interval": [*map("{:.1f} to {:.1f}".format, mean.low, mean.high)],
        "difference": ["-", *map("{:+.1f}".format, gap[1:])],
        "its 95 %": ["-", *between],
    }
    return table(shown | columns)


def with_spread(groups: Any, digits: int = 1) -> list[str]:
    """Write the mean of each group and its deviation, which one value alone does not have."""
    return [
        f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation >= 0 else "")
        for mean, deviation in zip(groups.mean(), groups.std(), strict=True)
    ]


def table(rows: Any) -> str:
    """Lay out rows in Markdown as they are, no string read as a number."""
    import pandas as pd

    return pd.DataFrame(rows).to_markdown(disable_numparse=True, index=False) + "\n"


# Experiments


def starts(args: Namespace) -> str:
    """Start from random, own and shipped weights: few and all labels, probe, k-NN."""
    texts = []
    for name, (title, *how) in STARTS.items():
        rows = zip(demo.TITLES.values(), (RANDOM, OWN, SHIPPED), strict=True)
        variants = [Variant(row, start, *how) for row, start in rows]
        folders = finetuned(variants, name, args)
        texts.append(f"{title}\n\n" + score(variants, folders, args))
    # Of random weights those that the last probe has kept.
    first = last_checkpoint(folders[0][0] / f"fold{args.folds[0]}")
    models = [first, *(pretrained(start, args)[1] for start in (OWN, SHIPPED))]
    outs = [args.output_dir / "knn" / slug(variant.start) for variant in variants]
    for (model, out), fold in itertools.product(zip(models, outs, strict=True), args.folds):
        places = ["--data_path", args.data / f"fold{fold}", "--output_dir", out]
        words = ["-m", "hicmae.knn", "--checkpoint", model, *places, "--k", K]
        demo.call([*words, "--features", *args.features], args.output_dir / "knn.log")
    for kind in args.features:
        found = score(variants, [[out / kind / f"k{K}" for out in outs]], args)
        texts.append(f"{K}-NN, few labels, no training: {kind}\n\n{found}")
    return "\n".join(texts)


def modalities(args: Namespace) -> str:
    """Fine-tune on audio and video, and on one of them."""
    return score(MODALITIES, finetuned(MODALITIES, "modalities", args), args)


def ablations(args: Namespace) -> str:
    """Pre-train and fine-tune with one part of HiCMAE left out or changed at a time.

    Differences as small as that of another seed of pre-training are noise.
    """
    chosen = rows_of(ABLATIONS, args)
    return score(chosen, finetuned(chosen, "ablations", args), args)


def rows_of(variants: Sequence[Variant], args: Namespace) -> list[Variant]:
    """Return the first variant and those that --only names, or all."""
    titles = [variant.title for variant in variants]
    if unknown := [title for title in args.only or () if title not in titles]:
        raise ValueError(f"--only '{unknown[0]}' is no row, expected one of {titles}")
    return [variants[0], *(v for v in variants[1:] if not args.only or v.title in args.only)]


def contrast(args: Namespace) -> str:
    """Give the contrast a pass of its own, over clips masked less: cost, retrieval, probe.

    Each seed is one of pre-training and of a linear probe on all labels. R@5 is that of the top
    level among 32 clips of unseen speakers, both directions; steps are timed in turns on the CPU.
    """
    import pandas as pd

    from scripts.benchmark_data import first_step
    from scripts.benchmark_models import compared, measure_in_turns

    chosen, extra = rows_of(CONTRAST, args), f"{args.extra} --device cpu --output_dir -"
    folders, parts = list[list[Path]](), []
    for seed in args.seeds:
        seeded = Namespace(**vars(args) | {"seeds": [seed]})
        variants = [Variant(v.title, f"{v.start} --seed {seed}", PROBE, "_all") for v in chosen]
        runs = {variant.title: pretraining(variant.start, args) for variant in variants}
        steps = {title: first_step(completed(run, extra).flags) for title, run in runs.items()}
        costs = 1 / compared(measure_in_turns(steps, args.steps, 2), chosen[0].title)
        folders += finetuned(variants, "contrast", seeded)
        recalls = [recall(last_checkpoint(run.folder), seed, args) for run in runs.values()]
        parts.append(costs.assign(recall=recalls))
    groups = pd.concat(parts).groupby(level=0, sort=False)
    columns = {
        f"R@5 of {SEARCHED}, chance {500 / SEARCHED:.1f}": with_spread(groups.recall),
        "time of a step": with_spread(groups.ratio, 2),
        "in CPU time": with_spread(groups.ratio_cpu_time, 2),
    }
    return "Linear probe, all labels\n\n" + score(chosen, folders, args, **columns)


def recall(checkpoint: Path, seed: int, args: Namespace) -> float:
    """Return R@5 in percent, each labelled speaker's first clip searched for once a direction."""
    from hicmae.visualize import Clips
    from hicmae.visualize.clips import open_clips
    from hicmae.visualize.features import pooled_levels, recalls

    films = sorted((args.data / "labelled").glob("*/*_c000.mp4"))
    listed = args.output_dir / "unseen.csv"
    write_list(listed, [Clip(str(film), None, 0) for film in films])
    opened = open_clips(Clips(str(checkpoint), str(listed), seed=0))
    top = opened.settings["return_intermediate_features"][-1:]
    video, audio = (np.stack(levels) for levels in pooled_levels(opened, top))
    order = np.random.default_rng(seed).permutation(len(films))
    groups = np.array_split(order, max(len(films) // SEARCHED, 1))
    found = [recalls(video[:, clips], audio[:, clips], top) for clips in groups]
    return float(np.mean([rows["R@5"].drop("chance").mean() for rows in found]))


def imbalance(args: Namespace) -> str:
    """Fine-tune on classes of unequal size, but test on equal ones: weights, sampler, EMA.

    The last row is the first one's, tested with the moving average of its weights.
    """
    data, args.data = args.data, args.output_dir / "data"
    for fold in args.folds:
        source, folder = data / f"fold{fold}_all", args.data / f"fold{fold}_long"
        clips = read_labelled_list(source / "train.csv")
        kept = []
        for label, share in enumerate(np.geomspace(1, 1 / LARGEST, 6)):
            mine = [clip for clip in clips if clip.label == label]
            kept += mine[: round(len(mine) * share)]
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_list(folder / "train.csv", kept)
    shutil.copyfile(data / "meta.csv", args.data / "meta.csv")
    folders = finetuned(IMBALANCE, "imbalance", args)
    for places in folders:
        first = places[0]
        places.append(first.parents[1] / "average" / first.name)
        for fold in args.folds:
            found = (first / f"fold{fold}/pred_ema.csv").read_bytes()
            write_whole(places[-1] / f"fold{fold}/pred.csv", found)
    return score([*IMBALANCE, Variant("--ema 0.99")], folders, args)


def speakers(args: Namespace) -> str:
    """Tell which of two talking faces, side by side, has the sound.

    They are aligned clips of two speakers whom the pre-training never saw; both talk.
    """
    from scipy.stats import binomtest

    from hicmae import EmotionRecognizer
    from hicmae.inference.clips import Clip as Film
    from hicmae.inference.sources import Arrays
    from hicmae.inference.speaker import chooser

    recognizer = EmotionRecognizer.from_checkpoint("toy", speaker_checkpoint=SHIPPED)
    config, rng = recognizer.config, np.random.default_rng(args.seeds[0])
    folders = sorted(path for path in (args.data / "aligned").iterdir() if path.is_dir())
    found: dict[str, list[list[bool]]] = {"lips": [], "contrast": []}  # of each pair's windows
    for _ in tqdm(range(args.pairs), "pairs"):
        one = folders[rng.integers(len(folders))]
        name, _, _ = one.name.partition("_")
        other = rng.choice([path for path in folders if not path.name.startswith(name)])
        order = rng.permutation(2)  # of them on the screen
        films = [FrameFolder(str((one, other)[k])) for k in order]
        count = min(map(len, films))
        frames = np.concatenate([np.stack(film.read(range(count))) for film in films], axis=2)
        sound, rate = soundfile.read(args.data / "labelled" / name / f"{one.name}.wav")
        size = frames.shape[1]
        places = template(size) + np.array([[0, 0], [size, 0]])[:, None]  # of the faces
        for way, right in found.items():
            film = Arrays(frames, 25, sound[: count * rate // 25], rate)
            clip = Film(film, None, config, "av", Options(faces="cut"))
            clip.prepare()
            clip.num_people, clip.points = 2, np.repeat(places[:, None], len(clip.times), 1)
            for _ in clip.views(chooser(clip, way, recognizer.contrast)):  # it chooses on the way
                pass
            right.append([bool(w.speaker) for (k, _), w in clip.seen.items() if order[k] == 0])
    rows = []
    for way, pairs in found.items():
        hits = sum(np.mean(windows) > 0.5 for windows in pairs)
        interval = binomtest(hits, len(pairs)).proportion_ci()
        rows.append({
            "chosen by": way,
            f"right of {len(pairs)} pairs": f"{100 * hits / len(pairs):.1f} %",
            "95 % interval": f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %",
            "right windows (chance: 50 %)": f"{100 * np.mean(np.concatenate(pairs)):.1f} %",
        })  # fmt: skip
    return table(rows)


def ship(args: Namespace) -> str:
    """Make the models that come with the package, in half precision, with their logs.

    The pre-training sees speakers without labels only; the classifier is fine-tuned from it, as it
    is in the package, on all labels of fold 1, whose test speakers neither has seen.
    """
    flags = ["--speakers", "0", "--pretrain_speakers", str(SHIP_SPEAKERS)]
    large = Run(args.output_dir / "data", "preprocess/toy_av.py", flags, "meta.csv")
    demo.make(large)
    flags = ["--data_path", str(large.folder / "packed"), *SHIP_FLAGS.split()]
    first = Run(args.output_dir / "pretrain", "run_pretraining.py", flags)
    flags = ["--data_path", str(args.data / "fold1_all"), "--finetune", SHIPPED, *FINETUNE]
    flags += ["--epochs", "80", "--ema", "0.99"]
    second = Run(args.output_dir / "finetune", "run_finetuning.py", flags)
    rows = []
    for name, run in {SHIPPED: first, "toy": second}.items():
        demo.make(completed(run, args.extra))
        size = package(run.folder, PACKAGED / name) / 1e6
        rows.append({"name": name, "MB": f"{size:.1f}", "folder": f"hicmae/checkpoints/{name}"})
    return table(rows)


def package(run: Path, folder: Path) -> int:
    """Write the last epoch of a run in half precision, with its log; return the size in bytes."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from hicmae.inference.export import CARD, export_run
    from hicmae.training.checkpoint import CONFIG, WEIGHTS

    folder.mkdir(parents=True, exist_ok=True)
    last = export_run(run, run / "export", LICENCES, frame_rate=25.0)[0]
    with safe_open(last / WEIGHTS, "pt") as file:
        halves = {key: file.get_tensor(key).half() for key in file.keys()}
        save_file(halves, folder / WEIGHTS, metadata=file.metadata())
    for path in (last / CONFIG, last / CARD, run / "command.txt", run / "log.txt"):
        shutil.copyfile(path, folder / path.name)
    return (folder / WEIGHTS).stat().st_size


# Command line


WORKS = ship, starts, modalities, ablations, contrast, imbalance, speakers
EXPERIMENTS = {work.__name__: work for work in WORKS}


class Experiment(Settings):
    """What to run, and where."""

    experiment: str = option("", "one of those above", positional=True, choices=[*EXPERIMENTS])
    data: Path = option(demo.DATA, "the benchmark", metavar="DIR")
    demo: Path = option(demo.DEMO, "runs of scripts/demo.sh", metavar="DIR")
    output_dir: Path | None = option(None, "of runs and table (saved/toy/<experiment>)")
    extra: str = option("", "more flags of every run", metavar="FLAGS")
    folds: tuple[int, ...] = option((1, 2), "of the benchmark")
    seeds: tuple[int, ...] = option((0, 1, 2), "of fine-tuning")
    pairs: int = option(60, "of faces, for speakers")
    only: tuple[str, ...] = option((), "rows beside the first one (all)", metavar="TITLE")
    pretrain_epochs: int = option(100, "of each ablation and contrast")
    steps: int = option(20, "timed ones, for contrast")
    features: tuple[str, ...] = option((KNN_FEATURES,), "of hicmae.knn, for starts", metavar="KIND")


def run_experiment(args: Namespace) -> None:
    """Make the runs, print the tables and write them."""
    args.output_dir = args.output_dir or ROOT / "saved/toy" / args.experiment
    args.output_dir.mkdir(parents=True, exist_ok=True)
    text = EXPERIMENTS[args.experiment](args)
    write_whole(args.output_dir / "table.md", text)
    sys.stdout.write(text)


first_lines = (f"{name:<12}{work.__doc__.splitlines()[0]}" for name, work in EXPERIMENTS.items())
main = command("\n    ".join([__doc__, *first_lines]), run_experiment, Experiment, failed=1)

if __name__ == "__main__":
    sys.exit(main())
