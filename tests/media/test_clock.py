"""Sound that is read with a frame is the sound that was heard when it was seen."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from hicmae.data import audio, video
from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import Clip, read_packed, write_list
from hicmae.data.dataset import LabelledClips, PretrainClips, TestClips
from hicmae.data.film import Film, open_video
from hicmae.inference.pictures import write_overlay
from hicmae.inference.sources import open_source
from preprocess import pack_clips
from preprocess.face_and_audio import extract_audio
from preprocess.face_and_audio.batch import Job
from tests.conftest import same
from tests.media.clock_films import FILMS, QUICK, STEADY, offsets, save_film, seen_at

SMALL = dict(num_frames=4, sampling_rate=2, input_size=64, input_size_audio=(64, 32))


def pairs_of(path: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield frames as inference reads them, each with the 0.1 s of sound around its time."""
    source = open_source(path)
    times, samples = source.times, source.sound
    wanted = [k for k, time in enumerate(times) if 0.3 < time < times[-1] - 0.3][::5]
    for k, image in zip(wanted, source.frames(wanted), strict=True):
        yield image, samples[round(times[k] * 16000) - 800 :][:1600]


# training


@pytest.fixture
def heard(monkeypatch):
    """Return the list of the sounds that become features; crops are the whole picture."""
    found, fbanks = [], audio.fbanks
    monkeypatch.setattr(audio, "fbanks", lambda w, *more: found.extend(w) or fbanks(w, *more))
    monkeypatch.setattr(video, "draw_crop", lambda region, rng: region)
    return found


DATA_SETS = {
    "pretraining": lambda clips: PretrainClips(clips, **SMALL, num_samples=8),
    "training": lambda clips: LabelledClips(clips, **SMALL, num_samples=8),
    "testing": lambda clips: TestClips(clips, **SMALL, num_segments=8),
}


@pytest.mark.parametrize("name", FILMS)
def test_inference_an_annotated_copy_and_training_hear_what_they_see(tmp_path, heard, name):
    expected = -FILMS[name].get("late", 0.0)
    clip = Clip(save_film(tmp_path / name, **FILMS[name]), str(tmp_path / "a.wav"), 0)
    copy = write_overlay(clip.video, [], tmp_path / "copy.mp4")
    for path in (clip.video, str(copy)):
        assert np.abs(offsets(pairs_of(path)) - expected).max() < 0.04, path
    extract_audio.convert(Job("a", clip.video, clip.audio))
    for stage, make in DATA_SETS.items():
        heard.clear()
        batch = make([clip])[ClipIndex(0, 0)]
        assert not batch.skipped
        images = batch.video[:, :, 0].permute(0, 2, 3, 1).numpy().astype(float)
        begins = (sound[:1600] for sound in heard)
        found = offsets(zip(images, begins, strict=True)) - 0.05  # from its middle to its begin
        assert np.abs(found - expected).max() < 0.04, stage


@pytest.mark.parametrize("name", ["late.mp4", "variable.mp4", "cut.mp4", "reordered.avi"])
def test_packed_films_are_heard_as_the_films_are(tmp_path, name):
    clip = Clip(save_film(tmp_path / name, **FILMS[name]), str(tmp_path / "a.wav"), 0)
    extract_audio.convert(Job("a", clip.video, clip.audio))
    stages = {"pretrain": ["pretraining"], "classification": ["training", "testing"]}
    for task, names in stages.items():
        write_list(tmp_path / "list.csv", [clip])
        flags = f"--output_dir {tmp_path / task} --task {task} --lossless --num_workers 1".split()
        assert pack_clips.main([str(tmp_path / "list.csv"), *flags]) == 0
        packed = read_packed(tmp_path / task)
        for make in map(DATA_SETS.get, names):
            assert same(make([clip])[ClipIndex(0, 0)], make(packed)[ClipIndex(0, 0)])


