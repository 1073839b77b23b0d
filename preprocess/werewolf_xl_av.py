"""Make the lists of Werewolf-XL: regression of valence, arousal and dominance, 5 folds.

    python preprocess/werewolf_xl_av.py --data_root Werewolf-XL --labels labels.csv
    python preprocess/werewolf_xl_av.py --data_root Werewolf-XL --published_lists DIR

Expected below --data_root (licensed by its authors: Zhang et al., IEEE Transactions on
Affective Computing 2021; --video_dir and --audio_dir name other places):

    faces/01_01_128_aligned/*.jpg   by preprocess/face_and_audio/extract_face.py
    audio_16k/01_01_128.wav         by preprocess/face_and_audio/extract_audio.py
    labels.csv                      a clip a line; --columns names the column of the clip and the
                                    three of the targets

--published_lists takes labels and folds from lists that exist, DIR/split01..05/train.csv and
test.csv, such as those in https://github.com/sunlicai/HiCMAE (saved/data/werewolf-xl/audio_visual).
Without them test fold k holds game sessions 6k-5 to 6k (the first number of a name), which is what
those lists do. A person may play in several sessions; the protocol separates sessions.
Written to --output_dir (saved/data/werewolf-xl/audio_visual): split01..05/train.csv and test.csv,
targets.txt, speakers.csv, clip_speakers.csv (session_player), left_out.csv. 14 457 clips were used
in the original.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import matched, number, read_columns  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import ALIGNED, find_file  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, cross_validation, fold_name  # noqa: E402

TARGETS = ("valence", "arousal", "dominance")
COLUMNS = ("name", *TARGETS)
NAME = r"(\d\d)_(\d\d)_\d+"
FOLDS, SESSIONS_A_FOLD, NUM_CLIPS = 5, 6, 14457


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read the targets from a table or from lists that exist."""
    if args.published_lists:
        wanted, folds = read_lists(args.published_lists)
    else:
        root = checked_root(args.data_root, DATA_SET.title)
        purpose = f"Werewolf-XL's targets, a table with the columns {', '.join(args.columns)}"
        wanted = read_table(find_file(root, [args.labels], purpose), args.columns)
        folds = cross_validation(wanted, FOLDS, test_fold)
    return Plan(wanted, folds, TARGETS, {"clips": NUM_CLIPS})


def read_table(path: str, columns: list[str]) -> list[Wanted]:
    """Return the clips of a csv file with their targets."""
    clips = {}
    for where, (name, *targets) in read_columns(path, columns):
        name = os.path.splitext(name)[0]
        if name in clips:
            raise ValueError(f"{where}: expected each clip once, got '{name}' again")
        clips[name] = Wanted(
            name, tuple(number(target, where) for target in targets), speaker_of(name, where)
        )
    return list(clips.values())


def read_lists(folder: str) -> tuple[list[Wanted], dict[str, dict[str, list[str]]]]:
    """Return the clips and the folds of lists that exist, whatever folders their names are in."""
    from hicmae.data.clip_list import read_labelled_list

    clips: dict[str, Wanted] = {}
    folds: dict[str, dict[str, list[str]]] = {}
    for fold in map(fold_name, range(1, FOLDS + 1)):
        for part in ("train", "test"):
            path = os.path.join(folder, fold, f"{part}.csv")
            names = folds.setdefault(fold, {}).setdefault(part, [])
            for clip in read_labelled_list(path, "regression", len(TARGETS)):
                name = os.path.basename(clip.video).removesuffix(ALIGNED)
                wanted = Wanted(name, clip.label or (), speaker_of(name, path))
                if clips.setdefault(name, wanted) != wanted:
                    raise ValueError(
                        f"{path}: expected the targets {clips[name].label} that clip {name} has in "
                        f"another list, got {wanted.label}"
                    )
                names.append(name)
    return list(clips.values()), folds


def speaker_of(name: str, where: str) -> str:
    """Return the seat of the speaker: session_player."""
    match = matched(NAME, name, where, "a clip <session>_<player>_<number>")
    return f"{match[1]}_{match[2]}"


def test_fold(clip: Wanted) -> int:
    """Return the fold that tests on the clip's session."""
    return min((int((clip.speaker or "0")[:2]) - 1) // SESSIONS_A_FOLD + 1, FOLDS)


DATA_SET = DataSet("Werewolf-XL", __doc__, lambda args: "saved/data/werewolf-xl/audio_visual", read)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument(
        "--labels", default="labels.csv", help="relative to --data_root (%(default)s)"
    )
    parser.add_argument(
        "--columns",
        nargs=4,
        default=list(COLUMNS),
        metavar=("CLIP", "VALENCE", "AROUSAL", "DOMINANCE"),
        help=f"columns of the table ({' '.join(COLUMNS)})",
    )
    parser.add_argument("--published_lists", help="folder of split01 .. split05 with lists")
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
