"""Command line of reports."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hicmae.config import flat_settings, new_parser
from hicmae.data.splits import PATTERNS, SPEAKER_FILE, find_speakers
from hicmae.io import describe, write_whole
from hicmae.report.comparison import compare_all
from hicmae.report.page import as_html
from hicmae.report.resampling import Plan
from hicmae.report.scores import (
    CLASS_METRICS,
    KINDS,
    NUMBER_METRICS,
    Report,
    build,
    fold_folders,
    read_json,
    read_predictions,
)
from hicmae.report.tables import as_data, as_latex, as_text, document

DESCRIPTION = """Tables over the finished folds of an experiment.

One folder: scores of every fold, mean and standard deviation, the pooled Total with bootstrap
intervals, recall of every class; regression: PCC and CCC, per output too. Writes report.md, .tex,
.html and .json into the folder, or only what --markdown, --latex, --html and --json name.
Several folders, tested on the same clips: each of them, and paired tests against the first."""
ENDINGS = {"markdown": ".md", "latex": ".tex", "html": ".html", "json": ".json"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = new_parser(DESCRIPTION)
    parser.prog = "python -m hicmae.report"
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="experiment, one sub-folder a fold")
    add("--folds", type=int, metavar="N", help="how many folds there should be")
    add("--titles", nargs="+", default=(), metavar="NAME", help="of the folders, in their order")
    add("--class_names", "--classes", nargs="+", default=(), metavar="NAME",
        help="names of classes or outputs, a file with one a line, or a data set (default: of the "
        "run's settings, else classes.txt or targets.txt beside its lists)")  # fmt: skip
    add("--metrics", nargs="+", default=(), metavar="SCORE",
        help=f"columns: of {', '.join(CLASS_METRICS)} (default: uar war); of a regression "
        f"{', '.join(NUMBER_METRICS)} (default: pcc ccc)")  # fmt: skip
    add("--chance", action="store_true", help="add the chance level, 100 / classes")
    add("--ceilings", default="", metavar="NAME=PERCENT,...", help="figures to add")
    add = parser.add_argument_group("intervals and tests").add_argument
    add("--resamples", type=int, default=5000, metavar="N", help="draws; 0: none (default: 5000)")
    add("--confidence", type=float, default=95, metavar="PERCENT", help="coverage (default: 95)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    text = f"draw speakers instead of clips, by {SPEAKER_FILE} beside the lists of the first run"
    add("--by_speaker", action="store_true", help=text)
    add("--speaker_file", default="", metavar="FILE", help="the same by a csv with clip,speaker")
    add("--speaker_pattern", default="", metavar="REGEX",
        help="the same by the group of a pattern in clips' names, e.g. '^(\\d{4})_', or by the "
        f"name of a data set: {', '.join(PATTERNS)}")  # fmt: skip
    add = parser.add_argument_group("files to write").add_argument
    add("--markdown", metavar="FILE", help="tables in Markdown")
    add("--latex", metavar="FILE", help="tables for \\input, with booktabs")
    add("--html", metavar="FILE", help="one page with tables and pictures")
    add("--json", metavar="FILE", help="every figure")
    return parser


def make_plan(args: argparse.Namespace) -> Plan:
    """Check the settings of resampling and look up the speaker of every tested clip."""
    if args.resamples < 0 or args.seed < 0:
        raise ValueError("--resamples and --seed must not be negative")
    if not 0 < args.confidence < 100:
        raise ValueError(f"--confidence must be in percent, 0 to 100, got {args.confidence:g}")
    plan = Plan(args.resamples, args.confidence / 100, args.seed)
    chosen = sum(map(bool, (args.by_speaker, args.speaker_file, args.speaker_pattern)))
    if chosen > 1:
        raise ValueError("give one of --by_speaker, --speaker_file and --speaker_pattern")
    if not chosen:
        return plan
    runs = [fold for folder in args.folders for fold in fold_folders(folder)[0]]
    folder = Path()
    if args.by_speaker:
        settings = flat_settings(read_json(runs[0] / "config.json")) if runs else {}
        folder = Path(settings.get("data_path") or "of no run")
        if not any((place / SPEAKER_FILE).is_file() for place in (folder, folder.parent)):
            raise FileNotFoundError(
                f"--by_speaker finds no {SPEAKER_FILE} beside the lists of the runs ('{folder}'); "
                "give --speaker_file or --speaker_pattern"
            )
    paths = [fold / file for fold in runs for file in KINDS.values()]
    tables = [read_predictions(path) for path in paths if path.is_file()]
    names = list(dict.fromkeys(clip for table in tables for clip in table.clips))
    found = find_speakers(names, folder, file=args.speaker_file, pattern=args.speaker_pattern)
    return plan._replace(speakers=dict(zip(names, found, strict=True)))


def build_all(args: argparse.Namespace) -> list[Report]:
    """Score every folder of the command line, called by its last part where that is enough."""
    references = {}
    for part in filter(None, map(str.strip, args.ceilings.split(","))):
        name, _, value = part.partition("=")
        try:
            references[name.strip()] = float(value)
        except ValueError:
            expected = "--ceilings expects 'name=percent,name=percent'"
            raise ValueError(f"{expected}, got '{part}'") from None
    plan, folders, titles = make_plan(args), args.folders, args.titles
    if titles and len(titles) != len(folders):
        raise ValueError(f"got {len(titles)} --titles for {len(folders)} folders")
    last = [Path(folder).resolve().name for folder in folders]
    titles = titles or (last if len(set(last)) == len(last) else folders)
    if len(set(titles)) < len(titles):
        raise ValueError(f"two of the folders are called alike: {', '.join(titles)}; use --titles")
    reports = []
    for folder, title in zip(folders, titles, strict=True):
        report = build(folder, args.folds, references, args.class_names, plan, args.metrics, title)
        if args.chance and not report.is_regression:
            chance = {"chance": 100.0 / len(report.names)}
            report = report._replace(references=chance | report.references)
        reports.append(report)
    return reports


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write the files, those beside the folds where none is named."""
    parser = build_parser()
    args = parser.parse_args(argv)
    files = {kind: Path(getattr(args, kind)) for kind in ENDINGS if getattr(args, kind)}
    if not files and len(args.folders) == 1:
        files = {kind: Path(args.folders[0]) / f"report{end}" for kind, end in ENDINGS.items()}
    try:
        reports = build_all(args)
        comparisons = compare_all(reports) if len(reports) > 1 else []
        sections = document(reports, comparisons)
        sys.stdout.write(as_text(sections))
        makers = {
            "markdown": lambda: as_text(sections, markdown=True),
            "latex": lambda: as_latex(sections),
            "html": lambda: as_html(sections),
            "json": lambda: json.dumps(as_data(reports, comparisons), indent=2, allow_nan=False),
        }
        for kind, path in files.items():
            write_whole(path, makers[kind]().rstrip() + "\n")
        if files:
            sys.stdout.write(f"\nwritten: {', '.join(map(str, files.values()))}\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {describe(error)}\n")


if __name__ == "__main__":
    main()
