import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import hicmae.data.media as decoding
import hicmae.data.video as film
from hicmae.data import media
from hicmae.io import UnreadableClip
from tests.conftest import frame
from tests.golden_inputs import golden

GOLDEN = golden("golden_data")
HAS_DECORD = decoding.decord is not None
DECODERS = [
    "h264",
    pytest.param("decord", marks=pytest.mark.skipif(not HAS_DECORD, reason="no decord here")),
    "pyav",
]
KINDS = {"h264": decoding.Mp4Video, "decord": decoding.DecordVideo, "pyav": decoding.PyAVVideo}


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    """Run a test with partial decoding of H.264, with decord, and with the last resort."""
    if request.param != "h264":
        monkeypatch.setattr(decoding, "open_h264", lambda path: None)
    if request.param == "pyav":
        monkeypatch.setattr(decoding, "decord", None)
    return request.param


# which frames


@pytest.mark.parametrize("key", GOLDEN["eval_views"])
@pytest.mark.parametrize("segments", [2, 5])
def test_test_windows_equal_the_original_without_repetition(key, segments):
    expected = [tuple(v["frames"]) for v in GOLDEN["eval_views"][key] if v["segments"] == segments]
    windows = film.test_windows(int(key.split("x")[0]), segments)
    assert [tuple(window.tolist()) for window in windows] == list(dict.fromkeys(expected))


@pytest.mark.parametrize("total_frames", [1, 5, 16, 63, 64])
@pytest.mark.parametrize("segments", [1, 2, 7])
def test_clips_of_no_more_than_a_span_have_one_view(total_frames, segments):
    assert len(film.test_windows(total_frames, segments)) == 1


def test_one_segment_is_centred():
    (window,) = film.test_windows(120, 1)
    assert window.tolist() == list(range(28, 92, 4))


def test_windows_follow_other_lengths_and_strides():
    windows = film.test_windows(40, 2, num_frames=8, sampling_rate=3)
    assert [window.tolist() for window in windows] == [
        list(range(0, 24, 3)),
        list(range(18, 42, 3)),
    ]


@pytest.mark.parametrize("key", GOLDEN["train_clips"])
def test_train_frames_equal_the_original(key):
    expected = GOLDEN["train_clips"][key]
    for end, frames in expected.get("by_end", {None: expected.get("frames")}).items():
        chosen = film.train_frames(int(key), end and int(end))
        assert chosen.tolist() == frames


def test_validation_takes_the_centre():
    assert film.train_frames(200).tolist() == film.train_frames(200, 132).tolist()
    assert film.train_frames(65).tolist() == film.train_frames(65, 64).tolist()


@pytest.mark.parametrize("total_frames", [1, 2, 3])
def test_train_frames_of_tiny_clips_stay_inside(total_frames):
    assert film.train_frames(total_frames).tolist() == [total_frames - 1] * 16


def test_pretrain_frames_step_from_the_start():
    assert film.pretrain_frames(200, 136).tolist() == list(range(136, 200, 4))


def test_pretrain_frames_of_a_short_clip_repeat_the_last_one_reached():
    assert film.pretrain_frames(11).tolist() == [0, 4] + [8] * 14
    assert film.pretrain_frames(63).tolist() == list(range(0, 64, 4))


# decoding


@pytest.mark.parametrize(
    "name", ["a.mp4", "with space/a b.mp4", "quote'\".mp4", "é 表.mp4", "two\nlines.mp4", "a:b.mp4"]
)
def test_mp4_gives_the_asked_frames_in_rgb(write_mp4, decoder, name):
    video = media.open_video(write_mp4(name, frames=50))
    assert isinstance(video, KINDS[decoder])
    assert len(video) == 50
    images = media.read_frames(video, [np.array([7, 31, 31]), np.array([0, 49])])
    assert list(images) == [0, 7, 31, 49]
    for index, image in images.items():
        assert image.shape == (48, 64, 3)
        difference = np.asarray(image).astype(int) - frame(index, 64, 48)
        assert np.abs(difference).mean() < 6  # what the encoder loses


