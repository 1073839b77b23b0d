"""Frames and wav of a prepared clip are in step, by fine-tuning's rule: frame k at k / (n - 1)."""

import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from hicmae.data.audio import WavFile
from hicmae.data.film import Clock, Film, open_video
from hicmae.data.video import FrameFolder, LookedAt
from preprocess.face_and_audio import batch, extract_audio, extract_face, timing
from preprocess.face_and_audio.batch import Job
from preprocess.face_and_audio.extract_face import FaceOptions
from tests.conftest import save_frames
from tests.media.clock_films import FILMS, SECONDS, VARIABLE, heard_at, offsets, save_film
from tests.preprocess import media_files

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ODD_FILMS = FILMS | {
    "slow.mp4": {"times": np.arange(0, SECONDS, 0.1)},
    "variable and late.mkv": {"times": VARIABLE + 0.3},
}
# By how much the sound is ahead in the films of the issue; see the README beside them.
SHARED = {"late_audio.mp4": -0.5} | dict.fromkeys(
    ["cut.mp4", "vfr.mp4", "gap.mp4", "bframes.avi", "mpeg2.mpg", "live.webm", "badaac.mp4"], 0.0
)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Return what prepares a film: its frames, whole as no face is looked for, its wav, its rows"""

    def whole(frames: LookedAt, options: FaceOptions) -> tuple[np.ndarray, dict]:
        chosen = timing.chosen_frames(frames.source.clock, options.frame_rate)
        return np.zeros((len(chosen), 5, 2)), {"frames": len(chosen)}

    def run(path: str | Path, **options) -> tuple[list[np.ndarray], np.ndarray, list[dict]]:
        folder, wav = str(tmp_path / "faces"), str(tmp_path / "a.wav")
        rows = [
            extract_face.extract(Job("a", str(path), folder), FaceOptions(**options)),
            extract_audio.convert(Job("a", str(path), wav)),
        ]
        frames = FrameFolder(folder)
        return frames.read(range(len(frames))), soundfile.read(wav)[0], rows

    monkeypatch.setattr(extract_face, "follow_face", whole)
    monkeypatch.setattr(extract_face, "align", lambda frame, points, size: frame)
    return run


def pairs_of(frames, wav) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every frame with the 0.1 s of sound around its moment."""
    for k, frame in enumerate(frames):
        middle = round(k / (len(frames) - 1) * len(wav))
        yield frame, wav[max(middle - 800, 0) : middle + 800]


@pytest.mark.parametrize("name", ODD_FILMS)
def test_every_frame_is_prepared_with_the_sound_of_its_moment(tmp_path, prepare, name):
    options = ODD_FILMS[name]
    path = save_film(tmp_path / name, **options)
    frames, wav, (seen, heard) = prepare(path)
    clock = Film(path).clock
    slack = 0.0 if clock.is_constant else 0.012  # between frames 1/12 s apart
    assert np.abs(offsets(pairs_of(frames, wav)) + options.get("late", 0)).max() < 0.04 + slack
    assert clock.is_constant == ("ariable" not in name)
    assert seen["rate_kind"] == ("constant" if clock.is_constant else "variable")
    times = [{k: v for k, v in row.items() if k in timing.COLUMNS} for row in (seen, heard)]
    assert times[0] == times[1]
    assert heard["damaged"] == len(options.get("bad", ()))
    if clock.is_constant:  # frame for frame
        assert len(frames) == len(Film(path))
        for frame, image in zip(frames, Film(path).read(range(len(frames))), strict=True):
            assert np.abs(frame.astype(int) - image).max() < 16  # what a jpg loses


@pytest.mark.parametrize("rate", [10, 25, 50])
def test_frames_of_variable_rate_are_taken_at_the_asked_rate(tmp_path, prepare, rate):
    path = save_film(tmp_path / "a.mp4", **FILMS["variable.mp4"])
    frames, wav, (row, _) = prepare(path, frame_rate=rate)
    assert row["frames"] == len(frames) == pytest.approx((SECONDS - 1 / 12) * rate, abs=2)
    assert np.abs(offsets(pairs_of(frames, wav))).max() < 0.06


