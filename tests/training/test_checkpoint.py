"""Checkpoints: atomic, safe to open, found again."""

import argparse
import hashlib
import io
import logging
import os
import pickle
import random
import resource
import signal
import zipfile
from functools import partial

import pytest
import torch

import hicmae  # noqa: F401  (registers the models)
from hicmae.training import checkpoint
from hicmae.training.checkpoint import CheckpointError, load, newest, prune, save

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 4}


def assert_no_temporary_files(folder):
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


# Saving


def test_saved_state_comes_back(tmp_path):
    path = tmp_path / "new" / "checkpoint-4.pth"
    save(path, STATE | {"args": {"lr": 0.1, "betas": (0.9, 0.95), "aa": None}})
    state = load(path, verify=True)
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert state["epoch"] == 4 and state["args"] == {"lr": 0.1, "betas": (0.9, 0.95), "aa": None}
    assert_no_temporary_files(path.parent)


def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # the kernel refuses to let any file grow past 1 MiB
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        with pytest.raises(OSError, match="could not write checkpoint .*checkpoint-4.pth.*large"):
            save(path, {"model": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert_no_temporary_files(tmp_path)


# Loading


def test_released_checkpoint_with_a_namespace_and_epoch_best_loads(tmp_path):
    path = tmp_path / "checkpoint-best.pth"
    args = argparse.Namespace(model="avit", lr=1e-3, opt_betas=[0.9, 0.999], finetune=None)
    torch.save({"model": STATE["model"], "optimizer": {}, "epoch": "best", "args": args}, path)
    state = load(path)
    assert state["epoch"] == "best" and state["args"] == args


def test_legacy_torch_format_loads(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load(path, verify=True)["model"]["weight"], STATE["model"]["weight"])


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "torchless zip"])
def test_pickle_bomb_does_not_run_and_is_named_in_one_line(tmp_path, form):
    path, marker = tmp_path / "bomb.pth", tmp_path / "ran"
    content = {"model": Bomb(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match="is refused: .*(posix|nt).system") as raised:
        load(path)
    assert not marker.exists()
    assert "\n" not in str(raised.value)
    os.system(f"touch '{marker}.control'")
    assert (tmp_path / "ran.control").exists()  # the bomb itself would have worked


def whole_file(tmp_path):
    path = tmp_path / "whole.pth"
    save(path, STATE | {"args": argparse.Namespace(a=1)})
    return path.read_bytes()


def pickle_of(state, path):
    path.write_bytes(pickle.dumps(state, protocol=4))


@pytest.mark.parametrize("tenth", range(10))
def test_truncated_file_is_named_in_one_line(tmp_path, tenth):
    whole, path = whole_file(tmp_path), tmp_path / "cut.pth"
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(CheckpointError, match="cut.pth' .* is truncated, damaged or no") as raised:
        load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\x80\x02garbage", b"PK\x03\x04" + bytes(90), b"\x89PNG\r\n" * 30]
)
def test_foreign_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "foreign.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"\({len(content)} bytes\) is truncated, damaged"):
        load(path)


