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
import itertools
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

import numpy as np

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from hicmae.io import describe
from preprocess.command_line import (
    Shard,
    add_num_workers,
    add_shard,
    make_parser,
)
from preprocess.face_and_audio import batch
from preprocess.face_and_audio.batch import Ledger, Outcome
from preprocess.packing import (
    Names,
    PackJob,
    Settings,
    encode,
    next_number,
    packed_names,
    verify,
    write_shard,
)

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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = make_parser(__doc__)
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
    add_shard(parser)
    add_num_workers(parser)
    parser.add_argument(  # its older name
        "--workers", dest="num_workers", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--verify", action="store_true", help="pack nothing, check the shards")
    args = parser.parse_args(arguments)
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality must be from 1 to 100, got {args.quality}")
    if args.num_workers < 1 or (args.size is not None and args.size < 1):
        parser.error("--num_workers and --size must be at least 1")
    if args.list is None and not args.verify:
        parser.error("name the list to pack, or give --verify")
    return args


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
    """Pack the clips of a list that are in no shard yet; returns the exit code."""
    jobs = find_jobs(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    batch.sweep(str(args.output_dir))
    packed = packed_names(args.output_dir)
    ledger = Ledger(batch.summary_path(args.output_dir, TOOL, args.shard))
    for names in jobs.keys() & packed.keys():
        ledger.keep(jobs.pop(names)._replace(output=packed[names]))
    # In a random order, so that clips of a speaker, who stand together in lists, meet others.
    waiting = list(jobs.values())
    pending = deque(waiting[k] for k in np.random.default_rng(0).permutation(len(waiting)))
    settings = Settings(args.task == "pretrain", args.size, None if args.lossless else args.quality)
    work = partial(encode, settings=settings)
    with ledger.outcomes(pending, work, args.num_workers, "packing") as outcomes:
        write_all(args, ledger, _encoded(outcomes, ledger))
    return ledger.close()


def find_jobs(args: argparse.Namespace) -> dict[Names, PackJob]:
    """Return the clips of this part of the list; ValueError where it names shards."""
    if args.task == "pretrain":
        clips = read_pretrain_list(args.list, args.data_root)
    else:
        clips = read_labelled_list(args.list, args.task, None, args.data_root)
    if not isinstance(clips, list):
        raise ValueError(f"'{args.list}' is packed already; name a list of files")
    jobs: dict[Names, PackJob] = {}
    for clip in clips:
        video, audio = (_name(str(path), args.data_root) for path in (clip.video, clip.audio))
        named = clip._replace(video=video, audio=audio)
        jobs.setdefault((video, audio), PackJob(video, clip.video, "", str(clip.audio), named))
    mine = set(args.shard.take(jobs))
    return {names: job for names, job in jobs.items() if names in mine}


def _name(path: str, data_root: str) -> str:
    """Return the name of a file as a list with this --data_root has it."""
    root = os.path.join(data_root, "")
    return path[len(root) :] if data_root and path.startswith(root) else path


def _encoded(outcomes: Iterable[Outcome], ledger: Ledger) -> Iterator[Outcome]:
    """Yield the clips that could be encoded, and note the others."""
    for outcome in outcomes:
        if outcome.reason:
            ledger.note(outcome)
        else:
            yield outcome


def write_all(args: argparse.Namespace, ledger: Ledger, clips: Iterator[Outcome]) -> None:
    """Write shard after shard, and say what a clip costs beside the files it was made from."""
    prefix, source, sizes = prefix_of(args.shard), 0, []
    for number in itertools.count(next_number(args.output_dir, prefix)):
        first = next(clips, None)
        if first is None:
            break
        path = args.output_dir / f"{prefix}-{number:06d}.tar"
        for outcome in write_shard(path, itertools.chain([first], clips), args.shard_size):
            source += outcome.details["source_bytes"]
            ledger.note(outcome._replace(job=outcome.job._replace(output=str(path))))
        sizes.append(path.stat().st_size)
    if sizes:
        packed, files = sum(sizes) / ledger.done / 1e3, source / ledger.done / 1e3
        logger.info(
            "%d shards, %.3f GB; a clip takes %.0f KB, its files took %.0f KB (%.1f times)",
            *(len(sizes), sum(sizes) / 1e9, packed, files, packed / max(files, 1e-9)),
        )


def prefix_of(shard: Shard) -> str:
    """Return how the names of shards begin: parts of an array never want the same name."""
    if shard.parts == 1:
        return "clips"
    return f"clips-{shard.part:0{len(str(shard.parts))}d}of{shard.parts}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(arguments)
    try:
        return run_verify(args) if args.verify else pack(args)
    except (OSError, ValueError) as error:
        logger.error("error: %s", describe(error))
        return batch.STOPPED if getattr(error, "errno", None) in batch.DISK_FULL else 2


if __name__ == "__main__":
    sys.exit(main())