def test_summaries_tell_of_time_and_damage_and_sound_may_keep_its_length(tmp_path, prepare):
    path = save_film(tmp_path / "in/a.mp4", late=0.5, bad=(50, 51), heard_for=3.0)
    _, wav, (_, row) = prepare(path)
    assert len(wav) == 16000 * 124 / 25
    assert float(row["offset"]) == pytest.approx(0.5, abs=0.03)
    assert float(row["sound_seconds"]) == pytest.approx(3.0, abs=0.05)
    assert (row["film_seconds"], row["frame_rate"], row["damaged"]) == ("5.000", "25.000", 2)
    assert media_files.run(extract_audio, Path(path), tmp_path / "out", "--keep_length") == 0
    wav = soundfile.read(tmp_path / "out" / "a.wav")[0]
    assert len(wav) / 16000 == pytest.approx(3.0, abs=0.05)
    assert heard_at(wav[32000 - 800 : 32000 + 800]) == pytest.approx(2.0, abs=0.04)


def test_a_film_with_a_hole_is_in_step_and_one_of_holes_fails(tmp_path, prepare):
    whole = bytearray(Path(save_film(tmp_path / "a.mp4")).read_bytes())
    middle = len(whole) // 2
    for share, name in ((0.02, "hole.mp4"), (0.3, "holes.mp4")):
        size = int(share * len(whole))
        (tmp_path / name).write_bytes(whole[:middle] + bytes(size) + whole[middle + size :])
    frames, wav, (seen, heard) = prepare(tmp_path / "hole.mp4")
    assert len(frames) == 125 and 0 < seen["damaged"] < 5 and 0 < heard["damaged"] < 10
    assert np.median(np.abs(offsets(pairs_of(frames, wav)))) < 0.04
    with pytest.raises(RuntimeError, match="of 125 wanted frames of .* are damaged, expected at"):
        prepare(tmp_path / "holes.mp4")


def test_too_much_damage_is_the_reason_of_a_failure(tmp_path):
    save_film(tmp_path / "in" / "a.mp4", bad=range(20, 80))
    assert media_files.run(extract_audio, tmp_path / "in", tmp_path / "out") == 1
    (reason,) = media_files.failures(tmp_path / "out", "extract_audio").values()
    assert "60 of " in reason and "audio packets" in reason and "damaged" in reason


# Which frames


def clock_of(times: np.ndarray) -> Clock:
    stamps = np.round(np.asarray(times) * 1000).astype(np.int64)
    return Clock(stamps, 0.001, np.diff(stamps, append=stamps[-1] + 40), False)


@pytest.mark.parametrize("rate", [8, 12, 24, 25, 30, 60])
@pytest.mark.parametrize("count", [2, 3, 17, 200])
def test_constant_films_stay_frame_for_frame_and_in_step(rate, count):
    jitter = np.random.default_rng(count).uniform(-0.2, 0.2, count) * (np.arange(count) > 0)
    jitter[-1] = 0
    clock = clock_of(7 + (np.arange(count) + jitter) / rate)
    assert timing.chosen_frames(clock, 25).tolist() == list(range(count))
    heard = np.arange(count) / (count - 1) * timing.wav_length(clock) / 16000
    assert np.abs(heard - clock.times).max() <= 0.2 / rate + 0.01


@pytest.mark.parametrize("seed", range(5))
def test_frames_of_other_films_are_the_nearest_in_time(seed):
    rng = np.random.default_rng(seed)
    clock = clock_of(3 + np.cumsum(rng.choice([0.01, 0.033, 0.083, 0.4], 100)))
    chosen, times = timing.chosen_frames(clock, 25), clock.times
    moments = np.arange(len(chosen)) / 25
    heard = np.arange(len(chosen)) / (len(chosen) - 1) * timing.wav_length(clock) / 16000
    assert np.abs(heard - moments).max() <= 0.0201
    assert moments[-1] == pytest.approx(times[-1], abs=0.0201) and (np.diff(chosen) >= 0).all()
    for moment, index in zip(moments, chosen, strict=True):
        nearest = np.abs(times - moment).argmin()
        held = int(np.searchsorted(times, moment, "right")) - 1
        if abs(times[nearest] - moment - 0.06) > 1e-6:
            assert index == (nearest if times[nearest] < moment + 0.06 else held)


