"""Process group: alone it does nothing; two gloo processes tell each other the same."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hicmae.training import distributed
from tests.conftest import free_port

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def one_of_two(rank, port, folder):
    """Run by each process: store what the tests look at."""
    place = (rank, rank, 2, "127.0.0.1", port)
    os.environ |= {name: str(value) for name, value in zip(VARIABLES, place, strict=True)}
    device = distributed.start("cpu", timeout=timedelta(seconds=60))
    seen = {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "group": (dist.get_backend(), str(device)),
        "objects": distributed.gather_objects([("clip", i) for i in range(3 * rank)]),
        "mean": list(distributed.all_mean({"b": 1.0 + rank, "a": 10.0 * rank}).items()),
        "broadcast": distributed.broadcast(("from", rank)),
        "highest": distributed.highest([rank, 5 - rank]),
        "any": [bool(distributed.any_rank(torch.tensor(flag))) for flag in (rank == 1, False)],
    }
    distributed.stop()
    seen["in a group after stop"] = dist.is_initialized()
    torch.save(seen, f"{folder}/{rank}.pt")


def test_two_processes_agree_on_what_they_tell_each_other(tmp_path):
    mp.spawn(one_of_two, args=(free_port(), str(tmp_path)), nprocs=2)
    seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [one.pop("place") for one in seen] == [(0, 2, True), (1, 2, False)]
    expected = {
        "group": ("gloo", "cpu"),
        "objects": [("clip", 0), ("clip", 1), ("clip", 2)],
        "mean": [("b", 1.5), ("a", 5.0)],
        "broadcast": ("from", 0),
        "highest": [1, 5],
        "any": [True, False],
        "in a group after stop": False,
    }
    assert seen == [expected, expected]


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the place of this process as torchrun does."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_place(*place):
        for name, value in zip(VARIABLES, place, strict=True):
            monkeypatch.setenv(name, str(value))

    return set_place


def test_a_single_process_needs_no_group(environment):
    assert distributed.start("cpu") == torch.device("cpu")
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects([1, 2]) == [1, 2]
    assert distributed.all_mean({"loss": 2.0}) == {"loss": 2.0}
    assert (distributed.broadcast("me"), distributed.highest([3, 4])) == ("me", [3, 4])
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
