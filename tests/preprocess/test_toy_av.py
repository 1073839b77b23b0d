import csv
import functools
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hicmae.data.audio import WavFile
from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from hicmae.data.film import Film
from hicmae.data.media import decode_sound
from hicmae.data.video import FrameFolder
from hicmae.faces import align
from preprocess import toy_av
from preprocess.toy.face import draw_frames
from preprocess.toy.plan import CLASSES, FRAMES, Clip, ClipKey, make_tracks, plan_clip
from preprocess.toy.voice import synthesise
from preprocess.toy_av import Recipe, build, list_jobs, parts_of

TINY = Recipe(3, 2, 1, 1, 1, 1, folds=2, face_size=48)  # 12 labelled clips, and one
CHANCE_MARGIN = 0.06  # 3.7 standard deviations of an accuracy of 1/2 over 960 clips


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy av")  # a name with a space, as users have them
    build(TINY, folder, num_workers=2)
    return folder


@functools.cache
def planned(seed: int = 7, speakers: int = 40, clips: int = 24) -> list[Clip]:
    keys = [ClipKey(seed, speaker, clip) for speaker in range(speakers) for clip in range(clips)]
    return [plan_clip(key, key.clip % len(CLASSES)) for key in keys]


def table(prefixes: tuple[str, ...], clips: list[Clip]) -> np.ndarray:
    rows = pd.DataFrame([clip.row() for clip in clips]).select_dtypes(["number", "bool"])
    return rows.loc[:, rows.columns.str.startswith(prefixes)].to_numpy(float, copy=True)


def accuracy_on_new_speakers(features: np.ndarray, half: int, clips: list[Clip]) -> float:
    """Of telling the valence (half 0) or the arousal (half 1)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    target = [divmod(clip.label, 2)[half] for clip in clips]
    groups = [clip.key.speaker for clip in clips]
    return float(cross_val_score(model, features, target, cv=GroupKFold(4), groups=groups).mean())


def statistics(tracks: list[np.ndarray]) -> np.ndarray:
    """What could be measured on curves: quantiles, mean, spread and speed of each."""
    found = []
    for track in tracks:
        steps = np.abs(np.diff(track))
        found += [*np.quantile(track, (0.1, 0.5, 0.9)), track.mean(), track.std()]
        found += [steps.mean(), steps.max()]
    return np.array(found)


def loudness_of(sound: np.ndarray) -> np.ndarray:
    """Loudness as a model could measure it: dB of 25 ms windows every 10 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, 400)[::160]
    return 10 * np.log10((windows**2).mean(axis=1) + 1e-9)


# Nothing leaks. First exactly: the other half of the class changes not one bit.


