"""Both scripts on small real files, here or as processes to be killed and started again."""

import atexit
import csv
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

import run_finetuning
import run_pretraining
from hicmae.data.clip_list import Clip, write_list
from hicmae.training import distributed
from tests.boards import board
from tests.conftest import free_port, keep_imports, same, save_frames, save_mp4, save_wav

ROOT = Path(__file__).parents[1]
GEOMETRY = ["--num_frames", "4", "--sampling_rate", "8", "--input_size", "32",
            "--input_size_audio", "64", "128", "--device", "cpu", "--num_workers", "0",
            "--image_freq", "0"]  # fmt: skip
PRETRAIN = ["--model", "pretrain_hicmae_dim128_patch16_160_a256",
            "--encoder_depth", "2", "--encoder_depth_audio", "2",
            "--decoder_depth", "3", "--decoder_depth_audio", "3", "--encoder_fusion_depth", "1",
            "--return_intermediate_features", "0", "1", "--mask_ratio", "0.5",
            "--use_frame_diff_as_target", "--roll_mag_aug", "--batch_size", "2",
            "--warmup_epochs", "1", "--print_freq", "2", "--lr", "0.05", *GEOMETRY]  # fmt: skip
FINETUNE = ["--model", "avit_dim128_patch16_160_a256", "--depth", "2", "--depth_audio", "2",
            "--fusion_depth", "1", "--batch_size", "2", "--warmup_epochs", "1",
            "--print_freq", "2", *GEOMETRY]  # fmt: skip
LIMIT = 120  # seconds after which a process, or what it waits for, counts as hung

# Imports once what every run needs; runs are forked from there, so that they start at once and
# share neither threads nor memory with the tests.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["tests.conftest", "tests.small_runs", "hicmae.pretraining", "hicmae.finetuning"]
    # these are imported when they are used
    + ["hicmae.visualize.runs", "sklearn.metrics", "torchaudio.compliance.kaldi"]
)


def make_media(root: Path, count: int = 6) -> Path:
    """Write mp4 and wav pairs, frame folders, and lists of them: `lists`, `fold`, `numbers`."""
    clips, labelled, numbers = [], [], []
    for k in range(count):
        frames = 34 + 7 * (k % 6)
        noise = np.random.default_rng(k).normal(0, 0.1, frames * 640).astype(np.float32)
        wav = save_wav(root / f"clip {k}.wav", noise)
        clips.append(Clip(save_mp4(root / f"clip {k}.mp4", frames, (64, 40)), wav, 0))
        folder = save_frames(root / f"faces {k}", frames, (40, 40))
        labelled.append(Clip(folder, wav, k % 3))
        numbers.append(Clip(folder, wav, (0.1 * k, 1 - 0.1 * k)))
    for name in ("lists", "fold", "numbers"):
        (root / name).mkdir()
    write_list(root / "lists" / "train.csv", clips)
    for name, rows in (("fold", labelled), ("numbers", numbers)):
        write_list(root / name / "train.csv", rows)
        write_list(root / name / "test.csv", rows[:5])
    return root


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def pretrain(media, out, *flags):
    """Pre-train in this process; one epoch where the flags do not say otherwise."""
    paths = ["--data_path", str(media / "lists"), "--output_dir", str(out)]
    run_pretraining.main([*PRETRAIN, "--epochs", "1", *paths, *flags])
    return out


def finetune(media, out, *flags, fold="fold", classes="3"):
    """Fine-tune, or test, in this process."""
    paths = ["--data_path", str(media / fold), "--output_dir", str(out), "--nb_classes", classes]
    run_finetuning.main([*FINETUNE, "--epochs", "1", *paths, *flags])
    return out


def _main(script, arguments, environment, log, fault):
    """Be a run: what the tests start in a process of its own."""
    keep_imports()
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # as it is outside of a forkserver
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    distributed.TIMEOUT = timedelta(seconds=LIMIT)
    module = __import__(script)
    sys.argv = [f"{script}.py", *arguments]
    if fault is not None:
        fault()
    sys.exit(module.command())


class Run:
    """One process, or one rank, of a script.

    `fault` is called in it before the script starts, to make something go wrong there.
    """

    def __init__(self, script, arguments, log, fault=None, **environment):
        self.log = Path(log)
        values = {name: str(value) for name, value in environment.items()}
        options = (script, [str(a) for a in arguments], values, str(log), fault)
        self.process = _server.Process(target=_main, args=options)
        self.process.start()
        atexit.register(self.process.kill)  # python would wait for it without end

    def kill(self, number=signal.SIGKILL):
        with suppress(ProcessLookupError):  # it may just have ended by itself
            os.kill(self.process.pid, number)
        return self

    def wait(self):
        """Return the exit code; a run that does not end is killed, and fails the test."""
        self.process.join(LIMIT)
        if self.process.exitcode is None:
            self.kill()
            self.process.join(LIMIT)
            raise AssertionError(f"hung; its output ends in: {self.output()[-2000:]}")
        return self.process.exitcode

    def alive(self):
        return self.process.exitcode is None

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _rank(rank, function, *arguments):
    keep_imports()
    torch.set_num_threads(1)
    distributed.TIMEOUT = timedelta(seconds=LIMIT)
    function(rank, *arguments)


