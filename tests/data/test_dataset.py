import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import hicmae.data.audio as wav
import hicmae.data.video as film
from hicmae.config import PretrainConfigs
from hicmae.config.flags import from_dict
from hicmae.data.augment import ClipTransform
from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import Clip, write_list
from hicmae.data.dataset import LabelledClips, PretrainClips, TestClips
from hicmae.data.film import open_video
from hicmae.data.loader import ClipSampler, make_loader
from hicmae.pretraining import make_dataset
from tests.conftest import same

SMALL = dict(input_size=32)


def item(index: int, epoch: int = 0) -> ClipIndex:
    return ClipIndex(epoch, index)


def squares(frames) -> torch.Tensor:
    """Resize one frame after the other, as Pillow does."""
    return film.to_tensor([film.resize(Image.fromarray(frame), (32, 32)) for frame in frames])


def features_of(clip: Clip, start: int, stop: int) -> torch.Tensor:
    return wav.fbank(wav.WavFile(clip.audio).sound(start, stop))


def batches(dataset, num_workers: int) -> list:
    sampler = ClipSampler(len(dataset), shuffle=True, seed=1, pad=True)
    loader = make_loader(dataset, sampler, 2, num_workers, drop_last=True)
    result = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        result += list(loader)
    return result


@pytest.fixture(params=["pretraining", "fine-tuning"])
def training(request, pretrain_clips, labelled_clips) -> PretrainClips | LabelledClips:
    """Return a data set that draws all it can, for three samples of a clip."""
    options = {"input_size": 64, "num_samples": 3, "roll_mag_aug": True}
    if request.param == "pretraining":
        return PretrainClips(pretrain_clips, mask_ratio=0.5, **options)
    return LabelledClips(labelled_clips, transform=ClipTransform(64, reprob=1), **options)


def test_draws_are_of_each_sample_and_depend_on_epoch_and_index_only(training):
    first, second = training[item(3, 3)], training[item(3, 4)]
    assert len(first.names) == 3 and len(set(first.names)) == 1
    assert same(training[item(3, 3)], first)
    for part, other in zip(first, second, strict=True):
        if isinstance(part, torch.Tensor) and part.ndim > 1:  # pixels, spectrograms, masks
            assert len({sample.numpy().tobytes() for sample in [*part, *other]}) == 6


def test_batches_are_the_same_with_workers_and_without(training):
    alone, workers = batches(training, 0), batches(training, 2)
    assert len(alone) == len(workers) == 4
    assert same(alone, workers)


# pre-training


def test_pretrain_item_has_the_published_shapes(pretrain_clips):
    sample = PretrainClips(pretrain_clips)[item(1)]
    assert sample.video.shape == (1, 3, 16, 160, 160) and sample.video.dtype == torch.uint8
    assert sample.audio.shape == (1, 1, 256, 128) and sample.audio.dtype == torch.float32
    assert sample.video_mask.shape == (1, 800) and sample.video_mask.sum() == 720
    assert sample.audio_mask.shape == (1, 128) and sample.audio_mask.sum() == 102
    tubes = sample.video_mask.view(8, 100)
    assert (tubes == tubes[0]).all()
    assert sample.names == (pretrain_clips[1].video,) and sample.skipped == ()


def test_pretrain_audio_of_a_short_clip_is_all_of_it(write_mp4, write_wav):
    clip = Clip(write_mp4(frames=30), write_wav(samples=19200), None)
    sample = PretrainClips([clip], **SMALL)[item(0)]
    torch.testing.assert_close(sample.audio[0], features_of(clip, 0, 19200))
    last = sample.video[0, :, 7:]
    assert (last == last[:, :1]).all()
    assert not torch.equal(sample.video[0, :, 6], sample.video[0, :, 7])


def test_only_needed_frames_and_samples_are_read(pretrain_clips, monkeypatch):
    frames, spans = [], []
    read_frames, read_samples = film.read_frames, wav.WavFile.read

    def read(video, windows):
        images = read_frames(video, windows)
        frames.extend(images)
        return images

    monkeypatch.setattr(film, "read_frames", read)
    monkeypatch.setattr(
        wav.WavFile, "read", lambda w, a, b: spans.append((a, b)) or read_samples(w, a, b)
    )
    PretrainClips(pretrain_clips, **SMALL)[item(4)]
    assert len(frames) == 16 and np.diff(frames).tolist() == [4] * 15
    ((start, stop),) = spans
    assert stop - start <= 65 * 640 + 1 and start == pytest.approx(frames[0] * 640, abs=1)


