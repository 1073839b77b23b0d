"""Command lines of inference: hicmae-predict and hicmae-extract."""

import argparse
import csv
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hicmae.config import new_parser
from hicmae.data.clip_list import wav_of
from hicmae.data.video import FRAME_EXTENSIONS
from hicmae.inference.clips import FACES, MISSING, PROTOCOLS
from hicmae.inference.pictures import FILMS, draw_timeline, write_overlay
from hicmae.inference.recognizer import EmotionRecognizer, Failure, Features, Prediction, Result
from hicmae.inference.style import FORMATS
from hicmae.io import UnreadableClip, check_writable, describe, whole_file

logger = logging.getLogger(__name__)

PREDICT = """Predict emotions in videos with a trained model.

    hicmae-predict VIDEO... --checkpoint FOLDER [--csv FILE --json FILE --plot FILE --overlay FILE]

VIDEO is a video file, a folder of videos (searched with its subfolders), a folder of face frames,
or, with a model that reads sound only, a sound file. FOLDER is what run_finetuning.py leaves in its
output folder (export/best, export/last), or that output folder itself; a .pth does too.

Without installation: python -m hicmae.inference predict. Exit code: 0; 1 where a clip could not be
read, which the table and the files say; 2 where the command is wrong.
"""
EXTRACT = """Write the features of a list of clips, by a model of either stage.

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

Without installation: python -m hicmae.inference extract. Exit code: 0; 1 where a clip could not be
read; 2 where the command is wrong.
"""
SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .flv .mpg .mpeg .wmv .3gp .ts .mts "
    ".wav .m4a .aac .mp3 .flac .ogg .opus .wma".split()
)
SOUNDS = (".wav", ".flac", ".m4a", ".mp3", ".aac", ".ogg", ".opus")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LISTS = (".csv", ".txt", ".list")
Columns = dict[str, np.ndarray]


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse a command line and run it; returns the exit code, 2 after a mistake in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (OSError, ValueError, UnreadableClip) as error:
        logger.error("error: %s", describe(error))
        return 2


def add_checkpoint_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say which model computes where."""
    text = "export folder, output folder of a run, model.safetensors or .pth"
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:n] or mps (%(default)s)")
    text = "windows at once (%(default)s)"
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help=text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model reads clips, and how."""
    group = parser.add_argument_group("model")
    add_checkpoint_arguments(group)
    text = "auto: bf16 on a GPU that has it, else fp32"
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=text)
    text = (
        "streams to read (default: those of the model); one stream of a model of both needs "
        "--missing_modality"
    )
    group.add_argument("--modality", choices=("av", "a", "v"), help=text)
    text = (
        "what a model of both streams does without one: error: refuse the clip (default); "
        "zeros: black frames or silence; drop: leave it out"
    )
    group.add_argument("--missing_modality", choices=MISSING, default="error", help=text)
    group = parser.add_argument_group("reading of clips")
    text = (
        "auto: cut faces out of videos, take folders of frames as they are (default); "
        "largest: cut out the main face; all: an answer for each person; cut: frames are faces"
    )
    group.add_argument("--faces", choices=FACES, default="auto", help=text)
    text = "seconds of a sliding window (default: what the model saw at once in training)"
    group.add_argument("--window", type=float, metavar="S", help=text)
    text = "seconds windows share (default: half of one)"
    group.add_argument("--overlap", type=float, metavar="S", help=text)
    text = "windows: slide over the clip (default); test: the views of run_finetuning.py's test"
    group.add_argument("--protocol", choices=PROTOCOLS, default="windows", help=text)
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no table")


def load_recognizer(args: argparse.Namespace) -> tuple[EmotionRecognizer, dict[str, Any]]:
    """Load the model that `add_model_arguments` names; returns it and how it reads clips."""
    flags = ("device", "precision", "modality", "missing_modality", "batch_size")
    options = {name: getattr(args, name) for name in flags}
    model = EmotionRecognizer.from_checkpoint(args.checkpoint, progress=not args.quiet, **options)
    reading = ("faces", "window", "overlap", "protocol")
    return model, {"on_error": "return", **{name: getattr(args, name) for name in reading}}


