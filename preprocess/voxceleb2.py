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
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from tqdm import tqdm  # noqa: E402

from hicmae.data.clip_list import Clip, wav_of, write_list
from preprocess.lists.clips import LeftOut, write_csv, write_left_out  # noqa: E402
from preprocess.lists.command import (  # noqa: E402
    ROOT,
    add_output_arguments,
    checked_root,
    exit_code,
)
from preprocess.lists.files import contents, find_folder  # noqa: E402
from preprocess.lists.folds import path_in_list  # noqa: E402
from preprocess.lists.shards import parse_shard  # noqa: E402
from preprocess.lists.tables import ascii_table, left_out_table  # noqa: E402

LOGGER = logging.getLogger("voxceleb2")
VIDEO_DIRS = ("video/file~/dev/mp4", "dev/mp4")
AUDIO_DIRS = ("audio/file~/dev/aac", "dev/aac")
NUM_VIDEOS, NUM_USABLE = 1_092_009, 1_091_581


class Tree(NamedTuple):
    """The two trees, and the clips in them as "id00012/21Uxsk56VDQ/00001"."""

    video_dir: str
    audio_dir: str
    clips: list[str]

    def files(self, clip: str) -> tuple[str, str]:
        """Return the mp4 and the wav of a clip."""
        video, audio = os.path.join(self.video_dir, clip), os.path.join(self.audio_dir, clip)
        return f"{video}.mp4", f"{audio}.wav"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_root", required=True, help="folder of VoxCeleb2")
    add_output_arguments(parser)
    parser.add_argument("--video_dir", help=f"of the mp4 files ({' or '.join(VIDEO_DIRS)})")
    parser.add_argument("--audio_dir", help=f"of the wav files ({' or '.join(AUDIO_DIRS)})")
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=False, help="open every clip"
    )
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="check only this part, write no list"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.shard is not None and not args.check:
        parser.error("--shard divides the check of every clip; give --check too")
    return exit_code(lambda: make_list(args))


def make_list(args: argparse.Namespace) -> None:
    """Find the clips, check them if asked, write the list."""
    root = checked_root(args.data_root, "VoxCeleb2")
    output = Path(args.output_dir or ROOT / "saved/data/voxceleb2")
    video_dir = find_folder(root, "--video_dir", args.video_dir, VIDEO_DIRS)
    audio_dir = find_folder(root, "--audio_dir", args.audio_dir, AUDIO_DIRS)
    clips: list[str] = []
    left_out: list[LeftOut] = []
    for found in tqdm(scan(video_dir, audio_dir), unit="clip", desc="reading names"):
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            clips.append(found)
    if not clips:
        raise FileNotFoundError(
            f"expected id*/*/*.mp4 in '{video_dir}' and id*/*/*.wav in '{audio_dir}', found "
            f"{contents(video_dir)} and {contents(audio_dir)}, and no clip in both; make the wavs "
            "with preprocess/face_and_audio/extract_audio.py"
        )
    tree = Tree(video_dir, audio_dir, clips)
    if args.check:
        broken = check(tree, output, args)
        if args.shard is not None:
            LOGGER.info("shard %s: %d clips are broken", args.shard, len(broken))
            return
        left_out += broken
        gone = {clip.clip for clip in broken}
        tree = tree._replace(clips=[clip for clip in clips if clip not in gone])
    if not tree.clips:
        write_left_out(output / "left_out.csv", left_out)
        raise ValueError(
            f"none of {len(clips)} clips can be used; see '{output / 'left_out.csv'}', and make "
            "the files again"
        )
    write(tree, left_out, output, root, args)


