import csv
import logging
import re
import threading

import numpy as np
import pytest

from hicmae.data import dataset as streams
from hicmae.data.batches import ClipIndex, SkippedClip
from hicmae.data.clip_list import Clip
from hicmae.data.dataset import PretrainClips, TestClips
from hicmae.data.loader import (
    ClipSampler,
    SkippedClips,
    call_in_time,
    item_generator,
    make_loader,
    read_or_replace,
    shard_order,
)
from hicmae.io import UnreadableClip

CLIPS = [Clip(f"v{k}", f"a{k}", k) for k in range(7)]
SHARDS = np.repeat(np.arange(30), 5)  # 30 shards of 5 clips


def sampled(num_clips: int, **settings) -> list[int]:
    epoch, start = settings.pop("epoch", 0), settings.pop("start", 0)
    sampler = ClipSampler(num_clips, **{"shuffle": True, "seed": 3, "pad": True} | settings)
    sampler.set_epoch(epoch, start)
    items = list(sampler)
    assert all(item.epoch == epoch for item in items)
    assert len(items) == max(len(sampler) - start, 0), "the length is that of a whole epoch"
    return [item.index for item in items]


def reader(broken):
    def read(clip, rng=None):
        if clip.label in broken:
            raise UnreadableClip(f"{clip.video} is broken")
        return clip.label

    return read


# order


@pytest.mark.parametrize("shards", [None, SHARDS])
def test_order_is_a_permutation_that_changes_with_epoch_and_seed(shards):
    first = sampled(150, shards=shards)
    assert sorted(first) == list(range(150)) and first != list(range(150))
    assert first == sampled(150, shards=shards)
    assert first != sampled(150, shards=shards, epoch=1)
    assert first != sampled(150, shards=shards, seed=4)
    assert sampled(150, shards=shards, shuffle=False, pad=False) == list(range(150))


def test_order_of_packed_clips_takes_a_few_shards_at_a_time():
    order = np.array(sampled(150, shards=SHARDS))
    windows = [SHARDS[order[k : k + 40]] for k in range(0, 150, 40)]
    assert [len(set(window)) for window in windows] == [8, 8, 8, 6]
    assert all(len(set(window[:8])) > 2 for window in windows), "clips of a window are mixed"
    assert len(set(np.concatenate([window[:1] for window in windows]))) == 4
    unequal = np.array([0] * 20 + [1] + [2] * 3 + [3] * 50)
    assert sorted(shard_order(unequal, np.random.default_rng(0))) == list(range(74))


