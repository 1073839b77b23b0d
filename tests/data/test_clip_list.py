import pytest

from hicmae.data.clip_list import (
    Clip,
    decide_source_crop,
    read_labelled_list,
    read_pretrain_list,
    write_list,
)


def write(tmp_path, text, name="train.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_quoting_is_what_pandas_reads(tmp_path):
    path = write(tmp_path, '"a b/c.mp4" "a b/c ""x"".wav" 2\r\n\nd e.wav 0\n')
    assert read_labelled_list(path) == [
        Clip("a b/c.mp4", 'a b/c "x".wav', 2),
        Clip("d", "e.wav", 0),
    ]


def test_blanks_and_a_byte_order_mark_are_no_fields(tmp_path):
    path = write(tmp_path, '\ufeffa.mp4   a.wav  2 \n  "b c.mp4"  b.wav 0\n   \n')
    assert read_labelled_list(path) == [Clip("a.mp4", "a.wav", 2), Clip("b c.mp4", "b.wav", 0)]
    assert read_pretrain_list(write(tmp_path, "a.mp4  0")) == [Clip("a.mp4", "a.wav", None)]


def test_relative_names_are_joined_to_the_root_and_absolute_ones_kept(tmp_path):
    clips = read_labelled_list(write(tmp_path, "a /b/a.wav 0\n"), data_root="/data")
    assert clips == [Clip("/data/a", "/b/a.wav", 0)]


def test_regression_targets_survive(tmp_path):
    clips = read_labelled_list(write(tmp_path, "a a.wav 0.5 -1 2e-1\n"), task="regression")
    assert clips == [Clip("a", "a.wav", (0.5, -1.0, 0.2))]


def test_pretrain_list_finds_the_wav(tmp_path):
    text = "vox/video/file~/dev/mp4/id1/x/1.mp4 0\no.mp4/2.mp4 7\nthree.mp4 sound/3.wav 0\n"
    assert read_pretrain_list(write(tmp_path, text), data_root="/d") == [
        Clip(
            "/d/vox/video/file~/dev/mp4/id1/x/1.mp4", "/d/vox/audio/file~/dev/aac/id1/x/1.wav", None
        ),
        Clip("/d/o.mp4/2.mp4", "/d/o.mp4/2.wav", None),
        Clip("/d/three.mp4", "/d/sound/3.wav", None),
    ]


def test_pretrain_list_roundtrips(tmp_path):
    clips = [Clip("a b.mp4", "c.wav", None), Clip("d.mp4", "d.wav", None)]
    write_list(tmp_path / "list.csv", clips)
    assert read_pretrain_list(tmp_path / "list.csv") == clips
    write_list(tmp_path / "list.csv", [Clip("d.mp4", None, None)])
    assert read_pretrain_list(tmp_path / "list.csv") == clips[1:]


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


def test_the_path_of_a_list_decides_the_source_crop_and_it_is_said(caplog):
    caplog.set_level("INFO")
    for choice, path, decided in (
        ("auto", "saved/data/voxceleb2/train.csv", "voxceleb2"),
        ("auto", "saved/data/own/train.csv", "none"),
        ("none", "saved/data/voxceleb2/train.csv", "none"),
        ("voxceleb2", "own.csv", "voxceleb2"),
    ):
        assert decide_source_crop(choice, path, [], 160) == decided
        assert f"--source_crop {decided}" in caplog.messages[-1]
        is_cut = "columns 32 to 192, rows 0 to 160" in caplog.messages[-1]
        assert is_cut == (decided == "voxceleb2")


OK = "ok ok.wav 5\n"
NUMBERS = "ok ok.wav 0.5 1\n"


@pytest.mark.parametrize(
    "options, text, line, facts",
    [
        ({}, OK + "clips/17 3", 2, "'<video> <audio.wav> <class index>', got 2 .*: 'clips/17 3'"),
        ({}, OK + "a b.wav 1 2", 2, "got 4 fields"),
        ({}, OK + "a b.wav happy", 2, "got 'happy' where an integer belongs"),
        (
            {"num_classes": 6},
            OK + "a b.wav 6",
            2,
            r"class 6, expected 0 to 5 \(--nb_classes 6\).* from 0",
        ),
        ({}, OK + "a b.wav -1", 2, "got class -1"),
        ({}, OK + 'a "b.wav 1\nc c.wav 2\nd d.wav 3\n', 2, "got: unexpected end of data"),
        ({}, OK + "a" * 200_000, 2, "field larger than field limit"),
        ({"task": "regression"}, NUMBERS + "a b.wav 1", 2, r"targets \(1.0,\), expected 2"),
        ({"task": "regression"}, NUMBERS + "a b.wav nan 1", 2, "'nan' where a finite number"),
        ({"task": "regression", "num_classes": 3}, NUMBERS, 1, "expected 3 numbers"),
        (None, "a.mp4\n", 1, "'<video.mp4> <int>' or .*got 1 fields .*: 'a.mp4'"),
        (None, "a.mp4 a.wav\n", 1, "got 'a.wav' where an integer belongs"),
        (None, 'a.mp4 "" 0', 1, "got an empty field"),
        ({}, "a.mp4,a.wav,0\n", 1, "got 1 fields .blanks .*quotes"),
        ({}, "a.mp4 a.wav 0\n".encode("utf-16"), 1, "save it as UTF-8"),
        (None, "\n\n", 1, "got an empty list"),
    ],
)
def test_bad_line_of_a_list_is_named(tmp_path, options, text, line, facts):
    read = read_pretrain_list if options is None else read_labelled_list
    with pytest.raises(ValueError, match=f"train.csv:{line}: expected .*{facts}"):
        read(write(tmp_path, text), **(options or {}))


def test_missing_list_and_unknown_task_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv' does not exist"):
        read_pretrain_list(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="'classification' or 'regression', got 'ranking'"):
        read_labelled_list(tmp_path / "x.csv", task="ranking")
