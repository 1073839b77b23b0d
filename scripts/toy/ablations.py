"""The paper's ablations on the synthetic benchmark: what each part of HiCMAE is worth there.

    python scripts/toy/ablations.py [--only NAME ...] [--jobs 2]
    python scripts/toy/ablations.py --list

Each variant is one change of the demo's settings (scripts/demo.sh). First all pre-trainings are
made, then all fine-tunings; variants that change fine-tuning alone share the baseline's
pre-training. All are as short as each other and shorter than the demo's, see PRETRAIN and FINETUNE.
The seeds are those of fine-tuning. "baseline_again" is pre-trained with another seed: differences
as small as its own are noise. The table goes to OUT/table.md, all figures to OUT/results.json.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runs import ROOT, Run, last_checkpoint, new_parser, run_all, speakers
from variants import BASELINE, VARIANTS, Variant

sys.path.insert(0, str(ROOT))  # works without installation

from hicmae.io import markdown
from hicmae.report.comparison import compare_all
from hicmae.report.resampling import Plan
from hicmae.report.scores import Report, build

# In place of the demo's 10 and 40 epochs (2 of them warm-up), so that all variants together take
# about 40 minutes on two cores with --jobs 2.
PRETRAIN = ["--epochs", "5", "--image_freq", "0"]
FINETUNE = ["--epochs", "20", "--warmup_epochs", "1", "--image_freq", "0", "--no-export"]
FOLDS, SEEDS = ["1", "2"], [0]
RESAMPLES = 5000  # of the bootstrap
DASH = "-"


class Row(NamedTuple):
    """A variant's figures.

    Attributes:
        variant: of which.
        losses: figures of the last pre-training epoch by their names in log.txt.
        uar: of the last epoch, one for each run, in 0..1.
        war: likewise.
        half_width: half of the 95 % bootstrap interval of the pooled UAR, mean over seeds.
        difference: UAR minus the baseline's, mean over seeds; None for the baseline.
        difference_half_width: of its paired interval, likewise.
    """

    variant: Variant
    losses: dict[str, float]
    uar: list[float]
    war: list[float]
    half_width: float
    difference: float | None = None
    difference_half_width: float | None = None


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = new_parser(__doc__, "ablations")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help="these, and the baseline"
    )
    parser.add_argument("--folds", nargs="+", default=FOLDS, metavar="K", help="of 1 2 3 4 (1 2)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="of fine-tuning (0)"
    )
    parser.add_argument("--list", action="store_true", help="print the variants, start nothing")
    args = parser.parse_args(argv)
    if args.list:
        print(
            markdown(
                ("name", "variant", "flags"), [(v.name, v.title, v.changes) for v in VARIANTS]
            ),
            end="",
        )
        return
    for fold in args.folds:
        if not (args.data / f"fold{fold}" / "train.csv").is_file():
            parser.error(f"no '{args.data / f'fold{fold}'}'; make it with preprocess/toy_av.py")
    chosen = [v for v in VARIANTS if v is BASELINE or args.only is None or v.name in args.only]
    check_folds(chosen, args)
    run_all(pretrainings(chosen, args), args.jobs, args.extra)
    run_all(finetunings(chosen, args), args.jobs, args.extra)
    rows = figures(chosen, args)
    text = table(rows, args)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    results = json.dumps([as_data(row) for row in rows], indent=2)
    (args.out / "results.json").write_text(results + "\n", encoding="utf-8")
    print(text, end="")


def check_folds(chosen: Sequence[Variant], args: argparse.Namespace) -> None:
    """Refuse folds of an earlier call that this one does not make: they would be pooled too."""
    wanted = {f"fold{fold}" for fold in args.folds}
    for variant in chosen:
        for seed in args.seeds:
            folder = seed_folder(args.out, variant, seed)
            more = sorted(path.name for path in folder.glob("fold*") if path.name not in wanted)
            if more:
                raise SystemExit(
                    f"error: '{folder}' holds {', '.join(more)} of an earlier call; name all "
                    "its --folds, or choose another --out"
                )


def pretrainings(chosen: Sequence[Variant], args: argparse.Namespace) -> list[Run]:
    """Return the pre-trainings that the variants need, each once."""
    flags = [*PRETRAIN, "--data_path", str(args.data / "pretrain.csv")]
    needed = {variant.pretrained_as for variant in chosen} - {""}
    product = f"checkpoint-{_last_epoch([*PRETRAIN, *args.extra.split()])}.pth"
    return [
        Run(
            args.out / "pretrain" / variant.name,
            "run_pretraining.py",
            [*flags, *(variant.pretrain or ())],
            product,
        )
        for variant in VARIANTS
        if variant.name in needed
    ]


def _last_epoch(flags: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--epochs", type=int)
    return parser.parse_known_args(flags)[0].epochs - 1


def finetunings(chosen: Sequence[Variant], args: argparse.Namespace) -> list[Run]:
    """Return a run for each variant, seed and fold; the pre-trainings are made."""
    runs = []
    for variant in chosen:
        start = []
        if variant.pretrained_as:
            checkpoint = last_checkpoint(args.out / "pretrain" / variant.pretrained_as)
            start = ["--finetune", str(checkpoint)]
        for seed in args.seeds:
            folder = seed_folder(args.out, variant, seed)
            flags = [*FINETUNE, *variant.finetune, *start, "--seed", str(seed)]
            runs += [
                Run(
                    folder / f"fold{fold}",
                    "run_finetuning.py",
                    [*flags, "--data_path", str(args.data / f"fold{fold}")],
                )
                for fold in args.folds
            ]
    return runs


def seed_folder(out: Path, variant: Variant, seed: int) -> Path:
    """Return the folder of a variant's folds."""
    return out / "finetune" / variant.name / f"seed{seed}"


