"""What the commands of inference do once their flags are parsed, see `cli`."""

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hicmae.config import Options
from hicmae.data.clip_list import AnyClip, Clip, find_list, name_of, read_any_list
from hicmae.data.media import find_clips
from hicmae.inference.cli import MODEL
from hicmae.inference.model import WEIGHTS, export_checkpoint, export_run
from hicmae.inference.recognizer import EmotionRecognizer, Failure, Prediction
from hicmae.io import (
    UnreadableClip,
    check_writable,
    describe,
    encodable,
    whole_file,
    write_whole,
)

logger = logging.getLogger(__name__)

LISTS = (".csv", ".txt", ".list")


def _load(args: argparse.Namespace) -> tuple[EmotionRecognizer, dict[str, Any]]:
    """Load the model that a command line names; returns it and how it reads clips."""
    reading = {item.name: getattr(args, item.name) for item in fields(Options)}
    options = {name: getattr(args, name) for name in MODEL if name != "checkpoint"}
    options |= {"missing_modality": reading.pop("missing_modality"), "progress": not args.quiet}
    return EmotionRecognizer.from_checkpoint(args.checkpoint, **options), reading


def predict(args: argparse.Namespace) -> int:
    """Answer about videos and write what is asked for; returns the exit code."""
    for path in filter(None, (args.csv, args.windows_csv, args.json)):
        check_writable(path)
    if args.plot or args.overlay:
        from hicmae.inference import pictures, style  # bring matplotlib

        for path, suffixes in ((args.plot, style.FORMATS), (args.overlay, pictures.FILMS)):
            if path:
                check_writable(path, suffixes)
    files = [file for name in args.videos for file in find_clips(name)]
    if args.audio and len(files) > 1:
        raise ValueError(f"--audio goes with one video, got {len(files)}")
    recognizer, reading = _load(args)
    asked = [(file, args.audio) for file in files]
    clips: list[list[Any]] = []  # the people of each, or a Failure
    try:
        for answer in recognizer.each(asked, on_error="return", **reading):
            clips.append(answer if isinstance(answer, list) else [answer])
    except KeyboardInterrupt:
        answered = sum(not isinstance(people[0], Failure) for people in clips)
        logger.warning("interrupted: %d clips are answered, the others are left out", answered)
        clips.append([Failure("", "interrupted")])
    results = [result for people in clips for result in people]
    if args.csv:
        write_csv(args.csv, table(results, recognizer.names))
    if args.windows_csv:
        write_csv(args.windows_csv, table(results, recognizer.names, by_window=True))
    if args.json:
        content = [result.to_dict() for result in results]
        text = encodable(json.dumps(content, indent=2, ensure_ascii=False))
        write_whole(args.json, text + "\n")
    if not args.quiet:
        sys.stdout.write(short_table(results) + "\n")
    answers = [people for people in clips if isinstance(people[0], Prediction)]
    wanted = args.plot or args.overlay
    drawn = not wanted or _draw(args, answers, several=len(files) > 1)
    return int(not drawn or len(answers) < len(clips))


def _draw(args: argparse.Namespace, clips: Sequence[list[Prediction]], several: bool) -> bool:
    """Write the pictures and annotated copies; returns whether all could be made."""
    from hicmae.inference import pictures

    drawn, taken = True, set[str]()
    for people in clips:
        file = people[0].file
        stem = Path(file).stem
        names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        for path in filter(None, (args.plot, args.overlay)):
            target = Path(path).with_stem(f"{Path(path).stem}-{name}") if several else Path(path)
            try:
                if path == args.plot:
                    pictures.draw_timeline(people, target)
                else:
                    pictures.write_overlay(file, people, target, not args.quiet)
            except (UnreadableClip, OSError, ValueError) as error:
                logger.error("no picture of '%s': %s", file, describe(error))
                drawn = False
    return drawn


def table(results: Iterable[Any], names: Sequence[str], by_window: bool = False) -> pd.DataFrame:
    """Return a row for each person, or for each window of each person, as text."""
    rows: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Failure):
            failed = {"file": result.file, "status": "failed", "reason": result.reason}
            rows += [] if by_window else [failed]
            continue
        for part in result.windows if by_window else [result]:
            label = part.label if result.task == "classification" else None
            row = {"file": result.file, "person": result.person, "label": label}
            if by_window:
                row |= {"start": f"{part.start:.3f}", "end": f"{part.end:.3f}"}
                row |= {"status": part.status}
            else:
                row |= {"status": "done", "reason": "; ".join(result.notes)}
                row |= {"seconds": f"{result.duration:.2f}"}
            rows.append(row | {name: f"{score:.6f}" for name, score in part.scores.items()})
    own = ["start", "end", "status"] if by_window else ["status", "reason", "seconds"]
    return pd.DataFrame(rows, columns=["file", "person", *own, "label", *names], dtype=object)


