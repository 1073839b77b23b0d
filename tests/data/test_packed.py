import io
import json
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from PIL import Image

from hicmae.data import shards as packed
from hicmae.data import shards as shard_index
from hicmae.data.audio import WavFile, fbank
from hicmae.data.augment import Augment
from hicmae.data.clip_list import (
    Clip,
    find_list,
    read_labelled_list,
    read_pretrain_list,
    write_list,
)
from hicmae.data.dataset import LabelledClips, PretrainClips, TestClips, open_streams
from hicmae.data.loader import ClipIndex, ClipSampler, make_loader
from hicmae.data.media import open_video
from hicmae.data.shards import read_packed
from hicmae.io import UnreadableClip
from preprocess import pack_clips
from tests.conftest import frame, save_frames, save_mp4, save_wav

SMALL = {"input_size": 32, "input_size_audio": (256, 128)}


def same(first, second) -> bool:
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


def pack(folder: Path, clips: list[Clip], *options: str, task: str = "pretrain") -> Path:
    """Pack clips into folder/shards, a shard for every two clips or so."""
    write_list(folder / "list.csv", clips)
    flags = ["--output_dir", str(folder / "shards"), "--num_workers", "1", "--task", task]
    assert pack_clips.main([str(folder / "list.csv"), *flags, *options]) == 0
    return folder / "shards"


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
    return pack(folder, files, "--lossless", "--shard_size", "250KB")


@pytest.fixture
def shards(lossless, tmp_path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(lossless, tmp_path / "shards"))


def in_order_of(files: list[Clip], folder: Path) -> list:
    """Return the packed clips in the order of the files."""
    clips = {clip.video: clip for clip in read_packed(folder)}
    return [clips[clip.video] for clip in files]


def labelled(folder: Path, kind: str, labels: list) -> list[Clip]:
    return [
        Clip(
            save_frames(folder / f"c{k}", frames, kind=kind),
            save_wav(folder / f"c{k}.wav", frames * 640),
            label,
        )
        for k, (frames, label) in enumerate(zip([12, 64, 90], labels, strict=True))
    ]


# the same clips as from files


@pytest.mark.parametrize("num_samples", [1, 3])
def test_lossless_shards_give_the_very_batches_of_the_files(files, lossless, num_samples):
    options = {"num_samples": num_samples, "roll_mag_aug": True, "seed": 5}
    plain = PretrainClips(files, **options)
    from_shards = PretrainClips(in_order_of(files, lossless), **options)
    for index in range(5):
        for epoch in range(2):
            item = ClipIndex(epoch, index)
            assert same(plain[item], from_shards[item])


def test_jpeg_shards_differ_little(files, tmp_path):
    clips = read_packed(pack(tmp_path, files[4:]))
    item = ClipIndex(0, 0)
    one, other = PretrainClips(files[4:])[item], PretrainClips(clips)[item]
    error = (one.video.double() - other.video.double()).square().mean().sqrt()
    assert 0 < error < 4
    assert torch.equal(one.audio, other.audio) and torch.equal(one.video_mask, other.video_mask)


def test_frames_of_voxceleb_are_stored_cut_to_the_face(files, lossless):
    video, _ = open_streams(in_order_of(files, lossless)[4])
    (stored,), (whole,) = video.read([33]), open_video(files[4].video).read([33])
    np.testing.assert_array_equal(stored, whole[:160, 32:192])


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_labelled_clips_and_views_are_those_of_the_files(tmp_path, kind):
    clips = labelled(tmp_path / "clips", kind, [2, 0, 1])
    folder = pack(tmp_path, clips, "--lossless", task="classification")
    stored = in_order_of(clips, folder)
    assert [clip.label for clip in stored] == [2, 0, 1]
    for make in (
        lambda some: LabelledClips(some, augment=Augment(), roll_mag_aug=True, **SMALL),
        lambda some: LabelledClips(some, modality="a", num_samples=2, **SMALL),
        lambda some: TestClips(some, **SMALL),
        lambda some: TestClips(some, modality="v", centre=True, **SMALL),
    ):
        for index in range(3):
            assert same(make(clips)[ClipIndex(1, index)], make(stored)[ClipIndex(1, index)])


