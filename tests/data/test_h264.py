from fractions import Fraction

import av
import numpy as np
import pytest

import hicmae.data.media as decoding
from hicmae.data.media import open_h264
from hicmae.io import UnreadableClip
from tests.conftest import frame

KINDS = {
    "VoxCeleb2's": {"g": "250", "bf": "3"},
    "many keyframes": {"g": "12", "bf": "3"},
    "open groups": {"g": "12", "bf": "3", "x264-params": "open-gop=1"},
    "no keyframes but the first": {"g": "12", "intra-refresh": "1"},
    "no B-frames": {"g": "20", "bf": "0"},
    "B-frames that others refer to": {"g": "30", "bf": "7", "b-pyramid": "normal"},
}


def encode(path, options, size=(64, 48), codec="libx264", frames=60, pix_fmt="yuv420p") -> str:
    """Write a film that moves, with noise, so that every frame differs from its neighbours."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30000, 1001), options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for index in range(frames):
            picture = np.roll(frame(index, *size), 2 * index, axis=1)
            noisy = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def turn(path: str) -> str:
    """Mark a film as one to be shown turned by 90 degrees, as telephones do."""
    with open(path, "r+b") as file:
        place = file.read().index(b"tkhd") + 4 + 40
        file.seek(place)
        for value in (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30):
            file.write(value.to_bytes(4, "big", signed=True))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_times_are_those_of_decoding_everything(tmp_path, kind):
    path = encode(tmp_path / "a.mp4", {"preset": "fast", **KINDS[kind]})
    video, reference = open_h264(path), decoding.PyAVVideo(path)
    assert len(video) == len(reference) == 60
    whole = reference.read(range(60))
    windows = [range(60), [59], range(0, 60, 4), range(37, 60, 3), [13], [11, 12, 24, 25, 26, 48]]
    for window in windows:
        for index, picture in zip(window, video.read(window), strict=True):
            np.testing.assert_array_equal(picture, whole[index])
    assert [video.times(k, k) for k in range(60)] == [reference.times(k, k) for k in range(60)]


@pytest.mark.skipif(decoding.decord is None, reason="no decord here")
@pytest.mark.parametrize("size, pix_fmt", [((64, 64), "yuv420p"), ((226, 130), "yuvj420p")])
def test_frames_and_times_are_those_of_decord(tmp_path, size, pix_fmt):
    path = encode(tmp_path / "a.mp4", {"preset": "fast"}, size, pix_fmt=pix_fmt)
    video, reference = open_h264(path), decoding.DecordVideo(path)
    for one, other in zip(video.read([0, 7, 31]), reference.read([0, 7, 31]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert video.times(5, 59) == reference.times(5, 59)


def test_decoding_starts_at_a_keyframe_and_leaves_frames_out(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", {"g": "20", "sc_threshold": "0", "bf": "3"})
    video = open_h264(path)
    converted = []
    monkeypatch.setattr("hicmae.data.media._keep", lambda got, *_: converted.extend(got))
    video.read([45])
    assert 0 < len(converted) < 8, "of 60 frames, only those from 40 on that others refer to"


def test_a_keyframe_that_others_reach_across_is_no_start(tmp_path):
    closed = open_h264(encode(tmp_path / "a.mp4", {"g": "12", "sc_threshold": "0"}))
    keys = [place for place, packet in enumerate(closed.packets) if packet.is_keyframe]
    assert closed._start(keys[3] + 2) == keys[3] > 0
    options = {"g": "12", "sc_threshold": "0", "x264-params": "open-gop=1:bframes=3"}
    reached = open_h264(encode(tmp_path / "b.mp4", options))
    keys = [place for place, packet in enumerate(reached.packets) if packet.is_keyframe]
    assert len(keys) > 2 and reached._start(keys[-1]) == 0


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.mkv", "libx264", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.mp4", "libx264", "yuv444p"),
    ],
)
def test_other_files_are_decoded_whole(tmp_path, name, codec, pix_fmt):
    path = encode(tmp_path / name, {}, codec=codec, frames=20, pix_fmt=pix_fmt)
    assert open_h264(path) is None
    assert len(decoding.open_video(path)) == 20


@pytest.mark.skipif(decoding.decord is None, reason="no decord here")
def test_turned_film_is_read_as_ever(tmp_path):
    path = turn(encode(tmp_path / "a.mp4", {}, size=(64, 64), frames=20))
    video = decoding.open_video(path)
    assert isinstance(video, decoding.Mp4Video)
    reference = decoding.DecordVideo(path)
    for one, other in zip(video.read([3, 9]), reference.read([3, 9]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frame_that_does_not_come_is_asked_of_the_other_decoders(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", {}, frames=20)
    expected = decoding.open_video(path).read([2, 4])
    monkeypatch.setattr("hicmae.data.media._keep", lambda *_: None)
    video = decoding.open_video(path)
    assert isinstance(video, decoding.Mp4Video) and video.video.read([2, 4]) is None
    np.testing.assert_array_equal(video.read([2, 4]), expected)


def test_reading_again_gives_the_same(tmp_path):
    video = open_h264(encode(tmp_path / "a.mp4", {"bf": "3"}, frames=30))
    first = video.read([3, 17])
    np.testing.assert_array_equal(video.read([17])[0], first[1])
    np.testing.assert_array_equal(video.read([3])[0], first[0])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch, codec):
    path = encode(tmp_path / "a.mp4", {}, codec=codec, frames=3)
    monkeypatch.setattr("hicmae.data.video.MAX_PIXELS", 64 * 48 - 1)
    message = "a.mp4' has 64 x 48 pixels, expected at most 3071; make it smaller"
    with pytest.raises(UnreadableClip, match=message):
        decoding.open_video(path)


def test_pictures_that_would_fill_the_memory_are_refused(write_frames, monkeypatch):
    video = decoding.open_video(write_frames(frames=2))
    monkeypatch.setattr("hicmae.data.video.MAX_PIXELS", 1000)
    with pytest.raises(UnreadableClip, match="frame_001.jpg' has 40 x 40 pixels"):
        video.read([1])
