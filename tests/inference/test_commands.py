import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hicmae.data.clip_list import Clip, write_list
from hicmae.data.media import read_sound
from hicmae.inference import cli
from hicmae.inference.clips import Window
from hicmae.inference.pictures import Annotator, box_at, draw_timeline, write_overlay
from hicmae.inference.recognizer import Prediction
from hicmae.io import UnreadableClip
from preprocess import pack_clips
from tests.conftest import files_of_at_most
from tests.preprocess.media_files import chirp, ffmpeg_program, pictures, save_media
from tests.small_recognizers import MAD, NAMES, said, speech
from tests.small_runs import rows


def streams(path: Path) -> dict[str, tuple[str, float]]:
    """Return codec and seconds of each stream, by kind."""
    with av.open(str(path)) as container:
        return {
            s.type: (s.codec_context.codec.canonical_name, float(s.duration * s.time_base))
            for s in container.streams
        }


def made_up(file: str, **more) -> Prediction:
    return said(file, (0.2, 0.5, 0.3), (), (0.6, 0.3, 0.1), **more)


# hicmae-predict


def test_predict_writes_everything_and_goes_on_after_failures(
    models, tmp_path, video, monkeypatch, capsys
):
    (tmp_path / "film").mkdir()
    Path(video).rename(tmp_path / "film" / "a.mp4")
    (tmp_path / "film" / "b.mp4").write_text("no film")
    out = tmp_path / "out"
    flags = ["--checkpoint", str(models / "av.pth"), "--faces", "cut", "--device", "cpu"]
    flags += ["--csv", f"{out}/a.csv", "--windows_csv", f"{out}/w.csv", "--json", f"{out}/a.json"]
    flags += ["--plot", f"{out}/plot.png", "--overlay", f"{out}/over.mp4"]
    words = ["predict", str(tmp_path / "film"), str(tmp_path / "lost.mp4"), *flags]
    monkeypatch.setattr(sys, "argv", ["python -m hicmae.inference", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("hicmae.inference", run_name="__main__")
    assert end.value.code == 1
    answered, broken, lost = rows(out / "a.csv")
    assert [row["status"] for row in (answered, broken, lost)] == ["done", "failed", "failed"]
    assert "is no video or sound file" in broken["reason"] and "does not exist" in lost["reason"]
    scores = {name: float(answered[name]) for name in NAMES}
    assert answered["label"] == max(scores, key=scores.get)
    windows = rows(out / "w.csv")
    assert len(windows) == 5 and float(windows[1]["start"]) == pytest.approx(0.64)
    stored = json.loads((out / "a.json").read_text())
    assert stored[0]["probabilities"] == pytest.approx(scores, abs=1e-6)
    assert stored[1]["status"] == "failed" and len(stored[0]["windows"]) == 5
    assert Image.open(out / "plot-a.png").size[0] > 1000
    assert streams(out / "over-a.mp4")["video"] == ("h264", pytest.approx(4.0, abs=0.05))
    written = {path.name for path in out.iterdir()}
    assert written == {"a.csv", "w.csv", "a.json", "plot-a.png", "over-a.mp4"}
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("file") and "a.mp4" in table[1] and answered["label"] in table[1]
    assert "does not exist" in table[3]


def test_mistakes_in_the_command_are_named(models, tmp_path, video, caplog):
    (tmp_path / "none").mkdir()
    for words, message in (
        ([str(tmp_path / "none")], "holds no video, sound file or face frame"),
        ([video, video, "--audio", "x.wav"], "--audio goes with one v"),
        ([video, "--overlay", "a.gif"], "'a.gif' must end in .mp4 or .mov or .mkv"),
    ):
        assert cli.predict([*words, "--checkpoint", str(models / "av.pth")]) == 2
        assert message in caplog.text


# The annotated copy


def test_the_copy_keeps_sound_and_step(tmp_path):
    """A flash and a click at 1 s are still at 1 s, and every frame is there."""
    frames = [np.full((90, 161, 3), 255 if k == 25 else 60, np.uint8) for k in range(50)]
    sound = 0.01 * np.random.default_rng(0).normal(size=(2, 96000))
    sound[:, 48000:48480] = 0.9
    film = str(save_media(tmp_path / "a.mp4", [f[:, :160] for f in frames], sound, 48000))
    boxes = np.array([[t, 100, 10, 140, 60] for t in np.arange(0, 2, 0.16)], float)
    out = write_overlay(film, [made_up(film, boxes=boxes)], tmp_path / "out.mp4")
    assert streams(out)["audio"][0] == "aac"
    heard = np.abs(read_sound(str(out), None)[:])
    assert heard.argmax() == pytest.approx(16000, abs=200)
    with av.open(str(out)) as container:
        shown = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert len(shown) == 50
    flash = max(shown, key=lambda item: item[1][:5].mean())
    assert flash[0] == pytest.approx(1.0, abs=0.001)
    edge = shown[10][1][40, 96:104].astype(int)
    assert np.abs(edge - 60).max() > 60  # the box is drawn at its left side


def test_other_sound_becomes_aac_and_a_mute_video_stays_mute(tmp_path):
    sound = chirp(1.0, 44100, 2)
    film = str(save_media(tmp_path / "a.mkv", pictures(25), sound, 44100, codec="flac"))
    out = write_overlay(film, [made_up(film)], tmp_path / "b.mp4")
    assert streams(out)["audio"] == ("aac", pytest.approx(1.0, abs=0.05))
    mute = str(save_media(tmp_path / "c.mp4", pictures(25)))
    assert set(streams(write_overlay(mute, [made_up(mute)], tmp_path / "d.mp4"))) == {"video"}


def test_a_telephones_rotated_video_is_annotated_upright(tmp_path):
    lying = [np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 1, 3))] * 3
    source, turned = save_media(tmp_path / "lying.mp4", lying), tmp_path / "turned.mp4"
    command = [ffmpeg_program(), "-v", "error", "-display_rotation", "-90", "-i", source]
    subprocess.run([*command, "-c", "copy", turned], check=True, stdin=subprocess.DEVNULL)
    out = write_overlay(turned, [made_up(str(turned))], tmp_path / "out.mp4")
    with av.open(str(out)) as container:
        written = next(container.decode(video=0))
    assert written.rotation == 0
    frame = written.to_ndarray(format="rgb24")
    assert frame.shape == (64, 48, 3)
    assert frame[-8:].mean() > frame[:8].mean() + 100  # left has become top


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path, video):
    sound = save_media(tmp_path / "sound.m4a", sound=speech(1.0)[None])
    data = Path(video).read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    for source, message in (
        (sound, "has no picture"),
        (tmp_path, "is a folder of frames"),
        (tmp_path / "half.mp4", "half.mp4' is no video"),
    ):
        with pytest.raises(UnreadableClip, match=message):
            write_overlay(source, [made_up("a")], tmp_path / "out" / "a.mp4")
    assert not list((tmp_path / "out").iterdir())


