"""Write the features of a list of clips, of a fine-tuned model or a pre-training checkpoint.

    hicmae-extract LIST --checkpoint PATH --output features.npz

LIST is a list of this project (<video> [<audio.wav>] [<label> ...], fields separated by a space), a
video, a folder of videos or a folder of face frames. In lists of pre-training the wav beside the
video is heard, where there is one. The output has a row for each clip, the mean over its windows,
or with --per_window a row for each window:

    clip, label (where the list has any), start, end (with --per_window, in seconds)
    video_layers, audio_layers   (rows, blocks, width): every block's output, averaged over tokens
    video, audio                 (rows, width): their mix by the learned layer weights
    fusion_video, fusion_audio   (rows, width): of the fusion encoder
    fused                        (rows, 4 * width): what the head reads

A pre-training checkpoint has the layers and the fusion. features.parquet needs
pip install pyarrow; it has a column of lists for each level, and one for each block. Clips that
cannot be read are named in OUTPUT.failed.csv.

Without installation: python -m hicmae.inference.extract. Exit code: 0; 1 where a clip could not be
read; 2 where the command is wrong.
"""

import argparse
import csv
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hicmae.config import new_parser
from hicmae.data.clip_list import wav_of
from hicmae.inference.predict import (
    add_model_arguments,
    find_files,
    load_recognizer,
    reading_options,
)
from hicmae.inference.recognizer import Features
from hicmae.inference.results import Failure
from hicmae.io import check_writable, describe, whole_file

logger = logging.getLogger(__name__)

LISTS = (".csv", ".txt", ".list")
SOUNDS = (".wav", ".flac", ".m4a", ".mp3", ".aac", ".ogg", ".opus")
Columns = dict[str, np.ndarray]