def test_a_still_end_is_shown_till_the_film_ends_and_one_frame_keeps_its_sound():
    clock = clock_of([0, 0.04, 0.5, 1.0])
    still = clock._replace(lengths=np.array([40, 460, 500, 3000]))
    assert timing.chosen_frames(still, 25)[-60:].tolist() == [3] * 60
    assert timing.wav_length(still) == pytest.approx(3.96 * 16000)
    assert timing.wav_length(clock_of([5.0])) is None
    with pytest.raises(RuntimeError, match="span 278 hours"):
        timing.chosen_frames(clock_of([0, 1, 1e6]), 25)


# The films that the issue was filed with


@pytest.mark.parametrize("name", SHARED)
def test_shared_films_are_in_step(prepare, name):
    if not CASES.is_dir():
        pytest.skip(f"needs the films of {CASES}")
    spec = importlib.util.spec_from_file_location("clock", CASES / "clock.py")
    clock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clock)

    def heard(part):
        is_sound = len(part) == 1600 and np.abs(part).reshape(-1, 160).max(1).min() > 0.05
        return clock.read_time(part) if is_sound else None

    def seen(frame):
        return clock.read_ms(frame) / 1000

    frames, wav, _ = prepare(CASES / name)
    found = offsets(itertools.islice(pairs_of(frames, wav), 0, None, 5), seen, heard)
    assert np.abs(found - SHARED[name]).max() < (0.046 if name == "vfr.mp4" else 0.04)


def test_aac_in_a_wav_costs_nobody_else_his_answer(tmp_path):
    if not CASES.is_dir():
        pytest.skip(f"needs the files of {CASES}")
    (tmp_path / "in").mkdir()
    for name in ("aac.wav", "badaac.mp4"):
        os.symlink(CASES / name, tmp_path / "in" / name)
    assert media_files.run(extract_audio, tmp_path / "in", tmp_path / "out") == 1
    rows = batch.read_summary(tmp_path / "out" / "extract_audio.csv")
    assert "packets" in rows["aac.wav"]["reason"] and rows["badaac.mp4"]["damaged"] == "1"


def out_of_step(video: str, audio: str) -> str:
    return timing.out_of_step(open_video(video), WavFile(audio))


@pytest.mark.parametrize("name", ["plain.mp4", "late.mp4", "variable.mp4", "late picture.mkv"])
def test_wavs_that_do_not_fit_their_film_are_told(tmp_path, name):
    film, good, old = (str(tmp_path / file) for file in (name, "good.wav", "old.wav"))
    save_film(tmp_path / name, **FILMS[name])
    extract_audio.convert(Job("a", film, good))
    extract_audio.convert(Job("a", film, old), keep_length=True)
    assert out_of_step(film, good) == ""
    assert bool(out_of_step(film, old)) == ("late" in name)
    soundfile.write(old, soundfile.read(good)[0][:32000], 16000)
    assert "the wav 2.00 s" in out_of_step(film, old)


def test_frames_are_compared_by_the_summary_above_them(tmp_path):
    folder, wav = save_frames(tmp_path / "faces/sub/a b_aligned", 50), str(tmp_path / "a.wav")
    soundfile.write(wav, np.full(int(1.96 * 16000), 0.1), 16000)
    assert out_of_step(folder, wav) == ""  # nobody knows
    row = {"clip": "sub/a b.mp4", "frames": 50, "offset": "0.300", "film_seconds": "2.000"}
    summary = pd.DataFrame([row | {"frame_rate": "25.000"}])
    summary.to_csv(tmp_path / "faces/extract_face_2of3.csv", index=False)
    assert "begins 0.30 s after the picture" in out_of_step(folder, wav)
    soundfile.write(wav, np.repeat([0, 0.1], [4800, 16000]), 16000)
    os.remove(os.path.join(folder, FrameFolder(folder).names[7]))
    told = out_of_step(folder, wav)
    assert "wrote 50 frames, 49" in told and "lasts 2.00 s, the wav 1.30 s" in told
