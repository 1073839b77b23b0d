"""Benchmarks of reading and feeding: their arithmetic, and tiny runs on real files."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hicmae.config import PretrainConfigs
from hicmae.config.flags import given_flags, new_parser, parse_configs
from hicmae.data.batches import ClipIndex
from hicmae.data.dataset import PretrainClips
from hicmae.data.loader import item_generator
from scripts import benchmark_data as data
from scripts import benchmark_models as models
from scripts.benchmark import FeedConfig, main
from tests.preprocess.media_files import needs_weights
from tests.small_runs import PRETRAIN

plain = pytest.importorskip("tests.plain.loader", reason="needs decord")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips that are kept in a folder of their own, and shorter than VoxCeleb2's."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SECONDS", 5)
        patch.setattr(data, "CACHE", tmp_path_factory.mktemp("clips"))
        yield data.make_clips(2)
    torch.set_num_threads(threads)


def figures(path, *command):
    assert main([*command, "--json", str(path / "figures.json")]) == 0
    return json.loads((path / "figures.json").read_text())


def test_the_plain_loader_yields_our_tensors(clips, pretrain_clips, write_mp4, write_wav):
    video, audio = write_mp4("short.mp4", 30), write_wav("short.wav", 19200)
    short = [pretrain_clips[0]._replace(video=video, audio=audio), *pretrain_clips[3:]]
    items = [(clips, ClipIndex(epoch, epoch % 2)) for epoch in range(6)]
    for listed, item in items + [(short, ClipIndex(1, index)) for index in range(3)]:
        ours, clip = PretrainClips(listed, source_crop="voxceleb2")[item], listed[item.index]
        ours = ours.to("cpu")
        video, video_mask, audio, audio_mask = plain.load_clip(
            clip.video, clip.audio, item_generator(0, item)
        )
        assert torch.equal(ours.video[0], video)
        assert torch.equal(ours.video_mask[0], video_mask)
        assert torch.equal(ours.audio_mask[0], audio_mask)
        torch.testing.assert_close(ours.audio[0], audio, atol=1e-6, rtol=0)


def test_clips_are_like_voxceleb2s_and_are_kept(clips):
    bit_rate = Path(clips[0].video).stat().st_size * 8 / data.SECONDS
    assert bit_rate == pytest.approx(data.BIT_RATE, rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in data.CACHE.iterdir()}
    assert data.make_clips(2) == clips
    assert {path: path.stat().st_mtime_ns for path in data.CACHE.iterdir()} == before


def test_reading_is_measured(clips, tmp_path, capsys):
    rows = figures(tmp_path, *"loader --num_clips 2 --steps 2 --num_samples 2".split())["variants"]
    assert [*rows] == ["plain", "mp4", "mp4_samples", "shards", "shards_samples"]
    assert rows["plain"]["ratio_cpu_time"] == 1
    for name, row in rows.items():
        samples = 2 if name.endswith("samples") else 1
        assert row["clips_per_s"] == pytest.approx(samples / row["step_s"])
    assert "shards_samples" in capsys.readouterr().out


def test_all_kinds_read_the_same_windows(clips, tmp_path):
    kinds = data.own_items(clips, 1), data.own_items(data.pack(clips, tmp_path, 100), 1)
    for _ in range(3):
        one, other = (next(items) for items in kinds)
        assert one.names == other.names and torch.equal(one.audio, other.audio)
        assert (one.video.float() - other.video.float()).abs().mean() < 3


def test_waiting_and_slowing_down_are_told_apart(monkeypatch):
    """Two batches a step are waited for 3 s each and computed in 2; from one that is there, in 1.6.

    So 0.4 s of a step are lost otherwise. The time from asking for a batch to having it is waiting.
    """
    now = [0.0]
    monkeypatch.setattr(models.time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    def loading():
        for _ in range(6):
            spend(3.0)
            yield "batch"

    monkeypatch.setattr(models, "train_step", lambda *_: spend(2.0))
    flags = [*PRETRAIN, "--accum_iter", "2", "--data_path", "-", "--output_dir", "-"]
    parser, config = new_parser("", PretrainConfigs), FeedConfig(steps=2, warmup=1)
    configs = parse_configs(parser, PretrainConfigs, given_flags(parser, flags))
    seen, waits = data.train(configs, models.arithmetic(configs.run), loading(), config, "fed")
    fixed = pd.DataFrame([("fixed", 1.6, 0.1)], columns=seen.columns)
    found = data.feed_rates(pd.concat([seen, fixed]), waits, clips=4)
    assert (found["step_s"], found["fixed_step_s"]) == (8.0, 1.6)
    assert (found["clips_per_s"], found["fixed_clips_per_s"]) == pytest.approx((0.5, 2.5))
    assert (found["wait_share"], found["slower_share"]) == pytest.approx((0.75, 0.8))
    assert found["voxceleb2_days"] == pytest.approx(1_091_581 * 100 / 0.5 / 86400)


def test_training_is_fed_from_a_list_and_from_shards(clips, tmp_path, capsys):
    data.pack(clips, tmp_path, 95)
    flags = [*PRETRAIN, *"--steps 2 --warmup 1 --num_workers 1 --accum_iter 2".split()]
    for source in ("clips.csv", "packed"):
        found = figures(tmp_path, "feed", *flags, "--data_path", str(tmp_path / source))
        assert found["device"].startswith("cpu") and found["num_workers"] == 1
        assert 0 < found["wait_share"] < 1 and found["clips_in_list"] == 2
        assert all(found[name] > 0 for name in ("clips_per_s", "fixed_clips_per_s", "step_s"))
    assert "voxceleb2_days" in capsys.readouterr().out


def test_growth_is_a_table_of_ratios_to_the_first_row(clips, tmp_path, capsys, monkeypatch):
    """The processes of ranks are made up here, and lists are read in this one."""

    def train(command, **_):
        found = {"step_s": 2.0, "cpu_s": 0.5 * int(command[4][-1])}
        Path(command[command.index("--json") + 1]).write_text(json.dumps(found))

    monkeypatch.setattr(data, "subprocess", SimpleNamespace(run=train, DEVNULL=None))
    monkeypatch.setattr(models, "alone", lambda work, *arguments: work(*arguments))
    flags = "--models tiny --batch_size 1 2 --ranks 1 2 --lines 4 40 --steps 1".split()
    rows = pd.DataFrame(figures(tmp_path, "growth", *flags)["rows"])
    assert rows["size"].tolist() == [1, 2, 1, 2, 4, 4, 40, 40] and rows.what.nunique() == 4
    for _, group in rows.groupby("what"):
        per_s = group["size"] / group.wall
        assert group.ratio.tolist() == pytest.approx((per_s / per_s.iloc[0]).tolist())
    ranks = rows[rows.what.str.startswith("processes")]
    assert ranks.ratio.tolist() == [1, 2] and ranks.ratio_cpu_time.tolist() == [1, 0.5]
    shown = capsys.readouterr().out
    assert shown.startswith("cpu (") and "| processes (gloo), t" in shown


@pytest.mark.slow
@needs_weights
def test_a_first_prediction_and_faces_are_measured(clips, tmp_path):
    found = figures(tmp_path, *"faces --steps 1 --detect_every 5 25".split())
    assert sum(found["cold_shares"].values()) == pytest.approx(1)
    assert min(found["cold_shares"].values()) > 0
    often, seldom = found["faces"]
    assert often["faster"] == 1 < seldom["faster"]
    assert max(often["eye_error"], seldom["eye_error"]) < 0.06
