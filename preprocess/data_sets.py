"""The protocols of the ten data sets: classes, folds, published counts, file names.

A script of its own starts each of them, such as cremad_av.py. The docstring of a function is the
--help of its script and says which files it expects.
"""

import argparse
import glob
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder

from tqdm import tqdm

from hicmae.data.clip_list import Label, data_set_names, read_labelled_list, write_list
from hicmae.io import check_writable
from preprocess import lists
from preprocess.annotations import class_index, matched, number, read_lines, read_table
from preprocess.command_line import command
from preprocess.lists import Candidate, ClipFiles, Plan, cross_validation, data_set, official_split

logger = logging.getLogger("data_sets")

Lines = Iterator[tuple[str, Candidate]]  # (file:line, clip) of an official list

# With 6 classes as published, with 4 counted in the same folds.
CREMAD_TEST_SIZES = {6: (1463, 1470, 1475, 1474, 1555), 4: (963, 968, 971, 971, 1023)}
CREMAD_UNUSED = "1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD"
CREMAD_MUTE = "1040_ITH_SAD_XX", "1040_ITH_SAD_X"  # the video, and the wav as distributed
CREMAD_DROPPED = dict.fromkeys(CREMAD_UNUSED, "dropped by the protocol")
CREMAD_DROPPED |= dict.fromkeys(CREMAD_MUTE, "without audio in the original: its wav is misnamed")
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
IEMOCAP_LINE = r"\[[\d.]+ - [\d.]+\]\s+((Ses0[1-5])[FM]_\w+_([FM])\w+)\s+(\w+)\s+\[.*\]"


def of_class(name: str, emotion: str, classes: Sequence[str], speaker: str) -> Candidate:
    """Return a clip of one of the classes, or one that is left out for its class."""
    if emotion in classes:
        return Candidate(name, classes.index(emotion), speaker)
    return Candidate(name, reason=f"class {emotion}, the protocol takes {' '.join(classes)}")


