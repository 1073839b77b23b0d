"""Properties that hold for all inputs: clip sampling, lists, masks, views, damaged files."""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hicmae.data.audio import frames_to_samples
from hicmae.data.clip_list import Clip, read_labelled_list, read_pretrain_list, write_list
from hicmae.data.masking import random_mask, tube_mask
from hicmae.data.video import pretrain_frames, test_windows, train_frames
from hicmae.training import checkpoint
from hicmae.training.checkpoint import CheckpointError, load, save
from hicmae.training.evaluate import average_views

frame_counts = st.integers(1, 2000)
num_frames = st.integers(1, 32)
rates = st.integers(1, 8)
seeds = st.integers(0, 2**32 - 1)
ALLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
in_folder = settings(suppress_health_check=ALLOWED, deadline=None)


# Which frames


@given(total=frame_counts, count=num_frames, rate=rates, data=st.data())
def test_pretrain_frames_are_evenly_spaced_frames_of_the_video(total, count, rate, data) -> None:
    start = data.draw(st.integers(0, max(total - count * rate, 0)))
    frames = pretrain_frames(total, start, count, rate)
    assert frames.shape == (count,) and frames[0] == start
    assert 0 <= frames.min() and frames.max() < total
    steps = np.diff(frames)
    assert set(steps[steps > 0]) <= {rate}
    if total >= count * rate:
        assert (steps == rate).all()
    else:  # frames are repeated only after the last one that can be reached
        repeats = np.flatnonzero(steps == 0)
        assert not len(repeats) or (np.diff(frames)[repeats[0] :] == 0).all()


@given(total=frame_counts, count=num_frames, rate=rates, data=st.data())
def test_train_frames_stay_in_the_span_before_their_end(total, count, rate, data) -> None:
    span = count * rate
    end = data.draw(st.none() | st.integers(span, total - 1)) if total > span else None
    frames = train_frames(total, end, count, rate)
    assert frames.shape == (count,)
    assert 0 <= frames.min() and frames.max() < total
    assert (np.diff(frames) >= 0).all()
    if end is not None:
        assert frames[0] == end - span and frames[-1] == (end - 1 if count > 1 else end - span)


@given(total=frame_counts, segments=st.integers(1, 6), count=num_frames, rate=rates)
def test_test_windows_are_distinct_and_cover_both_ends(total, segments, count, rate) -> None:
    windows = test_windows(total, segments, count, rate)
    assert 1 <= len(windows) <= segments
    assert len({tuple(window) for window in windows}) == len(windows)
    every = np.arange(0, total, rate)
    for window in windows:
        assert window.shape == (count,) and set(window) <= set(every)
    if segments > 1:
        assert windows[0][0] == 0 and windows[-1][-1] == every[-1]


@given(frames=st.integers(1, 5000), samples=st.integers(0, 10**7), data=st.data())
def test_samples_between_frames_are_in_order_and_in_the_wav(frames, samples, data) -> None:
    first = data.draw(st.integers(0, frames - 1))
    last = data.draw(st.integers(first, frames - 1))
    start, stop = frames_to_samples(first, last, frames, samples)
    assert 0 <= start <= stop <= samples
    if frames > 1:
        assert start == math.floor(Fraction(first, frames - 1) * samples)
        assert stop == math.floor(Fraction(last, frames - 1) * samples)


# Masks


@given(grid=st.tuples(*[st.integers(1, 12)] * 3), ratio=st.floats(0.01, 0.99), seed=seeds)
def test_masks_hide_their_share_tubes_the_same_in_every_frame(grid, ratio, seed) -> None:
    cells = grid[1] * grid[2]
    assume(0 < int(ratio * cells) < cells)
    mask = tube_mask(grid, ratio, np.random.default_rng(seed)).reshape(grid[0], cells)
    assert mask.dtype == bool and (mask == mask[0]).all()
    assert mask[0].sum() == int(ratio * cells)
    one = random_mask(cells, ratio, np.random.default_rng(seed))
    assert one.shape == (cells,) and (one == mask[0]).all(), "the generator decides"


@pytest.mark.parametrize("ratio, hidden", [(0.2, 0), (1.0, 4)])
def test_masks_that_hide_nothing_or_everything_are_refused(ratio, hidden) -> None:
    with pytest.raises(
        ValueError, match=f"mask_ratio {ratio} hides {hidden} of 4 patches in a 2x2"
    ):
        tube_mask((8, 2, 2), ratio, np.random.default_rng(0))


# Views