def test_jpeg_frames_of_a_folder_are_stored_byte_for_byte(tmp_path):
    clips = labelled(tmp_path / "clips", "jpg", [0, 0, 0])[:1]
    (clip,) = read_packed(pack(tmp_path, clips, task="classification"))
    data = Path(clip.shard.path).read_bytes()[clip.places.frames :][: clip.places.frames_size]
    names = sorted(os.listdir(clips[0].video))
    assert data == b"".join(Path(clips[0].video, name).read_bytes() for name in names)


def test_regression_targets_are_kept(tmp_path):
    clips = labelled(tmp_path / "clips", "jpg", [(0.25, -1.0), (1.0, 2.0), (0.1, 0.0)])
    folder = pack(tmp_path, clips, task="regression")
    assert [clip.label for clip in in_order_of(clips, folder)] == [c.label for c in clips]
    with pytest.raises(ValueError, match="has label .* expected one for classification"):
        read_labelled_list(folder, "classification")
    with pytest.raises(ValueError, match="expected one for regression with --nb_classes 3"):
        read_labelled_list(folder, "regression", 3)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_samples_of_every_kind_are_kept(tmp_path, write_mp4, subtype):
    samples = np.random.default_rng(0).uniform(-1, 1, 30000).astype(np.float32)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, samples, 16000, subtype=subtype)
    (clip,) = read_packed(pack(tmp_path, [Clip(write_mp4(frames=20), path, None)]))
    _, sound = open_streams(clip)
    np.testing.assert_array_equal(sound().read(100, 29000), WavFile(path).read(100, 29000))
    assert len(sound()) == 30000


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
    assert clips != list(clips)


def test_names_need_not_be_utf8(tmp_path, files):
    name = "odd \udcff\n'name.mp4"
    (clip,) = packed_with(tmp_path, files[0], lambda info, row: row.__setitem__(0, name))
    assert clip.video == name
    assert PretrainClips([clip], mask_ratio=0.5, **SMALL)[ClipIndex(0, 0)].names == (name,)


# damage


def packed_with(folder: Path, clip: Clip, change) -> shard_index.PackedClips:
    """Pack a clip, let `change` alter its description and its row in the index."""
    path = pack(folder, [clip])
    index = next(path.glob("*.index.json"))
    content = json.loads(index.read_text())
    row = content["clips"][0]
    tar = path / content["shard"]
    data = bytearray(tar.read_bytes())
    info = json.loads(data[row[3] : row[3] + row[4]])
    change(info, row)
    text = json.dumps(info).encode()
    row[3], row[4] = len(data), len(text)  # behind the end: no place but the index knows it
    tar.write_bytes(data + text)
    content["size"] = len(data) + len(text)
    index.write_text(json.dumps(content))
    return read_packed(path)


def replaced(clips, folder: Path) -> tuple[str, ...]:
    """Return why clips of damaged shards were skipped, reading each once."""
    dataset = PretrainClips(clips, mask_ratio=0.5, **SMALL)
    batches = [dataset[ClipIndex(0, index)] for index in range(len(clips))]
    return tuple(clip.reason for batch in batches for clip in batch.skipped)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "bytes, expected .*cut off"),
        (lambda path: path.write_bytes(b""), "has 0 bytes, expected"),
        (lambda path: (path.unlink(), path.mkdir()), "bytes, expected|cannot be read"),
        (
            lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to("x")),
            "cannot be read: Too many levels",
        ),
        (lambda path: (path.unlink(), os.mkfifo(path)), "has 0 bytes, expected"),
    ],
)
def test_clips_of_a_broken_shard_are_replaced_and_named(shards, damage, reason):
    path = sorted(shards.glob("*.tar"))[0]
    damage(path)
    clips = read_packed(shards)
    found = replaced(clips, shards)
    assert len(found) >= np.count_nonzero(clips.shard_of == 0) > 0
    for text in found:
        assert path.name in text and "\n" not in text
        assert re.search(reason, text)


