"""Command line of reports."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hicmae.config import OneLineParser
from hicmae.data.clip_list import read_names
from hicmae.data.splits import PATTERNS, find_speakers
from hicmae.data.splits import SPEAKER_FILE as FILE
from hicmae.folds import KINDS, fold_folders, read_json, read_predictions
from hicmae.inference.model import flat_settings
from hicmae.report.comparison import compare_all
from hicmae.report.layout import as_data, as_latex, as_markdown, as_text
from hicmae.report.page import as_html
from hicmae.report.resampling import Plan
from hicmae.report.scores import CLASS_METRICS, NUMBER_METRICS, Report, build
from hicmae.report.tables import Section, document

DESCRIPTION = """Tables over the finished folds of an experiment.

One folder: scores of every fold, mean and standard deviation, the pooled Total with bootstrap
intervals, recall of every class; regression: PCC and CCC, per output too. Writes report.md, .tex,
.html and .json into the folder, or only what --markdown, --latex, --html and --json name.
Several folders, tested on the same clips: each of them, and paired tests against the first."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = OneLineParser(
        prog="python -m hicmae.report",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="experiment, one sub-folder a fold"
    )
    parser.add_argument("--folds", type=int, metavar="N", help="how many folds there should be")
    parser.add_argument(
        "--titles", nargs="+", default=(), metavar="NAME", help="of the folders, in their order"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class or output names, one a line (default: of the run's settings, else "
        "classes.txt or targets.txt beside its lists)",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="SCORE",
        help=f"columns: of {', '.join(CLASS_METRICS)} (default: uar war); of a regression "
        f"{', '.join(NUMBER_METRICS)} (default: pcc ccc)",
    )
    parser.add_argument("--chance", action="store_true", help="add the chance level, 100 / classes")
    parser.add_argument("--ceilings", default="", metavar="NAME=PERCENT,...", help="figures to add")
    _add_resampling(parser)
    files = parser.add_argument_group("files to write")
    files.add_argument("--markdown", metavar="FILE", help="tables in Markdown")
    files.add_argument("--latex", metavar="FILE", help="tables for \\input, with booktabs")
    files.add_argument("--html", metavar="FILE", help="one page with tables and pictures")
    files.add_argument("--json", metavar="FILE", help="every figure")
    return parser


def _add_resampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("intervals and tests")
    group.add_argument(
        "--resamples", type=int, default=5000, metavar="N", help="draws; 0: none (default: 5000)"
    )
    group.add_argument(
        "--confidence", type=float, default=95, metavar="PERCENT", help="coverage (default: 95)"
    )
    group.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    group.add_argument(
        "--by_speaker",
        action="store_true",
        help=f"draw speakers instead of clips, by {FILE} beside the lists of the first run",
    )
    group.add_argument(
        "--speaker_file", default="", metavar="FILE", help="the same by a csv with clip,speaker"
    )
    group.add_argument(
        "--speaker_pattern",
        default="",
        metavar="REGEX",
        help="the same by the group of a pattern in clips' names, e.g. '^(\\d{4})_', or by the "
        f"name of a data set: {', '.join(PATTERNS)}",
    )


def parse_references(text: str) -> dict[str, float]:
    """Read "video only=50,audio only=33.3" into names and percent."""
    references = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            references[name.strip()] = float(value)
        except ValueError as error:
            raise ValueError(
                f"--ceilings expects 'name=percent,name=percent', got '{part}'"
            ) from error
    return references


def make_plan(args: argparse.Namespace, folders: Sequence[str]) -> Plan:
    """Check the settings of resampling and look up the speaker of every clip."""
    if args.resamples < 0 or args.seed < 0:
        raise ValueError("--resamples and --seed must not be negative")
    if not 0 < args.confidence < 100:
        raise ValueError(f"--confidence must be in percent, 0 to 100, got {args.confidence:g}")
    plan = Plan(args.resamples, args.confidence / 100, args.seed)
    chosen = [bool(v) for v in (args.by_speaker, args.speaker_file, args.speaker_pattern)]
    if sum(chosen) > 1:
        raise ValueError("give one of --by_speaker, --speaker_file and --speaker_pattern")
    return plan._replace(speakers=speakers_of(args, folders)) if any(chosen) else plan


def speakers_of(args: argparse.Namespace, folders: Sequence[str]) -> dict[str, str]:
    """Look up the speaker of every tested clip."""
    runs = [fold for folder in folders for fold in fold_folders(folder)[0]]
    paths = [fold / file for fold in runs for file in KINDS.values()]
    tables = [read_predictions(path) for path in paths if path.is_file()]
    names = list(dict.fromkeys(clip for table in tables for clip in table.clips))
    file = args.speaker_file or (speaker_table(runs) if args.by_speaker else "")
    found = find_speakers(names, Path(), file=file, pattern=args.speaker_pattern)
    return dict(zip(names, found, strict=True))


def speaker_table(runs: Sequence[Path]) -> str:
    """Find the table of speakers beside the lists that a run was trained on."""
    settings = flat_settings(read_json(runs[0] / "config.json")) if runs else {}
    folder = Path(settings.get("data_path") or "")
    for path in (folder / FILE, folder.parent / FILE):
        if settings.get("data_path") and path.is_file():
            return str(path)
    raise FileNotFoundError(
        f"--by_speaker finds no {FILE} beside the lists of the runs ('{folder}'); give "
        "--speaker_file or --speaker_pattern"
    )


def titles_of(folders: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Name each folder, by its last part where that tells them apart."""
    if titles and len(titles) != len(folders):
        raise ValueError(f"got {len(titles)} --titles for {len(folders)} folders")
    last = [Path(folder).resolve().name for folder in folders]
    found = list(titles) or (last if len(set(last)) == len(last) else list(folders))
    if len(set(found)) < len(found):
        raise ValueError(f"two of the folders are called alike: {', '.join(found)}; use --titles")
    return found


def build_all(args: argparse.Namespace) -> list[Report]:
    """Score every folder that the command line names."""
    names = read_names(args.classes) if args.classes else []
    references, plan = parse_references(args.ceilings), make_plan(args, args.folders)
    titles = titles_of(args.folders, args.titles)
    reports = []
    for folder, title in zip(args.folders, titles, strict=True):
        report = build(folder, args.folds, references, names, plan, args.metrics, title)
        if args.chance and not report.is_regression:
            chance = {"chance": 100.0 / len(report.names)}
            report = report._replace(references=chance | report.references)
        reports.append(report)
    return reports


def chosen_files(args: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each format, those beside the folds where none is named."""
    named = {"markdown": args.markdown, "latex": args.latex, "html": args.html, "json": args.json}
    files = {kind: Path(file) for kind, file in named.items() if file}
    if files or len(args.folders) > 1:
        return files
    endings = {"markdown": ".md", "latex": ".tex", "html": ".html", "json": ".json"}
    return {kind: Path(args.folders[0]) / f"report{ending}" for kind, ending in endings.items()}


def write(files: dict[str, Path], sections: Sequence[Section], data: object) -> None:
    """Write each format; a reader sees the old file or the whole new one."""
    makers = {
        "markdown": lambda: as_markdown(sections),
        "latex": lambda: as_latex(sections),
        "html": lambda: as_html(sections),
        "json": lambda: json.dumps(data, indent=2, allow_nan=False) + "\n",
    }
    for kind, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(makers[kind](), encoding="utf-8")
        temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write the files."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        reports = build_all(args)
        comparisons = compare_all(reports) if len(reports) > 1 else []
        sections, files = document(reports, comparisons), chosen_files(args)
        sys.stdout.write(as_text(sections))
        write(files, sections, as_data(reports, comparisons))
        if files:
            sys.stdout.write(f"\nwritten: {', '.join(map(str, files.values()))}\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