@data_set(
    {"--classes": {"type": int, "default": 6, "choices": (6, 4), "help": "how many, usually 6"}},
    audio_dirs=("audio_16k", "audio", "AudioWAV"),
)
def cremad(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of CREMA-D: 5 speaker-independent folds, 6 or 4 classes.

    Expected below --data_root (https://github.com/CheyneyComputerScience/CREMA-D):

        faces/1001_DFA_ANG_XX/*.jpg      faces of VideoFlash/
        audio_16k/1001_DFA_ANG_XX.wav    or AudioWAV/, which is 16 kHz mono already

    A name is actor_sentence_EMOTION_level. Test fold k holds actors 1001+18(k-1) to 1000+18k,
    fold 5 also 1091. Of 7 442 clips the protocol drops four; a fifth, 1040_ITH_SAD_XX, had no audio
    in the original, because its wav is distributed as 1040_ITH_SAD_X.wav.
    """
    classes = data_set_names("CREMA-D", args.classes)
    clips = []
    for name in files.names():
        match = re.fullmatch(CREMAD_NAME, name)
        if name in CREMAD_DROPPED:
            clips.append(Candidate(name, reason=CREMAD_DROPPED[name]))
        elif match is None:
            clips.append(Candidate(name, reason="name is not actor_sentence_EMOTION_level"))
        else:
            clips.append(of_class(name, match[2], classes, match[1]))
    folds = cross_validation(clips, 5, lambda actor: min((int(actor) - 1001) // 18 + 1, 5))
    sizes = CREMAD_TEST_SIZES[args.classes]
    place = "crema-d/audio_visual" + "_4classes" * (args.classes == 4)
    return Plan(place, classes, clips, folds, sizes, {"clips": sum(sizes), "face folders": 7442})


@data_set(
    {"--subset": {"default": "single", "choices": ("single", "compound"), "help": "of classes"}},
    video_dirs=("data/frames", "faces", "face_aligned", "openface", "frames"),
    audio_dirs=("data/audio_16k", "audio_16k", "audio"),
)
def mafw(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of MAFW: official folds, 11 single classes or 43 with the compound ones.

    Expected below --data_root (https://mafw-database.github.io/MAFW/):

        data/frames/00025/*.png     or faces/
        data/audio_16k/00025.wav    or audio_16k/
        Train & Test Set/single/no_caption/set_1/train.txt, test.txt .. set_5    "00025.mp4 anger"
        Train & Test Set/compound/no_caption/set_1/ .. set_5             "20045.mp4 fear_anxiety"

    Of 10 045 clips 10 024 have audio. The 32 compound classes follow the 11 single ones in
    alphabetical order, which is this project's choice.
    """
    classes, form = data_set_names("MAFW", 11), "'<clip>.mp4 <class>'"
    classes += MAFW_COMPOUND * (args.subset == "compound")

    def read(fold: int, part: str) -> Lines:
        path = f"Train & Test Set/{args.subset}/no_caption/set_{fold}/{part}.txt"
        for where, line in read_lines(lists.find(files.root, path)):
            match = matched(r"(\S+)\.mp4\s+(\S+)", line, where, form)
            yield where, Candidate(match[1], class_index(match[2], classes, where))

    sizes = MAFW_TEST_SIZES if args.subset == "single" else ()
    place, counts = f"mafw/audio_visual/{args.subset}", {"face folders": 10045, "wavs": 10024}
    return Plan(place, classes, *official_split(5, read), sizes, counts)


@data_set()
def ravdess(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of RAVDESS (speech): 6 folds of 4 actors, 8 classes.

    Expected below --data_root (https://zenodo.org/records/1188976):

        faces/Actor_01/02-01-03-01-01-01-01/*.jpg      faces of the silent videos 02-*.mp4
        audio_16k/Actor_01/03-01-03-01-01-01-01.wav    made from the 48 kHz 03-*.wav of
                                                       Audio_Speech_Actors_01-24

    A name is modality-channel-emotion-intensity-statement-repetition-actor; emotions 01..08 become
    0..7. Test fold k holds actors 4k-3 to 4k, 240 clips each.
    """
    clips, speech = list[Candidate](), dict[str, Candidate]()
    for name in files.names():
        match = re.fullmatch(RAVDESS_NAME, name)
        if match is None:
            clips.append(Candidate(name, reason="name is not seven numbers of RAVDESS"))
        elif match[1] == "1":
            reason = "video with sound (01-*), the protocol takes 02-* and 03-*"
            clips.append(Candidate(name, reason=reason))
        elif match[2] == "2":
            clips.append(Candidate(name, reason="song, the protocol takes speech"))
        else:  # the wav of 02-x is 03-x
            video, audio = "02" + name[2:], "03" + name[2:]
            speech[video] = Candidate(video, int(match[3]) - 1, match[4], audio=audio)
    clips += sorted(speech.values(), key=lambda clip: (clip.speaker, clip.name))
    folds = cross_validation(clips, 6, lambda actor: (int(actor) - 1) // 4 + 1)
    classes = data_set_names("RAVDESS", 8)
    return Plan("ravdess/audio_visual", classes, clips, folds, [240] * 6, {"clips": 1440})


@data_set()
def msp_improv(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of MSP-IMPROV: 6 folds, one a session, 4 classes A H N S.

    Expected below --data_root (https://ecs.utdallas.edu/research/researchlabs/msp-lab/):

        faces/.../MSP-IMPROV-S01A-F01-P-FM01_aligned/*.jpg
        audio_16k/.../MSP-IMPROV-S01A-F01-P-FM01.wav
        Evalution.txt    the corpus's consensus labels (or Evaluation.txt), lines
                         "UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; ..."

    A name is corpus-sentence-speaker-situation-turn; the speaker's number is the session. Clips of
    other classes (O, X) are left out; 7 787 remain.
    """
    classes, form = data_set_names("MSP-IMPROV", 4), "'UTD-IMPROV-<clip>.avi; <class>; ...'"
    clips = []
    for where, line in read_lines(lists.find(files.root, "Evalution.txt", "Evaluation.txt")):
        if "-IMPROV-" in line:  # the votes of single raters follow below a clip's line
            match = matched(MSP_LINE, line, where, form)
            name, speaker = f"MSP-IMPROV-{match[1]}", f"{match[2]}0{match[3]}"
            clips.append(of_class(name, match[4], classes, speaker))
    folds = cross_validation(clips, 6, lambda speaker: int(speaker[-1]))
    logger.info(
        "note: the original's val.csv of MSP-IMPROV is its test.csv; none is written here, and "
        "training without one chooses its best epoch on test.csv, as the original does"
    )
    return Plan("msp-improv/audio_visual", classes, clips, folds, expected={"clips": 7787})


@data_set({"--published_lists": {"help": "folder of split01 .. split05 with lists"}})
def werewolf_xl(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of Werewolf-XL: regression of valence, arousal and dominance, 5 folds.

    Expected below --data_root (licensed by its authors: Zhang et al., IEEE Transactions on
    Affective Computing 2021):

        faces/01_01_128_aligned/*.jpg
        audio_16k/01_01_128.wav
        labels.csv    a clip a line, with the columns name, valence, arousal, dominance

    --published_lists takes labels and folds from lists that exist, DIR/split01..05/train.csv and
    test.csv, such as those in https://github.com/sunlicai/HiCMAE
    (saved/data/werewolf-xl/audio_visual). Without them test fold k holds game sessions 6k-5 to 6k
    (the first number of a name), which is what those lists do. A person may play in several
    sessions; the protocol separates sessions, and clip_speakers.csv names session_player. 14 457
    clips were used in the original.
    """
    targets = data_set_names("Werewolf-XL", 3)

    def rated(name: str, values: Label, where: str) -> Candidate:
        form = "a clip <session>_<player>_<number>"
        return Candidate(name, values, matched(r"(\d\d_\d\d)_\d+", name, where, form)[1])

    def published(fold: int, part: str) -> Lines:
        remedy = "give --published_lists, a folder of split01 .. split05"
        path = lists.find(args.published_lists, f"{lists.list_name(fold, part)}.csv", remedy=remedy)
        for clip in read_labelled_list(path, "regression", len(targets)):
            name = os.path.basename(clip.video).removesuffix(lists.ALIGNED)
            yield path, rated(name, clip.label, path)

    if args.published_lists:
        clips, folds = official_split(5, published)
    else:
        known: dict[str, Candidate] = {}
        for where, row in read_table(lists.find(files.root, "labels.csv"), ("name", *targets)):
            name = os.path.splitext(row["name"])[0]
            if name in known:
                raise ValueError(f"{where}: expected each clip once, got '{name}' again")
            values = tuple(number(row[target], where) for target in targets)
            known[name] = rated(name, values, where)
        clips = [*known.values()]
        folds = cross_validation(clips, 5, lambda player: min((int(player[:2]) - 1) // 6 + 1, 5))
    return Plan("werewolf-xl/audio_visual", targets, clips, folds, expected={"clips": 14457})


@data_set(video_dirs=("faces", "face_aligned", "openface", "Clip/clip_224x224"))
def dfew(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of DFEW: the official 5 folds of the single-labelled clips, 7 classes.

    Expected below --data_root (https://dfew-dataset.github.io/):

        faces/00001/*.jpg          without it, the frames in Clip/clip_224x224
        audio_16k/00001.wav
        EmoLabel_DataSplit/train(single-labeled)/set_1.csv .. set_5.csv   columns video_name,label
        EmoLabel_DataSplit/test(single-labeled)/set_1.csv .. set_5.csv    label 1..7

    Labels 1..7 become 0..6: happy sad neutral angry surprise disgust fear. Clips without sound are
    left out.
    """

    def read(fold: int, part: str) -> Lines:
        path = f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"
        for where, row in read_table(lists.find(files.root, path), ["video_name", "label"]):
            match = matched(r"0*(\d{1,5})", row["video_name"], where, "a clip's number")
            label = matched(r"[1-7]", row["label"], where, "a label 1..7")
            yield where, Candidate(match[1].zfill(5), int(label[0]) - 1)

    return Plan("dfew/audio_visual", data_set_names("DFEW", 7), *official_split(5, read))


@data_set()
def mer2023(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of MER2023 (MER-MULTI): official training and test clips, 6 classes.

    Expected below --data_root (http://merchallenge.cn/datasets):

        faces/<name>_aligned/*.jpg   faces of train/ and test1/
        audio_16k/<name>.wav
        train-label.csv              or mer2023train/train-label.csv: columns name,discrete,...
        test1-label.csv              or test-labels/test1-label.csv: the labels of MER-MULTI, which
                                     the organisers give out after the challenge; same columns

    The baseline's label-6way.npz holds pickled objects and is not read. Classes in the baseline's
    order: neutral angry happy sad worried surprise
    (https://github.com/zeroQiaoba/MER2023-Baseline).
    """
    classes = data_set_names("MER2023", 6)
    tables = {"train": "mer2023train/train-label.csv", "test": "test-labels/test1-label.csv"}

    def read(_: int, part: str) -> Lines:
        path = lists.find(files.root, os.path.basename(tables[part]), tables[part])
        for where, row in read_table(path, ["name", "discrete"]):
            yield where, Candidate(row["name"], class_index(row["discrete"], classes, where))

    return Plan("mer2023/audio_visual", classes, *official_split(1, read))


@data_set(audio_dirs=("audio_16k", "audio", "."))
def iemocap(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of IEMOCAP: 5 folds, one a session, 4 classes ang, hap (with exc), neu, sad.

    Expected below --data_root (https://sail.usc.edu/iemocap/):

        Session1/dialog/EmoEvaluation/Ses01F_impro01.txt .. Session5/    lines
            "[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5, 2.5, 2.5]"
        Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav    16 kHz mono as distributed
        faces/Ses01F_impro01_F000_aligned/*.jpg    one folder an utterance

    The videos in dialog/avi hold a whole dialogue with both speakers side by side: cut them by the
    times above and to the half of the speaker before the faces are found. Other classes are left
    out.
    """
    classes = data_set_names("IEMOCAP", 4)
    form = "'[<start> - <end>] <utterance> <emotion> [<v>, <a>, <d>]'"
    lists.find(files.root, "Session1/dialog/EmoEvaluation")
    clips = []
    for path in sorted(Path(files.root).glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        for where, line in read_lines(str(path)):
            if line.startswith("["):  # headings and single votes do not
                match = matched(IEMOCAP_LINE, line, where, form)
                emotion = "hap" if match[4] == "exc" else match[4]
                clips.append(of_class(match[1], emotion, classes, match[2] + match[3]))
    folds = cross_validation(clips, 5, lambda speaker: int(speaker[4]))
    return Plan("iemocap/audio_visual", classes, clips, folds)


@data_set(
    {"--target": {"default": "arousal", "choices": ("arousal", "valence"), "help": "to predict"}},
)
def avcaffe(args: argparse.Namespace, files: ClipFiles) -> Plan:
    """Make the lists of AVCAffe: arousal or valence in 5 levels, the official split by participant.

    Expected below --data_root (https://github.com/pritamqu/AVCAffe):

        faces/.../aiim001_task_1_<...>_aligned/*.jpg   faces of videos/shorter_segments/
        audio_16k/.../aiim001_task_1_<...>.wav
        ground_truths/arousal.txt, valence.txt         lines "aiim001_task_1, Excited"
        info/train.txt, val.txt                        participants, "aiim001"; val becomes test.csv

    A clip's task is the first three "_" fields of its name. Classes in the order of the data set's
    own loader: excited wide-awake neutral dull calm; pleasant pleased neutral unsatisfied
    unpleasant.
    """
    classes = data_set_names(f"AVCAffe {args.target}", 5)
    form = f"'aiim<person>_task_<number>, <{args.target}>'"
    labels, people = {}, {}
    for where, line in read_lines(lists.find(files.root, f"ground_truths/{args.target}.txt")):
        if "," in line:  # other lines are headings
            task = matched(r"(aiim\d{3}_task_\d+)\s*,\s*(.+)", line, where, form)
            labels[task[1]] = class_index(task[2], classes, where)
    for part, name in (("train", "train"), ("test", "val")):
        people[lists.list_name(1, part)] = {
            matched(r"aiim\d{3}", person, where, "a participant aiim<number>")[0]
            for where, line in read_lines(lists.find(files.root, f"info/{name}.txt"))
            for person in re.split(r"[\s,]+", line.strip(", "))
        }
    clips = []
    for name in files.names():
        match = re.fullmatch(r"((aiim\d{3})_task_\d+)(?:_.*)?", name, re.DOTALL)
        if match is None:
            clips.append(Candidate(name, reason="name is not aiim<person>_task_<number>_..."))
        elif match[1] not in labels:
            clips.append(Candidate(name, reason=f"task without {args.target}"))
        elif not any(match[2] in group for group in people.values()):
            clips.append(Candidate(name, reason="participant in neither official list"))
        else:
            clips.append(Candidate(name, labels[match[1]], match[2]))
    folds = {name: [c.name for c in clips if c.speaker in group] for name, group in people.items()}
    logger.info("note: clips of one task are scored as one: test with --average_clips 3")
    return Plan(f"avcaffe/audio_visual/{args.target}", classes, clips, folds)


def list_voxceleb2(args: argparse.Namespace) -> None:
    """Make the pre-training list of VoxCeleb2's development set: lines "<video.mp4> 0".

    Expected below --data_root (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html;
    --video_dir and --audio_dir name other places):

        video/file~/dev/mp4/id00012/21Uxsk56VDQ/00001.mp4    or dev/mp4/...
        audio/file~/dev/aac/id00012/21Uxsk56VDQ/00001.wav    or dev/aac/..., by
                                                             extract_audio.py from the m4a files

    It looks at names only. preprocess/check_lists.py opens every clip of the list and writes one
    without the broken ones: of 1 092 009 clips the original could use 1 091 581. Where the wav's
    name does not follow from the mp4's, the line names it too. Written to --output_dir
    (saved/data/voxceleb2): train.csv, left_out.csv.
    """
    root, videos, audios = lists.find_places(
        args, ("video/file~/dev/mp4", "dev/mp4"), ("audio/file~/dev/aac", "dev/aac")
    )
    output = args.output_dir or lists.SAVED_DATA / "voxceleb2"
    check_writable(output / "train.csv")
    names: dict[str, set[str]] = defaultdict(set)  # "id00012/21Uxsk56VDQ/00001", by suffix
    for folder in (videos, audios):
        for path in tqdm(glob.iglob("*/*/*", root_dir=folder), unit="file", desc="reading names"):
            name, suffix = os.path.splitext(path)
            names[suffix].add(name)
    mp4, wav, m4a = (names[suffix] for suffix in (".mp4", ".wav", ".m4a"))
    if not mp4 & wav:
        text = f"expected id*/*/*.mp4 in '{videos}' and id*/*/*.wav in '{audios}', found"
        text += f" {lists.contents(videos)} and {lists.contents(audios)}, and no clip in both"
        raise FileNotFoundError(f"{text}; make wavs by preprocess/face_and_audio/extract_audio.py")
    clips = []
    for name in sorted(mp4 | wav | m4a, key=lambda name: name.split("/")):
        lacks_wav = "m4a without wav" if name in m4a else "audio missing"
        reason = "video missing" if name not in mp4 else "" if name in wav else lacks_wav
        files = f"{videos}/{name}.mp4", f"{audios}/{name}.wav"
        clips.append(Candidate(name, None, None, *files, reason))
    lists.write_left_out(output, clips)
    lists.check_counts({"videos": len(mp4)}, {"videos": 1_092_009}, args.strict)
    lines = [lists.in_list(c, root if args.relative else None) for c in clips if not c.reason]
    write_list(output / "train.csv", lines)
    speakers = {name.partition("/")[0] for name in mp4 & wav}
    logger.info("%s: %d clips of %d speakers", output / "train.csv", len(lines), len(speakers))


voxceleb2 = command(list_voxceleb2.__doc__, list_voxceleb2, lists.Places, bad_data=1)