@pytest.mark.parametrize("crop", ["voxceleb2", "none"])
def test_a_source_crop_keeps_the_face_alone(write_mp4, write_wav, crop):
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[0:160, 32:192] = 200  # the face is bright, everything around it black
    clip = Clip(write_mp4(pictures=[picture] * 6), write_wav(samples=9000), None)
    dataset = PretrainClips([clip], num_frames=2, sampling_rate=1, source_crop=crop)
    values = [dataset[item(0, epoch)].video.min() for epoch in range(10)]
    assert (min(values) > 150) == (crop == "voxceleb2")  # the encoder smears the edge a little


@pytest.mark.parametrize(
    "folder, flags, decided",
    [
        ("voxceleb2", {}, "voxceleb2"),
        ("own", {}, "none"),
        ("voxceleb2", {"source_crop": "none"}, "none"),
        ("own", {"source_crop": "voxceleb2"}, "voxceleb2"),
    ],
)
def test_flags_and_the_path_of_the_list_choose_the_source_crop_and_it_is_said(
    pretrain_clips, tmp_path, caplog, folder, flags, decided
):
    caplog.set_level("INFO")
    path = tmp_path / folder / "train.csv"
    write_list(path, pretrain_clips)
    chosen = {"data_path": str(path), "output_dir": "x", **flags}
    assert make_dataset(from_dict(PretrainConfigs, chosen)).source_crop == decided
    assert f"--source_crop {decided}" in caplog.text
    is_cut = "columns 32 to 192, rows 0 to 160" in caplog.text
    assert is_cut == (decided == "voxceleb2")


@pytest.mark.parametrize("ratio, hidden", [(0, 0), (0.25, 0.25)])
def test_masks_for_the_contrast_change_no_other_draw(pretrain_clips, ratio, hidden):
    plain = PretrainClips(pretrain_clips, **SMALL, mask_ratio=0.5)[item(2)]
    options = SMALL | {"mask_ratio": 0.5, "contrast_mask_ratio": ratio}
    apart = PretrainClips(pretrain_clips, **options)[item(2)]
    assert plain.contrast_mask is plain.contrast_mask_audio is None
    assert same(plain, apart._replace(contrast_mask=None, contrast_mask_audio=None))
    for mask, other in (
        (apart.contrast_mask, plain.video_mask),
        (apart.contrast_mask_audio, plain.audio_mask),
    ):
        assert mask.shape == other.shape and mask.float().mean() == hidden