def run_ranks(count, function, *arguments):
    """Call function(rank, *arguments) in so many processes; none may fail or hang."""
    options = {"nprocs": count, "start_method": "forkserver", "join": False}
    ranks = mp.start_processes(_rank, (function, *arguments), **options)
    end = time.monotonic() + 3 * LIMIT
    while not ranks.join(timeout=1):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise AssertionError(f"ranks of {function.__name__} hang")


class Job:
    """A script with its arguments, as `count` ranks; `folder` has its logs, `out` its results."""

    def __init__(self, script, arguments, folder, count=1):
        self.script, self.arguments, self.count = script, arguments, count
        self.folder, self.out = Path(folder), Path(folder) / "out"
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, *flags, out=None, fault=None):
        """Start one process, or a group of ranks as torchrun does; return them."""
        command = [*self.arguments, *flags, "--output_dir", out or self.out]
        if self.count == 1:
            return [Run(self.script, command, self.folder / "log", fault)]
        group = {"WORLD_SIZE": self.count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [
            Run(self.script, command, self.folder / f"log{k}", fault, RANK=k, LOCAL_RANK=k, **group)
            for k in range(self.count)
        ]

    def complete(self, *flags, **options):
        """Run to the end; all must succeed; return the first process."""
        return finish(self.start(*flags, **options))

    def kill_when(self, condition, *flags, **options):
        """Run until something holds, then kill all processes."""
        group = self.start(*flags, **options)
        until(condition, *group)
        for run in group:
            run.kill().wait()

    def kill_within(self, epoch, *flags, **options):
        """Save after every step, and kill all processes within an epoch."""
        self.kill_when(saved_within(self.out, epoch), *flags, "--save_interval", "0", **options)

    def has_steps(self, count):
        """Return a condition: that many lines are in steps.jsonl."""
        path = self.out / "steps.jsonl"
        return lambda: path.exists() and path.read_bytes().count(b"\n") >= count

    def log(self):
        return (self.out / "run.log").read_text()


def finish(runs):
    """Wait for all of them; all must succeed; return the first."""
    for run in runs:
        code = run.wait()
        assert code == 0, run.output()[-3000:]
    return runs[0]


def stopped_after(run):
    """Return the steps that a run says it has done, and check that it says how to go on."""
    text = run.output()
    assert "start the same command again to go on (exit code 75)" in text
    assert "Traceback" not in text
    return int(re.search(r"stopped by (?:SIGTERM|SIGUSR1) after (\d+) steps, all saved", text)[1])


def until(condition, *runs, seconds=LIMIT):
    """Wait until something holds; fail when a run ends first or it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        dead = [run for run in runs if not run.alive()]
        assert not dead, f"ended early; its output ends in: {dead[0].output()[-3000:]}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def saved_within(folder, epoch):
    """Return a condition: a state within that epoch is saved."""
    return lambda: list(Path(folder).glob(f"checkpoint-{epoch}-step*.pth"))


def children_of(pid):
    """Return the processes that a process has started."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if is_running(child, pid)]


def is_running(pid, parent=None):
    """Tell whether there is a process, and whether it is of that parent."""
    try:
        state, its_parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state != "Z" and parent in (None, int(its_parent))


def last_state(folder, epoch):
    return torch.load(Path(folder) / f"checkpoint-{epoch}.pth", weights_only=True)


def assert_same_run(folder, whole, epoch, curves=True):
    """Compare logs as text, curves, and the state after an epoch, with those of another run."""
    folder, whole = Path(folder), Path(whole)
    for name in ("steps.jsonl", "log.txt"):
        assert (folder / name).read_text() == (whole / name).read_text(), name
    mine, other = last_state(folder, epoch), last_state(whole, epoch)
    for part in ("model", "optimizer", "best", "progress", "metrics"):
        assert same(mine[part], other[part]), part
    assert not curves or same(tensorboard_points(folder), tensorboard_points(whole))
    assert_nothing_left(folder)


def tensorboard_points(folder):
    """Return every scalar's (step, value), but for speeds."""
    events = board(folder)
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(("_s", "_mib"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_nothing_left(folder):
    assert [path.name for path in Path(folder).iterdir() if path.name.startswith(".part")] == []
