"""Make the lists of MER2023 (MER-MULTI): official training and test clips, 6 classes.

    python preprocess/mer2023_av.py --data_root MER2023

Expected below --data_root (http://merchallenge.cn/datasets; --video_dir, --audio_dir,
--train_labels and --test_labels name other places):

    faces/<name>_aligned/*.jpg   by preprocess/face_and_audio/extract_face.py from train/ and test1/
    audio_16k/<name>.wav         by preprocess/face_and_audio/extract_audio.py
    train-label.csv              or mer2023train/train-label.csv: columns name,discrete,...
    test1-label.csv              or test-labels/test1-label.csv: the labels of MER-MULTI, which the
                                 organisers give out after the challenge; same columns

The baseline's label-6way.npz holds pickled objects. They are never unpickled here: give the csv
files. Classes in the baseline's order: neutral angry happy sad worried surprise
(https://github.com/zeroQiaoba/MER2023-Baseline). Written to --output_dir
(saved/data/mer2023/audio_visual): split01/train.csv and test.csv, classes.txt, speakers.csv,
left_out.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import class_index, read_columns  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import find_file  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted  # noqa: E402

CLASSES = tuple("neutral angry happy sad worried surprise".split())
COLUMNS = ("name", "discrete")
PLACES = {
    "train": ("train-label.csv", "mer2023train/train-label.csv"),
    "test": ("test1-label.csv", "test-labels/test1-label.csv"),
}


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read the two tables of labels."""
    root = checked_root(args.data_root, DATA_SET.title)
    chosen = {"train": args.train_labels, "test": args.test_labels}
    wanted: list[Wanted] = []
    parts: dict[str, list[str]] = {}
    for part, places in PLACES.items():
        purpose = f"MER2023's labels for {part}.csv, columns {','.join(COLUMNS)}"
        path = find_file(root, [chosen[part]] if chosen[part] else places, purpose)
        clips = read_part(path)
        parts[part] = [clip.name for clip in clips]
        wanted += clips
    return Plan(wanted, {"split01": parts}, CLASSES)


def read_part(path: str) -> list[Wanted]:
    """Return the clips of one table."""
    if path.endswith(".npz"):
        raise ValueError(
            f"'{path}' holds pickled objects, which are never loaded here; expected the official "
            "csv with the columns name,discrete"
        )
    return [
        Wanted(name, class_index(emotion, CLASSES, where))
        for where, (name, emotion) in read_columns(path, COLUMNS)
    ]


DATA_SET = DataSet("MER2023", __doc__, lambda args: "saved/data/mer2023/audio_visual", read)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    for part, places in PLACES.items():
        parser.add_argument(f"--{part}_labels", help=f"relative to --data_root ({places[0]})")
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
