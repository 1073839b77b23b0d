"""Random states go through a checkpoint, and deterministic algorithms are left as they were."""

import os
import random

import numpy as np
import torch

from hicmae.training import checkpoint
from hicmae.training.run import determinism, random_states, restore_random_states


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(2).tolist(), torch.rand(2).tolist()


def test_random_states_come_back_from_a_file(tmp_path):
    draws()
    np.random.randn()  # leaves the second of a pair behind
    checkpoint.save(tmp_path / "a.pth", {"random": random_states()})
    expected = draws(), np.random.randn()
    draws()
    restore_random_states(checkpoint.load(tmp_path / "a.pth")["random"])
    assert (draws(), np.random.randn()) == expected


def test_determinism_holds_within_and_not_beyond(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.deterministic
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.deterministic
    assert after == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
