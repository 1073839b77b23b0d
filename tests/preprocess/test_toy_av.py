import csv
import functools
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from preprocess import toy_av
from preprocess.toy.build import Job, Recipe, build, list_jobs, part_of
from preprocess.toy.clips import (
    CLASSES,
    PRETRAIN_SPEAKERS_FROM,
    Clip,
    ClipKey,
    make_tracks,
    plan_clip,
)
from preprocess.toy.frames import align, draw_frames
from preprocess.toy.voice import synthesise

TINY = Recipe(3, 2, 1, 1, 1, folds=2, face_size=48)  # 12 labelled clips, and one
RESTING = [("corner", "rest_corner"), ("brow_inner", "rest_brow_inner"), ("lower_lid", "rest_lid")]
SPEAKERS, CLIPS = 40, 24  # of the parameter tests, nothing is drawn there
CHANCE_MARGIN = 0.06  # 3.7 standard deviations of an accuracy of 1/2 over 960 clips


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy av")  # a name with a space, as users have them
    build(TINY, folder, num_workers=2, relative=False)
    return folder


def plans(seed: int, speakers: int, clips: int) -> list[Clip]:
    keys = [ClipKey(seed, speaker, clip) for speaker in range(speakers) for clip in range(clips)]
    return [plan_clip(key, key.clip % len(CLASSES)) for key in keys]


@functools.cache
def planned() -> list[Clip]:
    return plans(7, SPEAKERS, CLIPS)


def table(prefixes: tuple[str, ...], clips: list[Clip]) -> np.ndarray:
    rows = [clip.row() for clip in clips]
    named = [name for name in rows[0] if name.startswith(prefixes)]
    names = [name for name in named if isinstance(rows[0][name], (int, float))]
    assert names
    return np.array([[row[name] for name in names] for row in rows], dtype=float)


