"""Cutting of IEMOCAP's dialogues, on a small dialogue of two colours side by side."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from preprocess.iemocap_clips import main
from preprocess.lists.annotations import read_utterances

RED, BLUE = (200, 30, 30), (30, 30, 200)  # the left half and the right half of the picture
HEADING = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
LINES = (
    "[0.4000 - 1.2000]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n"
    "C-E2:\tNeutral;\t()\n"
    "[1.0000 - 1.6000]\tSes01F_impro01_M000\tang\t[2.5, 2.5, 2.5]\n"
    "[7.0000 - 8.0000]\tSes01F_impro01_M001\txxx\t[2.5, 2.5, 2.5]\n"
)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release with one dialogue of 2 s at 10 frames a second, and its labels."""
    dialog = tmp_path / "IEMOCAP" / "Session1" / "dialog"
    (dialog / "avi" / "DivX").mkdir(parents=True)
    (dialog / "EmoEvaluation").mkdir()
    (dialog / "EmoEvaluation" / "Ses01F_impro01.txt").write_text(HEADING + LINES)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = RED, BLUE
    with av.open(str(dialog / "avi" / "DivX" / "Ses01F_impro01.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return tmp_path / "IEMOCAP"


def cut(release: Path, *flags: str) -> tuple[int, Path]:
    output = release.parent / "clips"
    code = main(["--input", str(release), "--output", str(output), "--num_workers", "1", *flags])
    return code, output / "Session1" / "dialog" / "avi" / "DivX" / "Ses01F_impro01"


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_each_utterance_has_its_frames_and_the_half_of_its_speaker_once(release: Path) -> None:
    code, folder = cut(release)
    assert code == 0
    marked, other = (pictures(folder / f"Ses01F_impro01_{who}.mp4") for who in ("F000", "M000"))
    assert (len(marked), len(other)) == (8, 6)  # they overlap, as people do
    assert marked[0].shape == other[0].shape == (48, 32, 3)
    assert np.abs(np.median(marked, axis=(0, 1, 2)) - RED).max() < 12
    assert np.abs(np.median(other, axis=(0, 1, 2)) - BLUE).max() < 12
    # The third utterance starts after the end of the video.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(path.stem[-4:] for path in before) == ["F000", "M000"]
    with open(release.parent / "clips" / "iemocap_clips.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["utterances"], row["without_picture"]) == ("2", "Ses01F_impro01_M001")
    assert cut(release)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_marked_actor_may_sit_on_the_right(release: Path) -> None:
    _, folder = cut(release, "--marked_side", "right")
    marked = pictures(folder / "Ses01F_impro01_F000.mp4")
    assert np.abs(np.median(marked, axis=(0, 1, 2)) - BLUE).max() < 12


def test_a_dialogue_without_labels_fails_and_leaves_nothing(release: Path) -> None:
    labels = release / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    labels.unlink()
    code, folder = cut(release)
    assert code == 1 and not folder.exists()


def test_a_broken_label_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "Ses01F_impro01.txt"
    path.write_text("[1.0 - 2.0]\tsomething\tneu\n")
    with pytest.raises(ValueError, match=r"impro01.txt:1: expected '\[<start> - <end>\]"):
        list(read_utterances(str(path)))