@pytest.mark.parametrize("num_clips, world_size", [(150, 1), (150, 4), (147, 4), (11, 2), (3, 7)])
@pytest.mark.parametrize("packed", [True, False])
def test_shares_are_complete_and_overlap_only_in_the_padding_of_training(
    num_clips, world_size, packed
):
    settings = {"shards": SHARDS[:num_clips] if packed else None, "world_size": world_size}
    shares = [sampled(num_clips, rank=rank, **settings) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    counts = np.bincount(np.concatenate(shares), minlength=num_clips)
    assert counts.min() >= 1 and counts.sum() == num_clips + -num_clips % world_size
    settings |= {"shuffle": False, "pad": False}  # as in an evaluation
    shares = [sampled(num_clips, rank=rank, **settings) for rank in range(world_size)]
    assert sorted(sum(shares, [])) == list(range(num_clips))


def test_resuming_continues_the_interrupted_epoch_also_with_another_number_of_processes():
    whole = sampled(31, rank=1, world_size=2, epoch=4)
    assert sampled(31, rank=1, world_size=2, epoch=4, start=5) == whole[5:]
    whole = sampled(150, shards=SHARDS)
    settings = {"shards": SHARDS, "world_size": 2, "start": 30}
    rest = [sampled(150, rank=rank, **settings) for rank in range(2)]
    assert [index for pair in zip(*rest, strict=True) for index in pair] == whole[60:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_balanced_epoch_draws_classes_equally_and_repeats_clips_as_late_as_it_can(world_size):
    labels = np.repeat([0, 1, 3], [100, 10, 6])
    settings = {"shuffle": True, "seed": 3, "pad": True, "world_size": world_size}
    samplers = [ClipSampler(116, rank=k, labels=labels, **settings) for k in range(world_size)]
    items = [item for turn in zip(*samplers, strict=True) for item in turn]
    order = [item.index for item in items]
    assert len(items) == 116 and order != sorted(order)
    drawn = np.bincount(order, minlength=116)
    assert sorted(np.bincount(labels[order])[[0, 1, 3]]) == [38, 39, 39]
    assert drawn[:100].max() == 1 and np.ptp(drawn[100:110]) <= 1 and np.ptp(drawn[110:]) <= 1
    twice = [item_generator(0, item).integers(2**62) for item in items]
    assert len(set(twice)) == 116, "a clip that comes again is augmented anew"
    first = next(item for item in items if not item.again)
    plain = item_generator(0, ClipIndex(0, first.index)).integers(2**62)
    assert item_generator(0, first).integers(2**62) == plain
    samplers[0].set_epoch(0, 50 // world_size)
    assert next(iter(samplers[0])) == items[50]
    samplers[0].set_epoch(1)
    assert [item.index for item in samplers[0]] != order[::world_size]


def test_a_loader_without_a_batch_is_refused():
    sampler = ClipSampler(5, shuffle=True, seed=0, world_size=2, pad=True)
    with pytest.raises(ValueError, match="3 clips per process, .* 4; lower --batch_size"):
        make_loader(CLIPS, sampler, 4, 0, drop_last=True)


# unreadable clips


def test_unreadable_clips_are_replaced_by_drawn_ones_and_named_once():
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    assert read_or_replace(CLIPS, 4, reader(set()), rngs[0]) == (4, ())
    found = [read_or_replace(CLIPS, 2, reader({0, 2, 3, 4, 6}), rng) for rng in rngs]
    assert {value for value, _ in found} == {1, 5}
    for _, skipped in found:
        assert skipped[0] == SkippedClip("v2", "v2 is broken")
        assert len(set(skipped)) == len(skipped) <= 5
    same = [read_or_replace(CLIPS, 2, reader({2}), np.random.default_rng(5)) for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("num_clips, tries", [(1, 1), (7, 7), (100, 20)])
def test_list_of_unreadable_clips_stops_after_bounded_tries(num_clips, tries):
    clips = [Clip(f"v{k}", None, None) for k in range(num_clips)]
    with pytest.raises(RuntimeError, match=rf"{tries} clips .*--data_root .*v\d+ is broken"):
        read_or_replace(clips, 0, reader({None}), np.random.default_rng(0))


def test_skipped_clips_are_named_once_in_log_and_file(tmp_path, caplog):
    path = tmp_path / "run" / "skipped_clips.csv"
    record = SkippedClips(path, 10, 0.5)
    with caplog.at_level(logging.WARNING):
        record.record([])
        record.record([SkippedClip("a b", 'reason "x", y'), SkippedClip("a b", "again")])
        record.record([SkippedClip("a b", "later"), SkippedClip("two\nlines", "z")])
    assert len(caplog.records) == 2 and "z" in caplog.text
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["video", "reason"], ["a b", "again"], ["two\nlines", "z"]]
    caplog.clear()
    again = SkippedClips(path, 10, 0.25)  # after a restart
    again.record([SkippedClip("two\nlines", "z")])
    assert not caplog.records
    facts = r"3 of 10 clips \(30.00%\) .* at most 25.00%.*skipped_clips.csv'.*--max_bad_clips"
    with pytest.raises(RuntimeError, match=facts):
        again.record([SkippedClip("d", "z")])
    assert path.read_text().endswith("d,z\n")
    SkippedClips(tmp_path / "a.csv", 50, 0.01).record([SkippedClip("a", "z")])  # one is no share
    with pytest.raises(RuntimeError, match=r"1 of 50 clips \(2.00%\)"):
        SkippedClips(tmp_path / "b.csv", 50, 0.0).record([SkippedClip("a", "z")])


# clips that take too long


def test_a_call_in_time_gives_its_result_and_its_exception():
    assert call_in_time(60.0, "clip", max, 3, 5) == 5
    with pytest.raises(ZeroDivisionError):
        call_in_time(60.0, "clip", lambda: 1 // 0)
    thread = threading.current_thread
    assert call_in_time(0, "clip", thread) is thread(), "no limit needs no thread"


def test_a_decoder_that_hangs_costs_its_clip_in_training_and_in_testing_and_is_in_nobodys_way(
    pretrain_clips, monkeypatch, request
):
    clip, open_video, hung = pretrain_clips[0], streams.open_video, threading.Event()
    request.addfinalizer(hung.set)
    monkeypatch.setattr(
        streams, "open_video", lambda path: hung.wait() if path == clip.video else open_video(path)
    )
    before = set(threading.enumerate())
    settings = {"input_size": 32, "input_size_audio": (64, 32), "clip_timeout": 1.5}
    batch = PretrainClips(pretrain_clips, **settings)[ClipIndex(0, 0)]
    views = TestClips([clip], **settings, allow_skip=True)[ClipIndex(0, 0)]
    assert batch.names[0] != clip.video and views.names == ()
    for (skipped,) in (batch.skipped, views.skipped):
        assert skipped.video == clip.video
        assert re.search("'.*v0.mp4' was not read in 1.5 s.*--clip_timeout", skipped.reason)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2 and all(thread.daemon and thread.is_alive() for thread in threads)
    hung.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
