"""Random damage to lists and checkpoints, bounded by the number of examples."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from hicmae.training import checkpoint
from hicmae.training.checkpoint import CheckpointError, load, save

LIST = b'"a b/c.mp4" "a b/c.wav" 3\nfaces/x_aligned audio/x.wav 0\n"q""q" \xc3\xbc.wav 2\n'
TOKENS = [b'"', b" ", b"\n", b"\r", b"\0", b"-1", b"99999999999999999999", b"nan", b"\xff", b"1e9"]
seeds = st.integers(0, 2**32 - 1)


def examples(count: int) -> settings:
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, suppress_health_check=allowed)


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


@examples(500)
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


@examples(300)
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


@examples(150)
@given(seed=seeds)
def test_resuming_from_damaged_checkpoints_never_raises(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    (tmp_path / "checkpoint-0.pth").write_bytes(whole)
    (tmp_path / "checkpoint-1.pth").write_bytes(damaged(seed, whole, [b"\0"]))
    found = next(checkpoint.whole(tmp_path), None)
    assert found is not None and found[0].name in ("checkpoint-0.pth", "checkpoint-1.pth")
