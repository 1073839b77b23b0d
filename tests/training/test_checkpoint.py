"""Checkpoints: atomic, safe to open, found again."""

import argparse
import hashlib
import logging
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hicmae.training.checkpoint import CheckpointError, load, prune, save, whole
from tests.conftest import files_of_at_most

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 4}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint-4.pth"


def is_state(state):
    return torch.equal(state["model"]["weight"], STATE["model"]["weight"]) and state["epoch"] == 4


def test_saved_state_comes_back_with_its_check_sum_as_a_zip_comment(tmp_path):
    path, args = tmp_path / "new/checkpoint-4.pth", {"lr": 0.1, "betas": (0.9, 0.95), "aa": None}
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    assert is_state(load(tmp_path / "legacy.pth", verify=True))
    save(path, STATE | {"args": args})
    state = load(path, verify=True)
    assert is_state(state) and state["args"] == args
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = path.read_bytes()
    assert content[-71:] == b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == content[-71:] and archive.testzip() is None
    assert is_state(torch.load(path, weights_only=True, mmap=True))


def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, path):
    save(path, STATE)
    before = path.read_bytes()
    message = "could not write checkpoint .*checkpoint-4.pth.*large"
    with files_of_at_most(2**20), pytest.raises(OSError, match=message):
        save(path, {"model": torch.zeros(2**20)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_checkpoint_of_the_authors_loads_with_the_numbers_of_its_optimizer(path, module):
    """It is written as their trainer does, with numpy's numbers under a name of their module."""
    args = argparse.Namespace(model="avit", lr=1e-3, opt_betas=[0.9, 0.999], finetune=None)
    groups = [{"lr": np.float64(1e-3), "weight_decay": np.float64(0.05), "params": [0]}]
    optimizer = {"state": {}, "param_groups": groups}
    torch.save({"model": STATE["model"], "optimizer": optimizer, "epoch": "best", "args": args},
               path)  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            data, count = re.subn(rb"numpy\._?core\.multiarray", module, data)
            assert bool(count) == name.endswith("data.pkl")
            archive.writestr(name, data)
    state = load(path, verify=True)
    assert state["epoch"] == "best" and state["args"] == args
    (group,) = state["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.05)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_bomb_does_not_run_and_is_named_in_one_line(tmp_path, path, form):
    marker = tmp_path / "ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Bomb(marker)}, protocol=2))
    else:
        zipped = form == "zip"
        torch.save({"model": Bomb(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"^(?!.*\n).*is refused: .*posix.system"):
        load(path)
    assert not marker.exists()
    os.system(Bomb(marker).__reduce__()[1][0])
    assert marker.exists()  # the bomb itself would have worked


FOREIGN = [b"", b"hello\n", b"\x80\x02garbage", b"PK\x03\x04" + bytes(90), b"\x89PNG\r\n" * 30]
DOWNLOADS = {
    b"<!DOCTYPE html>\n<html><body>Google Drive": "is a web page",
    b"\xef\xbb\xbf<!-- saved --><HTML>": "is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n": "is a git-lfs pointer",
}


@pytest.mark.parametrize("content", [*FOREIGN, *DOWNLOADS, 1, 5, 9], ids=repr)
def test_truncated_and_foreign_files_are_named_in_one_line(path, content):
    if isinstance(content, int):
        save(path, STATE | {"args": argparse.Namespace(a=1)})
        content = path.read_bytes()[: path.stat().st_size * content // 10]
    path.write_bytes(content)
    said = DOWNLOADS.get(content, rf"\({len(content)} bytes\) is truncated, damaged")
    with pytest.raises(CheckpointError, match=rf"^(?!.*\n).*checkpoint-4.pth' {said}"):
        load(path)


def test_safetensors_load_under_any_name_and_are_not_called_a_torch_checkpoint(tmp_path):
    for name in ("model.safetensors", "weights.pth"):
        save_file(STATE["model"], tmp_path / name)
        assert torch.equal(load(tmp_path / name)["model"]["weight"], STATE["model"]["weight"])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.pth").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cut.safetensors' is damaged or no safetensors file"):
        load(tmp_path / "cut.safetensors")


def test_every_flipped_byte_is_found_when_asked_for(path):
    save(path, STATE)
    content = path.read_bytes()
    weight = content.index(STATE["model"]["weight"].numpy().tobytes())
    for at in [*range(0, len(content) - 71, 7), *range(len(content) - 64, len(content)), weight]:
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is truncated, damaged or no torch check"):
            load(path, verify=True)
    assert not is_state(load(path))  # torch itself would not see it


def test_paths_and_contents_that_cannot_be_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth' does not exist; name the"):
        load(tmp_path / "gone.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        load(tmp_path / "list.pth")
    torch.save({"model": STATE["model"], "lr": np.float32(0.1)}, tmp_path / "single.pth")
    with pytest.raises(CheckpointError, match="is refused: .*Float32"):
        load(tmp_path / "single.pth")


def test_newest_falls_back_over_broken_files_and_says_so(tmp_path, caplog):
    assert next(whole(tmp_path / "missing"), None) is None
    for epoch in (3, 4, 5):
        save(tmp_path / f"checkpoint-{epoch}.pth", STATE | {"epoch": epoch})
    truncated, flipped = tmp_path / "checkpoint-5.pth", tmp_path / "checkpoint-4.pth"
    truncated.write_bytes(truncated.read_bytes()[:700])
    content = bytearray(flipped.read_bytes())
    content[content.index(STATE["model"]["weight"].numpy().tobytes())] ^= 1
    flipped.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        path, state = next(whole(tmp_path), None)
    assert path.name == "checkpoint-3.pth" and state["epoch"] == 3
    assert ["checkpoint-5.pth" in caplog.messages[0], "checkpoint-4.pth" in caplog.messages[1]]
    path.write_bytes(b"")
    assert next(whole(tmp_path), None) is None


def test_states_within_an_epoch_stand_between_those_of_its_ends(tmp_path):
    order = ["11-step1000", "11-step900", "10", "10-step3000", "9"]
    for name in (*sorted(order), "best", "11x", "11-stepx"):
        save(tmp_path / f"checkpoint-{name}.pth", {"epoch": name})
    assert [state["epoch"] for _, state in whole(tmp_path)] == order


@pytest.mark.parametrize(
    "names, newest, options, left",
    [
        # Every fifth counted from 1, and the last two.
        ("0 1 2 3 4 5 6 7 8 9 10 11 best", "11", (5, 2), "10 11 4 9 best"),
        ("0 1-step5 1 2-step8 2-step9", "2-step9", (1, 1), "0 1 2-step9"),
        # A run that went back, and those ahead of it.
        ("0 1-step5 1 2-step9", "0", (9, 2), "0"),
        ("0 1-step5 1-step6 1", "1-step6", (9, 2), "1-step5 1-step6"),
    ],
)
def test_prune_keeps_every_nth_epoch_and_the_last_states(tmp_path, names, newest, options, left):
    for name in names.split():
        (tmp_path / f"checkpoint-{name}.pth").touch()
    prune(tmp_path / f"checkpoint-{newest}.pth", *options)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [f"checkpoint-{name}.pth" for name in left.split()]
