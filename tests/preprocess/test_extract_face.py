import errno
import functools
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from hicmae.data.film import Film
from hicmae.data.video import FrameFolder
from hicmae.faces import similarity, template
from hicmae.faces.detector import Detector
from hicmae.io import PART
from preprocess.command_line import STOPPED
from preprocess.face_and_audio import extract_face
from preprocess.face_and_audio.extract_face import FaceOptions, follow_face, frames_of
from tests.media.clock_films import save_film
from tests.preprocess import media_files
from tests.preprocess.media_files import (
    HARD_NAMES,
    PORTRAIT_EYES,
    SIZE,
    camera,
    failures,
    fake_openface,
    ffmpeg_program,
    needs_weights,
    pictures,
    portrait,
    save_bad_files,
    save_media,
    shoot,
)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


extract = functools.partial(media_files.run, extract_face)
summary = functools.partial(media_files.summary, tool="extract_face")


# Whole clips


@needs_weights
def test_eyes_rest_in_place_under_shift_scale_and_roll(tmp_path):
    steps = np.linspace(-1, 1, 31)
    cameras = [camera((40 * t, -25 * t), 1 + 0.35 * t, 18 * t) for t in steps]
    save_media(tmp_path / "in" / "moving face.mp4", shoot(cameras))
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    film = Film(str(tmp_path / "in" / "moving face.mp4"))
    path, _ = follow_face(frames_of(film, 25), FaceOptions())
    landed = np.stack(
        [
            moved(moved(PORTRAIT_EYES, shot), similarity(points, template(256)))
            for shot, points in zip(cameras, path, strict=True)
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
def test_bad_files_are_reported_and_the_others_unharmed(tmp_path):
    folder = tmp_path / "in"
    face = shoot([camera((0, 0), 1, 0)])
    for name in ("one frame.mp4", *HARD_NAMES):
        save_media(folder / name, face)
    save_media(folder / "landscape.mp4", pictures(5))
    save_song_with_cover(folder / "song.mp4")
    bad = save_bad_files(folder)
    assert extract(folder, tmp_path / "out", "--img_size", "64") == 1
    reasons = failures(tmp_path / "out", "extract_face")
    assert set(reasons) == bad | {"landscape.mp4", "song.mp4"}
    assert reasons["landscape.mp4"].startswith("no face in 5 of 5 frames")
    assert reasons["song.mp4"] == "has no picture"
    assert reasons["empty.mp4"] == "is an empty file"
    assert "no video or sound file" in reasons["text.mp4"]
    made = {path.name for path in (tmp_path / "out").glob("*_aligned")}
    assert made == {f"{Path(name).stem}_aligned" for name in ("one frame.mp4", *HARD_NAMES)}
    crop = cv2.imread(str(tmp_path / "out" / "one frame_aligned" / "frame_det_00_000001.jpg"))
    assert crop.shape == (64, 64, 3)
    assert not list((tmp_path / "out").rglob(PART + "*"))


def save_song_with_cover(path: Path) -> None:
    sound, cover = path.with_name(".sound.m4a"), path.with_name(".cover.jpg")
    save_media(sound, sound=np.zeros((1, 9000)))
    cv2.imwrite(str(cover), portrait())
    command = [ffmpeg_program(), "-v", "error", "-i", sound, "-i", cover, "-map", "0", "-map", "1"]
    command += ["-c", "copy", "-disposition:v:0", "attached_pic", path]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


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
        assert extract(tmp_path / "in", out) == STOPPED
    assert {path.name for path in out.iterdir()} == {"a_aligned", "extract_face.csv"}
    assert len(list((out / "a_aligned").iterdir())) == 3
    before = (out / "a_aligned").stat().st_mtime_ns
    assert extract(tmp_path / "in", out) == 0
    assert len(list(out.iterdir())) == 4
    assert (out / "a_aligned").stat().st_mtime_ns == before


# OpenFace


def test_openface_is_run_as_the_original_did_and_what_it_cannot_do_is_reported(
    tmp_path, monkeypatch
):
    for name, word in {"sub/a": b"", "b": b"broken", "c": b"faceless"}.items():
        with open(save_media(tmp_path / "in" / f"{name}.mp4", pictures(3)), "ab") as file:
            file.write(word)
    (tmp_path / "in/d.mp4").touch()
    save_film(tmp_path / "in/e.mp4", np.array([0, 0.1, 0.2, 0.6]))
    flags = [*fake_openface(tmp_path, "128"), "--img_size", "128"]
    assert extract(tmp_path / "in", tmp_path / "out", *flags) == 1
    assert failures(tmp_path / "out", "extract_face") == {
        "b.mp4": "FeatureExtraction failed with exit code 1: could not open the video",
        "c.mp4": "OpenFace wrote no aligned face",
        "d.mp4": "is an empty file",
        "e.mp4": "has a variable frame rate, for which --backend mtcnn is made",
    }
    row = summary(tmp_path / "out")["sub/a.mp4"]
    assert (row["frames"], row["rate_kind"]) == ("12", "constant")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sub", "extract_face.csv"}
    assert len(list((tmp_path / "out/sub/a_aligned").iterdir())) == 12
    (tmp_path / "FeatureExtraction").write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(extract_face, "OPENFACE_SECONDS", 0.2)
    assert extract(tmp_path / "in/sub/a.mp4", tmp_path / "slow", *flags) == 1
    assert "took longer than 0.2 s" in failures(tmp_path / "slow", "extract_face")["a.mp4"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--img_size 8", "--img_size must be >= 16, got 8"),
        ("", "the package mtcnn, which the weights need, is missing.*pip install"),
        ("--backend openface --openface no-such", "--openface 'no-such' is no program that can"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(
    monkeypatch, caplog, tmp_path, flags, message
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert extract(tmp_path, tmp_path / "out", *flags.split()) == 2
    assert re.search(message, caplog.text) and not (tmp_path / "out").exists()
