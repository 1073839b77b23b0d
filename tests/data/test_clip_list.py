import pytest

from hicmae.data.clip_list import Clip, read_labelled_list, read_pretrain_list, write_list


def write(tmp_path, text):
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text, clips",
    [
        (
            '"a b/c.mp4" "a b/c ""x"".wav" 2\r\n\n/d e.wav 0\n',  # as pandas reads it
            [Clip("/r/a b/c.mp4", '/r/a b/c "x".wav', 2), Clip("/d", "/r/e.wav", 0)],
        ),
        (
            '\ufeffa.mp4   a.wav  2 \n  "b c.mp4"  b.wav 0\n   \n',  # a mark, and blanks
            [Clip("/r/a.mp4", "/r/a.wav", 2), Clip("/r/b c.mp4", "/r/b.wav", 0)],
        ),
    ],
)
def test_labelled_lists_are_read(tmp_path, text, clips):
    assert read_labelled_list(write(tmp_path, text), data_root="/r") == clips


def test_pretrain_list_finds_the_wav(tmp_path):
    text = "vox/video/file~/dev/mp4/id1/x/1.mp4 0\no.mp4/2.mp4  7\nthree.mp4 sound/3.wav 0\n"
    found = [(clip.video, clip.audio) for clip in read_pretrain_list(write(tmp_path, text), "/d")]
    assert found == [
        ("/d/vox/video/file~/dev/mp4/id1/x/1.mp4", "/d/vox/audio/file~/dev/aac/id1/x/1.wav"),
        ("/d/o.mp4/2.mp4", "/d/o.mp4/2.wav"),
        ("/d/three.mp4", "/d/sound/3.wav"),
    ]


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


OK = "ok ok.wav 5\n"
NUMBERS = "ok ok.wav 0.5 1\n"


@pytest.mark.parametrize(
    "options, text, line, facts",
    [
        ({}, OK + "clips/17 3", 2, "'<video> <audio.wav> <class index>', got 2 .*: 'clips/17 3'"),
        ({}, OK + "a b.wav 1 2", 2, "got 4 fields"),
        ({}, OK + "a b.wav happy", 2, "got 'happy' where an integer belongs"),
        ({"num_classes": 6}, OK + "a b.wav 6", 2, "class 6, .* 0 to 5 .--nb_classes 6.*from 0"),
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