def test_a_copy_that_cannot_be_written_is_not_the_films_fault(tmp_path, video):
    with files_of_at_most(8000), pytest.raises(OSError, match="cannot be written") as error:
        write_overlay(video, [made_up(video)], tmp_path / "out" / "a.mp4")
    assert error.value.filename == str(tmp_path / "out" / "a.mp4")
    assert not list((tmp_path / "out").iterdir())


def test_a_name_too_long_for_a_picture_ends_no_folder_of_films(models, tmp_path, video, caplog):
    films = [str(shutil.copy(video, tmp_path / f"{name}.mp4")) for name in ("a" * 250, "b")]
    flags = ["--checkpoint", str(models / "a.pth"), "--device", "cpu", "--quiet"]
    flags += ["--plot", str(tmp_path / "p.png"), "--csv", str(tmp_path / "p.csv")]
    assert cli.predict([*films, *flags]) == 1
    assert (tmp_path / "p-b.png").is_file() and "File name too long" in caplog.text
    assert [row["file"] for row in rows(tmp_path / "p.csv")] == films


def test_drawing_follows_scores_and_face_and_stays_inside():
    inside, beyond = (-30, -30, 40, 40), (100, 80, 900, 900)
    boxes = np.array([[0.2, *inside], [0.8, -20, -20, 50, 50], [4.5, *beyond], [5, *beyond]])
    windows = [Window(0, 1, made_up("a").windows[0].scores), Window(4, 5, said("a", MAD).scores)]
    person, grey = made_up("a", windows=windows, boxes=boxes), np.full((120, 160, 3), 200, np.uint8)
    first, middle, last = (Annotator(person, (160, 120)).draw(grey, t) for t in (0.5, 2.5, 5))
    orange, green = [230, 159, 0], [0, 158, 115]  # of the second and the last class
    unsure = replace(person, min_confidence=0.9)
    assert (Annotator(unsure, (160, 120)).draw(grey, 0.5) != first).any()  # "unsure 50 %"
    assert (first[:44, :44] == orange).all(-1).any() and (first[60:] == 200).all()
    assert (middle == 200).all() and (last[60:] == green).all(-1).any()
    assert box_at(boxes, 0.5).tolist() == [-25, -25, 45, 45] and box_at(boxes, 2.5) is None
    unseen = Annotator(made_up("a"), (160, 120), row=1).draw(grey, 0.5)  # the line above the last
    changed = np.flatnonzero((unseen != 200).any((1, 2)))
    assert (unseen == orange).all(-1).any() and 60 < changed[0] < changed[-1] < 119


