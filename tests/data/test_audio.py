import numpy as np
import pytest
import soundfile
import torch
import torchaudio.compliance.kaldi as kaldi

from hicmae.data.audio import (
    WavFile,
    fbank,
    fbanks,
    frames_to_samples,
    span_features,
    span_or_whole,
)
from hicmae.data.video import test_windows
from hicmae.io import UnreadableClip
from tests.conftest import tone
from tests.golden_inputs import golden

GOLDEN = golden("golden_data")
FBANKS = [key for key in GOLDEN if key.startswith("fbank")]
VIEWS = [(key, segments) for key in GOLDEN["eval_views"] for segments in (2, 5)]


def wave(num_samples: int, seed: int) -> np.ndarray:
    """Return the waveform of golden/README.md."""
    t = np.arange(num_samples) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (220 + 80 * np.sin(2 * np.pi * 1.5 * t)) * t)
    beep = 0.1 * np.sin(2 * np.pi * 1333 * t) * (np.mod(t, 0.5) < 0.25)
    noise = 0.02 * np.random.RandomState(seed).standard_normal(num_samples)
    return (tone + beep + noise + 0.01).astype(np.float32)


@pytest.mark.parametrize("key", FBANKS)
def test_fbank_equals_the_original(key):
    expected = GOLDEN[key]
    features = fbank(wave(expected["n_samples"], 7))
    assert features.shape == (1, *expected["shape"]) and features.dtype == torch.float32
    features = features[0].double().numpy()
    np.testing.assert_allclose(features[::37, ::13], expected["sample"], atol=2e-5)
    assert features.sum() == pytest.approx(expected["sum"], abs=0.02)
    assert np.abs(features).sum() == pytest.approx(expected["abs"], abs=0.02)


@pytest.mark.parametrize("key, segments", VIEWS)
def test_audio_of_test_windows_equals_the_original(key, segments):
    total_frames, num_samples = map(int, key.split("x"))
    spans = []
    for window in test_windows(total_frames, segments):
        first, last = int(window[0]), min(int(window[0]) + 64, total_frames - 1)
        start, stop = frames_to_samples(first, last, total_frames, num_samples)
        spans.append(span_or_whole("a.wav", start, stop, num_samples))
    golden_spans = [
        tuple(view["audio"]) for view in GOLDEN["eval_views"][key] if view["segments"] == segments
    ]
    assert spans == list(dict.fromkeys(golden_spans))


def torchaudio_fbank(waveform: np.ndarray, gain: float, bins: int, steps: int) -> torch.Tensor:
    samples = torch.from_numpy(waveform)
    waveform = ((samples - samples.mean()) * gain)[None]
    options = {"htk_compat": True, "window_type": "hanning", "dither": 0.0}
    features = kaldi.fbank(waveform, num_mel_bins=bins, **options)[:steps]
    padded = torch.zeros(steps, bins)
    padded[: len(features)] = features
    return ((padded + 4.2677393) / (2 * 4.5689974))[None]


@pytest.mark.parametrize("num_samples", [400, 561, 16000, 90000])
@pytest.mark.parametrize("bins, steps, gain", [(128, 256, 1.0), (64, 96, 0.7)])
def test_fbank_equals_torchaudios(num_samples, bins, steps, gain):
    waveform = wave(num_samples, 5)
    expected = torchaudio_fbank(waveform, gain, bins, steps)
    features = fbank(waveform, (steps, bins), gain)
    torch.testing.assert_close(features, expected, atol=2e-6, rtol=0)
    for scale in (1e-4, 0.0):  # next to nothing
        quiet = waveform * np.float32(scale)
        expected = torchaudio_fbank(quiet, gain, bins, steps)
        features = fbank(quiet, (steps, bins), gain)
        torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)


def test_filter_banks_of_several_waveforms_are_those_of_each():
    waveforms, gains = [wave(n, n) for n in (41000, 700, 20000)], [1.0, 0.8, 1.3]
    together = fbanks(waveforms, gains)
    assert together.shape == (3, 1, 256, 128)
    for row, waveform, gain in zip(together, waveforms, gains, strict=True):
        torch.testing.assert_close(row, fbank(waveform, gain=gain), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="399 samples, expected at least 400"):
        fbank(np.zeros(399, np.float32))


# spans


def test_a_short_span_becomes_the_whole_of_a_short_wav_and_is_refused_of_a_long_one():
    assert span_or_whole("a.wav", 100, 1124, 40959) == (0, 40959)
    assert span_or_whole("a.wav", 100, 1125, 40959) == (100, 1125)
    assert span_or_whole("a.wav", 40000, 99999, 50000) == (40000, 50000), "cut to the wav"
    for span, samples, facts in (
        ((100, 1124), 40960, "'a.wav' has 40960 samples but only 1024 .* more than 1024"),
        ((90000, 95000), 50000, "only 0 belong"),
    ):
        with pytest.raises(UnreadableClip, match=facts):
            span_or_whole("a.wav", *span, samples)


def test_features_are_those_of_exactly_the_samples_of_a_span(write_wav):
    path = write_wav(samples=wave(60000, 3))
    samples = soundfile.read(path, dtype="float32")[0]
    np.testing.assert_array_equal(WavFile(path).sound(1234, 3000), samples[1234:3000])
    features = span_features(WavFile(path), [(8000, 48960)], [1.0])
    torch.testing.assert_close(features[0], fbank(samples[8000:48960]))


# files that are no use


@pytest.mark.parametrize(
    "content, facts",
    [
        ({"rate": 44100}, "sample rate 44100 Hz, expected 16000; .*extract_audio.py"),
        ({"samples": np.full((4000, 2), 0.1)}, "2 channels, expected 1; .*extract_audio.py"),
        ({"samples": 399}, "399 samples, expected at least the 400"),
        ({"samples": np.zeros(50000)}, "silent: all its samples are 0"),
    ],
)
def test_wav_that_is_of_no_use_is_refused(write_wav, content, facts):
    with pytest.raises(UnreadableClip, match=f"clip.wav' .*{facts}"):
        WavFile(write_wav(**content)).sound(0, 3000)


def test_silent_span_of_a_wav_with_sound_is_accepted(write_wav):
    path = write_wav(samples=np.concatenate([np.zeros(30000, np.float32), tone(20000)]))
    assert not WavFile(path).sound(0, 20000).any()
    assert torch.isfinite(span_features(WavFile(path), [(0, 20000)], [1.0])).all()


def test_truncated_wav_gives_what_is_there(write_wav, tmp_path):
    data = open(write_wav(samples=20000), "rb").read()
    path = tmp_path / "cut.wav"
    path.write_bytes(data[: 44 + 2 * 9000])
    assert len(WavFile(str(path))) == 9000
    with pytest.raises(UnreadableClip, match="cut.wav' is cut off: got 1000 of 3000 samples"):
        WavFile(str(path)).sound(8000, 11000)
