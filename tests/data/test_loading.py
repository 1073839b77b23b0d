import csv
import logging

import numpy as np
import pytest

from hicmae.data.clip_list import Clip
from hicmae.data.loader import (
    ClipIndex,
    ClipSampler,
    SkippedClip,
    SkippedClips,
    item_generator,
    make_loader,
    read_or_replace,
    read_or_skip,
    shard_order,
)
from hicmae.io import UnreadableClip

CLIPS = [Clip(f"v{k}", f"a{k}", k) for k in range(7)]


def sampled(**settings) -> list[int]:
    epoch, start = settings.pop("epoch", 0), settings.pop("start", 0)
    sampler = ClipSampler(**{"shuffle": True, "seed": 3, "pad": True} | settings)
    sampler.set_epoch(epoch, start)
    items = list(sampler)
    assert all(item.epoch == epoch for item in items)
    return [item.index for item in items]


def reader(broken):
    def read(clip, rng):
        if clip.label in broken:
            raise UnreadableClip(f"{clip.video} is broken")
        return clip.label

    return read


def test_items_draw_the_same_numbers_for_the_same_epoch_and_index_only():
    draws = {
        (seed, epoch, index): item_generator(seed, ClipIndex(epoch, index)).integers(2**62)
        for seed in range(3)
        for epoch in range(3)
        for index in range(3)
    }
    assert len(set(draws.values())) == 27
    assert item_generator(1, ClipIndex(2, 0)).integers(2**62) == draws[1, 2, 0]


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    first = sampled(num_clips=50)
    assert sorted(first) == list(range(50)) and first != list(range(50))
    assert first == sampled(num_clips=50)
    assert first != sampled(num_clips=50, epoch=1)
    assert first != sampled(num_clips=50, seed=4)


def test_order_without_shuffle_is_the_list():
    assert sampled(num_clips=5, shuffle=False, pad=False) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_clips", [10, 11])
