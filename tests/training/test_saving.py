"""When the state is saved, by a clock that no change of the time of day moves."""

from types import SimpleNamespace

import pytest
from torch import nn

from hicmae.training import checkpoint
from hicmae.training.logs import RunLogger
from hicmae.training.resume import Saver, find_changes, resume
from hicmae.training.state import describe_clips
from tests.training.parts import plan_of, run_in, state_of

SETTINGS = {
    "run": {"seed": 0, "num_workers": 2},
    "optim": {"lr": 0.1, "batch_size": 2, "accum_iter": 2, "opt_betas": (0.9, 0.95)},
}


def plan(steps=100):
    return plan_of(steps, accum_iter=2, settings=SETTINGS, clips={"training": "13 (abc)"})


class Saving:
    """A run of steps that take the time they are told to."""

    def __init__(self, folder, save_interval):
        self.run, self.now = run_in(folder, save_interval=save_interval), 0.0
        self.state, self.logs = state_of(nn.Linear(2, 2), self.run, plan()), RunLogger(None, None)
        self.saver = Saver(self.run, self.state, self.logs, lambda: self.now)

    def step(self, seconds=0.0):
        self.now += seconds
        self.state.step += 1
        self.saver.check()

    def saved_steps(self, seconds, count):
        """Return after which of so many steps of so many seconds the state was saved."""
        found = []
        for number in range(1, count + 1):
            self.step(seconds)
            if (self.run.output_dir / f"checkpoint-0-step{number}.pth").exists():
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
        saving.saver.end_epoch({})
        with pytest.raises(OSError, match="state after the last epoch is not saved in .*; free"):
            saving.saver.finish()
        assert failed[3:] == ["checkpoint-0.pth"] * 2
    saving.saver.finish()
    assert checkpoint.load(tmp_path / "checkpoint-0.pth", verify=True)["epoch"] == 0


def test_a_resumed_state_has_the_rates_of_its_last_step(tmp_path):
    """A run that was stopped in its last validation takes no other step before it is saved."""
    saving, other = (Saving(tmp_path / name, 0.0) for name in ("a", "b"))
    saving.saved_steps(0, 3)
    path = tmp_path / "a/checkpoint-0-step3.pth"
    resume(other.run, other.state, (path, checkpoint.load(path)))
    assert (other.state.epoch, other.state.step) == (0, 3)
    assert other.state.optimizer.param_groups[0]["lr"] == plan().lr[2]


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
        (SETTINGS, {"world_size": 2}, []),
        (SETTINGS, {"clips": {"training": "12 (abc)", "test": "3 (x)"}}, [CLIPS]),
    ],
)
def test_changes_are_told_that_make_it_another_run(settings, progress, told):
    known = {name: getattr(plan(), name) for name in ("clips", "total_batch")}
    content = {"args": settings, "progress": {"world_size": 1, **known, **progress}}
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
