"""The training loop on models small enough to check by hand."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from hicmae.data.batches import SkippedClip
from hicmae.data.loader import SkippedClips
from hicmae.training.logs import RunLogger
from hicmae.training.loop import BadSteps, train_one_epoch
from hicmae.training.optim import Optimization
from hicmae.training.run import choose_precision, seed_step

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


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0, weight_decay=0.0)


def optimization_of(model, steps, accum_iter=1, lr=0.1, clip_grad=None, make=sgd):
    return Optimization(
        make(model.parameters()),
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


def failing(at, value=float("nan")):
    """Return a loss that is not finite at some batches, though its gradients might be."""
    calls = iter(range(1000))

    def compute_loss(model, batch):
        loss = (model(batch.values) - 1).square().mean()
        loss = loss + value if next(calls) in at else loss
        return loss, {"loss_video": loss, "loss_audio": loss.detach() * 0 + 0.5}

    return compute_loss


def adamw(fused):
    return lambda parameters: torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0, fused=fused)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_that_is_not_finite_skips_its_step_and_nothing_else(tmp_path, fused, value):
    """Weights and moments are those of a run that never saw the step; the schedule goes on."""
    states = []
    for name, at in (("bad", {2}), ("without", ())):
        model = linear()
        optimization = optimization_of(model, 5, make=adamw(fused))
        loader = batches(5)
        if name == "without":
            del loader[2]
            optimization = optimization._replace(lr=np.delete(optimization.lr, 2))
        loss = failing(at, value)
        means = run_epoch(model, loader, tmp_path / name, optimization, len(loader), loss)
        states.append((model.state_dict(), optimization.optimizer.state_dict()["state"], means))
    (bad, moments, means), (expected, expected_moments, expected_means) = states
    assert all(torch.equal(bad[key], expected[key]) for key in bad)
    for index, parts in expected_moments.items():
        assert all(torch.equal(moments[index][key], parts[key]) for key in parts)
    assert means.pop("bad_steps") == 1 and expected_means.pop("bad_steps") == 0
    assert means == expected_means
    lines = [json.loads(x) for x in (tmp_path / "bad/steps.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [False, False, True, False, False]
    assert lines[2]["loss"] is None and lines[2]["step"] == 2


def test_one_bad_batch_of_a_step_skips_the_whole_step(tmp_path):
    model = linear()
    before = model.weight.detach().clone()
    run_epoch(model, batches(2), tmp_path, optimization_of(model, 1, 2), 1, failing({0}))
    assert torch.equal(model.weight, before)


def test_finite_loss_with_gradients_that_are_not_skips_too(tmp_path):
    def steep(model, batch):
        return (model(batch.values).sum() * 0).sqrt() + 1, {}

    model = linear()
    before = model.weight.detach().clone()
    run_epoch(model, batches(1), tmp_path, optimization_of(model, 1), 1, steep)
    assert torch.equal(model.weight, before)
    line = json.loads((tmp_path / "steps.jsonl").read_text())
    assert line["loss"] == 1 and line["grad_norm"] is None and line["skipped"]


def test_too_many_bad_steps_in_a_row_stop_with_figures_and_clips(tmp_path):
    model = linear()
    optimization = optimization_of(model, 20)
    loss = failing({1, 2, 5, 6, 7, 8})
    message = (
        r"not finite in 3 step\(s\) in a row, the last at step 7: loss is nan \(loss_video nan"
    )
    with pytest.raises(BadSteps, match=message) as raised:
        options = {"max_bad_steps": 3, "print_freq": 100}
        run_epoch(model, batches(20), tmp_path, optimization, 20, loss, **options)
    assert "clips [7-0, 7-1]" in str(raised.value) and "lr " in str(raised.value)
    assert [step["clips"] for step in raised.value.steps] == [
        [f"{k}-0", f"{k}-1"] for k in (5, 6, 7)
    ]
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 8


def test_a_scaler_leaves_out_overflows_which_count_as_no_bad_step(tmp_path):
    """fp16: the first scale is too large for these gradients; a NaN loss still is a bad step."""
    model = linear()
    fp16 = choose_precision("fp32", torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimization = optimization_of(model, 4)._replace(scaler=scaler, precision=fp16)
    before = model.weight.detach().clone()

    def steep(model, batch, calls=iter(range(9))):  # noqa: B008
        loss = model(batch.values).sum() * 1e3
        return (loss * float("nan") if next(calls) == 1 else loss), {}

    means = run_epoch(model, batches(4), tmp_path, optimization, 4, steep)
    lines = [json.loads(x) for x in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [False, True, False, False]
    assert lines[0]["grad_norm"] is None and means["bad_steps"] == 1
    assert torch.equal(model.weight, before) and scaler.get_scale() == 2.0**123


def test_an_epoch_goes_on_where_a_run_was_stopped(tmp_path):
    whole, loader = linear(), batches(6)
    means = run_epoch(whole, loader, tmp_path / "whole", optimization_of(whole, 6), 6)
    model, kept = linear(), {}
    optimization = optimization_of(model, 6)

    def stop(done, window):
        if done == 3:  # within a window of two
            window.read()
            kept.update(window.state())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_epoch(model, loader, tmp_path / "part", optimization, 6, after_step=stop)
    options = {"done": 3, "state": kept}
    rest = run_epoch(model, loader[3:], tmp_path / "part", optimization, 6, **options)
    assert rest == means and torch.equal(model.weight, whole.weight)
    texts = [(tmp_path / name / "steps.jsonl").read_text() for name in ("whole", "part")]
    assert texts[0] == texts[1]


def test_clips_that_could_not_be_read_reach_the_record(tmp_path):
    loader = batches(2)
    loader[1] = loader[1]._replace(skipped=(SkippedClip("bad.mp4", "no video stream"),))
    model = linear()
    run_epoch(model, loader, tmp_path, optimization_of(model, 2), 2)
    assert "bad.mp4,no video stream" in (tmp_path / "skipped_clips.csv").read_text()


def test_a_record_of_clips_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    record = SkippedClips(tmp_path / "no_folder" / "skipped.csv", 10, 0.5)
    (tmp_path / "no_folder").touch()
    record.record([SkippedClip("bad.mp4", "no video stream")])
    assert "skipped a clip: no video stream" in caplog.text
    assert "skipped.csv': [Errno" in caplog.text and "training goes on" in caplog.text


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
