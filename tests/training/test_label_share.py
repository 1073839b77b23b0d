"""A share of the labels: of every class alike, nested, told by the seed alone."""

from collections import Counter

import pytest

from hicmae.data.clip_list import Clip
from hicmae.data.splits import describe_share as describe
from hicmae.data.splits import share_table as table
from hicmae.data.splits import take_share

COUNTS = {0: 100, 1: 40, 2: 3}  # clips of each class


def clips():
    labels = [label for label, count in COUNTS.items() for _ in range(count)]
    return [Clip(f"v{k}", f"a{k}.wav", label) for k, label in enumerate(labels)]


@pytest.mark.parametrize(
    "share, expected",
    [(0.1, (10, 4, 1)), (0.3, (30, 12, 1)), (0.5, (50, 20, 2)), (1, (100, 40, 3))],
)
def test_every_class_gives_its_share_and_at_least_one_clip(share, expected):
    taken = take_share(clips(), share, seed=0)
    counts = Counter(clip.label for clip in taken)
    assert tuple(counts[label] for label in COUNTS) == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_share_is_part_of_a_larger_one_in_list_order(seed):
    whole = clips()
    shares = [take_share(whole, share, seed) for share in (0.01, 0.1, 0.25, 0.3, 0.9, 1.0)]
    for smaller, larger in zip(shares, shares[1:], strict=False):
        assert set(smaller) < set(larger)
        assert larger == [clip for clip in whole if clip in set(larger)]
    assert shares[-1] == whole


def test_the_seed_decides_which_clips():
    draws = [take_share(clips(), 0.1, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_other_classes_do_not_change_what_a_class_gives():
    whole = clips()
    alone = take_share([clip for clip in whole if clip.label == 0], 0.2, 0)
    assert alone == [clip for clip in take_share(whole, 0.2, 0) if clip.label == 0]


def test_of_a_regression_the_share_is_of_all_clips():
    numbers = [Clip(f"v{k}", f"a{k}.wav", (k / 50, 0.5)) for k in range(50)]
    taken = take_share(numbers, 0.3, 0)
    assert len(set(taken)) == 15
    assert len(take_share(numbers, 0.001, 0)) == 1


def test_the_log_counts_the_clips_and_the_table_names_them(caplog):
    taken = take_share(clips(), 0.1, 0)
    with caplog.at_level("INFO"):
        describe(taken, 143, 0.1)
    assert "15 of 143 training clips (10, 4, 1 of the classes), named in train_c" in caplog.text
    assert table(taken).splitlines() == ["clip", *(clip.video for clip in taken)]