DAMAGED = {
    "a.mp4": {"muxer": {"movflags": "faststart"}},  # the index first, or what is cut off has none
    "b.mp4": {"codecs": ("mpeg4", "aac"), "muxer": {"movflags": "faststart"}},
    "a.mkv": {},
    "a.ts": {},
    "a.avi": {"codecs": ("mpeg4", "mp3"), "options": {"bf": "2"}},
    "a.wmv": {"codecs": ("wmv2", "wmav2")},
    "a.webm": {"codecs": ("libvpx", "libopus")},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_film_cut_short_or_with_a_damaged_packet_is_trained_on(tmp_path, write_wav, name):
    path = Path(save_film(tmp_path / name, **DAMAGED[name]))
    data, wav = path.read_bytes(), write_wav(samples=80000)
    with av.open(str(path)) as film:
        places = [(packet.pos, packet.size) for packet in film.demux(video=0) if packet.size]

    def skipped(content: bytes) -> tuple:
        path.write_bytes(content)
        dataset = PretrainClips([Clip(str(path), wav, None), other], **SMALL, num_samples=4)
        return dataset[ClipIndex(0, 0)].skipped

    def broken(packets: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for place, size in packets:
            changed[place + size // 4 : place + 3 * size // 4] = bytes(3 * size // 4 - size // 4)
        return bytes(changed)

    other = Clip(save_film(tmp_path / "other.mp4"), wav, None)
    assert not skipped(data[: int(0.7 * len(data))]) and len(open_video(str(path))) > 80
    assert not skipped(broken(places[40:41])) and len(open_video(str(path))) > 100
    if name == "a.mp4":
        (clip,) = skipped(broken(places[1:]))
        assert "damaged" in clip.reason and path.name in clip.reason


# readers

CODECS = {
    "libx264": ("mp4", "mov", "mkv", "avi", "ts", "flv"),
    "libx265": ("mp4", "mkv", "ts"),
    "mpeg4": ("mp4", "mkv", "avi"),
    "mpeg2video": ("mpg", "ts"),
    "wmv2": ("wmv", "avi"),
    "libvpx-vp9": ("webm", "mp4"),
    "libsvtav1": ("webm", "mp4"),
}
SOUNDS = {"webm": "libopus", "avi": "pcm_s16le", "mpg": "mp2", "wmv": "wmav2"}
OPTIONS = {
    "libvpx-vp9": QUICK,
    "libsvtav1": {"preset": "8"},
    "libx265": {"x265-params": "log-level=0", "preset": "ultrafast"},
}
# What a film's matrix says, and what it does to a picture.
TURNS = {
    "a quarter to the right": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "a quarter to the left": ((0, -1, 1, 0), np.rot90),
    "upside down": ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "mirrored and turned": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
}
KINDS = [
    (suffix, codec, bframes, cut, "")
    for codec, suffixes in CODECS.items()
    for suffix in suffixes
    for bframes in ((0, 2) if codec in ("libx264", "libx265", "mpeg4", "mpeg2video") else (0,))
    for cut in ((0.0, 1.2) if suffix in ("mp4", "mov") else (0.0,))
] + [("mp4", codec, 2, 0.0, turn) for codec in ("libx264", "mpeg4") for turn in TURNS]


@pytest.mark.parametrize("suffix, codec, bframes, cut, turn", KINDS)
def test_all_readers_give_the_frames_of_their_times(tmp_path, suffix, codec, bframes, cut, turn):
    options = OPTIONS.get(codec, {}) | ({"bf": str(bframes)} if bframes else {})
    made = {"codecs": (codec, SOUNDS.get(suffix, "aac")), "options": options, "cut": cut}
    made |= {"times": STEADY[:75], "heard_for": 3.0}
    path = save_film(tmp_path / f"a.{suffix}", **made)
    assert getattr(os, "sched_getscheduler", lambda _: 0)(0) == 0  # like any other process
    film = Film(path)
    whole = list(film.frames(range(len(film))))
    assert len(whole) == 75 - int(cut * 25)
    seen = np.array([seen_at(image) for image in whole])
    assert np.abs(seen - cut - film.clock.times).max() < 0.03
    if turn:
        matrix, shown = TURNS[turn]
        path = save_film(tmp_path / f"b.{suffix}", **made, matrix=matrix)
        whole = [shown(image) for image in whole]
    for reader in (open_video(path), Film(path)):
        assert len(reader) == len(whole) and np.allclose(reader.frame_times, film.frame_times)
        for window in ([3, 9, 30], [1, 2], range(20, 42, 4), [len(whole) - 1]):
            for index, image in zip(window, reader.read(window), strict=True):
                np.testing.assert_array_equal(image, whole[index])
