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

import argparse
import itertools
import logging
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installation

from hicmae.config import LOSSES
from hicmae.config.flags import Settings, option
from hicmae.data.audio import WavFile
from hicmae.data.film import open_video
from hicmae.data.media import VIDEO_SUFFIXES
from hicmae.data.splits import draw_groups
from hicmae.data.video import MODALITIES, natural_key
from preprocess.annotations import number, read_table
from preprocess.command_line import WHOLE, command
from preprocess.face_and_audio import batch, extract_audio, extract_face, timing
from preprocess.lists import Candidate, write_left_out, write_lists

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
# By the field of a clip: the folder below --output_dir, and the tool that fills it.
HALVES = {
    "audio": ("audio", extract_audio.TOOL._replace(kinds=VIDEO_SUFFIXES)),
    "video": ("faces", extract_face.TOOL),
}


class Options(Settings):
    """What to prepare."""

    videos: str = option("", "folder of videos", required=True)
    labels: str | None = option(None, "csv file of videos and labels")
    output_dir: str = option("", "folder for all that is made", required=True)
    task: str = option("classification", "of classes, or of numbers", choices=[*LOSSES])
    test_share: float = option(0.2, "of the clips, for test.csv", "> 0 and < 1")
    seed: int = option(0, "of the split")
    modality: str = option("av", "make only the wavs (a) or faces (v)", choices=MODALITIES)
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
        places = {"input": args.videos, "output_dir": os.path.join(args.output_dir, folder)}
        flags = argparse.Namespace(**vars(args) | places, ext=())
        code = max(code, batch.run_tool(tool, flags, make))
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
        jobs, problems, _ = batch.find_jobs(args.videos, folder, tool)
        rows = batch.read_summary(batch.summary_path(folder, tool.name))
        for job in jobs:
            made: dict[str, Any] = {half: job.output}
            clip = found.get(job.name, Candidate(job.name))._replace(**made)
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
        rows, names, unknown = read_labels(args.labels, [clip.name for clip in clips], args.task)
        is_class = args.task == "classification"
        if is_class:
            names = sorted({row["label"] for row in rows.values()}, key=natural_key)
        ready, parts = list[Candidate](), list[str]()
        clips = [c if c.reason or c.name in rows else c._replace(reason="no label") for c in clips]
        for clip in (clip for clip in clips if not clip.reason):
            row = rows[clip.name]
            label = names.index(row["label"]) if is_class else tuple(float(row[n]) for n in names)
            ready.append(clip._replace(label=label, speaker=row.get("speaker")))
            parts.append(row.get("split", ""))
        clips += unknown
        if not ready:
            raise ValueError(f"no video of --labels '{args.labels}' has all its files; see the log")
        if not all(parts):  # there is no such column
            speakers = [clip.speaker or clip.name for clip in ready]
            classes = [clip.label if isinstance(clip.label, int) else 0 for clip in ready]
            drawn = draw_groups(classes, speakers, args.test_share, args.seed)
            parts = ["test" if is_drawn else "train" for is_drawn in drawn]
        pairs = list(zip(parts, ready, strict=True))
        lists = {part: [c for own, c in pairs if own == part] for part in PARTS if part in parts}
    for clip in itertools.chain(*lists.values()) if args.modality == "av" else ():
        if step := timing.out_of_step(open_video(clip.video), WavFile(clip.audio)):
            logger.warning("%r is out of step: %s; see --overwrite", clip.name, step)
    write_left_out(output, clips)
    write_lists(output, lists, names, args.output_dir if args.relative else None)
    if args.labels is not None:
        folder = shlex.quote(args.output_dir)
        flags = f"--data_path {folder}" + f" --data_root {folder}" * args.relative
        flags += f" --task {args.task} --modality {args.modality} --nb_classes {len(names)}"
        logger.info("python run_finetuning.py %s --finetune CHECKPOINT --output_dir RUN", flags)
    return int(any(clip.reason for clip in clips))


def read_labels(
    path: str, videos: Sequence[str], task: str
) -> tuple[dict[str, dict[str, str]], list[str], list[Candidate]]:
    """Read labels.csv and match it with the videos.

    Returns the lines by their videos' names; the names of the columns of numbers, or "label"; and
    the lines without a video.
    """
    is_class = task == "classification"
    lines = list(read_table(path, ["video", "label"] if is_class else ["video"]))
    header = lines[0][1] if lines else {}
    names = ["label", "speaker", "split"] if is_class else ["speaker", "split"]
    columns = ["label"] if is_class else [c for c in header if c not in ("", "video", *names)]
    if not columns:
        raise ValueError(f"{path}:1: expected the column video and one for each target")
    known = _spellings(videos)
    labelled: dict[str, dict[str, str]] = {}
    unknown = []
    for where, row in lines:
        for column in names:
            expected = "train, val or test" if column == "split" else "a name"
            text = row.get(column, "train")
            if not text or (column == "split" and text not in PARTS):
                raise ValueError(f"{where}, column '{column}': expected {expected}, got {text!r}")
            if any("\udc80" <= letter <= "\udcff" for letter in text):
                raise ValueError(f"{where}, column '{column}': {text!r} is not UTF-8; save it so")
        for column in () if is_class else columns:
            number(row[column], f"{where}, column '{column}'")
        matches = known.get(os.path.normpath(row["video"]), [])
        if len(matches) > 1 or set(matches) & labelled.keys():
            problem = "several videos" if len(matches) > 1 else "a video that has a label already"
            raise ValueError(f"{where}: {row['video']!r} names {problem}, expected one of its own")
        elif matches:
            labelled[matches[0]] = row
        else:
            unknown.append(Candidate(row["video"], reason="no such video", detail=where))
    return labelled, columns, unknown


def _spellings(videos: Sequence[str]) -> dict[str, list[str]]:
    """Return what a name in labels.csv may mean: whole, without suffix, folder or both."""
    known: dict[str, list[str]] = {}
    for spell in (lambda p: p.stem, lambda p: p.name, lambda p: str(p.with_suffix("")), str):
        meant = defaultdict[str, list[str]](list)
        for video in videos:
            meant[spell(PurePath(video)).strip()].append(video)  # as tables are read
        known |= meant  # a fuller name takes the place of a shorter one
    return known


main = command(__doc__, prepare, Options, batch.Running, extract_face.FaceOptions)

if __name__ == "__main__":
    sys.exit(main())
