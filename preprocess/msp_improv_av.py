"""Make the lists of MSP-IMPROV: 6 folds, one a session, 4 classes A H N S.

    python preprocess/msp_improv_av.py --data_root MSP-IMPROV

Expected below --data_root (https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Improv.html;
--video_dir, --audio_dir and --labels name other places):

    faces/.../MSP-IMPROV-S01A-F01-P-FM01_aligned/*.jpg
                                 by preprocess/face_and_audio/extract_face.py
    audio_16k/.../MSP-IMPROV-S01A-F01-P-FM01.wav
                                 by preprocess/face_and_audio/extract_audio.py
    Evalution.txt                the corpus's consensus labels (or Evaluation.txt), lines
                                 "UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; ..."

A name is corpus-sentence-speaker-situation-turn; the speaker's number is the session. Clips of
other classes (O, X) are left out; 7 787 remain. Written to --output_dir
(saved/data/msp-improv/audio_visual): split01..06/train.csv and test.csv, classes.txt,
speakers.csv, clip_speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.annotations import matched, read_lines  # noqa: E402
from preprocess.lists.clips import LeftOut  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import find_file  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, cross_validation  # noqa: E402

CLASSES = ("A", "H", "N", "S")
LINE = r"(?:UTD|MSP)-IMPROV-(S\d\d[AHNS]-([FM])0([1-6])-[PRST]-[FM]{2}\d+)\.avi\s*;\s*([A-Z])\s*;.*"
FORM = "'UTD-IMPROV-<clip>.avi; <class>; ...'"
SESSIONS = 6
NUM_CLIPS = 7787


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read the consensus labels."""
    root = checked_root(args.data_root, DATA_SET.title)
    places = [args.labels] if args.labels else ["Evalution.txt", "Evaluation.txt"]
    path = find_file(root, places, f"MSP-IMPROV's consensus labels, lines {FORM}")
    wanted, left_out = [], []
    for where, line in read_lines(path):
        if "-IMPROV-" not in line:  # the votes of single raters follow below a clip's line
            continue
        match = matched(LINE, line, where, FORM)
        name = f"MSP-IMPROV-{match[1]}"
        if match[4] in CLASSES:
            wanted.append(Wanted(name, CLASSES.index(match[4]), f"{match[2]}0{match[3]}"))
        else:
            left_out.append(LeftOut(name, f"class {match[4]}, the protocol takes A H N S"))
    folds = cross_validation(wanted, SESSIONS, lambda clip: int((clip.speaker or "0")[-1]))
    notes = [
        "the original's val.csv of MSP-IMPROV is its test.csv; none is written here, and "
        "training without one chooses its best epoch on test.csv, as the original does"
    ]
    return Plan(wanted, folds, CLASSES, {"clips": NUM_CLIPS}, left_out, notes)


DATA_SET = DataSet("MSP-IMPROV", __doc__, lambda args: "saved/data/msp-improv/audio_visual", read)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = DATA_SET.parser()
    parser.add_argument("--labels", help="relative to --data_root (Evalution.txt)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
