"""Benchmarks of reading, feeding and ranks: their arithmetic, and tiny runs on real files."""

import json
from pathlib import Path

import pytest
import torch

from hicmae.config import new_parser
from hicmae.data.batches import ClipIndex
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import item_generator
from hicmae.data.media import open_video
from scripts import benchmark_data as data
from scripts.benchmark import main
from scripts.benchmark_data import OURS, SEPARATE, Times
from tests.conftest import save_mp4, save_wav

plain = pytest.importorskip("tests.plain.loader", reason="needs decord")

TINY = ["--model", "pretrain_hicmae_dim128_patch16_160_a256", "--encoder_depth", "1",
        "--encoder_depth_audio", "1", "--decoder_depth", "2", "--decoder_depth_audio", "2",
        "--encoder_fusion_depth", "1", "--return_intermediate_features", "0",
        "--mask_ratio", "0.5", "--batch_size", "2", "--num_frames", "4", "--sampling_rate", "8",
        "--input_size", "32", "--input_size_audio", "32", "32", "--device", "cpu",
        "--num_workers", "0", "--steps", "2", "--warmup", "1"]  # fmt: skip


def parsed(*flags):
    parser = new_parser("")
    data.add_ranks_flags(parser)
    return parser.parse_args(flags)


# The plain loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(folder):
    return data.make_clips(folder, 2)


def check_same_tensors(clips, item):
    ours = PretrainClips(clips)[item].to("cpu")
    clip = clips[item.index]
    video, video_mask, audio, audio_mask = plain.load_clip(
        clip.video, clip.audio, item_generator(0, item)
    )
    assert torch.equal(ours.video[0], video)
    assert torch.equal(ours.video_mask[0], video_mask)
    assert torch.equal(ours.audio_mask[0], audio_mask)
    torch.testing.assert_close(ours.audio[0], audio, atol=1e-6, rtol=0)


def test_the_plain_loader_yields_our_tensors(clips, pretrain_clips, write_mp4, write_wav):
    for epoch in range(6):
        check_same_tensors(clips, ClipIndex(epoch, epoch % 2))
    video, audio = write_mp4("short.mp4", 30), write_wav("short.wav", 19200)
    short = pretrain_clips[0]._replace(video=video, audio=audio)
    for index in range(3):
        check_same_tensors([short, *pretrain_clips[3:]], ClipIndex(1, index))


