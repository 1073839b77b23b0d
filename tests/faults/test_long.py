"""Launchers and long runs: torchrun brings ranks back and passes signals on; nothing grows."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import (
    GEOMETRY,
    LIMIT,
    PRETRAIN,
    ROOT,
    Run,
    assert_nothing_left,
    assert_same_run,
    children_of,
    complete,
    is_running,
    last_state,
    lines,
    steps_written,
    tensorboard_points,
    until,
)

pytestmark = pytest.mark.slow


class Torchrun(Run):
    """A script under torchrun with two ranks, in the place of one process."""

    def __init__(self, script, arguments, log, *options):
        self.log = Path(log)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc_per_node=2", *options, ROOT / f"{script}.py", *arguments]  # fmt: skip
        self.popen = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def alive(self):
        return self.popen.poll() is None

    def wait(self):
        return self.popen.wait(LIMIT)

    def ranks(self):
        """Return the ranks' process ids."""
        pids = children_of(self.popen.pid)
        named = [p for p in pids if b"run_pretraining" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return sorted(named)


@pytest.fixture
def slow_command(arguments):
    """Steps slow enough to meet one of them."""
    return [*arguments["run_pretraining"], "--accum_iter", "1", "--num_samples", "4",
            "--print_freq", "1", "--save_interval", "0", "--output_dir"]  # fmt: skip


def test_torchrun_brings_both_ranks_back_when_one_dies(slow_command, tmp_path):
    complete("run_pretraining", [*slow_command, tmp_path / "whole"], tmp_path / "log", count=2)
    out, log = tmp_path / "out", tmp_path / "out.log"
    run = Torchrun("run_pretraining", [*slow_command, out], log, "--max-restarts=1")
    until(lambda: list(out.glob("checkpoint-1-step*.pth")), run)
    first = run.ranks()
    os.kill(first[-1], signal.SIGKILL)
    assert run.wait() == 0, run.output()[-3000:]
    assert (out / "run.log").read_text().count("resumed from") == 1
    assert_same_run(out, tmp_path / "whole", 2)
    assert not any(map(is_running, first))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun_reaches_the_ranks_which_save(number, slow_command, tmp_path):
    out = tmp_path / "out"
    listen = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    command = [*slow_command, out, "--save_interval", "60"]
    run = Torchrun("run_pretraining", command, tmp_path / "out.log", listen)
    until(steps_written(out, 4), run)
    run.popen.send_signal(number)
    assert run.wait() != 0
    assert "start the same command again to go on (exit code 75)" in run.output()
    assert len(list(out.glob("checkpoint-1-step*.pth"))) == 1
    assert_nothing_left(out)


def status(pid):
    """Return resident KiB, open files and threads of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(fields["VmRSS"].split()[0]), handles, int(fields["Threads"])


def highest(run, out, counts):
    """Return the most that a run, and its loading process, take while it makes some steps."""
    seen = []
    for count in counts:
        until(steps_written(out, count), run, seconds=600)
        (worker,) = children_of(run.process.pid)
        seen.append((status(run.process.pid), status(worker)))
    return [
        [max(values) for values in zip(*of_one, strict=True)] for of_one in zip(*seen, strict=True)
    ]


def test_two_thousand_steps_leave_memory_files_and_threads_as_they_were(media, tmp_path):
    """Epochs, saves within them, pictures, a loading process: all of it repeats."""
    model = [*PRETRAIN, *GEOMETRY, "--num_workers", "1", "--batch_size", "1", "--image_freq", "40"]
    options = ["--epochs", "160", "--save_interval", "0.05", "--print_freq", "10",
               "--save_ckpt_freq", "1000", "--input_size_audio", "32", "128"]  # fmt: skip
    out = tmp_path / "out"
    paths = ["--data_path", media / "lists", "--output_dir", out]
    run = Run("run_pretraining", [*model, *options, *paths], tmp_path / "log")
    early, late = (highest(run, out, range(first, first + 700, 25)) for first in (300, 1300))
    assert run.wait() == 0, run.output()[-2000:]
    assert len(lines(out / "steps.jsonl")) == 160 * 13
    assert last_state(out, 159)["epoch"] == 159
    for before, after in zip(early, late, strict=True):
        memory, handles, threads = after
        assert memory < before[0] * 1.05 + 8 * 1024
        assert handles <= before[1] * 1.25 + 8  # films are closed when python collects garbage
        assert threads <= before[2]
    points = tensorboard_points(out)["train/loss"]
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert len(list(out.glob("checkpoint-*.pth"))) == 2
    assert_nothing_left(out)
