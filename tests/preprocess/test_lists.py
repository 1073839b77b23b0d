import csv
import os
import re
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from hicmae.data.clip_list import DATA_SETS, read_labelled_list, read_pretrain_list
from preprocess import voxceleb2
from preprocess.lists import building, data_sets
from preprocess.lists.clips import Candidate, frame_folders, wav_files
from preprocess.lists.writing import table_text, write_left_out, write_lists
from tests.preprocess.trees import Tree

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cremad_folds.csv"
FIVE = [f"{actor}_DFA_ANG_XX" for actor in (1001, 1019, 1037, 1055, 1073)]  # one a fold
WEREWOLF = [f"{session:02d}_01_7" for session in (1, 6, 7, 12, 13, 18, 19, 24, 25, 30)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "data root")


# The ten scripts


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("cremad", "faces/1001_DFA_ANG_XX"),
        ("mafw", "set_1/train.txt"),
        ("ravdess", "audio_16k/Actor_01"),
        ("msp_improv", "Evalution.txt"),
        ("werewolf_xl", "--published_lists"),
        ("dfew", "EmoLabel_DataSplit"),
        ("mer2023", "train-label.csv"),
        ("iemocap", "dialog/EmoEvaluation"),
        ("avcaffe", "ground_truths"),
    ],
)
def test_help_of_a_script_shows_the_tree(
    name: str, fact: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / f"preprocess/{name}_av.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert fact in shown and "left_out.csv" in shown


def test_the_name_of_the_original_is_the_same_command_from_any_folder() -> None:
    run = [sys.executable, str(ROOT / "preprocess/creamd_av.py"), "--data_root", "/no/such"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2
    assert "--data_root '/no/such' is no folder, expected that of CREMA-D" in done.stderr


def test_cremad_lists_are_the_golden_folds(tree: Tree, capsys: pytest.CaptureFixture) -> None:
    with open(GOLDEN, newline="") as file:
        golden = {
            row["clip"]: (int(row["class"]), int(row["fold"])) for row in csv.DictReader(file)
        }
    tree.clips([*golden, *data_sets.CREMAD_DROPPED])
    tree.face("1040_ITH_SAD_XX")
    tree.wav("1040_ITH_SAD_X")  # so it is distributed
    assert len(os.listdir(tree.root / "faces")) == 7442

    assert tree.make(data_sets.cremad.main, "--strict", "--relative") == 0

    tested: dict[str, tuple[int, int]] = {}
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
    left_out = {*data_sets.CREMAD_DROPPED, "1040_ITH_SAD_XX", "1040_ITH_SAD_X"}
    assert set(tree.left_out()) == left_out
    printed = capsys.readouterr().out
    assert re.search(r"^split01/test +1463 +18 +6\.1 +250 ", printed, re.MULTILINE)
    assert printed.isascii()
    speakers = (tree.out / "speakers.csv").read_text().splitlines()
    assert speakers[0] == "speaker,clips,minutes,ANG,DIS,FEA,HAP,NEU,SAD" and len(speakers) == 92
    assert len((tree.out / "clip_speakers.csv").read_text().splitlines()) == 1 + len(golden)


def test_cremad_four_classes_leave_out_disgust_and_fear(tree: Tree) -> None:
    tree.clips(
        f"{actor}_DFA_{emotion}_XX"
        for actor in (1018, 1019, 1037, 1055, 1073, 1091)
        for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    )
    assert tree.make(data_sets.cremad.main, "--classes", "4") == 0
    assert tree.read("split01/test.csv") == [
        (f"1018_DFA_{emotion}_XX", k) for k, emotion in enumerate(("ANG", "HAP", "NEU", "SAD"))
    ]
    assert len(tree.read("split05/test.csv")) == 8  # actors 1073 and 1091
    assert tree.left_out()["1091_DFA_FEA_XX"] == "class FEA, the protocol takes ANG HAP NEU SAD"


def mafw_split(tree: Tree, subset: str, train: list[str], test: list[str]) -> None:
    for k in range(1, 6):
        split = f"Train & Test Set/{subset}/no_caption/set_{k}"
        tree.text(f"{split}/train.txt", *train)
        tree.text(f"{split}/test.txt", *test)


def test_mafw_takes_the_official_split_and_only_clips_with_sound(tree: Tree) -> None:
    for name in ("00001", "00002", "00003"):
        tree.face(name, "data/frames", "")
    tree.wav("00001", "data/audio_16k")
    tree.wav("00003", "data/audio_16k")
    train = ["00001.mp4 disappointment", "00002.mp4 anger"]
    mafw_split(tree, "single", train, ["00003.mp4 fear"])
    assert tree.make(data_sets.mafw.main) == 0
    assert tree.read("split05/train.csv") == [("00001", 10)]
    assert tree.read("split05/test.csv") == [("00003", 2)]
    assert tree.left_out() == {"00002": "audio missing"}
    assert (tree.out / "speakers.csv").read_text().startswith("speaker,clips,minutes,anger,")
    assert not (tree.out / "clip_speakers.csv").exists()


def test_mafw_has_32_compound_classes_behind_the_single_ones(tree: Tree) -> None:
    compound, single = data_sets.MAFW_COMPOUND, DATA_SETS["mafw", 11].split()
    assert len({*compound, *single}) == 43 and sorted(compound) == list(compound)
    tree.clips(["00001", "20045"])
    mafw_split(tree, "compound", ["00001.mp4 anger"], ["20045.mp4 anger_anxiety"])
    assert tree.make(data_sets.mafw.main, "--subset", "compound") == 0
    assert tree.read("split01/test.csv") == [("20045", 11)]


def test_dfew_labels_start_from_one_and_names_are_padded(tree: Tree) -> None:
    tree.clips(["00001", "00023", "16372"])
    for k in range(1, 6):
        train, test = (
            f"EmoLabel_DataSplit/{part}(single-labeled)/set_{k}.csv" for part in ("train", "test")
        )
        tree.text(train, "video_name,label", "1,1", "23,7")
        tree.text(test, "video_name,label", "16372,4")
    assert tree.make(data_sets.dfew.main) == 0
    assert tree.read("split03/train.csv") == [("00001", 0), ("00023", 6)]
    assert tree.read("split03/test.csv") == [("16372", 3)]


def test_ravdess_pairs_video_02_with_wav_03_in_six_folds_of_four_actors(tree: Tree) -> None:
    for actor in range(1, 25):
        for emotion in (1, 8):
            rest = f"01-{emotion:02d}-01-02-01-{actor:02d}"
            tree.face(f"02-{rest}", f"faces/Actor_{actor:02d}", "")
            tree.wav(f"03-{rest}", f"audio_16k/Actor_{actor:02d}")
    tree.face("02-02-01-01-01-01-01")  # a song
    tree.wav("03-01-05-01-01-01-24")
    assert tree.make(data_sets.ravdess.main) == 0
    tested = tree.read("split06/test.csv")
    assert {name[-2:] for name, _ in tested} == {"21", "22", "23", "24"}
    assert tested[:2] == [("02-01-01-01-02-01-21", 0), ("02-01-08-01-02-01-21", 7)]
    clip = read_labelled_list(tree.out / "split06/test.csv")[0]
    assert clip.audio.endswith("audio_16k/Actor_21/03-01-01-01-02-01-21.wav")
    assert tree.left_out() == {
        "02-02-01-01-01-01-01": "song, the protocol takes speech",
        "02-01-05-01-01-01-24": "video missing",
    }


def test_msp_improv_folds_are_the_sessions_of_the_speakers(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines = []
    for session in range(1, 7):
        name = f"IMPROV-S05A-F0{session}-R-FM01"
        tree.clips([f"MSP-{name}"])
        lines += [f"UTD-{name}.avi; S; A:2.2; V:3.8; D:2.0 ; N:3.4;", "wkr1; Sad; ; A:2; V:4;", ""]
    lines.append("UTD-IMPROV-S01A-M06-P-MF01.avi; X; A:2.2; V:3.8; D:NaN ; N:3.4;")
    tree.text("Evalution.txt", *lines)
    assert tree.make(data_sets.msp_improv.main) == 0
    assert tree.read("split04/test.csv") == [("MSP-IMPROV-S05A-F04-R-FM01", 3)]
    assert len(tree.read("split04/train.csv")) == 5
    assert tree.left_out() == {"MSP-IMPROV-S01A-M06-P-MF01": "class X, the protocol takes A H N S"}
    assert "val.csv of MSP-IMPROV is its test.csv" in caplog.text


def test_werewolf_folds_are_six_sessions_each_with_three_targets(tree: Tree) -> None:
    tree.clips(WEREWOLF)
    rows = [f"{name}.mp4,x,0.5,1.5,{k / 4}" for k, name in enumerate(WEREWOLF)]
    tree.text("labels.csv", "name,comment,dominance,valence,arousal", *rows)
    assert tree.make(data_sets.werewolf_xl.main) == 0
    assert (tree.out / "targets.txt").read_text().split() == ["valence", "arousal", "dominance"]
    assert tree.read("split02/test.csv") == [
        ("07_01_7", (1.5, 0.5, 0.5)),
        ("12_01_7", (1.5, 0.75, 0.5)),
    ]
    assert "\n30_01,1,0.0,1.500,2.250,0.500\n" in (tree.out / "speakers.csv").read_text()


def test_werewolf_takes_labels_and_folds_of_published_lists(tree: Tree) -> None:
    tree.clips(WEREWOLF)
    for k in range(5):
        tested = [WEREWOLF[k]]  # other folds than by session, so they come from the lists
        for part, chosen in (("test", tested), ("train", [n for n in WEREWOLF if n not in tested])):
            lines = [f"/x/{n}/{n}_aligned /y/{n}.wav 1.0 0.25 0.5" for n in chosen]
            tree.text(f"published/split0{k + 1}/{part}.csv", *lines)
    assert (
        tree.make(data_sets.werewolf_xl.main, "--published_lists", str(tree.root / "published"))
        == 0
    )
    assert tree.read("split02/test.csv") == [("06_01_7", (1.0, 0.25, 0.5))]
    assert len(tree.read("split02/train.csv")) == 9


def test_mer2023_reads_the_official_tables_and_no_pickles(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.clips(["sample_1", "sample_2"])
    tree.text("mer2023train/train-label.csv", "name,discrete,valence", "sample_1,worried,-1.5")
    tree.text("test1-label.csv", "name,discrete,valence", "sample_2,Neutral,0")
    assert tree.make(data_sets.mer2023.main) == 0
    assert tree.read("split01/train.csv") == [("sample_1", 4)]
    assert tree.read("split01/test.csv") == [("sample_2", 0)]
    np.savez(tree.root / "label-6way.npz", train_corpus={"sample_1": {"emo": "sad"}})
    assert tree.make(data_sets.mer2023.main, "--train_labels", "label-6way.npz") == 1
    assert "label-6way.npz' holds pickled objects" in caplog.text


def test_iemocap_folds_are_sessions_and_excited_is_happy(tree: Tree) -> None:
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
    assert tree.make(data_sets.iemocap.main) == 0
    assert tree.read("split02/test.csv") == [
        ("Ses02F_impro01_F000", 0),
        ("Ses02F_impro01_M001", 1),
        ("Ses02F_impro01_F002", 1),
        ("Ses02F_impro01_M003", 2),
        ("Ses02F_impro01_F004", 3),
    ]
    assert tree.left_out()["Ses05F_impro01_M005"] == "class fru, the protocol takes ang hap neu sad"


def test_avcaffe_labels_tasks_and_splits_people(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.clips(["aiim001_task_1_clip_001", "aiim003_task_2_clip_001", "aiim003_task_9_clip_001"])
    labels = ["valence", "aiim001_task_1, Unpleasant", "aiim003_task_2, Pleased"]
    tree.text("ground_truths/valence.txt", *labels)
    tree.text("info/train.txt", "aiim003", "aiim004")
    tree.text("info/val.txt", "aiim001")
    assert tree.make(data_sets.avcaffe.main, "--target", "valence") == 0
    assert tree.read("split01/train.csv") == [("aiim003_task_2_clip_001", 1)]
    assert tree.read("split01/test.csv") == [("aiim001_task_1_clip_001", 4)]
    assert tree.left_out() == {"aiim003_task_9_clip_001": "task without valence"}
    tree.text("info/train.txt", "aiim003 aiim001")
    assert tree.make(data_sets.avcaffe.main, "--target", "valence") == 1
    assert (
        "are in split01/train.csv and in split01/test.csv, expected none: 'aiim001" in caplog.text
    )


@pytest.mark.parametrize(
    ("script", "name"), [("cream-d", "cremad"), ("mafw", "mafw"), ("werewolf-xl", "werewolf_xl")]
)
def test_lists_go_where_the_experiment_script_looks(
    script: str, name: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base"
    text = (experiments / script / "finetune_170.sh").read_text()
    place = re.search(r"prepare_folds (\S+)", text)[1]
    tree.clips([*FIVE, *WEREWOLF, "00001", "00002"])
    mafw_split(tree, "single", ["00001.mp4 anger"], ["00002.mp4 fear"])
    rows = (f"{clip},1,2,3" for clip in WEREWOLF)
    tree.text("labels.csv", "name,valence,arousal,dominance", *rows)
    monkeypatch.setattr(building, "SAVED_DATA", tree.root / "saved/data")
    assert getattr(data_sets, name).main(["--data_root", str(tree.root)]) == 0
    assert (tree.root / "saved/data" / place / "split03/train.csv").is_file()


# What is not as it should be


def test_every_clip_without_a_good_half_is_left_out_with_its_reason(tree: Tree) -> None:
    tree.clips(FIVE)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (4000, 2))

    def spoil(number: int, save: Callable[[Path], object]) -> None:
        tree.face(f"{number}_DFA_ANG_XX")
        save(tree.root / "audio_16k" / f"{number}_DFA_ANG_XX.wav")

    spoil(1002, lambda path: soundfile.write(path, noise[:, 0], 44100))
    spoil(1003, lambda path: soundfile.write(path, noise, 16000))
    spoil(1004, lambda path: path.write_bytes(b""))
    spoil(1005, lambda path: path.write_bytes(b"no sound at all"))
    spoil(1006, lambda path: soundfile.write(path, noise[:1024, 0], 16000))
    tree.face("1007_DFA_ANG_XX")
    tree.wav("1008_DFA_ANG_XX")
    tree.wav("1009_DFA_ANG_XX")
    (tree.root / "faces/1009_DFA_ANG_XX_aligned").mkdir()
    tree.clips(["1010_DFA_ANG_XX", 'holiday "photos"\nof ünal', "\udcff"])
    tree.face("1010_DFA_ANG_XX", place="faces/again", ending="")

    assert tree.make(data_sets.cremad.main) == 0

    assert [name for k in range(1, 6) for name, _ in tree.read(f"split0{k}/test.csv")] == FIVE
    assert tree.left_out() == {
        "1002_DFA_ANG_XX": "audio sample rate",
        "1003_DFA_ANG_XX": "audio channels",
        "1004_DFA_ANG_XX": "audio unreadable",
        "1005_DFA_ANG_XX": "audio unreadable",
        "1006_DFA_ANG_XX": "audio too short",
        "1007_DFA_ANG_XX": "audio missing",
        "1008_DFA_ANG_XX": "video missing",
        "1009_DFA_ANG_XX": "no face frames",
        "1010_DFA_ANG_XX": "two of one name",
        'holiday "photos"\nof ünal': "name is not actor_sentence_EMOTION_level",
        "\udcff": "name is not actor_sentence_EMOTION_level",
    }


def test_another_count_than_published_is_said_and_strict_refuses_it(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.clips(FIVE)
    assert tree.make(data_sets.cremad.main, "--strict") == 1
    assert "split01/test: got 1, expected 1463" in caplog.text
    assert not (tree.out / "split01").exists()
    assert tree.make(data_sets.cremad.main) == 0
    assert "clips: got 5, expected 7437; face folders: got 5, expected 7442" in caplog.text


@pytest.mark.parametrize(
    ("faces", "wavs", "message"),
    [
        ([], ["a"], r"expected 'faces' or .* found 'audio_16k/', 'one.jpg', 'one.wav'"),
        (["a"], [], r"'audio_16k' or 'audio' or 'AudioWAV' in .*--audio_dir"),
        (None, ["a"], r"expected face folders.* found nothing; .*extract_face.py"),
        (["1001_DFA_ANG_XX"], ["1001_DFA_ANG_XX"], r"no clip is left for .*split01/train.csv"),
    ],
)
def test_wrong_folder_says_what_was_expected_and_found(
    tree: Tree,
    faces: list[str] | None,
    wavs: list[str],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if faces is None:
        (tree.root / "faces").mkdir()
    for name in faces or []:
        tree.face(name)
    for name in wavs:
        tree.wav(name)
    assert tree.make(data_sets.cremad.main) in (1, 2)
    assert re.search(message, caplog.text)
    assert not (tree.out / "split01").exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["00001.mp4 joy"], r"set_1/train.txt:1: expected one of anger, .*, got 'joy'"),
        (["00001 anger"], r"set_1/train.txt:1: expected '<clip>.mp4 <class>', got '00001 anger'"),
        (["00001.mp4 anger", "00002.mp4 fear"], r"1 clips are in split01/train.csv and in .*00002"),
        (["00001.mp4 anger"] * 2, "1 clips are twice in .*split01/train.csv', .*: '00001'"),
        (["00001.mp4 fear", "00002.mp4 joy"], "train.txt:2: expected one of anger"),
        (["00002.mp4 sadness"], "test.txt:1: expected the label 5 that clip 00002 has in another"),
    ],
)
def test_official_lists_that_do_not_fit_are_refused(
    tree: Tree, train: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    tree.clips(["00001", "00002"])
    mafw_split(tree, "single", train, ["00002.mp4 fear"])
    assert tree.make(data_sets.mafw.main) == 1
    assert re.search(message, caplog.text)
    assert not (tree.out / "split01").exists()


def test_official_table_without_its_columns_or_missing_is_named(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.clips(["00001"])
    (tree.root / "EmoLabel_DataSplit").mkdir()
    assert tree.make(data_sets.dfew.main) == 2
    assert re.search(r"expected 'train\(single-labeled\)/set_1.csv' in .*found noth", caplog.text)
    tree.text("EmoLabel_DataSplit/train(single-labeled)/set_1.csv", "video,emotion", "1,1")
    assert tree.make(data_sets.dfew.main) == 1
    assert re.search(r"set_1.csv:1: .*video_name, label, got 'video, emotion'", caplog.text)


def test_speaker_on_both_sides_is_refused_and_unknown_ones_are_not_one(tmp_path: Path) -> None:
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


def test_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_left_out(tmp_path, [Candidate("x" * 5000, reason="why")])
        with pytest.raises(OSError, match="File too large"):
            write_lists(
                tmp_path, {"fold/train": [Candidate("x", 0, None, "x" * 5000, "x.wav")]}, ()
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_tables_stay_ascii_and_one_line_a_row() -> None:
    table = table_text(pd.DataFrame({"clips": [12]}, pd.Index(["zwei\nZeilen, ü"], dtype=object)))
    assert [line.split() for line in table.splitlines()] == [
        ["clips"],
        ["zwei\\nZeilen,", "\\xfc", "12"],
    ]


def test_folders_and_wavs_are_found_at_any_depth_and_links_in_a_circle_end(tmp_path: Path) -> None:
    faces = ("x/x_aligned/2.PNG", "s1/A/y_aligned/1.jpg", "z/0.bmp", "s1/A/hidden/._1.jpg")
    for name in (*faces, "s1/1.wav", "2.WAV", "._2.wav", "3.mp3", "b c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "s1/round").symlink_to(tmp_path, target_is_directory=True)
    found = frame_folders(str(tmp_path))
    assert found.pop("hidden")[0] == "no face frames"
    places = {name: os.path.relpath(path, tmp_path) for name, path in found.items()}
    assert places == {"x": "x/x_aligned", "y": "s1/A/y_aligned", "z": "z"}
    assert sorted(wav_files(str(tmp_path))) == ["1", "2", "b c"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_reported_and_others_are_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "a").chmod(0)
    found = frame_folders(str(tmp_path))
    (tmp_path / "a").chmod(0o700)
    assert found["b"] == str(tmp_path / "b") and found["a"][0] == "cannot be read"


# VoxCeleb2


def voxceleb(root: Path, clips: dict[str, str], make: Callable[[Path], object]) -> None:
    """Make clips, each with the letters of the halves it has: v, a, m (m4a)."""
    for clip, halves in clips.items():
        for letter, place in (("v", "video/file~/dev/mp4"), ("a", "audio/file~/dev/aac")):
            path = root / place / clip
            path.parent.mkdir(parents=True, exist_ok=True)
            if letter in halves:
                make(path.with_suffix(".mp4" if letter == "v" else ".wav"))
        if "m" in halves:
            (root / "audio/file~/dev/aac" / f"{clip}.m4a").touch()


def make_voxceleb_list(root: Path, *flags: str) -> int:
    output = root.parent / "out"
    return voxceleb2.main(["--data_root", str(root), "--output_dir", str(output), *flags])


def test_voxceleb2_lists_videos_whose_wav_follows_from_the_name(tmp_path: Path) -> None:
    clips = {"id1/a b/00001": "va", "id1/a b/00002": "vm", "id2/c/00001": "va", "id3/d/00009": "am"}
    voxceleb(tmp_path / "V", clips, Path.touch)
    assert make_voxceleb_list(tmp_path / "V", "--relative") == 0
    assert (tmp_path / "out/train.csv").read_text() == (
        '"video/file~/dev/mp4/id1/a b/00001.mp4" 0\nvideo/file~/dev/mp4/id2/c/00001.mp4 0\n'
    )
    for clip in read_pretrain_list(tmp_path / "out/train.csv", str(tmp_path / "V")):
        assert Path(clip.video).is_file() and Path(clip.audio).is_file()
    assert (tmp_path / "out/left_out.csv").read_text().splitlines()[1:] == [
        "id1/a b/00002,m4a without wav,",
        "id3/d/00009,video missing,",
    ]
    assert (tmp_path / "out/speakers.csv").read_text() == "speaker,clips\nid1,1\nid2,1\n"


def test_voxceleb2_names_the_wav_where_it_does_not_follow(tmp_path: Path) -> None:
    for name in ("mp4/id1/c/1.mp4", "aac/id1/c/1.wav"):
        (tmp_path / "V/dev" / name).parent.mkdir(parents=True)
        (tmp_path / "V/dev" / name).touch()
    assert make_voxceleb_list(tmp_path / "V", "--relative") == 0
    text = (tmp_path / "out/train.csv").read_text()
    assert text == "dev/mp4/id1/c/1.mp4 dev/aac/id1/c/1.wav 0\n"


def test_voxceleb2_shards_divide_the_check_and_the_last_run_only_joins_them(
    tmp_path: Path,
    write_mp4: Callable[..., str],
    write_wav: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mp4, wav = write_mp4("good.mp4", 5), write_wav("good.wav", 5000)

    def make(path: Path) -> None:
        path.hardlink_to(mp4 if path.suffix == ".mp4" else wav)

    voxceleb(tmp_path / "V", {f"id{k}/x/0": "va" for k in range(5)}, make)
    broken = tmp_path / "V/video/file~/dev/mp4/id3/x/0.mp4"
    broken.unlink()
    broken.write_bytes(b"not a film")
    flags = ["--check", "--num_workers", "1"]
    for part in ("1/2", "2/2"):
        assert make_voxceleb_list(tmp_path / "V", *flags, "--shard", part) == 0
        assert not (tmp_path / "out/train.csv").exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a clip was opened again")

    monkeypatch.setattr("preprocess.check_lists.inspect", refuse)
    assert make_voxceleb_list(tmp_path / "V", *flags) == 0
    listed = read_pretrain_list(tmp_path / "out/train.csv")
    assert [Path(clip.video).parts[-3] for clip in listed] == ["id0", "id1", "id2", "id4"]
    assert "id3/x/0,video unreadable," in (tmp_path / "out/left_out.csv").read_text()


def test_voxceleb2_without_a_usable_clip_writes_no_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "V" / "photos").mkdir(parents=True)
    assert make_voxceleb_list(tmp_path / "V") == 2
    assert re.search(r"'video/file~/dev/mp4' or 'dev/mp4' in .* found 'photos/'", caplog.text)
    voxceleb(tmp_path / "V", {"id1/a/00001": "va"}, lambda path: path.write_text("junk"))
    assert make_voxceleb_list(tmp_path / "V", "--check", "--num_workers", "1") == 1
    assert "left_out.csv" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == ["left_out.csv"]
