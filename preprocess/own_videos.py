"""Prepare your own videos: wavs, aligned faces and lists, ready for run_finetuning.py.

    python preprocess/own_videos.py --videos DIR --labels labels.csv --output_dir saved/data/mine

labels.csv has a header and commas, a line for each video:

    video      file name below --videos; folder and suffix may be left out where that is clear
    label      class name; or, with --task regression, one or more columns of numbers
    speaker    optional: nobody is then both in train.csv and in test.csv, and clip_speakers.csv
               lets training hold speakers out for validation (--val_split speaker)
    split      optional: train, test or val, and nothing is drawn

Without a split, --test_share of the clips go to test.csv, every class alike, drawn by --seed.
Without --labels there is one list, inference.csv, whose label 0 means nothing. Written to
--output_dir: audio/, faces/, the lists, classes.txt (or targets.txt), left_out.csv with the reasons
why a video is in no list, extract_audio.csv and extract_face.csv. The same command run again does
only what is missing. With --shard only wavs and faces are made; a run without it makes the lists.

Exit code: 0; 1 where a video was left out; 2 where input or a program is missing; 3 where the run
was stopped, by hand or by a full disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

import pandas as pd

from hicmae.config import add_arguments
from hicmae.data.media import VIDEO_SUFFIXES
from preprocess.command_line import WHOLE, add_switch, exit_code, make_parser
from preprocess.face_and_audio import batch, extract_audio, extract_face
from preprocess.face_and_audio.batch import Job, find_jobs
from preprocess.lists.clips import (
    LeftOut,
    ListedClip,
    in_list,
    table_text,
    totals,
    write_clip_speakers,
    write_folds,
    write_left_out,
    write_names,
)
from preprocess.lists.labels import PARTS, assign_parts, class_names, read_labels

logger = logging.getLogger(__name__)

# By modality: folder below --output_dir, the tool that fills it, what its names end with.
HALVES = {
    "a": ("audio", extract_audio.TOOL, ".wav"),
    "v": ("faces", extract_face.TOOL, extract_face.SUFFIX),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--videos", required=True, help="folder of videos")
    parser.add_argument("--labels", help="csv file of videos and labels")
    parser.add_argument("--output_dir", required=True, help="folder for all that is made")
    parser.add_argument(
        "--task",
        choices=("classification", "regression"),
        default="classification",
        help="whether labels are classes or numbers (%(default)s)",
    )
    use = "of the clips, for test.csv (%(default)s)"
    parser.add_argument("--test_share", type=float, default=0.2, help=use)
    parser.add_argument("--seed", type=int, default=0, help="of the split (%(default)s)")
    parser.add_argument(
        "--modality",
        choices=("av", "a", "v"),
        default="av",
        help="make the wavs only (a) or the faces only (v), for training with the same flag",
    )
    use = "write names relative to --output_dir, which is then training's --data_root"
    add_switch(parser, "--relative", use)
    batch.add_run_arguments(parser)
    add_arguments(parser, extract_face.FaceOptions)
    args = parser.parse_args(arguments)
    if not 0 < args.test_share < 1:
        parser.error(f"--test_share must be between 0 and 1, got {args.test_share}")
    if not os.path.isdir(args.videos):
        parser.error(f"--videos '{args.videos}' is no folder")
    return exit_code(lambda: prepare(args))


def prepare(args: argparse.Namespace) -> int:
    """Make wavs and faces, then the lists; returns the exit code."""
    if args.labels is not None:  # a mistake in it is said before an hour of work
        read_labels(args.labels, find_videos(args)[0], args.task)
    work: dict[str, tuple[batch.Work, Callable[[Job], bool]]] = {
        "a": (extract_audio.convert, extract_audio.is_converted)
    }
    if "v" in args.modality:  # first, so that a missing program is said before an hour of work
        work["v"] = extract_face.face_work(args), batch.has_folder
    code = 0
    for modality in args.modality:
        folder, tool, suffix = HALVES[modality]
        flags = {"input": args.videos, "data_root": "", "ext": sorted(VIDEO_SUFFIXES)}
        flags["output_dir"] = os.path.join(args.output_dir, folder)
        tool_args = argparse.Namespace(**vars(args) | flags)
        code = max(code, batch.run_tool(tool, tool_args, suffix, *work[modality]))
        if code > 1:
            return code
    return code if args.shard != WHOLE else max(code, make_lists(args))


def find_videos(args: argparse.Namespace) -> tuple[list[str], list[ListedClip], list[LeftOut]]:
    """Return the names of all videos, those with all they need (label 0 for now), and the others.

    The half that --modality leaves out is named in the lists as if it were there; training with the
    same flag does not look for it.
    """
    made: dict[str, dict[str, str]] = {}
    left_out: list[LeftOut] = []
    for modality, (name, tool, suffix) in HALVES.items():
        folder = os.path.join(args.output_dir, name)
        jobs, problems, _ = find_jobs(args.videos, folder, VIDEO_SUFFIXES, suffix)
        made[modality] = {job.name: job.output for job in jobs}
        if modality in args.modality:
            rows = batch.read_summary(batch.summary_path(folder, tool))
            left_out += [
                LeftOut(video, f"no {name}", str(rows.get(video, {}).get("reason", "")))
                for video, path in made[modality].items()
                if not os.path.exists(path)
            ]
    left_out += [LeftOut(outcome.job.name, "not used", outcome.reason) for outcome in problems]
    missing = {clip.clip for clip in left_out}
    relative_to = args.output_dir if args.relative else None
    ready = [
        in_list(ListedClip(video, made["v"][video], wav, 0), relative_to)
        for video, wav in made["a"].items()
        if video not in missing
    ]
    return [*made["a"], *(outcome.job.name for outcome in problems)], ready, left_out


def make_lists(args: argparse.Namespace) -> int:
    """Write the lists of the videos that have all they need; returns the exit code."""
    output = Path(args.output_dir)
    videos, ready, left_out = find_videos(args)
    names: list[str] = []
    parts = {"inference": ready}
    if args.labels is not None:
        labels, names, unmatched = read_labels(args.labels, videos, args.task)
        left_out += unmatched
        left_out += [LeftOut(c.name, "no label") for c in ready if c.name not in labels.index]
        ready = [clip for clip in ready if clip.name in labels.index]
        if not ready:
            raise ValueError(f"no video of --labels '{args.labels}' has all its files; see the log")
        if args.task == "classification":
            names = class_names(labels["label"])
        labels = labels.loc[[clip.name for clip in ready]]
        drawn = assign_parts(labels, args.test_share, args.seed)
        parts = {part: [] for part in PARTS if (drawn == part).any()}
        for clip, label, speaker in zip(ready, labels["label"], labels["speaker"], strict=True):
            value = names.index(label) if args.task == "classification" else label
            parts[drawn[clip.name]].append(clip._replace(label=value, speaker=speaker))
        kind = "classes" if args.task == "classification" else "targets"
        write_names(output / f"{kind}.txt", names)
    write_left_out(output / "left_out.csv", left_out)
    write_folds(output, {"": parts})
    write_clip_speakers(output, chain(*parts.values()))
    report(args, parts, names)
    logger.info("%d left out, see %s", len(left_out), output / "left_out.csv")
    return 1 if left_out else 0


def report(
    args: argparse.Namespace, parts: Mapping[str, Sequence[ListedClip]], names: Sequence[str]
) -> None:
    """Show what is in the lists, and the command that uses them."""
    clips = pd.DataFrame(
        [(f"{part}.csv", *clip) for part, own in parts.items() for clip in own],
        columns=["list", *ListedClip._fields],
        dtype=object,
    )
    logger.info("%s", table_text(totals(clips, "list", names).drop(columns="minutes")))
    if args.labels is not None:
        options = f"--task {args.task} --modality {args.modality} --nb_classes {len(names)}"
        root = f" --data_root {shlex.quote(args.output_dir)}" if args.relative else ""
        logger.info(
            "python run_finetuning.py --data_path %s%s %s --finetune CHECKPOINT --output_dir RUN",
            *(shlex.quote(args.output_dir), root, options),
        )


if __name__ == "__main__":
    sys.exit(main())
