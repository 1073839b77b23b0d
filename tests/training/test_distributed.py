"""Process group: one process is a no-op, two gloo processes equal the one-process answer."""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional

from hicmae.training import distributed

WIDTH, BATCH, WORLD = 5, 3, 2


def clips(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2)]


def start_weight():
    return torch.linspace(-1, 1, WIDTH * 4, dtype=torch.float64).reshape(4, WIDTH)


def info_nce(video, audio):
    """Symmetric InfoNCE of all pairs."""
    logits = functional.normalize(video, dim=1) @ functional.normalize(audio, dim=1).T / 0.07
    target = torch.arange(len(logits))
    return 0.5 * (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    )


def joined_loss(weight, video, audio):
    gather = distributed.gather_with_grad
    return info_nce(gather(video @ weight.T), gather(audio @ weight.T))


def one_of_two(rank, port, folder):
    """Run by each process: store what the tests look at."""
    import os

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    device = distributed.start("cpu", timeout=timedelta(seconds=60))
    weight = start_weight().requires_grad_()
    loss = joined_loss(weight, *clips(rank))
    loss.backward()
    row = torch.full((2, 3), float(rank))
    seen = {
        "device": str(device),
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "backend": dist.get_backend(),
        "loss": loss.item(),
        "grad": weight.grad,
        "gathered": distributed.gather_with_grad(row),
        "objects": distributed.gather_objects([("clip", i) for i in range(3 * rank)]),
        "mean": distributed.all_mean({"b": 1.0 + rank, "a": 10.0 * rank}),
        "main": distributed.from_main(("from", rank)),
        "highest": distributed.highest([rank, 5 - rank]),
        "any": [bool(distributed.any_rank(torch.tensor(flag))) for flag in (rank == 1, False)],
    }
    distributed.barrier()
    distributed.stop()
    seen["initialised_after_stop"] = dist.is_initialized()
    torch.save(seen, f"{folder}/{rank}.pt")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_of_two, args=(free_port(), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_gathered_info_nce_and_its_gradient_equal_the_one_process_answer(two):
    weight = start_weight().requires_grad_()
    video, audio = (torch.cat(parts) for parts in zip(clips(0), clips(1), strict=True))
    loss = info_nce(video @ weight.T, audio @ weight.T)
    loss.backward()
    averaged = (two[0]["grad"] + two[1]["grad"]) / WORLD  # what DDP does
    assert [seen["loss"] for seen in two] == pytest.approx([loss.item()] * 2, rel=1e-12)
    torch.testing.assert_close(averaged, weight.grad, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(two[0]["grad"], two[1]["grad"])


def test_gather_joins_in_rank_order(two):
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 3)
    assert all(torch.equal(seen["gathered"], expected) for seen in two)


def test_objects_of_ranks_with_different_counts_reach_every_rank(two):
    assert two[0]["objects"] == two[1]["objects"] == [("clip", 0), ("clip", 1), ("clip", 2)]


def test_means_over_ranks_keep_the_keys_and_their_order(two):
    for seen in two:
        assert list(seen["mean"].items()) == [("b", 1.5), ("a", 5.0)]


def test_messages_between_ranks(two):
    for seen in two:
        assert seen["main"] == ("from", 0)
        assert seen["highest"] == [1, 5]
        assert seen["any"] == [True, False]


def test_start_takes_rank_and_backend_from_the_environment_and_stop_leaves_the_group(two):
    assert [seen["rank"] for seen in two] == [0, 1]
    assert [seen["is_main"] for seen in two] == [True, False]
    assert {seen["world_size"] for seen in two} == {2}
    assert {(seen["backend"], seen["device"]) for seen in two} == {("gloo", "cpu")}
    assert not any(seen["initialised_after_stop"] for seen in two)


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_single_process_needs_no_group(alone):
    assert distributed.start("cpu") == torch.device("cpu")
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    tensor, items = torch.ones(2, requires_grad=True), [1, 2]
    assert distributed.gather_with_grad(tensor) is tensor
    assert distributed.gather_objects(items) == items
    assert distributed.all_mean({"loss": 2.0}) == {"loss": 2.0}
    assert (distributed.from_main("me"), distributed.highest([3, 4])) == ("me", [3, 4])
    assert distributed.any_rank(torch.tensor(True))
    distributed.barrier()
    distributed.stop()


def test_group_gets_the_timeout_and_the_cpu_backend(alone):
    calls = []
    alone.setattr(dist, "init_process_group", lambda *a, **k: calls.append((a, k)))
    alone.setattr(distributed, "_meet", lambda timeout: dist.HashStore())
    pretend_rank(alone, 1, 2, 1)
    distributed.start("cpu", timeout=timedelta(seconds=7))
    ((backend,), options) = calls[0]
    assert (backend, options["timeout"], options["device_id"]) == (
        "gloo",
        timedelta(seconds=7),
        None,
    )
    assert (options["rank"], options["world_size"]) == (1, 2)


def pretend_rank(monkeypatch, rank, world, port, address="127.0.0.1"):
    for name, value in (("RANK", rank), ("LOCAL_RANK", 0), ("WORLD_SIZE", world)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))


@pytest.mark.parametrize(
    ("rank", "address", "reason"),
    [
        (1, "127.0.0.1", "Connection refused"),
        (1, "no-such-machine.invalid", "not known|No address|Temporary failure"),
        (0, "127.0.0.1", "1/2 clients joined"),
    ],
)
def test_ranks_that_do_not_meet_are_told_so_after_a_bounded_time(alone, rank, address, reason):
    pretend_rank(alone, rank, 2, free_port(), address)
    message = (
        rf"rank {rank} of 2 did not meet the others at {address}:\d+ within 1 s \(.*({reason})"
    )
    with pytest.raises(RuntimeError, match=message):
        distributed.start("cpu", join_timeout=timedelta(seconds=1))
    assert not dist.is_initialized()


def test_half_a_torchrun_environment_is_refused(alone):
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("RANK", "0")
    with pytest.raises(
        RuntimeError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; start"
    ):
        distributed.start("cpu")
    alone.setenv("WORLD_SIZE", "two")
    with pytest.raises(RuntimeError, match="WORLD_SIZE must be a number of at least 0, got 'two'"):
        distributed.start("cpu")


def test_devices_that_are_not_there_are_refused(alone):
    with pytest.raises(ValueError, match="--device must be auto, cuda or cpu, got 'tpu'"):
        distributed.start("tpu")
    alone.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="--device cuda, but torch sees no GPU"):
        distributed.start("cuda")
    assert distributed.start("auto").type == "cpu"


def test_a_process_without_a_gpu_of_its_own_is_refused(alone):
    alone.setattr(torch.cuda, "is_available", lambda: True)
    alone.setattr(torch.cuda, "device_count", lambda: 2)
    alone.setenv("LOCAL_RANK", "2")
    with pytest.raises(RuntimeError, match="process 2 .* torch sees 2; start .*nproc_per_node=2"):
        distributed.start("cuda")
