"""Audio alone, video alone and both on the synthetic benchmark, against what each can reach.

    python scripts/toy/modalities.py [--jobs 2]

Both comes from the folds of scripts/demo.sh; audio and video are fine-tuned with the same settings
from the same pre-training checkpoint (--modality a, --modality v). A second table scores the model
of both when one stream is missing at test time. Folds are pooled, the model is that after the last
epoch. Everything stands in OUT/table.md too.
"""

import subprocess
import sys
from pathlib import Path

from runs import ROOT, Run, last_checkpoint, new_parser, run_all, speakers

sys.path.insert(0, str(ROOT))  # works without installation

from hicmae.io import markdown
from hicmae.report.resampling import Plan
from hicmae.report.scores import Report, build

# What the benchmark's design allows in percent (preprocess/toy_av.py): sound cannot tell valences
# apart, and the picture cannot tell arousals apart.
ROWS = {"a": ("audio", "33.3"), "v": ("video", "50.0"), "av": ("audio and video", "100.0")}


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = new_parser(__doc__, "modalities")
    args = parser.parse_args(argv)
    pretrained = last_checkpoint(args.demo / "pretrain")
    both = sorted((args.demo / "folds").glob("fold*"))
    if not both:
        raise SystemExit(f"error: no folds in '{args.demo / 'folds'}'; run scripts/demo.sh first")
    runs = [
        Run(
            args.out / modality / fold.name,
            "run_finetuning.py",
            ["--data_path", str(args.data / fold.name), "--finetune", str(pretrained)]
            + ["--modality", modality],
        )
        for modality in ("a", "v")
        for fold in both
    ]
    run_all(runs, args.jobs, args.extra)
    folders = {"a": args.out / "a", "v": args.out / "v", "av": args.demo / "folds"}
    plan = Plan(speakers=speakers(list(folders.values()), args.data / "meta.csv"))
    rows = [row(*ROWS[m], build(folder, plan=plan)) for m, folder in folders.items()]
    header = ("streams", "can reach", "UAR", "95 % interval", "WAR", "clips")
    text = markdown(header, rows) + "\n" + missing_table(both, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")


def row(name: str, ceiling: str, report: Report) -> tuple[str, ...]:
    """Return the figures of the pooled folds, last epoch, in percent."""
    pooled = report.pooled["last"]
    uar, war = (100 * report.value(report.total, "last", metric) for metric in ("uar", "war"))
    low, high = (100 * bound for bound in pooled.intervals["uar"])
    spread = f"{low:.1f} to {high:.1f}"
    return name, ceiling, f"{uar:.2f}", spread, f"{war:.2f}", str(len(pooled.table.clips))


def missing_table(folds: list[Path], data: Path) -> str:
    """Score the models of both streams without sound and without picture."""
    pairs = [
        str(path)
        for fold in folds
        for path in (fold / "export/last", data / fold.name / "test.csv")
    ]
    command = [sys.executable, str(ROOT / "scripts/missing_modality.py"), *pairs]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


if __name__ == "__main__":
    main()
