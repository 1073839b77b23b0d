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
import random
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config.flags import Settings, option
from hicmae.data.audio import WavFile
from hicmae.data.film import open_video
from hicmae.data.media import VIDEO_SUFFIXES
from hicmae.data.video import MODALITIES
from preprocess.command_line import WHOLE, command
from preprocess.face_and_audio import batch, extract_audio, extract_face
from preprocess.face_and_audio.batch import find_jobs
from preprocess.face_and_audio.timing import out_of_step
from preprocess.lists.annotations import PARTS, Labelled, read_labels
from preprocess.lists.clips import (
    Candidate,
    as_table,
    table_text,
    totals,
    write_left_out,
    write_lists,
)

logger = logging.getLogger(__name__)

# By the field of a clip: the folder below --output_dir, and the tool that fills it.
HALVES = {"audio": ("audio", extract_audio.TOOL), "video": ("faces", extract_face.TOOL)}


@dataclass(frozen=True)
class Options(Settings):
    """What to prepare."""

    videos: str = option("", "folder of videos", required=True)
    labels: str | None = option(None, "csv file of videos and labels")
    output_dir: str = option("", "folder for all that is made", required=True)
    task: str = option(
        "classification", "of classes, or of numbers", choices=("classification", "regression")
    )
    test_share: float = option(0.2, "of the clips, for test.csv", "> 0 and < 1")
    seed: int = option(0, "of the split")
    modality: str = option(
        "av", "make the wavs only (a) or the faces only (v), for training", choices=MODALITIES
    )
    relative: bool = option(False, "write names relative to --output_dir, for --data_root")


def prepare(args: argparse.Namespace) -> int:
    """Make wavs and faces, then the lists; returns the exit code."""
    if not os.path.isdir(args.videos):
        raise FileNotFoundError(f"--videos '{args.videos}' is no folder")
    if args.labels is not None:  # a mistake in it is said before an hour of work
        read_labels(args.labels, [clip.name for clip in find_videos(args)], args.task)
    work: dict[str, batch.Work] = {}
    if "a" in args.modality:
        work["audio"] = extract_audio.convert
    if "v" in args.modality:  # made now, so that a missing program is said before an hour of work
        work["video"] = extract_face.face_work(args)
    code = 0
    for half, make in work.items():
        folder, tool = HALVES[half]
        flags = {"input": args.videos, "data_root": "", "ext": VIDEO_SUFFIXES}
        flags |= {"output_dir": os.path.join(args.output_dir, folder)}
        code = max(code, batch.run_tool(tool, argparse.Namespace(**vars(args) | flags), make))
        if code > 1:
            return code
    return code if args.shard != WHOLE else max(code, make_lists(args))


def find_videos(args: argparse.Namespace) -> list[Candidate]:
    """Return all videos, without labels, and with a reason where something is missing.

    The half that --modality leaves out is named as if it were there; training with the same flag
    does not look for it.
    """
    found: dict[str, Candidate] = {}
    for half, (name, tool) in HALVES.items():
        folder = os.path.join(args.output_dir, name)
        jobs, problems, _ = find_jobs(args.videos, folder, VIDEO_SUFFIXES, tool.suffix)
        rows = batch.read_summary(batch.summary_path(folder, tool.name))
        for job in jobs:
            clip = found.get(job.name, Candidate(job.name))
            made: dict[str, Any] = {half: job.output}
            clip = clip._replace(**made)
            if half[0] in args.modality and not os.path.exists(job.output) and not clip.reason:
                detail = str(rows.get(job.name, {}).get("reason", ""))
                clip = clip._replace(reason=f"no {name}", detail=detail)
            found[job.name] = clip
    unused = (Candidate(o.job.name, reason="not used", detail=o.reason) for o in problems)
    return [*found.values(), *unused]