def test_flipped_bits_in_a_frame_are_noticed(shards):
    clips = read_packed(shards)
    path, places = Path(clips[0].shard.path), clips[0].places
    data = bytearray(path.read_bytes())
    data[places.frames : places.frames + places.frames_size] = bytes(places.frames_size)
    path.write_bytes(data)
    found = replaced(clips, shards)
    assert any("is damaged: frame" in text and "is not what was packed" in text for text in found)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"sizes": None}, "lacks sizes for each frame"),
        ({"sizes": []}, "lacks sizes for each frame"),
        ({"sizes": [5] * 66}, "do not fill their place"),
        ({"sizes": [-5] * 66}, "impossible sizes"),
        ({"sizes": [[1, 2]] * 66}, "impossible sizes"),
        ({"sizes": [[1], [1, 2]] * 33}, "impossible sizes"),
        ({"sizes": ["a"] * 66}, "impossible sizes"),
        ({"sizes": [1e300] * 66}, "impossible sizes"),
        ({"crc32": [1] * 65}, "lacks crc32 for each frame"),
        ({"crc32": [1] * 66}, "frame [0-9]+ is not what was packed"),
        ({"begins": [float("nan")] * 66}, "impossible begins"),
        ({"begins": None}, "has no frame times"),
        ({"samples": 10**9}, "its sound does not fit"),
        ({"samples": -3}, "its sound does not fit"),
        ({"samples": "many"}, "its sound does not fit"),
        ({"sample_type": "|O"}, "its sound is of an unknown kind"),
        ({"sample_type": []}, "its sound is of an unknown kind"),
        ({"wav_header": -400}, "its sound is of an unknown kind"),
    ],
)
def test_description_that_has_been_tampered_with_is_refused(tmp_path, files, change, reason):
    clips = packed_with(tmp_path, files[0], lambda info, row: info.update(change))
    with pytest.raises(RuntimeError, match=f"cannot be read.*{reason}"):
        PretrainClips(clips, mask_ratio=0.5, **SMALL)[ClipIndex(0, 0)]


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_description_that_is_none_is_refused(shards, text):
    clip = read_packed(shards)[0]
    with open(clip.shard.path, "r+b") as file:
        file.seek(clip.places.info)
        file.write(text[: clip.places.info_size].ljust(clip.places.info_size))
    with pytest.raises(UnreadableClip, match="is damaged: its description is no JSON object"):
        open_streams(clip)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shard": "../a.tar"}, "expected the plain name of a .tar beside it, got '../a.tar'"),
        ({"shard": "/etc/passwd"}, "expected the plain name"),
        ({"shard": "a/b.tar"}, "expected the plain name"),
        ({"shard": "a..tar"}, "expected the plain name"),
        ({"shard": 3}, "expected the plain name"),
        ({"format": "other"}, "expected an object with format 'hicmae-shard-1'"),
        ({"size": -1}, "expected the shard's size"),
        ({"size": True}, "expected the shard's size"),
        ({"sha256": None}, "expected the shard's size and sha256"),
        ({"clips": []}, "it names no clip"),
        ({"clips": {}}, "it names no clip"),
        ({"clips": ["abcdefghi"]}, "expected rows of 9 values"),
        ({"clips": [["a", "b", None, 0, 1, 0, 1, 0]]}, "expected rows of 9 values"),
        ({"clips": [[1, "b", None, 0, 1, 0, 1, 0, 1]]}, "expected names"),
        ({"clips": [["a", "b", "x", 0, 1, 0, 1, 0, 1]]}, "impossible label"),
        ({"clips": [["a", "b", None, -1, 1, 0, 1, 0, 1]]}, "impossible place"),
        ({"clips": [["a", "b", None, 0, 1.5, 0, 1, 0, 1]]}, "impossible place"),
        ({"clips": [["a", "b", None, 0, 1, 10**15, 1, 0, 1]]}, "is outside its shard"),
        ({"clips": [["a", "b", None, 0, 1, 2**62, 2**62, 0, 1]]}, "impossible place"),
    ],
)
def test_index_that_has_been_tampered_with_stops_the_run(shards, change, message):
    path = sorted(shards.glob("*.index.json"))[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_packed(shards)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "hicmae-shard-1"}'])
