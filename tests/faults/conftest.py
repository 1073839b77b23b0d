"""Media, jobs to be disturbed, and the uninterrupted runs that they are compared with."""

from functools import cache, partial

import pytest

from tests.small_runs import FINETUNE, PRETRAIN, Job, make_media


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Thirteen clips: a last batch is left out, and two ranks do not share them equally."""
    return make_media(tmp_path_factory.mktemp("faults"), count=13)


@pytest.fixture(scope="session")
def arguments(media):
    """Three epochs of three steps by script, all randomness on."""
    common = ["--epochs", "3", "--accum_iter", "2"]
    pretrain = ["--data_path", media / "lists", "--drop_path", "0.2"]
    finetune = ["--data_path", media / "fold", "--nb_classes", "3", "--roll_mag_aug", "--no-export"]
    return {
        "run_pretraining": [*PRETRAIN, *pretrain, *common],
        "run_finetuning": [*FINETUNE, *finetune, *common],
    }


@pytest.fixture(scope="session")
def job_in(arguments):
    """Return a maker of jobs by folder, script and number of ranks: steps have the same clips."""

    def make(folder, script, count=1):
        flags = ["--accum_iter", "1"] if count == 2 else []
        return Job(script, [*arguments[script], *flags], folder, count)

    return make


@pytest.fixture
def job(job_in, tmp_path):
    return partial(job_in, tmp_path)


@pytest.fixture
def pretrain(job):
    return job("run_pretraining")


@pytest.fixture
def finetune(job):
    return job("run_finetuning")


@pytest.fixture(scope="session")
def whole(job_in, tmp_path_factory):
    """Return the folder of a run that was never interrupted, by script and number of ranks."""

    @cache
    def folder_of(script, count=1):
        run = job_in(tmp_path_factory.mktemp(f"whole_{script}_{count}"), script, count)
        run.complete()
        return run.out

    return folder_of
