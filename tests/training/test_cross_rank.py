"""Gradients of 1, 2 and 3 gloo ranks equal those of one process on the joined batch, in float64."""

import contextlib
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from hicmae.config import RunConfig
from hicmae.data.masking import random_mask, tube_mask
from hicmae.models.losses import pretrain_loss
from hicmae.models.pretrain import HiCMAE
from hicmae.training import distributed
from hicmae.training.loop import as_trained
from tests.conftest import free_port
from tests.small_runs import LIMIT  # its fork server imports once what every process needs

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
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def step_of(rank, accum):
    """Take the gradients of the second step, when DDP has rearranged its buckets."""
    model = make_model()
    wrapped = as_trained(model, RunConfig(output_dir="unused"), torch.device("cpu"))
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        for index in range(accum):
            last = index + 1 == accum
            with contextlib.nullcontext() if last else wrapped.no_sync():
                loss = loss_of(wrapped, clips(rank, index))
                (loss.total / accum).backward()
    return [part.item() for part in loss], gradients(model)


def one_rank(rank, ports, folder):
    """Run by each process: be one of three ranks, then one of two."""
    torch.set_num_threads(1)
    for world, port in ports.items():
        if rank < world:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            distributed.start("cpu", timeout=timedelta(seconds=LIMIT))
            seen = {accum: step_of(rank, accum) for accum in (1, ACCUM)}
            distributed.stop()
            torch.save(seen, f"{folder}/{rank}-of-{world}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What each rank of two, and of three, has computed."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = {3: free_port(), 2: free_port()}, str(folder)
    mp.start_processes(one_rank, arguments, nprocs=3, start_method="forkserver")
    return folder


def one_process(world, accum=1, gather=True):
    model = make_model()
    for index in range(accum):
        loss = loss_of(model, joined(world, index), gather)
        (loss.total / accum).backward()
    return loss, gradients(model)


def test_one_rank_gathers_nothing():
    alone, gathered = (one_process(1, gather=gather) for gather in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(alone[0], gathered[0], strict=True))
    assert all(torch.equal(alone[1][name], gathered[1][name]) for name in alone[1])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("accum", [1, ACCUM])
def test_ranks_have_the_loss_and_gradient_of_the_joined_batch(folder, world, accum):
    paths = [folder / f"{rank}-of-{world}.pt" for rank in range(world)]
    seen = [torch.load(path, weights_only=True)[accum] for path in paths]
    loss, expected = one_process(world, accum)
    mean = torch.tensor([rank[0] for rank in seen], dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(mean, torch.stack(list(loss)).detach(), rtol=1e-10, atol=0)
    for _, found in seen:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)


def test_contrast_of_separate_batches_is_another_one():
    """Otherwise the tests above would show nothing."""
    separate = [loss_of(make_model(), clips(rank), gather=False).contrast for rank in range(2)]
    assert abs(sum(separate) / 2 - one_process(2)[0].contrast) > 0.1
