"""Predict emotions in videos with a trained model.

    hicmae-predict VIDEO... --checkpoint FOLDER [--csv FILE --json FILE --plot FILE --overlay FILE]

VIDEO is a video file, a folder of videos (searched with its subfolders), a folder of face frames,
or, with a model that reads sound only, a sound file. FOLDER is what run_finetuning.py leaves in its
output folder (export/best, export/last), or that output folder itself; a .pth does too.

Without installation: python -m hicmae.inference.predict. Exit code: 0; 1 where a clip could not be
read, which the table and the files say; 2 where the command is wrong.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hicmae.config import new_parser
from hicmae.data.video import FRAME_EXTENSIONS
from hicmae.inference.clips import FACES, MISSING, PROTOCOLS
from hicmae.inference.pictures import FILMS, draw_timeline, write_overlay
from hicmae.inference.recognizer import EmotionRecognizer
from hicmae.inference.results import (
    Failure,
    Prediction,
    Result,
    table,
    write_csv,
    write_json,
    write_windows_csv,
)
from hicmae.io import UnreadableClip, check_writable, describe

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .flv .mpg .mpeg .wmv .3gp .ts .mts "
    ".wav .m4a .aac .mp3 .flac .ogg .opus .wma".split()
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model reads clips, and how."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="export folder, output folder of a run, model.safetensors or .pth",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (%(default)s)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 on a GPU that has it, else fp32",
    )
    group.add_argument(
        "--batch_size", type=int, default=8, metavar="N", help="windows at once (%(default)s)"
    )
    group.add_argument(
        "--modality",
        choices=("av", "a", "v"),
        help="streams to read (default: those of the model); one stream of a model of both needs "
        "--missing_modality",
    )
    group.add_argument(
        "--missing_modality",
        choices=MISSING,
        default="error",
        help="what a model of both streams does without one: error: refuse the clip (default); "
        "zeros: black frames or silence; drop: leave it out",
    )
    group = parser.add_argument_group("reading of clips")
    group.add_argument(
        "--faces",
        choices=FACES,
        default="auto",
        help="auto: cut faces out of videos, take folders of frames as they are (default); "
        "largest: cut out the main face; all: an answer for each person; cut: frames are faces",
    )
    group.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a sliding window (default: what the model saw at once in training)",
    )
    group.add_argument(
        "--overlap", type=float, metavar="S", help="seconds windows share (default: half of one)"
    )
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="windows",
        help="windows: slide over the clip (default); test: the views of run_finetuning.py's test",
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = new_parser(str(__doc__))
    parser.prog = "hicmae-predict"
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video, or folder of frames")
    parser.add_argument("--audio", metavar="FILE", help="sound to hear instead of the video's own")
    add_model_arguments(parser)
    group = parser.add_argument_group("results; with several videos their names are put in")
    group.add_argument("--csv", metavar="FILE", help="a row for each video")
    group.add_argument("--windows_csv", metavar="FILE", help="a row for each window")
    group.add_argument("--json", metavar="FILE", help="all there is")
    group.add_argument(
        "--plot", metavar="FILE", help="scores over time: .png, .pdf or .svg, one for each video"
    )
    group.add_argument("--overlay", metavar="FILE", help="annotated copy: .mp4, for each video")
    group.add_argument("--quiet", action="store_true", help="no progress bars, no table")
    return parser


def find_files(names: Iterable[str]) -> list[str]:
    """Return the clips that names mean: folders of frames stay, other folders are searched.

    Raises:
        FileNotFoundError: a folder holds nothing to read.
    """
    files: list[str] = []
    for name in names:
        if not os.path.isdir(name) or _holds_frames(name):
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


def load_recognizer(args: argparse.Namespace, progress: bool) -> EmotionRecognizer:
    """Load the model that the flags of `add_model_arguments` name."""
    return EmotionRecognizer.from_checkpoint(
        args.checkpoint,
        device=args.device,
        precision=args.precision,
        modality=args.modality,
        missing_modality=args.missing_modality,
        batch_size=args.batch_size,
        progress=progress,
    )


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `predict` that the flags give."""
    return {name: getattr(args, name) for name in ("faces", "window", "overlap", "protocol")}


def run(args: argparse.Namespace) -> list[Result]:
    """Predict all videos and write all files; returns a result for each person or failed file."""
    for path, suffixes in (
        (args.csv, ()),
        (args.windows_csv, ()),
        (args.json, ()),
        (args.plot, (".png", ".pdf", ".svg")),
        (args.overlay, FILMS),
    ):
        if path:
            check_writable(path, suffixes)
    files = find_files(args.videos)
    if args.audio and len(files) > 1:
        raise ValueError(f"--audio goes with one video, got {len(files)}")
    recognizer = load_recognizer(args, not args.quiet)
    pairs = [(file, args.audio) for file in files]
    results: list[Result] = []
    clips: list[list[Prediction]] = []  # the answered ones
    answers = recognizer.predict_each(pairs, on_error="return", **reading_options(args))
    try:
        for answer in answers:
            people = answer if isinstance(answer, list) else [answer]
            results += people
            if not isinstance(people[0], Failure):
                clips.append(people)
    except KeyboardInterrupt:
        logger.warning("interrupted: %d clips are answered, the others are left out", len(clips))
        results.append(Failure("", "interrupted"))
    for path, write in (
        (args.csv, write_csv),
        (args.windows_csv, write_windows_csv),
    ):
        if path:
            write(path, results, recognizer.names)
    if args.json:
        write_json(args.json, results)
    if not args.quiet:
        sys.stdout.write(table(results, recognizer.names) + "\n")
    return results + _draw(args, clips, several=len(files) > 1)


def _draw(
    args: argparse.Namespace, clips: Sequence[list[Prediction]], several: bool
) -> list[Result]:
    """Write the pictures and annotated copies; returns what failed."""
    failures: list[Result] = []
    taken: set[str] = set()
    for people in clips:
        file = people[0].file
        name = _distinct(Path(file).stem, taken) if several else ""
        if args.plot:
            draw_timeline(people, _with_name(args.plot, name))
        if args.overlay:
            try:
                write_overlay(file, people, _with_name(args.overlay, name), not args.quiet)
            except UnreadableClip as error:
                logger.error("no annotated copy: %s", error)
                failures.append(Failure(file, str(error)))
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        results = run(args)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return 2
    return int(any(isinstance(result, Failure) for result in results))


def _holds_frames(folder: str) -> bool:
    return any(name.lower().endswith(FRAME_EXTENSIONS) for name in os.listdir(folder))


def _distinct(stem: str, taken: set[str]) -> str:
    """Return a name that no other video of this command has."""
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return name


def _with_name(path: str, name: str) -> Path:
    """Put a video's name into a file name: out.png -> out-clip.png."""
    given = Path(path)
    return given.with_name(f"{given.stem}-{name}{given.suffix}") if name else given


if __name__ == "__main__":
    sys.exit(main())