def test_training_shares_of_two_ranks_are_equal_complete_and_overlap_only_in_the_padding(num_clips):
    shares = [sampled(num_clips=num_clips, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == (num_clips + 1) // 2
    assert set(shares[0]) | set(shares[1]) == set(range(num_clips))
    assert len(set(shares[0]) & set(shares[1])) == num_clips % 2


@pytest.mark.parametrize("num_clips", [10, 11, 2])
def test_evaluation_shares_of_three_ranks_are_disjoint_and_complete(num_clips):
    shares = [
        sampled(num_clips=num_clips, shuffle=False, pad=False, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert sorted(sum(shares, [])) == list(range(num_clips))


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("num_clips", [1, 2, 7, 9])
def test_length_is_that_of_a_whole_epoch(num_clips, pad):
    for rank in range(3):
        sampler = ClipSampler(num_clips, shuffle=True, seed=0, rank=rank, world_size=3, pad=pad)
        assert len(list(sampler)) == len(sampler)
        sampler.set_epoch(0, start=1)
        assert len(list(sampler)) == max(len(sampler) - 1, 0)


def test_resuming_continues_the_interrupted_epoch():
    whole = sampled(num_clips=31, rank=1, world_size=2, epoch=4)
    assert sampled(num_clips=31, rank=1, world_size=2, epoch=4, start=5) == whole[5:]


SHARDS = np.repeat(np.arange(30), 5)  # 30 shards of 5 clips


def test_order_of_packed_clips_takes_a_few_shards_at_a_time():
    order = np.array(sampled(num_clips=150, shards=SHARDS))
    assert sorted(order) == list(range(150))
    windows = [SHARDS[order[k : k + 40]] for k in range(0, 150, 40)]
    assert [len(set(window)) for window in windows] == [8, 8, 8, 6]
    assert all(len(set(window[:8])) > 2 for window in windows), "clips of a window are mixed"
    assert len(set(np.concatenate([window[:1] for window in windows]))) == 4


def test_order_of_packed_clips_changes_with_epoch_and_seed():
    first = sampled(num_clips=150, shards=SHARDS)
    assert first == sampled(num_clips=150, shards=SHARDS)
    assert first != sampled(num_clips=150, shards=SHARDS, epoch=1)
    assert first != sampled(num_clips=150, shards=SHARDS, seed=4)


@pytest.mark.parametrize("num_clips, world_size", [(150, 1), (150, 4), (147, 4), (3, 7)])
def test_packed_clips_are_split_without_repeats_or_losses(num_clips, world_size):
    settings = {"num_clips": num_clips, "shards": SHARDS[:num_clips], "world_size": world_size}
    shares = [sampled(rank=rank, **settings) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    counts = np.bincount(np.concatenate(shares), minlength=num_clips)
    repeats = -num_clips % world_size
    assert counts.min() >= 1 and counts.sum() == num_clips + repeats


def test_resuming_an_epoch_of_packed_clips_with_another_number_of_processes():
    whole = sampled(num_clips=150, shards=SHARDS)
    settings = {"num_clips": 150, "shards": SHARDS, "world_size": 2, "start": 30}
    rest = [sampled(rank=rank, **settings) for rank in range(2)]
    assert [index for pair in zip(*rest, strict=True) for index in pair] == whole[60:]


def test_evaluation_takes_packed_clips_in_their_order():
    order = sampled(num_clips=150, shards=SHARDS, shuffle=False, pad=False)
    assert order == list(range(150))


def test_shards_may_be_of_any_size():
    shards = np.array([0] * 20 + [1] + [2] * 3 + [3] * 50)
    assert sorted(shard_order(shards, np.random.default_rng(0))) == list(range(74))


def test_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank must be in 0..1, got 2"):
        ClipSampler(5, shuffle=False, seed=0, rank=2, world_size=2, pad=False)


def test_readable_clip_is_read_at_once():
    assert read_or_replace(CLIPS, 4, reader(set()), np.random.default_rng(0)) == (4, ())


def test_unreadable_clips_are_replaced_by_one_that_is_not_and_named_once():
    for seed in range(20):
        value, skipped = read_or_replace(
            CLIPS, 2, reader({0, 2, 3, 4, 6}), np.random.default_rng(seed)
        )
        assert value in (1, 5)
        assert skipped[0] == SkippedClip("v2", "v2 is broken")
        assert len(set(skipped)) == len(skipped) <= 5


def test_replacement_is_drawn_from_the_items_generator():
    results = [read_or_replace(CLIPS, 2, reader({2}), np.random.default_rng(5)) for _ in range(2)]
    assert results[0] == results[1]
    assert (
        len(
            {read_or_replace(CLIPS, 2, reader({2}), np.random.default_rng(k))[0] for k in range(20)}
        )
        > 3
    )


@pytest.mark.parametrize("num_clips, tries", [(1, 1), (7, 7), (100, 20)])
def test_list_of_unreadable_clips_stops_after_bounded_tries(num_clips, tries):
    clips = [Clip(f"v{k}", None, None) for k in range(num_clips)]
    with pytest.raises(
        RuntimeError,
        match=rf"{tries} clips in a row cannot be read, .*--data_root .*v\d+ is broken",
    ):
        read_or_replace(clips, 0, reader({None}), np.random.default_rng(0))


def test_evaluation_stops_at_an_unreadable_clip_unless_told_to_skip_it():
    def read(clip):
        return reader({3})(clip, None)

    assert read_or_skip(CLIPS[2], read, allow_skip=False) == (2, ())
    assert read_or_skip(CLIPS[3], read, allow_skip=True) == (
        None,
        (SkippedClip("v3", "v3 is broken"),),
    )
    with pytest.raises(
        RuntimeError,
        match="evaluation clip 'v3' cannot be read: v3 is broken; .*--skip_bad_test_clips",
    ):
        read_or_skip(CLIPS[3], read, allow_skip=False)


def test_training_list_smaller_than_a_batch_is_refused():
    sampler = ClipSampler(5, shuffle=True, seed=0, world_size=2, pad=True)
    with pytest.raises(
        ValueError,
        match="gives 3 clips per process, expected at least one batch of 4; lower --batch_size",
    ):
        make_loader(CLIPS, sampler, 4, 0, drop_last=True)


def test_skipped_clips_are_named_once_in_log_and_file(tmp_path, caplog):
    record = SkippedClips(tmp_path / "run" / "skipped_clips.csv", 10, 0.5)
    with caplog.at_level(logging.WARNING):
        record.record([])
        record.record([SkippedClip("a b", 'reason "x", y'), SkippedClip("a b", "again")])
        record.record([SkippedClip("a b", "later"), SkippedClip("two\nlines", "z")])
    assert len(caplog.records) == 2 and "z" in caplog.text
    with open(tmp_path / "run" / "skipped_clips.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["video", "reason"],
            ["a b", "again"],
            ["two\nlines", "z"],
        ]


def test_skipped_clips_survive_a_restart(tmp_path, caplog):
    path = tmp_path / "skipped_clips.csv"
    SkippedClips(path, 10, 0.5).record([SkippedClip("a\nb", "x"), SkippedClip("c", "y")])
    again = SkippedClips(path, 10, 0.25)
    caplog.clear()
    again.record([SkippedClip("a\nb", "x")])
    assert not caplog.records
    message = (
        r"3 of 10 clips \(30.00%\) cannot be read, expected at most 25.00%; "
        r"see '.*skipped_clips.csv', .*--max_bad_clips"
    )
    with pytest.raises(RuntimeError, match=message):
        again.record([SkippedClip("d", "z")])
    assert path.read_text().endswith("d,z\n")


def test_a_file_cut_off_while_writing_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "skipped_clips.csv"
    path.write_text("video,reason\na,x\n\n")
    assert SkippedClips(path, 3, 1.0).videos == {"a"}
