"""Wavs of clips, and what both tools do with many clips."""

import errno
import functools
import logging
import os
import shutil
import subprocess
import sys
import wave
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hicmae.io import PART
from preprocess.command_line import STOPPED
from preprocess.face_and_audio import batch, extract_audio
from preprocess.face_and_audio.batch import Job
from tests.preprocess import media_files, trees
from tests.preprocess.media_files import (
    HARD_NAMES,
    chirp,
    failures,
    pictures,
    save_bad_files,
    save_media,
)

RATE = 16000
extract = functools.partial(media_files.run, extract_audio)
summary = functools.partial(media_files.summary, tool="extract_audio")


def read(path: Path) -> np.ndarray:
    with open(path, "rb") as file, soundfile.SoundFile(file) as wav:
        assert (wav.samplerate, wav.channels, wav.subtype) == (RATE, 1, "PCM_16")
        return wav.read(dtype="float32")


def delay_between(first: np.ndarray, second: np.ndarray, most: int = 64) -> int:
    """Return by how many samples `second` comes later, the best of -most .. most."""
    length = min(len(first), len(second)) - 2 * most
    core = first[most : most + length]
    scores = [core @ second[most + k : most + k + length] for k in range(-most, most + 1)]
    return int(np.argmax(scores)) - most


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for index, name in enumerate(HARD_NAMES):
        save_media(folder / "sub dir" / name, pictures(8 + index), chirp(0.3, RATE))
    return folder


@pytest.mark.parametrize(
    "name, rate, channels, codec",
    [
        ("stereo.mp4", 44100, 2, "aac"),
        ("voxceleb.m4a", 16000, 1, "aac"),
        ("song.mp3", 44100, 2, "libmp3lame"),
        ("stereo.wav", 44100, 2, "pcm_s16le"),
        ("eight_bit.wav", 22050, 1, "pcm_u8"),
        ("deep.wav", 48000, 2, "pcm_s24le"),
        ("surround.mkv", 48000, 6, "pcm_s16le"),
    ],
)
def test_any_sound_becomes_the_mono_wav_without_delay(tmp_path, name, rate, channels, codec):
    sound = np.tile(chirp(1.5, rate), (channels, 1))
    save_media(tmp_path / "in" / name, sound=sound, rate=rate, codec=codec)
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    wav = read((tmp_path / "out" / name).with_suffix(".wav"))
    assert abs(len(wav) - 1.5 * RATE) <= 1152 * RATE / rate + 1  # an encoder may pad a block
    expected = chirp(1.5, RATE)[0]
    assert abs(delay_between(expected, wav)) <= 1
    if channels < 6 and codec != "libmp3lame":  # surround is mixed otherwise, mp3 loses more
        core = slice(2000, 20000)
        assert np.abs(wav[core] - expected[core]).max() < 0.02
    row = summary(tmp_path / "out")[name]
    assert (row["rate"], row["channels"]) == (str(rate), str(channels))
    assert float(row["duration"]) == pytest.approx(len(wav) / RATE, abs=0.01)


def test_bad_files_are_reported_and_the_others_unharmed(tmp_path, caplog):
    folder = tmp_path / "in"
    save_media(folder / "good.mp4", pictures(5), chirp(0.4, RATE))
    save_media(folder / "silent film.mp4", pictures(5))
    save_media(folder / "one frame.mp4", pictures(1), chirp(0.04, RATE))
    for name in ("notes.txt", "list.TXT", "README", ".hidden"):
        (folder / name).touch()
    soundfile.write(folder / "no sample.wav", np.zeros(0), RATE, subtype="PCM_16")
    bad = save_bad_files(folder)
    with caplog.at_level(logging.INFO):
        assert extract(folder, tmp_path / "out") == 1
    reasons = failures(tmp_path / "out", "extract_audio")
    assert set(reasons) == bad | {"silent film.mp4", "no sample.wav"}
    assert reasons["silent film.mp4"] == "has no sound"
    assert reasons["empty.mp4"] == "is an empty file"
    assert "no video or sound file" in reasons["text.mp4"]
    assert reasons["gone.mp4"] == "does not exist"
    assert "'silent film.mp4': has no sound" in caplog.text
    assert "passed over: 2 .txt, 1 without an ending" in caplog.text
    assert "2 clips done" in caplog.text and "7 failed" in caplog.text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"good.wav", "one frame.wav", "extract_audio.csv"}
    assert len(read(tmp_path / "out" / "one frame.wav")) > 0.03 * RATE


# Which clips


