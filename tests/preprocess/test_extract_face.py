import csv
import errno
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hicmae.data.video import FrameFolder
from hicmae.faces import detector
from hicmae.faces.alignment import align, similarity, template
from hicmae.faces.detector import Detector, Face, check_weights, squared
from hicmae.faces.tracking import fill_gaps, main_face, smooth
from preprocess.face_and_audio import batch, extract_face, staging
from preprocess.face_and_audio.extract_face import FaceOptions, follow_face
from preprocess.face_and_audio.inputs import ClipError
from tests.preprocess.media_files import (
    PORTRAIT_EYES,
    ffmpeg_program,
    pictures,
    portrait,
    save_media,
)

WEIGHTS = all(importlib.util.find_spec(name) for name in ("mtcnn", "joblib", "lz4"))
needs_weights = pytest.mark.skipif(
    not WEIGHTS, reason="needs the weights of the extra 'faces': pip install mtcnn==1.0.0"
)
SIZE = 360, 300  # width, height of the test videos


def camera(shift: tuple[float, float], scale: float, roll: float) -> np.ndarray:
    """Return the (2, 3) matrix that takes the portrait to a frame; its eyes' middle to the centre,
    then shifted, with `scale` 1 for an inter-ocular distance of 60 pixels and `roll` in degrees."""
    middle = PORTRAIT_EYES.mean(0)
    matrix = cv2.getRotationMatrix2D(middle.tolist(), roll, scale * 60 / 84)
    matrix[:, 2] += np.array(SIZE) / 2 + shift - middle
    return matrix


def shoot(matrices: list[np.ndarray]) -> list[np.ndarray]:
    image = portrait()
    return [cv2.warpAffine(image, matrix, SIZE, flags=cv2.INTER_AREA) for matrix in matrices]


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def extract(source: Path, output: Path, *flags: str) -> int:
    names = ["--input", str(source), "--output", str(output)]
    return extract_face.main([*names, "--num_workers", "1", *flags])


def summary(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "extract_face.csv", newline="", encoding="utf-8") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def face_at(x: float, y: float, size: float, score: float = 1.0) -> Face:
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
    points = np.array([[-1, -1], [1, -1], [0, 0], [-1, 1], [1, 1]]) * size / 5 + [x, y]
    return Face(box, points, score)


# Framing


def test_the_template_is_openfaces_frame():
    """Of 256 pixels, by OpenFace's mean shape at 1.6 pixels a millimetre around the middle."""
    expected = [[75, 67], [181, 66], [130, 115], [82, 174], [174, 173]]
    assert np.abs(template(256) - expected).max() < 0.6
    assert np.allclose(template(128), template(256) / 2)


