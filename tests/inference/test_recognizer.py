from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicmae.config import Options
from hicmae.data import film
from hicmae.data.video import normalise
from hicmae.inference import sources
from hicmae.inference.clips import Clip, sliding, stand_ins
from hicmae.inference.model import ModelConfig, Preprocessing
from hicmae.inference.recognizer import Failure
from hicmae.inference.sources import Arrays, MediaFile, open_source
from hicmae.io import UnreadableClip
from tests.conftest import save_frames, save_mp4, save_wav
from tests.preprocess.media_files import pictures, save_media
from tests.small_recognizers import NAMES, classifier, speech

# Windows


@pytest.mark.parametrize("seconds", [0.5, 1.28, 2.0, 7.3])
def test_windows_cover_the_clip_and_overlap_by_half(seconds):
    clip = Preprocessing(num_frames=4, sampling_rate=8)  # 1.28 s
    times = np.arange(round(seconds * 25)) / 25
    windows = sliding(times, round(seconds * 16000), clip, Options())
    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(min(seconds, windows[-1].start + 1.28), abs=0.03)
    assert seconds - windows[-1].end < 0.32  # less than the step between two frames
    starts = np.array([window.start for window in windows])
    assert (np.diff(starts) > 0).all() and (np.diff(starts) <= 0.641).all()
    for window in windows:
        assert len(window.frames) == 4
        # the frame shown at start + k * 0.32
        asked = window.start + 0.32 * np.arange(4)
        shown = times[window.frames]
        assert (shown <= asked + 0.011).all()
        assert (asked - shown)[asked < times[-1]].max(initial=0) < 0.04
        first, last = window.samples
        assert first == round(window.start * 16000) and last <= seconds * 16000 + 1


def test_frames_are_chosen_by_time_where_the_rate_changes():
    times = np.concatenate([np.arange(10) / 10, 1 + np.arange(100) / 100])  # 10, then 100 a second
    clip = Preprocessing(num_frames=4, sampling_rate=12.5)
    (window,) = sliding(times, None, clip, Options(window=2.0))
    assert window.frames.tolist() == [0, 5, 10, 60] and window.samples is None


def test_impossible_options_are_named(recognizer, video):
    for options, message in (
        ({"modality": "v"}, "modality 'v' alone needs missing_modality 'zeros' or"),
        ({"missing_modality": "guess"}, "missing_modality must be one of error, zeros, drop"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            recognizer("av", **options)
    with pytest.raises(ValueError, match="reads 'a' only; modality 'v' was asked"):
        recognizer("a", modality="v", missing_modality="drop")
    for options, message in (
        ({"window": 0.0}, "window must be > 0, got 0"),
        ({"window": 1.0, "overlap": 1.0}, "overlap must be shorter than the window"),
        ({"protocol": "exam"}, "protocol must be one of windows, test, got 'exam'"),
        ({"faces": "all"}, "use predict_people"),
    ):
        with pytest.raises(ValueError, match=message):
            recognizer().predict(video, **{"faces": "cut", **options})


def test_probabilities_are_calibrated_and_may_be_too_unsure_to_answer(recognizer, clip):
    model, (folder, wav) = recognizer(), clip
    plain = model.predict(folder, audio=wav)
    test = model.predict(folder, audio=wav, protocol="test")
    model.config = replace(model.config, temperature=2.0)
    warm = model.predict(folder, audio=wav, min_confidence=0.999)
    logits = [np.log(list(answer.windows[0].scores.values())) for answer in (plain, warm)]
    np.testing.assert_allclose(np.diff(logits[0]), 2 * np.diff(logits[1]), rtol=1e-4)
    assert model.predict(folder, audio=wav, protocol="test") == test  # whose numbers are the test's
    assert max(warm.scores.values()) < max(plain.scores.values())
    assert warm.label == warm.windows[0].label == "unsure" and plain.label in plain.scores
    assert model.predict(folder, audio=wav, min_confidence=0.3).label == plain.label


def test_memory_files_and_batches_agree(recognizer, clip, video):
    model, (folder, wav) = recognizer(), clip
    names = sorted(Path(folder).iterdir())
    frames = np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names])
    samples, rate = speech(60 / 25), 16000
    stored = np.round(samples * 32767).astype(np.int16)
    fps = 59 / (len(stored) / rate)  # as a folder's frames are spread over its sound
    answer = model.predict(folder, audio=wav)
    same = model.predict_arrays(frames, fps, stored, rate, faces="cut")
    assert same.scores == pytest.approx(answer.scores, abs=1e-4)
    assert [w.start for w in same.windows] == [w.start for w in answer.windows]
    assert sum(answer.probabilities.values()) == pytest.approx(1) and answer.values == {}
    assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
    mean = np.mean([list(window.scores.values()) for window in answer.windows], axis=0)
    assert mean == pytest.approx(list(answer.scores.values()))
    batch = list(model.each([(folder, wav), video, (folder, wav)], faces="cut"))
    assert batch[0].scores == pytest.approx(answer.scores, abs=1e-5)
    assert batch[2].file == folder and len(batch[1].windows) == 5


