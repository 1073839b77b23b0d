"""Command line of reports."""

import argparse
import sys
from functools import partial
from pathlib import Path

from hicmae.config import CLASS_METRICS, NUMBER_METRICS, ResamplingConfig
from hicmae.config.flags import Settings, command, from_flags, option
from hicmae.io import check_writable, write_whole

DESCRIPTION = """Tables over the finished folds of an experiment.

One folder: scores of every fold, mean and standard deviation, the pooled Total with bootstrap
intervals, recall of every class; regression: PCC and CCC, per output too. Writes report.md, .tex,
.html and .json into the folder, or only what --markdown, --latex, --html and --json name.
Several folders, tested on the same clips: each of them, and paired tests against --baseline, or
without it against the first."""
ENDINGS = {"markdown": ".md", "latex": ".tex", "html": ".html", "json": ".json"}
NAMES = """names of classes or outputs, a file with one a line, or a data set (default: of the
 run's settings, else classes.txt or targets.txt beside its lists)"""
METRICS = f"""columns: of {", ".join(CLASS_METRICS)} (default: uar war); of a regression
 {", ".join(NUMBER_METRICS)} (default: pcc ccc)"""
file = partial(option, "", metavar="FILE")
FOLDERS = "experiment, one sub-folder a fold"


class Wanted(Settings):
    """What to show, and where to write it."""

    folders: tuple[str, ...] = option((), FOLDERS, positional=True, metavar="FOLDER")
    baseline: str = option("", "experiment that the others are compared with", metavar="FOLDER")
    folds: int | None = option(None, "how many folds there should be")
    titles: tuple[str, ...] = option((), "of the folders, baseline first", metavar="NAME")
    class_names: tuple[str, ...] = option((), NAMES, metavar="NAME", aliases=("classes",))
    metrics: tuple[str, ...] = option((), METRICS, metavar="SCORE")
    markdown: str = file("tables in Markdown")
    latex: str = file("tables for \\input, with booktabs")
    html: str = file("one page with tables and pictures")
    json: str = file("every figure")


def report(args: argparse.Namespace) -> None:
    """Print the tables and write the files, those beside the folds where none is named."""
    # What computes and draws is imported after the flags are parsed.
    from hicmae.report.layout import as_html, as_json, as_latex, as_markdown, document
    from hicmae.report.scores import build, compare_all
    from hicmae.training.resampling import Plan

    files = {kind: Path(getattr(args, kind)) for kind in ENDINGS if getattr(args, kind)}
    folders, titles = [*filter(None, [args.baseline]), *args.folders], args.titles
    if not files and len(folders) == 1:
        files = {kind: Path(folders[0]) / f"report{end}" for kind, end in ENDINGS.items()}
    if titles and len(titles) != len(folders):
        raise ValueError(f"got {len(titles)} --titles for {len(folders)} folders")
    last = [Path(folder).resolve().name for folder in folders]
    titles = titles or (last if len(set(last)) == len(last) else folders)
    if len(set(titles)) < len(titles):
        raise ValueError(f"two of the folders are called alike: {', '.join(titles)}; use --titles")
    makers = {"markdown": as_markdown, "latex": as_latex, "html": as_html}
    plan = from_flags(vars(args), Plan)
    reports = [
        build(folder, args.folds, args.class_names, plan, args.metrics, title)
        for folder, title in zip(folders, titles, strict=True)
    ]
    comparisons = compare_all(reports) if len(reports) > 1 else []
    sections = document(reports, comparisons)
    sys.stdout.write(as_markdown(sections))
    for kind, path in files.items():
        check_writable(path)
        text = makers[kind](sections) if kind in makers else as_json(reports, comparisons)
        write_whole(path, text.rstrip() + "\n")
    if files:
        sys.stdout.write(f"\nwritten: {', '.join(map(str, files.values()))}\n")


main = command(DESCRIPTION, report, Wanted, ResamplingConfig, prog="hicmae-report")

if __name__ == "__main__":
    sys.exit(main())