def short_table(results: Iterable[Any]) -> str:
    """Return a table for the terminal: the two likeliest classes or all values of each result."""
    rows = []
    for result in results:
        name = Path(result.file).name
        if isinstance(result, Failure):
            rows.append([name, "", "", "", result.reason])
            continue
        if result.person:
            name += f" (person {result.person + 1})"
        best = sorted(result.scores.items(), key=lambda item: -item[1])[:2]
        cells = [f"{name} {100 * share:.1f} %" for name, share in best]
        if result.task == "regression":
            cells = ["  ".join(f"{name} {value:.3f}" for name, value in result.values.items())]
        cells += [""] * (2 - len(cells))
        rows.append([name, f"{result.duration:.1f}", *cells, "; ".join(result.notes)])
    frame = pd.DataFrame(rows, columns=["file", "s", "answer", "next", "note"], dtype=object)
    return str(frame.to_markdown(index=False, tablefmt="plain", disable_numparse=True))


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table; names of files need not be UTF-8."""
    with whole_file(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", errors="surrogateescape")


def extract(args: argparse.Namespace) -> int:
    """Write the features of a list of clips; returns the exit code."""
    output = Path(args.output)
    check_writable(output, (".npz", ".parquet"))
    is_table = output.suffix.lower() == ".parquet"
    if is_table and importlib.util.find_spec("pyarrow") is None:  # said before an hour of work
        raise ValueError(".parquet needs the package pyarrow: pip install pyarrow, or write .npz")
    items = read_items(args.data_path or args.list, args.data_root)
    recognizer, reading = _load(args)
    rows, failures = [], []
    reading |= {"features": True, "on_error": "return"}
    answers = recognizer.each([clip for clip, _ in items], **reading)
    for (clip, label), found in zip(items, answers, strict=True):
        if isinstance(found, Failure):
            logger.warning("%s", found.reason)
            failures.append(found)
            continue
        named = {"clip": name_of(clip), "label": label}
        windows = {"start": found.start, "end": found.end, **found.arrays}
        if args.per_window:
            parts = (zip(windows, row, strict=True) for row in zip(*windows.values(), strict=True))
            rows += [{**named, **dict(part)} for part in parts]
        else:
            rows.append({**named, **found.mean()})
    if not rows:
        reason = failures[-1].reason
        raise ValueError(f"none of {len(items)} clips could be read; the last: {reason}")
    columns = _columns(rows)
    with whole_file(output) as part:
        if is_table:  # a column of lists for each level, or for each block
            lists: dict[str, list[Any]] = {}
            for name, values in columns.items():
                blocks = values.swapaxes(0, 1) if values.ndim == 3 else [values]
                number = "_{}" if values.ndim == 3 else ""
                lists |= {name + number.format(k): list(v) for k, v in enumerate(blocks)}
            lists["clip"] = [encodable(name) for name in lists["clip"]]
            pd.DataFrame(lists).to_parquet(part, index=False)
        else:
            np.savez(part, **columns)  # type: ignore[arg-type]  # the stub takes all for its flag
    levels = ", ".join(f"{n} {a.shape}" for n, a in columns.items() if a.dtype == np.float32)
    logger.info("written: %s: %s", output, levels)
    if failures:
        failed = output.with_name(output.name + ".failed.csv")
        write_csv(failed, pd.DataFrame(map(vars, failures), dtype=object))
        logger.warning("%d of %d clips failed, see %s", len(failures), len(items), failed)
    return int(bool(failures))


def read_items(path: str, data_root: str = "") -> list[tuple[AnyClip, list[str]]]:
    """Read a list, the one of a folder, or shards, or find the clips in a folder or a film."""
    for place in (Path(path), Path(path) / "test.csv", Path(path) / "train.csv"):
        is_list = place.suffix.lower() in LISTS or place.is_dir() or place.name.endswith(".json")
        if is_list and find_list(place):
            return read_any_list(place, data_root)
    if not Path(path).exists():
        raise FileNotFoundError(f"'{path}' does not exist")
    return [(Clip(file, None, None), []) for file in find_clips(path)]


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put rows into columns; levels that a row lacks are nan, labels numbers where all are."""
    labels = [row.pop("label") for row in rows]
    columns = {"clip": np.array([row.pop("clip") for row in rows])}
    if all(labels):
        try:
            if all(len(label) == 1 and label[0].lstrip("-").isdecimal() for label in labels):
                columns["label"] = np.array([int(label[0]) for label in labels])
            else:
                columns["label"] = np.array([[float(value) for value in label] for label in labels])
        except ValueError:
            columns["label"] = np.array([" ".join(label) for label in labels])
    for name, like in {name: value for row in rows for name, value in row.items()}.items():
        nothing = np.full_like(like, np.nan)
        columns[name] = np.stack([row.get(name, nothing) for row in rows])
    return columns


def export(args: argparse.Namespace) -> int:
    """Export one model, or the last and the best of a run; returns the exit code."""
    options = vars(args)
    path, output = Path(options.pop("checkpoint")), options.pop("output")
    is_run = path.is_dir() and not (path / WEIGHTS).is_file()
    (export_run if is_run else export_checkpoint)(path, output, **options)
    return 0