def test_every_kind_of_film_is_found(tmp_path):
    for suffix in ("m2ts", "mts", "mxf", "MKV"):
        codec = "pcm_s16le" if suffix == "mxf" else "aac"
        path = tmp_path / "in" / f"{suffix}.{suffix}"
        save_media(path, pictures(9), chirp(0.4, 48000), 48000, codec)
    for suffix in (".vob", ".ogv"):
        shutil.copy(path, tmp_path / "in" / f"x{suffix}{suffix}")
    assert extract(tmp_path / "in", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.wav"))) == 6


def test_a_second_run_does_only_what_is_missing_whatever_the_names(clips, tmp_path, caplog):
    out = tmp_path / "out"
    assert extract(clips, out) == 0
    wavs = sorted(out.rglob("*.wav"))
    assert {path.name for path in wavs} == {Path(name).stem + ".wav" for name in HARD_NAMES}
    assert set(summary(out)) == {f"sub dir/{name}" for name in HARD_NAMES}
    wavs[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in wavs[1:]}
    with caplog.at_level(logging.INFO):
        assert extract(clips, out) == 0
    assert "1 clips done" in caplog.text and "5 done before" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in wavs[1:]} == before
    # What the first run knew about its clips stays in the table.
    assert all(float(row["duration"]) > 0.2 for row in summary(out).values())
    assert extract(clips, out, "--overwrite") == 0
    assert all(path.stat().st_mtime_ns > before[path] for path in wavs[1:])


def test_wavs_may_stand_beside_the_clips_but_two_clips_never_become_one(tmp_path, caplog):
    save_media(tmp_path / "id1" / "a.m4a", sound=chirp(0.3, RATE))
    for _ in range(2):
        assert extract(tmp_path, tmp_path) == 0
    assert set(summary(tmp_path)) == {"id1/a.m4a"}  # the wav is not taken for input
    save_media(tmp_path / "id1" / "a.mp4", sound=chirp(0.6, RATE))
    assert extract(tmp_path, tmp_path, "--overwrite") == 1
    assert "'id1/a.mp4': 'id1/a.m4a' becomes the same" in caplog.text
    assert len(read(tmp_path / "id1" / "a.wav")) < 0.5 * RATE


def test_one_file_may_be_the_input_from_any_folder_and_nothing_to_do_is_said(tmp_path, caplog):
    clip = save_media(tmp_path / HARD_NAMES[0], sound=chirp(0.2, RATE))
    command = [sys.executable, extract_audio.__file__, "--output_dir", "out", "--input", str(clip)]
    subprocess.run([*command, "--num_workers", "1"], cwd=tmp_path, check=True)
    assert [path.stem for path in (tmp_path / "out").glob("*.wav")] == [clip.stem]
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("nowhere", "nowhere' does not exist"),
        ("empty", "holds no file of these kinds: .3gp .aac"),
    ):
        assert extract(tmp_path / name, tmp_path / "out") == 2 and said in caplog.text


# Runs that end early


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left"), "the disk is full: 4 clips are left"),
        (KeyboardInterrupt(), "interrupted: 4 clips are left"),
    ],
)
def test_a_stopped_run_leaves_nothing_half_written_and_goes_on_later(
    clips, tmp_path, monkeypatch, caplog, error, message
):
    out, write = tmp_path / "out", wave.Wave_write.writeframesraw

    def fail_in_the_third(self, data):
        write(self, data)
        if len(list(out.rglob("[!.]*.wav"))) == 2:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(wave.Wave_write, "writeframesraw", fail_in_the_third)
        assert extract(clips, out) == STOPPED
    assert message in caplog.text
    assert [row["status"] for row in summary(out).values()] == ["done", "done"]
    assert len([path for path in out.rglob("*") if path.is_file()]) == 3
    assert not list(out.rglob(f"{PART}*"))
    assert extract(clips, out) == 0
    assert len(list(out.rglob("*.wav"))) == len(HARD_NAMES)


def test_the_summary_is_written_now_and_then_for_runs_that_are_killed(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "SUMMARY_EVERY", -1)
    seen, convert = [], extract_audio.convert

    def look(*arguments, **options):
        seen.append(len(summary(tmp_path / "out")))
        return convert(*arguments, **options)

    monkeypatch.setattr(extract_audio, "convert", look)
    extract(clips, tmp_path / "out")
    assert seen == list(range(len(HARD_NAMES)))


def test_what_killed_runs_left_is_swept_up_once_it_is_old(tmp_path):
    save_media(tmp_path / "a.mp4", sound=chirp(0.2, RATE))
    old, new = tmp_path / f"{PART}old", tmp_path / f"{PART}new"
    old.mkdir()
    (old / "frame.jpg").touch()
    new.touch()
    os.utime(old, (1e9, 1e9))
    assert extract(tmp_path, tmp_path) == 0
    assert not old.exists() and new.exists()


def test_a_clip_that_kills_its_process_fails_alone(tmp_path):
    jobs = [Job(f"{k}.mp4", "", str(tmp_path / f"{k}")) for k in range(9)]
    work = functools.partial(trees.double, victim="7.mp4")
    found = list(batch.outcomes_of(deque(jobs), work, 2, in_order=True))
    assert [outcome.job for outcome in found] == jobs
    assert {outcome.job: outcome.reason for outcome in found if outcome.reason} == {
        jobs[7]: "the process that worked on it was killed or crashed"
    }
    good = [outcome.details for outcome in found if not outcome.reason]
    assert len(good) == 8 and os.getpid() not in {row["process"] for row in good}
    assert all(row["is_ignored"] for row in good), "an interrupt is for the main process alone"
