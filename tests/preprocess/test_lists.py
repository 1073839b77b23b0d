"""The list scripts as a user starts them, on made-up data sets of tiny clips."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from hicmae.data.splits import find_speakers
from preprocess import data_sets
from preprocess.annotations import read_lines, read_table
from preprocess.lists import Candidate, find_halves, write_lists
from tests.preprocess.trees import ROOT, Tree

FIVE = [f"{actor}_DFA_ANG_XX" for actor in (1001, 1019, 1037, 1055, 1073)]  # one a fold
WEREWOLF = [f"{session:02d}_01_7" for session in (1, 6, 7, 12, 13, 18, 19, 24, 25, 30)]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "data root")


# The protocols. Each function makes a data set and returns flags of its script.


def cremad_4(tree):
    tree.clips(
        f"{actor}_DFA_{emotion}_XX"
        for actor in (1018, 1019, 1037, 1055, 1073, 1091)
        for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    )
    return ["--classes", "4"]


def mafw_split(tree, subset, train, test):
    for k in range(1, 6):
        for part, lines in (("train", train), ("test", test)):
            tree.text(f"Train & Test Set/{subset}/no_caption/set_{k}/{part}.txt", *lines)


def mafw(tree):
    for name in ("00001", "00002", "00003"):
        tree.face(name, "data/frames", "")
        if name != "00002":
            tree.wav(name, "data/audio_16k")
    train = ["00001.mp4 disappointment", "00002.mp4 anger"]
    mafw_split(tree, "single", train, ["00003.mp4 fear"])
    return []


def mafw_compound(tree):
    tree.clips(["00001", "20045"])
    mafw_split(tree, "compound", ["00001.mp4 anger"], ["20045.mp4 surprise_anxiety"])
    return ["--subset", "compound"]


def dfew(tree):
    tree.clips(["00001", "00023", "16372"])
    for k in range(1, 6):
        for part, lines in (("train", ["1,1", "23,7"]), ("test", ["16372,4"])):
            path = f"EmoLabel_DataSplit/{part}(single-labeled)/set_{k}.csv"
            tree.text(path, "video_name,label", *lines)
    return []


def ravdess(tree):
    for actor in range(1, 25):
        for emotion in (1, 8):
            rest = f"01-{emotion:02d}-01-02-01-{actor:02d}"
            tree.face(f"02-{rest}", f"faces/Actor_{actor:02d}", "")
            tree.wav(f"03-{rest}", f"audio_16k/Actor_{actor:02d}")
    tree.face("02-02-01-01-01-01-01")  # a song
    tree.wav("03-01-05-01-01-01-24")
    return []


def msp_improv(tree):
    lines = []
    for session in range(1, 7):
        name = f"IMPROV-S05A-F0{session}-R-FM01"
        tree.clips([f"MSP-{name}"])
        lines += [f"UTD-{name}.avi; S; A:2.2; V:3.8; D:2.0 ; N:3.4;", "wkr1; Sad; ; A:2; V:4;", ""]
    lines.append("UTD-IMPROV-S01A-M06-P-MF01.avi; X; A:2.2; V:3.8; D:NaN ; N:3.4;")
    tree.text("Evalution.txt", *lines)
    return []


def werewolf_xl(tree):
    tree.clips(WEREWOLF)
    rows = [f"{name}.mp4,x,0.5,1.5,{k / 4}" for k, name in enumerate(WEREWOLF)]
    tree.text("labels.csv", "name,comment,dominance,valence,arousal", *rows)
    return []


def werewolf_published(tree):
    tree.clips(WEREWOLF)
    for k, tested in enumerate(WEREWOLF[:5]):  # other folds than by session
        for part, chosen in (("test", [tested]), ("train", [n for n in WEREWOLF if n != tested])):
            lines = [f"/x/{n}/{n}_aligned /y/{n}.wav 1.0 0.25 0.5" for n in chosen]
            tree.text(f"published/split0{k + 1}/{part}.csv", *lines)
    return ["--published_lists", str(tree.root / "published")]


def mer2023(tree):
    tree.clips(["sample_1", "sample_2", "b c\udcff"])
    rows = ["name,discrete,valence", "sample_1,worried,-1.5", "b c\udcff,happy,1"]
    tree.text("mer2023train/train-label.csv", *rows)
    tree.text("test1-label.csv", "name,discrete,valence", "sample_2,Neutral,0")
    return []


def iemocap(tree):
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for k, emotion in enumerate(["ang", "exc", "hap", "neu", "sad", "fru"]):
            name = f"{dialogue}_{'FM'[k % 2]}00{k}"
            lines.append(f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]")
            lines.append("C-E2:\tNeutral;\t()")
            tree.face(name)
            tree.wav(name, f"Session{session}/sentences/wav/{dialogue}")
        tree.text(f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt", *lines)
    return []


def avcaffe(tree):
    tree.clips(["aiim001_task_1_clip_001", "aiim003_task_2_clip_001", "aiim003_task_9_clip_001"])
    labels = ["valence", "aiim001_task_1, Unpleasant", "aiim003_task_2, Pleased"]
    tree.text("ground_truths/valence.txt", *labels)
    tree.text("info/train.txt", "aiim003", "aiim004")
    tree.text("info/val.txt", "aiim001")
    return ["--target", "valence"]


RAVDESS_6 = [(f"02-01-0{e}-01-02-01-{a}", e - 1) for a in range(21, 25) for e in (1, 8)]
NOT_4 = "class {}, the protocol takes ANG HAP NEU SAD"
PROTOCOLS = [  # script, data set, what some of its lists hold, what is left out and why
    ("cremad_av", cremad_4,
     {"split01/test": [(f"1018_DFA_{e}_XX", k) for k, e in enumerate("ANG HAP NEU SAD".split())]},
     {f"{actor}_DFA_{emotion}_XX": NOT_4.format(emotion) for emotion in ("DIS", "FEA")
      for actor in (1018, 1019, 1037, 1055, 1073, 1091)}),
    ("mafw_av", mafw, {"split05/train": [("00001", 10)], "split05/test": [("00003", 2)]},
     {"00002": "audio missing"}),
    ("mafw_av", mafw_compound, {"split01/test": [("20045", 42)]}, {}),  # the last one of all
    ("dfew_av", dfew,  # labels start from 1 and names lack zeros
     {"split03/train": [("00001", 0), ("00023", 6)], "split03/test": [("16372", 3)]}, {}),
    ("ravdess_av", ravdess, {"split06/test": RAVDESS_6},
     {"02-02-01-01-01-01-01": "song, the protocol takes speech",
      "02-01-05-01-01-01-24": "video missing"}),
    ("msp_improv_av", msp_improv, {"split04/test": [("MSP-IMPROV-S05A-F04-R-FM01", 3)]},
     {"MSP-IMPROV-S01A-M06-P-MF01": "class X, the protocol takes A H N S"}),
    ("werewolf_xl_av", werewolf_xl,  # six sessions a fold
     {"split02/test": [("07_01_7", (1.5, 0.5, 0.5)), ("12_01_7", (1.5, 0.75, 0.5))]}, {}),
    ("werewolf_xl_av", werewolf_published, {"split02/test": [("06_01_7", (1.0, 0.25, 0.5))]}, {}),
    ("mer2023_av", mer2023,
     {"split01/train": [("sample_1", 4), ("b c\udcff", 2)], "split01/test": [("sample_2", 0)]}, {}),
    ("iemocap_av", iemocap,  # excited is happy
     {"split02/test": [(f"Ses02F_impro01_{name}", label) for name, label in
                       (("F000", 0), ("M001", 1), ("F002", 1), ("M003", 2), ("F004", 3))]},
     {"one": "not in the protocol"}
     | {f"Ses0{k}F_impro01_M005": "class fru, the protocol takes ang hap neu sad"
        for k in range(1, 6)}),
    ("avcaffe_av", avcaffe, {"split01/train": [("aiim003_task_2_clip_001", 1)],
                             "split01/test": [("aiim001_task_1_clip_001", 4)]},
     {"aiim003_task_9_clip_001": "task without valence"}),
]  # fmt: skip


@pytest.mark.parametrize(("script", "make", "lists", "left_out"), PROTOCOLS)
def test_lists_follow_the_protocol(script, make, lists, left_out, tree):
    assert tree.make(script, *make(tree)) == 0
    assert {name: tree.read(name) for name in lists} == lists
    assert tree.left_out() == left_out
    task = "regression" if script == "werewolf_xl_av" else "classification"
    assert (tree.out / "targets.txt").exists() is (task == "regression")
    known = script not in ("mafw_av", "dfew_av", "mer2023_av")
    assert (tree.out / "clip_speakers.csv").exists() is known
    if known:  # of every clip, where `--val_split speaker` looks for it
        clips = read_labelled_list(tree.out / "split01/train.csv", task)
        find_speakers([clip.video for clip in clips], tree.out / "split01")
    train, test = (tree.read(f"split01/{part}") for part in ("train", "test"))
    assert train and test and not {*train} & {*test}


def test_cremad_lists_are_the_golden_folds(tree, caplog):
    with open(ROOT / "tests/golden/cremad_folds.csv", newline="") as file:
        golden = {
            row["clip"]: (int(row["class"]), int(row["fold"])) for row in csv.DictReader(file)
        }
    tree.clips([*golden, *list(data_sets.CREMAD_DROPPED)[:4]])
    tree.face("1040_ITH_SAD_XX")
    tree.wav("1040_ITH_SAD_X")  # so it is distributed
    assert len(os.listdir(tree.root / "faces")) == 7442

    with caplog.at_level("INFO"):
        assert tree.make("cremad_av", "--strict", "--relative") == 0

    tested = {}
    for fold in range(1, 6):
        parts = {}
        for part in ("train", "test"):
            clips = read_labelled_list(tree.out / f"split0{fold}" / f"{part}.csv", num_classes=6)
            parts[part] = {re.fullmatch(r"faces/(\w+)_aligned", c.video)[1]: c for c in clips}
            for name, clip in parts[part].items():
                assert clip.audio == f"audio_16k/{name}.wav"
                assert clip.label == golden[name][0]
        tested |= {name: (clip.label, fold) for name, clip in parts["test"].items()}
        assert parts["train"].keys() == golden.keys() - parts["test"].keys()
    assert tested == golden
    videos = [f"faces/{name}_aligned" for name in golden]
    assert find_speakers(videos, tree.out / "split01") == [name[:4] for name in golden]
    assert set(tree.left_out()) == {*data_sets.CREMAD_DROPPED}
    assert "counts are as published: split01/test, " in caplog.text
    assert "split01/test.csv: 1463 clips of 18 speakers, 'ANG' 250, " in caplog.text


@pytest.mark.parametrize(
    ("script", "name"),
    [("cream-d", "creamd"), ("mafw", "mafw"), ("werewolf-xl", "werewolf_xl")],
)
def test_lists_go_where_the_experiment_script_looks(script, name, tree, monkeypatch):
    experiments = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base"
    text = (experiments / script / "finetune_170.sh").read_text()
    place = re.search(r"prepare_folds (\S+)", text)[1]
    tree.clips([*FIVE, "00001", "00002"])
    mafw_split(tree, "single", ["00001.mp4 anger"], ["00002.mp4 fear"])
    werewolf_xl(tree)
    monkeypatch.setattr("preprocess.lists.SAVED_DATA", tree.root / "saved/data")
    monkeypatch.chdir("/")  # scripts work from any folder
    assert tree.make(f"{name}_av", output=False) == 0
    assert (tree.root / "saved/data" / place / "split03/train.csv").is_file()


# What is not as it should be


def test_every_clip_without_a_good_half_is_left_out_with_its_reason(tree):
    tree.clips(FIVE)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (4000, 2))
    for number, save in {
        1002: lambda path: soundfile.write(path, noise[:, 0], 44100),
        1003: lambda path: soundfile.write(path, noise, 16000),
        1004: Path.touch,
        1005: lambda path: path.write_bytes(b"no sound at all"),
        1006: lambda path: soundfile.write(path, noise[:1024, 0], 16000),
    }.items():
        tree.face(f"{number}_DFA_ANG_XX")
        save(tree.root / "audio_16k" / f"{number}_DFA_ANG_XX.wav")
    tree.face("1007_DFA_ANG_XX")
    tree.wav("1008_DFA_ANG_XX")
    tree.wav("1009_DFA_ANG_XX")
    (tree.root / "faces/1009_DFA_ANG_XX_aligned").mkdir()
    tree.clips(["1010_DFA_ANG_XX", 'holiday "photos"\nof ünal', "\udcff"])
    tree.face("1010_DFA_ANG_XX", place="faces/again", ending="")

    assert tree.make("cremad_av") == 0

    assert [name for k in range(1, 6) for name, _ in tree.read(f"split0{k}/test")] == FIVE
    reasons = ["sample rate", "channels", "unreadable", "unreadable", "too short", "missing"]
    expected = {f"{1002 + k}_DFA_ANG_XX": f"audio {reason}" for k, reason in enumerate(reasons)}
    others = ("video missing", "no face frames", "two of one name")
    expected |= {f"{1008 + k}_DFA_ANG_XX": reason for k, reason in enumerate(others)}
    names = 'holiday "photos"\nof ünal', "\udcff"
    expected |= dict.fromkeys(names, "name is not actor_sentence_EMOTION_level")
    assert tree.left_out() == expected


def test_another_count_than_published_is_said_and_strict_refuses_it(tree, caplog):
    tree.clips(FIVE)
    assert tree.make("cremad_av", "--strict") == 1
    assert "split01/test: got 1, expected 1463" in caplog.text
    assert not (tree.out / "split01").exists()
    assert tree.make("cremad_av") == 0
    assert "clips: got 5, expected 7437; face folders: got 5, expected 7442" in caplog.text


@pytest.mark.parametrize(
    ("faces", "wavs", "message"),
    [
        (["a"], [], "'audio_16k' or 'audio' or 'AudioWAV' in .* found 'faces/'.*--audio_dir"),
        ([], ["a"], "expected face folders.* found nothing; .*extract_face.py"),
        (FIVE[:1], FIVE[:1], "no clip is left for .*split01/train.csv"),
    ],
)
def test_wrong_folder_says_what_was_expected_and_found(faces, wavs, message, tree, caplog):
    (tree.root / "faces").mkdir()
    for name in faces:
        tree.face(name)
    for name in wavs:
        tree.wav(name)
    assert tree.make("cremad_av") in (1, 2)
    assert re.search(message, caplog.text)
    assert not (tree.out / "split01").exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["00001.mp4 joy"], r"set_1/train.txt:1: expected one of anger, .*, got 'joy'"),
        (["00001 anger"], r"set_1/train.txt:1: expected '<clip>.mp4 <class>', got '00001 anger'"),
        (["00001.mp4 anger", "00002.mp4 fear"], r"1 clips are in split01/train.csv and in .*00002"),
        (["00001.mp4 anger"] * 2, "1 clips are twice in .*split01/train.csv', .*: '00001'"),
        (["00002.mp4 sadness"], "test.txt:1: expected the label 5 that clip 00002 has in another"),
    ],
)
def test_official_lists_that_do_not_fit_are_refused(train, message, tree, caplog):
    tree.clips(["00001", "00002"])
    mafw_split(tree, "single", train, ["00002.mp4 fear"])
    assert tree.make("mafw_av") == 1
    assert re.search(message, caplog.text)
    assert not (tree.out / "split01").exists()


def test_a_clip_of_two_labels_is_refused(tree, caplog):
    msp_improv(tree)
    tree.text("Evalution.txt", *(f"UTD-IMPROV-S05A-F01-R-FM01.avi; {e}; A:2;" for e in "SSN"))
    assert tree.make("msp_improv_av") == 1
    assert "MSP-IMPROV-S05A-F01-R-FM01 has two labels, 3 and 2" in caplog.text


def test_official_files_that_cannot_be_used_are_named(tree, caplog):
    tree.clips(["00001"])
    tree.text("EmoLabel_DataSplit/train(single-labeled)/set_1.csv", "video,emotion", "1,1")
    assert tree.make("dfew_av") == 1
    assert re.search(r"set_1.csv:1: .*video_name, label, got 'video, emotion'", caplog.text)
    tree.text("published/split01/train.csv", "x/01_01_7 x.wav 1 2 3")
    flags = ["--published_lists", str(tree.root / "published")]
    assert tree.make("werewolf_xl_av", *flags) == 2
    assert "expected 'split01/test.csv' in" in caplog.text and "--published_lists" in caplog.text


TABLE = "video,label\na.mp4,x\n"
GOOD = [
    TABLE.encode("utf-8-sig"),
    TABLE.replace("\n", "\r\n").encode(),
    TABLE.replace("\n", "\n,,\n\n").encode(),
]
BAD = [
    (TABLE.encode("utf-16"), "t.csv:1: expected UTF-8, got UTF-16"),
    (TABLE.replace(",", ";").encode(), "t.csv:1: expected the columns .*got 'video;label'"),
    (b"", "t.csv:1: expected the columns video, label, got ''"),
    (f'{TABLE}b,"c\nd,e\n'.encode(), "t.csv:3: .*unexpected end"),
    (f"{TABLE}b\n".encode(), "t.csv:3: expected 2 fields as in the header, got 1"),
    (f"{TABLE}b,c,d\n".encode(), "t.csv:3: expected 2 fields as in the header, got 3.*quote"),
]


@pytest.mark.parametrize("data", GOOD)
def test_tables_of_any_make_are_read(data, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    rows = list(read_table(str(tmp_path / "t.csv"), ["video"]))
    assert rows == [(rows[0][0], {"video": "a.mp4", "label": "x"})]
    assert [line for _, line in read_lines(str(tmp_path / "t.csv"))][:1] == ["video,label"]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_tables_that_cannot_be_meant_are_refused_with_file_and_line(data, message, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_table(str(tmp_path / "t.csv"), ["video", "label"]))


@pytest.mark.parametrize("script", sorted({script for script, *_ in PROTOCOLS}))
def test_a_data_set_without_its_protocol_ends_in_one_line(script, tree, caplog):
    tree.clips(["a"])
    assert tree.make(script) in (1, 2)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert str(tree.root) in record.getMessage() and "\n" not in record.getMessage()


def test_speaker_on_both_sides_is_refused_and_unknown_ones_are_not_one(tmp_path):
    lists = {
        f"fold/{part}": [Candidate(name, 0, "s", f"/v/{name}", f"/a/{name}.wav")]
        for part, name in (("train", "a"), ("test", "b"))
    }
    with pytest.raises(ValueError, match="1 speakers are in fold/train.csv and in fold/.*'s'"):
        write_lists(tmp_path, lists, ["x"])
    assert list(tmp_path.iterdir()) == []
    unknown = {name: [clip._replace(speaker=None) for clip in own] for name, own in lists.items()}
    write_lists(tmp_path, unknown, ["x"])
    assert (tmp_path / "fold/test.csv").read_text() == "/v/b /a/b.wav 0\n"


def test_folders_and_wavs_are_found_at_any_depth_and_links_in_a_circle_end(tmp_path):
    faces = ("x/x_aligned/2.PNG", "s1/A/y_aligned/1.jpg", "z/0.bmp", "s1/A/hidden/._1.jpg")
    for name in (*faces, "s1/1.wav", "2.WAV", "._2.wav", "3.mp3", "b c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "s1/round").symlink_to(tmp_path, target_is_directory=True)
    found = find_halves(str(tmp_path), "faces")
    assert found.pop("hidden") == []
    places = {name: os.path.relpath(path, tmp_path) for name, (path,) in found.items()}
    assert places == {"x": "x/x_aligned", "y": "s1/A/y_aligned", "z": "z"}
    assert sorted(find_halves(str(tmp_path), "wavs")) == ["1", "2", "b c"]


# VoxCeleb2


def voxceleb(tree, *names):
    for name in names:
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / name).touch()


def test_voxceleb2_lists_videos_whose_wav_follows_from_the_name(tree):
    mp4, aac = "video/file~/dev/mp4", "audio/file~/dev/aac"
    for name in ("id1/a b/00001", "id2/c/00001"):
        voxceleb(tree, f"{mp4}/{name}.mp4", f"{aac}/{name}.wav")
    voxceleb(tree, f"{mp4}/id1/a b/00002.mp4", f"{aac}/id1/a b/00002.m4a")
    voxceleb(tree, f"{aac}/id3/d/00009.wav", f"{aac}/id3/d/00009.m4a")
    assert tree.make("voxceleb2", "--strict") == 1
    assert not (tree.out / "train.csv").exists()
    assert tree.make("voxceleb2", "--relative") == 0
    assert (tree.out / "train.csv").read_text() == (
        '"video/file~/dev/mp4/id1/a b/00001.mp4" 0\nvideo/file~/dev/mp4/id2/c/00001.mp4 0\n'
    )
    for clip in read_pretrain_list(tree.out / "train.csv", str(tree.root)):
        assert Path(clip.video).is_file() and Path(clip.audio).is_file()
    gone = {"id1/a b/00002": "m4a without wav", "id3/d/00009": "video missing"}
    assert tree.left_out() == gone


def test_voxceleb2_elsewhere_is_listed_where_a_clip_is_whole_and_the_wav_is_named(tree, caplog):
    assert tree.make("voxceleb2") == 2
    assert re.search(r"'video/file~/dev/mp4' or 'dev/mp4' in .* found 'one.jpg'", caplog.text)
    voxceleb(tree, "dev/mp4/id1/c/1.mp4", "dev/aac/id1/c/2.wav")
    assert tree.make("voxceleb2") == 2
    assert "and no clip in both" in caplog.text
    assert not list(tree.out.glob("*"))
    voxceleb(tree, "dev/aac/id1/c/1.wav")
    assert tree.make("voxceleb2", "--relative") == 0
    text = (tree.out / "train.csv").read_text()
    assert text == "dev/mp4/id1/c/1.mp4 dev/aac/id1/c/1.wav 0\n"
