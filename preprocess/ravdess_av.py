"""Make the lists of RAVDESS (speech): 6 folds of 4 actors, 8 classes.

    python preprocess/ravdess_av.py --data_root RAVDESS

Expected below --data_root (https://zenodo.org/records/1188976; --video_dir and --audio_dir name
other places; x_aligned/ or x/x_aligned/ may stand for the folder x/):

    faces/Actor_01/02-01-03-01-01-01-01/*.jpg    by preprocess/face_and_audio/extract_face.py from
                                                 the silent videos 02-*.mp4
    audio_16k/Actor_01/03-01-03-01-01-01-01.wav  by preprocess/face_and_audio/extract_audio.py from
                                                 the 48 kHz 03-*.wav of Audio_Speech_Actors_01-24

A name is modality-channel-emotion-intensity-statement-repetition-actor; emotions 01..08 become
0..7. Test fold k holds actors 4k-3 to 4k, 240 clips each. Written to --output_dir
(saved/data/ravdess/audio_visual): split01..06/train.csv and test.csv, classes.txt, speakers.csv,
clip_speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.clips import LeftOut  # noqa: E402
from preprocess.lists.command import DataSet, exit_code, make_lists  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, cross_validation, fold_name  # noqa: E402

CLASSES = tuple("neutral calm happy sad angry fearful disgust surprised".split())
NAME = re.compile(r"0([123])-0([12])-0([1-8])-0[12]-0[12]-0[12]-(0[1-9]|1\d|2[0-4])")
FOLDS, ACTORS_A_FOLD, TEST_SIZE = 6, 4, 240


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Label the clips by their names; the wav of 02-x is 03-x."""
    wanted: dict[str, Wanted] = {}
    left_out = []
    for name in found.names():
        match = NAME.fullmatch(name)
        if match is None:
            left_out.append(LeftOut(name, "name is not seven numbers of RAVDESS"))
        elif match[1] == "1":
            left_out.append(
                LeftOut(name, "video with sound (01-*), the protocol takes 02-* and 03-*")
            )
        elif match[2] == "2":
            left_out.append(LeftOut(name, "song, the protocol takes speech"))
        else:
            rest = name[2:]
            wanted["02" + rest] = Wanted("02" + rest, int(match[3]) - 1, match[4], "03" + rest)
    clips = sorted(wanted.values(), key=lambda clip: (clip.speaker or "", clip.name))
    expected = {f"{fold_name(k)}/test": TEST_SIZE for k in range(1, FOLDS + 1)}
    folds = cross_validation(
        clips, FOLDS, lambda clip: (int(clip.speaker or 0) - 1) // ACTORS_A_FOLD + 1
    )
    return Plan(clips, folds, CLASSES, {"clips": FOLDS * TEST_SIZE, **expected}, left_out)


DATA_SET = DataSet("RAVDESS", __doc__, lambda args: "saved/data/ravdess/audio_visual", read)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    args = DATA_SET.parser().parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