def make_lists(args: argparse.Namespace) -> int:
    """Write the lists of the videos that have all they need, and show what is in them."""
    output, clips = Path(args.output_dir), find_videos(args)
    names: list[str] = []
    lists = {"inference": [clip for clip in clips if not clip.reason]}
    if args.labels is not None:
        labels, names, unknown = read_labels(args.labels, [clip.name for clip in clips], args.task)
        if args.task == "classification":
            names = class_names(str(row.label) for row in labels.values())
        for place, clip in enumerate(clips):
            if not clip.reason and clip.name not in labels:
                clips[place] = clip._replace(reason="no label")
        clips += unknown
        ready = {clip.name: clip for clip in clips if not clip.reason}
        if not ready:
            raise ValueError(f"no video of --labels '{args.labels}' has all its files; see the log")
        drawn = assign_parts({name: labels[name] for name in ready}, args.test_share, args.seed)
        lists = {part: [] for part in PARTS if part in drawn.values()}
        for name, part in drawn.items():
            label, speaker, _ = labels[name]
            value = names.index(label) if isinstance(label, str) else label
            lists[part].append(ready[name]._replace(label=value, speaker=speaker))
    if args.modality == "av":
        warn_of_steps([clip for part in lists.values() for clip in part])
    is_left_out = write_left_out(output, clips)
    write_lists(output, lists, names, args.output_dir if args.relative else None)
    table = totals(as_table(lists), "list", names).drop(columns="minutes")
    logger.info("%s", table_text(table))
    if args.labels is not None:
        options = f"--task {args.task} --modality {args.modality} --nb_classes {len(names)}"
        root = f" --data_root {shlex.quote(args.output_dir)}" if args.relative else ""
        logger.info(
            "python run_finetuning.py --data_path %s%s %s --finetune CHECKPOINT --output_dir RUN",
            *(shlex.quote(args.output_dir), root, options),
        )
    return int(is_left_out)


def warn_of_steps(clips: list[Candidate]) -> None:
    """Warn of clips whose wav does not fit their film, as one of an earlier version may."""
    steps = ((c.name, out_of_step(open_video(c.video), WavFile(c.audio))) for c in clips)
    found = [(name, step) for name, step in steps if step]
    for name, step in found[:10]:
        logger.warning("%r is out of step: %s", name, step)
    if found:
        logger.warning("%d of %d clips are out of step; see --overwrite", len(found), len(clips))


def class_names(labels: Iterable[str]) -> list[str]:
    """Return the classes in order: numbers by their value, then words by the alphabet."""
    names = sorted(set(labels))
    numbers = sorted((name for name in names if name.isdecimal()), key=int)
    return numbers + [name for name in names if not name.isdecimal()]


def assign_parts(labels: Mapping[str, Labelled], share: float, seed: int) -> dict[str, str]:
    """Return train, val or test for each video: its `split`, or as drawn.

    Speakers, or clips where nobody knows, are drawn so that every class has about its share in
    test.
    """
    given = {name: row.split for name, row in labels.items() if row.split is not None}
    if given:
        return given
    groups: dict[str, Counter[str]] = {}
    speakers = {name: row.speaker or name for name, row in labels.items()}
    for name, row in labels.items():
        kind = row.label if isinstance(row.label, str) else ""
        groups.setdefault(speakers[name], Counter())[kind] += 1
    if len(groups) < 2:
        raise ValueError(
            f"expected at least two speakers or clips to split, got {len(groups)}; "
            "add some, or a column 'split'"
        )
    total: Counter[str] = sum(groups.values(), Counter())
    wanted = {label: share * count for label, count in total.items()}

    def distance(counts: Counter[str]) -> float:
        return sum((counts[label] - want) ** 2 / want for label, want in wanted.items())

    order = sorted(groups)
    random.Random(seed).shuffle(order)
    test: list[str] = []
    counts: Counter[str] = Counter()
    for group in order:
        larger = counts + groups[group]
        if distance(larger) < distance(counts) and len(test) < len(groups) - 1:
            test.append(group)
            counts = larger
    test = test or [min(order, key=lambda group: distance(groups[group]))]
    return {name: "test" if speaker in test else "train" for name, speaker in speakers.items()}


main = command(__doc__, prepare, Options, batch.Running, extract_face.FaceOptions)

if __name__ == "__main__":
    sys.exit(main())
