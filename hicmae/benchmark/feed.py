"""From disk to model: does the loader keep the device busy, and what does VoxCeleb2 need.

``python -m hicmae.benchmark feed --data_path LIST [--shards FOLDER] --num_workers 16`` takes the
flags of run_pretraining.py and trains for some steps from each source and from one batch that is
always there. Their difference is what the data cost.
"""

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hicmae.benchmark.context import device_name
from hicmae.benchmark.loader_clips import make_clips
from hicmae.benchmark.real_steps import (
    NOT_SET,
    Steps,
    Trainer,
    add_training_flags,
    check_least,
    spread,
    training_configs,
)
from hicmae.data.batches import PretrainBatch
from hicmae.data.clip_list import write_list
from hicmae.data.loader import epoch_batches
from hicmae.io import aligned
from hicmae.training.pretraining import PretrainConfigs, make_dataset
from hicmae.training.run import Session, open_session, training_loader

NOTE = """
Waits: share of the time in which the device had nothing to do but wait for a batch. Slower: loss of
clips/s against steps on one batch; on a CPU the loader takes cores from the model as well.
"""
VOXCELEB2_CLIPS, EPOCHS = 1_091_581, 100  # of the published pre-training
SECONDS_A_DAY = 86400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command: those of pre-training, and what to measure."""
    add_training_flags(parser)
    group = parser.add_argument_group("What to measure")
    group.add_argument("--steps", type=int, default=50, help="measured steps (default: 50)")
    group.add_argument(
        "--warmup", type=int, default=10, help="steps before, not measured (default: 10)"
    )
    group.add_argument("--shards", metavar="DIR", help="a second source: the same clips, packed")
    group.add_argument(
        "--make_clips",
        type=int,
        metavar="N",
        help="instead of --data_path: N clips like VoxCeleb2's, made in saved/benchmarks/clips",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every source in one run; return the result.

    Raises:
        ValueError: a flag does not fit, or no source is named.
    """
    check_least(args, steps=1, warmup=0)
    with tempfile.TemporaryDirectory(prefix="hicmae-feed-") as folder:
        configs = training_configs(args, folder)
        sources = _sources(args, configs, Path(folder))
        with open_session(configs.run, {}) as session:
            logging.getLogger().setLevel(logging.WARNING)  # the run's own messages
            rows = [_measure(session, one, kind, args) for kind, one in sources]
            return _result(session, configs, rows)


def _sources(
    args: argparse.Namespace, configs: PretrainConfigs, folder: Path
) -> list[tuple[str, PretrainConfigs]]:
    """Name each source and give its settings."""
    path = configs.data.data_path
    if args.make_clips is not None:
        if path != NOT_SET:
            raise ValueError("--make_clips stands in for --data_path; give one of them")
        path = str(_made_list(args.make_clips, folder))
    named = [(path, "files"), (args.shards or NOT_SET, "shards")]
    sources = [
        (kind, configs._replace(data=replace(configs.data, data_path=path)))
        for path, kind in named
        if path != NOT_SET
    ]
    if not sources:
        raise ValueError("no clips to read; give --data_path, --shards or --make_clips")
    return sources


def _made_list(count: int, folder: Path) -> Path:
    """Make clips and their list."""
    if count < 1:
        raise ValueError(f"--make_clips must be at least 1, got {count}")
    path = folder / "made.csv"
    write_list(path, make_clips(Path("saved/benchmarks/clips"), count))
    return path


class Repeated(Sequence[Any]):
    """A list read again and again until it is long enough, so that an epoch never ends."""

    def __init__(self, clips: Sequence[Any], length: int) -> None:
        self.clips, self.length = clips, max(length, len(clips))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.clips[index % len(self.clips)]


def _clips_needed(configs: PretrainConfigs, args: argparse.Namespace) -> int:
    """Count the clips that are read from first to last, with those that are loaded in advance."""
    steps = (args.warmup + 2 * args.steps) * configs.optim.accum_iter
    return configs.optim.batch_size * (steps + 4 * configs.run.num_workers + 2)


