"""Two gloo "machines" on loopback train as one process does; bad addresses end in one line."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run_pretraining
from scripts import launch
from tests.conftest import free_port
from tests.small_runs import (
    PRETRAIN,
    ROOT,
    Job,
    assert_same_run,
    children_of,
    is_running,
    lines,
    make_media,
    saved_within,
    until,
)

SCRIPT = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh"
LAUNCH = [sys.executable, str(ROOT / "scripts/launch.py"), "--nproc_per_node"]
PARTS = ("loss", "loss_video", "loss_audio", "loss_contrastive", "grad_norm")


def start(command, **settings):
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    env |= {name: str(value) for name, value in settings.items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, **pipes)


def ended(machines, seconds=200):
    """Wait for all of them; return exit codes and what they wrote."""
    try:
        written = ["".join(machine.communicate(timeout=seconds)) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [machine.returncode for machine in machines], written


@pytest.mark.slow
def test_two_machines_that_meet_by_address_train_as_one_process(tmp_path):
    media, out = make_media(tmp_path / "media", 4), tmp_path / "script"
    at = PRETRAIN.index("--batch_size")  # the script has its own
    flags = [*PRETRAIN[:at], *PRETRAIN[at + 2 :], "--epochs", "2",
             "--gather_negatives", "--min_lr", "1e-5"]  # fmt: skip
    paths = ["--data_path", str(media / "lists/train.csv"), "--output_dir", str(tmp_path / "one")]
    run_pretraining.main([*flags, *paths, "--batch_size", "2"])
    settings = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
                "DEVICE": "cpu", "TOTAL_BATCH": 2, "BATCH_SIZE": 1, "PYTHON": sys.executable,
                "DATA_PATH": media / "lists/train.csv", "OUTPUT_DIR": out}  # fmt: skip
    machines = [start(["sh", str(SCRIPT), *flags], NODE_RANK=rank, **settings) for rank in (0, 1)]
    codes, written = ended(machines)
    assert codes == [0, 0], written
    for mine, other in zip(lines(out / "log.txt"), lines(tmp_path / "one/log.txt"), strict=True):
        for part in PARTS:
            assert mine[f"train_{part}"] == pytest.approx(other[f"train_{part}"], rel=1e-4), part
    assert "2 process(es)" in (out / "run.log").read_text()


@pytest.mark.slow
def test_torchrun_brings_both_ranks_back_when_one_dies(tmp_path):
    """With torch 2.11's shared store, ranks that start again may wait for those that died."""
    media, out = make_media(tmp_path / "media", 13), tmp_path / "out"
    flags = [*PRETRAIN, "--data_path", str(media / "lists"), "--num_samples", "4", "--epochs", "3",
             "--save_interval", "0", "--output_dir"]  # fmt: skip
    Job("run_pretraining", flags[:-1], tmp_path, 2).complete(out=tmp_path / "whole")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "--max-restarts=1", str(ROOT / "run_pretraining.py"), *flags, str(out)]
    agent = start(command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
    until(saved_within(out, 1))
    commands = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in children_of(agent.pid)}
    ranks = sorted(pid for pid, command in commands.items() if b"run_pretraining" in command)
    os.kill(ranks[-1], signal.SIGKILL)
    codes, written = ended([agent])
    assert codes == [0], written
    assert (out / "run.log").read_text().count("resumed from") == 1
    assert_same_run(out, tmp_path / "whole", 2)
    assert not any(map(is_running, ranks))


WORKER = """
import os, signal, sys, time
noted = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda n, _: noted.append(n))
open(sys.argv[1] + os.environ["RANK"], "w").close()
while not noted:
    time.sleep(0.05)
time.sleep(0.5 * int(os.environ["RANK"]))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 3), (signal.SIGTERM, 75)])
def test_signals_reach_every_process_and_its_exit_code_comes_back(number, code, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    started = [tmp_path / f"started{rank}" for rank in range(2)]
    command = [*LAUNCH, "2", "--standalone", str(worker), str(tmp_path / "started"), str(code)]
    launcher = start(command)
    until(lambda: all(path.exists() for path in started))
    launcher.send_signal(number)
    codes, (written,) = ended([launcher])
    assert codes == [code], written
    assert ("ended first, with exit code 3" in written) is (code == 3)


TWO = {"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "1", "GPUS": "4"}
BY_ADDRESS = "--nnodes 2 --nproc_per_node {} --node_rank 1 --master_addr a --master_port {} "
MEANT = [
    ({"NPROC": "4"}, "--standalone --nproc_per_node 4"),
    (TWO, BY_ADDRESS.format(4, 29500) + "--rdzv_conf timeout=600"),
    (TWO | {"DEVICE": "cpu", "MASTER_PORT": "7", "JOIN_TIMEOUT": "9"},
     BY_ADDRESS.format(1, 7) + "--rdzv_conf timeout=9"),
]  # fmt: skip
REFUSED = [
    ({"JOIN_TIMEOUT": "1 s"}, "JOIN_TIMEOUT must be a whole number above 0, got '1 s'"),
    ({"NNODES": "2"}, "NNODES=2, but .* no place to meet; set MASTER_ADDR"),
    (TWO | {"NODE_RANK": "2"}, "NODE_RANK must be .* from 0 to 1, got '2'"),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "4 tasks on 1 .*--ntasks-per-node=1"),
]


@pytest.mark.parametrize(("variables", "flags"), MEANT)
def test_variables_say_where_to_run(variables, flags):
    assert launch.flags_of(variables) == flags.split()


@pytest.mark.parametrize(("variables", "message"), REFUSED)
def test_variables_that_cannot_work_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        launch.flags_of(variables)


def test_a_machine_with_one_gpu_or_none_needs_no_torchrun(tmp_path):
    """Torchrun would start it in a process of its own."""
    script = tmp_path / "run.py"
    script.write_text("import os; print(os.getpid(), 'RANK' in os.environ)")
    run = start([*LAUNCH, "gpu", "--standalone", str(script)], CUDA_VISIBLE_DEVICES="")
    assert run.communicate(timeout=60)[0] == f"{run.pid} False\n"


APART = "launch: error: the 2 machines do not reach each other at .*: .*; start all .*MASTER_ADDR"


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such.invalid"])
def test_machines_that_do_not_meet_end_in_one_line(address):
    """Torch itself stays silent."""
    port = free_port()
    where = ["--nnodes", "2", "--node_rank", "1", "--master_addr", address]
    where += ["--master_port", str(port), "--rdzv_conf", "timeout=1"]
    command = [*LAUNCH, "1", *where, "never_started.py"]
    codes, (written,) = ended([start(command)], 60)
    assert codes == [1]
    assert re.match(APART, written) and f"{address}:{port}" in written
    assert written.count("\n") == 1