def test_clips_are_like_voxceleb2s_and_are_kept(folder, clips):
    video = open_video(clips[0].video)
    assert len(video) == 25 * data.SECONDS and video.read([9])[0].shape == (224, 224, 3)
    assert Path(clips[0].video).stat().st_size * 8 / data.SECONDS == pytest.approx(
        data.BIT_RATE, rel=0.1
    )
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert data.make_clips(folder, 2) == clips
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_reading_is_measured(folder, clips, tmp_path, capsys):
    path = tmp_path / "figures.json"
    flags = ["--cache", str(folder), "--num_clips", "2", "--steps", "2", "--num_samples", "2"]
    assert main(["loader", *flags, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    rows = found["variants"]
    assert rows.keys() == data.VARIANTS.keys()
    assert rows["plain"]["ratio"] == 1 and found["plain_clips_per_s"] > 0
    assert found["ratio"] == pytest.approx(found["clips_per_s"] / found["plain_clips_per_s"])
    assert {n for n, row in rows.items() if row["num_samples"] == 2} == {
        "mp4_samples", "shards_samples"
    }  # fmt: skip
    assert found["shard_bytes_per_clip"] > found["mp4_bytes_per_clip"] > 100_000
    assert found["wav_bytes_per_clip"] == 16000 * data.SECONDS * 2 + 44
    assert 35 < found["jpeg_psnr_db"] < 60 and found["pack_cpu_s_per_clip"] > 0
    shown = capsys.readouterr().out
    assert "ours, shards, 2 samples" in shown and "KB of mp4 and 256 KB of wav" in shown


def test_all_kinds_read_the_same_windows(clips, tmp_path):
    packed, _ = data.pack(clips, tmp_path, 100)
    kinds = data.own_items(clips, 1), data.own_items(packed, 1)
    for _ in range(3):
        one, other = (next(items) for items in kinds)
        assert one.names == other.names and torch.equal(one.audio, other.audio)
        assert (one.video.float() - other.video.float()).abs().mean() < 3


# Feeding


def times(*wall, waits=(0.0,)):
    return Times(list(wall), [0.1] * len(wall), list(waits))


def test_waiting_and_slowing_down_are_told_apart():
    """A step of 2 s that waits 1 s; without data it takes 0.8 s, so 0.2 s are lost otherwise."""
    found = data.feed_rates(times(2.0, 2.0, waits=(1.0, 1.0)), times(0.8), clips=4)
    assert (found["clips_per_s"], found["fixed_clips_per_s"]) == pytest.approx((2.0, 5.0))
    assert (found["wait_share"], found["slower_share"]) == pytest.approx((0.5, 0.6))
    assert (found["step_s"], found["fixed_step_s"]) == (2.0, 0.8)


def test_needs_of_voxceleb2_follow_from_the_rates():
    row = {"clips_per_s": 100.0, "fixed_clips_per_s": 200.0, "loader_clips_per_s": 50.0}
    needs = data.voxceleb2(row, workers=2)
    assert needs["voxceleb2_device_days"] == pytest.approx(1_091_581 * 100 / 100 / 86400)
    assert needs["voxceleb2_device_days_if_fed"] == pytest.approx(1_091_581 * 100 / 200 / 86400)
    assert needs["loader_cores_per_device"] == 8.0, "25 clips/s a process, 200 are wanted"


def test_the_time_between_asking_for_a_batch_and_having_it_counts_as_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    def loading():
        for _ in range(6):
            spend(3.0)
            yield "batch"

    monkeypatch.setattr(data, "train_step", lambda *_: spend(2.0))
    configs = data.training_configs(parsed(*TINY, "--accum_iter", "2"))
    seen = data.train(configs, torch.device("cpu"), loading(), steps=2, warmup=1)
    assert seen.wall == [8.0, 8.0] and seen.waits == [6.0, 6.0], "two batches a step"


def test_training_is_fed_from_a_list_and_from_shards(tmp_path, capsys):
    names = [save_mp4(tmp_path / f"{k}.mp4", 34 + k, (64, 40)) for k in range(4)]
    for k in range(4):
        save_wav(tmp_path / f"{k}.wav", (34 + k) * 640)
    path, shards, out = tmp_path / "train.csv", tmp_path / "shards", tmp_path / "feed.json"
    path.write_text("".join(f"{name} 0\n" for name in names))
    assert data.pack_clips.main([str(path), "--output_dir", str(shards)]) == 0
    flags = [*TINY, "--num_workers", "1", "--accum_iter", "2", "--json", str(out)]
    assert main(["feed", *flags, "--data_path", str(path), "--shards", str(shards)]) == 0
    figures = json.loads(out.read_text())
    assert figures["device"].startswith("cpu") and figures["num_workers"] == 1
    assert [(row["source"], row["data_path"]) for row in figures["sources"]] == [
        ("files", str(path)), ("shards", str(shards))
    ]  # fmt: skip
    for row in figures["sources"]:
        assert 0 < row["wait_share"] < 1 and row["clips_in_list"] == 4
        assert all(row[name] > 0 for name in ("clips_per_s", "fixed_clips_per_s", "step_s"))
    shown = capsys.readouterr().out
    assert all(f"VoxCeleb2 x 100 epochs from {kind}" in shown for kind in ("files", "shards"))


def test_a_short_list_is_read_again_so_that_no_epoch_ends_while_it_is_measured():
    clips = data.Repeated("abc", 7)
    assert [clips[k] for k in range(len(clips))] == list("abcabca")
    assert len(data.Repeated("abcd", 2)) == 4, "a long list is left as it is"


# Ranks


def test_exchange_is_compared_with_processes_that_share_the_machine_but_exchange_nothing():
    seen = {
        data.ONE: {"step_s": 2.0, "cpu_s": 1.0},
        SEPARATE: {"step_s": 2.5, "cpu_s": 1.25},
        OURS: {"step_s": 3.0, "cpu_s": 1.3},
    }
    alone, side_by_side, ours = rows = data.compare_ranks(seen, clips=6, nproc=2)
    assert [row["clips_per_s"] for row in rows] == pytest.approx([3.0, 4.8, 4.0])
    assert not {"overhead", "overhead_cpu_time"} & (alone.keys() | side_by_side.keys())
    assert (ours["overhead"], ours["overhead_cpu_time"]) == pytest.approx((0.2, 0.04))
    assert [row["efficiency"] for row in rows] == pytest.approx([1.0, 0.8, 2 / 3])


@pytest.mark.slow
def test_ranks_are_measured(capsys, tmp_path):
    out = tmp_path / "ranks.json"
    assert main(["ranks", *TINY, "--rounds", "2", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["device"].startswith("cpu") and figures["nproc"] == 2
    assert [row["processes"] for row in figures["rows"]] == [1, 2, 2, 2]
    assert all(row["clips_per_s"] > 0 for row in figures["rows"])
    shown = capsys.readouterr().out
    assert all(row["name"] in shown for row in figures["rows"])


def test_a_failing_process_is_reported_with_its_reason(monkeypatch):
    error = data.mp.ProcessRaisedException("Traceback\n  File x\nValueError: too deep", 1, 42)

    def spawn(*_, **__):
        raise error

    monkeypatch.setattr(data.mp, "spawn", spawn)
    with pytest.raises(RuntimeError, match="process 1 of 1 failed: ValueError: too deep"):
        data.run_ranks(parsed(*TINY))


def test_synthetic_batch_has_the_shapes_of_the_run():
    batch = data.synthetic_batch(data.training_configs(parsed(*TINY)), seed=0)
    assert batch.video.shape == (2, 3, 4, 32, 32) and batch.audio.shape == (2, 1, 32, 32)
    assert batch.video_mask.sum(dim=1).tolist() == [4, 4] and batch.audio_mask.shape == (2, 4)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("loader", ["--num_clips", "0"], "--num_clips must be at least 1, got 0"),
        ("loader", ["--num_samples", "-1"], "--num_samples must be at least 1"),
        ("feed", TINY, "no clips to read; give --data_path, --shards or --make_clips"),
        ("feed", ["--steps", "0"], "--steps must be at least 1, got 0"),
        ("feed", ["--make_clips", "0"], "--make_clips must be at least 1, got 0"),
        ("feed", ["--make_clips", "2", "--data_path", "a.csv"], "--make_clips stands in for"),
        ("feed", [*TINY, "--data_path", "/nowhere.csv"], "'/nowhere.csv' does not exist"),
        ("ranks", ["--nproc", "1"], "--nproc must be at least 2, got 1"),
        ("ranks", ["--model", "x"], "--model x is not known; use t, s, b"),
        ("ranks", ["--mask_ratio", "2"], "--mask_ratio must be between 0 and 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(command, flags, message, capsys):
    assert main([command, *flags]) == 1
    written = capsys.readouterr().err
    assert written.count("\n") == 1 and message in written
