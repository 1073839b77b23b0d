"""Command line of reports."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hicmae.config import CLASS_METRICS, NUMBER_METRICS, ResamplingConfig
from hicmae.config.flags import add_arguments, from_flags, new_parser
from hicmae.io import check_writable, describe, write_whole

DESCRIPTION = """Tables over the finished folds of an experiment.

One folder: scores of every fold, mean and standard deviation, the pooled Total with bootstrap
intervals, recall of every class; regression: PCC and CCC, per output too. Writes report.md, .tex,
.html and .json into the folder, or only what --markdown, --latex, --html and --json name.
Several folders, tested on the same clips: each of them, and paired tests against --baseline, or
without it against the first."""
ENDINGS = {"markdown": ".md", "latex": ".tex", "html": ".html", "json": ".json"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = new_parser(DESCRIPTION)
    parser.prog = "hicmae-report"
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="experiment, one sub-folder a fold")
    add("--baseline", metavar="FOLDER", help="experiment that the others are compared with")
    add("--folds", type=int, metavar="N", help="how many folds there should be")
    add("--titles", nargs="+", default=(), metavar="NAME", help="of the folders, baseline first")
    add("--class_names", "--classes", nargs="+", default=(), metavar="NAME",
        help="names of classes or outputs, a file with one a line, or a data set (default: of the "
        "run's settings, else classes.txt or targets.txt beside its lists)")  # fmt: skip
    add("--metrics", nargs="+", default=(), metavar="SCORE",
        help=f"columns: of {', '.join(CLASS_METRICS)} (default: uar war); of a regression "
        f"{', '.join(NUMBER_METRICS)} (default: pcc ccc)")  # fmt: skip
    add_arguments(parser, ResamplingConfig)
    add = parser.add_argument_group("files to write").add_argument
    add("--markdown", metavar="FILE", help="tables in Markdown")
    add("--latex", metavar="FILE", help="tables for \\input, with booktabs")
    add("--html", metavar="FILE", help="one page with tables and pictures")
    add("--json", metavar="FILE", help="every figure")
    return parser


def titles_of(folders: Sequence[str], titles: Sequence[str]) -> Sequence[str]:
    """Return what folders are called: their titles, or their last part where that is enough."""
    if titles and len(titles) != len(folders):
        raise ValueError(f"got {len(titles)} --titles for {len(folders)} folders")
    last = [Path(folder).resolve().name for folder in folders]
    titles = titles or (last if len(set(last)) == len(last) else folders)
    if len(set(titles)) < len(titles):
        raise ValueError(f"two of the folders are called alike: {', '.join(titles)}; use --titles")
    return titles


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write the files, those beside the folds where none is named."""
    parser = build_parser()
    args = parser.parse_args(argv)  # what computes and draws is imported after that
    from hicmae.report.layout import as_html, as_json, as_latex, as_markdown, document
    from hicmae.report.scores import build, compare_all
    from hicmae.training.resampling import Plan

    files = {kind: Path(getattr(args, kind)) for kind in ENDINGS if getattr(args, kind)}
    if not files and len(args.folders) == 1 and not args.baseline:
        files = {kind: Path(args.folders[0]) / f"report{end}" for kind, end in ENDINGS.items()}
    folders = [*filter(None, [args.baseline]), *args.folders]
    makers = {"markdown": as_markdown, "latex": as_latex, "html": as_html}
    try:
        plan = from_flags(vars(args), Plan)
        reports = [
            build(folder, args.folds, args.class_names, plan, args.metrics, title)
            for folder, title in zip(folders, titles_of(folders, args.titles), strict=True)
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
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {describe(error)}\n")


if __name__ == "__main__":
    main()