class Item(NamedTuple):
    """A line of the list: video, its sound if it is named, and the label's fields."""

    video: str
    audio: str | None
    label: tuple[str, ...]


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(str(__doc__))
    parser.prog = "hicmae-extract"
    parser.add_argument("list", metavar="LIST", help="list of clips, video or folder")
    parser.add_argument("--output", required=True, metavar="FILE", help=".npz or .parquet")
    parser.add_argument("--data_root", default="", metavar="DIR", help="start of relative names")
    parser.add_argument(
        "--per_window", action="store_true", help="a row for each window, not for each clip"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    add_model_arguments(parser)
    return parser


def read_items(path: str, data_root: str = "") -> list[Item]:
    """Read a list, or find the clips in a folder."""
    if os.path.isdir(path) or Path(path).suffix.lower() not in LISTS:
        if not os.path.exists(path):
            raise FileNotFoundError(f"'{path}' does not exist")
        return [Item(file, None, ()) for file in find_files([path])]
    if not os.path.isfile(path):
        raise FileNotFoundError(f"list '{path}' does not exist")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            rows = [fields for fields in csv.reader(file, delimiter=" ", strict=True) if fields]
        except csv.Error as error:
            raise ValueError(f"list '{path}' cannot be read: {error}") from None
    if not rows:
        raise ValueError(f"list '{path}' is empty")
    return [_item(fields, data_root) for fields in rows]


def _item(fields: list[str], data_root: str) -> Item:
    video, *rest = fields
    video = os.path.join(data_root, video)
    if rest and rest[0].lower().endswith(SOUNDS):
        return Item(video, os.path.join(data_root, rest[0]), tuple(rest[1:]))
    beside = wav_of(video)
    has_wav = not os.path.isdir(video) and beside != video and os.path.isfile(beside)
    return Item(video, beside if has_wav else None, tuple(rest))


def collect(
    items: Sequence[Item], found: Iterable[Features | Failure], per_window: bool
) -> tuple[Columns, list[Failure]]:
    """Put the features of all clips into columns; levels that a clip lacks are nan.

    Raises:
        ValueError: no clip has features.
    """
    failures: list[Failure] = []
    rows: list[tuple[Item, float, float, dict[str, np.ndarray]]] = []
    for item, features in zip(items, found, strict=True):
        if isinstance(features, Failure):
            logger.warning("%s", features.reason)
            failures.append(features)
        elif per_window:
            for k, (start, end) in enumerate(zip(features.start, features.end, strict=True)):
                levels = {name: array[k] for name, array in features.arrays.items()}
                rows.append((item, float(start), float(end), levels))
        else:
            rows.append((item, float(features.start[0]), float(features.end[-1]), features.mean()))
    if not rows:
        raise ValueError(
            f"none of {len(items)} clips could be read; the last: {failures[-1].reason}"
        )
    columns = {"clip": np.array([item.video for item, *_ in rows])}
    if all(item.label for item, *_ in rows):
        columns["label"] = _labels([item.label for item, *_ in rows])
    if per_window:
        columns["start"] = np.array([start for _, start, _, _ in rows])
        columns["end"] = np.array([end for _, _, end, _ in rows])
    shapes = {name: array.shape for *_, levels in rows for name, array in levels.items()}
    for name, shape in shapes.items():
        nothing = np.full(shape, np.nan, np.float32)
        columns[name] = np.stack([levels.get(name, nothing) for *_, levels in rows])
    return columns, failures


def _labels(labels: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return (n,) class indices, (n, K) numbers, or (n,) text where they are neither."""
    if all(len(label) == 1 and label[0].lstrip("-").isdecimal() for label in labels):
        return np.array([int(label[0]) for label in labels])
    try:
        return np.array([[float(value) for value in label] for label in labels])
    except ValueError:
        return np.array([" ".join(label) for label in labels])


def write_npz(path: str | Path, columns: Columns) -> None:
    """Write arrays by name; read them with numpy.load."""
    with whole_file(path) as part:
        np.savez(part, **columns)  # type: ignore[arg-type]  # the stub takes all for its flag


def write_parquet(path: str | Path, columns: Columns) -> None:
    """Write a table; every level is a column of lists, a level of several blocks one for each."""
    arrow = _pyarrow()
    table: dict[str, Any] = {}
    for name, values in columns.items():
        if values.ndim == 1:
            table[name] = arrow.array(values.tolist())
            continue
        blocks = {name: values}
        if values.ndim == 3:
            blocks = {f"{name}_{k}": values[:, k] for k in range(values.shape[1])}
        for key, rows in blocks.items():
            flat = arrow.array(np.ascontiguousarray(rows).ravel())
            table[key] = arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    with whole_file(path) as part:
        importlib.import_module("pyarrow.parquet").write_table(arrow.table(table), part)


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise ValueError(
            ".parquet needs the package pyarrow: pip install pyarrow, or write .npz"
        ) from None


WRITERS = {".npz": write_npz, ".parquet": write_parquet}


def run(args: argparse.Namespace) -> int:
    """Extract and write; returns the exit code."""
    output = Path(args.output)
    check_writable(output, tuple(WRITERS))
    if output.suffix.lower() == ".parquet":
        _pyarrow()  # said before an hour of work
    items = read_items(args.list, args.data_root)
    recognizer = load_recognizer(args, not args.quiet)
    pairs = [(item.video, item.audio) for item in items]
    found = recognizer.features_each(pairs, on_error="return", **reading_options(args))
    columns, failures = collect(items, found, args.per_window)
    WRITERS[output.suffix.lower()](output, columns)
    levels = ", ".join(f"{n} {a.shape}" for n, a in columns.items() if a.dtype == np.float32)
    logger.info("written: %s: %s", output, levels)
    if failures:
        failed = output.with_name(output.name + ".failed.csv")
        with (
            whole_file(failed) as part,
            open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("file", "reason"), *((f.file, f.reason) for f in failures)])
        logger.warning("%d of %d clips failed, see %s", len(failures), len(items), failed)
    return int(bool(failures))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
