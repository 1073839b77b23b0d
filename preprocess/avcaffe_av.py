"""Make the lists of AVCAffe: arousal or valence in 5 levels, the official split by participant.

    python preprocess/avcaffe_av.py --data_root avcaffe --target arousal

Expected below --data_root (https://github.com/pritamqu/AVCAffe; --video_dir and --audio_dir name
other places):

    faces/.../aiim001_task_1_<...>_aligned/*.jpg   by preprocess/face_and_audio/extract_face.py from
                                                   videos/shorter_segments/
    audio_16k/.../aiim001_task_1_<...>.wav         by preprocess/face_and_audio/extract_audio.py
    ground_truths/arousal.txt, valence.txt         lines "aiim001_task_1, Excited"
    info/train.txt, val.txt                        participants, "aiim001"; val becomes test.csv

A clip's task is the first three "_" fields of its name. Classes in the order of the data set's own
loader: excited wide-awake neutral dull calm; pleasant pleased neutral unsatisfied unpleasant.
Written to --output_dir (saved/data/avcaffe/audio_visual/<target>): split01/train.csv and test.csv,
classes.txt, speakers.csv, clip_speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import class_index, matched, read_lines  # noqa: E402
from preprocess.lists.clips import LeftOut  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import find_file  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted  # noqa: E402

CLASSES = {
    "arousal": ("Excited", "Wide-awake", "Neutral", "Dull", "Calm"),
    "valence": ("Pleasant", "Pleased", "Neutral", "Unsatisfied", "Unpleasant"),
}
NAME = re.compile(r"((aiim\d{3})_task_\d+)(?:_.*)?", re.DOTALL)
PARTS = {"train": "info/train.txt", "test": "info/val.txt"}


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Label every clip by its task, split by participant."""
    root = checked_root(args.data_root, DATA_SET.title)
    labels = read_labels(root, args.target)
    people = {part: read_people(root, name) for part, name in PARTS.items()}
    wanted, left_out = [], []
    for name in found.names():
        match = NAME.fullmatch(name)
        if match is None:
            left_out.append(LeftOut(name, "name is not aiim<person>_task_<number>_..."))
        elif match[1] not in labels:
            left_out.append(LeftOut(name, f"task without {args.target}"))
        elif not any(match[2] in group for group in people.values()):
            left_out.append(LeftOut(name, "participant in neither official list"))
        else:
            wanted.append(Wanted(name, labels[match[1]], match[2]))
    parts = {
        part: [clip.name for clip in wanted if clip.speaker in group]
        for part, group in people.items()
    }
    notes = ["clips of one task are scored as one: test with --average_clips 3"]
    return Plan(wanted, {"split01": parts}, CLASSES[args.target], {}, left_out, notes)


def read_labels(root: str, target: str) -> dict[str, int]:
    """Return the class of every task."""
    form = f"'aiim<person>_task_<number>, <{target}>'"
    name = f"ground_truths/{target}.txt"
    path = find_file(root, [name], f"AVCAffe's self-reports, lines {form}")
    labels = {}
    for where, line in read_lines(path):
        if "," in line:  # other lines are headings
            match = matched(r"(aiim\d{3}_task_\d+)\s*,\s*(.+)", line, where, form)
            labels[match[1]] = class_index(match[2], CLASSES[target], where)
    if not labels:
        raise ValueError(f"{path}: expected lines {form}, got none")
    return labels


def read_people(root: str, name: str) -> set[str]:
    """Return the participants of one official list."""
    path = find_file(root, [name], "AVCAffe's official split, participants aiim001 .. aiim108")
    people: set[str] = set()
    for where, line in read_lines(path):
        for person in re.split(r"[\s,]+", line.strip(", ")):
            people.add(matched(r"aiim\d{3}", person, where, "a participant aiim<number>")[0])
    return people


DATA_SET = DataSet(
    "AVCAffe", __doc__, lambda args: f"saved/data/avcaffe/audio_visual/{args.target}", read
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument(
        "--target", choices=tuple(CLASSES), default="arousal", help="(default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