def find_files(names: Iterable[str]) -> list[str]:
    """Return the clips that names mean: folders of frames stay, other folders are searched.

    Raises:
        FileNotFoundError: a folder holds nothing to read.
    """
    files: list[str] = []
    for name in names:
        if not os.path.isdir(name) or any(
            file.lower().endswith(FRAME_EXTENSIONS) for file in os.listdir(name)
        ):
            files.append(name)
            continue
        found = sorted(
            os.path.join(folder, file)
            for folder, _, content in os.walk(name)
            for file in content
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        )
        if not found:
            raise FileNotFoundError(f"folder '{name}' holds no video, sound file or face frame")
        files += found
    return files


# hicmae-predict


def predict_parser() -> argparse.ArgumentParser:
    """Return the command line of hicmae-predict."""
    parser = new_parser(PREDICT)
    parser.prog = "hicmae-predict"
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video, or folder of frames")
    parser.add_argument("--audio", metavar="FILE", help="sound to hear instead of the video's own")
    add_model_arguments(parser)
    group = parser.add_argument_group("results; with several videos their names are put in")
    for flag, text in (
        ("csv", "a row for each video"),
        ("windows_csv", "a row for each window"),
        ("json", "all there is"),
        ("plot", "scores over time: .png, .pdf or .svg, one for each video"),
        ("overlay", "annotated copy: .mp4, for each video"),
    ):
        group.add_argument(f"--{flag}", metavar="FILE", help=text)
    return parser


def predict(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-predict; returns the exit code."""
    return run_command(predict_parser(), _predict, argv)


def _predict(args: argparse.Namespace) -> int:
    for path in filter(None, (args.csv, args.windows_csv, args.json)):
        check_writable(path)
    for path, suffixes in ((args.plot, FORMATS), (args.overlay, FILMS)):
        if path:
            check_writable(path, suffixes)
    files = find_files(args.videos)
    if args.audio and len(files) > 1:
        raise ValueError(f"--audio goes with one video, got {len(files)}")
    recognizer, reading = load_recognizer(args)
    pairs = [(file, args.audio) for file in files]
    results: list[Result] = []
    clips: list[list[Prediction]] = []  # the answered ones
    try:
        for answer in recognizer.predict_each(pairs, **reading):
            people = answer if isinstance(answer, list) else [answer]
            results += people
            if not isinstance(people[0], Failure):
                clips.append(people)
    except KeyboardInterrupt:
        logger.warning("interrupted: %d clips are answered, the others are left out", len(clips))
        results.append(Failure("", "interrupted"))
    _write(args, results, recognizer.names)
    drawn = _draw(args, clips, several=len(files) > 1)
    return int(not drawn or any(isinstance(result, Failure) for result in results))


def _write(args: argparse.Namespace, results: Sequence[Result], names: Sequence[str]) -> None:
    """Write the files that are asked for and print the table."""
    if args.csv:
        write_csv(args.csv, table(results, names))
    if args.windows_csv:
        write_csv(args.windows_csv, windows_table(results, names))
    if args.json:
        text = json.dumps([result.to_dict() for result in results], indent=2, ensure_ascii=False)
        with whole_file(args.json) as part:
            part.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    if not args.quiet:
        sys.stdout.write(short_table(results) + "\n")


def _draw(args: argparse.Namespace, clips: Sequence[list[Prediction]], several: bool) -> bool:
    """Write the pictures and annotated copies; returns whether all could be made."""
    drawn, taken = True, set[str]()
    for people in clips:
        file = people[0].file
        stem = name = Path(file).stem
        number = 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)

        def named(path: str, name: str = name) -> Path:
            return Path(path).with_stem(f"{Path(path).stem}-{name}") if several else Path(path)

        if args.plot:
            draw_timeline(people, named(args.plot))
        if args.overlay:
            try:
                write_overlay(file, people, named(args.overlay), not args.quiet)
            except UnreadableClip as error:
                logger.error("no annotated copy: %s", error)
                drawn = False
    return drawn


def table(results: Iterable[Result], names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each person or failed file, as text."""
    rows: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Failure):
            rows.append({"file": result.file, "status": "failed", "reason": result.reason})
            continue
        notes, seconds = "; ".join(result.notes), f"{result.duration:.2f}"
        row = {"file": result.file, "person": result.person, "status": "done", "reason": notes}
        rows.append({**row, "seconds": seconds, "label": result.label, **_texts(result.scores)})
    columns = ["file", "person", "status", "reason", "seconds", "label", *names]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def windows_table(results: Iterable[Result], names: Sequence[str]) -> pd.DataFrame:
    """Return a row for each window of each person, as text."""
    rows = [
        {
            "file": result.file,
            "person": result.person,
            "start": f"{window.start:.3f}",
            "end": f"{window.end:.3f}",
            "status": window.status,
            "label": window.label if result.task == "classification" else None,
            **_texts(window.scores),
        }
        for result in results
        if not isinstance(result, Failure)
        for window in result.windows
    ]
    columns = ["file", "person", "start", "end", "status", "label", *names]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _texts(scores: dict[str, float]) -> dict[str, str]:
    return {name: f"{score:.6f}" for name, score in scores.items()}


