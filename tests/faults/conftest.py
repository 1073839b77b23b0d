"""Media, jobs to be disturbed, and the uninterrupted runs that they are compared with."""

from functools import partial

import pytest

from tests.small_runs import (
    FINETUNE,
    PRETRAIN,
    complete,
    finish,
    kill_when,
    make_media,
    saved_within,
    start,
)


class Job:
    """A script with its arguments, the folder of its logs, and `out`, where it writes."""

    def __init__(self, script, arguments, folder):
        self.script, self.arguments, self.folder = script, arguments, folder
        self.out = folder / "out"

    def _call(self, function, flags, out=None, fault=None, count=1):
        command = [*self.arguments, *flags, "--output_dir", out or self.out]
        return function(self.script, command, self.folder / "log", fault, count)

    def start(self, *flags, **options):
        """Start one process or `count` ranks; return them."""
        return self._call(start, flags, **options)

    def complete(self, *flags, **options):
        """Run to the end; return the first process."""
        return self._call(complete, flags, **options)

    def kill_when(self, condition, *flags, **options):
        """Run until something holds, then kill all processes."""
        self._call(partial(kill_when, condition), flags, **options)

    def kill_within(self, epoch, *flags, **options):
        """Save after every step, and kill all processes within an epoch."""
        self.kill_when(saved_within(self.out, epoch), *flags, "--save_interval", "0", **options)

    def log(self):
        return (self.out / "run.log").read_text()


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
    """Return a maker of jobs by script."""
    return lambda script: Job(script, arguments[script], tmp_path)


@pytest.fixture
def pretrain(job):
    return job("run_pretraining")


@pytest.fixture
def finetune(job):
    return job("run_finetuning")


@pytest.fixture(scope="session")
def whole(media, arguments):
    """Both runs, never interrupted."""
    folder = media / "whole"
    folder.mkdir()
    started = [
        start(n, [*c, "--output_dir", folder / n], folder / "log") for n, c in arguments.items()
    ]
    finish(sum(started, []))
    return folder
