"""Processes that load clips are killed, as the system does when memory runs out."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from hicmae.data.loader import ClipSampler, end, epoch_batches, make_loader
from hicmae.training.evaluate import in_turns
from tests.small_runs import assert_same_run, children_of, until


class Numbers(Dataset):
    """Items tell what was asked for; `fault` is called before each."""

    def __init__(self, fault=lambda: None):
        self.fault = fault

    def __len__(self):
        return 23

    def __getitem__(self, item):
        self.fault()
        return torch.tensor([item.epoch, item.index])

    collate = staticmethod(torch.stack)


def loader_of(dataset, workers=2):
    sampler = ClipSampler(len(dataset), shuffle=True, seed=3, pad=True)
    return make_loader(dataset, sampler, 4, workers, True)


def listed(batches):
    return [batch.tolist() for batch in batches]


@pytest.fixture(autouse=True)
def no_worker_is_left():
    before = set(multiprocessing.active_children())
    yield
    end([child for child in multiprocessing.active_children() if child not in before])


def kill_workers():
    for worker in multiprocessing.active_children():
        worker.kill()


def test_an_epoch_goes_on_from_any_batch():
    whole = listed(epoch_batches(loader_of(Numbers(), 0), 5))
    assert len(whole) == 5
    for workers in (0, 2):
        assert listed(epoch_batches(loader_of(Numbers(), workers), 5, first=3)) == whole[3:]
    assert listed(epoch_batches(loader_of(Numbers(), 0), 6)) != whole


def test_killed_workers_are_replaced_and_the_batches_stay_the_same(caplog):
    loader = loader_of(Numbers())
    expected = [listed(epoch_batches(loader_of(Numbers(), 0), epoch)) for epoch in (0, 1)]
    seen = []
    for number, batch in enumerate(epoch_batches(loader, 0)):
        seen.append(batch.tolist())
        if number == 1:
            kill_workers()
    assert seen == expected[0]
    assert listed(epoch_batches(loader, 1)) == expected[1]
    (line,) = caplog.messages
    assert "was ended by SIGKILL; new ones go on at batch" in line and "of epoch 0" in line


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_clip_that_always_kills_its_worker_ends_the_run_in_one_line(caplog):
    message = "died 3 times in a row at batch 0 of epoch 7, the last by SIGKILL; lower --num_wor"
    with pytest.raises(RuntimeError, match=message):
        list(epoch_batches(loader_of(Numbers(die)), 7))
    assert len(caplog.messages) == 2


def fail():
    raise RuntimeError("an error of its own")


def test_an_error_within_a_worker_is_no_death():
    with pytest.raises(RuntimeError, match="an error of its own"):
        list(epoch_batches(loader_of(Numbers(fail)), 0))


def test_an_evaluation_goes_on_with_new_workers_and_looks_up_before_each_batch():
    sampler = ClipSampler(23, shuffle=False, seed=0, pad=False)
    loader = make_loader(Numbers(), sampler, 4, 2, False)
    looks, seen = [], []
    batches = in_turns(loader, lambda: looks.append(len(seen)))
    for batch in batches:
        seen += batch[:, 1].tolist()
        if len(seen) == 8:
            kill_workers()
    assert seen == list(range(23))
    assert looks == [0, 4, 8, 12, 16, 20]


def slow_reading():
    """Give each clip a twentieth of a second, so that a worker is killed with work to do."""
    from hicmae.data import dataset

    read = dataset.read_or_replace

    def slow(*args):
        time.sleep(0.05)
        return read(*args)

    dataset.read_or_replace = slow


@pytest.mark.parametrize(
    "script", ["run_pretraining", pytest.param("run_finetuning", marks=pytest.mark.slow)]
)
def test_a_run_whose_worker_is_killed_equals_the_undisturbed(script, job, whole):
    disturbed = job(script)
    (run,) = disturbed.start("--num_workers", "1", "--print_freq", "1", fault=slow_reading)
    until(disturbed.has_steps(4), run)
    os.kill(max(children_of(run.process.pid)), signal.SIGKILL)
    assert run.wait() == 0, run.output()
    assert "was ended by SIGKILL; new ones go on" in run.output()
    assert_same_run(disturbed.out, whole(script), 2, curves=False)  # of other steps