def test_one_stream_is_neither_decoded_nor_loaded_without_need(
    recognizer, video, tmp_path, monkeypatch
):
    def refuse(*_):
        raise AssertionError("must not be read")

    with monkeypatch.context() as patch:
        patch.setattr(film.Film, "frames", refuse)
        answer = recognizer("a").predict(video)
        heard = recognizer("av", modality="a", missing_modality="drop")
        heard.predict(video)
    assert heard.model.encoder is None and heard.model.encoder_fusion.blocks is None
    assert len(answer.windows) in (5, 6)  # PyAV before 19 pads the sound to a block
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_sound", refuse)
        recognizer("v").predict(video, faces="cut")
        seen = recognizer("av", modality="v", missing_modality="drop")
        part = seen.predict(video, faces="cut")
    assert seen.model.encoder_audio is None
    assert not any("audio" in name for name in seen.model.state_dict())
    with pytest.raises(ValueError, match="holds a part of its network"):
        seen.save_pretrained(tmp_path / "part")
    mute = save_media(tmp_path / "mute.mp4", pictures(100))  # the same pictures
    whole = recognizer("av", missing_modality="drop").predict(mute, faces="cut")
    assert whole.scores == part.scores


def test_regression_gives_values_and_bf16_nearly_the_same(recognizer, video):
    answer = recognizer("regression").predict(video, faces="cut")
    assert answer.label is None and answer.probabilities == {}
    assert set(answer.values) == set(NAMES)
    assert all(-1 < value < 1 for value in answer.values.values())  # of tanh
    assert answer.to_dict()["values"] == answer.values
    rough = recognizer("regression", precision="bf16").predict(video, faces="cut").scores
    assert rough == pytest.approx(answer.scores, abs=0.05) and rough != answer.scores


@pytest.fixture
def halves(tmp_path):
    """A video without sound and a sound without picture."""
    mute = save_media(tmp_path / "mute.mp4", pictures(100))
    return str(mute), save_wav(tmp_path / "dark.wav", speech(4.0))


def test_zeros_are_black_frames_and_silence(recognizer, halves):
    mute, dark = halves
    model = recognizer(missing_modality="zeros")
    seen = []
    (answer,) = model.each([mute], faces="cut", on_view=lambda _, view: seen.append(view.video))
    assert "answered by the picture alone" in answer.notes[0]
    _, silence = stand_ins(model.config.preprocessing)
    expected = model.model(normalise(seen[0][None]), silence[None]).softmax(-1)[0]
    assert [*answer.windows[0].scores.values()] == pytest.approx(expected.tolist(), abs=1e-5)
    black = np.zeros((100, 32, 32, 3), np.uint8)
    both = model.predict_arrays(black, 25, speech(4.0), faces="cut")
    alone = model.predict_arrays(None, 25, speech(4.0))
    assert alone.scores == pytest.approx(both.scores, abs=1e-6)


@pytest.mark.parametrize("stream", ["v", "a"])
def test_drop_reads_nothing_of_the_missing_stream(stream):
    """Neither its encoder nor the cross attention to it has any say."""
    model = classifier()
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(2, 3, 4, 32, 32, generator=generator) if stream == "v" else None
    audio = torch.randn(2, 1, 96, 128, generator=generator) if stream == "a" else None
    before = model.features(video, audio)["fused"]
    for name, weight in model.named_parameters():
        other = "encoder_audio" if stream == "v" else "encoder."
        if name.startswith(other) or "cross" in name:
            torch.nn.init.normal_(weight)
    assert torch.equal(model.features(video, audio)["fused"], before)
    assert before[0].tolist() != pytest.approx(before[1].tolist(), abs=1e-3)


def test_features_of_every_level(recognizer, video):
    model = recognizer()
    found = model.features(video, faces="cut")
    shapes = {name: array.shape[1:] for name, array in found.arrays.items()}
    expected = {"video_layers": (2, 128), "audio_layers": (3, 128), "fused": (512,)}
    assert shapes == expected | dict.fromkeys(
        "video audio fusion_video fusion_audio".split(), (128,)
    )
    assert len(found.start) == len(found.end) == len(found.arrays["fused"]) == 5
    head = model.model.head
    logits = found.arrays["fused"] @ head.weight.numpy().T + head.bias.numpy()
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    windows = model.predict(video, faces="cut").windows
    assert scores == pytest.approx(np.array([list(w.scores.values()) for w in windows]), abs=1e-5)
    weights = model.model.audio_layer_weights.softmax(0).numpy()
    mixed = np.einsum("wld,l->wd", found.arrays["audio_layers"], weights)
    assert mixed == pytest.approx(found.arrays["audio"], abs=1e-5)
    assert found.mean()["fused"] == pytest.approx(found.arrays["fused"].mean(0))