def test_relative_name_with_a_colon_is_a_file(write_mp4, decoder, monkeypatch, tmp_path):
    write_mp4("http:b.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(media.open_video("http:b.mp4")) == 3


@pytest.mark.skipif(not HAS_DECORD, reason="no decord here")
def test_fallback_gives_the_frames_and_times_of_decord(write_mp4):
    path = write_mp4(frames=60, fps=30)
    first, second = decoding.DecordVideo(path), decoding.PyAVVideo(path)
    indices = [0, 1, 19, 20, 41, 59]
    for one, other in zip(first.read(indices), second.read(indices), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert first.times(13, 59) == second.times(13, 59)


def test_times_are_begin_of_the_first_and_end_of_the_last_frame(write_mp4, decoder):
    video = media.open_video(write_mp4(frames=30, fps=20))
    assert video.times(4, 9) == pytest.approx((0.2, 0.5), abs=1e-5)


def test_folder_is_read_by_name_whatever_the_case_and_kind(tmp_path):
    for name, index in {"b.JPG": 2, "a.png": 1, "c.jpeg": 3, "d.bmp": 4}.items():
        Image.fromarray(frame(index * 10, 30, 20)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "._a.png").write_bytes(b"a Mac's shadow file")
    video = media.open_video(str(tmp_path))
    assert video.names == ["a.png", "b.JPG", "c.jpeg", "d.bmp"]
    values = [np.asarray(image)[-1, -1].mean() for image in video.read(range(4))]
    np.testing.assert_allclose(values, [30, 60, 90, 120], atol=3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_frames_of_any_mode_become_rgb(tmp_path, mode):
    Image.fromarray(frame(0, 30, 20)).convert(mode).save(tmp_path / "a.png")
    (image,) = media.open_video(str(tmp_path)).read([0])
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


def test_missing_video_is_named(decoder):
    with pytest.raises(UnreadableClip, match="video 'none.mp4' does not exist"):
        media.open_video("none.mp4")


def test_zero_byte_video_is_named(broken_mp4, decoder):
    with pytest.raises(UnreadableClip, match="empty.mp4' is an empty file"):
        media.open_video(broken_mp4("empty"))


@pytest.mark.parametrize("kind", ["truncated", "text"])
def test_file_that_is_no_video_is_named_on_one_line(broken_mp4, decoder, kind):
    with pytest.raises(UnreadableClip, match=f"{kind}.mp4' cannot be opened: ") as caught:
        media.open_video(broken_mp4(kind))
    assert "\n" not in str(caught.value)


def test_file_without_a_video_stream_is_named(broken_mp4, decoder):
    with pytest.raises(UnreadableClip, match="audio_only.mp4' (cannot be opened|holds no frame)"):
        media.open_video(broken_mp4("audio_only"))


def test_file_that_fails_at_late_frames_is_named(broken_mp4, decoder):
    video = media.open_video(broken_mp4("corrupt"))
    assert len(video) == 80
    with pytest.raises(UnreadableClip, match="corrupt.mp4' cannot be decoded: ") as caught:
        video.read(range(0, 80, 4))
    assert "\n" not in str(caught.value)


def test_title_that_is_no_utf8_is_no_obstacle(write_mp4, decoder):
    path = write_mp4(frames=3)
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(data.index(b"VideoHandler"))
        file.write(b"\xff\x80")
    assert len(media.open_video(path).read([0, 2])) == 2


def test_fallback_refuses_a_file_that_ends_early(write_mp4):
    video = decoding.PyAVVideo(write_mp4(frames=20))
    with pytest.raises(UnreadableClip, match="cannot be decoded: it ends before frame 25"):
        video.read([3, 25])


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x", "sound.wav": b"y"}])
def test_folder_without_images_is_named(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableClip, match="holds no frame, expected .jpg .jpeg .png .bmp files"):
        media.open_video(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_forbidden_folder_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UnreadableClip, match="closed' cannot be read: Permission denied"):
        media.open_video(str(tmp_path / "closed"))


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_unreadable_frame_breaks_a_clip_only_when_it_is_needed(write_frames, content):
    folder = write_frames(frames=5)
    path = os.path.join(folder, "frame_003.jpg")
    if content == "truncated":
        data = open(path, "rb").read()
        content = data[: len(data) // 2]
    with open(path, "wb") as file:
        file.write(content)
    video = media.open_video(folder)
    assert len(video.read([0, 2, 4])) == 3
    with pytest.raises(UnreadableClip, match="frame .*frame_003.jpg' cannot be read: "):
        video.read([2, 3])


def test_broken_png_is_named(write_frames):
    folder = write_frames(frames=2, kind="png")
    path = os.path.join(folder, "frame_001.png")
    data = bytearray(open(path, "rb").read())
    data[40:60] = bytes(20)
    with open(path, "wb") as file:
        file.write(data)
    with pytest.raises(UnreadableClip, match="frame_001.png' cannot be read"):
        media.open_video(folder).read([1])


def test_folder_has_no_frame_times(write_frames):
    with pytest.raises(
        UnreadableClip, match="has no frame times, expected a video file in pre-training"
    ):
        media.open_video(write_frames(frames=2)).times(0, 1)


# geometry and pixels


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("multiscale")])
def test_multi_scale_crops_equal_the_original(key):
    width, height = map(int, key.split("_")[1].split("x"))
    expected = GOLDEN[key]
    assert [list(size) for size in film.crop_sizes(width, height)] == expected["pairs"]
    for size in film.crop_sizes(width, height):
        offsets = film.crop_offsets(width, height, *size)
        assert json.loads(json.dumps(offsets)) == expected["offsets"][f"{size[0]}x{size[1]}"]


def test_drawn_crops_stay_in_their_region_and_reach_every_size():
    rng = np.random.default_rng(0)
    boxes = {film.draw_crop((30, 10, 190, 202), rng) for _ in range(600)}
    lefts, tops, rights, bottoms = np.array(list(boxes)).T
    assert lefts.min() == 30 and tops.min() == 10 and rights.max() == 190 and bottoms.max() == 202
    sizes = {(right - left, bottom - top) for left, top, right, bottom in boxes}
    assert sizes == set(film.crop_sizes(160, 192))


def test_only_frames_of_voxceleb_are_cut_to_the_face():
    assert film.face_box(224, 224) == (32, 0, 192, 160)
    assert film.face_box(224, 200) == (0, 0, 224, 200)


def test_resizing_a_box_looks_at_nothing_outside_it():
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[10:20, 5:25] = 255
    resized = film.resize(Image.fromarray(picture), (64, 48), (5, 10, 25, 20))
    assert resized.size == (64, 48)
    assert (np.asarray(resized) == 255).all()


@pytest.mark.parametrize("num_crops", [1, 2, 3])
def test_square_frames_have_one_crop(num_crops):
    assert film.view_crops(256, 256, 160, num_crops) == ((160, 160), [(0, 0, 160, 160)])


def test_crops_spread_along_the_longer_side():
    assert film.view_crops(90, 60, 40, 3) == (
        (60, 40),
        [(0, 0, 40, 40), (10, 0, 50, 40), (20, 0, 60, 40)],
    )
    assert film.view_crops(60, 90, 40, 2) == ((40, 60), [(0, 0, 40, 40), (0, 20, 40, 60)])
    assert film.view_crops(60, 90, 40, 1) == ((40, 60), [(0, 10, 40, 50)])


def test_tensor_is_channels_frames_rows_columns():
    images = [Image.fromarray(frame(index, 6, 9)) for index in (10, 20)]
    video = film.to_tensor(images)
    assert video.shape == (3, 2, 9, 6) and video.dtype == torch.uint8
    assert video[2, 1, 8, 5] == 60 and video[0, 0, 0, 5] == 200 and video[1, 0, 8, 0] == 160


def test_normalisation_is_imagenets_for_clips_and_batches():
    video = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    normalised = film.normalise(video)
    assert torch.equal(normalised[1], film.normalise(video[1]))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (video[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(normalised[:, channel].double(), expected, atol=1e-5, rtol=0)


def test_sizes_that_decord_cannot_read_are_read_all_the_same(write_mp4):
    path = write_mp4(frames=12, size=(48, 40))
    images = media.open_video(path).read([0, 7])
    assert [image.shape for image in images] == [(40, 48, 3)] * 2
    assert [round(np.asarray(image)[-1, -1].mean()) for image in images] == pytest.approx(
        [0, 21], abs=4
    )