def scan(video_dir: str, audio_dir: str) -> Iterator[str | LeftOut]:
    """Yield the clips that have both halves, and those that do not, in order of their names."""
    people = sorted(set(_entries(video_dir)) | set(_entries(audio_dir)))
    for person in people:
        try:
            places = [os.path.join(folder, person) for folder in (video_dir, audio_dir)]
            for recording in sorted(set(_entries(places[0])) | set(_entries(places[1]))):
                yield from _recording(f"{person}/{recording}", video_dir, audio_dir)
        except PermissionError as error:
            yield LeftOut(person, "cannot be read", f"'{error.filename}': {error.strerror}")


def _recording(name: str, video_dir: str, audio_dir: str) -> Iterator[str | LeftOut]:
    """Yield the clips of one recording, "id00012/21Uxsk56VDQ"."""
    videos, _ = _stems(os.path.join(video_dir, name), ".mp4")
    audios, m4a = _stems(os.path.join(audio_dir, name), ".wav")
    for stem in sorted(videos | audios | m4a):
        clip = f"{name}/{stem}"
        if stem in videos and stem in audios:
            yield clip
        elif stem in videos:
            yield LeftOut(clip, "m4a without wav" if stem in m4a else "audio missing")
        else:
            yield LeftOut(clip, "video missing")


def check(tree: Tree, output: Path, args: argparse.Namespace) -> list[LeftOut]:
    """Open every clip, or a shard's part; return the broken ones."""
    from preprocess.lists.inspection import inspect_all

    pairs = {tree.files(clip): clip for clip in tree.clips}
    records = inspect_all(pairs, output / "check", args.shard, args.num_workers)
    seconds = sum(record.seconds for record in records.values())
    LOGGER.info("%d clips are checked, %.1f h", len(records), seconds / 3600)
    return [LeftOut(pairs[k], r.problems, r.detail) for k, r in records.items() if r.problems]


def write(
    tree: Tree, left_out: list[LeftOut], output: Path, root: str, args: argparse.Namespace
) -> None:
    """Compare the counts, write the list and the tables."""
    write_left_out(output / "left_out.csv", left_out)
    LOGGER.info("%s", left_out_table(left_out))
    videos = len(tree.clips) + sum(clip.reason != "video missing" for clip in left_out)
    counts = [("videos", videos, NUM_VIDEOS)]
    if args.check:
        counts.append(("usable clips", len(tree.clips), NUM_USABLE))
    wrong = [f"{n}: got {got}, expected {wanted}" for n, got, wanted in counts if got != wanted]
    if wrong and args.strict:
        raise ValueError(f"counts differ from the protocol ({'; '.join(wrong)}); see left_out.csv")
    if wrong:
        LOGGER.warning("DIFFERS from the protocol: %s", "; ".join(wrong))
    base = root if args.relative else None
    write_list(output / "train.csv", (line(tree.files(clip), base) for clip in tree.clips))
    speakers = sorted(Counter(clip.split("/", 1)[0] for clip in tree.clips).items())
    write_csv(output / "speakers.csv", ["speaker", "clips"], speakers)
    sizes = sorted(count for _, count in speakers)
    row = [len(tree.clips), len(sizes), sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    header = ["clips", "speakers", "fewest clips of one", "median", "most"]
    print(ascii_table([header, row]))
    LOGGER.info("the list is %s", output / "train.csv")


def line(files: tuple[str, str], base: str | None) -> Clip:
    """Return a clip's line; the wav is named only where its name does not follow."""
    video, audio = (path_in_list(path, base) for path in files)
    return Clip(video, None if wav_of(video) == audio else audio, None)


def _entries(folder: str) -> list[str]:
    """Return the names of the subfolders, none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


def _stems(folder: str, extension: str) -> tuple[set[str], set[str]]:
    """Return the names without extension of the files that have it, and of the m4a files."""
    wanted, m4a = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                if not stem.startswith("."):
                    if ending == extension:
                        wanted.add(stem)
                    elif ending == ".m4a":
                        m4a.add(stem)
    except FileNotFoundError:
        pass
    return wanted, m4a


if __name__ == "__main__":
    raise SystemExit(main())
