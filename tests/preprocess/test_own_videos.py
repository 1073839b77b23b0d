import csv
import logging
import os
import shlex
from collections import Counter
from pathlib import Path

import cv2
import pytest

import run_finetuning
from hicmae.data.clip_list import read_labelled_list
from preprocess import own_videos
from preprocess.command_line import STOPPED
from preprocess.face_and_audio import batch
from preprocess.own_videos import read_labels
from tests.preprocess.media_files import (
    chirp,
    fake_openface,
    needs_weights,
    pictures,
    portrait,
    save_media,
)
from tests.small_runs import FINETUNE

NAMES = ["anna/happy 1.mp4", "anna/sad.mp4", "bert/happy.mp4", "bert/sad'2.mp4", "cleo/happy ü.mp4",
         "cleo/sad.mp4"]  # fmt: skip


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six short clips of a face with sound, two of each of three people."""
    face = cv2.resize(portrait(), (128, 150), interpolation=cv2.INTER_AREA)
    for index, name in enumerate(NAMES):
        save_media(tmp_path / "videos" / name, [face] * 12, chirp(0.48 + index / 100, 16000))
    return tmp_path / "videos"


def write_labels(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def labels_of(tmp_path: Path) -> str:
    lines = [f'"{name}",{name.split("/")[1][:3].strip()},{name.split("/")[0]}' for name in NAMES]
    return write_labels(tmp_path / "labels.csv", "video,label,speaker", *lines)


def prepare(videos: Path, output: Path, *flags: str) -> int:
    names = ["--videos", str(videos), "--output_dir", str(output), "--num_workers", "1"]
    return own_videos.main([*names, *flags])


def left_out(output: Path) -> dict[str, tuple[str, str]]:
    with open(output / "left_out.csv", newline="", encoding="utf-8") as file:
        return {row["clip"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


@needs_weights
def test_one_command_leads_to_a_fine_tuning_run(videos, tmp_path, caplog):
    out = tmp_path / "my data"
    with caplog.at_level(logging.INFO):
        code = prepare(videos, out, "--labels", labels_of(tmp_path), "--img_size", "64")
    assert code == 0
    assert (out / "classes.txt").read_text().split() == ["hap", "sad"]
    train, test = (
        read_labelled_list(out / f"{part}.csv", num_classes=2) for part in ("train", "test")
    )
    assert (len(train), len(test)) == (4, 2)
    speaker = {Path(clip.video).parent.name for clip in test}
    assert len(speaker) == 1 and Counter(clip.label for clip in test) == {0: 1, 1: 1}
    for clip in [*train, *test]:
        assert Path(clip.audio).is_file() and len(os.listdir(clip.video)) == 12
        assert ("happy" in clip.video) == (clip.label == 0)
    command = next(r.getMessage() for r in caplog.records if "run_finetuning.py" in r.getMessage())
    flags = shlex.split(command.replace("CHECKPOINT", "x").replace("RUN", "x"))[2:]
    flags = flags[: flags.index("--finetune")]  # there is none here, and the rest is made small
    run_finetuning.main([*flags, *FINETUNE, "--epochs", "1", "--output_dir", str(tmp_path / "run")])
    assert len((tmp_path / "run" / "pred.csv").read_text().splitlines()) == 1 + len(test)


def test_videos_that_lack_something_are_left_out_with_the_reason(videos, tmp_path):
    save_media(videos / "mute.mp4", pictures(4))
    (videos / "broken.mp4").write_text("no film")
    save_media(videos / "unlabelled.mp4", pictures(4), chirp(0.3, 16000))
    save_media(videos / "anna" / "sad.mkv", pictures(4), chirp(0.3, 16000))
    lines = Path(labels_of(tmp_path)).read_text().splitlines()
    labels = write_labels(tmp_path / "l.csv", *lines, "mute,sad,dora", "lost.mp4,sad,dora")
    assert prepare(videos, tmp_path / "out", "--labels", labels, *fake_openface(tmp_path)) == 1
    reasons = left_out(tmp_path / "out")
    assert reasons["mute.mp4"] == ("no audio", "has no sound")
    assert reasons["broken.mp4"][0] == "no audio"
    assert reasons["broken.mp4"][1].startswith("is no video or sound file")
    assert reasons["unlabelled.mp4"] == ("no label", "")
    assert reasons["lost.mp4"] == ("no such video", f"{labels}:9")
    assert reasons["anna/sad.mp4"][0] == "not used"  # sad.mkv, which comes first, has its place
    assert reasons["anna/sad.mp4"][1].startswith("'anna/sad.mkv' becomes the same")
    lists = "".join((tmp_path / "out" / f"{part}.csv").read_text() for part in ("train", "test"))
    assert lists.count("\n") == 5 and "mute" not in lists and "broken" not in lists


def test_without_labels_there_is_one_list_and_with_numbers_every_column_is_a_target(
    videos, tmp_path
):
    openface = fake_openface(tmp_path)
    assert prepare(videos, tmp_path / "out", "--relative", *openface) == 0
    clips = read_labelled_list(tmp_path / "out" / "inference.csv", data_root=str(tmp_path / "out"))
    assert {clip.label for clip in clips} == {0} and len(clips) == len(NAMES)
    assert all(Path(clip.audio).is_file() and Path(clip.video).is_dir() for clip in clips)
    assert str(tmp_path) not in (tmp_path / "out" / "inference.csv").read_text()
    assert not (tmp_path / "out" / "train.csv").exists()
    lines = [f"{name},{k / 10},-{k}" for k, name in enumerate(NAMES)]
    labels = write_labels(tmp_path / "labels.csv", "video,valence,arousal", *lines)
    flags = ["--labels", labels, "--task", "regression", "--test_share", "0.34"]
    assert prepare(videos, tmp_path / "out", *flags, *openface) == 0
    assert (tmp_path / "out" / "targets.txt").read_text().split() == ["valence", "arousal"]
    clips = read_labelled_list(tmp_path / "out" / "train.csv", "regression", 2)
    test = read_labelled_list(tmp_path / "out" / "test.csv", "regression", 2)
    assert (len(clips), len(test)) == (4, 2)
    for clip in [*clips, *test]:
        assert clip.label[1] == pytest.approx(-10 * clip.label[0])


@pytest.mark.parametrize("modality, made", [("a", "audio"), ("v", "faces")])
def test_one_modality_needs_only_its_half_and_a_given_split_is_kept(
    videos, tmp_path, modality, made
):
    if modality == "v":
        save_media(videos / NAMES[0], pictures(4))  # no sound, and none is wanted
    split = dict(zip(NAMES, ["train", "train", "val", "test", "test", "train"], strict=True))
    lines = [f"{name},x{k % 2},{part}" for k, (name, part) in enumerate(split.items())]
    labels = write_labels(tmp_path / "labels.csv", "video,label,split", *lines)
    flags = ["--labels", labels, "--modality", modality, *fake_openface(tmp_path)]
    assert prepare(videos, tmp_path / "out", *flags) == 0
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {made}
    for part in ("train", "val", "test"):  # as given
        clips = read_labelled_list(tmp_path / "out" / f"{part}.csv")
        names = {str(Path(clip.audio).relative_to(tmp_path / "out" / "audio")) for clip in clips}
        assert names == {name[:-4] + ".wav" for name, own in split.items() if own == part}


def test_no_list_is_made_of_a_run_that_was_stopped(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "run_tool", lambda *_: STOPPED)
    flags = ["--labels", labels_of(tmp_path), *fake_openface(tmp_path)]
    assert prepare(videos, tmp_path / "out", *flags) == STOPPED
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lines, task, message",
    [
        (["name,label", "a,b"], "classification", ":1: .*video, label, got 'name, label'"),
        (["video", "a"], "regression", ":1: expected the column video and one for each target"),
        (["video,label", "a.mp4,"], "classification", ":2, column 'label': expected a name"),
        (["video,v", "a,1", "b,x"], "regression", ":3, column 'v': .*finite number, got 'x'"),
        (["video,v", "a,nan"], "regression", ":2, column 'v': .*finite number, got 'nan'"),
        (["video,label,split", "a,x,dev"], "classification", ":2.*train, val or test, got 'dev'"),
        (["video,label,speaker", "a,x,"], "classification", ":2, column 'speaker': .*a name"),
        (["video,label", "a,x", "a.mp4,y"], "classification", ":3: 'a.mp4' .* a label already"),
        (["video,label", "c,x"], "classification", ":2: 'c' names several videos"),
    ],
)
def test_mistakes_in_the_labels_are_named_by_line(tmp_path, lines, task, message):
    labels = write_labels(tmp_path / "labels.csv", *lines)
    with pytest.raises(ValueError, match=message):
        read_labels(labels, ["a.mp4", "b.mp4", "x/c.mp4", "y/c.mp4"], task)


def test_mistakes_are_said_before_any_work(videos, tmp_path, caplog):
    labels = write_labels(tmp_path / "l.csv", "video,emotion", "a,b")
    for flags, message in (
        (["--labels", labels, *fake_openface(tmp_path)], "expected the columns video, label"),
        (["--test_share", "1"], "--test_share must be > 0 and < 1, got 1"),
        (["--videos", "nowhere"], "--videos 'nowhere' is no folder"),
    ):
        assert prepare(videos, tmp_path / "out", *flags) == 2
        assert message in caplog.text and not (tmp_path / "out").exists()


def test_videos_may_be_named_in_any_clear_way(tmp_path):
    videos = ["a.mp4", "x/b c.mp4", "x/d.mp4", "y/d.mp4"]
    lines = ["video,label", "a,1", "b c.mp4,1", "x/d,2", "./y/d.mp4,2", "z,3"]
    labels, columns, unmatched = read_labels(
        write_labels(tmp_path / "labels.csv", *lines), videos, "classification"
    )
    assert set(labels) == set(videos) and columns == ["label"]
    assert [clip.name for clip in unmatched] == ["z"]
