"""Make the lists of DFEW: the official 5 folds of the single-labelled clips, 7 classes.

    python preprocess/dfew_av.py --data_root DFEW

Expected below --data_root (https://dfew-dataset.github.io/; --video_dir, --audio_dir and
--split_dir name other places; x_aligned/ or x/x_aligned/ may stand for the folder x/):

    faces/00001/*.jpg               by preprocess/face_and_audio/extract_face.py;
                                    without it, the frames in Clip/clip_224x224
    audio_16k/00001.wav             by preprocess/face_and_audio/extract_audio.py
    EmoLabel_DataSplit/train(single-labeled)/set_1.csv .. set_5.csv    columns video_name,label
    EmoLabel_DataSplit/test(single-labeled)/set_1.csv .. set_5.csv     label 1..7

Labels 1..7 become 0..6: happy sad neutral angry surprise disgust fear. Clips without sound are left
out. Written to --output_dir (saved/data/dfew/audio_visual): split01..05/train.csv and test.csv,
classes.txt, speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import matched, read_columns  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import find_file, find_folder  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, fold_name  # noqa: E402

CLASSES = tuple("happy sad neutral angry surprise disgust fear".split())
COLUMNS = ("video_name", "label")
FOLDS = 5


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read train(single-labeled)/set_k.csv and test(single-labeled)/set_k.csv."""
    root = checked_root(args.data_root, DATA_SET.title)
    split_dir = find_folder(root, "--split_dir", args.split_dir, ())
    labels: dict[str, int] = {}
    folds = {
        fold_name(fold): {
            part: read_part(split_dir, f"{part}(single-labeled)/set_{fold}.csv", labels)
            for part in ("train", "test")
        }
        for fold in range(1, FOLDS + 1)
    }
    return Plan([Wanted(name, label) for name, label in labels.items()], folds, CLASSES)


def read_part(split_dir: str, name: str, labels: dict[str, int]) -> list[str]:
    """Return the clips of one official file and note their labels, the same in all files."""
    path = find_file(split_dir, [name], "DFEW's official split, columns video_name,label")
    names = []
    for where, (video, label) in read_columns(path, COLUMNS):
        number = matched(r"0*(\d{1,5})", video, where, "a clip's number in video_name")[1]
        index = int(matched(r"[1-7]", label, where, "a label 1..7")[0]) - 1
        clip = number.zfill(5)
        if labels.setdefault(clip, index) != index:
            raise ValueError(
                f"{where}: expected label {labels[clip] + 1} that clip {clip} has in another file, "
                f"got {label}"
            )
        names.append(clip)
    return names


DATA_SET = DataSet(
    "DFEW",
    __doc__,
    lambda args: "saved/data/dfew/audio_visual",
    read,
    video_dirs=("faces", "face_aligned", "openface", "Clip/clip_224x224"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument(
        "--split_dir", default="EmoLabel_DataSplit", help="relative to --data_root (%(default)s)"
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