def test_valence_changes_only_the_face_and_arousal_only_the_voice():
    key = ClipKey(0, 4, 2)
    for low, high in zip(*(draw_frames(plan_clip(key, label)) for label in (4, 5)), strict=True):
        for array, other in zip(low, high, strict=True):
            np.testing.assert_array_equal(array, other)
    first, *others = (synthesise(plan_clip(key, 2 * valence + 1)) for valence in (0, 1, 2))
    for sound in others:
        np.testing.assert_array_equal(first, sound)
    for label in range(len(CLASSES)):
        base, row = (plan_clip(ClipKey(1, 2, 3), k).row() for k in (0, label))
        changed = {name.split(".")[0] for name in row if row[name] != base[name]}
        changed -= {"class", "label", "valence", "arousal"}
        by_half = {"expression": label // 2, "delivery": label % 2}
        assert changed == {part for part, half in by_half.items() if half}


# Then statistically, on parameters of many clips and speakers, and on what can be measured.


@pytest.mark.parametrize(
    "half, prefixes",
    [
        (0, ("delivery.", "voice.")),
        (0, ("scene.", "face.", "frames")),
        (1, ("expression.", "face.")),
        (1, ("scene.", "voice.", "frames")),
    ],
)
def test_no_parameter_but_its_own_tells_a_half_of_the_class(half, prefixes):
    accuracy = accuracy_on_new_speakers(table(prefixes, planned()), half, planned())
    assert accuracy < 1 / (3, 2)[half] + CHANCE_MARGIN


@pytest.mark.parametrize("half, prefix, least", [(0, "expression.", 0.95), (1, "delivery.", 0.98)])
def test_its_own_parameters_tell_a_half_of_the_class_of_new_speakers(half, prefix, least):
    shown = table((prefix,), planned())
    if half == 0:  # the face shows rest + offset, so that is what a model has to judge
        shown[:, 0] += [clip.face.rest_corner for clip in planned()]
        shown[:, 2:4] += [[clip.face.rest_brow] for clip in planned()]
    assert accuracy_on_new_speakers(shown, half, planned()) > least


def test_motion_pitch_and_loudness_do_not_tell_what_they_should_not():
    clips, few = planned(), planned(5, 16, 6)
    motion = np.stack([statistics([*vars(make_tracks(clip)).values()]) for clip in clips])
    assert accuracy_on_new_speakers(motion, 1, clips) < 1 / 2 + CHANCE_MARGIN
    motion[:, 2] += 0.4 * motion[:, 2].std() * np.array([clip.label % 2 for clip in clips])
    assert accuracy_on_new_speakers(motion, 1, clips) > 1 / 2 + CHANCE_MARGIN  # a leak is noticed
    loud = np.stack([statistics([loudness_of(synthesise(clip))]) for clip in few])
    for half, chance in enumerate((1 / 3, 1 / 2)):
        margin = 3.2 * 0.5 / np.sqrt(len(few))  # few clips, so a wide margin
        assert accuracy_on_new_speakers(loud, half, few) < chance + margin
    pitch = np.log([[clip.delivery.f0] for clip in clips])  # it overlaps between speakers
    assert accuracy_on_new_speakers(pitch, 1, clips) < 0.75


# What is shared can be found: by parameters, and as the mouth follows the sound.


def test_a_new_speakers_voice_is_found_among_32_by_the_face():
    clips = planned(1, 320, 1)
    voice = StandardScaler().fit_transform(table(("voice.f0", "voice.tract", "voice.br"), clips))
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11)))
    expected = cross_val_predict(model, table(("face.",), clips), voice, cv=5)
    pairs = expected.reshape(10, 32, 1, 3) - voice.reshape(10, 1, 32, 3)
    assert ((pairs**2).sum(-1).argmin(-1) == np.arange(32)).mean() > 0.4


def test_mouth_and_gestures_follow_the_voice():
    within, energy = [], []
    for clip in planned(2, 24, 1):
        tracks, sound = make_tracks(clip), synthesise(clip)
        loudness = np.sqrt((sound.reshape(len(tracks.opening), -1) ** 2).mean(axis=1))
        every = slice(0, None, 8)  # four frames of a window of 32 see it, too
        within.append(np.corrcoef(tracks.opening[every], loudness[every])[0, 1])
        energy.append((loudness_of(sound).max(), np.log(tracks.pitch.std() + tracks.yaw.std())))
    assert np.mean(within) > 0.6
    assert np.corrcoef(np.array(energy).T)[0, 1] > 0.6


# The voice is a voice, the picture a picture.


