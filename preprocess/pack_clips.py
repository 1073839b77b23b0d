"""Pack the clips of a list into shards of about 1 GB, from which training reads much faster.

    python preprocess/pack_clips.py saved/data/voxceleb2/train.csv --output_dir DIR
    python preprocess/pack_clips.py LIST --output_dir DIR --shard 3/64      one task of a job array
    python preprocess/pack_clips.py --verify --output_dir DIR               check what is there
    python run_pretraining.py --data_path DIR ...                           read it

Frames are stored as JPEG (VoxCeleb2's 224 x 224 frames cut to the face, 160 x 160; JPEG frames of a
folder as they are) or, with --lossless, as PNG; sound as it is. A shard is a WebDataset tar with an
index beside it, so that a random clip of 16 frames costs only those. For fine-tuning pack train.csv
to DATA/train and test.csv to DATA/test with --task, and give --data_path DATA.

The same command run again packs what is missing: nothing is packed twice, and a shard that was not
whole is not there. pack_clips.csv in the output folder has a row for each clip.

Exit code: 0; 1 where a clip failed; 2 where the input is wrong; 3 where the run was stopped, by
hand or by a full disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import numpy as np  # noqa: E402

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from preprocess.face_and_audio.batch import (  # noqa: E402
    DISK_FULL,
    STOPPED,
    Ledger,
    describe,
    summary_path,
    usable_cores,
)
from preprocess.face_and_audio.inputs import parse_shard  # noqa: E402
from preprocess.packing.encode import PackJob, Settings  # noqa: E402
from preprocess.packing.run import Packing, prefix_of  # noqa: E402
from preprocess.packing.shards import packed_names  # noqa: E402
from preprocess.packing.verify import verify  # noqa: E402

logger = logging.getLogger("pack_clips")
TOOL = "pack_clips"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """Read 1GB, 500MB or a number of bytes, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 1GB or 500MB, got {text!r}")
    return size


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("list", nargs="?", help="list of clips, as for training")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the shards")
    parser.add_argument("--data_root", default="", help="folder that relative names start from")
    parser.add_argument(
        "--task",
        choices=("pretrain", "classification", "regression"),
        default="pretrain",
        help="what kind of list it is (%(default)s)",
    )
    parser.add_argument(
        "--shard_size", type=parse_size, default=10**9, metavar="SIZE", help="of one file (1GB)"
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG, 1 to 100 (%(default)s); no subsampling"
    )
    parser.add_argument("--lossless", action="store_true", help="store PNG")
    parser.add_argument("--size", type=int, help="shrink frames to this short side in pixels")
    parser.add_argument(
        "--shard", type=parse_shard, default=(1, 1), metavar="I/N", help="do only part I of N"
    )
    parser.add_argument(
        "--num_workers",
        "--workers",
        type=int,
        default=usable_cores(),
        help="processes that encode (default: %(default)s)",
    )
    parser.add_argument("--verify", action="store_true", help="pack nothing, check the shards")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = make_parser()
    args = parser.parse_args(arguments)
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality must be from 1 to 100, got {args.quality}")
    if args.num_workers < 1 or (args.size is not None and args.size < 1):
        parser.error("--num_workers and --size must be at least 1")
    if args.list is None and not args.verify:
        parser.error("name the list to pack, or give --verify")
    try:
        return run_verify(args) if args.verify else pack(args)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return STOPPED if getattr(error, "errno", None) in DISK_FULL else 2


def run_verify(args: argparse.Namespace) -> int:
    """Check all shards, and say what is wrong."""
    if not args.output_dir.is_dir():
        raise FileNotFoundError(f"--output_dir '{args.output_dir}' is no folder")
    num_clips, problems = verify(args.output_dir, args.num_workers)
    for problem in problems:
        logger.error("%s", problem)
    if problems:
        logger.error("delete such shards with their indexes, and run the packing command again")
        return 1
    if not num_clips:
        raise FileNotFoundError(f"'{args.output_dir}' holds no shard")
    logger.info("%d clips are as they were packed", num_clips)
    return 0


def pack(args: argparse.Namespace) -> int:
    """Pack the clips of a list that are in no shard yet."""
    jobs = find_jobs(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    packed = packed_names(args.output_dir)
    ledger = Ledger(summary_path(str(args.output_dir), TOOL, args.shard))
    pending = []
    for job in jobs:
        shard = packed.get((job.clip.video, job.clip.audio))
        if shard is None:
            pending.append(job)
        else:
            ledger.keep(job._replace(output=shard))
    # In a random order, so that clips of a speaker, who stand together in lists, meet others.
    order = np.random.default_rng(0).permutation(len(pending))
    settings = Settings(args.task == "pretrain", args.size, None if args.lossless else args.quality)
    packing = Packing(args.output_dir, prefix_of(args.shard), args.shard_size, ledger)
    return packing.run([pending[k] for k in order], settings, args.num_workers)


def find_jobs(args: argparse.Namespace) -> list[PackJob]:
    """Return the clips of this part of the list; ValueError where it names shards."""
    if args.task == "pretrain":
        clips = read_pretrain_list(args.list, args.data_root)
    else:
        clips = read_labelled_list(args.list, args.task, None, args.data_root)
    if not isinstance(clips, list):
        raise ValueError(f"'{args.list}' is packed already; name a list of files")
    part, parts = args.shard
    jobs: dict[tuple[str, str | None], PackJob] = {}
    for clip in clips:
        names = clip._replace(
            video=_name(clip.video, args.data_root), audio=_name(str(clip.audio), args.data_root)
        )
        if zlib.crc32(os.fsencode(names.video)) % parts == part - 1:
            job = PackJob(names.video, clip.video, "", str(clip.audio), names)
            jobs.setdefault((names.video, names.audio), job)
    return list(jobs.values())


def _name(path: str, data_root: str) -> str:
    """Return the name of a file as a list with this --data_root has it."""
    root = os.path.join(data_root, "")
    return path[len(root) :] if data_root and path.startswith(root) else path


if __name__ == "__main__":
    sys.exit(main())
