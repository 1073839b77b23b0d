import errno
import importlib.util
import logging
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from hicmae.data.video import FrameFolder
from hicmae.faces.detector import Detector
from hicmae.faces.tracking import similarity, template
from hicmae.io import PART, UnreadableClip
from preprocess.face_and_audio import batch, extract_face
from preprocess.face_and_audio.extract_face import FaceOptions, follow_face
from tests.preprocess.media_files import (
    PORTRAIT_EYES,
    SIZE,
    camera,
    ffmpeg_program,
    pictures,
    portrait,
    save_media,
    shoot,
)

WEIGHTS = all(importlib.util.find_spec(name) for name in ("mtcnn", "joblib", "lz4"))
needs_weights = pytest.mark.skipif(
    not WEIGHTS, reason="needs the weights of the extra 'faces': pip install mtcnn==1.0.0"
)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def extract(source: Path, output: Path, *flags: str) -> int:
    names = ["--input", str(source), "--output_dir", str(output)]
    return extract_face.main([*names, "--num_workers", "1", *flags])


def summary(output: Path) -> dict[str, dict[str, str]]:
    return batch.read_summary(output / "extract_face.csv")


# Whole clips


def test_missing_weights_are_said_with_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        extract(tmp_path, tmp_path / "out")
    message = capsys.readouterr().err
    assert "the package mtcnn, which holds the weights, is missing" in message
    assert "pip install" in message and "--backend openface" in message


@needs_weights
def test_eyes_rest_in_place_under_shift_scale_and_roll(tmp_path):
    steps = np.linspace(-1, 1, 31)
    cameras = [camera((40 * t, -25 * t), 1 + 0.35 * t, 18 * t) for t in steps]
    save_media(tmp_path / "in" / "moving face.mp4", shoot(cameras))
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    path = follow_face(str(tmp_path / "in" / "moving face.mp4"), FaceOptions())
    landed = np.stack(
        [
            moved(moved(PORTRAIT_EYES, shot), similarity(points, template(256)))
            for shot, points in zip(cameras, path.points, strict=True)
        ]
    )  # (T, 2, 2): where the portrait's pupils are in the crops
    # This face is not the mean face, so its eyes rest some pixels beside the mean eyes ...
    assert np.abs(landed.mean(0) - template(256)[:2]).max() < 7
    # ... but they rest there.
    assert np.abs(landed - landed.mean(0)).max() < 4
    assert np.abs(landed - landed.mean(0)).mean() < 1.2
    # And the pixels are where the points say.
    frames = FrameFolder(str(tmp_path / "out" / "moving face_aligned"))
    assert frames.names[0] == "frame_det_00_000001.jpg" and len(frames) == len(steps)
    crops = [np.asarray(image) for image in frames.read(range(0, 31, 6))]
    assert {crop.shape for crop in crops} == {(256, 256, 3)}
    for (face,) in Detector().detect(crops):
        assert np.abs(face.points[:2] - template(256)[:2]).max() < 9


@needs_weights
def test_following_between_searched_frames_agrees_with_searching_all(tmp_path):
    cameras = [camera((5 * k, 2 * k), 1.0, 1.5 * k) for k in range(-6, 7)]
    video = str(save_media(tmp_path / "a.mp4", shoot(cameras)))
    every = follow_face(video, FaceOptions(detect_every=1, smoothing=0))
    some = follow_face(video, FaceOptions(detect_every=6, smoothing=0))
    difference = np.linalg.norm(every.points - some.points, axis=2)
    assert difference.mean() < 0.02 * 60 and difference.max() < 0.1 * 60  # inter-ocular distance


