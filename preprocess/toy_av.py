"""Make the synthetic talking-face benchmark: videos, wavs, aligned face frames and lists.

    python preprocess/toy_av.py --output_dir saved/data/toy_av

Six classes = three valences that only the face shows x two arousals that only the voice carries,
so video alone can reach 50 % at most and audio alone 33 %. Face and voice share who speaks, the
movement of the lips and the energy. Everything follows from --seed; a stopped run goes on where it
was. Written under --output_dir:

    labelled/<speaker>/<clip>.mp4 .wav   96x96 H.264 at 25 fps with AAC; 16 kHz mono beside it
    aligned/<clip>/frame_det_00_*.jpg    aligned faces of the labelled clips
    pretrain/<speaker>/<clip>.mp4 .wav   other speakers, without labels; pretrain.csv lists them
    packed/                              the same clips in shards, which training reads faster
    fold<k>/train.csv, val.csv, test.csv few labels (--train_speakers); no speaker in two lists
    fold<k>_all/                         the same val.csv and test.csv with all other labels
    classes.txt, clip_speakers.csv, meta.csv (every parameter of every clip), toy_av.json (settings)
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.command_line import add_num_workers, add_switch, exit_code, make_parser
from preprocess.toy.build import Recipe, build, write_preview

SETTINGS = {
    "seed": "decides every pixel and sample",
    "speakers": "labelled speakers",
    "clips_per_class": "clips of each labelled speaker and class",
    "train_speakers": "labelled speakers in the train.csv of a fold",
    "pretrain_speakers": "unlabelled speakers",
    "pretrain_clips": "clips of each unlabelled speaker",
    "folds": "speaker-independent folds",
    "face_size": "pixels of an aligned face",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, help="folder, for example saved/data/toy_av")
    for name, meaning in SETTINGS.items():
        default = getattr(Recipe, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    add_num_workers(parser)
    add_switch(parser, "--relative", "write names relative to --output_dir, for --data_root")
    parser.add_argument("--preview", type=Path, help="write a contact sheet to this png and stop")
    parser.add_argument("--preview_speakers", type=int, default=6, help="its rows (%(default)s)")
    args = parser.parse_args(arguments)
    if args.preview is None and args.output_dir is None:
        parser.error("give --output_dir (or --preview for a contact sheet only)")

    def make() -> None:
        recipe = Recipe(**{name: getattr(args, name) for name in SETTINGS})
        if args.preview is not None:
            write_preview(args.preview, args.seed, args.preview_speakers, args.face_size)
        else:
            build(recipe, args.output_dir, args.num_workers, args.relative)

    return exit_code(make)


if __name__ == "__main__":
    sys.exit(main())