def test_moving_a_batch_normalises_its_pixels_once(pretrain_clips):
    batch = PretrainClips(pretrain_clips, **SMALL, mask_ratio=0.5)[item(0)]
    moved = batch.to("cpu")
    assert torch.equal(moved.video, film.normalise(batch.video)) and same(moved.to("cpu"), moved)
    assert same(moved._replace(video=batch.video), batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_clip_is_replaced_and_named(
    pretrain_clips, labelled_clips, tmp_path, num_workers
):
    (tmp_path / "text.mp4").write_text("no film")
    for video, facts in (
        (str(tmp_path / "text.mp4"), "no video"),
        (labelled_clips[0].video, "has no frame times"),
    ):
        bad = pretrain_clips[0]._replace(video=video)
        dataset = PretrainClips([bad, *pretrain_clips[:3]], **SMALL, mask_ratio=0.5)
        result = batches(dataset, num_workers)
        for batch in result:
            assert batch.video.shape == (2, 3, 16, 32, 32) and bad.video not in batch.names
        skipped = [clip for batch in result for clip in batch.skipped]
        assert {clip.video for clip in skipped} == {bad.video}
        for clip in skipped:
            assert bad.video in clip.reason and facts in clip.reason and "\n" not in clip.reason


# labelled clips


def test_training_item_is_augmented_and_normalised(labelled_clips):
    dataset = LabelledClips(labelled_clips, transform=ClipTransform(32), roll_mag_aug=True, **SMALL)
    sample = dataset[item(3)]
    assert sample.video.shape == (1, 3, 16, 32, 32) and sample.video.dtype == torch.float32
    assert sample.video.min() < -0.5 and sample.audio.shape == (1, 1, 256, 128)
    assert sample.target.tolist() == [3] and sample.target.dtype == torch.int64


def test_training_takes_random_windows_and_validation_the_centre(labelled_clips):
    train = LabelledClips(labelled_clips, **SMALL)
    videos = [train[item(3, epoch)].video for epoch in range(8)]
    assert len({video.numpy().tobytes() for video in videos}) > 4
    valid = TestClips(labelled_clips, num_segments=5, centre=True, **SMALL)
    first, second = valid[item(3)], valid[item(3, 5)]
    assert same(first, second)
    folder = open_video(labelled_clips[3].video)
    assert torch.equal(first.video[0], squares(folder.read(film.train_frames(90))))
    span = 13 * 57600 // 89, 77 * 57600 // 89
    torch.testing.assert_close(first.audio[0], features_of(labelled_clips[3], *span))


def test_regression_targets_are_rows_of_numbers(labelled_clips):
    clips = [clip._replace(label=(0.25 * k, -1.0, 3.0)) for k, clip in enumerate(labelled_clips)]
    dataset = LabelledClips(clips, task="regression", **SMALL)
    batch = LabelledClips.collate([dataset[item(1)], dataset[item(2)]])
    assert batch.target.dtype == torch.float32
    assert batch.target.tolist() == [[0.25, -1, 3], [0.5, -1, 3]]
    for task, shape in (("classification", (1,)), ("regression", (1, 0))):
        unlabelled = [labelled_clips[0]._replace(label=None)]
        assert TestClips(unlabelled, **SMALL, task=task)[item(0)].target.shape == shape


@pytest.mark.parametrize("kind", [LabelledClips, TestClips])
@pytest.mark.parametrize("modality", ["a", "v"])
def test_one_stream_needs_no_other(labelled_clips, kind, modality):
    other = {"video": "nowhere"} if modality == "a" else {"audio": None}
    clips = [clip._replace(**other) for clip in labelled_clips]
    sample = kind(clips, **SMALL, modality=modality)[item(3)]
    batch = kind.collate([sample, sample]).to("cpu")
    if modality == "a":
        assert batch.video is None and sample.audio.shape[1:] == (1, 256, 128)
    else:
        assert batch.audio is None and sample.video.shape[1:] == (3, 16, 32, 32)


def test_audio_alone_takes_windows_as_of_a_film_at_25_frames_a_second(labelled_clips):
    both, alone = (TestClips(labelled_clips, **SMALL, modality=name) for name in ("av", "a"))
    assert all(torch.equal(both[item(k)].audio, alone[item(k)].audio) for k in range(4))


@pytest.mark.parametrize("centre", [True, False])
def test_evaluation_stops_at_a_truncated_frame_or_skips_its_clip(labelled_clips, tmp_path, centre):
    folder = shutil.copytree(labelled_clips[1].video, tmp_path / "c1")
    data = (folder / "frame_004.jpg").read_bytes()
    (folder / "frame_004.jpg").write_bytes(data[: len(data) // 2])
    clips = [*labelled_clips]
    clips[1] = clips[1]._replace(video=str(folder))
    facts = "clip .*c1' cannot be read: frame .*_004.jpg.*; .*--skip_bad_test_clips"
    with pytest.raises(RuntimeError, match=facts):
        TestClips(clips, centre=centre, **SMALL)[item(1)]
    dataset = TestClips(clips, allow_skip=True, centre=centre, **SMALL)
    batch = TestClips.collate([dataset[item(index)] for index in range(4)]).to("cpu")
    assert batch.target.tolist() == [0, 2, 3] and len(batch.names) == 3
    assert [clip.video for clip in batch.skipped] == [str(folder)]
    alone = TestClips.collate([dataset[item(1)]]).to("cpu")
    assert alone.video is alone.audio is None and not alone.names
    assert len(alone.target) == 0 and len(alone.skipped) == 1


# test views


def test_views_are_distinct_windows_of_square_frames(labelled_clips):
    dataset = TestClips(labelled_clips, **SMALL)
    batch = dataset.collate([dataset[item(index)] for index in (3, 0, 2)])
    assert batch.view_clip.tolist() == [0, 0, 1, 2, 2]
    assert batch.clip_index.tolist() == [3, 0, 2] and batch.target.tolist() == [3, 0, 2]
    assert batch.video.shape == (5, 3, 16, 32, 32) and batch.audio.shape == (5, 1, 256, 128)
    folder = open_video(labelled_clips[3].video)
    assert torch.equal(batch.video[1], squares(folder.read(range(28, 90, 4))))
    expected = features_of(labelled_clips[3], 28 * 57600 // 89, 57600)
    torch.testing.assert_close(batch.audio[1], expected)
    for segments in (1, 5):
        sample = TestClips(labelled_clips, **SMALL, num_segments=segments)[item(3)]
        assert len(sample.video) == len(sample.audio) == len(sample.view_clip) == segments


@pytest.mark.parametrize("centre", [True, False])
def test_oblong_frames_are_squeezed_to_the_whole_square(labelled_clips, write_frames, centre):
    oblong = labelled_clips[3]._replace(video=write_frames("oblong", 90, (60, 40)))
    view = TestClips([oblong], num_segments=1, centre=centre, **SMALL)[item(0)]
    frames = film.train_frames(90) if centre else film.test_windows(90, 1)[0]
    assert torch.equal(view.video[0], squares(open_video(oblong.video).read(frames)))
    assert view.view_clip.tolist() == [0]