@needs_weights
def test_frames_without_a_face_are_filled_up_to_a_share(tmp_path):
    face, empty = shoot([camera((0, 0), 1, 0)])[0], np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    save_media(tmp_path / "in" / "a.mp4", [face] * 8 + [empty] * 4 + [face] * 6)
    assert extract(tmp_path / "in", tmp_path / "out", "--detect_every", "3") == 0
    row = summary(tmp_path / "out")["a.mp4"]
    assert (row["frames"], row["missing"], row["longest_gap"]) == ("18", "4", "4")
    assert len(list((tmp_path / "out" / "a_aligned").iterdir())) == 18  # in step with the sound
    assert extract(tmp_path / "in", tmp_path / "strict", "--max_missing", "0.2") == 1
    reason = summary(tmp_path / "strict")["a.mp4"]["reason"]
    assert reason == "no face in 4 of 18 frames, more than the share 0.2 that --max_missing allows"
    assert not (tmp_path / "strict" / "a_aligned").exists()


@needs_weights
def test_bad_files_are_reported_and_the_others_unharmed(tmp_path, caplog):
    folder = tmp_path / "in"
    face = shoot([camera((0, 0), 1, 0)])
    names = ["a space.mp4", "quote'\"s.mp4", "ünï ☺.mp4", "line\nbreak.mp4"]
    for name in names:
        save_media(folder / "sub" / name, face * 2)
    save_media(folder / "one frame.mp4", face)
    save_media(folder / "landscape.mp4", pictures(5))
    save_media(folder / "sound.mp4", sound=np.zeros((1, 9000)))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no film at all\n" * 300)
    data = save_media(folder / "cut.mp4", face * 9).read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.INFO):
        assert extract(folder, tmp_path / "out", "--img_size", "64") == 1
    rows = summary(tmp_path / "out")
    reasons = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert set(reasons) == {"landscape.mp4", "sound.mp4", "empty.mp4", "text.mp4", "cut.mp4"}
    assert reasons["landscape.mp4"].startswith("no face in 5 of 5 frames")
    assert reasons["sound.mp4"].endswith("has no picture")
    assert reasons["empty.mp4"].endswith("is an empty file")
    assert "no video or sound file" in reasons["text.mp4"]
    made = {path.name for path in (tmp_path / "out").rglob("*_aligned")}
    assert made == {"one frame_aligned"} | {name[:-4] + "_aligned" for name in names}
    crop = cv2.imread(str(tmp_path / "out" / "one frame_aligned" / "frame_det_00_000001.jpg"))
    assert crop.shape == (64, 64, 3)
    assert not list((tmp_path / "out").rglob(PART + "*"))


@needs_weights
def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    for name in "abc":
        save_media(tmp_path / "in" / f"{name}.mp4", shoot([camera((0, 0), 1, 0)] * 3))
    out = tmp_path / "out"
    write = Path.write_bytes

    def fail_at_the_fifth(self, data):
        if len(list(out.rglob("*.jpg"))) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail_at_the_fifth)
        assert extract(tmp_path / "in", out) == batch.STOPPED
    assert {path.name for path in out.iterdir()} == {"a_aligned", "extract_face.csv"}
    assert len(list((out / "a_aligned").iterdir())) == 3
    before = (out / "a_aligned").stat().st_mtime_ns
    assert extract(tmp_path / "in", out) == 0
    assert len(list(out.glob("*_aligned"))) == 3
    assert (out / "a_aligned").stat().st_mtime_ns == before
    assert extract(tmp_path / "in", out, "--overwrite") == 0
    assert (out / "a_aligned").stat().st_mtime_ns > before
    assert len(list(out.iterdir())) == 4


