import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hicmae.data.film import Film, H264Film, open_video
from hicmae.data.media import find_clips, opened
from hicmae.data.video import read_frames
from hicmae.io import UnreadableClip
from tests.conftest import frame, save_media, save_mp4
from tests.small_runs import run_ranks

FILMS = {
    "VoxCeleb2's": {"g": "250", "bf": "3"},
    "many keyframes": {"g": "12", "bf": "3"},
    "open groups": {"g": "12", "bf": "3", "x264-params": "open-gop=1"},
    "no keyframes but the first": {"g": "12", "intra-refresh": "1"},
    "no B-frames": {"g": "20", "bf": "0"},
    "B-frames that others refer to": {"g": "30", "bf": "7", "b-pyramid": "normal"},
}


def encode(path, options) -> str:
    """Write a film that moves, with noise, so that every frame differs from its neighbours."""
    rng, pictures = np.random.default_rng(0), []
    for index in range(60):
        picture = np.roll(frame(index, 64, 48), 2 * index, axis=1)
        noisy = picture + rng.normal(0, 6, picture.shape)
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return str(save_media(path, pictures, fps=30, preset="fast", **options))


# all readers


@pytest.mark.parametrize("name", ["a dir/a b.mp4", "quote'\".mp4", "two\n表.mp4", "http:b.mp4"])
@pytest.mark.parametrize("reader", [open_video, Film])
def test_film_gives_the_asked_frames_in_rgb(write_mp4, reader, name, monkeypatch, tmp_path):
    path = Path(write_mp4(name, frames=50))
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"\xff\x80deoHandler"))  # no UTF-8
    monkeypatch.chdir(tmp_path)
    video = reader(name)
    assert isinstance(video, H264Film if reader is open_video else reader) and len(video) == 50
    images = read_frames(video, [np.array([7, 31, 31]), np.array([0, 49])])
    assert list(images) == [0, 7, 31, 49]
    for index, image in images.items():
        assert image.shape == (48, 64, 3)
        difference = image.astype(int) - frame(index, 64, 48)
        assert np.abs(difference).mean() < 6  # what the encoder loses


# partial decoding of H.264


@pytest.mark.parametrize("kind", FILMS)
def test_frames_and_times_are_those_of_decoding_everything(tmp_path, kind):
    path = encode(tmp_path / "a.mp4", FILMS[kind])
    video, reference = open_video(path), Film(path)
    assert len(video) == len(reference) == 60
    whole = reference.read(range(60))
    windows = [range(60), [59], range(0, 60, 4), range(37, 60, 3), [13], [13], [11, 12, 24, 25, 48]]
    for window in windows:
        for index, picture in zip(window, video.read(window), strict=True):
            np.testing.assert_array_equal(picture, whole[index])
    assert [video.times(k, k) for k in range(60)] == [reference.times(k, k) for k in range(60)]


@pytest.mark.parametrize(
    "options, fewest, most",
    [
        ({"bf": "3"}, 1, 7),  # only frames from 40 on that others refer to
        ({"x264-params": "open-gop=1:bframes=3"}, 12, 40),  # they reach across keyframes
    ],
)
def test_decoding_starts_at_a_keyframe_that_none_reach_across(tmp_path, options, fewest, most):
    options = {"g": "20", "sc_threshold": "0", **options}
    video = open_video(encode(tmp_path / "a.mp4", options))
    video.codec = Counting(video.codec)
    (picture,) = video.read([45])
    assert len(picture) == 48
    assert fewest <= video.codec.frames <= most, "of the 46 frames up to it"


class Counting:
    """A codec that counts the frames it gives."""

    def __init__(self, codec) -> None:
        self.__dict__.update(codec=codec, frames=0)

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def __setattr__(self, name, value):
        setattr(self.codec, name, value)

    def decode(self, packet):
        frames = self.codec.decode(packet)
        self.__dict__["frames"] += len(frames)
        return frames


# folders of frames


def test_folder_is_read_in_natural_order_whatever_the_case_kind_and_mode(tmp_path):
    kinds = {"2.png": "RGBA", "10.JPG": "L", "a9.jpeg": "RGB", "a010.bmp": "P"}
    for index, (name, mode) in enumerate(kinds.items(), 1):
        Image.fromarray(np.full((20, 30, 3), 30 * index, np.uint8)).convert(mode).save(
            tmp_path / name
        )
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "._a.png").write_bytes(b"a Mac's shadow file")
    video = open_video(str(tmp_path))
    assert video.names == list(kinds), "2 is before 10"
    images = video.read(range(4))
    assert all(image.shape == (20, 30, 3) and image.dtype == np.uint8 for image in images)
    np.testing.assert_allclose([image.mean() for image in images], [30, 60, 90, 120], atol=3)
    with pytest.raises(UnreadableClip, match="has no frame times"):
        video.times(0, 1)


def test_unreadable_frame_breaks_a_clip_only_when_it_is_needed(write_frames):
    folder = write_frames(frames=5, kind="png")
    with open(os.path.join(folder, "frame_003.png"), "r+b") as file:
        file.seek(40)
        file.write(bytes(20))
    video = open_video(folder)
    assert len(video.read([0, 2, 4])) == 3
    with pytest.raises(UnreadableClip, match="frame .*frame_003.png' cannot be read: "):
        video.read([2, 3])


def test_frames_are_shown_upright_and_16_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.full((20, 30), 95 * 257, np.uint16)).save(tmp_path / "0.png")
    halves = np.zeros((32, 48, 3), np.uint8)
    halves[:16] = 200
    turned = {2: halves, 3: halves[::-1], 6: np.rot90(halves, -1), 8: np.rot90(halves)}
    for orientation in turned:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(halves).save(tmp_path / f"{orientation}.jpg", exif=exif, quality=95)
    grey, *images = open_video(str(tmp_path)).read(range(5))
    assert grey.shape == (20, 30, 3) and (grey == 95).all()
    for expected, image in zip(turned.values(), images, strict=True):
        assert image.shape == expected.shape and np.abs(image - expected.astype(int)).mean() < 5


def test_a_picture_among_films_is_no_frame(write_mp4, tmp_path):
    films = [write_mp4(f"films/{name}.mp4", 3) for name in "ab"]
    Image.new("RGB", (8, 8)).save(tmp_path / "films" / "cover.jpg")
    assert find_clips(str(tmp_path / "films")) == films
    with pytest.raises(UnreadableClip, match="films' is a folder of films"):
        open_video(str(tmp_path / "films"))


def test_decoding_threads_never_wait_for_python(tmp_path):
    """torchvision before 0.26 sets a level; with it a decoder that is closed may hang."""
    av.logging.set_level(av.logging.ERROR)
    with opened(save_mp4(tmp_path / "a.mp4", 3)):
        assert av.logging.get_level() is None


def read_in_a_fork(_, film):
    """Read a film as the page and the overlay do, then in a process that is forked from this."""
    list(Film(film).frames([0, 1]))
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    else:
        signal.alarm(30)
        os._exit(len(open_video(film).read([0, 1, 2])))


def test_a_forked_worker_reads_films_after_its_parent_did(tmp_path):
    run_ranks(1, read_in_a_fork, save_mp4(tmp_path / "a.mp4", frames=10))