def accuracy_on_new_speakers(features: np.ndarray, target: np.ndarray, clips: list[Clip]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    groups = [clip.key.speaker for clip in clips]
    return float(cross_val_score(model, features, target, cv=GroupKFold(4), groups=groups).mean())


def job_of(folder: Path, name: str) -> Job:
    return next(job for job in list_jobs(TINY, folder) if job.key.name == name)


def valence_of(clips: list[Clip]) -> np.ndarray:
    return np.array([clip.label // 2 for clip in clips])


def arousal_of(clips: list[Clip]) -> np.ndarray:
    return np.array([clip.label % 2 for clip in clips])


def track_statistics(clip: Clip) -> np.ndarray:
    """What could be measured on the motion: mean, spread, quantiles and speed of every track."""
    statistics = []
    for track in vars(make_tracks(clip)).values():
        steps = np.abs(np.diff(track))
        statistics += [track.mean(), track.std(), *np.quantile(track, (0.1, 0.5, 0.9))]
        statistics += [steps.mean(), steps.max()]
    return np.array(statistics)


def envelope_of(sound: np.ndarray) -> np.ndarray:
    """Loudness as a model could measure it: dB of 25 ms windows every 10 ms."""
    starts = np.arange(0, len(sound) - 400, 160)
    power = (sound[starts[:, None] + np.arange(400)] ** 2).mean(axis=1)
    return 10 * np.log10(power + 1e-9)


def envelope_statistics(sound: np.ndarray) -> np.ndarray:
    loud = envelope_of(sound)
    active = loud > loud.max() - 25
    pauses, steps = np.count_nonzero(np.diff(active)), np.abs(np.diff(loud))
    quantiles = np.quantile(loud, (0.3, 0.5, 0.7, 0.9))
    parts = [loud.mean(), loud.std(), active.mean(), pauses / len(loud), steps.mean(), len(sound)]
    return np.array([*quantiles, *parts])


@functools.cache
def voiced() -> tuple[list[Clip], list[np.ndarray]]:
    clips = plans(5, 16, 6)
    return clips, [synthesise(clip) for clip in clips]


# Nothing leaks. First exactly: the other half of the class changes not one bit.


def test_arousal_does_not_change_one_pixel_of_the_video():
    key = ClipKey(0, 4, 2)
    low, high = (list(draw_frames(plan_clip(key, 4 + arousal))) for arousal in (0, 1))
    assert len(low) == len(high)
    for (frame, transform), (other_frame, other_transform) in zip(low, high, strict=True):
        np.testing.assert_array_equal(frame, other_frame)
        np.testing.assert_array_equal(transform, other_transform)


def test_valence_does_not_change_one_sample_of_the_voice():
    key = ClipKey(0, 4, 2)
    sounds = [synthesise(plan_clip(key, 2 * valence + 1)) for valence in (0, 1, 2)]
    np.testing.assert_array_equal(sounds[0], sounds[1])
    np.testing.assert_array_equal(sounds[0], sounds[2])


def test_valence_changes_only_the_expression_and_arousal_only_the_delivery():
    for label in range(len(CLASSES)):
        base, row = (plan_clip(ClipKey(1, 2, 3), k).row() for k in (0, label))
        changed = {name.split(".")[0] for name in row if row[name] != base[name]}
        changed -= {"class", "label", "valence", "arousal"}
        by_half = {"expression": label // 2, "delivery": label % 2}
        assert changed == {part for part, half in by_half.items() if half}


# Then statistically, on parameters of many clips and speakers.


@pytest.mark.parametrize(
    "prefixes", [("delivery.", "voice."), ("speech.", "motion.", "scene.", "face.", "frames")]
)
def test_no_parameter_but_the_expression_tells_the_valence(prefixes):
    clips = planned()
    accuracy = accuracy_on_new_speakers(table(prefixes, clips), valence_of(clips), clips)
    assert accuracy < 1 / 3 + CHANCE_MARGIN


@pytest.mark.parametrize(
    "prefixes", [("expression.", "face."), ("speech.", "motion.", "scene.", "voice.", "frames")]
)
def test_no_parameter_but_the_delivery_tells_the_arousal(prefixes):
    clips = planned()
    accuracy = accuracy_on_new_speakers(table(prefixes, clips), arousal_of(clips), clips)
    assert accuracy < 1 / 2 + CHANCE_MARGIN


def test_the_expression_tells_the_valence_of_new_speakers():
    clips = planned()
    # the face shows rest + offset, so that is what a model has to judge
    shown = table(("expression.",), clips)
    names = list(vars(clips[0].expression))
    for name, rest in RESTING:
        shown[:, names.index(name)] += [getattr(clip.face, rest) for clip in clips]
    assert accuracy_on_new_speakers(shown, valence_of(clips), clips) > 0.97


def test_the_delivery_tells_the_arousal_of_new_speakers():
    clips = planned()
    accuracy = accuracy_on_new_speakers(table(("delivery.",), clips), arousal_of(clips), clips)
    assert accuracy > 0.99


@pytest.mark.parametrize("cue, rest", RESTING)
def test_resting_faces_differ_by_a_good_part_of_the_step_to_a_smile(cue, rest):
    clips = [
        plan_clip(ClipKey(0, speaker, label), label) for speaker in range(128) for label in (2, 4)
    ]
    shown = np.array([getattr(c.expression, cue) + getattr(c.face, rest) for c in clips])
    neutral, positive = (shown[valence_of(clips) == valence] for valence in (1, 2))
    assert np.ptp(neutral) > 0.4 * (positive.mean() - neutral.mean()) > 0


def test_absolute_pitch_overlaps_between_speakers():
    clips = planned()
    pitch = np.log([[clip.delivery.f0] for clip in clips])
    assert accuracy_on_new_speakers(pitch, arousal_of(clips), clips) < 0.85


# And on what can be measured in the clips themselves.


def test_measured_motion_does_not_tell_the_arousal():
    clips = planned()
    motion = np.stack([track_statistics(clip) for clip in clips])
    assert accuracy_on_new_speakers(motion, arousal_of(clips), clips) < 1 / 2 + CHANCE_MARGIN


def test_the_judge_of_these_tests_would_notice_a_small_leak():
    clips = planned()
    motion = table(("speech.", "motion.", "scene."), clips)
    motion[:, 2] += 0.4 * motion[:, 2].std() * arousal_of(clips)
    assert accuracy_on_new_speakers(motion, arousal_of(clips), clips) > 1 / 2 + CHANCE_MARGIN


def test_the_measured_loudness_envelope_tells_neither():
    clips, sounds = voiced()
    statistics = np.stack([envelope_statistics(sound) for sound in sounds])
    margin = 3.2 * 0.5 / np.sqrt(len(clips))  # few clips, so a wide margin
    assert accuracy_on_new_speakers(statistics, arousal_of(clips), clips) < 1 / 2 + margin
    assert accuracy_on_new_speakers(statistics, valence_of(clips), clips) < 1 / 3 + margin


def test_sound_follows_the_planned_envelope_whatever_the_arousal():
    for speaker in range(4):
        envelopes = [
            envelope_of(synthesise(plan_clip(ClipKey(2, speaker, 0), arousal)))
            for arousal in (0, 1)
        ]
        loud = envelopes[0] > envelopes[0].max() - 20
        difference = (envelopes[1] - envelopes[0])[loud]
        assert abs(difference.mean()) < 0.25  # dB
        assert np.abs(difference).mean() < 1.0


def test_the_mouth_opens_with_the_loudness():
    clip = plan_clip(ClipKey(0, 1, 1), 0)
    opening = make_tracks(clip).opening
    sound = synthesise(clip).reshape(len(opening), -1)
    loudness = np.sqrt((sound**2).mean(axis=1))
    assert np.corrcoef(opening, loudness)[0, 1] > 0.7
    assert opening[loudness < 0.05 * loudness.max()].mean() < 0.15


# The voice is a voice, the picture a picture.


def test_sound_has_the_length_of_the_video_and_never_clips():
    clips, sounds = voiced()
    for clip, sound in zip(clips, sounds, strict=True):
        assert len(sound) == clip.speech.frames * 640
        assert 65 <= clip.speech.frames <= 100
        assert 0.05 < np.abs(sound).max() <= 0.951
        assert np.isfinite(sound).all()


@pytest.mark.parametrize("arousal", [0, 1])
def test_the_pitch_that_can_be_measured_is_the_planned_one(arousal):
    clip = plan_clip(ClipKey(0, 2, 5), arousal)
    sound = synthesise(clip)
    middle = int(
        np.argmax(np.convolve(clip.speech.level * clip.speech.voiced, np.ones(20), "same"))
    )
    part = sound[middle * 80 - 640 : middle * 80 + 640]
    autocorrelation = np.correlate(part, part, "full")[len(part) - 1 :]
    lags = np.arange(16000 // 450, 16000 // 60)
    measured = 16000 / lags[np.argmax(autocorrelation[lags])]
    reach = 2 ** (2.2 * clip.delivery.pitch_range / 12)
    assert clip.delivery.f0 / reach < measured < clip.delivery.f0 * reach


def test_high_arousal_has_a_flatter_spectrum():
    def high_share(arousal: int) -> float:
        power = np.abs(np.fft.rfft(synthesise(plan_clip(ClipKey(0, 6, 1), arousal)))) ** 2
        hertz = np.fft.rfftfreq(2 * (len(power) - 1), 1 / 16000)
        return power[(hertz > 1500) & (hertz < 4000)].sum() / power[hertz < 1000].sum()

    assert high_share(1) > 2 * high_share(0)


def test_the_head_stays_within_the_part_that_pretraining_cuts_out():
    for speaker in range(PRETRAIN_SPEAKERS_FROM, PRETRAIN_SPEAKERS_FROM + 12):
        clip = plan_clip(ClipKey(0, speaker, 1), 0)
        face, tracks = clip.face, make_tracks(clip)
        chin = tracks.y + tracks.zoom * (face.chin_y + 4 * tracks.opening)
        assert chin.max() < 160
        side = tracks.zoom * (face.face_width + 3)
        assert (tracks.x - side).min() > 32
        assert (tracks.x + side).max() < 192
        assert (tracks.y + tracks.zoom * face.hair_line).min() > 0


def test_smiling_moves_the_mouth_corners_up_in_the_aligned_face():
    mouths = []
    for valence in (0, 1, 2):
        frame, transform = next(draw_frames(plan_clip(ClipKey(0, 3, 1), 2 * valence)))
        mouths.append(align(frame, transform)[70:100, 30:82].astype(float))
    steps = [np.abs(a - b).mean() for a, b in zip(mouths[:-1], mouths[1:], strict=True)]
    assert min(steps) > 1.0  # grey levels
    dark = [
        np.average(np.arange(30), weights=255 - m[:, [2, 3, -4, -3]].mean((1, 2))) for m in mouths
    ]
    assert dark[0] > dark[2]  # rows count downwards


def test_aligned_faces_keep_the_eyes_in_place():
    clip = plan_clip(ClipKey(0, 1, 4), 2)
    frames = [align(*pair).astype(float) for pair in draw_frames(clip)]
    assert frames[0].shape == (112, 112, 3)
    eyes = np.stack([frame[34:52, 22:90] for frame in frames])
    same = [np.corrcoef(eye.ravel(), eyes[0].ravel())[0, 1] for eye in eyes]
    assert np.median(same) > 0.8


def test_speakers_differ_and_one_speaker_stays_the_same():
    clips = [plan_clip(ClipKey(0, speaker, k), 0) for speaker in (0, 1, 1000) for k in (0, 1)]
    assert len({str((clip.face, clip.voice)) for clip in clips}) == 3


# Files and lists.


def test_video_sound_and_faces_have_the_promised_format(tiny):
    files = job_of(tiny, "s001_c002")
    with av.open(str(files.video)) as container:
        picture, voice = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (picture.width, picture.height, picture.average_rate) == (224, 224, 25)
        assert (voice.codec_context.name, voice.rate, voice.channels) == ("aac", 16000, 1)
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    info = soundfile.info(files.audio)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    clip = plan_clip(ClipKey(TINY.seed, 1, 2), 2)
    assert len(frames) == clip.speech.frames == info.frames // 640
    drawn = next(draw_frames(clip))[0]
    assert np.abs(frames[0].astype(float) - drawn).mean() < 4
    faces = sorted(files.faces.iterdir())
    numbers = range(1, len(frames) + 1)
    assert [face.name for face in faces] == [f"frame_det_00_{k:06d}.jpg" for k in numbers]
    assert cv2.imread(str(faces[0])).shape == (48, 48, 3)


def test_the_sound_in_the_mp4_is_the_wav(tiny):
    files = job_of(tiny, "s000_c000")
    wav = soundfile.read(files.audio)[0]
    with av.open(str(files.video)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    count = min(len(wav), len(heard))
    lags = np.fft.irfft(np.fft.rfft(heard[:count]) * np.conj(np.fft.rfft(wav[:count])))
    lag = int(np.argmax(lags))
    assert min(lag, count - lag) <= 1100  # an AAC coder's delay, under two frames
    assert np.corrcoef(np.roll(heard[:count], -lag), wav[:count])[0, 1] > 0.9


def test_folds_are_speaker_independent_and_complete(tiny):
    tested = []
    for fold in (1, 2):
        train = read_labelled_list(tiny / f"fold{fold}" / "train.csv", num_classes=len(CLASSES))
        test = read_labelled_list(tiny / f"fold{fold}" / "test.csv", num_classes=len(CLASSES))
        speakers = [{Path(clip.audio).parent.name for clip in part} for part in (train, test)]
        assert not speakers[0] & speakers[1]
        assert len(train) + len(test) == 12
        assert sorted(clip.label for clip in test) == list(range(6))
        assert all(
            Path(clip.video).is_dir() and Path(clip.audio).is_file() for clip in train + test
        )
        tested += [clip.video for clip in test]
    assert len(set(tested)) == 12


def test_default_folds_test_every_speaker_once_and_validate_on_others():
    recipe = Recipe()
    tested, validated = [], []
    for fold in range(1, recipe.folds + 1):
        parts = [part_of(speaker, fold, recipe.folds) for speaker in range(recipe.speakers)]
        assert [parts.count(part) for part in ("train", "val", "test")] == [84, 12, 32]
        tested += [speaker for speaker, part in enumerate(parts) if part == "test"]
        validated += [speaker for speaker, part in enumerate(parts) if part == "val"]
    assert sorted(tested) == list(range(recipe.speakers))
    assert len(set(validated)) == len(validated)


def test_pretraining_list_has_other_speakers_with_a_wav_beside(tiny):
    (clip,) = read_pretrain_list(tiny / "pretrain.csv")
    assert Path(clip.video).name == "p000_c000.mp4"
    assert Path(clip.audio).is_file()
    assert (tiny / "pretrain.csv").read_text().endswith(" 0\n")
    assert not list(tiny.glob("aligned/p*"))


def test_table_names_every_clip_with_its_parameters(tiny):
    with (tiny / "meta.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    row = next(row for row in rows if row["clip"] == "s001_c004")
    assert (row["class"], row["valence"], row["arousal"]) == ("pos_low", "2", "0")
    expected = plan_clip(ClipKey(TINY.seed, 1, 4), 4).delivery
    assert {name: float(row[f"delivery.{name}"]) for name in vars(expected)} == vars(expected)
    assert (tiny / "classes.txt").read_text().split() == list(CLASSES)


def test_any_number_of_workers_gives_the_same_files(tiny, tmp_path):
    build(TINY, tmp_path, num_workers=1, relative=True)
    names = [path.relative_to(tiny) for path in tiny.rglob("*.*") if path.suffix != ".csv"]
    assert len(names) > 13 * 2 + 12 * 65
    for name in names:
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes(), name
    clips = read_labelled_list(tmp_path / "fold1" / "test.csv", data_root=str(tmp_path))
    assert Path(clips[0].audio).is_file()
    listed = (tmp_path / "fold1" / "test.csv").read_text()
    assert listed.startswith("aligned/s000_c000 labelled/s000/")


def test_a_stopped_run_makes_only_what_is_missing(tiny, caplog):
    jobs = list_jobs(TINY, tiny)
    kept, lost = jobs[0], jobs[5]
    before, content = kept.video.stat().st_mtime_ns, lost.video.read_bytes()
    lost.video.unlink()  # its name appears last, so a clip without it was interrupted
    (lost.video.parent / f".part-{lost.video.name}").write_bytes(b"half a file")
    with caplog.at_level(logging.INFO):
        build(TINY, tiny, num_workers=1, relative=False)
    assert "12 of 13 clips are there already" in caplog.text
    assert lost.video.read_bytes() == content
    assert kept.video.stat().st_mtime_ns == before
    assert not list(tiny.rglob(".part-*"))


def test_a_folder_with_another_data_set_is_refused(tiny):
    assert json.loads((tiny / "toy_av.json").read_text()) == asdict(TINY)
    other = replace(TINY, seed=4)
    with pytest.raises(ValueError, match=r"other settings \(seed 3 -> 4\).*another --output_dir"):
        build(other, tiny, num_workers=1, relative=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"speakers": -1}, "--speakers must be 0 or more, got -1"),
        ({"pretrain_clips": -2}, "--pretrain_clips must be 0 or more, got -2"),
        ({"seed": -5}, "--seed must be 0 or more, got -5"),
        ({"face_size": 16}, "--face_size must be 32..512 pixels, got 16"),
        ({"speakers": 3, "folds": 4}, r"--folds must be 2..3 \(the number of --speakers\), got 4"),
        ({"folds": 1}, "--folds must be 2..128"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"label must be in 0..5, got 6"):
        plan_clip(ClipKey(0, 0, 0), 6)


def test_the_command_line_reports_a_bad_value_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        toy_av.main(["--output_dir", str(tmp_path), "--folds", "999"])
    assert "--folds must be 2..128" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        toy_av.main([])
    assert "give --output_dir" in capsys.readouterr().err


def test_preview_shows_every_valence_of_every_speaker(tmp_path, capsys):
    sheet = tmp_path / "figs" / "sheet.png"
    toy_av.main(["--preview", str(sheet), "--preview_speakers", "1"])
    assert np.asarray(Image.open(sheet)).shape == (26 + 224, 9 * 224, 3)
    with pytest.raises(SystemExit):
        toy_av.main(["--preview", str(tmp_path / "sheet.gif")])
    assert "--preview must name a .png or .jpg file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        toy_av.main(["--preview", str(sheet), "--preview_speakers", "0"])
    assert "--preview_speakers must be 1 or more, got 0" in capsys.readouterr().err