def short_table(results: Iterable[Result]) -> str:
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


# hicmae-extract


class Item(NamedTuple):
    """A line of the list: video, its sound if it is named, and the label's fields."""

    video: str
    audio: str | None
    label: tuple[str, ...]


def extract_parser() -> argparse.ArgumentParser:
    """Return the command line of hicmae-extract."""
    parser = new_parser(EXTRACT)
    parser.prog = "hicmae-extract"
    parser.add_argument("data_path", metavar="LIST", help="list of clips, video or folder")
    parser.add_argument("--output", required=True, metavar="FILE", help=".npz or .parquet")
    parser.add_argument("--data_root", default="", metavar="DIR", help="start of relative names")
    parser.add_argument(
        "--per_window", action="store_true", help="a row for each window, not for each clip"
    )
    add_model_arguments(parser)
    return parser


def extract(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-extract; returns the exit code."""
    return run_command(extract_parser(), _extract, argv)


def _extract(args: argparse.Namespace) -> int:
    output = Path(args.output)
    check_writable(output, (".npz", ".parquet"))
    is_table = output.suffix.lower() == ".parquet"
    if is_table and importlib.util.find_spec("pyarrow") is None:  # said before an hour of work
        raise ValueError(".parquet needs the package pyarrow: pip install pyarrow, or write .npz")
    items = read_items(args.data_path, args.data_root)
    pairs = [(item.video, item.audio) for item in items]
    recognizer, reading = load_recognizer(args)
    found = recognizer.features_each(pairs, **reading)
    columns, failures = collect(items, found, args.per_window)
    with whole_file(output) as part:
        if is_table:
            parquet_table(columns).to_parquet(part, index=False)
        else:
            np.savez(part, **columns)  # type: ignore[arg-type]  # the stub takes all for its flag
    levels = ", ".join(f"{n} {a.shape}" for n, a in columns.items() if a.dtype == np.float32)
    logger.info("written: %s: %s", output, levels)
    if failures:
        failed = output.with_name(output.name + ".failed.csv")
        write_csv(failed, pd.DataFrame(map(vars, failures), dtype=object))
        logger.warning("%d of %d clips failed, see %s", len(failures), len(items), failed)
    return int(bool(failures))


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
    chosen: list[Item] = []
    rows: list[dict[str, np.ndarray]] = []
    for item, features in zip(items, found, strict=True):
        if isinstance(features, Failure):
            logger.warning("%s", features.reason)
            failures.append(features)
            continue
        windows = {"start": features.start, "end": features.end, **features.arrays}
        count = len(features.start)
        new = [{name: array[k] for name, array in windows.items()} for k in range(count)]
        rows += new if per_window else [features.mean()]
        chosen += [item] * (count if per_window else 1)
    if not rows:
        reason = failures[-1].reason
        raise ValueError(f"none of {len(items)} clips could be read; the last: {reason}")
    columns = {"clip": np.array([item.video for item in chosen])}
    if all(item.label for item in chosen):
        columns["label"] = _labels([item.label for item in chosen])
    for name, like in {name: value for row in rows for name, value in row.items()}.items():
        nothing = np.full_like(like, np.nan)
        columns[name] = np.stack([row.get(name, nothing) for row in rows])
    return columns, failures


def _labels(labels: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return (n,) class indices, (n, K) numbers, or (n,) text where they are neither."""
    if all(len(label) == 1 and label[0].lstrip("-").isdecimal() for label in labels):
        return np.array([int(label[0]) for label in labels])
    try:
        return np.array([[float(value) for value in label] for label in labels])
    except ValueError:
        return np.array([" ".join(label) for label in labels])


def parquet_table(columns: Columns) -> pd.DataFrame:
    """Return a table in which every level is a column of lists, of several blocks one for each."""
    parts: Columns = {}
    for name, values in columns.items():
        blocks = {
            f"{name}_{k}": values[:, k] for k in range(values.shape[1] if values.ndim == 3 else 0)
        }
        parts |= blocks or {name: values}
    return pd.DataFrame({name: list(values) for name, values in parts.items()})
