"""Two gloo "machines" on loopback train as one process does; bad addresses end in one line."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import run_pretraining
from scripts import launch
from tests.conftest import free_port, save_mp4, save_wav
from tests.test_runs import PRETRAIN, ROOT, lines

SCRIPT = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh"
LAUNCH = [sys.executable, str(ROOT / "scripts/launch.py"), "--nproc_per_node", "1"]
PARTS = ("loss", "loss_video", "loss_audio", "loss_contrastive", "grad_norm")


@pytest.fixture(scope="module")
def clip_list(tmp_path_factory):
    """Four clips; returns their list."""
    root = tmp_path_factory.mktemp("clips")
    names = [save_mp4(root / f"{k}.mp4", 34 + 3 * k, (64, 40)) for k in range(4)]
    for k in range(4):
        save_wav(root / f"{k}.wav", (34 + 3 * k) * 640)
    path = root / "train.csv"
    path.write_text("".join(f"{name} 0\n" for name in names))
    return path


def environment(**settings):
    left_out = re.compile(
        r"(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_.*|SLURM_.*|NNODES|NODE_RANK|RDZV_.*)"
    )
    env = {name: value for name, value in os.environ.items() if not left_out.fullmatch(name)}
    return env | {"OMP_NUM_THREADS": "1"} | {name: str(v) for name, v in settings.items()}


def start(command, **settings):
    return subprocess.Popen(
        command,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(machines, seconds=200):
    """Wait for all of them; return exit codes and what they wrote."""
    try:
        written = ["".join(machine.communicate(timeout=seconds)) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [machine.returncode for machine in machines], written


@pytest.fixture(scope="module")
def one(clip_list, tmp_path_factory):
    """The log of two epochs in one process with both machines' clips in a batch."""
    out = tmp_path_factory.mktemp("one")
    run_pretraining.main([*flags(clip_list, out), "--batch_size", "2"])
    return lines(out / "log.txt")


def flags(clip_list, out):
    arguments = ["--epochs", "2", "--image_freq", "0", "--gather_negatives"]
    return [*PRETRAIN, "--data_path", str(clip_list), "--output_dir", str(out), *arguments]


def check_equal(log, expected):
    for mine, other in zip(log, expected, strict=True):
        for name in PARTS:
            assert mine[f"train_{name}"] == pytest.approx(other[f"train_{name}"], rel=1e-4), name


def test_two_agents_that_meet_by_endpoint_train_as_one_process(one, clip_list, tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node",
             "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint]  # fmt: skip
    run = [str(ROOT / "run_pretraining.py"), *flags(clip_list, tmp_path), "--batch_size", "1"]
    codes, written = ended([start([*agent, *run]) for _ in range(2)])
    assert codes == [0, 0], written
    check_equal(lines(tmp_path / "log.txt"), one)


@pytest.mark.slow
def test_two_machines_running_the_script_train_as_one_process(one, clip_list, tmp_path):
    settings = {
        "NNODES": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "DEVICE": "cpu",
        "TOTAL_BATCH": 2,
        "BATCH_SIZE": 1,
        "DATA_PATH": clip_list,
        "OUTPUT_DIR": tmp_path,
        "PYTHON": sys.executable,
    }
    tiny = flags(clip_list, tmp_path)
    del tiny[tiny.index("--batch_size") : tiny.index("--batch_size") + 2]
    command = ["sh", str(SCRIPT), *tiny, "--min_lr", "1e-5"]
    codes, written = ended([start(command, NODE_RANK=rank, **settings) for rank in range(2)])
    assert codes == [0, 0], written
    check_equal(lines(tmp_path / "log.txt"), one)
    assert "2 process(es)" in (tmp_path / "run.log").read_text()


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
    launcher = start([*LAUNCH[:2], "--standalone", "--nproc_per_node", "2", str(worker),
                      str(tmp_path / "started"), str(code)])  # fmt: skip
    end = time.monotonic() + 60
    while not all(path.exists() for path in started) and time.monotonic() < end:
        time.sleep(0.05)
    launcher.send_signal(number)
    codes, (written,) = ended([launcher])
    assert codes == [code], written
    assert ("ended first, with exit code 3" in written) is (code == 3)


def test_code_of_a_resumable_run_is_the_same_everywhere():
    from hicmae.training.run import RESUMABLE

    assert launch.RESUMABLE == RESUMABLE
    text = (ROOT / "scripts/lib/common.sh").read_text() + (
        ROOT / "scripts/lib/slurm.sh"
    ).read_text()
    assert f'"$status" = {RESUMABLE}' in text


STATIC = ["--node_rank", "1", "--rdzv_conf", "timeout=1", "--master_port", "PORT"]
C10D = ["--rdzv_backend", "c10d", "--rdzv_conf", "join_timeout=1,read_timeout=1"]
WRONG = [
    (
        [*STATIC, "--master_addr", "no-such.invalid"],
        "no-such.invalid:PORT: .*; start .*MASTER_ADDR",
    ),
    ([*C10D, "--rdzv_endpoint", "127.0.0.1:PORT"], "127.0.0.1:PORT: not all .*; .* RDZV_ENDPOINT"),
    (
        [*C10D, "--rdzv_endpoint", "no-port"],
        "no-port: the address must be <host>:<port>, got 'no-port'",
    ),
]
APART = "launch: error: the 2 machines do not reach each other at "


@pytest.mark.parametrize(("arguments", "match"), WRONG)
def test_machines_that_do_not_meet_end_in_one_line(arguments, match, capfd):
    port = str(free_port())
    arguments = [word.replace("PORT", port) for word in arguments]
    code = launch.main(["--nnodes", "2", "--nproc_per_node", "1", *arguments, "never_started.py"])
    assert code == 1
    written = capfd.readouterr().err
    assert re.search(APART + match.replace("PORT", port), written.splitlines()[-1]), written


def test_nothing_but_that_line_is_written(tmp_path):
    address = ["--master_addr", "127.0.0.1"]
    arguments = [word.replace("PORT", str(free_port())) for word in STATIC]
    machine = start([*LAUNCH, "--nnodes", "2", *address, *arguments, "never_started.py"])
    codes, (written,) = ended([machine], seconds=60)
    assert codes == [1]
    assert re.fullmatch(APART + ".*; start all of them, each.*\n", written), written
