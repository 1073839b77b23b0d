"""The training loop on models small enough to check by hand."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from hicmae.data.loading import SkippedClip, SkippedClips
from hicmae.training.engine import Optimization, seed_step, train_one_epoch
from hicmae.training.logger import RunLogger
from hicmae.training.precision import choose_precision

CPU = choose_precision("fp32", torch.device("cpu"))


class Batch(NamedTuple):
    values: torch.Tensor
    names: tuple[str, ...]
    skipped: tuple[SkippedClip, ...] = ()

    def to(self, device):
        return self


def batches(count, size=2):
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randn(size, 3, generator=generator), tuple(f"{i}-{j}" for j in range(size)))
        for i in range(count)
    ]


def squared_error(model, batch):
    loss = (model(batch.values) - 1).square().mean()
    return loss, {"half": loss / 2}


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def optimization_of(model, steps, accum_iter=1, lr=0.1, clip_grad=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.0)
    return Optimization(
        optimizer,
        CPU.grad_scaler(),
        CPU,
        np.linspace(lr, lr / 2, steps),
        np.zeros(steps),
        accum_iter,
        clip_grad,
    )


def run_epoch(model, loader, tmp_path, optimization, steps, compute_loss=squared_error, **options):
    with RunLogger(tmp_path) as logger:
        return train_one_epoch(
            model,
            loader,
            compute_loss,
            optimization,
            **{"epoch": 0, "epochs": 1, "steps": steps, "seed": 0, "print_freq": 2, **options},
            logger=logger,
            skipped=SkippedClips(tmp_path / "skipped_clips.csv", 10, 0.5),
        )


def test_steps_follow_the_schedule_and_equal_a_plain_loop(tmp_path):
    model, plain = linear(), linear()
    optimization = optimization_of(model, 5)
    loader = batches(5)
    means = run_epoch(model, loader, tmp_path, optimization, 5)
    losses = []
    for step, batch in enumerate(loader):
        loss = squared_error(plain, batch)[0]
        gradients = torch.autograd.grad(loss, plain.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= optimization.lr[step] * gradient
        losses.append(loss.item())
    torch.testing.assert_close(model.weight, plain.weight)
    assert means["loss"] == pytest.approx(np.mean(losses))
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5))
    assert [line["loss"] for line in lines] == pytest.approx(losses)
    assert [line["lr"] for line in lines] == pytest.approx(list(optimization.lr))
    assert [line["half"] for line in lines] == pytest.approx([loss / 2 for loss in losses])


def test_accumulated_batches_give_the_gradient_of_their_union(tmp_path):
    model, joined = linear(), linear()
    parts = batches(4)
    unions = [
        Batch(
            torch.cat([parts[i].values, parts[i + 1].values]), parts[i].names + parts[i + 1].names
        )
        for i in (0, 2)
    ]
    run_epoch(model, parts, tmp_path / "a", optimization_of(model, 2, accum_iter=2), 2)
    run_epoch(joined, unions, tmp_path / "b", optimization_of(joined, 2), 2)
    torch.testing.assert_close(model.weight, joined.weight)
    torch.testing.assert_close(model.bias, joined.bias)


def test_batches_beyond_the_last_whole_step_are_left_out(tmp_path):
    model = linear()
    run_epoch(model, batches(5), tmp_path, optimization_of(model, 2, accum_iter=2), 2)
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 2


def test_clipping_bounds_the_step_and_the_norm_before_it_is_logged(tmp_path):
    model = linear()
    before = model.weight.detach().clone()
    run_epoch(model, batches(1), tmp_path, optimization_of(model, 1, lr=1.0, clip_grad=0.01), 1)
    moved = torch.cat([(model.weight - before).flatten(), torch.zeros(0)]).norm().item()
    assert moved <= 0.01 + 1e-6
    line = json.loads((tmp_path / "steps.jsonl").read_text())
    assert line["grad_norm"] > 0.01


def test_a_loss_that_is_not_finite_stops_with_step_parts_and_clips(tmp_path):
    def broken(model, batch):
        loss = model(batch.values).sum() * float("nan")
        return loss, {"loss_video": loss, "loss_audio": loss.detach() * 0 + 0.5}

    model = linear()
    with pytest.raises(RuntimeError, match=r"loss is nan at step 0 \(loss_video nan.*clips \[0-0"):
        run_epoch(model, batches(1), tmp_path, optimization_of(model, 1), 1, broken)


def test_clips_that_could_not_be_read_reach_the_record(tmp_path):
    loader = batches(2)
    loader[1] = loader[1]._replace(skipped=(SkippedClip("bad.mp4", "no video stream"),))
    model = linear()
    run_epoch(model, loader, tmp_path, optimization_of(model, 2), 2)
    assert "bad.mp4,no video stream" in (tmp_path / "skipped_clips.csv").read_text()


def test_randomness_of_a_step_does_not_depend_on_what_was_drawn_before():
    seed_step(3, 7, 0)
    first = torch.rand(3), np.random.rand(3)
    torch.rand(100)
    np.random.rand(100)
    seed_step(3, 7, 0)
    second = torch.rand(3), np.random.rand(3)
    seed_step(3, 7, 1)
    other_rank = torch.rand(3)
    assert torch.equal(first[0], second[0]) and (first[1] == second[1]).all()
    assert not torch.equal(first[0], other_rank)


def test_precision_is_resolved_and_impossible_ones_are_refused():
    assert choose_precision("auto", torch.device("cpu")).name == "fp32"
    assert math.isclose(choose_precision("bf16", torch.device("cpu")).grad_scaler().get_scale(), 1)
    with pytest.raises(ValueError, match="--precision fp16 needs a GPU"):
        choose_precision("fp16", torch.device("cpu"))


def test_bf16_computes_in_half_precision_and_keeps_float32_weights(tmp_path):
    seen = []

    def watched(model, batch):
        output = model(batch.values)
        seen.append(output.dtype)
        return output.float().square().mean(), {}

    model = linear()
    optimization = optimization_of(model, 1)._replace(
        precision=choose_precision("bf16", torch.device("cpu"))
    )
    run_epoch(model, batches(1), tmp_path, optimization, 1, watched)
    assert seen == [torch.bfloat16] and model.weight.dtype == torch.float32
