"""Table over the finished folds of an experiment: `python -m hicmae.report FOLDER`.

Total is pooled: the predictions of all folds are put together and scored once, as in the published
tables. It is not the mean of the rows.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hicmae.folds import (
    KINDS,
    METRICS_FILES,
    PredictionTable,
    chosen_on,
    fold_folders,
    pool,
    read_json,
    read_predictions,
)


class Row(NamedTuple):
    """Scores of one fold, or of all of them pooled; None where there is no such file."""

    name: str
    last: dict[str, Any] | None
    best: dict[str, Any] | None


class Report(NamedTuple):
    """All that is printed: rows by fold, the pooled total, and what the reader has to know."""

    folder: Path
    rows: list[Row]
    total: Row
    references: dict[str, float]
    notes: list[str]
    names: list[str]
    is_regression: bool


def build(
    folder: str | Path,
    folds: int | None = None,
    references: dict[str, float] | None = None,
    names: Sequence[str] = (),
) -> Report:
    """Score every finished fold and the union of their predictions.

    Args:
        folder: experiment folder with one sub-folder a fold.
        folds: how many there should be; None: only gaps in the numbering are noticed.
        references: named figures in percent to print under the table, e.g. the chance level.
        names: of the classes or regression outputs.
    """
    finished, unfinished = fold_folders(folder)
    if not finished:
        waiting = ", ".join(p.name for p in unfinished) or "nothing"
        raise FileNotFoundError(
            f"no sub-folder of '{folder}' holds {' or '.join(KINDS.values())} yet (started: "
            f"{waiting}); run run_finetuning.py for its folds first"
        )
    found: dict[str, dict[str, PredictionTable]] = {
        kind: {p.name: read_predictions(p / file) for p in finished if (p / file).is_file()}
        for kind, file in KINDS.items()
    }
    rows = [
        Row(p.name, *(found[k][p.name].scores() if p.name in found[k] else None for k in KINDS))
        for p in finished
    ]
    pooled = {k: pool(list(parts.values())) if parts else None for k, parts in found.items()}
    some = pooled["last"] or pooled["best"]
    assert some is not None  # `finished` has at least one of the two files in each folder
    notes = _missing_notes(finished, unfinished, folds, found)
    for kind, parts in found.items():
        notes += _duplicate_notes(KINDS[kind], parts)
    return Report(
        Path(folder),
        rows,
        Row("Total", *(part.scores() if part else None for part in pooled.values())),
        references or {},
        notes + _skipped_notes(finished) + _chosen_notes(finished),
        [names[k] if k < len(names) else str(k) for k in range(some.num_outputs)],
        some.is_regression,
    )


def _missing_notes(
    finished: list[Path],
    unfinished: list[Path],
    folds: int | None,
    found: dict[str, dict[str, PredictionTable]],
) -> list[str]:
    """Name folds that are unfinished, absent, or without one of the two prediction files."""
    notes = [f"{path.name} is not finished: it has no predictions" for path in unfinished]
    known = [path.name for path in finished + unfinished]
    numbers = {int(digits[-1]) for name in known if (digits := re.findall(r"\d+", name))}
    absent = sorted(set(range(1, (folds or max(numbers, default=0)) + 1)) - numbers)
    if absent and (numbers or folds):
        notes.append(f"missing: fold {', '.join(map(str, absent))}")
    for kind, file in KINDS.items():
        lacking = [path.name for path in finished if path.name not in found[kind]]
        if lacking and len(lacking) < len(finished):
            notes.append(f"no {file} in {', '.join(lacking)}: not part of that Total")
    if len(notes) > 0:
        notes.append("Total covers the finished folds only")
    return notes


def _duplicate_notes(file: str, parts: dict[str, PredictionTable]) -> list[str]:
    """Name clips that were tested more than once."""
    where: dict[str, list[str]] = {}
    for fold, part in parts.items():
        for clip in part.clips:
            where.setdefault(clip, []).append(fold)
    repeated = {clip: seen for clip, seen in where.items() if len(seen) > 1}
    if not repeated:
        return []
    shown = "; ".join(
        f"'{clip}' in {' and '.join(_times(seen))}" for clip, seen in list(repeated.items())[:3]
    )
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return [f"{file}: clips counted more than once: {shown}{more}"]


def _times(names: list[str]) -> list[str]:
    return [f"{name} ({n} times)" if n > 1 else name for name, n in Counter(names).items()]


def _chosen_notes(finished: list[Path]) -> list[str]:
    """Say on which file the best epochs were chosen."""
    sources: dict[str, list[str]] = {}
    for path in finished:
        source = chosen_on(path) if (path / KINDS["best"]).is_file() else ""
        if source:
            sources.setdefault(Path(source).name, []).append(path.name)
    if not sources:
        return []
    parts = [f"{s} ({', '.join(f)})" if len(sources) > 1 else s for s, f in sources.items()]
    seen = any(source.startswith("test") for source in sources)
    warning = ", the test list itself, as published: read the best columns as upper bounds"
    return [f"best epoch chosen on {' and '.join(parts)}{warning if seen else ''}"]


def _skipped_notes(finished: list[Path]) -> list[str]:
    """Say how many clips of which fold were left out of the scores."""
    notes = []
    for path in finished:
        skipped = read_json(path / METRICS_FILES["last"]).get("skipped") or []
        if skipped:
            notes.append(f"{path.name}: {len(skipped)} clips unreadable and not scored")
    return notes


def _columns(report: Report) -> list[tuple[str, str]]:
    """Return (kind of predictions, metric) of every figure in the main table."""
    metrics = ("pcc", "ccc") if report.is_regression else ("uar", "war")
    kinds = [kind for kind in KINDS if getattr(report.total, kind) is not None]
    return [(kind, metric) for kind in kinds for metric in metrics]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.2f}"


def _score(scores: dict[str, Any] | None, metric: str) -> str:
    """Return a metric in percent; of regression metrics the mean over outputs."""
    value = scores[metric] if scores else None
    return _percent(value["mean"] if isinstance(value, dict) else value)


def main_table(report: Report) -> list[list[str]]:
    """Return heading, one row a fold, Total, and the reference figures (in the UAR columns)."""
    columns = _columns(report)
    cells = [["fold", "clips", *(f"{metric.upper()} {kind}" for kind, metric in columns)]]
    for row in (*report.rows, report.total):
        count = (row.last or row.best or {"count": "-"})["count"]
        figures = [_score(getattr(row, kind), metric) for kind, metric in columns]
        cells.append([row.name, str(count), *figures])
    for name, percent in report.references.items():
        cells.append([name, "", *(f"{percent:.2f}" if m == "uar" else "" for _, m in columns)])
    return cells


def detail_table(report: Report) -> list[list[str]]:
    """Return the pooled figures of every class (recall) or output (PCC, CCC), heading first."""
    kinds = [kind for kind in KINDS if getattr(report.total, kind) is not None]
    if report.is_regression:
        heading = ["output", *(f"{m.upper()} {k}" for k, m in _columns(report))]
        figures = [
            [_percent(value) for value in getattr(report.total, kind)[metric]["per_output"]]
            for kind, metric in _columns(report)
        ]
    else:
        heading = ["class", "clips", *(f"recall {kind}" for kind in kinds)]
        counts = [str(sum(row)) for row in getattr(report.total, kinds[0])["confusion"]]
        recalls = [getattr(report.total, kind)["recall"] for kind in kinds]
        figures = [counts, *([_percent(value) for value in column] for column in recalls)]
    return [heading, *([n, *c] for n, *c in zip(report.names, *figures, strict=True))]


def _aligned(cells: list[list[str]], rules: Sequence[int]) -> list[str]:
    """Lay cells out in columns, the first one flush left; draw a line above the rows in `rules`."""
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = []
    for number, row in enumerate(cells):
        padded = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        if number in rules:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
        lines.append("  ".join([row[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return lines


def as_text(report: Report) -> str:
    """Return the report as plain aligned text, for terminals and log files alike."""
    total = 1 + len(report.rows)
    lines = [f"{report.folder}: scores in percent, Total = all clips pooled", ""]
    lines += _aligned(main_table(report), (1, total, total + 1))
    lines += ["", *_aligned(detail_table(report), (1,))]
    return "\n".join([*lines, "", *(f"note: {note}" for note in report.notes)]).rstrip() + "\n"


def as_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report.folder.name}", "", "Scores in percent; Total: all clips pooled.", ""]
    for cells in (main_table(report), detail_table(report)):
        safe = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        lines += [f"| {' | '.join(row)} |" for row in safe[:1]]
        lines += ["| --- |" + " ---: |" * (len(cells[0]) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in safe[1:]] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in report.notes)]).rstrip() + "\n"


def as_data(report: Report) -> dict[str, Any]:
    """Return the report for JSON: all metrics of every fold and of the union, as fractions."""
    return {
        "folder": str(report.folder),
        "names": report.names,
        "folds": [row._asdict() for row in report.rows],
        "total": report.total._asdict(),
        "references_percent": report.references,
        "notes": report.notes,
    }


def write(report: Report) -> list[Path]:
    """Write `report.md` and `report.json` into the experiment folder."""
    contents = {
        "report.md": as_markdown(report),
        "report.json": json.dumps(as_data(report), indent=2),
    }
    paths = []
    for name, text in contents.items():
        path = report.folder / name
        temporary = path.with_name(name + ".tmp")
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
        temporary.replace(path)
        paths.append(path)
    return paths


def read_names(path: str | Path) -> list[str]:
    """Read the names of classes or outputs, one a line, in the order of their numbers."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"'{path}' does not exist; expected one class name a line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


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


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and write it beside the folds."""
    parser = argparse.ArgumentParser(prog="python -m hicmae.report", description=__doc__)
    parser.add_argument("folder", help="experiment folder, one sub-folder a fold")
    parser.add_argument("--folds", type=int, metavar="N", help="how many folds there should be")
    parser.add_argument("--classes", metavar="FILE", help="class or output names, one a line")
    parser.add_argument("--chance", action="store_true", help="add the chance level, 100 / classes")
    parser.add_argument("--ceilings", default="", metavar="NAME=PERCENT,...", help="figures to add")
    args = parser.parse_args(argv)
    try:
        names = read_names(args.classes) if args.classes else []
        references = parse_references(args.ceilings)
        report = build(args.folder, args.folds, references, names)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if args.chance and not report.is_regression:
        report = report._replace(references={"chance": 100.0 / len(report.names), **references})
    written = ", ".join(str(path) for path in write(report))
    sys.stdout.write(f"{as_text(report)}\nwritten: {written}\n")


if __name__ == "__main__":
    main()
