"""Random damage to lists and checkpoints, bounded in time and from fixed seeds."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hicmae.data.clip_list import read_labelled_list, read_pretrain_list
from hicmae.training.checkpoint import CheckpointError, load, newest, save

SECONDS = 6  # for each fuzzer; how many inputs that makes is the machine's affair
LIST = b'"a b/c.mp4" "a b/c.wav" 3\nfaces/x_aligned audio/x.wav 0\n"q""q" \xc3\xbc.wav 2\n'
TOKENS = [b'"', b" ", b"\n", b"\r", b"\0", b"-1", b"99999999999999999999", b"nan", b"\xff", b"1e9"]


def mutations(seed: int, data: bytes, tokens: list[bytes]) -> Iterator[bytes]:
    """Yield damaged copies: bytes changed, cut, doubled, moved, tokens put in."""
    draw = random.Random(seed)
    changes: list[Callable[[bytearray, int], None]] = [
        lambda b, k: b.__setitem__(k, draw.randrange(256)),
        lambda b, k: b.__setitem__(k, b[k] ^ (1 << draw.randrange(8))),
        lambda b, k: b.__delitem__(slice(k, k + draw.randrange(1, 64))),
        lambda b, k: b.__setitem__(slice(k, k), b[draw.randrange(len(b)) :][:64]),
        lambda b, k: b.__setitem__(slice(k, k), draw.choice(tokens)),
        lambda b, k: b.__delitem__(slice(k, len(b))),
    ]
    while True:
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            if damaged:
                draw.choice(changes)(damaged, draw.randrange(len(damaged)))
        yield bytes(damaged)


def until(seconds: float, inputs: Iterator[bytes]) -> Iterator[bytes]:
    end = time.monotonic() + seconds
    for count, data in enumerate(inputs):
        if count >= 50 and time.monotonic() > end:  # fifty whatever the machine does
            return
        yield data


@pytest.mark.parametrize("read", [read_labelled_list, read_pretrain_list])
def test_a_damaged_list_is_read_or_refused_with_its_line(tmp_path: Path, read) -> None:
    path = tmp_path / "list.csv"
    for data in until(SECONDS / 2, mutations(0, LIST, TOKENS)):
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}:") and "\n" not in str(error), data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "checkpoint-0.pth"
    save(path, {"model": {"weight": torch.arange(12.0)}, "epoch": 0, "args": {"lr": 0.1}})
    return path.read_bytes()


def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "checkpoint-0.pth"
    tokens = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x80\x02", b".", b"PK\3\4", b"q\0"]
    for data in until(SECONDS, mutations(1, whole, tokens)):
        path.write_bytes(data)
        try:
            assert isinstance(load(path), dict)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_resuming_from_damaged_checkpoints_never_raises(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "checkpoint-0.pth").write_bytes(whole)
    for data in until(SECONDS / 2, mutations(2, whole, [b"\0"])):
        (tmp_path / "checkpoint-1.pth").write_bytes(data)
        found = newest(tmp_path)
        assert found is not None and found[0].name in ("checkpoint-0.pth", "checkpoint-1.pth")
