"""Make the synthetic talking-face benchmark: videos, wavs, aligned face frames and lists.

    python preprocess/toy_av.py --output_dir saved/data/toy_av

Six classes = three valences that only the face shows x two arousals that only the voice carries,
so video alone can reach 50 % at most and audio alone 33 %. Everything follows from --seed; a
stopped run goes on where it was. Written under --output_dir:

    labelled/<speaker>/<clip>.mp4 .wav   224x224 H.264 at 25 fps with AAC; 16 kHz mono beside it
    aligned/<clip>/frame_det_00_*.jpg    aligned faces of the labelled clips
    pretrain/<speaker>/<clip>.mp4 .wav   other speakers, face within rows 0:160 and columns 32:192
    pretrain.csv, fold<k>/train.csv, val.csv, test.csv (no speaker in two of them), classes.txt
    meta.csv                             every parameter of every clip; toy_av.json: the settings
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # works from any folder, without installation

from preprocess.toy.build import Recipe, build  # noqa: E402
from preprocess.toy.preview import write_preview  # noqa: E402


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output_dir", type=Path, help="folder of the data set, for example saved/data/toy_av"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        help="decides every pixel and sample (%(default)s)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; any number gives the same files (%(default)s)",
    )
    parser.add_argument(
        "--speakers", type=int, default=defaults.speakers, help="labelled speakers (%(default)s)"
    )
    parser.add_argument(
        "--clips_per_class",
        type=int,
        default=defaults.clips_per_class,
        help="of each labelled speaker (%(default)s)",
    )
    parser.add_argument(
        "--pretrain_speakers",
        type=int,
        default=defaults.pretrain_speakers,
        help="unlabelled speakers (%(default)s)",
    )
    parser.add_argument(
        "--pretrain_clips",
        type=int,
        default=defaults.pretrain_clips,
        help="of each unlabelled speaker (%(default)s)",
    )
    parser.add_argument(
        "--folds", type=int, default=defaults.folds, help="speaker-independent folds (%(default)s)"
    )
    parser.add_argument(
        "--face_size",
        type=int,
        default=defaults.face_size,
        help="aligned faces, pixels (%(default)s)",
    )
    parser.add_argument(
        "--relative",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write names relative to --output_dir, for use with --data_root (default: absolute)",
    )
    parser.add_argument(
        "--preview",
        type=Path,
        help="write a contact sheet of --preview_speakers to this png and stop",
    )
    parser.add_argument(
        "--preview_speakers", type=int, default=6, help="rows of the contact sheet (%(default)s)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.preview is None and args.output_dir is None:
        parser.error("give --output_dir (or --preview for a contact sheet only)")
    try:
        names = Recipe.__dataclass_fields__.keys() - {"version"}
        recipe = Recipe(**{name: getattr(args, name) for name in names})
        if args.preview is not None:
            write_preview(args.preview, args.seed, args.preview_speakers, args.face_size)
        else:
            build(recipe, args.output_dir, args.num_workers, args.relative)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