def test_the_cover_of_a_song_is_not_a_video(tmp_path):
    song = save_media(tmp_path / "song.m4a", sound=np.zeros((1, 9000)))
    cv2.imwrite(str(tmp_path / "cover.jpg"), portrait())
    command = [ffmpeg_program(), "-v", "error", "-i", song, "-i", tmp_path / "cover.jpg", "-map"]
    command += ["0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    subprocess.run([*command, tmp_path / "both.m4a"], check=True, stdin=subprocess.DEVNULL)
    with pytest.raises(UnreadableClip, match="has no picture"):
        next(extract_face.read_frames(str(tmp_path / "both.m4a")))


def test_a_telephones_rotated_video_is_turned_upright(tmp_path):
    program = ffmpeg_program()
    lying = [np.ascontiguousarray(np.rot90(f)) for f in shoot([camera((0, 0), 1, 0)] * 3)]
    source = save_media(tmp_path / "lying.mp4", lying)
    turned = tmp_path / "turned.mp4"
    command = [program, "-v", "error", "-display_rotation", "-90", "-i", source, "-c", "copy"]
    subprocess.run([*command, turned], check=True, stdin=subprocess.DEVNULL)
    frame = next(extract_face.read_frames(str(turned)))
    upright = shoot([camera((0, 0), 1, 0)])[0]
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 10


@pytest.mark.parametrize(
    "option, message",
    [
        ({"img_size": 8}, "--img_size must be >= 16, got 8"),
        ({"detect_every": 0}, "--detect_every must be >= 1, got 0"),
        ({"smoothing": -1.0}, "--smoothing must be >= 0, got -1"),
        ({"max_missing": 1.0}, "--max_missing must be >= 0 and < 1, got 1"),
        ({"min_face": 0.0}, "--min_face must be > 0 and < 1, got 0"),
    ],
)
def test_impossible_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        FaceOptions(**option)


# OpenFace

FAKE_OPENFACE = """#!/bin/sh
printf '%s\\n' "$@" > "$(dirname "$0")/arguments"
while [ $# -gt 0 ]; do
  case "$1" in -f) file=$2;; -out_dir) out=$2;; esac
  shift
done
grep -q broken "$file" && { echo "could not open the video" >&2; exit 1; }
name=$(basename "$file"); name=${name%.*}
mkdir -p "$out/${name}_aligned"
grep -q faceless "$file" && exit 0
for k in 1 2 3; do echo jpg > "$out/${name}_aligned/frame_det_00_00000$k.jpg"; done
echo "frame,confidence" > "$out/$name.csv"
"""


@pytest.fixture
def openface(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "FeatureExtraction"
    program.parent.mkdir()
    program.write_text(FAKE_OPENFACE)
    program.chmod(0o755)
    return program


def test_openface_is_run_as_the_original_did_and_its_folders_moved(tmp_path, openface):
    for name in ("a b.mp4", "sub/line\nbreak '\"ü.avi"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "in" / name).write_text("a film")
    flags = ["--backend", "openface", "--openface", str(openface)]
    assert extract(tmp_path / "in", tmp_path / "out", *flags, "--img_size", "128") == 0
    arguments = (openface.parent / "arguments").read_text().splitlines()
    assert set(arguments) >= {"-simalign", "-simsize", "128", "-format_aligned", "jpg", "-nomask"}
    made = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    folders = {str(path.parent.relative_to(tmp_path / "out")) for path in made} - {"."}
    assert folders == {"a b_aligned", "sub/line\nbreak '\"ü_aligned"}
    assert len(made) == 2 * 3 + 1
    assert summary(tmp_path / "out")["a b.mp4"]["frames"] == "3"


def test_what_openface_cannot_do_is_reported_and_leaves_nothing(tmp_path, openface):
    (tmp_path / "in").mkdir()
    for name, content in {"a": "a film", "b": "broken", "c": "faceless", "d": ""}.items():
        (tmp_path / "in" / f"{name}.mp4").write_text(content)
    flags = ["--backend", "openface", "--openface", str(openface)]
    assert extract(tmp_path / "in", tmp_path / "out", *flags) == 1
    rows = summary(tmp_path / "out")
    assert rows["a.mp4"]["status"] == "done"
    assert rows["b.mp4"]["reason"] == (
        "FeatureExtraction failed with exit code 1: could not open the video"
    )
    assert rows["c.mp4"]["reason"] == "OpenFace wrote no aligned face"
    assert rows["d.mp4"]["reason"].endswith("is an empty file")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a_aligned", "extract_face.csv"}


def test_a_missing_openface_is_said_before_anything_is_done(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        extract(tmp_path, tmp_path / "out", "--backend", "openface", "--openface", "no-such")
    assert "--openface 'no-such' is no program that can be run" in capsys.readouterr().err
