"""The protocols of the nine labelled data sets: classes, folds, published counts, file names.

The docstring of each function is the --help of its script and says which files it expects.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from preprocess.lists.annotations import (
    class_index,
    matched,
    number,
    read_lines,
    read_table,
    read_utterances,
)
from preprocess.lists.building import (
    DataSet,
    Found,
    Plan,
    Wanted,
    cross_validation,
    fold_name,
    official_split,
)
from preprocess.lists.clips import LeftOut
from preprocess.lists.files import ALIGNED, find

# With 6 classes as published, with 4 counted in the same folds.
CREMAD_TEST_SIZES = {6: (1463, 1470, 1475, 1474, 1555), 4: (963, 968, 971, 971, 1023)}
CREMAD_DROPPED = ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")
CREMAD_MISNAMED = ("1040_ITH_SAD_XX", "1040_ITH_SAD_X")  # the video, and the wav as distributed
CREMAD_NAME = r"(10(?:0[1-9]|[1-8]\d|9[01]))_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_(?:XX|LO|MD|HI)"

MAFW_TEST_SIZES = (1836, 1833, 1827, 1829, 1831)  # of the single classes, clips with audio
MAFW_COMPOUND = tuple(
    "anger_anxiety anger_disgust anger_disgust_anxiety anger_disgust_contempt anger_helplessness "
    "anger_sadness anger_surprise anxiety_helplessness anxiety_helplessness_disappointment "
    "disgust_anxiety disgust_anxiety_helplessness disgust_contempt disgust_disappointment "
    "disgust_helplessness disgust_helplessness_disappointment disgust_sadness disgust_surprise "
    "fear_anxiety fear_sadness fear_sadness_anxiety fear_surprise fear_surprise_anxiety "
    "happiness_contempt happiness_surprise helplessness_disappointment sadness_anxiety "
    "sadness_anxiety_helplessness sadness_disappointment sadness_helplessness "
    "sadness_helplessness_disappointment sadness_surprise surprise_anxiety".split()
)

RAVDESS_NAME = r"0([123])-0([12])-0([1-8])-0[12]-0[12]-0[12]-(0[1-9]|1\d|2[0-4])"
MSP_LINE = (
    r"(?:UTD|MSP)-IMPROV-(S\d\d[AHNS]-([FM])0([1-6])-[PRST]-[FM]{2}\d+)\.avi\s*;\s*([A-Z])\s*;.*"
)
WEREWOLF_TARGETS = ("valence", "arousal", "dominance")


def known_classes(data_set: str, count: int) -> tuple[str, ...]:
    """Return the class names that the whole project knows, in the order of the published lists."""
    from hicmae.data.clip_list import data_set_names  # here, as hicmae brings torch

    return data_set_names(data_set, count)


@partial(
    DataSet,
    "CREMA-D",
    flags={"--classes": {"type": int, "choices": (6, 4), "default": 6, "help": "default: 6"}},
    audio_dirs=("audio_16k", "audio", "AudioWAV"),
)
def cremad(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of CREMA-D: 5 speaker-independent folds, 6 or 4 classes.

    python preprocess/cremad_av.py --data_root CREMA-D

    Expected below --data_root (https://github.com/CheyneyComputerScience/CREMA-D):

        faces/1001_DFA_ANG_XX/*.jpg      faces of VideoFlash/
        audio_16k/1001_DFA_ANG_XX.wav    or AudioWAV/, which is 16 kHz mono already

    A name is actor_sentence_EMOTION_level. Test fold k holds actors 1001+18(k-1) to 1000+18k,
    fold 5 also 1091. Of 7 442 clips the protocol drops four; a fifth, 1040_ITH_SAD_XX, had no audio
    in the original, because its wav is distributed as 1040_ITH_SAD_X.wav. Lists go to
    saved/data/cream-d/audio_visual, or ..._4classes.
    """
    classes = known_classes("CREMA-D", args.classes)
    wanted, left_out = [], []
    for name in found.names():
        match = re.fullmatch(CREMAD_NAME, name)
        if name in CREMAD_MISNAMED:
            left_out.append(LeftOut(name, "without audio in the original: its wav is misnamed"))
        elif match is None:
            left_out.append(LeftOut(name, "name is not actor_sentence_EMOTION_level"))
        elif name in CREMAD_DROPPED:
            left_out.append(LeftOut(name, "dropped by the protocol"))
        elif match[2] not in classes:
            left_out.append(LeftOut(name, f"class not among the {args.classes}"))
        else:
            wanted.append(Wanted(name, classes.index(match[2]), speaker=match[1]))
    folds = cross_validation(wanted, 5, lambda clip: min((int(clip.speaker) - 1001) // 18 + 1, 5))
    sizes = CREMAD_TEST_SIZES[args.classes]
    expected = {f"{fold_name(k)}/test": size for k, size in enumerate(sizes, 1)}
    expected |= {"clips": sum(sizes), "face folders": 7442}
    place = "cream-d/audio_visual" + ("_4classes" if args.classes == 4 else "")
    return Plan(place, wanted, folds, classes, expected, left_out)


@partial(
    DataSet,
    "MAFW",
    flags={
        "--subset": {
            "choices": ("single", "compound"),
            "default": "single",
            "help": "of the classes (%(default)s)",
        },
        "--split_dir": {"help": "folder of set_1 .. set_5 (Train & Test Set/<subset>/no_caption)"},
    },
    video_dirs=("data/frames", "faces", "face_aligned", "openface", "frames"),
    audio_dirs=("data/audio_16k", "audio_16k", "audio"),
)
def mafw(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of MAFW: official folds, 11 single classes or 43 with the compound ones.

    python preprocess/mafw_av.py --data_root MAFW [--subset compound]

    Expected below --data_root (https://mafw-database.github.io/MAFW/):

        data/frames/00025/*.png     or faces/
        data/audio_16k/00025.wav    or audio_16k/
        Train & Test Set/single/no_caption/set_1/train.txt, test.txt .. set_5    "00025.mp4 anger"
        Train & Test Set/compound/no_caption/set_1/ .. set_5             "20045.mp4 fear_anxiety"

    Of 10 045 clips 10 024 have audio. The 32 compound classes follow the 11 single ones in
    alphabetical order, which is this project's choice. Lists go to
    saved/data/mafw/audio_visual/single or compound.
    """
    place = args.split_dir or f"Train & Test Set/{args.subset}/no_caption"
    split_dir = find(found.root, "give --split_dir", place)
    single = args.subset == "single"
    classes = known_classes("MAFW", 11) + (() if single else MAFW_COMPOUND)
    form = "'<clip>.mp4 <class>'"

    def read(fold: int, part: str) -> Iterator[tuple[str, Wanted]]:
        purpose = f"MAFW's official split comes with it, lines {form}"
        for where, line in read_lines(find(split_dir, purpose, f"set_{fold}/{part}.txt")):
            match = matched(r"(\S+)\.mp4\s+(\S+)", line, where, form)
            yield where, Wanted(match[1], class_index(match[2], classes, where))

    wanted, folds = official_split(5, read)
    expected = {f"{fold_name(k)}/test": size for k, size in enumerate(MAFW_TEST_SIZES, 1)}
    expected = (expected if single else {}) | {"face folders": 10045, "wavs": 10024}
    return Plan(f"mafw/audio_visual/{args.subset}", wanted, folds, classes, expected)


@partial(DataSet, "RAVDESS")
def ravdess(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of RAVDESS (speech): 6 folds of 4 actors, 8 classes.

    python preprocess/ravdess_av.py --data_root RAVDESS

    Expected below --data_root (https://zenodo.org/records/1188976):

        faces/Actor_01/02-01-03-01-01-01-01/*.jpg      faces of the silent videos 02-*.mp4
        audio_16k/Actor_01/03-01-03-01-01-01-01.wav    made from the 48 kHz 03-*.wav of
                                                       Audio_Speech_Actors_01-24

    A name is modality-channel-emotion-intensity-statement-repetition-actor; emotions 01..08 become
    0..7. Test fold k holds actors 4k-3 to 4k, 240 clips each. Lists go to
    saved/data/ravdess/audio_visual.
    """
    clips: dict[str, Wanted] = {}
    left_out = []
    for name in found.names():
        match = re.fullmatch(RAVDESS_NAME, name)
        if match is None:
            left_out.append(LeftOut(name, "name is not seven numbers of RAVDESS"))
        elif match[1] == "1":
            reason = "video with sound (01-*), the protocol takes 02-* and 03-*"
            left_out.append(LeftOut(name, reason))
        elif match[2] == "2":
            left_out.append(LeftOut(name, "song, the protocol takes speech"))
        else:  # the wav of 02-x is 03-x
            video, audio = "02" + name[2:], "03" + name[2:]
            clips[video] = Wanted(video, int(match[3]) - 1, match[4], audio)
    wanted = sorted(clips.values(), key=lambda clip: (clip.speaker, clip.name))
    folds = cross_validation(wanted, 6, lambda clip: (int(clip.speaker) - 1) // 4 + 1)
    expected = {"clips": 1440} | {f"{fold}/test": 240 for fold in folds}
    classes = known_classes("RAVDESS", 8)
    return Plan("ravdess/audio_visual", wanted, folds, classes, expected, left_out)


@partial(
    DataSet, "MSP-IMPROV", flags={"--labels": {"help": "relative to --data_root (Evalution.txt)"}}
)
def msp_improv(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of MSP-IMPROV: 6 folds, one a session, 4 classes A H N S.

    python preprocess/msp_improv_av.py --data_root MSP-IMPROV

    Expected below --data_root
    (https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Improv.html):

        faces/.../MSP-IMPROV-S01A-F01-P-FM01_aligned/*.jpg
        audio_16k/.../MSP-IMPROV-S01A-F01-P-FM01.wav
        Evalution.txt    the corpus's consensus labels (or Evaluation.txt), lines
                         "UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; ..."

    A name is corpus-sentence-speaker-situation-turn; the speaker's number is the session. Clips of
    other classes (O, X) are left out; 7 787 remain. Lists go to saved/data/msp-improv/audio_visual.
    """
    classes = known_classes("MSP-IMPROV", 4)
    places = [args.labels] if args.labels else ["Evalution.txt", "Evaluation.txt"]
    form = "'UTD-IMPROV-<clip>.avi; <class>; ...'"
    path = find(found.root, f"the corpus's labels come with it, lines {form}", *places)
    wanted, left_out = [], []
    for where, line in read_lines(path):
        if "-IMPROV-" not in line:  # the votes of single raters follow below a clip's line
            continue
        match = matched(MSP_LINE, line, where, form)
        name = f"MSP-IMPROV-{match[1]}"
        if match[4] in classes:
            wanted.append(Wanted(name, classes.index(match[4]), f"{match[2]}0{match[3]}"))
        else:
            left_out.append(LeftOut(name, f"class {match[4]}, the protocol takes A H N S"))
    folds = cross_validation(wanted, 6, lambda clip: int(clip.speaker[-1]))
    note = (
        "the original's val.csv of MSP-IMPROV is its test.csv; none is written here, and "
        "training without one chooses its best epoch on test.csv, as the original does"
    )
    expected = {"clips": 7787}
    return Plan("msp-improv/audio_visual", wanted, folds, classes, expected, left_out, note)


@partial(
    DataSet,
    "Werewolf-XL",
    flags={
        "--labels": {"default": "labels.csv", "help": "relative to --data_root (%(default)s)"},
        "--columns": {
            "nargs": 4,
            "default": ["name", *WEREWOLF_TARGETS],
            "metavar": ("CLIP", "VALENCE", "AROUSAL", "DOMINANCE"),
            "help": f"columns of the table (name {' '.join(WEREWOLF_TARGETS)})",
        },
        "--published_lists": {"help": "folder of split01 .. split05 with lists"},
    },
)
def werewolf_xl(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of Werewolf-XL: regression of valence, arousal and dominance, 5 folds.

    python preprocess/werewolf_xl_av.py --data_root Werewolf-XL --labels labels.csv
    python preprocess/werewolf_xl_av.py --data_root Werewolf-XL --published_lists DIR

    Expected below --data_root (licensed by its authors: Zhang et al., IEEE Transactions on
    Affective Computing 2021):

        faces/01_01_128_aligned/*.jpg
        audio_16k/01_01_128.wav
        labels.csv    a clip a line; --columns names the column of the clip and the three of the
                      targets

    --published_lists takes labels and folds from lists that exist, DIR/split01..05/train.csv and
    test.csv, such as those in https://github.com/sunlicai/HiCMAE
    (saved/data/werewolf-xl/audio_visual). Without them test fold k holds game sessions 6k-5 to 6k
    (the first number of a name), which is what those lists do. A person may play in several
    sessions; the protocol separates sessions, and clip_speakers.csv names session_player. 14 457
    clips were used in the original. Lists go to saved/data/werewolf-xl/audio_visual.
    """
    if args.published_lists:
        wanted, folds = official_split(5, partial(_published, args.published_lists))
    else:
        purpose = f"give --labels, a table with the columns {', '.join(args.columns)}"
        wanted = list(_rated(find(found.root, purpose, args.labels), args.columns))
        folds = cross_validation(wanted, 5, lambda c: min((int(c.speaker[:2]) - 1) // 6 + 1, 5))
    expected = {"clips": 14457}
    return Plan("werewolf-xl/audio_visual", wanted, folds, WEREWOLF_TARGETS, expected)


def _published(folder: str, fold: int, part: str) -> Iterator[tuple[str, Wanted]]:
    """Yield the clips of a list that exists, whatever folders their names are in."""
    from hicmae.data.clip_list import read_labelled_list

    path = os.path.join(folder, fold_name(fold), f"{part}.csv")
    for clip in read_labelled_list(path, "regression", len(WEREWOLF_TARGETS)):
        name = os.path.basename(clip.video).removesuffix(ALIGNED)
        yield path, Wanted(name, clip.label or (), _seat(name, path))


def _rated(path: str, columns: list[str]) -> Iterator[Wanted]:
    """Yield the clips of a table with their targets."""
    seen = set()
    for where, row in read_table(path, columns):
        name = os.path.splitext(row[columns[0]])[0]
        if name in seen:
            raise ValueError(f"{where}: expected each clip once, got '{name}' again")
        seen.add(name)
        targets = tuple(number(row[column], where) for column in columns[1:])
        yield Wanted(name, targets, _seat(name, where))


def _seat(name: str, where: str) -> str:
    """Return who speaks: session_player."""
    return matched(r"(\d\d_\d\d)_\d+", name, where, "a clip <session>_<player>_<number>")[1]


@partial(
    DataSet,
    "DFEW",
    flags={
        "--split_dir": {"default": "EmoLabel_DataSplit", "help": "below --data_root (%(default)s)"}
    },
    video_dirs=("faces", "face_aligned", "openface", "Clip/clip_224x224"),
)
def dfew(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of DFEW: the official 5 folds of the single-labelled clips, 7 classes.

    python preprocess/dfew_av.py --data_root DFEW

    Expected below --data_root (https://dfew-dataset.github.io/):

        faces/00001/*.jpg          without it, the frames in Clip/clip_224x224
        audio_16k/00001.wav
        EmoLabel_DataSplit/train(single-labeled)/set_1.csv .. set_5.csv   columns video_name,label
        EmoLabel_DataSplit/test(single-labeled)/set_1.csv .. set_5.csv    label 1..7

    Labels 1..7 become 0..6: happy sad neutral angry surprise disgust fear. Clips without sound are
    left out. Lists go to saved/data/dfew/audio_visual.
    """
    split_dir = find(found.root, "give --split_dir", args.split_dir)

    def read(fold: int, part: str) -> Iterator[tuple[str, Wanted]]:
        purpose = "DFEW's official split comes with it, columns video_name,label"
        path = find(split_dir, purpose, f"{part}(single-labeled)/set_{fold}.csv")
        for where, row in read_table(path, ["video_name", "label"]):
            match = matched(r"0*(\d{1,5})", row["video_name"], where, "a clip's number")
            label = matched(r"[1-7]", row["label"], where, "a label 1..7")
            yield where, Wanted(match[1].zfill(5), int(label[0]) - 1)

    wanted, folds = official_split(5, read)
    classes = known_classes("DFEW", 7)
    return Plan("dfew/audio_visual", wanted, folds, classes)


@partial(
    DataSet,
    "MER2023",
    flags={
        "--train_labels": {"help": "relative to --data_root (train-label.csv)"},
        "--test_labels": {"help": "relative to --data_root (test1-label.csv)"},
    },
)
def mer2023(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of MER2023 (MER-MULTI): official training and test clips, 6 classes.

    python preprocess/mer2023_av.py --data_root MER2023

    Expected below --data_root (http://merchallenge.cn/datasets):

        faces/<name>_aligned/*.jpg   faces of train/ and test1/
        audio_16k/<name>.wav
        train-label.csv              or mer2023train/train-label.csv: columns name,discrete,...
        test1-label.csv              or test-labels/test1-label.csv: the labels of MER-MULTI, which
                                     the organisers give out after the challenge; same columns

    The baseline's label-6way.npz holds pickled objects. They are never unpickled here: give the csv
    files. Classes in the baseline's order: neutral angry happy sad worried surprise
    (https://github.com/zeroQiaoba/MER2023-Baseline). Lists go to saved/data/mer2023/audio_visual.
    """
    classes = known_classes("MER2023", 6)
    wanted: list[Wanted] = []
    parts: dict[str, list[str]] = {}
    for part, chosen, places in (
        ("train", args.train_labels, ("train-label.csv", "mer2023train/train-label.csv")),
        ("test", args.test_labels, ("test1-label.csv", "test-labels/test1-label.csv")),
    ):
        purpose = f"give --{part}_labels, a table with the columns name,discrete"
        path = find(found.root, purpose, *([chosen] if chosen else places))
        if path.endswith(".npz"):
            raise ValueError(f"'{path}' holds pickled objects, expected the official csv")
        clips = [
            Wanted(row["name"], class_index(row["discrete"], classes, where))
            for where, row in read_table(path, ["name", "discrete"])
        ]
        parts[part] = [clip.name for clip in clips]
        wanted += clips
    return Plan("mer2023/audio_visual", wanted, {"split01": parts}, classes)


@partial(DataSet, "IEMOCAP", audio_dirs=("audio_16k", "audio", "."))
def iemocap(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of IEMOCAP: 5 folds, one a session, 4 classes ang, hap (with exc), neu, sad.

    python preprocess/iemocap_av.py --data_root IEMOCAP_full_release

    Expected below --data_root (https://sail.usc.edu/iemocap/):

        Session1/dialog/EmoEvaluation/Ses01F_impro01.txt .. Session5/    lines
            "[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]"
        Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav    16 kHz mono as distributed
        faces/Ses01F_impro01_F000_aligned/*.jpg    one folder an utterance

    The videos in dialog/avi hold a whole dialogue with both speakers side by side:
    preprocess/iemocap_clips.py cuts them by the times above and to the half of the speaker. Other
    classes are left out. Lists go to saved/data/iemocap/audio_visual.
    """
    classes = known_classes("IEMOCAP", 4)
    find(found.root, "give another --data_root", "Session1/dialog/EmoEvaluation")
    wanted, left_out = [], []
    for path in sorted(Path(found.root).glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        for utterance in read_utterances(str(path)):
            emotion = "hap" if utterance.emotion == "exc" else utterance.emotion
            if emotion in classes:
                label = classes.index(emotion)
                wanted.append(Wanted(utterance.name, label, utterance.speaker))
            else:
                reason = f"class {emotion} is not among the four"
                left_out.append(LeftOut(utterance.name, reason))
    folds = cross_validation(wanted, 5, lambda clip: int(clip.speaker[4]))
    return Plan("iemocap/audio_visual", wanted, folds, classes, left_out=left_out)


@partial(
    DataSet,
    "AVCAffe",
    flags={
        "--target": {
            "choices": ("arousal", "valence"),
            "default": "arousal",
            "help": "what to predict (%(default)s)",
        }
    },
)
def avcaffe(args: argparse.Namespace, found: Found) -> Plan:
    """Make the lists of AVCAffe: arousal or valence in 5 levels, the official split by participant.

    python preprocess/avcaffe_av.py --data_root avcaffe --target arousal

    Expected below --data_root (https://github.com/pritamqu/AVCAffe):

        faces/.../aiim001_task_1_<...>_aligned/*.jpg   faces of videos/shorter_segments/
        audio_16k/.../aiim001_task_1_<...>.wav
        ground_truths/arousal.txt, valence.txt         lines "aiim001_task_1, Excited"
        info/train.txt, val.txt                        participants, "aiim001"; val becomes test.csv

    A clip's task is the first three "_" fields of its name. Classes in the order of the data set's
    own loader: excited wide-awake neutral dull calm; pleasant pleased neutral unsatisfied
    unpleasant. Lists go to saved/data/avcaffe/audio_visual/<target>.
    """
    classes = known_classes(f"AVCAffe {args.target}", 5)
    form = f"'aiim<person>_task_<number>, <{args.target}>'"
    purpose = f"the data set's self-reports come with it, lines {form}"
    labels = {}
    for where, line in read_lines(find(found.root, purpose, f"ground_truths/{args.target}.txt")):
        if "," in line:  # other lines are headings
            task = matched(r"(aiim\d{3}_task_\d+)\s*,\s*(.+)", line, where, form)
            labels[task[1]] = class_index(task[2], classes, where)
    people = {
        part: set(_participants(found.root, f"info/{name}.txt"))
        for part, name in (("train", "train"), ("test", "val"))
    }
    wanted, left_out = [], []
    for name in found.names():
        match = re.fullmatch(r"((aiim\d{3})_task_\d+)(?:_.*)?", name, re.DOTALL)
        if match is None:
            left_out.append(LeftOut(name, "name is not aiim<person>_task_<number>_..."))
        elif match[1] not in labels:
            left_out.append(LeftOut(name, f"task without {args.target}"))
        elif not any(match[2] in group for group in people.values()):
            left_out.append(LeftOut(name, "participant in neither official list"))
        else:
            wanted.append(Wanted(name, labels[match[1]], match[2]))
    parts = {p: [c.name for c in wanted if c.speaker in group] for p, group in people.items()}
    note = "clips of one task are scored as one: test with --average_clips 3"
    place = f"avcaffe/audio_visual/{args.target}"
    return Plan(place, wanted, {"split01": parts}, classes, left_out=left_out, note=note)


def _participants(root: str, name: str) -> Iterator[str]:
    """Yield the participants of one official list of AVCAffe."""
    path = find(root, "AVCAffe's official split comes with it, lines aiim001 .. aiim108", name)
    for where, line in read_lines(path):
        for person in re.split(r"[\s,]+", line.strip(", ")):
            yield matched(r"aiim\d{3}", person, where, "a participant aiim<number>")[0]
