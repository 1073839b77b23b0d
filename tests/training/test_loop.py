"""The training loop on models small enough to check by hand; saving and going on."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from hicmae.config import OptimConfig, RunConfig
from hicmae.data.batches import SkippedClip
from hicmae.data.loader import SkippedClips
from hicmae.training import checkpoint
from hicmae.training.logs import read_lines
from hicmae.training.loop import train_one_epoch
from hicmae.training.run import Run, choose_precision, seed_step
from hicmae.training.state import Plan, TrainState, describe_clips, find_changes, resume

CPU = torch.device("cpu")


def run_in(folder, precision="fp32", **config):
    config = RunConfig(output_dir=str(folder), **config)
    return Run(config, choose_precision(precision, CPU))


def plan_of(steps, accum_iter=1, lr=0.1, clip_grad=None, **changes):
    """One epoch of steps whose learning rate falls to half of `lr`."""
    optim = OptimConfig(
        batch_size=2, accum_iter=accum_iter, clip_grad=clip_grad, epochs=1, warmup_epochs=0
    )
    values = {"settings": {}, "optim": optim, "clips": {}, "steps": steps,
              "total_batch": 2 * accum_iter, "lr": np.linspace(lr, lr / 2, steps),
              "weight_decay": np.zeros(steps), **changes}  # fmt: skip
    return Plan(**values)


def state_of(model, run, plan, make=torch.optim.SGD, **options):
    optimizer = make(model.parameters(), lr=1.0, weight_decay=0.0)
    return TrainState(run, plan, model, optimizer, **options)


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
    output = model(batch.values)
    loss = (output.float() - 1).square().mean()
    return loss, {"half": loss / 2, "bits": torch.tensor(torch.finfo(output.dtype).bits)}


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def run_epoch(model, loader, folder, plan, loss=squared_error, state=None, **config):
    state = state or state_of(model, run_in(folder, **{"print_freq": 2, **config}), plan)
    with state.open_logs():
        skipped = SkippedClips(folder / "skipped_clips.csv", 10, 0.5)
        return train_one_epoch(model, loader, loss, state, skipped)


def lines(folder):
    return read_lines(folder / "steps.jsonl")


def test_steps_follow_the_schedule_and_equal_a_plain_loop(tmp_path):
    model, plain = linear(), linear()
    plan, loader = plan_of(5), batches(5)
    means = run_epoch(model, loader, tmp_path, plan)
    losses = []
    for step, batch in enumerate(loader):
        loss = squared_error(plain, batch)[0]
        gradients = torch.autograd.grad(loss, plain.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= plan.lr[step] * gradient
        losses.append(loss.item())
    torch.testing.assert_close(model.weight, plain.weight)
    assert means["train_loss"] == pytest.approx(np.mean(losses))
    for step, line in enumerate(lines(tmp_path)):
        expected = [step, losses[step], losses[step] / 2, plan.lr[step]]
        assert [line[k] for k in ("step", "loss", "half", "lr")] == pytest.approx(expected)
    assert step == 4


def test_accumulated_batches_give_the_gradient_of_their_union(tmp_path):
    """Of five batches two steps of two are made; the last batch is left out."""
    model, joined, parts = linear(), linear(), batches(5)
    pairs = (parts[:2], parts[2:4])
    unions = [Batch(torch.cat([a.values, b.values]), a.names + b.names) for a, b in pairs]
    run_epoch(model, parts, tmp_path / "a", plan_of(2, accum_iter=2))
    run_epoch(joined, unions, tmp_path / "b", plan_of(2))
    torch.testing.assert_close(model.state_dict(), joined.state_dict())
    assert len(lines(tmp_path / "a")) == 2


def test_clipping_bounds_the_step_and_the_norm_before_it_is_logged(tmp_path):
    model = linear()
    before = model.weight.detach().clone()
    run_epoch(model, batches(1), tmp_path, plan_of(1, lr=1.0, clip_grad=0.01))
    assert (model.weight - before).norm().item() <= 0.01 + 1e-6
    assert lines(tmp_path)[0]["grad_norm"] > 0.01


def test_bf16_computes_in_half_precision_and_keeps_float32_weights(tmp_path):
    model = linear()
    run_epoch(model, batches(1), tmp_path, plan_of(1), precision="bf16")
    assert lines(tmp_path)[0]["bits"] == 16 and model.weight.dtype == torch.float32


def failing(at, value=float("nan")):
    """Return a loss that is not finite at some batches, though its gradients might be."""
    calls = iter(range(1000))

    def compute_loss(model, batch):
        loss = (model(batch.values) - 1).square().mean()
        loss = loss + value if next(calls) in at else loss
        return loss, {"loss_video": loss, "loss_audio": loss.detach() * 0 + 0.5}

    return compute_loss


@pytest.mark.parametrize(("value", "fused"), [("nan", False), ("inf", True), ("-inf", True)])
def test_a_loss_that_is_not_finite_skips_its_step_and_nothing_else(tmp_path, fused, value):
    """Weights and moments are those of a run that never saw the step; the schedule goes on."""
    ends = []
    for name, at in (("bad", {2}), ("without", ())):
        model, plan, loader = linear(), plan_of(5), batches(5)
        if name == "without":
            del loader[2]
            plan = plan_of(4, lr=0.1)
            plan.lr[:] = np.delete(plan_of(5).lr, 2)
        make = partial(torch.optim.AdamW, fused=fused)
        state = state_of(model, run_in(tmp_path / name), plan, make)
        loss = failing(at, float(value))
        means = run_epoch(model, loader, tmp_path / name, plan, loss, state)
        ends.append((model.state_dict(), state.optimizer.state_dict()["state"], means))
    (bad, moments, means), (expected, expected_moments, expected_means) = ends
    assert all(torch.equal(bad[key], expected[key]) for key in bad)
    for index, parts in expected_moments.items():
        assert all(torch.equal(moments[index][key], parts[key]) for key in parts)
    assert means.pop("train_bad_steps") == 1 and expected_means.pop("train_bad_steps") == 0
    assert means == expected_means
    found = lines(tmp_path / "bad")
    assert [line["skipped"] for line in found] == [False, False, True, False, False]
    assert found[2]["loss"] is None and found[2]["step"] == 2


def steep(model, batch):
    """A finite loss whose gradients are not."""
    return (model(batch.values).sum() * 0).sqrt() + 1, {}


@pytest.mark.parametrize("loss, logged", [(failing({0}), None), (steep, 1)])
def test_one_bad_batch_skips_the_whole_step(tmp_path, loss, logged):
    model = linear()
    before = model.weight.detach().clone()
    run_epoch(model, batches(2), tmp_path, plan_of(1, accum_iter=2), loss)
    assert torch.equal(model.weight, before)
    (line,) = lines(tmp_path)
    assert line["loss"] == logged and line["grad_norm"] is None and line["skipped"]


def test_too_many_bad_steps_in_a_row_stop_with_figures_and_clips(tmp_path):
    loss, options = failing({1, 2, 5, 6, 7, 8}), {"max_bad_steps": 3, "print_freq": 100}
    message = r"in 3 step\(s\) .*: step 7, .*clips \['7-0', '7-1'\], loss nan, loss_video nan"
    with pytest.raises(RuntimeError, match=message):
        run_epoch(linear(), batches(20), tmp_path, plan_of(20), loss, **options)
    assert len(lines(tmp_path)) == 8


def test_a_scaler_leaves_out_overflows_which_count_as_no_bad_step(tmp_path):
    """fp16: the first scale is too large for these gradients; a NaN loss still is a bad step."""
    model = linear()
    state = state_of(model, run_in(tmp_path), plan_of(4))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before, calls = model.weight.detach().clone(), iter(range(9))

    def huge(model, batch):
        loss = model(batch.values).sum() * 1e3
        return (loss * float("nan") if next(calls) == 1 else loss), {}

    means = run_epoch(model, batches(4), tmp_path, plan_of(4), huge, state)
    found = lines(tmp_path)
    assert [line["skipped"] for line in found] == [False, True, False, False]
    assert found[0]["grad_norm"] is None and means["train_bad_steps"] == 1
    assert torch.equal(model.weight, before) and state.scaler.get_scale() == 2.0**123


def test_a_record_of_clips_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "a_file").touch()
    record = SkippedClips(tmp_path / "a_file" / "skipped.csv", 10, 0.5)
    record.record([SkippedClip("bad.mp4", "no video stream")])
    assert "skipped a clip: no video stream" in caplog.text
    assert "skipped.csv': [Errno" in caplog.text and "training goes on" in caplog.text


def test_randomness_of_a_step_does_not_depend_on_what_was_drawn_before():
    drawn = []
    for rank in (0, 0, 1):
        seed_step(3, 7, rank)
        drawn.append(torch.rand(3).tolist() + np.random.rand(3).tolist())
        torch.rand(100), np.random.rand(100)
    assert drawn[0] == drawn[1] and drawn[0][:3] != drawn[2][:3] and drawn[0][3:] != drawn[2][3:]


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp16")])
def test_auto_takes_fp16_on_a_gpu_that_only_emulates_bf16(has_bf16, name, monkeypatch):
    supported = lambda including_emulation=True: including_emulation or has_bf16  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", torch.device("cuda")).name == name
    assert choose_precision("bf16", torch.device("cuda")).name == "bf16"
    assert choose_precision("auto", CPU).name == "fp32"


# Saving, by a clock that no change of the time of day moves

SETTINGS = {
    "run": {"seed": 0, "num_workers": 2},
    "optim": {"lr": 0.1, "batch_size": 2, "accum_iter": 2, "opt_betas": (0.9, 0.95)},
}


def plan(steps=100):
    return plan_of(steps, accum_iter=2, settings=SETTINGS, clips={"training": "13 (abc)"})


class Saving:
    """A run of steps that take the time they are told to."""

    def __init__(self, folder, save_interval):
        self.folder, self.now = folder, 0.0
        run = run_in(folder, save_interval=save_interval)
        self.state = state_of(nn.Linear(2, 2), run, plan(), clock=lambda: self.now)

    def saved_steps(self, seconds, count):
        """Return after which of so many steps of so many seconds the state was saved."""
        found = []
        for number in range(1, count + 1):
            self.now += seconds
            self.state.step += 1
            self.state.check()
            if (self.folder / f"checkpoint-0-step{number}.pth").exists():
                found.append(number)
        return found


def test_the_state_is_saved_after_the_first_step_beyond_the_interval(tmp_path, monkeypatch):
    """One minute, steps of 25 s."""
    monkeypatch.setattr("time.time", lambda: -1e9)  # nobody asks it
    assert Saving(tmp_path / "a", 1.0).saved_steps(25, 9) == [3, 6, 9]
    assert Saving(tmp_path / "b", 0.0).saved_steps(0, 3) == [1, 2, 3]
    assert Saving(tmp_path / "c", 1e6).saved_steps(60, 3) == []


def test_a_failed_save_is_tried_again_after_the_interval_and_at_the_end(tmp_path, monkeypatch):
    failed = []

    def full(path, content):
        failed.append(path.name)
        raise OSError("could not write checkpoint: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        saving = Saving(tmp_path, 1.0)
        saving.saved_steps(25, 9)
        assert failed == [f"checkpoint-0-step{step}.pth" for step in (3, 6, 9)]
        saving.state.end_epoch({})
        with pytest.raises(OSError, match="state after the last epoch is not saved in .*; free"):
            saving.state.finish()
        assert failed[3:] == ["checkpoint-0.pth"] * 2
    saving.state.finish()
    assert checkpoint.load(tmp_path / "checkpoint-0.pth", verify=True)["epoch"] == 0


def test_a_resumed_state_has_the_rates_of_its_last_step(tmp_path):
    """A run that was stopped in its last validation takes no other step before it is saved."""
    saving, other = (Saving(tmp_path / name, 0.0) for name in ("a", "b"))
    saving.saved_steps(0, 3)
    path = tmp_path / "a/checkpoint-0-step3.pth"
    resume(other.state, (path, checkpoint.load(path)))
    assert (other.state.epoch, other.state.step) == (0, 3)
    assert other.state.optimizer.param_groups[0]["lr"] == plan().lr[2]
    released = {**checkpoint.load(path), "epoch": "best"}  # as the authors' are
    with pytest.raises(ValueError, match="step3.pth' cannot be resumed: .*--finetune"):
        resume(other.state, (path, released))


# Changes


def changed(group, **values):
    return {**SETTINGS, group: {**SETTINGS[group], **values}}


CLIPS = "clips of the training list 12 (abc) -> 13 (abc)"
STEP_CLIPS = "clips of a step (batch_size x accum_iter x processes)"


@pytest.mark.parametrize(
    "settings, progress, told",
    [
        (changed("run", seed=1), {}, ["--seed 1 -> 0"]),
        (changed("run", num_workers=0), {}, []),
        (changed("run", of_an_older_version=1), {}, []),
        (changed("optim", opt_betas=[0.9, 0.95]), {}, []),
        (changed("optim", batch_size=4), {}, []),
        (changed("optim", batch_size=4), {"total_batch": 8}, [f"{STEP_CLIPS} 8 -> 4"]),
        (SETTINGS, {"clips": {"training": "12 (abc)", "test": "3 (x)"}}, [CLIPS]),
    ],
)
def test_changes_are_told_that_make_it_another_run(settings, progress, told):
    known = {name: getattr(plan(), name) for name in ("clips", "total_batch")}
    content = {"args": settings, "progress": {"world_size": 2, **known, **progress}}
    assert find_changes(plan(), content) == told
    assert find_changes(plan(), {}) == []


def test_clips_are_told_apart_by_names_labels_and_order_not_by_where_they_lie():
    def clips(root, label=0):
        names = [(f"{root}/{k}.mp4", f"{root}/{k}.wav", label) for k in range(3)]
        return [SimpleNamespace(video=v, audio=a, label=x) for v, a, x in names]

    described = describe_clips(clips("/a"), "/a")
    assert described == describe_clips(clips("/b/c"), "/b/c")
    assert described.startswith("3 (")
    others = [clips("/a")[:2], clips("/a")[::-1], clips("/a", 1)]
    assert described not in {describe_clips(other, "/a") for other in others}
