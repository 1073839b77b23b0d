import csv
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hicmae.data.clip_list import Clip, read_labelled_list, write_list
from preprocess import check_lists
from preprocess.check_lists import inspect
from preprocess.command_line import STOPPED
from preprocess.face_and_audio.batch import Job, read_summary
from tests.conftest import save_frames, save_media, save_mp4, save_wav, tone
from tests.preprocess.media_files import save_bad_files


@pytest.fixture
def clips(tmp_path: Path) -> Callable[..., Clip]:
    """Return a maker of clips of a frame folder and a wav, all different."""
    numbers = itertools.count(1)

    def make(name: str, label: int = 0) -> Clip:
        number = next(numbers)
        video = save_frames(tmp_path / "faces" / name, 2 + number, (9, 7))
        audio = save_wav(tmp_path / "audio" / f"{name}.wav", tone(4000, 200.0 + 30 * number))
        return Clip(video, audio, label)

    return make


def check(*arguments: object, workers: int = 1) -> int:
    return check_lists.main([*map(str, arguments), "--num_workers", str(workers)])


def is_kept_whole(path: Path) -> bool:
    """Tell whether the cleaned list beside a list equals it."""
    return path.with_name(f"{path.stem}.cleaned.csv").read_bytes() == path.read_bytes()


def findings(folder: Path) -> list[tuple[str, str, str]]:
    """Return list, clip and kind of every line of a report."""
    with open(folder / "check/report.csv", newline="", errors="surrogateescape") as file:
        return [
            (Path(row["list"]).name, Path(row["video"]).name, row["kind"])
            for row in csv.DictReader(file)
        ]


def test_good_lists_give_cleaned_lists_equal_to_them_which_are_not_checked_again(
    clips, tmp_path, capsys, caplog
):
    folder = tmp_path / "f"
    write_list(folder / "train.csv", [clips('a "b" c', 3), clips("zwei\nZeilen", 1)])
    write_list(folder / "test.csv", [clips("ünal", 2)])
    (folder / "left_out.csv").write_text('clip,reason\n"a b",no sound\n')  # no list
    for _ in range(2):
        assert check(folder) == 0  # a folder stands for its lists
        assert "nothing is wrong" in capsys.readouterr().out
        assert findings(folder) == []
    lists = {"train.csv", "test.csv", "train.cleaned.csv", "test.cleaned.csv", "left_out.csv"}
    assert {path.name for path in folder.glob("*.csv")} == lists
    assert is_kept_whole(folder / "train.csv") and is_kept_whole(folder / "test.csv")
    assert check(folder / "train.cleaned.csv") == 2
    assert "what this tool has written (.cleaned)" in caplog.text
    (folder / "x.index.json").touch()
    assert check(folder) == 2 and "holds shards" in caplog.text


def test_every_kind_of_broken_clip_is_named_and_dropped(clips, tmp_path):
    broken: dict[str, tuple[Clip, str]] = {}

    def add(kind: str) -> Clip:
        broken[kind] = (clips(f"clip {len(broken)}"), kind)
        return broken[kind][0]

    audio = {
        "audio silent": (np.zeros(4000), 16000),
        "audio too short": (tone(1024), 16000),
        "audio sample rate": (tone(9000), 44100),
        "audio channels": (np.stack([tone(4000), tone(4000)], axis=1), 16000),
    }
    for kind, (samples, rate) in audio.items():
        soundfile.write(add(kind).audio, samples, rate)
    os.unlink(add("audio missing").audio)
    Path(add("audio unreadable").audio).write_bytes(b"")
    shutil.rmtree(add("video missing").video)
    for path in Path(add("no face frames").video).iterdir():
        path.unlink()
    both = add("video unreadable; audio unreadable")
    Path(both.audio).write_text("this is text")
    shutil.rmtree(both.video)
    Path(both.video).write_text("this is text, too")
    folder = Path(add("video unreadable").video)
    sorted(folder.iterdir())[1].write_bytes(b"")  # one frame of many
    good = clips("good")

    path = tmp_path / "lists/train.csv"
    write_list(path, [*(one for one, _ in broken.values()), good])
    assert check(path) == 1
    expected = [("train.csv", Path(one.video).name, kind) for one, kind in broken.values()]
    assert findings(tmp_path / "lists") == expected
    assert read_labelled_list(tmp_path / "lists/train.cleaned.csv") == [good]
    assert check(path, "--output_dir", tmp_path / "two", workers=2) == 1
    one, two = (tmp_path / folder / "report.csv" for folder in ("lists/check", "two"))
    assert one.read_bytes() == two.read_bytes()
    write_list(tmp_path / "none.csv", [both])
    assert check(tmp_path / "none.csv") == 1
    assert not (tmp_path / "none.cleaned.csv").exists()


