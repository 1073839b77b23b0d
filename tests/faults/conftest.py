"""Media, jobs to be disturbed, and the uninterrupted runs that they are compared with."""

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
    pretrain = ["--data_path", media / "lists", "--drop_path", "0.2", "--image_freq", "0"]
    finetune = ["--data_path", media / "fold", "--nb_classes", "3", "--roll_mag_aug", "--no-export"]
    return {
        "run_pretraining": [*PRETRAIN, *pretrain, *common],
        "run_finetuning": [*FINETUNE, *finetune, *common],
    }


@pytest.fixture
def job(arguments, tmp_path):
    """Return a maker of jobs by script and number of ranks, whose steps have the same clips."""

    def make(script, count=1):
        flags = ["--accum_iter", "1"] if count == 2 else []
        return Job(script, [*arguments[script], *flags], tmp_path, count)

    return make


@pytest.fixture
def pretrain(job):
    return job("run_pretraining")


@pytest.fixture
def finetune(job):
    return job("run_finetuning")


@pytest.fixture(scope="session")
def whole(arguments, tmp_path_factory):
    """Return the folder of a run that was never interrupted, by script and number of ranks."""
    found = {}

    def folder_of(script, count=1):
        if (script, count) not in found:
            flags = ["--accum_iter", "1"] if count == 2 else []
            folder = tmp_path_factory.mktemp(f"whole_{script}_{count}")
            job = Job(script, [*arguments[script], *flags], folder, count)
            job.complete()
            found[script, count] = job.out
        return found[script, count]

    return folder_of