def test_sound_has_the_length_of_the_video_and_the_planned_envelope_and_pitch():
    for speaker in range(6):
        clips = [plan_clip(ClipKey(2, speaker, 0), arousal) for arousal in (0, 1)]
        sounds = [synthesise(clip) for clip in clips]
        for clip, sound in zip(clips, sounds, strict=True):
            assert len(sound) == clip.speech.frames * 640
            assert 0.02 < np.abs(sound).max() <= 0.951
            strength = np.convolve(clip.speech.level * clip.speech.voiced, np.ones(10), "same")
            middle = 160 * (int(np.argmax(strength[8:-8])) + 8)
            part = sound[middle - 640 : middle + 640]
            autocorrelation = np.correlate(part, part, "full")[len(part) - 1 :]
            lags = np.arange(16000 // 520, 16000 // 60)
            measured = 16000 / lags[np.argmax(autocorrelation[lags])]
            assert abs(np.log2(measured / clip.delivery.f0)) < 3 * clip.delivery.pitch_range / 12
        low, high = (loudness_of(sound) for sound in sounds)
        difference = (high - low)[low > low.max() - 20]  # dB
        assert abs(difference.mean()) < 0.3 and np.abs(difference).mean() < 1.0


def test_smiling_moves_the_mouth_corners_up_and_eyes_stay_in_place_in_the_aligned_face():
    below_nose = []
    for valence in (0, 1, 2):
        frame, points = next(draw_frames(plan_clip(ClipKey(0, 3, 1), 2 * valence)))
        below_nose.append(points[3:, 1].mean() - points[2, 1])
        for x, y in np.rint(points[3:]).astype(int):  # lips are red
            red, green, _ = frame[y - 1 : y + 2, x - 2 : x + 3].reshape(-1, 3).astype(int).T
            assert (red - green).max() > 60
    assert below_nose[0] > below_nose[1] > below_nose[2]
    frames = [align(*pair, 112) for pair in draw_frames(plan_clip(ClipKey(0, 3, 1), 0))]
    eyes = np.stack([frame[20:38, 18:94].astype(float) for frame in frames])
    same = [np.corrcoef(eye.ravel(), eyes[0].ravel())[0, 1] for eye in eyes]
    assert np.median(same) > 0.8


# Files and lists.


def test_video_sound_and_faces_have_the_promised_format(tiny):
    files = next(job for job in list_jobs(TINY, tiny) if job.key.name == "s001_c002")
    with av.open(str(files.video)) as container:
        picture, voice = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (voice.codec_context.name, voice.rate, voice.channels) == ("aac", 16000, 1)
    film, wav = Film(str(files.video)), WavFile(str(files.audio))
    frames, drawn = film.read(range(len(film))), list(draw_frames(plan_clip(files.key, 2)))
    assert len(frames) == len(drawn) == len(wav) // 640 and film.clock.times[1] == 0.04
    assert frames[0].shape == (96, 96, 3)
    assert np.abs(frames[0].astype(float) - drawn[0][0]).mean() < 5
    faces = FrameFolder(str(files.faces))
    assert faces.names == [f"frame_det_00_{k:06d}.jpg" for k in range(1, len(drawn) + 1)]
    assert np.abs(faces.read([0])[0].astype(float) - align(*drawn[0], 48)).mean() < 5
    heard = decode_sound(film.path, film.clock.origin, len(wav)).samples
    assert np.corrcoef(heard, wav.read(0, len(wav)))[0, 1] > 0.99


def test_folds_are_speaker_independent_and_complete(tiny):
    tested = []
    for fold in ("fold1", "fold2", "fold1_all", "fold2_all"):
        train, test = (
            read_labelled_list(tiny / fold / f"{part}.csv", num_classes=len(CLASSES))
            for part in ("train", "test")
        )
        speakers = [{Path(clip.audio).parent.name for clip in part} for part in (train, test)]
        assert not speakers[0] & speakers[1]
        assert sorted(clip.label for clip in test) == list(range(6))
        assert all(Path(c.video).is_dir() and Path(c.audio).is_file() for c in [*train, *test])
        tested += [clip.video for clip in test]
    assert len(tested) == 24 and len(set(tested)) == 12
    first, second = (parts_of(fold, Recipe()) for fold in (1, 2))
    assert sorted(first["test"] + second["test"]) == list(range(128))
    for parts in (first, second):
        assert [len(parts[name]) for name in ("train", "val", "test", "all")] == [20, 8, 64, 56]
        assert set(parts["train"]) < set(parts["all"])
        assert not set(parts["all"]) & {*parts["val"], *parts["test"]}


def test_lists_of_pretraining_have_other_speakers_and_the_table_every_clip(tiny):
    (clip,), (packed,) = (read_pretrain_list(tiny / name) for name in ("pretrain.csv", "packed"))
    assert Path(clip.video).name == Path(packed.video).name == "p000_c000.mp4"
    assert Path(clip.audio).is_file() and not list(tiny.glob("aligned/p*"))
    with (tiny / "meta.csv").open(newline="") as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    row = rows["s001_c004"]
    assert len(rows) == 13
    assert (row["class"], row["valence"], row["arousal"]) == ("pos_low", "2", "0")
    expected = plan_clip(ClipKey(TINY.seed, 1, 4), 4).delivery
    assert {name: float(row[f"delivery.{name}"]) for name in vars(expected)} == vars(expected)
    assert (tiny / "classes.txt").read_text().split() == list(CLASSES)


def test_any_number_of_processes_makes_the_same_files(tiny, tmp_path):
    build(TINY, tmp_path, num_workers=1)
    files = {path.relative_to(tiny) for path in tiny.rglob("*.*") if path.is_file()}
    assert len(files) > 12 * FRAMES[0]
    for name in files:
        if name.suffix in (".mp4", ".wav", ".jpg") or name.parts == ("meta.csv",):
            assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes(), name
    with pytest.raises(ValueError, match=r"\(seed 3 -> 4\).*another --output_dir"):
        build(replace(TINY, seed=4), tmp_path, num_workers=1)


def test_folds_without_a_speaker_each_are_refused_in_one_line(tmp_path, caplog):
    assert toy_av.main(["--output_dir", str(tmp_path), "--folds", "999"]) == 2
    assert re.fullmatch(".*error: --folds must be 2..128 .*got 999\n", caplog.text)
