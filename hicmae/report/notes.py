"""What the reader of a table has to know: missing folds, repeated clips, where best was chosen."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hicmae.folds import KINDS, METRICS_FILES, PredictionTable, chosen_on, read_json

# Settings in which the folds of one experiment may differ: where, on what, and how fast.
_FREE = {"run", "data_path", "data_root", "val_path", "finetune", "batch_size", "accum_iter"}

Parts = dict[str, dict[str, PredictionTable]]  # kind -> fold -> its predictions


def notes_on(
    finished: Sequence[Path], unfinished: Sequence[Path], folds: int | None, parts: Parts
) -> list[str]:
    """Collect every note on an experiment, the most important first."""
    notes = _missing(finished, unfinished, folds, parts)
    for kind, tables in parts.items():
        notes += _duplicates(KINDS[kind], tables)
    return [*notes, *_skipped(finished), *_mixed(finished), *_chosen(finished)]


def _missing(
    finished: Sequence[Path], unfinished: Sequence[Path], folds: int | None, parts: Parts
) -> list[str]:
    """Name folds that are unfinished, absent, or without one of the two prediction files."""
    notes = [f"{path.name} is not finished: it has no predictions" for path in unfinished]
    known = [path.name for path in (*finished, *unfinished)]
    numbers = {int(digits[-1]) for name in known if (digits := re.findall(r"\d+", name))}
    absent = sorted(set(range(1, (folds or max(numbers, default=0)) + 1)) - numbers)
    if absent and (numbers or folds) and (folds or len(known) > 1):
        notes.append(f"missing: fold {', '.join(map(str, absent))}")
    for kind, file in KINDS.items():
        lacking = [path.name for path in finished if path.name not in parts[kind]]
        if lacking and len(lacking) < len(finished):
            notes.append(f"no {file} in {', '.join(lacking)}: not part of that Total")
    if notes:
        notes.append("Total covers the finished folds only")
    return notes


def _duplicates(file: str, tables: dict[str, PredictionTable]) -> list[str]:
    """Name clips that were tested more than once."""
    where: dict[str, list[str]] = {}
    for fold, table in tables.items():
        for clip in table.clips:
            where.setdefault(clip, []).append(fold)
    repeated = {clip: seen for clip, seen in where.items() if len(seen) > 1}
    if not repeated:
        return []
    shown = "; ".join(
        f"'{clip}' in {' and '.join(_times(seen))}" for clip, seen in list(repeated.items())[:3]
    )
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return [f"{file}: clips counted more than once: {shown}{more}"]


def _times(names: Sequence[str]) -> list[str]:
    return [f"{name} ({n} times)" if n > 1 else name for name, n in Counter(names).items()]


def _skipped(finished: Sequence[Path]) -> list[str]:
    """Say how many clips of which fold were left out of the scores."""
    notes = []
    for path in finished:
        skipped = read_json(path / METRICS_FILES["last"]).get("skipped") or []
        if skipped:
            notes.append(f"{path.name}: {len(skipped)} clips unreadable and not scored")
    return notes


def _mixed(finished: Sequence[Path]) -> list[str]:
    """Say in which settings the folds differ, though they should be one experiment."""
    values: dict[str, dict[str, list[str]]] = {}
    for path in finished:
        for name, value in _settings(read_json(path / "config.json")).items():
            values.setdefault(name, {}).setdefault(json.dumps(value), []).append(path.name)
    mixed = {name: seen for name, seen in values.items() if len(seen) > 1}
    if not mixed:
        return []
    shown = "; ".join(
        f"{name} is " + ", ".join(f"{value} in {' '.join(at)}" for value, at in seen.items())
        for name, seen in list(mixed.items())[:3]
    )
    more = f" and {len(mixed) - 3} more settings" if len(mixed) > 3 else ""
    return [f"the folds were not trained alike: {shown}{more}"]


def _settings(tree: dict[str, Any]) -> dict[str, Any]:
    """Flatten the settings that decide what a fold's scores mean."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in _FREE:
            flat |= _settings(value) if isinstance(value, dict) else {name: value}
    return flat


def _chosen(finished: Sequence[Path]) -> list[str]:
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