def _measure(
    session: Session, configs: PretrainConfigs, kind: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Train from one source, from its first batch alone, and read it without a model."""
    dataset = make_dataset(configs)
    num_clips = len(dataset)
    dataset.clips = Repeated(dataset.clips, _clips_needed(configs, args))
    loader = training_loader(session, dataset, configs.optim.batch_size)
    batches = epoch_batches(loader, 0)
    first = next(batches)
    trainer = Trainer(session, configs, args.warmup + args.steps)
    fixed = trainer.run(itertools.repeat(first), args.steps, args.warmup)
    fed = trainer.run(batches, args.steps, args.warmup)
    clips = len(first.names) * configs.optim.accum_iter
    row = {
        "source": kind,
        "data_path": str(args.shards if kind == "shards" else args.data_path),
        "clips_in_list": num_clips,
        "times_read": _clips_needed(configs, args) / num_clips,
        **rates(fed, fixed, clips),
        "loader_clips_per_s": _loader_speed(batches, args.steps, configs.run.num_workers),
    }
    del trainer, batches
    loader._iterator = None  # ends its workers before the next source starts its own
    return row


def rates(fed: Steps, fixed: Steps, clips: int) -> dict[str, Any]:
    """Compare steps fed by the loader with steps on a batch that is there.

    Args:
        fed: steps with data.
        fixed: steps without.
        clips: of one step.
    """
    fed_rate = clips * len(fed.durations) / sum(fed.durations)
    fixed_rate = clips * len(fixed.durations) / sum(fixed.durations)
    return {
        "clips_per_s": fed_rate,
        "fixed_clips_per_s": fixed_rate,
        "wait_share": fed.wait_share,
        "slower_share": 1 - fed_rate / fixed_rate,
        **spread(fed.durations),
        **spread(fixed.durations, "fixed_step_s"),
    }


def _loader_speed(batches: Iterator[PretrainBatch], steps: int, workers: int) -> float:
    """Return the clips a second that the loader gives when nobody else works."""
    for _ in range(2 * workers + 1):  # loaded while the last steps still ran
        next(batches)
    start, clips = time.perf_counter(), 0
    for batch in itertools.islice(batches, steps):
        clips += len(batch.names)
    return clips / (time.perf_counter() - start)


def _result(
    session: Session, configs: PretrainConfigs, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    workers = configs.run.num_workers
    for row in rows:
        row |= voxceleb2(row, max(workers, 1))
    return {
        "device": device_name(session.device),
        "model": configs.model.model,
        "precision": session.precision.name,
        "batch_size": configs.optim.batch_size,
        "accum_iter": configs.optim.accum_iter,
        "num_samples": configs.data.num_samples,
        "num_workers": workers,
        "clips_per_s": rows[-1]["clips_per_s"],
        "sources": rows,
    }


def show(figures: dict[str, Any]) -> str:
    """Make a table of the sources, and what VoxCeleb2 needs from each."""
    names = ("clips/s", "without loading", "waits", "slower", "loader alone")
    table = [("", *names), *(_cells(row) for row in figures["sources"])]
    title = (
        f"{figures['device']}: {figures['model']}, {figures['precision']}, "
        f"{figures['batch_size']} clips, {figures['num_workers']} loader process(es)\n\n"
    )
    return title + aligned(table) + NOTE + "".join(map(_needs, figures["sources"]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    rates = ("clips_per_s", "fixed_clips_per_s", "loader_clips_per_s")
    fed, fixed, alone = (f"{row[name]:.1f}" for name in rates)
    waits, slower = (f"{row[name]:.1%}" for name in ("wait_share", "slower_share"))
    return (row["source"], fed, fixed, waits, slower, alone)


def _needs(row: dict[str, Any]) -> str:
    names = ("voxceleb2_device_days", "voxceleb2_device_days_if_fed", "loader_cores_per_device")
    days, fed_days, cores = (f"{row[name]:.3g}" for name in names)
    return (
        f"\nVoxCeleb2 x {EPOCHS} epochs from {row['source']}: {days} days on one such device, "
        f"{fed_days} if it never waits, for which it needs {cores} such loader processes\n"
    )


def voxceleb2(row: dict[str, Any], workers: int) -> dict[str, float]:
    """Compute what VoxCeleb2 x 100 epochs needs on devices like the one that was measured.

    Days of several devices are these divided by their number, less what their gradients cost
    (`hicmae.benchmark ranks`).
    """
    clips = VOXCELEB2_CLIPS * EPOCHS
    return {
        "voxceleb2_device_days": clips / row["clips_per_s"] / SECONDS_A_DAY,
        "voxceleb2_device_days_if_fed": clips / row["fixed_clips_per_s"] / SECONDS_A_DAY,
        "loader_cores_per_device": row["fixed_clips_per_s"] / row["loader_clips_per_s"] * workers,
    }
