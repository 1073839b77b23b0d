import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from hicmae.data import shards as packed
from hicmae.data.audio import WavFile
from hicmae.data.augment import ClipTransform
from hicmae.data.batches import ClipIndex
from hicmae.data.clip_list import (
    Clip,
    decide_source_crop,
    find_list,
    read_labelled_list,
    read_packed,
    read_pretrain_list,
    write_list,
)
from hicmae.data.dataset import LabelledClips, PretrainClips, TestClips
from hicmae.data.film import open_video
from hicmae.data.loader import ClipSampler, make_loader
from hicmae.data.shards import open_packed
from hicmae.io import UnreadableClip
from preprocess import pack_clips
from tests.conftest import frame, same, save_frames, save_mp4, save_wav

SMALL = dict(input_size=32)


def pack(folder: Path, clips: list[Clip], *options: str, task: str = "pretrain") -> Path:
    """Pack clips into folder/shards, a shard for every two clips or so."""
    write_list(folder / "list.csv", clips)
    flags = ["--output_dir", str(folder / "shards"), "--num_workers", "1", "--task", task]
    assert pack_clips.main([str(folder / "list.csv"), *flags, *options]) == 0
    return folder / "shards"


VOXCELEB2 = ("--source_crop", "voxceleb2")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Clip]:
    """Return five clips of different lengths; one is of VoxCeleb2's size."""
    folder = tmp_path_factory.mktemp("files")
    lengths = [66, 72, 80, 90, 70]
    return [
        Clip(
            save_mp4(folder / f"v{k}.mp4", frames, (224, 224) if k == 4 else (64, 48)),
            save_wav(folder / f"v{k}.wav", frames * 640),
            None,
        )
        for k, frames in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def lossless(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lossless")
    return pack(folder, files, "--lossless", "--shard_size", "250KB", *VOXCELEB2)


@pytest.fixture
def shards(lossless, tmp_path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(lossless, tmp_path / "shards"))


def in_order_of(files: list[Clip], folder: Path) -> list:
    clips = {clip.video: clip for clip in read_packed(folder)}
    return [clips[clip.video] for clip in files]


# the same clips as from files


@pytest.mark.parametrize("num_samples", [1, 3])
def test_lossless_shards_give_the_very_batches_of_the_files(files, lossless, num_samples):
    options = {"num_samples": num_samples, "roll_mag_aug": True, "seed": 5}
    options["source_crop"] = "voxceleb2"
    plain = PretrainClips(files, **options)
    from_shards = PretrainClips(in_order_of(files, lossless), **options)
    for index in range(5):
        for epoch in range(2):
            item = ClipIndex(epoch, index)
            assert same(plain[item], from_shards[item])


def test_training_follows_what_packing_cut(files, lossless, tmp_path):
    assert decide_source_crop("auto", "x", read_packed(lossless), 128) == "voxceleb2"
    for choice, size in (("none", 160), ("voxceleb2", 192), ("auto", 224)):
        with pytest.raises(ValueError, match="--source_crop voxceleb2 for --input_size 160, exp"):
            decide_source_crop(choice, "x", read_packed(lossless), size)
    pack(tmp_path, files[4:])
    whole = pack(tmp_path, files[:1], "--source_crop", "none")
    assert decide_source_crop("auto", "voxceleb2", read_packed(whole), 192) == "none"
    video, _ = open_packed(in_order_of(files[4:], whole)[0])
    assert video.read([0])[0].shape == (224, 224, 3)
    flags = [str(tmp_path / "list.csv"), "--output_dir", str(whole)]
    assert pack_clips.main([*flags, *VOXCELEB2]) == 2, "the shards there are of whole frames"
    assert pack_clips.main([*flags[:2], str(tmp_path / "new"), *VOXCELEB2, "--task", "regression"])


def test_jpeg_shards_differ_little(files, tmp_path):
    clips = read_packed(pack(tmp_path, files[4:]))
    item = ClipIndex(0, 0)
    one, other = PretrainClips(files[4:])[item], PretrainClips(clips)[item]
    error = (one.video.double() - other.video.double()).square().mean().sqrt()
    assert 0 < error < 4
    assert torch.equal(one.audio, other.audio) and torch.equal(one.video_mask, other.video_mask)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_labelled_clips_and_views_are_those_of_the_files(tmp_path, kind):
    clips = [
        Clip(
            save_frames(tmp_path / f"c{k}", frames, kind=kind),
            save_wav(tmp_path / f"c{k}.wav", frames * 640),
            (k + 2) % 3,
        )
        for k, frames in enumerate([12, 64, 90])
    ]
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    odd = Image.fromarray(frame(5, 40, 40))
    odd.save(f"{clips[0].video}/frame_005.{kind}", exif=turned)
    odd.convert("L").save(f"{clips[0].video}/frame_006.{kind}")
    folder = pack(tmp_path, clips, "--lossless", task="classification")
    stored = in_order_of(clips, folder)
    assert [clip.label for clip in stored] == [2, 0, 1]
    for make in (
        lambda some: LabelledClips(some, transform=ClipTransform(32), roll_mag_aug=True, **SMALL),
        lambda some: LabelledClips(some, modality="a", num_samples=2, **SMALL),
        lambda some: TestClips(some, **SMALL),
        lambda some: TestClips(some, modality="v", centre=True, **SMALL),
    ):
        for index in range(3):
            assert same(make(clips)[ClipIndex(1, index)], make(stored)[ClipIndex(1, index)])


def test_jpeg_frames_of_a_folder_are_stored_byte_for_byte(tmp_path, labelled_clips):
    (clip,) = read_packed(pack(tmp_path, labelled_clips[:1], task="classification"))
    data = Path(clip.shard.path).read_bytes()[clip.frames[0] :][: clip.frames[1]]
    assert data == b"".join(path.read_bytes() for path in sorted(Path(clip.video).iterdir()))


def test_regression_targets_are_kept(tmp_path, labelled_clips):
    clips = [clip._replace(label=(clip.label / 3, -1.0)) for clip in labelled_clips]
    folder = pack(tmp_path, clips, task="regression")
    assert [clip.label for clip in in_order_of(clips, folder)] == [c.label for c in clips]
    with pytest.raises(ValueError, match="c2.: got class .*, for classification; .*--task"):
        read_labelled_list(folder, "classification")
    with pytest.raises(ValueError, match="expected 3 numbers"):
        read_labelled_list(folder, "regression", 3)


def test_samples_of_every_kind_are_kept(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 30000).astype(np.float32)
    kinds = ("PCM_16", "PCM_24", "FLOAT", "PCM_U8")
    clips = [
        Clip(
            save_mp4(tmp_path / f"{kind}.mp4", 20),
            save_wav(tmp_path / f"{kind}.wav", samples, subtype=kind),
            None,
        )
        for kind in kinds
    ]
    for clip in read_packed(pack(tmp_path, clips)):
        _, sound = open_packed(clip)
        np.testing.assert_array_equal(sound.read(100, 29000), WavFile(clip.audio).read(100, 29000))
        assert len(sound) == 30000
        with pytest.raises(UnreadableClip, match="its sound ends before sample 99999"):
            sound.read(0, 99999)


def test_workers_give_the_same_batches(lossless):
    clips = read_packed(lossless)
    dataset = PretrainClips(clips, mask_ratio=0.5, **SMALL)
    found = []
    for workers in (0, 2):
        sampler = ClipSampler(5, shuffle=True, seed=1, pad=True, shards=clips.shard_of)
        found.append(list(make_loader(dataset, sampler, 2, workers, drop_last=True)))
    assert len(found[0]) == 2
    assert all(same(one, other) for one, other in zip(*found, strict=True))


# WebDataset


def test_webdataset_reads_the_shards(files, lossless):
    webdataset = pytest.importorskip("webdataset")
    paths = sorted(map(str, lossless.glob("*.tar")))
    assert len(paths) > 1
    seen = {}
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        info = json.loads(sample["json"])
        seen[info["video"]] = sample
        pictures, start = sample["mjpeg"], sum(info["sizes"][:3])
        picture = np.asarray(Image.open(io.BytesIO(pictures[start : start + info["sizes"][3]])))
        (expected,) = open_video(info["video"]).read([3])
        box = slice(0, 160), slice(32, 192)
        np.testing.assert_array_equal(
            picture, expected[box] if expected.shape[0] == 224 else expected
        )
        samples, rate = soundfile.read(io.BytesIO(sample["wav"]), dtype="float32")
        assert rate == 16000
        np.testing.assert_array_equal(samples, soundfile.read(info["audio"], dtype="float32")[0])
    assert set(seen) == {clip.video for clip in files}
    assert len({sample["__key__"] for sample in seen.values()}) == 5


# lists


def test_shards_stand_where_lists_are_expected(files, lossless, tmp_path):
    names = {clip.video for clip in files}
    assert {clip.video for clip in read_pretrain_list(lossless)} == names
    index = sorted(lossless.glob("*.index.json"))[0]
    assert 0 < len(read_pretrain_list(index)) < 5
    shutil.copytree(lossless, tmp_path / "train")
    assert find_list(tmp_path / "train.csv") == tmp_path / "train"
    assert find_list(tmp_path / "test.csv") is None
    assert {clip.video for clip in read_pretrain_list(tmp_path)} == names
    write_list(tmp_path / "train.csv", files[:1])
    assert len(read_pretrain_list(tmp_path)) == 1, "a list goes before shards"


def test_packed_clips_are_a_sequence(lossless):
    clips = read_packed(lossless)
    assert len(clips) == 5 and clips[-1] == clips[4] and clips[1:3] == [clips[1], clips[2]]
    assert list(clips) == [clips[k] for k in range(5)]
    with pytest.raises(IndexError):
        clips[5]
    assert clips == read_packed(lossless) and clips != read_packed(
        sorted(lossless.glob("*.index.json"))[0]
    )
    assert clips == list(clips) != list(clips)[:4]


# damage


def test_names_need_not_be_utf8(shards):
    name = "odd \udcff\n'name.mp4"
    clips = changed(shards, {}, name)
    assert PretrainClips(clips, **SMALL, mask_ratio=0.5)[ClipIndex(0, 0)].names == (name,)


def changed(shards: Path, change: dict | bytes, name: str | None = None) -> list:
    """Change a clip's description in its shard, its name in the index; return that clip alone."""
    index = min(shards.glob("*.index.json"))
    content = json.loads(index.read_text())
    row = content["clips"][0]
    row[0] = name or row[0]
    tar = shards / content["shard"]
    data = tar.read_bytes()
    text = change
    if isinstance(change, dict):
        text = json.dumps(json.loads(data[row[3] : row[3] + row[4]]) | change).encode()
    row[3], row[4] = len(data), len(text)  # behind the end: no place but the index knows it
    tar.write_bytes(data + text)
    index.write_text(json.dumps(content | {"size": len(data) + len(text)}))
    return read_packed(index)[:1]


def zeroed(shard: Path) -> bytes:
    """Return the bytes of a shard without those of its frames."""
    data = bytearray(shard.read_bytes())
    for clip in read_packed(shard.with_suffix(".index.json")):
        start, size = clip.frames
        data[start : start + size] = bytes(size)
    return bytes(data)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "bytes, expected .*cut off"),
        (lambda path: path.write_bytes(zeroed(path)), "frame .* is not what was packed"),
    ],
)
def test_clips_of_a_broken_shard_are_replaced_and_named(shards, damage, reason):
    path = sorted(shards.glob("*.tar"))[0]
    damage(path)
    clips = read_packed(shards)
    dataset = PretrainClips(clips, **SMALL, mask_ratio=0.5)
    batches = [dataset[ClipIndex(0, index)] for index in range(len(clips))]
    found = [clip.reason for batch in batches for clip in batch.skipped]
    assert len(found) >= np.count_nonzero(clips.shard_of == 0) > 0
    assert all(path.name in text and "\n" not in text for text in found)
    assert all(re.search(reason, text) for text in found)


