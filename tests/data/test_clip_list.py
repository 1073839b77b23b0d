import os

import pytest

from hicmae.data.clip_list import Clip, read_labelled_list, read_pretrain_list, wav_of, write_list

AWKWARD = [
    "with space/a.mp4",
    'quote"d.mp4',
    '"all".mp4',
    "it's.mp4",
    "línea é 表.mp4",
    "two\nlines.mp4",
    "tab\t.mp4",
]


def write(tmp_path, text, name="train.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_survive_writing_and_reading(tmp_path, name):
    clips = [Clip(name, name + ".wav", 3), Clip("plain", "plain.wav", 0)]
    write_list(tmp_path / "list.csv", clips)
    assert read_labelled_list(tmp_path / "list.csv") == clips


def test_a_name_that_is_not_utf8_survives(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    write_list(tmp_path / "list.csv", [Clip(name, "a.wav", 1)])
    assert b"caf\xe9.mp4" in (tmp_path / "list.csv").read_bytes()
    assert read_labelled_list(tmp_path / "list.csv")[0].video == name


def test_quoting_is_what_pandas_reads(tmp_path):
    path = write(tmp_path, '"a b/c.mp4" "a b/c ""x"".wav" 2\r\n\nd e.wav 0\n')
    assert read_labelled_list(path) == [
        Clip("a b/c.mp4", 'a b/c "x".wav', 2),
        Clip("d", "e.wav", 0),
    ]


def test_relative_names_are_joined_to_the_root_and_absolute_ones_kept(tmp_path):
    clips = read_labelled_list(write(tmp_path, "a /b/a.wav 0\n"), data_root="/data")
    assert clips == [Clip("/data/a", "/b/a.wav", 0)]


def test_regression_lines_give_all_targets(tmp_path):
    clips = read_labelled_list(write(tmp_path, "a a.wav 0.5 -1 2e-1\n"), task="regression")
    assert clips == [Clip("a", "a.wav", (0.5, -1.0, 0.2))]


def test_regression_list_roundtrips(tmp_path):
    clips = [Clip("a", "a.wav", (0.25, 1.0)), Clip("b", "b.wav", (1 / 3, 0.0))]
    write_list(tmp_path / "list.csv", clips)
    assert read_labelled_list(tmp_path / "list.csv", task="regression") == clips


def test_pretrain_list_finds_the_wav(tmp_path):
    text = "vox/video/file~/dev/mp4/id1/x/1.mp4 0\nother/2.mp4 7\nthree.mp4 sound/3.wav 0\n"
    assert read_pretrain_list(write(tmp_path, text), data_root="/d") == [
        Clip(
            "/d/vox/video/file~/dev/mp4/id1/x/1.mp4", "/d/vox/audio/file~/dev/aac/id1/x/1.wav", None
        ),
        Clip("/d/other/2.mp4", "/d/other/2.wav", None),
        Clip("/d/three.mp4", "/d/sound/3.wav", None),
    ]


def test_pretrain_list_roundtrips(tmp_path):
    clips = [Clip("a b.mp4", "c.wav", None), Clip("d.mp4", "d.wav", None)]
    write_list(tmp_path / "list.csv", clips)
    assert read_pretrain_list(tmp_path / "list.csv") == clips
    write_list(tmp_path / "list.csv", [Clip("d.mp4", None, None)])
    assert read_pretrain_list(tmp_path / "list.csv") == clips[1:]


def test_wav_of_replaces_only_the_extension():
    assert wav_of("a.mp4/b.mp4") == "a.mp4/b.wav"


def test_failed_write_keeps_the_old_list_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "list.csv"
    write_list(path, [Clip("a", "a.wav", 0)])

    def failing():
        yield Clip("b", "b.wav", 1)
        raise KeyError("lost")

    with pytest.raises(KeyError):
        write_list(path, failing())
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.csv"]
    assert read_labelled_list(path)[0].video == "a"


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "clips/00017 3",
            "train.csv:2: expected '<video> <audio.wav> <class index>', "
            "got 2 fields: 'clips/00017 3'",
        ),
        ("a b.wav 1 2", "train.csv:2: expected .*, got 4 fields"),
        ("a b.wav happy", "got 'happy' where an integer belongs"),
        ("a b.wav 1.0", "got '1.0' where an integer belongs"),
        ("a b.wav 6", r"got class 6, which is not 0..5 \(--nb_classes 6\)"),
        ("a b.wav -1", "got class -1"),
        (
            'a "b.wav 1\nc c.wav 2\nd d.wav 3\n',
            "train.csv:2: expected .*, got: unexpected end of data",
        ),
    ],
)
def test_bad_classification_line_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_labelled_list(write(tmp_path, f"ok ok.wav 5\n{line}"), num_classes=6)


@pytest.mark.parametrize(
    "line, message",
    [
        ("a b.wav 1", "train.csv:2: .*got 1 targets instead of 2"),
        ("a b.wav 1 x", "got 'x' where a finite number belongs"),
        ("a b.wav nan 1", "got 'nan' where a finite number belongs"),
        ("a b.wav", "got 2 fields"),
    ],
)
def test_bad_regression_line_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_labelled_list(write(tmp_path, f"ok ok.wav 0.5 1\n{line}\n"), task="regression")


def test_regression_list_must_have_the_asked_number_of_targets(tmp_path):
    with pytest.raises(ValueError, match="train.csv:1: .*got 2 targets instead of 3"):
        read_labelled_list(write(tmp_path, "a a.wav 0 1\n"), task="regression", num_classes=3)


def test_bad_pretrain_line_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="train.csv:1: expected '<video.mp4> <int>' or .*got 1 fields: 'a.mp4'"
    ):
        read_pretrain_list(write(tmp_path, "a.mp4\n"))
    with pytest.raises(ValueError, match="got 'a.wav' where an integer belongs"):
        read_pretrain_list(write(tmp_path, "a.mp4 a.wav\n"))


def test_overlong_field_is_a_list_error(tmp_path):
    with pytest.raises(ValueError, match="train.csv:1: expected .*field larger than field limit"):
        read_labelled_list(write(tmp_path, "a" * 200_000))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_list_is_refused(tmp_path, text):
    with pytest.raises(
        ValueError, match=r"train.csv:1: expected at least one line .*, got an empty list"
    ):
        read_labelled_list(write(tmp_path, text))


def test_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv' does not exist; check --data_path"):
        read_pretrain_list(tmp_path / "none.csv")


def test_unknown_task_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="task must be 'classification' or 'regression', got 'ranking'"
    ):
        read_labelled_list(tmp_path / "x.csv", task="ranking")
