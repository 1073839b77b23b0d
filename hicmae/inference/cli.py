"""Command lines of inference: hicmae-predict, hicmae-extract and the export."""

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hicmae.config import PRECISIONS, add_arguments, new_parser
from hicmae.data.clip_list import DATA_SETS, AnyClip, Clip, find_list, name_of, read_any_list
from hicmae.data.media import find_clips
from hicmae.data.video import MODALITIES
from hicmae.inference.clips import Options
from hicmae.inference.model import WEIGHTS, export_checkpoint, export_run
from hicmae.inference.pictures import FILMS, draw_timeline, write_overlay
from hicmae.inference.recognizer import EmotionRecognizer, Failure, Prediction
from hicmae.inference.style import FORMATS
from hicmae.io import (
    UnreadableClip,
    check_writable,
    describe,
    encodable,
    whole_file,
    write_whole,
)

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

    hicmae-extract --data_path PATH --checkpoint PATH --output features.npz

--data_path is a list of this project (<video> [<audio.wav>] [<label> ...], fields separated by a
space), a folder of lists (test.csv, else train.csv) or shards, a video, a folder of videos or a
folder of face frames. In lists of pre-training the wav beside the video is heard, where there is
one. The output has a row for each clip, the mean over its windows,
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
EXPORT = """Turn a fine-tuned or pre-trained checkpoint into config.json and model.safetensors.

    python -m hicmae.inference export CHECKPOINT OUTPUT

CHECKPOINT is the output folder of a finished run, a .pth of this project or of the original
authors, or an export whose classes are to be renamed. OUTPUT becomes a folder with all that
inference needs, in the layout of a model hub; of a run it gets two of them, last/ and best/.
run_finetuning.py does this by itself, in <output_dir>/export/.
"""
LISTS = (".csv", ".txt", ".list")
# What several commands ask.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "checkpoint": dict(
        required=True,
        metavar="PATH",
        help="export folder, output folder of a run, model.safetensors or .pth",
    ),
    "device": dict(default="auto", help="auto, cpu, cuda[:n] or mps (%(default)s)"),
    "batch_size": dict(type=int, default=8, metavar="N", help="windows at once (%(default)s)"),
    "precision": dict(
        default="auto", choices=PRECISIONS, help="auto: bf16 on a GPU that has it, else fp32"
    ),
    "modality": dict(
        choices=MODALITIES,
        help="streams to read (default: those of the model); one stream of a model of both needs "
        "--missing_modality",
    ),
    "data_root": dict(default="", metavar="DIR", help="start of relative names"),
    "quiet": dict(action="store_true", help="no progress bars, no table"),
}
COMPUTING = ("checkpoint", "device", "batch_size")
MODEL = (*COMPUTING, "precision", "modality")


def add_flags(parser: argparse.ArgumentParser, *names: str, title: str = "") -> None:
    """Add flags of the table, in a group of their own where they have a title."""
    group = parser.add_argument_group(title) if title else parser
    for name in names:
        group.add_argument(f"--{name}", **ARGUMENTS[name])


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


def _load(args: argparse.Namespace) -> tuple[EmotionRecognizer, dict[str, Any]]:
    """Load the model that a command line names; returns it and how it reads clips."""
    reading = {item.name: getattr(args, item.name) for item in fields(Options)}
    options = {name: getattr(args, name) for name in MODEL if name != "checkpoint"}
    options |= {"missing_modality": reading.pop("missing_modality"), "progress": not args.quiet}
    return EmotionRecognizer.from_checkpoint(args.checkpoint, **options), reading


# hicmae-predict


def predict(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-predict; returns the exit code."""
    parser = new_parser(PREDICT)
    parser.prog = "hicmae-predict"
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video, or folder of frames")
    parser.add_argument("--audio", metavar="FILE", help="sound to hear instead of the video's own")
    add_flags(parser, *MODEL, title="model")
    add_arguments(parser, Options)
    add_flags(parser, "quiet")
    group = parser.add_argument_group("results; with several videos their names are put in")
    add = partial(group.add_argument, metavar="FILE")
    add("--csv", help="a row for each video")
    add("--windows_csv", help="a row for each window")
    add("--json", help="all there is")
    add("--plot", help="scores over time: .png, .pdf or .svg, one for each video")
    add("--overlay", help="annotated copy: .mp4, for each video")
    return run_command(parser, _predict, argv)


def _predict(args: argparse.Namespace) -> int:
    for path in filter(None, (args.csv, args.windows_csv, args.json)):
        check_writable(path)
    for path, suffixes in ((args.plot, FORMATS), (args.overlay, FILMS)):
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
    drawn = _draw(args, answers, several=len(files) > 1)
    return int(not drawn or len(answers) < len(clips))


def _draw(args: argparse.Namespace, clips: Sequence[list[Prediction]], several: bool) -> bool:
    """Write the pictures and annotated copies; returns whether all could be made."""
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
                    draw_timeline(people, target)
                else:
                    write_overlay(file, people, target, not args.quiet)
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


# hicmae-extract


def extract(argv: Sequence[str] | None = None) -> int:
    """Run hicmae-extract; returns the exit code."""
    parser = new_parser(EXTRACT)
    parser.prog = "hicmae-extract"
    clips = parser.add_mutually_exclusive_group(required=True)
    clips.add_argument("--data_path", metavar="PATH", help="list, folder of lists or shards, video")
    clips.add_argument("list", nargs="?", metavar="PATH", help="the same, without its flag")
    parser.add_argument("--output", required=True, metavar="FILE", help=".npz or .parquet")
    text = "a row for each window, not for each clip"
    parser.add_argument("--per_window", action="store_true", help=text)
    add_flags(parser, "data_root", "quiet")
    add_flags(parser, *MODEL, title="model")
    add_arguments(parser, Options)
    return run_command(parser, _extract, argv)


def _extract(args: argparse.Namespace) -> int:
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


# export


def export(argv: Sequence[str] | None = None) -> int:
    """Run the export; returns the exit code."""
    parser = new_parser(EXPORT)
    parser.prog = "python -m hicmae.inference export"
    parser.add_argument("checkpoint", help="run, .pth, export folder or model.safetensors")
    parser.add_argument("output", help="folder to make")
    known = ", ".join(dict.fromkeys(name for name, _ in DATA_SETS))
    text = f"names of the classes or outputs; or a file with a name a line; or a data set: {known}"
    parser.add_argument("--class_names", nargs="+", default=(), metavar="NAME", help=text)
    add = parser.add_argument_group("settings that a .pth does not say").add_argument
    add("--num_frames", type=int, metavar="N", help="video frames of a clip (16)")
    text = "frames from one sampled frame to the next (4)"
    add("--sampling_rate", type=int, metavar="N", help=text)
    add("--input_size", type=int, metavar="N", help="height and width of a face in pixels (160)")
    text = "frames a second of the training videos (measured, else 25)"
    add("--frame_rate", type=float, metavar="N", help=text)
    text = "steps and mel bins (256 128)"
    add("--input_size_audio", type=int, nargs=2, metavar="N", help=text)
    text = "what the head gives (classification)"
    add("--task", choices=("classification", "regression"), help=text)
    add("--head_activation", choices=("sigmoid", "relu", "tanh"), help="of the outputs (none)")

    def run(args: argparse.Namespace) -> int:
        options = vars(args)
        path, output = Path(options.pop("checkpoint")), options.pop("output")
        is_run = path.is_dir() and not (path / WEIGHTS).is_file()
        (export_run if is_run else export_checkpoint)(path, output, **options)
        return 0

    return run_command(parser, run, argv)
