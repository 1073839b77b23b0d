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
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from tqdm import tqdm

from hicmae.config.flags import Refused, option
from hicmae.data.clip_list import wav_of, write_list
from hicmae.io import check_writable
from preprocess.check_lists import inspect_all
from preprocess.command_line import WHOLE, Parts, command
from preprocess.lists.building import SAVED_DATA, Places, check_counts, contents, find_places
from preprocess.lists.clips import Candidate, in_list, write_csv, write_left_out

logger = logging.getLogger("voxceleb2")

VIDEO_DIRS = ("video/file~/dev/mp4", "dev/mp4")
AUDIO_DIRS = ("audio/file~/dev/aac", "dev/aac")
NUM_VIDEOS, NUM_USABLE = 1_092_009, 1_091_581


@dataclass(frozen=True)
class Options(Parts, Places):
    """Where the data set is, and how its list is made."""

    check: bool = option(False, "open every clip; with --shard only this part, and write no list")

    def _refused(self) -> Refused:
        divides = self.shard != WHOLE and not self.check
        return {"--shard divides the check of every clip; give --check too": divides}


def make_list(args: argparse.Namespace) -> None:
    """Find the clips, check them if asked, write the list and the table of speakers."""
    root, video_dir, audio_dir = find_places(args, "VoxCeleb2", VIDEO_DIRS, AUDIO_DIRS)
    output = args.output_dir or SAVED_DATA / "voxceleb2"
    check_writable(output / "train.csv")
    clips = find_clips(video_dir, audio_dir)
    expected = {"videos": NUM_VIDEOS}
    if args.check:
        expected["usable clips"] = NUM_USABLE
        files = [(clip.video, clip.audio) for clip in clips if not clip.reason]
        records = inspect_all(files, output / "check", args.shard, args.num_workers)
        hours = sum(record.seconds for record in records.values()) / 3600
        broken = sum(bool(record.problems) for record in records.values())
        logger.info("%d clips are checked, %.1f h, %d are broken", len(records), hours, broken)
        if args.shard != WHOLE:
            return
        for place, clip in enumerate(clips):
            if not clip.reason:
                record = records[clip.video, clip.audio]
                clips[place] = clip._replace(reason=record.problems, detail=record.detail)
    write_left_out(output, clips)
    videos = sum(clip.reason != "video missing" for clip in clips)
    clips = [clip for clip in clips if not clip.reason]
    if not clips:
        raise ValueError(
            f"no clip can be used; see '{output / 'left_out.csv'}', and make the files again"
        )
    check_counts({"videos": videos, "usable clips": len(clips)}, expected, args.strict)
    lines = (in_list(clip, root if args.relative else None) for clip in clips)
    lines = (
        line._replace(audio=None) if line.audio == wav_of(line.video) else line for line in lines
    )
    write_list(output / "train.csv", lines)
    speakers = Counter(clip.name.split("/", 1)[0] for clip in clips)
    write_csv(output / "speakers.csv", ["speaker", "clips"], sorted(speakers.items()))
    logger.info(
        "%s: %d clips of %d speakers, who have %d to %d, half of them at least %d",
        *(output / "train.csv", len(clips), len(speakers), min(speakers.values())),
        *(max(speakers.values()), median_high(speakers.values())),
    )


def find_clips(video_dir: str, audio_dir: str) -> list[Candidate]:
    """Return all clips in order of their names, with a reason where a half is missing."""
    videos, sounds = names_in(video_dir)[".mp4"], names_in(audio_dir)
    clips = []
    every = videos | sounds[".wav"] | sounds[".m4a"]
    for name in sorted(every, key=lambda name: name.split("/")):
        reason = ""
        if name not in videos:
            reason = "video missing"
        elif name not in sounds[".wav"]:
            reason = "m4a without wav" if name in sounds[".m4a"] else "audio missing"
        files = f"{video_dir}/{name}.mp4", f"{audio_dir}/{name}.wav"
        clips.append(Candidate(name, 0, None, *files, reason=reason))
    if all(clip.reason for clip in clips):
        raise FileNotFoundError(
            f"expected id*/*/*.mp4 in '{video_dir}' and id*/*/*.wav in '{audio_dir}', found "
            f"{contents(video_dir)} and {contents(audio_dir)}, and no clip in both; make the wavs "
            "with preprocess/face_and_audio/extract_audio.py"
        )
    return clips


def names_in(folder: str) -> dict[str, set[str]]:
    """Return the names "id00012/21Uxsk56VDQ/00001" of the files below a folder, by suffix."""
    names: dict[str, set[str]] = defaultdict(set)
    for path in tqdm(glob.iglob("*/*/*", root_dir=folder), unit="file", desc="reading names"):
        name, suffix = os.path.splitext(path)
        names[suffix].add(name)
    return names


main = command(__doc__, make_list, Options, bad_data=1)

if __name__ == "__main__":
    sys.exit(main())