def test_repeated_clips_are_found_by_name_and_by_content_and_the_first_stays(clips, tmp_path):
    first, other = clips("first"), clips("other")
    frames = Clip(shutil.copytree(first.video, tmp_path / "copy"), clips("own sound").audio, 0)
    sound = Clip(clips("own frames").video, str(tmp_path / "copy.wav"), 0)
    # the same samples in another kind of file
    soundfile.write(sound.audio, *soundfile.read(other.audio), subtype="PCM_24", format="WAVEX")
    write_list(tmp_path / "lists/all.csv", [first, other, first, frames, sound])
    assert check(tmp_path / "lists/all.csv") == 1
    twice = [("all.csv", name, "in the list twice") for name in ("first", "copy", "own frames")]
    assert findings(tmp_path / "lists") == twice
    details = (tmp_path / "lists/check/report.csv").read_text()
    for shared in ("same video file and audio file", "same frames as", "same sound as"):
        assert shared in details
    assert read_labelled_list(tmp_path / "lists/all.cleaned.csv") == [first, other]


def test_leaks_are_found_in_one_folder_and_leave_the_training_list(clips, tmp_path):
    a, b, c = clips("a"), clips("b"), clips("c")
    renamed = Clip(shutil.copytree(b.video, tmp_path / "renamed"), f"{tmp_path}/renamed.wav", 0)
    shutil.copy(b.audio, renamed.audio)
    for fold, train, test in (("1", [a, c, renamed], [a, b]), ("2", [b], [c])):
        write_list(tmp_path / fold / "train.csv", train)
        write_list(tmp_path / fold / "test.csv", test)
    write_list(tmp_path / "1/val.csv", [a, b])  # val = test is the original's habit
    paths, cleaned = sorted(tmp_path.glob("[12]/*.csv")), tmp_path / "cleaned"
    assert check(*paths, "--cleaned", cleaned) == 1
    names = ["a", "a", "renamed", "renamed"]  # in test and in val
    assert findings(tmp_path) == [("train.csv", name, "in training and test") for name in names]
    assert read_labelled_list(cleaned / "1/train.csv") == [c]
    assert read_labelled_list(cleaned / "1/test.csv") == [a, b]
    assert read_labelled_list(cleaned / "2/train.csv") == [b]

    assert check(tmp_path / "1/test.csv", tmp_path / "2/train.csv") == 0


def test_pretraining_list_is_checked_and_keeps_its_form(tmp_path):
    for name, frames in (("x y", 30), ("z", 20)):
        save_mp4(tmp_path / f"{name}.mp4", frames)
        save_wav(tmp_path / f"{name}.wav", tone(frames * 640, frames * 20.0))
    data = bytearray(Path(save_mp4(tmp_path / "late.mp4")).read_bytes())
    end = data.index(b"moov") - 4  # the index is whole: the film opens, and fails at late frames
    data[end // 2 : end] = np.random.default_rng(0).bytes(end - end // 2)
    (tmp_path / "late.mp4").write_bytes(data)
    save_media(tmp_path / "sound.mp4", sound=tone(16000)[None])
    broken = sorted(save_bad_files(tmp_path) - {"gone.mp4"} | {"late.mp4", "sound.mp4"})
    for k, name in enumerate(broken):
        save_wav((tmp_path / name).with_suffix(".wav"), tone(9000, 50.0 + 30 * k))
    path = tmp_path / "lists/train.csv"
    write_list(path, [Clip(name, None, None) for name in ("x y.mp4", *broken, "z.mp4")])
    assert check(path, "--data_root", tmp_path) == 1
    expected = [("train.csv", name, "video unreadable") for name in broken]
    assert findings(tmp_path / "lists") == expected
    assert (tmp_path / "lists/train.cleaned.csv").read_text() == '"x y.mp4" 0\nz.mp4 0\n'


def test_shards_divide_the_clips_and_a_run_without_one_joins_them(clips, tmp_path, monkeypatch):
    made = [clips(name) for name in "abcde"]
    os.unlink(made[3].audio)
    path = tmp_path / "l/train.csv"
    write_list(path, made)
    assert check(path, "--shard", "1/2") == 0
    assert check(path, "--shard", "2/2") == 1
    assert not (tmp_path / "l/train.cleaned.csv").exists()
    opened: list[str] = []

    def look(job: Job) -> dict[str, object]:
        opened.append(Path(job.source).name)
        return inspect(job)

    monkeypatch.setattr(check_lists, "inspect", look)
    assert check(path) == 1
    assert opened == ["d"]  # what is broken may have been mended
    assert findings(tmp_path / "l") == [("train.csv", "d", "audio missing")]
    # What is mended or changed is opened again, and what is new.
    save_wav(Path(made[3].audio), tone(4000, 77.0))
    save_wav(Path(made[1].audio), tone(5000, 99.0))
    write_list(path, [*made, clips("f")])
    opened.clear()
    assert check(path) == 0
    assert sorted(opened) == ["b", "d", "f"]


def test_a_stopped_run_keeps_what_it_knows(clips, tmp_path, monkeypatch):
    write_list(tmp_path / "train.csv", [clips(name) for name in "abc"])

    def look(job: Job) -> dict[str, object]:
        if Path(job.source).name == "c":
            raise KeyboardInterrupt
        return inspect(job)

    with monkeypatch.context() as patch:
        patch.setattr(check_lists, "inspect", look)
        assert check(tmp_path / "train.csv") == STOPPED
    assert not (tmp_path / "train.cleaned.csv").exists()
    monkeypatch.setattr(check_lists, "read_video", lambda film: Path(film.path).name)
    assert check(tmp_path / "train.csv") == 0
    rows = read_summary(tmp_path / "check/check_lists.csv").values()
    assert [row["pictures"] == "c" for row in rows] == [False, False, True]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "-1/4"])
