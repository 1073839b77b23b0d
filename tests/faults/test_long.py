"""A long run: memory, open files and threads do not grow."""

from pathlib import Path

import pytest

from tests.small_runs import (
    GEOMETRY,
    PRETRAIN,
    Run,
    assert_nothing_left,
    children_of,
    last_state,
    lines,
    steps_written,
    tensorboard_points,
    until,
)


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


@pytest.mark.slow
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
