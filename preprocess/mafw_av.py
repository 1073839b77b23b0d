"""Make the lists of MAFW: official folds, 11 single classes or 43 with the compound ones.

    python preprocess/mafw_av.py --data_root MAFW [--subset compound]

Expected below --data_root (https://mafw-database.github.io/MAFW/; --video_dir, --audio_dir and
--split_dir name other places; x_aligned/ or x/x_aligned/ may stand for the folder x/):

    data/frames/00025/*.png     or faces/, by preprocess/face_and_audio/extract_face.py
    data/audio_16k/00025.wav    or audio_16k/, by preprocess/face_and_audio/extract_audio.py
    Train & Test Set/single/no_caption/set_1/train.txt, test.txt .. set_5   "00025.mp4 anger"
    Train & Test Set/compound/no_caption/set_1/ .. set_5                    "20045.mp4 fear_anxiety"

Of 10 045 clips 10 024 have audio. The 32 compound classes follow the 11 single ones in alphabetical
order, which is this project's choice. Written to --output_dir (saved/data/mafw/audio_visual/single
or compound): split01..05/train.csv and test.csv, classes.txt, speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import class_index, matched, read_lines  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import find_file, find_folder  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, fold_name  # noqa: E402

SINGLE = tuple(
    "anger disgust fear happiness neutral sadness surprise contempt anxiety helplessness "
    "disappointment".split()
)
COMPOUND = tuple(
    "anger_anxiety anger_disgust anger_disgust_anxiety anger_disgust_contempt anger_helplessness "
    "anger_sadness anger_surprise anxiety_helplessness anxiety_helplessness_disappointment "
    "disgust_anxiety disgust_anxiety_helplessness disgust_contempt disgust_disappointment "
    "disgust_helplessness disgust_helplessness_disappointment disgust_sadness disgust_surprise "
    "fear_anxiety fear_sadness fear_sadness_anxiety fear_surprise fear_surprise_anxiety "
    "happiness_contempt happiness_surprise helplessness_disappointment sadness_anxiety "
    "sadness_anxiety_helplessness sadness_disappointment sadness_helplessness "
    "sadness_helplessness_disappointment sadness_surprise surprise_anxiety".split()
)
CLASSES = {"single": SINGLE, "compound": SINGLE + COMPOUND}
TEST_SIZES = (1836, 1833, 1827, 1829, 1831)  # of the single classes, clips with audio
FOLDS, NUM_VIDEOS, NUM_WAVS = 5, 10045, 10024


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read set_k/train.txt and test.txt."""
    root = checked_root(args.data_root, DATA_SET.title)
    place = args.split_dir or f"Train & Test Set/{args.subset}/no_caption"
    split_dir = find_folder(root, "--split_dir", place, ())
    classes = CLASSES[args.subset]
    labels: dict[str, int] = {}
    folds: dict[str, dict[str, list[str]]] = {}
    for fold in range(1, FOLDS + 1):
        folds[fold_name(fold)] = {
            part: read_part(split_dir, f"set_{fold}/{part}.txt", classes, labels)
            for part in ("train", "test")
        }
    wanted = [Wanted(name, label) for name, label in labels.items()]
    sizes = TEST_SIZES if args.subset == "single" else ()
    expected = {f"{fold_name(k)}/test": size for k, size in enumerate(sizes, 1)}
    expected |= {"face folders": NUM_VIDEOS, "wavs": NUM_WAVS}
    return Plan(wanted, folds, classes, expected)


def read_part(
    split_dir: str, name: str, classes: tuple[str, ...], labels: dict[str, int]
) -> list[str]:
    """Return the clips of one official file and note their labels, the same in all files."""
    path = find_file(split_dir, [name], "MAFW's official split: lines '<clip>.mp4 <class>'")
    names = []
    for where, line in read_lines(path):
        match = matched(r"(\S+)\.mp4\s+(\S+)", line, where, "'<clip>.mp4 <class>'")
        label = class_index(match[2], classes, where)
        if labels.setdefault(match[1], label) != label:
            raise ValueError(
                f"{where}: expected the class {classes[labels[match[1]]]} that clip {match[1]} has "
                f"in another file, got '{match[2]}'"
            )
        names.append(match[1])
    return names


DATA_SET = DataSet(
    "MAFW",
    __doc__,
    lambda args: f"saved/data/mafw/audio_visual/{args.subset}",
    read,
    video_dirs=("data/frames", "faces", "face_aligned", "openface", "frames"),
    audio_dirs=("data/audio_16k", "audio_16k", "audio"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument(
        "--subset", choices=tuple(CLASSES), default="single", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--split_dir", help="folder of set_1 .. set_5 (Train & Test Set/<subset>/no_caption)"
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