def test_impossible_shard_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        check("x.csv", f"--shard={text}")
    assert f"expected i/n with 1 <= i <= n, as in 3/64, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "l.csv' does not exist"),
        ("", "got an empty list"),
        ("a b c d", "l.csv:1: expected '<video.mp4> <int>' or '<video.mp4> <audio"),
        ('a.mp4 0\n"b.mp4 0', "got: unexpected end of data; check the quotes"),
        # lines of another kind than those before
        ("a.mp4 0\n\na.mp4 a.wav 0\na.mp4", "l.csv:4: expected"),
        ("a a.wav 3\n\na a.wav 3\na a.wav 0.5 1", "l.csv:4: expected"),
        ("a a.wav 1.0 0.5\n\na a.wav 1", "l.csv:3: expected"),
    ],
)
def test_list_that_is_none_gives_code_2_and_names_its_line(tmp_path, caplog, text, message):
    if text is not None:
        (tmp_path / "l.csv").write_text(text)
    assert check(tmp_path / "l.csv") == 2 and message in caplog.text


def test_a_list_of_several_targets_keeps_its_labels(clips, tmp_path):
    made = [clips(name)._replace(label=(0.5, k)) for k, name in enumerate("ab")]
    write_list(tmp_path / "train.csv", made)
    assert check(tmp_path / "train.csv") == 0
    assert read_labelled_list(tmp_path / "train.cleaned.csv", "regression") == made


@pytest.mark.parametrize("left_out", ["video", "audio"])
def test_a_stream_that_is_not_read_is_not_demanded(clips, tmp_path, left_out):
    made = [clips(name)._replace(**{left_out: "-"}) for name in "abc"]
    write_list(tmp_path / "l/train.csv", made)
    assert check(tmp_path / "l/train.csv", "--data_root", tmp_path) == 0
    assert is_kept_whole(tmp_path / "l/train.csv")
    modality = "a" if left_out == "video" else "v"
    whole = [clip._replace(**{left_out: str(tmp_path / f"no {clip.label}")}) for clip in made]
    write_list(tmp_path / "whole.csv", whole)
    assert check(tmp_path / "whole.csv", "--modality", modality) == 0
    other = Path(made[1].audio if left_out == "video" else made[1].video)
    shutil.rmtree(other) if other.is_dir() else other.unlink()
    assert check(tmp_path / "l/train.csv") == 1
    assert [kind for *_, kind in findings(tmp_path / "l")] == [
        "video missing" if left_out == "audio" else "audio missing"
    ]


def test_clips_out_of_step_or_in_another_order_than_letters_are_told_and_stay(clips, tmp_path):
    made = [clips(name) for name in "ab"]
    folder = Path(made[1].video)
    for path in folder.iterdir():
        path.rename(folder / f"{int(path.stem[-3:]) + 8}.jpg")  # 8.jpg to 11.jpg
    video, wav = save_mp4(tmp_path / "c.mp4", frames=50), save_wav(tmp_path / "c.wav", tone(16000))
    write_list(tmp_path / "train.csv", [*made, Clip(video, wav, 0)])
    assert check(tmp_path / "train.csv") == 1
    kinds = ("b", "order of frames"), ("c.mp4", "out of step")
    assert findings(tmp_path) == [("train.csv", *found) for found in kinds]
    assert "'8.jpg' is read where" in (tmp_path / "check/report.csv").read_text()
    assert is_kept_whole(tmp_path / "train.csv")
