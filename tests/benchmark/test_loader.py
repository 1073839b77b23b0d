"""The plain loader, and the benchmark that compares with it."""

import json

import pytest
import torch

from hicmae.benchmark import loader
from hicmae.benchmark.__main__ import main
from hicmae.benchmark.loader_clips import BIT_RATE, SECONDS, make_clips
from hicmae.data.batches import ClipIndex
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import item_generator
from hicmae.data.media import open_video

plain = pytest.importorskip("tests.plain.loader", reason="needs decord")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(folder):
    return make_clips(folder, 2)


def check(clips, item: ClipIndex) -> None:
    ours = PretrainClips(clips)[item].to("cpu")
    clip = clips[item.index]
    video, video_mask, audio, audio_mask = plain.load_clip(
        clip.video, clip.audio, item_generator(0, item)
    )
    assert torch.equal(ours.video[0], video)
    assert torch.equal(ours.video_mask[0], video_mask)
    assert torch.equal(ours.audio_mask[0], audio_mask)
    torch.testing.assert_close(ours.audio[0], audio, atol=1e-6, rtol=0)


def test_the_plain_loader_yields_our_tensors(clips):
    for epoch in range(6):
        check(clips, ClipIndex(epoch, epoch % 2))


def test_the_plain_loader_yields_our_tensors_of_other_clips(pretrain_clips, write_mp4, write_wav):
    short = pretrain_clips[0]._replace(
        video=write_mp4("short.mp4", 30), audio=write_wav("short.wav", 19200)
    )
    for index in range(3):
        check([short, *pretrain_clips[3:]], ClipIndex(1, index))


def test_clips_are_like_voxceleb2s(clips):
    video = open_video(clips[0].video)
    assert len(video) == 25 * SECONDS and video.read([9])[0].shape == (224, 224, 3)
    size = sum(packet.size for packet in video.packets)
    assert size * 8 / SECONDS == pytest.approx(BIT_RATE, rel=0.1)


def test_clips_are_kept(folder, clips):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_clips(folder, 2) == clips
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_figures_are_written(folder, clips, tmp_path, capsys):
    path = tmp_path / "figures.json"
    flags = ["--cache", str(folder), "--num_clips", "2", "--steps", "2", "--num_samples", "2"]
    assert main(["loader", *flags, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    rows = found["variants"]
    own = [
        f"{source}{kind}"
        for source in ("mp4", "shards")
        for kind in ("", "_normalised", "_samples")
    ]
    assert list(rows) == ["plain", *own]
    assert rows["plain"]["ratio"] == 1 and found["plain_clips_per_s"] > 0
    assert found["ratio"] == pytest.approx(found["clips_per_s"] / found["plain_clips_per_s"])
    assert [row["num_samples"] for row in rows.values()] == [1, 1, 1, 2, 1, 1, 2]
    assert found["shard_bytes_per_clip"] > found["mp4_bytes_per_clip"] > 100_000
    assert found["wav_bytes_per_clip"] == 16000 * SECONDS * 2 + 44
    assert 35 < found["jpeg_psnr_db"] < 60 and found["pack_cpu_s_per_clip"] > 0
    shown = capsys.readouterr().out
    assert "ours, shards, 2 samples" in shown and "KB of mp4 and 256 KB of wav" in shown


def test_all_kinds_read_the_same_windows(clips, tmp_path):
    packed, _ = loader.pack(clips, tmp_path, 100)
    kinds = loader.own_items(clips, 1), loader.own_items(packed, 1)
    for _ in range(3):
        one, other = (next(items) for items in kinds)
        assert one.names == other.names and torch.equal(one.audio, other.audio)
        assert (one.video.float() - other.video.float()).abs().mean() < 3


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_clips", "0"], "--num_clips must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--num_samples", "-1"], "--num_samples must be at least 1"),
        (["--quality", "101"], "--quality must be from 1 to 100, got 101"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    assert main(["loader", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