def test_file_that_is_no_index_stops_the_run(shards, content):
    path = sorted(shards.glob("*.index.json"))[0]
    path.write_text(content)
    with pytest.raises(ValueError, match="cannot be used: .*; pack its clips again"):
        read_packed(shards)


def test_index_that_is_a_link_is_refused(shards, tmp_path):
    path = sorted(shards.glob("*.index.json"))[0]
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="cannot be used: Too many levels of symbolic links"):
        read_packed(shards)


# images and handles


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_pillow_does(subsampling, mode):
    file = io.BytesIO()
    image = Image.fromarray(frame(30, 50, 34)).convert(mode)
    image.save(file, "JPEG", quality=90, subsampling=subsampling, progressive=mode == "RGB")
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(packed.decode_image(file.getvalue()), expected)


def test_what_is_no_image_or_too_large_is_not_decoded():
    def png(width: int, height: int) -> bytes:
        head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        chunk = len(head[4:]).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
        return b"\x89PNG\r\n\x1a\n" + chunk

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    jpeg = bytearray(file.getvalue())
    assert packed.jpeg_shape(bytes(jpeg)) == (8, 8, 3)
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    for data in (b"", b"\xff\xd8", b"no image", bytes(jpeg), png(10**6, 10**6), png(8, 8)):
        assert packed.decode_image(data) is None


def test_few_shards_are_open_at_a_time(lossless, monkeypatch):
    files = packed.OpenShards(most=1)
    monkeypatch.setattr(packed, "_open_shards", files)
    clips = read_packed(lossless)
    for clip in [*clips, clips[0]]:
        open_streams(clip)
        assert list(files.handles) == [clip.shard]
    handle = files.handles[clips[0].shard]
    files.close(clips[0].shard)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_only_the_wanted_frames_are_read(lossless, monkeypatch):
    clip = max(read_packed(lossless), key=lambda clip: clip.places.frames_size)
    read = []
    original = packed.OpenShards.read
    monkeypatch.setattr(
        packed.OpenShards,
        "read",
        lambda self, *place: read.append(place[2]) or original(self, *place),
    )
    PretrainClips([clip])[ClipIndex(0, 0)]
    assert len(read) == 1 + 1 + 16, "description, sound, frames"
    assert sum(read[2:]) < 0.5 * clip.places.frames_size


def test_members_of_the_tar_are_where_the_index_says(lossless):
    clips = read_packed(lossless)
    for shard in clips.shards:
        with tarfile.open(shard.path) as tar:
            members = [(member.offset_data, member.size) for member in tar]
        places = [clip.places for clip in clips if clip.shard == shard]
        assert members == [pair for p in places for pair in zip(p[::2], p[1::2], strict=True)]


def test_sound_of_a_window_is_that_of_the_wav(files, lossless):
    clip = in_order_of(files, lossless)[2]
    _, sound = open_streams(clip)
    expected = fbank(WavFile(files[2].audio).read(640, 41600))
    assert torch.equal(fbank(sound().read(640, 41600)), expected)
    with pytest.raises(UnreadableClip, match="its sound ends before sample 99999"):
        sound().read(0, 99999)
