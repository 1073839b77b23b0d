"""Make the pre-training list of VoxCeleb2's development set: lines "<video.mp4> 0".

    python preprocess/voxceleb2.py --data_root VoxCeleb2
    python preprocess/voxceleb2.py --data_root VoxCeleb2 --check --shard 3/64   one job of an array
    python preprocess/voxceleb2.py --data_root VoxCeleb2 --check                then: the list

Expected below --data_root (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html; --video_dir
and --audio_dir name other places):

    video/file~/dev/mp4/id00012/21Uxsk56VDQ/00001.mp4    or dev/mp4/...
    audio/file~/dev/aac/id00012/21Uxsk56VDQ/00001.wav    or dev/aac/..., by
                                                         preprocess/face_and_audio/extract_audio.py
                                                         from the m4a files

The first command looks at names only. --check opens every clip and leaves out the broken ones; what
it found is kept in check/records*.csv, so a stopped run goes on. Of 1 092 009 clips the original
could use 1 091 581. Where the wav's name does not follow from the mp4's, the line names it too.
Written to --output_dir (saved/data/voxceleb2): train.csv, speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import pandas as pd
from tqdm import tqdm

from preprocess.command_line import WHOLE, add_shard, add_switch, exit_code, make_parser
from preprocess.lists.building import SAVED_DATA, add_output_arguments, check_counts, checked_root
from preprocess.lists.clips import (
    LeftOut,
    left_out_table,
    path_in_list,
    table_text,
    write_csv,
    write_left_out,
)
from preprocess.lists.files import contents, find

logger = logging.getLogger("voxceleb2")

VIDEO_DIRS = ("video/file~/dev/mp4", "dev/mp4")
AUDIO_DIRS = ("audio/file~/dev/aac", "dev/aac")
NUM_VIDEOS, NUM_USABLE = 1_092_009, 1_091_581

Files = dict[str, tuple[str, str]]  # mp4 and wav by name of the clip, "id00012/21Uxsk56VDQ/00001"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_output_arguments(parser, "VoxCeleb2")
    parser.add_argument("--video_dir", help=f"of the mp4 files ({' or '.join(VIDEO_DIRS)})")
    parser.add_argument("--audio_dir", help=f"of the wav files ({' or '.join(AUDIO_DIRS)})")
    add_switch(parser, "--check", "open every clip")
    add_shard(parser, "check only this part and write no list")
    args = parser.parse_args(arguments)
    if args.shard != WHOLE and not args.check:
        parser.error("--shard divides the check of every clip; give --check too")
    return exit_code(lambda: make_list(args), bad_data=1)


def make_list(args: argparse.Namespace) -> None:
    """Find the clips, check them if asked, write the list."""
    root = checked_root(args.data_root, "VoxCeleb2")
    output = args.output_dir or SAVED_DATA / "voxceleb2"
    clips, left_out = find_clips(root, args.video_dir, args.audio_dir)
    if args.check:
        from preprocess.lists.inspection import inspect_all  # here, as it brings torch

        records = inspect_all(clips.values(), output / "check", args.shard, args.num_workers)
        hours = sum(record.seconds for record in records.values()) / 3600
        logger.info("%d clips are checked, %.1f h", len(records), hours)
        checked = ((name, records[files]) for name, files in clips.items() if files in records)
        broken = [LeftOut(name, r.problems, r.detail) for name, r in checked if r.problems]
        if args.shard != WHOLE:
            logger.info("shard %s: %d clips are broken", args.shard, len(broken))
            return
        left_out += broken
        gone = {clip.clip for clip in broken}
        clips = {name: files for name, files in clips.items() if name not in gone}
    write_left_out(output / "left_out.csv", left_out)
    logger.info("%s", left_out_table(left_out))
    if not clips:
        raise ValueError(
            f"no clip can be used; see '{output / 'left_out.csv'}', and make the files again"
        )
    videos = len(clips) + sum(clip.reason != "video missing" for clip in left_out)
    expected = {"videos": NUM_VIDEOS} | ({"usable clips": NUM_USABLE} if args.check else {})
    check_counts({"videos": videos, "usable clips": len(clips)}, expected, args.strict)
    write(clips, output, root if args.relative else None)


def find_clips(
    root: str, video_dir: str | None, audio_dir: str | None
) -> tuple[Files, list[LeftOut]]:
    """Return the clips that have both halves, and those that do not, in order of their names."""
    video_dir = find(root, "give --video_dir", *([video_dir] if video_dir else VIDEO_DIRS))
    audio_dir = find(root, "give --audio_dir", *([audio_dir] if audio_dir else AUDIO_DIRS))
    videos = names_in(video_dir)[".mp4"]
    sounds = names_in(audio_dir)
    clips: Files = {}
    left_out = []
    every = videos | sounds[".wav"] | sounds[".m4a"]
    for name in sorted(every, key=lambda name: name.split("/")):
        if name not in videos:
            left_out.append(LeftOut(name, "video missing"))
        elif name in sounds[".wav"]:
            clips[name] = f"{video_dir}/{name}.mp4", f"{audio_dir}/{name}.wav"
        else:
            reason = "m4a without wav" if name in sounds[".m4a"] else "audio missing"
            left_out.append(LeftOut(name, reason))
    if not clips:
        raise FileNotFoundError(
            f"expected id*/*/*.mp4 in '{video_dir}' and id*/*/*.wav in '{audio_dir}', found "
            f"{contents(video_dir)} and {contents(audio_dir)}, and no clip in both; make the wavs "
            "with preprocess/face_and_audio/extract_audio.py"
        )
    return clips, left_out


def names_in(folder: str) -> dict[str, set[str]]:
    """Return the names "id00012/21Uxsk56VDQ/00001" of the files below a folder, by suffix."""
    names: dict[str, set[str]] = defaultdict(set)
    for path in tqdm(glob.iglob("*/*/*", root_dir=folder), unit="file", desc="reading names"):
        name, suffix = os.path.splitext(path)
        names[suffix].add(name)
    return names


def write(clips: Files, output: Path, relative_to: str | None) -> None:
    """Write the list and the table of speakers; the wav is named where its name does not follow."""
    from hicmae.data.clip_list import Clip, wav_of, write_list  # here, as it brings torch

    def line(files: tuple[str, str]) -> Clip:
        video, audio = (path_in_list(path, relative_to) for path in files)
        return Clip(video, None if wav_of(video) == audio else audio, None)

    write_list(output / "train.csv", map(line, clips.values()))
    speakers = sorted(Counter(name.split("/", 1)[0] for name in clips).items())
    write_csv(output / "speakers.csv", ["speaker", "clips"], speakers)
    sizes = sorted(count for _, count in speakers)
    columns = ["clips", "speakers", "fewest clips of one", "median", "most"]
    row = [len(clips), len(sizes), sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    print(table_text(pd.DataFrame([row], ["VoxCeleb2"], columns)))
    logger.info("the list is %s", output / "train.csv")


if __name__ == "__main__":
    sys.exit(main())