def test_similarity_finds_turn_scale_and_shift():
    points = np.random.default_rng(0).normal(size=(5, 2)) * 20
    angle, scale, shift = 0.4, 1.7, np.array([3.0, -8.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(points, points @ turn.T + shift)
    assert np.allclose(matrix, np.column_stack([turn, shift]))


def test_similarity_never_mirrors():
    points = template(64)
    matrix = similarity(points, points * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("scale", [0.2, 0.45, 1.0, 2.3])
def test_align_puts_points_on_the_template_at_any_size(scale):
    """A dot at each point of a large or small face ends up at the template's points."""
    points = template(256) * scale / 0.9 + [40, 20]
    image = np.zeros((int(340 * scale) + 60, int(330 * scale) + 90, 3), np.uint8)
    radius = max(round(6 * scale), 1)
    for point in points:
        cv2.circle(image, np.rint(point).astype(int).tolist(), radius, (255, 255, 255), -1)
    crop = align(image, points, 256)
    for x, y in template(256):
        left, top = int(x) - 15, int(y) - 15
        part = crop[top : top + 31, left : left + 31, 0].astype(float)
        rows, columns = np.mgrid[top : top + 31, left : left + 31]
        found = np.array([(columns * part).sum(), (rows * part).sum()]) / part.sum()
        assert np.abs(found - [x, y]).max() < 0.6 + 0.6 / scale


def test_align_is_black_outside_the_image():
    crop = align(np.full((20, 20, 3), 200, np.uint8), template(64) + 500, 64)
    assert crop.max() == 0


# Tracking


def test_the_main_face_is_large_and_near_the_middle_and_kept():
    large, small = face_at(100, 80, 60), face_at(20, 20, 30)
    faces = [[small, large]] * 5 + [[large._replace(score=0.8), small]] * 5
    assert all(face.size == 60 for face in main_face(faces, (200, 150)))


def test_a_face_in_front_for_a_moment_does_not_take_over():
    main, passing = face_at(100, 80, 50), face_at(160, 80, 90)
    faces = [[main]] * 10 + [[passing, main]] * 3 + [[main]] * 10
    assert all(face is main for face in main_face(faces, (200, 150)))


def test_another_face_fills_in_only_where_the_main_one_is_gone():
    main, other = face_at(100, 80, 60), face_at(30, 80, 40)
    chosen = main_face([[main, other]] * 6 + [[other]] * 2 + [[]] + [[main]] * 3, (200, 150))
    assert [None if face is None else face.size for face in chosen] == (
        [60] * 6 + [40] * 2 + [None] + [60] * 3
    )


def test_gaps_take_the_points_of_the_nearest_frame():
    first, last = face_at(10, 10, 5), face_at(90, 90, 5)
    points, longest = fill_gaps([None, first, None, None, None, last, None])
    assert points[:, 2, 0].tolist() == [10, 10, 10, 10, 90, 90, 90]
    assert longest == 3
    assert fill_gaps([first])[1] == 0
    with pytest.raises(ValueError, match="expected a face in at least one frame, got none"):
        fill_gaps([None, None])


def test_smoothing_takes_out_jitter_but_not_motion():
    rng = np.random.default_rng(0)
    path = np.stack([face_at(50 + k, 60, 40).points for k in range(60)])
    noisy = path + rng.normal(size=path.shape)
    calm = smooth(noisy, 2.0)
    inner = slice(6, -6)
    assert np.abs(calm - path)[inner].std() < 0.5 * np.abs(noisy - path)[inner].std()
    assert np.abs((calm - path)[inner].mean()) < 0.1
    assert np.allclose(smooth(path, 2.0), path, atol=1e-6)  # steady motion is kept, ends too
    assert np.array_equal(smooth(noisy, 0), noisy)
    assert smooth(noisy[:1], 2.0).shape == (1, 5, 2)


def test_smoothing_does_not_reach_across_a_cut():
    left = np.repeat(face_at(50, 60, 40).points[None], 10, 0)
    right = np.repeat(face_at(150, 60, 40).points[None], 10, 0)
    assert np.allclose(smooth(np.concatenate([left, right]), 3.0)[9], left[0])


def test_boxes_become_squares_around_their_centre():
    assert squared(np.array([[10.0, 20.0, 30.0, 60.0]])).tolist() == [[0, 20, 40, 60]]


# Detection


@needs_weights
def test_the_eyes_of_a_photograph_are_found():
    (face,) = Detector().detect([portrait()])[0]
    assert np.abs(face.points[:2] - PORTRAIT_EYES).max() < 0.06 * 84  # of the inter-ocular distance
    assert (face.box[:2] < PORTRAIT_EYES.min(0)).all() and (face.box[2:] > 280).all()
    assert face.score > 0.9


@needs_weights
def test_images_are_searched_alike_alone_and_together():
    frames = shoot([camera((0, 0), 1.0, 0), camera((30, -20), 0.8, 10)])
    frames.append(np.zeros_like(frames[0]))
    together = Detector().detect(frames)
    assert [len(found) for found in together] == [1, 1, 0]
    for frame, found in zip(frames[:2], together, strict=False):
        (alone,) = Detector().detect([frame])[0]
        assert np.allclose(alone.points, found[0].points, atol=0.05)


@needs_weights
@pytest.mark.parametrize("size", [(8, 8), (300, 10), (13, 13)])
def test_an_image_too_small_for_a_face_has_none(size):
    assert Detector().detect([np.full((*size, 3), 99, np.uint8)]) == [[]]


def test_missing_weights_are_said_with_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        extract(tmp_path, tmp_path / "out")
    message = capsys.readouterr().err
    assert "the package mtcnn, which holds the weights, is missing" in message
    assert "pip install" in message and "--backend openface" in message


@needs_weights
def test_weights_that_are_not_the_known_ones_are_never_loaded(tmp_path, monkeypatch):
    source = Path(importlib.util.find_spec("mtcnn").submodule_search_locations[0])
    shutil.copytree(source / "assets", tmp_path / "mtcnn" / "assets")
    weights = tmp_path / "mtcnn" / "assets" / "weights" / "rnet.lz4"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    spec = importlib.util.spec_from_loader("mtcnn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "mtcnn")]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "mtcnn" else find_spec(name)
    )
    with pytest.raises(ValueError, match=r"rnet.lz4' have SHA-256 .*, expected cb00e6460f3c"):
        check_weights()
    detector.load_nets.cache_clear()
    with pytest.raises(ValueError, match="have SHA-256"):
        detector.load_nets()
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"rnet.lz4' do not exist; install"):
        check_weights()


# Whole clips


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
    assert reasons["sound.mp4"] == "has no picture"
    assert reasons["empty.mp4"] == "is an empty file"
    assert reasons["text.mp4"].startswith("cannot be decoded")
    made = {path.name for path in (tmp_path / "out").rglob("*_aligned")}
    assert made == {"one frame_aligned"} | {name[:-4] + "_aligned" for name in names}
    crop = cv2.imread(str(tmp_path / "out" / "one frame_aligned" / "frame_det_00_000001.jpg"))
    assert crop.shape == (64, 64, 3)
    assert not list((tmp_path / "out").rglob(staging.PART + "*"))


@needs_weights
def test_a_second_run_does_only_what_is_missing(tmp_path, caplog):
    for name in "ab":
        save_media(tmp_path / "in" / f"{name}.mp4", shoot([camera((0, 0), 1, 0)]))
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    shutil.rmtree(tmp_path / "out" / "a_aligned")
    kept = tmp_path / "out" / "b_aligned" / "frame_det_00_000001.jpg"
    before = kept.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert extract(tmp_path / "in", tmp_path / "out") == 0
    assert "1 clips done" in caplog.text and "1 done before" in caplog.text
    assert kept.stat().st_mtime_ns == before
    assert summary(tmp_path / "out")["b.mp4"]["frames"] == "1"
    assert extract(tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    assert kept.stat().st_mtime_ns > before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("a_aligned", "b_aligned", "extract_face.csv")
    }


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
    assert extract(tmp_path / "in", out) == 0
    assert len(list(out.glob("*_aligned"))) == 3


def test_the_cover_of_a_song_is_not_a_video(tmp_path):
    song = save_media(tmp_path / "song.m4a", sound=np.zeros((1, 9000)))
    cv2.imwrite(str(tmp_path / "cover.jpg"), portrait())
    command = [ffmpeg_program(), "-v", "error", "-i", song, "-i", tmp_path / "cover.jpg", "-map"]
    command += ["0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    subprocess.run([*command, tmp_path / "both.m4a"], check=True, stdin=subprocess.DEVNULL)
    with pytest.raises(ClipError, match="has no picture"):
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
        ({"img_size": 8}, "--img_size must be at least 16, got 8"),
        ({"detect_every": 0}, "--detect_every must be at least 1, got 0"),
        ({"smoothing": -1.0}, "--smoothing must be at least 0, got -1"),
        ({"max_missing": 1.0}, r"--max_missing must be in \[0, 1\), got 1"),
        ({"min_face": 0.0}, "--min_face must be between 0 and 1, got 0"),
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
    assert rows["d.mp4"]["reason"] == "is an empty file"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a_aligned", "extract_face.csv"}


def test_a_missing_openface_is_said_before_anything_is_done(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        extract(tmp_path, tmp_path / "out", "--backend", "openface", "--openface", "no-such")
    assert "--openface 'no-such' is no program that can be run" in capsys.readouterr().err


@needs_weights
def test_the_script_runs_from_any_folder_in_other_processes(tmp_path):
    save_media(tmp_path / "in" / "a.mp4", shoot([camera((0, 0), 1, 0)]))
    command = [sys.executable, extract_face.__file__, "--input", "in", "--output", "out"]
    done = subprocess.run(
        [*command, "--num_workers", "2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*_aligned/*.jpg"))) == 1


def test_a_video_without_frames_is_a_clip_error(tmp_path, monkeypatch):
    monkeypatch.setattr(extract_face, "read_frames", lambda path: iter(()))
    monkeypatch.setattr(extract_face, "_detector", lambda min_face: None)
    with pytest.raises(ClipError, match="holds no frame"):
        follow_face("a.mp4", FaceOptions())
