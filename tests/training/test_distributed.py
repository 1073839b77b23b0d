"""Process groups: what ranks tell each other, and gradients of 1, 2 and 3 gloo ranks.

The gradients equal those of one process on the joined batch, in float64.
"""

import contextlib
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hicmae.config import RunConfig
from hicmae.data.masking import random_mask, tube_mask
from hicmae.models.losses import pretrain_loss
from hicmae.models.pretrain import HiCMAE
from hicmae.training import distributed
from hicmae.training.loop import as_trained
from hicmae.training.run import set_arithmetic
from tests.conftest import free_port
from tests.small_runs import run_ranks

CPU = torch.device("cpu")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BATCH, ACCUM = 2, 2  # clips of a rank in one pass, passes of a step
SIZES = {"num_frames": 4, "img_size": 32, "img_size_audio": (32, 48)}


def make_model():
    torch.manual_seed(0)
    return HiCMAE(32, 2, 16, 2, 2, 2, 3, 3, 1, (0, 1), **SIZES).double()


def clips(rank, step=0):
    """Return one rank's clips and masks: 2 x 2 x 2 video tokens, 2 x 3 audio tokens."""
    rng = np.random.default_rng((rank, step))
    video = torch.from_numpy(rng.standard_normal((BATCH, 3, 4, 32, 32)))
    audio = torch.from_numpy(rng.standard_normal((BATCH, 1, 32, 48)))
    video_mask = np.stack([tube_mask((2, 2, 2), 0.5, rng) for _ in range(BATCH)])
    audio_mask = np.stack([random_mask(6, 0.5, rng) for _ in range(BATCH)])
    return video, torch.from_numpy(video_mask), audio, torch.from_numpy(audio_mask)


def joined(world, step=0):
    parts = zip(*(clips(rank, step) for rank in range(world)), strict=True)
    return tuple(torch.cat(part) for part in parts)


def loss_of(model, batch, gather=True):
    """Weight the contrast heavily, so that a mistake in it shows."""
    return pretrain_loss(model(*batch), *batch, loss_weight=1.0, gather=gather)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def step_of(rank, accum):
    """Take the gradients of the second step, when DDP has rearranged its buckets."""
    model = make_model()
    wrapped = as_trained(model, RunConfig(output_dir="unused"), CPU)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        for index in range(accum):
            last = index + 1 == accum
            with contextlib.nullcontext() if last else wrapped.no_sync():
                loss = loss_of(wrapped, clips(rank, index))
                (loss.total / accum).backward()
    return [part.item() for part in loss], gradients(model)


def told(rank):
    """Return what a rank hears of the others."""
    return {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "objects": distributed.gather_objects([("clip", i) for i in range(3 * rank)]),
        "broadcast": distributed.broadcast(("from", rank)),
        "highest": distributed.highest([rank, 5 - rank]),
        "on_main": distributed.on_main(lambda: 7 + rank),
        "any": [bool(distributed.any_rank(torch.tensor(flag))) for flag in (rank == 1, False)],
    }


def one_rank(rank, ports, folder):
    """Run by each process: be one of three ranks, then one of two."""
    for world, port in ports.items():
        if rank < world:
            place = (rank, rank, world, "127.0.0.1", port)
            os.environ |= {name: str(value) for name, value in zip(VARIABLES, place, strict=True)}
            device = distributed.start("cpu")
            seen = {accum: step_of(rank, accum) for accum in (1, ACCUM)}
            seen["told"] = {**told(rank), "group": (dist.get_backend(), str(device))}
            distributed.stop()
            assert not dist.is_initialized()
            torch.save(seen, f"{folder}/{rank}-of-{world}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what the ranks of groups of two and of three have computed."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(3, one_rank, {3: free_port(), 2: free_port()}, str(folder))
    return lambda world: [
        torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank in range(world)
    ]


def one_process(world, accum=1, gather=True):
    model = make_model()
    for index in range(accum):
        loss = loss_of(model, joined(world, index), gather)
        (loss.total / accum).backward()
    return loss, gradients(model)


@pytest.mark.parametrize(("world", "accum"), [(2, ACCUM), (3, 1)])
def test_ranks_have_the_loss_and_gradient_of_the_joined_batch(ranks, world, accum):
    seen = [rank[accum] for rank in ranks(world)]
    loss, expected = one_process(world, accum)
    mean = torch.tensor([rank[0] for rank in seen], dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(mean, torch.stack(list(loss)).detach(), rtol=1e-10, atol=0)
    for _, found in seen:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)
    # The contrast of separate batches is another one: otherwise this would show nothing.
    separate = [loss_of(make_model(), clips(rank), gather=False).contrast for rank in range(2)]
    assert abs(sum(separate) / 2 - one_process(2)[0].contrast) > 0.1


def test_processes_agree_on_what_they_tell_each_other(ranks, environment):
    alone = {"place": (0, 1, True), "objects": []}
    alone |= {"broadcast": ("from", 0), "highest": [0, 5], "any": [False, False], "on_main": 7}
    assert distributed.start("cpu") == CPU and not dist.is_initialized()
    assert told(0) == alone
    distributed.stop()
    expected = {
        "group": ("gloo", "cpu"),
        "objects": [("clip", 0), ("clip", 1), ("clip", 2)],
        "broadcast": ("from", 0),
        "highest": [1, 5],
        "any": [True, False],
    }
    for rank, seen in enumerate(ranks(2)):
        main = 7 if rank == 0 else None
        assert seen["told"] == {**expected, "place": (rank, 2, rank == 0), "on_main": main}


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the place of this process as torchrun does."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda *place: [
        monkeypatch.setenv(name, str(value)) for name, value in zip(VARIABLES, place, strict=True)
    ]


def test_a_rank_that_waits_in_vain_is_told_so_on_one_line(environment, monkeypatch):
    port = free_port()
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    environment(0, 0, 2, "127.0.0.1", port)
    message = rf"^rank 0 of 2 did not meet the others at 127.0.0.1:{port} \(.*torchrun.*$"
    with pytest.raises(RuntimeError, match=message):
        distributed.start("cpu")
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


def test_each_run_chooses_how_gpus_compute(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    for exact, tf32 in ((True, True), (False, False)):
        set_arithmetic(exact, tf32)
        assert torch.are_deterministic_algorithms_enabled() == cudnn.deterministic == exact
        assert cuda.flash_sdp_enabled() == cuda.mem_efficient_sdp_enabled() != exact
        assert cuda.matmul.allow_tf32 == cudnn.allow_tf32 == tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