@given(
    scores=arrays.arrays(
        np.float64, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.floats(-5, 5)
    ),
    seed=seeds,
)
def test_averages_depend_on_neither_the_order_of_views_nor_other_clips(scores, seed) -> None:
    rng = np.random.default_rng(seed)
    views = len(scores)
    num_clips = int(rng.integers(1, views + 1))
    clip = np.concatenate([np.arange(num_clips), rng.integers(0, num_clips, views - num_clips)])
    means = average_views(scores, clip, num_clips)
    expected = np.stack([scores[clip == index].mean(axis=0) for index in range(num_clips)])
    np.testing.assert_allclose(means, expected, atol=1e-12)
    order = rng.permutation(views)
    np.testing.assert_allclose(
        average_views(scores[order], clip[order], num_clips), means, atol=1e-12
    )


# Lists

names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))
numbers = st.floats(-1e9, 1e9)


@settings(in_folder, max_examples=50)
@given(rows=st.lists(st.tuples(names, names, st.integers(0, 99), numbers), min_size=1, max_size=6))
def test_any_names_and_numbers_survive_a_list(tmp_path: Path, rows) -> None:
    path = tmp_path / "list.csv"
    clips = [Clip("v" + video, "a" + audio, label) for video, audio, label, _ in rows]
    write_list(path, clips)
    assert read_labelled_list(path) == clips
    clips = [Clip("v" + video, "a" + audio, (one, 0.5)) for video, audio, _, one in rows]
    write_list(path, clips)
    assert read_labelled_list(path, "regression", 2) == clips
    clips = [Clip(f"v{video}0.mp4", f"a{audio}", None) for video, audio, *_ in rows]
    write_list(path, clips)
    assert read_pretrain_list(path) == clips
    write_list(path, [clip._replace(audio=None) for clip in clips])
    assert read_pretrain_list(path) == [Clip(v, v[:-4] + ".wav", None) for v, *_ in clips]


# Damage

LIST = b'"a b/c.mp4" "a b/c.wav" 3\nfaces/x_aligned audio/x.wav 0\n"q""q" \xc3\xbc.wav 2\n'
TOKENS = [b'"', b" ", b"\n", b"\r", b"\0", b"-1", b"99999999999999999999", b"nan", b"\xff", b"1e9"]


def damaged(seed: int, data: bytes, tokens: list[bytes]) -> bytes:
    """Return a copy with bytes changed, cut, doubled or moved, or with tokens put in."""
    draw = random.Random(seed)
    changes: list[Callable[[bytearray, int], None]] = [
        lambda b, k: b.__setitem__(k, draw.randrange(256)),
        lambda b, k: b.__setitem__(k, b[k] ^ (1 << draw.randrange(8))),
        lambda b, k: b.__delitem__(slice(k, k + draw.randrange(1, 64))),
        lambda b, k: b.__setitem__(slice(k, k), b[draw.randrange(len(b)) :][:64]),
        lambda b, k: b.__setitem__(slice(k, k), draw.choice(tokens)),
        lambda b, k: b.__delitem__(slice(k, len(b))),
    ]
    copy = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        if copy:
            draw.choice(changes)(copy, draw.randrange(len(copy)))
    return bytes(copy)


@settings(in_folder, max_examples=500)
@given(seed=seeds, read=st.sampled_from([read_labelled_list, read_pretrain_list]))
def test_a_damaged_list_is_read_or_refused_with_its_line(tmp_path: Path, seed: int, read) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(damaged(seed, LIST, TOKENS))
    try:
        clips = read(path)
        assert clips and all(clip.video for clip in clips)
    except ValueError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "checkpoint-0.pth"
    save(path, {"model": {"weight": torch.arange(12.0)}, "epoch": 0, "args": {"lr": 0.1}})
    return path.read_bytes()


@settings(in_folder, max_examples=300)
@given(seed=seeds)
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    path = tmp_path / "checkpoint-0.pth"
    tokens = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x80\x02", b".", b"PK\3\4", b"q\0"]
    path.write_bytes(damaged(seed, whole, tokens))
    try:
        assert isinstance(load(path), dict)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(in_folder, max_examples=150)
@given(seed=seeds)
def test_resuming_from_damaged_checkpoints_never_raises(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    (tmp_path / "checkpoint-0.pth").write_bytes(whole)
    (tmp_path / "checkpoint-1.pth").write_bytes(damaged(seed, whole, [b"\0"]))
    found = next(checkpoint.whole(tmp_path), None)
    assert found is not None and found[0].name in ("checkpoint-0.pth", "checkpoint-1.pth")
