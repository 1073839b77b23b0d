"""Deterministic algorithms are left as they were."""

import os

import torch

from hicmae.training.run import determinism


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