def figures(chosen: Sequence[Variant], args: argparse.Namespace) -> list[Row]:
    """Score every variant and compare it with the baseline, the first one, on the same clips."""
    folders = {
        variant.name: [seed_folder(args.out, variant, seed) for seed in args.seeds]
        for variant in chosen
    }
    drawn = speakers(folders[BASELINE.name], args.data / "meta.csv")
    plan = Plan(RESAMPLES, speakers=drawn)
    rows = []
    for variant in chosen:
        reports = [build(folder, plan=plan, title=variant.name) for folder in folders[variant.name]]
        if variant is BASELINE:
            baseline = reports
        rows.append(row(variant, reports, baseline, last_losses(args.out, variant)))
    return rows


def last_losses(out: Path, variant: Variant) -> dict[str, float]:
    """Return the figures of the last epoch of the pre-training that a variant starts from."""
    if not variant.pretrained_as:
        return {}
    log = out / "pretrain" / variant.pretrained_as / "log.txt"
    return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])


def row(
    variant: Variant,
    reports: Sequence[Report],
    baseline: Sequence[Report],
    losses: dict[str, float],
) -> Row:
    """Gather a variant's figures; one report for each seed."""
    scores = {
        metric: [float(r.value(fold, "last", metric) or 0) for r in reports for fold in r.rows]
        for metric in ("uar", "war")
    }
    bounds = [report.pooled["last"].intervals["uar"] for report in reports]
    found = Row(variant, losses, scores["uar"], scores["war"], _half_width(bounds))
    if reports is baseline:
        return found
    compared = [
        next(
            d
            for c in compare_all(pair)
            if c.kind == "last"
            for d in c.differences
            if d.metric == "uar"
        )
        for pair in zip(baseline, reports, strict=True)
    ]
    return found._replace(
        difference=statistics.mean(d.value - d.baseline for d in compared),
        difference_half_width=_half_width([(d.low, d.high) for d in compared]),
    )


def _half_width(bounds: Sequence[tuple[float, float]]) -> float:
    return statistics.mean((high - low) / 2 for low, high in bounds)


def table(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """Lay the figures out, with what the reader has to know."""
    header = (
        "variant", "flags", "loss video", "audio", "contrast", "top accuracy",
        "UAR", "WAR", "95 %", "difference", "95 %",
    )  # fmt: skip
    folds, seeds = " ".join(args.folds), " ".join(map(str, args.seeds))
    notes = f"""
Losses and accuracy of the contrast are means over the last epoch of pre-training: losses of other
masking ratios are of other patches, the contrast is a sum over the levels that are contrasted, and
"top accuracy" is the share of clips whose own sound is the batch's nearest at the top level, by
chance {chance(args.out):.1f} %. UAR and WAR in percent, last epoch, mean and standard deviation
over {len(rows[0].uar)} run(s): folds {folds}, seeds {seeds} of fine-tuning. "95 %" are half widths
of bootstrap intervals, speakers drawn; the second is that of the difference to the baseline on the
same clips. A difference that is not larger than it, or than that of the baseline pre-trained again,
is no finding.
"""
    return markdown(header, [_cells(row) for row in rows]) + notes


def chance(out: Path) -> float:
    """Return in percent how often a clip's own sound is the nearest of the batch by guessing."""
    config = out / "pretrain" / BASELINE.name / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    return 100 / (settings["optim"]["batch_size"] * settings["data"]["num_samples"])


def _cells(row: Row) -> tuple[str, ...]:
    losses = [
        row.losses.get(f"train_{name}") for name in ("loss_video", "loss_audio", "loss_contrastive")
    ]
    accuracy = top_accuracy(row.losses)
    return (
        row.variant.title,
        f"`{row.variant.changes}`" if row.variant.changes else DASH,
        *(DASH if value is None else f"{value:.4f}" for value in losses),
        DASH if accuracy is None else _percent(accuracy),
        _spread(row.uar),
        _spread(row.war),
        _percent(row.half_width),
        DASH if row.difference is None else f"{100 * row.difference:+.1f}",
        DASH if row.difference_half_width is None else _percent(row.difference_half_width),
    )


def top_accuracy(losses: dict[str, float]) -> float | None:
    """Return the contrastive accuracy of the deepest level that was contrasted."""
    found = [name for name in losses if name.startswith("train_contrastive_acc_")]
    return losses[max(found, key=lambda name: int(name.rpartition("_")[2]))] if found else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _spread(values: Sequence[float]) -> str:
    mean = _percent(statistics.mean(values))
    return f"{mean} ± {_percent(statistics.stdev(values))}" if len(values) > 1 else mean


def as_data(row: Row) -> dict[str, Any]:
    """Return a row for JSON."""
    variant = row.variant
    return {
        "name": variant.name,
        "title": variant.title,
        "pretrain": None if variant.pretrain is None else [*variant.pretrain],
        "finetune": [*variant.finetune],
        **{name: value for name, value in row._asdict().items() if name != "variant"},
    }


if __name__ == "__main__":
    main()
