"""Make the lists of CREMA-D: 5 speaker-independent folds, 6 or 4 classes.

    python preprocess/cremad_av.py --data_root CREMA-D

Expected below --data_root (https://github.com/CheyneyComputerScience/CREMA-D; --video_dir and
--audio_dir name other places; x_aligned/ or x/x_aligned/ may stand for the folder x/):

    faces/1001_DFA_ANG_XX/*.jpg      by preprocess/face_and_audio/extract_face.py from VideoFlash/
    audio_16k/1001_DFA_ANG_XX.wav    by preprocess/face_and_audio/extract_audio.py; without it,
                                     AudioWAV/, which is 16 kHz mono already

Test fold k holds actors 1001+18(k-1) to 1000+18k, fold 5 also 1091. Of 7 442 clips the protocol
drops four; a fifth, 1040_ITH_SAD_XX, had no audio in the original, because its wav is distributed
as 1040_ITH_SAD_X.wav. Written to --output_dir (saved/data/cream-d/audio_visual, or ..._4classes):
split01..05/train.csv and test.csv, classes.txt, speakers.csv, clip_speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.clips import LeftOut  # noqa: E402
from preprocess.lists.command import DataSet, exit_code, make_lists  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, cross_validation  # noqa: E402

CLASSES = {6: ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"), 4: ("ANG", "HAP", "NEU", "SAD")}
DROPPED = ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")
NAME = re.compile(
    r"(10(?:0[1-9]|[1-8]\d|9[01]))_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_(?:XX|LO|MD|HI)"
)
MISNAMED = ("1040_ITH_SAD_XX", "1040_ITH_SAD_X")  # the video, and the wav as distributed
FOLDS, ACTORS_A_FOLD, NUM_VIDEOS = 5, 18, 7442

# With 6 classes as published, with 4 counted in the same folds.
TEST_SIZES = {6: (1463, 1470, 1475, 1474, 1555), 4: (963, 968, 971, 971, 1023)}


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Label the clips by their names: actor_sentence_EMOTION_level."""
    classes = CLASSES[args.classes]
    wanted, left_out = [], []
    for name in found.names():
        match = NAME.fullmatch(name)
        if name in MISNAMED:
            left_out.append(LeftOut(name, "without audio in the original: its wav is misnamed"))
        elif match is None:
            left_out.append(LeftOut(name, "name is not actor_sentence_EMOTION_level"))
        elif name in DROPPED:
            left_out.append(LeftOut(name, "dropped by the protocol"))
        elif match[2] not in classes:
            left_out.append(LeftOut(name, f"class not among the {args.classes}"))
        else:
            wanted.append(Wanted(name, classes.index(match[2]), speaker=match[1]))
    sizes = TEST_SIZES[args.classes]
    expected = {f"split{k:02d}/test": size for k, size in enumerate(sizes, 1)}
    expected |= {"clips": sum(sizes), "face folders": NUM_VIDEOS}
    folds = cross_validation(wanted, FOLDS, test_fold)
    return Plan(wanted, folds, classes, expected, left_out)


def test_fold(clip: Wanted) -> int:
    """Return the fold that tests on the clip's actor."""
    return min((int(clip.speaker or 0) - 1001) // ACTORS_A_FOLD + 1, FOLDS)


def output_dir(args: argparse.Namespace) -> str:
    return "saved/data/cream-d/audio_visual" + ("_4classes" if args.classes == 4 else "")


DATA_SET = DataSet(
    "CREMA-D", __doc__, output_dir, read, audio_dirs=("audio_16k", "audio", "AudioWAV")
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument("--classes", type=int, choices=(6, 4), default=6, help="(%(default)s)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