@pytest.mark.parametrize(
    "change", [{"sizes": None}, {"crc32": [1] * 66}, {"begins": None}, b"[]", b"\xff\xfe"]
)
def test_clip_whose_description_is_wrong_is_refused(shards, change):
    clips = changed(shards, change)
    with pytest.raises(RuntimeError, match="clips-000000.tar|has no frame times") as caught:
        PretrainClips(clips, **SMALL, mask_ratio=0.5)[ClipIndex(0, 0)]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{", "null", '{"format": "hicmae-shard-1"}', '{"format": "other"}']
)
def test_file_that_is_no_index_stops_the_run(shards, content):
    path = sorted(shards.glob("*.index.json"))[0]
    path.write_text(content)
    with pytest.raises(ValueError, match="cannot be used: .*; pack its clips again") as caught:
        read_packed(shards)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_few_shards_are_open_at_a_time(lossless, tmp_path):
    for number in range(packed.MAX_OPEN):
        shutil.copytree(lossless, tmp_path / str(number))
        for clip in read_packed(tmp_path / str(number)):
            open_packed(clip)
    files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert 0 < sum(file.endswith(".tar") for file in files) <= packed.MAX_OPEN


def test_what_is_packed_anew_is_read_though_it_was_open(tmp_path):
    film, sounds = save_mp4(tmp_path / "a.mp4", 20), []
    for samples in (np.zeros(12800), np.full(12800, 0.5)):  # shards of the same size
        clips = [Clip(film, save_wav(tmp_path / "a.wav", samples), None)]
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        [clip] = read_packed(pack(tmp_path, clips))
        sounds.append(open_packed(clip)[1].read(0, 12800).mean())
    assert sounds == [0, pytest.approx(0.5, abs=1e-4)]


def test_only_the_wanted_frames_are_read(lossless, monkeypatch):
    clip = max(read_packed(lossless), key=lambda clip: clip.frames[1])
    sizes, read_bytes = [], packed.read_bytes
    monkeypatch.setattr(
        packed, "read_bytes", lambda *place: sizes.append(place[2]) or read_bytes(*place)
    )
    PretrainClips([clip])[ClipIndex(0, 0)]
    assert len(sizes) == 1 + 1 + 16, "description, sound, frames"
    assert sum(sizes[2:]) < 0.5 * clip.frames[1]
