"""From disk to model: the arithmetic, and tiny runs from files that are really read."""

import itertools
import json

import pytest
import torch

from hicmae.benchmark import feed, real_steps
from hicmae.benchmark.__main__ import main
from hicmae.benchmark.real_steps import Steps
from hicmae.config import new_parser
from hicmae.data.clip_list import Clip, read_pretrain_list
from preprocess import pack_clips
from tests.benchmark.test_ranks import TINY
from tests.conftest import save_mp4, save_wav


def test_waiting_and_slowing_down_are_told_apart():
    """A step of 2 s that waits 1 s; without data it takes 0.8 s, so 0.2 s are lost otherwise."""
    figures = feed.rates(Steps([2.0, 2.0], [1.0, 1.0], []), Steps([0.8], [0.0], []), clips=4)
    assert (figures["clips_per_s"], figures["fixed_clips_per_s"]) == pytest.approx((2.0, 5.0))
    assert (figures["wait_share"], figures["slower_share"]) == pytest.approx((0.5, 0.6))
    assert (figures["step_s"], figures["fixed_step_s"]) == (2.0, 0.8)


def test_needs_of_voxceleb2_follow_from_the_rates():
    row = {"clips_per_s": 100.0, "fixed_clips_per_s": 200.0, "loader_clips_per_s": 50.0}
    needs = feed.voxceleb2(row, workers=2)
    assert needs["voxceleb2_device_days"] == pytest.approx(1_091_581 * 100 / 100 / 86400)
    assert needs["voxceleb2_device_days_if_fed"] == pytest.approx(1_091_581 * 100 / 200 / 86400)
    assert needs["loader_cores_per_device"] == 8.0, "25 clips/s a process, 200 are wanted"


class Clock:
    """A clock that only `spend` moves."""

    def __init__(self):
        self.now = 0.0

    def spend(self, seconds):
        self.now += seconds


def test_the_time_between_asking_for_a_batch_and_having_it_counts_as_waiting(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(real_steps.time, "perf_counter", lambda: clock.now)

    def loading():
        for _ in range(6):
            clock.spend(3.0)
            yield "batch"

    watched = real_steps._Watched(loading(), torch.device("cpu"))
    for _ in itertools.islice(watched, 6):
        clock.spend(1.0)  # the model
    steps = watched.steps(accum_iter=2, warmup=1)
    assert steps.durations == [8.0, 8.0], "two batches a step, the first step left out"
    assert steps.waits == [6.0, 6.0] and steps.wait_share == 0.75


@pytest.fixture
def clip_list(tmp_path):
    names = [save_mp4(tmp_path / f"{k}.mp4", 34 + k, (64, 40)) for k in range(4)]
    for k in range(4):
        save_wav(tmp_path / f"{k}.wav", (34 + k) * 640)
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{name} 0\n" for name in names))
    return path


def test_training_is_fed_from_a_list_and_from_shards(clip_list, tmp_path, capsys):
    shards, out = tmp_path / "shards", tmp_path / "feed.json"
    assert pack_clips.main([str(clip_list), "--output_dir", str(shards)]) == 0
    flags = [*TINY, "--num_workers", "1", "--accum_iter", "2", "--json", str(out)]
    assert main(["feed", *flags, "--data_path", str(clip_list), "--shards", str(shards)]) == 0
    figures = json.loads(out.read_text())
    files, packed = figures["sources"]
    assert (files["source"], files["data_path"]) == ("files", str(clip_list))
    assert (packed["source"], packed["data_path"]) == ("shards", str(shards))
    assert figures["device"].startswith("cpu") and figures["num_workers"] == 1
    for row in figures["sources"]:
        assert 0 < row["wait_share"] < 1 and row["clips_in_list"] == 4
        assert all(row[name] > 0 for name in ("clips_per_s", "fixed_clips_per_s", "step_s"))
    shown = capsys.readouterr().out
    assert all(f"VoxCeleb2 x 100 epochs from {kind}" in shown for kind in ("files", "shards"))


def parsed(*flags):
    parser = new_parser("")
    feed.add_arguments(parser)
    return parser.parse_args(flags)


def test_made_clips_stand_in_for_a_list(tmp_path, monkeypatch):
    made = [Clip(f"{k}.mp4", f"{k}.wav", None) for k in range(3)]
    monkeypatch.setattr(feed, "make_clips", lambda folder, count: made[:count])
    args = parsed("--make_clips", "2", "--shards", "packed")
    configs = real_steps.training_configs(args, str(tmp_path))
    sources = feed._sources(args, configs, tmp_path)
    assert [kind for kind, _ in sources] == ["files", "shards"]
    clips = read_pretrain_list(sources[0][1].data.data_path)
    assert [clip.video for clip in clips] == ["0.mp4", "1.mp4"]
    assert sources[1][1].data.data_path == "packed"


def test_a_short_list_is_read_again_so_that_no_epoch_ends_while_it_is_measured():
    clips = feed.Repeated("abc", 7)
    assert [clips[k] for k in range(len(clips))] == list("abcabca")
    assert len(feed.Repeated("abcd", 2)) == 4, "a long list is left as it is"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no clips to read; give --data_path, --shards or --make_clips"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--make_clips", "0"], "--make_clips must be at least 1, got 0"),
        (["--make_clips", "2", "--data_path", "a.csv"], "--make_clips stands in for --data_path"),
        (["--data_path", "/nowhere.csv"], "list '/nowhere.csv' does not exist"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(flags, message, capsys):
    assert main(["feed", *TINY, *flags]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
