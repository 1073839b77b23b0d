"""Process group: alone it does nothing; two gloo processes tell each other the same."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hicmae.training import distributed
from hicmae.training.run import determinism
from tests.conftest import free_port

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def told(rank):
    """Return what a rank hears of the others."""
    return {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "objects": distributed.gather_objects([("clip", i) for i in range(3 * rank)]),
        "mean": list(distributed.all_mean({"b": 1.0 + rank, "a": 10.0 * rank}).items()),
        "broadcast": distributed.broadcast(("from", rank)),
        "highest": distributed.highest([rank, 5 - rank]),
        "any": [bool(distributed.any_rank(torch.tensor(flag))) for flag in (rank == 1, False)],
    }


def one_of_two(rank, port, folder):
    """Run by each process: store what the tests look at."""
    place = (rank, rank, 2, "127.0.0.1", port)
    os.environ |= {name: str(value) for name, value in zip(VARIABLES, place, strict=True)}
    device = distributed.start("cpu", timeout=timedelta(seconds=60))
    seen = {**told(rank), "group": (dist.get_backend(), str(device))}
    distributed.stop()
    torch.save({**seen, "left": not dist.is_initialized()}, f"{folder}/{rank}.pt")


def test_two_processes_agree_on_what_they_tell_each_other(tmp_path):
    mp.spawn(one_of_two, args=(free_port(), str(tmp_path)), nprocs=2)
    expected = {
        "group": ("gloo", "cpu"),
        "objects": [("clip", 0), ("clip", 1), ("clip", 2)],
        "mean": [("b", 1.5), ("a", 5.0)],
        "broadcast": ("from", 0),
        "highest": [1, 5],
        "any": [True, False],
        "left": True,
    }
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert seen == {**expected, "place": (rank, 2, rank == 0)}


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the place of this process as torchrun does."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_place(*place):
        for name, value in zip(VARIABLES, place, strict=True):
            monkeypatch.setenv(name, str(value))

    return set_place


def test_a_single_process_needs_no_group_and_hears_itself(environment):
    assert distributed.start("cpu") == torch.device("cpu")
    assert not dist.is_initialized()
    seen = told(0) | {"objects": distributed.gather_objects([1, 2])}
    expected = {"place": (0, 1, True), "objects": [1, 2], "mean": [("b", 1.0), ("a", 0.0)]}
    expected |= {"broadcast": ("from", 0), "highest": [0, 5], "any": [False, False]}
    assert seen == expected
    assert distributed.any_rank(torch.tensor(True))
    distributed.stop()


def test_a_rank_that_waits_in_vain_is_told_so_on_one_line(environment):
    port = free_port()
    environment(0, 0, 2, "127.0.0.1", port)
    message = rf"^rank 0 of 2 did not meet the others at 127.0.0.1:{port} \(.*torchrun.*$"
    with pytest.raises(RuntimeError, match=message):
        distributed.start("cpu", timeout=timedelta(seconds=1))
    assert not dist.is_initialized()


def test_each_process_of_a_machine_takes_the_gpu_of_its_number(environment, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **options: taken.append(options))
    environment(3, 1, 4, "127.0.0.1", 1)
    gpu = torch.device("cuda", 1)
    assert distributed.start() == gpu
    assert taken == [gpu, {"timeout": distributed.TIMEOUT, "device_id": gpu}]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="cuda:2, but torch sees 2 GPUs"):
        distributed.start()


def test_batches_that_cannot_be_gathered_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "_batch", None)
    monkeypatch.setattr(distributed, "gather_objects", lambda items: [2, 2, 1])
    with pytest.raises(ValueError, match=r"hold \[2, 2, 1\] clips, expected equally many; use one"):
        distributed.check_equal_batches(2)
    monkeypatch.setattr(distributed, "_batch", 2)
    with pytest.raises(ValueError, match="a batch holds 3 clips, expected 2 as before"):
        distributed.check_equal_batches(3)


def test_determinism_holds_within_and_not_beyond(monkeypatch):
    def switches():
        backends = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.deterministic
        return (torch.are_deterministic_algorithms_enabled(), *backends)

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()
    with determinism(False):
        assert switches() == before and not before[0]
    with determinism(True):
        assert switches() == (True, False, True) and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