def test_features_of_one_stream_and_of_pretraining(recognizer, video):
    alone = recognizer("a").features(video).arrays
    shapes = {name: array.shape[1:] for name, array in alone.items()}
    assert shapes == {"audio_layers": (3, 128), "audio": (128,), "fused": (256,)}
    model = recognizer("pretrained")
    found = model.features(video, faces="cut").arrays
    assert set(found) == {"video_layers", "audio_layers", "fusion_video", "fusion_audio"}
    with pytest.raises(ValueError, match="pre-training checkpoint, which knows no emotions"):
        model.predict(video)
    with pytest.raises(ValueError, match="features are those of one face"):
        model.features(video, faces="all")


def test_what_is_wrong_with_a_clip_is_one_line(recognizer, tmp_path, clip, halves, video):
    """Broken films of all kinds are in tests/media."""
    model, (folder, _) = recognizer(), clip
    short = save_media(tmp_path / "short.mp4", pictures(2), speech(0.02)[None], codec="pcm_s16le")
    still = save_media(tmp_path / "still.mp4", pictures(50), np.zeros((1, 32000)))
    expected = {
        str(tmp_path / "nowhere.mp4"): "does not exist",
        folder: "is a folder of frames without sound; name its sound file",
        str(short): r"is too short: 20 ms of sound, expected at least 25 ms",
        str(still): "is silent",
        halves[0]: "mute.mp4' has no sound",
        halves[1]: "dark.wav' has no picture, only sound",
    }
    answers = list(model.each([*expected, video], faces="cut", on_error="return"))
    for answer, (file, message) in zip(answers, expected.items(), strict=False):
        assert isinstance(answer, Failure) and answer.file == file
        assert message in answer.reason and "\n" not in answer.reason
    assert answers[-1].label in NAMES
    with pytest.raises(UnreadableClip, match="nowhere.mp4' does not exist"):
        list(model.each(expected, faces="cut"))


def test_wrong_arrays_are_named():
    whole = {"frames": np.zeros((4, 8, 8, 3), np.uint8), "fps": 25.0, "waveform": np.ones(999)}
    for given, message in (
        ({"fps": 0}, "fps .* got 0"),
        ({"frames": np.zeros((4, 8, 8))}, r"float64 \(4, 8, 8\), expected uint8"),
        ({"waveform": np.zeros((2, 2, 9))}, r"shape \(2, 2, 9\), expected \(S,\)"),
        ({"waveform": np.zeros(9, int)}, r"int64, expected floats"),
        ({"waveform": np.full(9, np.nan)}, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Arrays(**whole | given)


def test_jumping_finds_the_same_frames_as_reading_all(tmp_path, monkeypatch):
    shown = [np.full((48, 64, 3), 20 + k, np.uint8) for k in range(200)]
    source = MediaFile(save_mp4(tmp_path / "a.mp4", pictures=shown))  # a key frame every 20
    assert source.times == pytest.approx(np.arange(200) / 25)
    wanted, decoded, decode = [0, 3, 130, 131, 199], [], film.decoded

    def counted(*args):
        for image in decode(*args):
            decoded.append(image)
            yield image

    monkeypatch.setattr(film, "decoded", counted)
    for gap, most in ((film.SEEK_GAP, 200), (1.0, 60)):
        monkeypatch.setattr(film, "SEEK_GAP", gap)
        decoded.clear()
        read = [frame.mean() for frame in source.frames(wanted)]
        assert read == pytest.approx([20 + k for k in wanted], abs=1.5)
        assert most // 2 < len(decoded) <= most


def test_a_video_may_be_heard_with_another_files_sound(recognizer, tmp_path, halves):
    mute, dark = halves
    source = open_source(mute, dark)
    assert source.has_sound and len(source.sound) == 64000
    joined = recognizer().predict(mute, audio=dark, faces="cut")
    frames = np.stack(list(MediaFile(mute).frames(range(100))))
    stored = np.round(speech(4.0) * 32767).astype(np.int16)
    memory = recognizer().predict_arrays(frames, 25, stored, faces="cut")
    assert joined.scores == pytest.approx(memory.scores, abs=1e-3)


@pytest.mark.parametrize(
    "task, settings, is_cut",
    [
        ("pretraining", {"source_crop": "voxceleb2"}, True),
        ("pretraining", {"data_path": "saved/data/voxceleb2/train.csv"}, True),
        ("pretraining", {"source_crop": "none", "data_path": "voxceleb2"}, False),
        ("classification", {"data_path": "voxceleb2"}, False),
    ],
)
def test_films_taken_as_they_are_are_cut_as_in_pretraining(tmp_path, task, settings, is_cut):
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[0:160, 32:192] = 200
    path = save_mp4(tmp_path / "a.mp4", pictures=[picture] * 4)
    clip_size = Preprocessing(num_frames=2, sampling_rate=1, input_size=160)
    config = ModelConfig(task, "v", (), None, clip_size, training={"settings": settings})
    clip = Clip(path, None, config, "v", Options(faces="cut"))
    clip.prepare()
    darkest = min(view.video.min() for view in clip.views())
    assert (darkest > 150) == is_cut


def test_a_clip_of_one_frame_is_enough(recognizer, tmp_path):
    folder = save_frames(tmp_path / "one", 1, (40, 40))
    answer = recognizer("v").predict(folder)
    assert len(answer.windows) == 1 and answer.label in NAMES
