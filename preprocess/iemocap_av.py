"""Make the lists of IEMOCAP: 5 folds, one a session, 4 classes ang, hap (with exc), neu, sad.

    python preprocess/iemocap_av.py --data_root IEMOCAP_full_release

Expected below --data_root (https://sail.usc.edu/iemocap/; --video_dir and --audio_dir name other
places):

    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt .. Session5/    lines
        "[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]"
    Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav    16 kHz mono as distributed
    faces/Ses01F_impro01_F000_aligned/*.jpg    one folder an utterance

The videos in dialog/avi hold a whole dialogue with both speakers side by side:
preprocess/iemocap_clips.py cuts them by the times above and to the half of the speaker, then
preprocess/face_and_audio/extract_face.py finds the faces. Other classes are left out. Written to
--output_dir (saved/data/iemocap/audio_visual): split01..05 with train.csv and test.csv,
classes.txt, speakers.csv, clip_speakers.csv, left_out.csv.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from preprocess.lists.clips import LeftOut  # noqa: E402
from preprocess.lists.command import DataSet, checked_root, exit_code, make_lists  # noqa: E402
from preprocess.lists.files import contents, find_folder  # noqa: E402
from preprocess.lists.iemocap import read_utterances  # noqa: E402
from preprocess.lists.plan import Found, Plan, Wanted, cross_validation  # noqa: E402

CLASSES = ("ang", "hap", "neu", "sad")
CLASS_OF = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
SESSIONS = 5


def read(args: argparse.Namespace, found: Found) -> Plan:
    """Read the EmoEvaluation files of all sessions."""
    root = checked_root(args.data_root, DATA_SET.title)
    wanted, left_out = [], []
    for path in evaluations(root):
        for utterance in read_utterances(path):
            name, emotion = utterance.name, utterance.emotion
            if emotion in CLASS_OF:
                wanted.append(Wanted(name, CLASS_OF[emotion], utterance.speaker))
            else:
                left_out.append(LeftOut(name, f"class {emotion} is not among the four"))
    folds = cross_validation(wanted, SESSIONS, lambda clip: int((clip.speaker or "Ses00")[4]))
    return Plan(wanted, folds, CLASSES, left_out=left_out)


def evaluations(root: str) -> Iterator[str]:
    """Yield the label files of every session; one without any is an error."""
    for session in range(1, SESSIONS + 1):
        place = f"Session{session}/dialog/EmoEvaluation"
        folder = find_folder(root, "another --data_root", place, ())
        names = sorted(name for name in os.listdir(folder) if name.startswith("Ses"))
        if not names:
            raise FileNotFoundError(
                f"expected the official label files Ses0{session}*.txt in '{folder}', found "
                f"{contents(folder)}"
            )
        yield from (os.path.join(folder, name) for name in names if name.endswith(".txt"))


DATA_SET = DataSet(
    "IEMOCAP",
    __doc__,
    lambda args: "saved/data/iemocap/audio_visual",
    read,
    audio_dirs=("audio_16k", "audio", "."),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    args = DATA_SET.parser().parse_args(arguments)
    return exit_code(lambda: make_lists(DATA_SET, args))


if __name__ == "__main__":
    raise SystemExit(main())
