"""When the state is saved, by a clock that no change of the time of day moves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hicmae.training import checkpoint
from hicmae.training.checkpoint import Saver, describe_clips, find_changes
from hicmae.training.run import RunShape, Stopped, StopRequest
from tests.training.test_engine import optimization_of

SHAPE = RunShape({"training": "13 (abc)"}, steps=100, total_batch=4, world_size=1)
SETTINGS = {
    "run": {"seed": 0, "num_workers": 2},
    "optim": {"lr": 0.1, "batch_size": 2, "accum_iter": 2, "opt_betas": (0.9, 0.95)},
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Steps:
    """Stands for a window with nothing to read."""

    def read(self):
        pass

    def state(self):
        return {"sums": {}}

    def state_of_next(self):
        return {}


def saver_of(folder, save_interval, clock):
    model = nn.Linear(2, 2)
    run = SimpleNamespace(save_interval=save_interval, save_ckpt_freq=10, keep_ckpts=2)
    session = SimpleNamespace(
        output_dir=Path(folder), run=run, settings=SETTINGS, stop=StopRequest()
    )
    return Saver(session, model, optimization_of(model, 100), SHAPE, clock)


def saved_steps(saver, clock, step_seconds, count):
    """Run so many steps of so many seconds; return after which of them the state was saved."""
    found = []
    for step in range(1, count + 1):
        clock.now += step_seconds
        saver.step_done(step, Steps())
        if (saver.session.output_dir / f"checkpoint-0-step{step}.pth").exists():
            found.append(step)
    return found


def test_no_more_than_the_interval_is_ever_lost(tmp_path, monkeypatch):
    """One minute, steps of 25 s: after two, as a third would end beyond the minute."""
    clock = Clock()
    saver = saver_of(tmp_path, 1.0, clock)
    monkeypatch.setattr("time.time", lambda: -1e9)  # nobody asks it
    assert saved_steps(saver, clock, 25, 9) == [2, 4, 6, 8]


def test_the_time_that_writing_takes_counts(tmp_path, monkeypatch):
    clock = Clock()
    saver = saver_of(tmp_path, 1.0, clock)
    write = checkpoint.save

    def slowly(path, state):
        clock.now += 20
        write(path, state)

    monkeypatch.setattr(checkpoint, "save", slowly)
    assert saved_steps(saver, clock, 10, 12) == [6, 8, 10, 12]


def test_zero_minutes_save_after_every_step_and_many_after_none(tmp_path):
    clock = Clock()
    assert saved_steps(saver_of(tmp_path / "a", 0.0, clock), clock, 0, 3) == [1, 2, 3]
    assert saved_steps(saver_of(tmp_path / "b", 1e6, clock), clock, 60, 3) == []


def test_a_failed_save_is_tried_again_after_the_interval_and_at_the_end(tmp_path, monkeypatch):
    clock, failed = Clock(), []

    def full(path, state):
        failed.append(path.name)
        raise OSError("could not write checkpoint: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        saver = saver_of(tmp_path, 1.0, clock)
        saved_steps(saver, clock, 25, 9)
        assert failed == [f"checkpoint-0-step{step}.pth" for step in (2, 4, 6, 8)]
        saver.end_epoch()
        with pytest.raises(OSError, match="state after the last epoch is not saved in .*; free"):
            saver.finish()
        assert failed[4:] == ["checkpoint-0.pth"] * 2
    saver.finish()
    assert checkpoint.load(tmp_path / "checkpoint-0.pth", verify=True)["epoch"] == 0


def test_a_request_to_stop_saves_what_is_new_and_only_that(tmp_path):
    clock = Clock()
    saver = saver_of(tmp_path, 60, clock)
    saver.session.stop.note(15)
    with pytest.raises(Stopped, match="stopped by SIGTERM after 0 steps, all saved"):
        saver.check()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Stopped, match="stopped by SIGTERM after 1 steps, all saved"):
        saver.step_done(1, Steps())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0-step1.pth"]


def test_a_state_loads_as_the_originals_do_and_holds_all_of_a_run(tmp_path):
    saver = saver_of(tmp_path, 0.0, Clock())
    saver.step_done(7, Steps())
    state = torch.load(tmp_path / "checkpoint-0-step7.pth", weights_only=True)
    assert torch.equal(state["model"]["weight"], saver.model.weight)
    assert state["epoch"] == -1 and state["args"] == SETTINGS
    progress = state["progress"]
    assert (progress["epoch"], progress["step"], progress["clips_done"]) == (0, 7, 28)
    assert state["ranks"][0]["random"].keys() == {"python", "numpy", "torch", "cuda"}
    assert {"optimizer", "scaler", "best", "origin"} <= state.keys()


# Changes


def state_of(settings=SETTINGS, **shape):
    return {"args": settings, "progress": SHAPE._replace(**shape)._asdict()}


def changed(group, **values):
    return {**SETTINGS, group: {**SETTINGS[group], **values}}


@pytest.mark.parametrize(
    ("state", "meaning", "harmless"),
    [
        (state_of(), [], []),
        ({}, [], []),
        (state_of(changed("run", seed=1)), ["--seed 1 -> 0"], []),
        (state_of(changed("run", num_workers=0)), [], ["--num_workers 0 -> 2"]),
        (state_of(changed("optim", opt_betas=[0.9, 0.95])), [], []),
        (
            state_of(changed("optim", batch_size=4, accum_iter=1)),
            [],
            ["--batch_size 4 -> 2", "--accum_iter 1 -> 2"],
        ),
        (
            state_of(changed("optim", batch_size=4), total_batch=8),
            ["clips of a step (batch_size x accum_iter x processes) 8 -> 4"],
            [],
        ),
        (state_of(world_size=2), [], ["processes 2 -> 1"]),
        (state_of(steps=99), ["steps of an epoch 99 -> 100"], []),
        (
            state_of(clips={"training": "12 (abc)", "test": "3 (x)"}),
            ["clips of the training list 12 (abc) -> 13 (abc)"],
            [],
        ),
        (state_of(changed("run", of_an_older_version=1)), [], []),
    ],
)
def test_changes_are_told_by_what_they_mean(state, meaning, harmless):
    changes = find_changes(SETTINGS, SHAPE, state)
    assert (changes.meaning, changes.harmless) == (meaning, harmless)


def test_clips_are_told_apart_by_names_labels_and_order_not_by_where_they_lie():
    def clips(root, label=0):
        names = [(f"{root}/{k}.mp4", f"{root}/{k}.wav", label) for k in range(3)]
        return [SimpleNamespace(video=v, audio=a, label=x) for v, a, x in names]

    described = describe_clips(clips("/a"), "/a")
    assert described == describe_clips(clips("/b/c"), "/b/c")
    assert described.startswith("3 (")
    others = [clips("/a")[:2], clips("/a")[::-1], clips("/a", 1)]
    assert described not in {describe_clips(other, "/a") for other in others}