@pytest.mark.parametrize("write", [partial(torch.save, pickle_protocol=4), pickle_of])
def test_a_newer_pickle_is_told_to_be_one(tmp_path, write):
    path = tmp_path / "newer.pth"
    write({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="a pickle of a newer protocol than torch.save's own"):
        load(path)


def test_random_damage_gives_a_dictionary_or_a_checkpoint_error(tmp_path):
    sources = [whole_file(tmp_path)]
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    sources.append(buffer.getvalue())
    path, rng, refused = tmp_path / "fuzz.pth", random.Random(0), 0
    for trial in range(300):
        damaged = bytearray(sources[trial % 2])
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(load(path), dict)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_flipped_bits_of_weights_are_found_when_asked_for(tmp_path):
    path = tmp_path / "flipped.pth"
    save(path, {"model": {"weight": torch.ones(4000)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    assert not torch.equal(load(path)["model"]["weight"], torch.ones(4000))
    with pytest.raises(CheckpointError, match="wrong check sum"):
        load(path, verify=True)


def test_paths_and_contents_that_cannot_be_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth' does not exist; check the path"):
        load(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder, expected a checkpoint file"):
        load(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        load(tmp_path / "list.pth")


# Resuming


def test_newest_goes_by_number_and_ignores_other_names(tmp_path):
    for name in ("9", "10", "2", "best", "11x"):
        save(tmp_path / f"checkpoint-{name}.pth", {"epoch": name})
    path, state = newest(tmp_path)
    assert path.name == "checkpoint-10.pth" and state == {"epoch": "10"}


def test_newest_falls_back_over_broken_files_and_says_so(tmp_path, caplog):
    for epoch in (3, 4, 5):
        save(tmp_path / f"checkpoint-{epoch}.pth", STATE | {"epoch": epoch})
    truncated, flipped = tmp_path / "checkpoint-5.pth", tmp_path / "checkpoint-4.pth"
    truncated.write_bytes(truncated.read_bytes()[:700])
    content = bytearray(flipped.read_bytes())
    at = content.index(STATE["model"]["weight"].numpy().tobytes())
    content[at] ^= 1
    flipped.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        path, state = newest(tmp_path)
    assert path.name == "checkpoint-3.pth" and state["epoch"] == 3
    assert [r.getMessage().count("skipping a broken checkpoint") for r in caplog.records] == [1, 1]
    assert "checkpoint-5.pth" in caplog.text and "checkpoint-4.pth" in caplog.text


def test_newest_of_nothing_whole_is_none(tmp_path):
    assert newest(tmp_path / "missing") is None
    (tmp_path / "checkpoint-1.pth").write_bytes(b"")
    assert newest(tmp_path) is None


def test_states_within_an_epoch_stand_between_those_of_its_ends(tmp_path):
    names = ("9", "10-step3000", "10", "11-step900", "11-step1000", "best", "11-stepx")
    for name in names:
        save(tmp_path / f"checkpoint-{name}.pth", {"epoch": name})
    assert [state["epoch"] for _, state in checkpoint.whole(tmp_path)] == [
        "11-step1000",
        "11-step900",
        "10",
        "10-step3000",
        "9",
    ]
    assert [epoch for epoch, _ in checkpoint.numbered(tmp_path)] == [9, 10]


def test_prune_keeps_every_nth_epoch_and_the_last_two(tmp_path):
    for epoch in range(12):
        (tmp_path / f"checkpoint-{epoch}.pth").touch()
    (tmp_path / "checkpoint-best.pth").touch()
    prune(tmp_path, keep_every=5)
    left = [epoch for epoch, _ in checkpoint.numbered(tmp_path)]
    assert left == [4, 9, 10, 11]  # epochs 5 and 10 counted from 1, and the last two
    assert (tmp_path / "checkpoint-best.pth").exists()


def test_prune_counts_states_within_an_epoch_as_recent_but_keeps_none_for_its_number(tmp_path):
    for name in ("0", "1-step5", "1", "2-step8", "2-step9"):
        (tmp_path / f"checkpoint-{name}.pth").touch()
    prune(tmp_path, keep_every=1, keep_last=1)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-0.pth", "checkpoint-1.pth", "checkpoint-2-step9.pth"]


def test_the_check_sum_is_a_zip_comment_that_other_readers_pass_over(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    content = path.read_bytes()
    assert content[-71:] == b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == content[-71:] and archive.testzip() is None
    for options in ({}, {"mmap": True}):
        state = torch.load(path, weights_only=True, **options)
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "checkpoint-4.pth"
    save(path, STATE)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        if at < len(content) - 71 or at >= len(content) - 64:
            with pytest.raises(CheckpointError, match="is truncated, damaged or no torch check"):
                load(path, verify=True)