# The picture over time


@pytest.mark.parametrize("count", [3, 11])
def test_timelines_show_gaps_and_any_number_of_classes(tmp_path, count):
    names = tuple(f"class {k}" for k in range(count))
    rows = np.random.default_rng(0).dirichlet(np.ones(count), 6).tolist()
    person = said("a.mp4", *rows[:2], (), *rows[2:], names=names)
    path = draw_timeline([person, person], tmp_path / "t.png")
    width, height = Image.open(path).size
    assert width > 1200 and height > 600
    with pytest.raises(ValueError, match="no clip was answered, so there is no timeline"):
        draw_timeline([], tmp_path / "u.png")


# hicmae-extract


def extract(checkpoint: Path, path: Path, output: Path, *flags: str) -> int:
    flags += ("--checkpoint", str(checkpoint), "--device", "cpu", "--quiet")
    return cli.extract(["--data_path", str(path), "--output", str(output), *flags])


def test_extract_writes_features_of_a_list(models, tmp_path, clip, caplog):
    folder, wav = clip
    clips = [Clip(folder, wav, 2), Clip(str(tmp_path / "lost"), wav, 0), Clip(folder, wav, 1)]
    write_list(tmp_path / "list.csv", clips)
    assert extract(models / "av.pth", tmp_path / "list.csv", tmp_path / "f.npz") == 1
    assert "1 of 3 clips failed, see" in caplog.text
    assert rows(tmp_path / "f.npz.failed.csv")[0]["file"] == str(tmp_path / "lost")
    stored = np.load(tmp_path / "f.npz", allow_pickle=False)
    assert stored["clip"].tolist() == [folder, folder] and stored["label"].tolist() == [2, 1]
    assert stored["fused"].shape == (2, 512) and stored["audio_layers"].shape == (2, 3, 128)
    assert np.array_equal(stored["fused"][0], stored["fused"][1])
    of_windows = models / "av.pth", Path(folder), tmp_path / "w.npz", "--per_window"
    of_windows += ("--window", "0.8", "--overlap", "0", "--modality", "v")
    assert extract(*of_windows) == 2  # a model of both streams
    assert extract(*of_windows, "--missing_modality", "drop") == 0
    windows = np.load(tmp_path / "w.npz")
    assert windows["start"].tolist() == pytest.approx([0, 0.8, 1.6]) and "audio" not in windows


def test_extract_reads_lists_of_pretraining_and_folders_of_lists_and_shards(
    models, tmp_path, clip, video
):
    films = tmp_path / "films.csv"
    films.write_text(f"{Path(video).name} 0\n")
    flags = ("--faces", "cut", "--data_root", str(tmp_path))
    assert extract(models / "pretrained.pth", films, tmp_path / "films.npz", *flags) == 0
    assert np.load(tmp_path / "films.npz")["video_layers"].shape == (1, 2, 128)
    write_list(tmp_path / "fold" / "test.csv", [Clip(*clip, 2)])
    shards = [str(tmp_path / "fold/test.csv"), "--output_dir", str(tmp_path / "shards")]
    assert pack_clips.main([*shards, "--task", "classification", "--num_workers", "1"]) == 0
    for name in ("fold", "shards"):
        assert extract(models / "av.pth", tmp_path / name, tmp_path / f"{name}.npz") == 0
    found = [dict(np.load(tmp_path / f"{name}.npz")) for name in ("fold", "shards")]
    assert found[0]["label"].tolist() == [2]
    np.testing.assert_equal(*found)


def test_labels_are_classes_values_or_texts(models, tmp_path, clip):
    path = tmp_path / "list.csv"
    for first, second, expected in (
        ("3", "-1", [3, -1]),
        ("2.5", "1", [[2.5], [1]]),
        ("1 2", "glad", ["1 2", "glad"]),
    ):
        path.write_text("".join(f"{clip[0]} {clip[1]} {label}\n" for label in (first, second)))
        assert extract(models / "av.pth", path, tmp_path / "f.npz") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "f.npz")["label"], expected)


def test_mistakes_in_an_extraction_are_named(models, tmp_path, caplog):
    for content, output, message in (
        (None, "f.npz", "list.csv' does not exist"),
        ("a.mp4 0\n", "f.txt", "f.txt' must end in .npz"),
        ('"open 0\n', "f.npz", "list.csv:1: expected '<video"),
        ("lost.mp4 0\n", "f.npz", "could be read; the last: 'lost.mp4' does not exist"),
    ):
        if content is not None:
            (tmp_path / "list.csv").write_text(content)
        assert extract(models / "av.pth", tmp_path / "list.csv", tmp_path / output) == 2
        assert message in caplog.text and not (tmp_path / output).exists()
