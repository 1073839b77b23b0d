"""The shell scripts: what they would run, what they refuse, and that they run it as promised."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base"
PRETRAIN = FAMILY / "pretrain_base.sh"
FINETUNE = {name: FAMILY / name / "finetune_170.sh" for name in ("cream-d", "mafw", "werewolf-xl")}
EXPERIMENTS = [PRETRAIN, *FINETUNE.values()]
SLURM = ROOT / "scripts/slurm"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
SETTINGS = re.compile(
    "GPUS|NPROC|DEVICE|BATCH_SIZE|TOTAL_BATCH|EPOCHS|WARMUP_EPOCHS|PRECISION|DATA_.*|CHECKPOINT|"
    "OUTPUT_DIR|NUM_WORKERS|EXTRA_ARGS|NNODES|NODE_RANK|MASTER_.*|BACKGROUND|DRY_RUN|PYTHON|FOLDS|"
    "MODALITY|SEED|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|RDZV_.*|JOIN_TIMEOUT|SLURM_.*|MAX_REQUEUES|"
    "SHARDS"
)

FAKE_PYTHON = """#!/bin/sh
case "$1" in -c) exit 0 ;; esac
echo "args: $*"
echo "to the error stream" >&2
if [ -n "${FAKE_SLEEP:-}" ]; then
    trap 'echo saved; exit 0' TERM
    trap 'echo saved; exit 75' USR1
    : >"$FAKE_SLEEP"
    while :; do sleep 0.1; done
fi
case "$*" in *"${FAKE_FAIL:-nothing}"*) exit 7 ;; esac
"""


def write_program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def nvidia_smi(tmp_path):
    """Put a fake nvidia-smi first in PATH; returns a function that sets its GPUs."""

    def set_gpus(count, capability="8.0"):
        listing = "".join(f"echo 'GPU {i}: Fake (UUID: GPU-{i})'\n" for i in range(count))
        query = "".join(f"echo {capability}\n" for _ in range(count))
        text = f'#!/bin/sh\ncase "$1" in -L)\n:\n{listing};; *)\n:\n{query};; esac\n'
        write_program(tmp_path / "bin" / "nvidia-smi", text)

    set_gpus(0)
    return set_gpus


@pytest.fixture
def inputs(tmp_path):
    """Lists and a checkpoint in a folder with a blank in its name; returns their settings."""
    folder = tmp_path / "my data"
    for fold in range(1, 6):
        (folder / f"split0{fold}").mkdir(parents=True)
        for part in ("train", "test"):
            (folder / f"split0{fold}" / f"{part}.csv").write_text("faces/a a.wav 0\n")
    (folder / "train.csv").write_text("a.mp4 0\n")
    (folder / "checkpoint-99.pth").write_bytes(b"weights")
    return {
        "DATA_PATH": str(folder),
        "CHECKPOINT": str(folder / "checkpoint-99.pth"),
        "OUTPUT_DIR": str(tmp_path / "out put"),
    }


def environment(tmp_path, settings):
    env = {name: value for name, value in os.environ.items() if not SETTINGS.fullmatch(name)}
    env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
    return env | {"PYTHON": sys.executable} | {name: str(v) for name, v in settings.items()}


def start(script, tmp_path, *flags, shell="sh", **settings):
    """Run a script from a folder that is not the repository."""
    return subprocess.run(
        [shell, str(script), *flags],
        cwd=tmp_path,
        env=environment(tmp_path, settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def commands(result):
    """Return the argument lists of the Python scripts that a dry run printed."""
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    return [line for line in lines if any(re.search(r"run_\w+\.py$", word) for word in line)]


def flags_of(command):
    position = next(i for i, word in enumerate(command) if word.endswith(".py") and "run_" in word)
    return command[position + 1 :]


def value(command, flag):
    return command[command.index(flag) + 1]


def processes(command):
    return int(value(command, "--nproc_per_node")) if "--nproc_per_node" in command else 1


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_the_total_batch_is_the_published_one(script, inputs, nvidia_smi, tmp_path):
    nvidia_smi(8)
    published = {PRETRAIN: ("160", "40"), FINETUNE["werewolf-xl"]: ("128", "32")}
    result = start(script, tmp_path, DRY_RUN=1, **inputs)
    for command in commands(result):
        batches = value(command, "--total_batch"), value(command, "--batch_size")
        assert batches == published.get(script, ("56", "14")) and processes(command) == 8
    (command, *_) = commands(start(script, tmp_path, DRY_RUN=1, TOTAL_BATCH=8, GPUS=1, **inputs))
    assert value(command, "--total_batch") == "8" and processes(command) == 1


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_every_flag_is_known_to_the_entry_script(script, inputs, nvidia_smi, tmp_path):
    nvidia_smi(4)
    result = start(script, tmp_path, DRY_RUN=1, DATA_ROOT=tmp_path, **inputs)
    parser = entry_parser("run_pretraining" if script == PRETRAIN else "run_finetuning")
    for command in commands(result):
        parser.parse_args(flags_of(command))


def test_every_flag_of_the_demo_is_known(tmp_path):
    result = start(ROOT / "scripts/demo.sh", tmp_path, shell="bash", DRY_RUN=1)
    runs = commands(result)
    assert len(runs) == 3
    for command in runs:
        name = next(Path(word).stem for word in command if word.endswith(".py"))
        entry_parser(name).parse_args(flags_of(command))


def entry_parser(name):
    import importlib

    return importlib.import_module(name).build_parser()


PUBLISHED = {
    "pretrain": {"--epochs": "100", "--lr": "3e-4", "--min_lr": "1e-5", "--drop_path": "0"},
    "cream-d": {"--epochs": "50", "--nb_classes": "6", "--sampling_rate": "4", "--mixup": "0.8"},
    "mafw": {"--epochs": "100", "--nb_classes": "11", "--sampling_rate": "4", "--cutmix": "1.0"},
    "werewolf-xl": {"--epochs": "30", "--nb_classes": "3", "--sampling_rate": "3", "--mixup": "0"},
}
FINETUNE_FLAGS = {"--lr": "1e-3", "--min_lr": "1e-6", "--layer_decay": "0.75", "--drop_path": "0.1"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_are_the_published_ones(name, inputs, nvidia_smi, tmp_path):
    nvidia_smi(4)
    result = start(FINETUNE.get(name, PRETRAIN), tmp_path, DRY_RUN=1, **inputs)
    expected = {"--weight_decay": "0.05", "--warmup_epochs": "5", "--num_frames": "16"}
    expected |= PUBLISHED[name] | (FINETUNE_FLAGS if name in FINETUNE else {})
    for command in commands(result):
        assert {flag: value(command, flag) for flag in expected} == expected
        betas = command[command.index("--opt_betas") + 1 :][:2]
        assert betas == (["0.9", "0.999"] if name in FINETUNE else ["0.9", "0.95"])


def test_folds_have_their_own_lists_and_the_table_comes_last(inputs, nvidia_smi, tmp_path):
    nvidia_smi(4)
    result = start(FINETUNE["cream-d"], tmp_path, DRY_RUN=1, **inputs)
    lists = [value(command, "--data_path") for command in commands(result)]
    assert lists == [f"{inputs['DATA_PATH']}/split0{fold}" for fold in range(1, 6)]
    last = shlex.split(result.stdout.splitlines()[-1])
    assert last[1:] == ["-m", "hicmae.report", inputs["OUTPUT_DIR"]]


def test_extra_flags_come_last_so_that_they_win(inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    result = start(PRETRAIN, tmp_path, "--seed", "3", DRY_RUN=1, EXTRA_ARGS="--lr 1e-4", **inputs)
    assert commands(result)[0][-4:] == ["--seed", "3", "--lr", "1e-4"]
    result = start(
        FINETUNE["mafw"], tmp_path, "--seed", "3", DRY_RUN=1, EXTRA_ARGS="--lr 1e-4", **inputs
    )
    assert commands(result)[0][-4:] == ["--seed", "3", "--lr", "1e-4"]


def test_relative_settings_start_from_the_callers_folder(inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    settings = inputs | {"DATA_PATH": "my data", "OUTPUT_DIR": "there"}
    (command,) = commands(start(PRETRAIN, tmp_path, DRY_RUN=1, **settings))
    assert value(command, "--data_path") == f"{tmp_path}/my data/train.csv"
    assert value(command, "--output_dir") == f"{tmp_path}/there"


@pytest.mark.parametrize(
    ("capability", "precision"),
    [("7.0", "fp16"), ("8.0", "auto"), ("12.0", "auto")],
)
def test_precision_follows_the_gpu(capability, precision, inputs, nvidia_smi, tmp_path):
    nvidia_smi(2, capability)
    (command,) = commands(start(PRETRAIN, tmp_path, DRY_RUN=1, **inputs))
    assert value(command, "--precision") == precision
    (command,) = commands(start(PRETRAIN, tmp_path, DRY_RUN=1, PRECISION="fp32", **inputs))
    assert value(command, "--precision") == "fp32"


TWO_MACHINES = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0", "MASTER_PORT": 29400}


def launched(command):
    """Return the flags of the launcher, before those of the run."""
    first = next(i for i, word in enumerate(command) if word.endswith("scripts/launch.py"))
    last = next(i for i, word in enumerate(command) if re.search(r"run_\w+\.py$", word))
    return command[first + 1 : last]


@pytest.mark.parametrize("shell", SHELLS)
def test_two_machines_share_the_batch(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(4)
    settings = inputs | TWO_MACHINES
    (command,) = commands(start(PRETRAIN, tmp_path, shell=shell, DRY_RUN=1, **settings))
    assert launched(command) == shlex.split(
        "--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr node0 --master_port 29400 "
        "--rdzv_conf timeout=600"
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_machines_may_meet_without_numbers(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    settings = inputs | {"NNODES": 2, "RDZV_ENDPOINT": "any:29401", "JOIN_TIMEOUT": 30}
    (command,) = commands(start(PRETRAIN, tmp_path, shell=shell, DRY_RUN=1, **settings))
    assert launched(command) == shlex.split(
        "--nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint any:29401 "
        "--rdzv_id hicmae --rdzv_conf join_timeout=30,read_timeout=30"
    )


def test_machines_without_gpus_run_one_process_each(inputs, nvidia_smi, tmp_path):
    settings = inputs | TWO_MACHINES | {"DEVICE": "cpu"}
    (command,) = commands(start(PRETRAIN, tmp_path, DRY_RUN=1, **settings))
    assert value(command, "--nproc_per_node") == "1"


def test_cuda_visible_devices_limits_the_gpus(inputs, nvidia_smi, tmp_path):
    nvidia_smi(8)
    result = start(PRETRAIN, tmp_path, DRY_RUN=1, CUDA_VISIBLE_DEVICES="6,7", **inputs)
    assert processes(commands(result)[0]) == 2


def test_cpu_runs_one_process_when_asked(inputs, nvidia_smi, tmp_path):
    (command,) = commands(start(PRETRAIN, tmp_path, DRY_RUN=1, DEVICE="cpu", **inputs))
    assert command[1].endswith("run_pretraining.py")
    assert value(command, "--device") == "cpu" and value(command, "--precision") == "fp32"


REFUSED = [
    (
        {"DATA_PATH": "nowhere"},
        "no clip list at '.*nowhere.*', or an empty one; write it .* or set DATA_PATH",
    ),
    ({"GPUS": "4"}, "GPUS=4 asked, but this machine shows 2; set GPUS to 2 or less"),
    ({"GPUS": "two"}, "GPUS must be a whole number above 0, got 'two'"),
    ({"DEVICE": "tpu"}, "DEVICE must be auto, cuda or cpu, got 'tpu'"),
    ({"NNODES": "2"}, "NNODES=2, but the machines have no place to meet; set MASTER_ADDR"),
    ({"NNODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK must be this .* from 0 to 1, got ''"),
    ({"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK must .* 0 to 1, got '2'"),
    ({"NNODES": "2", "RDZV_ENDPOINT": "a"}, "RDZV_ENDPOINT must be <host>:<port>, got 'a'"),
    ({"NNODES": "two"}, "NNODES must be a whole number above 0, got 'two'"),
    (
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"},
        "SLURM started 4 tasks on 1 machine.*; use --ntasks-per-node=1",
    ),
    ({"CUDA_VISIBLE_DEVICES": ""}, "no GPU found on this machine; set DEVICE=cpu"),
    ({"PYTHON": "/no/python"}, "no Python at '/no/python'; run 'bash scripts/test.sh' once"),
]
REFUSED_FOLDS = [
    ({"CHECKPOINT": "nowhere.pth"}, "no pre-training checkpoint at '.*nowhere.pth'; run .* first"),
    ({"FOLDS": "1 x"}, "each of FOLDS must be a whole number above 0, got 'x'"),
    ({"FOLDS": "1 6"}, "no clip list at '.*split06/train.csv'"),
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("script", "settings", "match"),
    [(PRETRAIN, *case) for case in REFUSED] + [(FINETUNE["mafw"], *case) for case in REFUSED_FOLDS],
)
def test_bad_input_is_refused_in_one_line(
    script, settings, match, shell, inputs, nvidia_smi, tmp_path
):
    nvidia_smi(2)
    result = start(script, tmp_path, shell=shell, **inputs | settings)
    assert result.returncode == 2
    assert re.search("error: " + match, result.stderr.splitlines()[-1]), result.stderr
    assert result.stdout == "" and not Path(inputs["OUTPUT_DIR"]).exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_shards_stand_for_lists(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    shards = Path(inputs["DATA_PATH"], "packed")
    for folder in (shards, *(shards / "split01" / part for part in ("train", "test"))):
        folder.mkdir(parents=True)
        (folder / "clips-000000.index.json").touch()
    settings = inputs | {"DATA_PATH": shards, "DRY_RUN": 1}
    (command,) = commands(start(PRETRAIN, tmp_path, shell=shell, **settings))
    assert value(command, "--data_path") == str(shards)
    (command,) = commands(start(FINETUNE["mafw"], tmp_path, shell=shell, FOLDS=1, **settings))
    assert value(command, "--data_path") == str(shards / "split01")


def test_missing_packages_are_named_before_anything_starts(inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    python = write_program(tmp_path / "bin" / "bare", "#!/bin/sh\nexit 1\n")
    result = start(PRETRAIN, tmp_path, **inputs | {"PYTHON": python})
    assert result.returncode == 2 and "lacks the packages of requirements.txt" in result.stderr


def fake_run(inputs, tmp_path):
    return inputs | {"PYTHON": write_program(tmp_path / "bin" / "fake_python", FAKE_PYTHON)}


def test_folds_run_in_turn_and_the_table_follows(inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    result = start(FINETUNE["mafw"], tmp_path, **fake_run(inputs, tmp_path))
    assert result.returncode == 0, result.stderr
    runs = [line for line in result.stdout.splitlines() if line.startswith("args: ")]
    assert [re.search(r"split0\d", line)[0] for line in runs[:5]] == [
        f"split0{k}" for k in range(1, 6)
    ]
    assert runs[5].startswith("args: -m hicmae.report")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_failing_fold_stops_the_script_with_its_exit_status(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    settings = fake_run(inputs, tmp_path) | {"FAKE_FAIL": "split02"}
    result = start(FINETUNE["mafw"], tmp_path, shell=shell, **settings)
    assert result.returncode == 7
    assert "split02" in result.stdout and "split03" not in result.stdout


def test_finished_folds_are_skipped(inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    done = Path(inputs["OUTPUT_DIR"], "split01")
    done.mkdir(parents=True)
    (done / "metrics_best.json").write_text("{}")
    settings = fake_run(inputs, tmp_path) | {"FOLDS": "1 2"}
    result = start(FINETUNE["mafw"], tmp_path, **settings)
    assert "fold 1 is finished" in result.stderr
    assert "split01" not in result.stdout and "split02" in result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_reaches_the_run_and_its_last_lines_are_kept(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    started = tmp_path / "started"
    settings = fake_run(inputs, tmp_path) | {"FAKE_SLEEP": started}
    script = background([shell, str(PRETRAIN)], tmp_path, settings)
    wait_for(started.exists)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=20)
    assert script.returncode == 143
    assert output.endswith("saved\n")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", [PRETRAIN, FINETUNE["mafw"]], ids=["pretrain", "finetune"])
def test_a_run_asked_to_save_ends_the_script_with_its_code(
    script, shell, inputs, nvidia_smi, tmp_path
):
    nvidia_smi(1)
    started = tmp_path / "started"
    run = background(
        [shell, str(script)], tmp_path, fake_run(inputs, tmp_path) | {"FAKE_SLEEP": started}
    )
    wait_for(started.exists)
    run.send_signal(signal.SIGUSR1)
    output, errors = run.communicate(timeout=20)
    assert run.returncode == 75
    assert output.endswith("saved\n") and "the same command goes on from there" in errors


def background(command, tmp_path, settings, **options):
    return subprocess.Popen(
        command,
        env=environment(tmp_path, settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_background_run_detaches_and_keeps_its_log(shell, inputs, nvidia_smi, tmp_path):
    nvidia_smi(1)
    settings = fake_run(inputs, tmp_path) | {"BACKGROUND": 1}
    result = start(FINETUNE["mafw"], tmp_path, "--seed", "3", shell=shell, **settings)
    assert result.returncode == 0 and result.stdout == ""
    assert "started in the background as process" in result.stderr
    log = Path(inputs["OUTPUT_DIR"], "console-node0.log")
    wait_for(lambda: log.exists() and "args: -m hicmae.report" in log.read_text())
    assert "--seed 3" in log.read_text()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


DEMO_PYTHON = """#!/bin/sh
case "$1 $2" in -c* | "-m pip") exit 0 ;; "--version "*) echo Python 3.11.0; exit 0 ;; esac
echo "run: $*"
case "$*" in *"${FAKE_FAIL:-nothing}"*) exit 7 ;; esac
for word in "$@"; do
    case $before in --output_dir | --out) out=$word ;; --epochs) epochs=$word ;; esac
    before=$word
done
case "$*" in
*visualize*) : >"$out" ;;
*run_pretraining.py* | *run_finetuning.py*)
    mkdir -p "$out"
    : >"$out/metrics_best.json"
    : >"$out/checkpoint-$((epochs - 1)).pth"
    ;;
*toy_av.py*) mkdir -p "$out"; : >"$out/pretrain.csv" ;;
esac
"""


@pytest.fixture
def demo(tmp_path):
    """A copy of the scripts beside an environment whose Python only notes what it is asked."""
    folder = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    write_program(folder / ".venv" / "bin" / "python", DEMO_PYTHON)
    return folder / "scripts" / "demo.sh"


def runs_of(result):
    assert result.returncode == 0, result.stderr
    return [
        line for line in result.stdout.splitlines() if re.search(r"run_\w+\.py|toy_av\.py", line)
    ]


def test_demo_run_again_does_nothing_but_print_the_table(demo, tmp_path):
    first = start(demo, tmp_path, shell="bash")
    assert len(runs_of(first)) == 4
    second = start(demo, tmp_path, shell="bash")
    assert runs_of(second) == []
    assert "-m hicmae.report" in second.stdout
    assert "finished before" in second.stderr and "installing" not in second.stderr


def test_demo_goes_on_where_it_was_stopped(demo, tmp_path):
    stopped = start(demo, tmp_path, shell="bash", FAKE_FAIL="fold2")
    assert stopped.returncode == 7
    (again,) = runs_of(start(demo, tmp_path, shell="bash"))
    assert "fold2" in again


def test_demo_with_other_settings_repeats_only_what_depends_on_them(demo, tmp_path):
    start(demo, tmp_path, shell="bash")
    stale = demo.parents[1] / "saved/demo/folds/fold1/stale"
    stale.touch()
    text = demo.read_text()
    demo.write_text(re.sub(r"^FINETUNE_EPOCHS=.*", "FINETUNE_EPOCHS=3", text, flags=re.M))
    result = start(demo, tmp_path, shell="bash")
    assert [re.search(r"run_\w+(?=\.py)", line)[0] for line in runs_of(result)] == [
        "run_finetuning"
    ] * 2
    assert "settings have changed, starting over" in result.stderr and not stale.exists()


def test_test_script_passes_its_arguments_on(demo, tmp_path):
    result = start(demo.with_name("test.sh"), tmp_path, "-k", "a b", shell="bash")
    assert result.stdout.splitlines() == ["run: -m pytest -q -n 2 -k a b"]


def test_unsupported_python_is_refused(demo, tmp_path):
    shutil.rmtree(demo.parents[1] / ".venv")
    old = write_program(tmp_path / "bin" / "old_python", "#!/bin/sh\nexit 1\n")
    result = start(demo, tmp_path, shell="bash", PYTHON=old)
    assert result.returncode == 1
    assert re.search("error: no Python 3.10, 3.11 or 3.12 found", result.stderr)


# What the fakes of SLURM's programs do: srun runs its command once for each machine of the job, or
# waits for a signal and ends with a code; scontrol names machines and notes who is queued again.
FAKE_SRUN = """#!/bin/sh
echo "srun $*" >>"$FAKE_LOG"
if [ -n "${FAKE_SLEEP:-}" ]; then
    trap 'echo "srun got USR1" >>"$FAKE_LOG"; exit "$FAKE_CODE"' USR1
    : >"$FAKE_SLEEP"
    while :; do sleep 0.1; done
fi
while case $1 in --*) ;; *) false ;; esac; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES="$SLURM_JOB_NUM_NODES"
export SLURM_STEP_NUM_TASKS="$SLURM_JOB_NUM_NODES" SLURM_STEP_NODELIST="node[7-8]" SLURM_NODEID=0
while [ "$SLURM_NODEID" -lt "$SLURM_JOB_NUM_NODES" ]; do
    "$@" || exit
    SLURM_NODEID=$((SLURM_NODEID + 1))
done
"""
FAKE_SCONTROL = """#!/bin/sh
case "$1 $2 $3" in
"show hostnames node[7-8]") echo node7; echo node8 ;;
*) echo "scontrol $*" >>"$FAKE_LOG" ;;
esac
"""


@pytest.fixture
def slurm(inputs, nvidia_smi, tmp_path):
    """The settings of a job of two machines with 4 GPUs and 12 cores."""
    nvidia_smi(4)
    write_program(tmp_path / "bin" / "srun", FAKE_SRUN)
    write_program(tmp_path / "bin" / "scontrol", FAKE_SCONTROL)
    (tmp_path / "log").touch()
    return inputs | {
        "SLURM_JOB_ID": 1234567,
        "SLURM_JOB_NUM_NODES": 2,
        "SLURM_CPUS_PER_TASK": 12,
        "FAKE_LOG": tmp_path / "log",
    }


def submit(name, tmp_path, settings, *flags, shell="sh", cwd=ROOT):
    """Run a batch script as SLURM does: a copy of it, from the folder it was submitted in."""
    script = shutil.copy(SLURM / name, tmp_path / "slurm_script")
    return background([shell, str(script), *flags], tmp_path, settings, cwd=cwd)


def submitted(*arguments, **options):
    job = submit(*arguments, **options)
    output, errors = job.communicate(timeout=60)
    return subprocess.CompletedProcess([], job.returncode, output, errors)


@pytest.mark.parametrize("shell", SHELLS)
def test_slurm_job_starts_every_machine_with_its_number(shell, slurm, tmp_path):
    settings = slurm | {"DRY_RUN": 1}
    result = submitted("pretrain.sbatch", tmp_path, settings, "--seed", "3", shell=shell)
    first, second = commands(result)
    for rank, command in enumerate((first, second)):
        assert launched(command) == shlex.split(
            f"--nnodes 2 --node_rank {rank} --nproc_per_node 4 --master_addr node7 "
            "--master_port 24567 --rdzv_conf timeout=600"
        )
        assert value(command, "--num_workers") == "3", "12 cores for 4 GPUs"
        assert command[-2:] == ["--seed", "3"]
    assert "--ntasks-per-node=1 --cpus-per-task=12" in slurm["FAKE_LOG"].read_text()


def test_slurm_job_on_one_machine_needs_no_rendezvous_address(slurm, tmp_path):
    settings = slurm | {"DRY_RUN": 1, "SLURM_JOB_NUM_NODES": 1}
    (command,) = commands(submitted("pretrain.sbatch", tmp_path, settings))
    assert launched(command) == ["--standalone", "--nproc_per_node", "4"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("code", "restarts", "ended", "queued"),
    [(75, 0, 0, True), (1, 0, 1, False), (75, 9, 75, False)],
)
def test_a_job_warned_of_its_end_is_queued_again_if_the_run_has_saved(
    code, restarts, ended, queued, shell, slurm, tmp_path
):
    started = tmp_path / "started"
    settings = slurm | {"FAKE_SLEEP": started, "FAKE_CODE": code, "MAX_REQUEUES": 9}
    settings["SLURM_RESTART_COUNT"] = restarts
    job = submit("pretrain.sbatch", tmp_path, settings, shell=shell)
    wait_for(started.exists)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=20)
    log = slurm["FAKE_LOG"].read_text()
    assert job.returncode == ended
    assert "srun got USR1" in log
    assert ("scontrol requeue 1234567" in log) is queued
    assert ("MAX_REQUEUES allows 9" in errors) is (restarts == 9)


def test_a_run_that_stops_unasked_is_not_queued_again(slurm, tmp_path):
    """Cancelling a job lets the run save and end with 75 as well."""
    python = write_program(tmp_path / "bin" / "stopped", "#!/bin/sh\n[ $1 = -c ] || exit 75\n")
    result = submitted("pretrain.sbatch", tmp_path, slurm | {"PYTHON": python})
    assert result.returncode == 75
    assert "scontrol requeue" not in slurm["FAKE_LOG"].read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_array_trains_a_fold_a_task(shell, slurm, tmp_path):
    settings = slurm | {"DRY_RUN": 1, "SLURM_JOB_NUM_NODES": 1, "SLURM_ARRAY_TASK_ID": 4}
    result = submitted("finetune.sbatch", tmp_path, settings, "mafw", shell=shell)
    (command,) = commands(result)
    assert value(command, "--data_path").endswith("/split04")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_array_prepares_a_part_a_task(shell, slurm, tmp_path):
    array = {"TASK_ID": 3, "TASK_MIN": 1, "TASK_MAX": 8, "TASK_COUNT": 8}
    settings = slurm | {f"SLURM_ARRAY_{name}": number for name, number in array.items()}
    tool = ["preprocess/voxceleb2.py", "--data_root", "a b", "--check"]
    result = submitted("prepare.sbatch", tmp_path, settings | {"DRY_RUN": 1}, *tool, shell=shell)
    assert result.returncode == 0, result.stderr
    command = shlex.split(result.stdout.splitlines()[-1])
    assert command[1:] == [str(ROOT / tool[0]), "--num_workers", "12", "--shard", "3/8", *tool[1:]]


@pytest.mark.parametrize("shell", SHELLS)
def test_preparation_that_runs_out_of_time_is_queued_again(shell, slurm, tmp_path):
    started = tmp_path / "started"
    fake = FAKE_PYTHON.replace("echo saved; exit 0", "exit 3")
    python = write_program(tmp_path / "bin" / "fake_python", fake)
    settings = slurm | {"SLURM_ARRAY_TASK_ID": 1, "SHARDS": 2, "PYTHON": python}
    job = submit(
        "prepare.sbatch",
        tmp_path,
        settings | {"FAKE_SLEEP": started},
        "preprocess/voxceleb2.py",
        shell=shell,
    )
    wait_for(started.exists)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=20)
    assert job.returncode == 0
    assert "scontrol requeue 1234567" in slurm["FAKE_LOG"].read_text()


ARRAY_OF_TWO = {"SLURM_ARRAY_TASK_ID": 7, "SLURM_ARRAY_TASK_MIN": 7, "SLURM_ARRAY_TASK_MAX": 9,
                "SLURM_ARRAY_TASK_COUNT": 2}  # fmt: skip
REFUSED_JOBS = [
    ("finetune.sbatch", {}, ["mafw"], "this is a job array, a task for each fold; submit it"),
    ("finetune.sbatch", {"SLURM_ARRAY_TASK_ID": 1}, ["dfew"], "name a data set, one of .*'dfew'"),
    ("prepare.sbatch", {}, ["preprocess/voxceleb2.py"], "this is a job array, a task for each"),
    ("prepare.sbatch", {"SLURM_ARRAY_TASK_ID": 1}, ["no.py"], "name a tool, such as .*'no.py'"),
    ("prepare.sbatch", ARRAY_OF_TWO, ["preprocess/voxceleb2.py"], "array is not 1-n.*set SHARDS"),
    (
        "prepare.sbatch",
        ARRAY_OF_TWO | {"SHARDS": 4},
        ["preprocess/voxceleb2.py"],
        "task 7 is not one of 1 to SHARDS=4; change the array",
    ),
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("name", "settings", "flags", "match"), REFUSED_JOBS)
def test_bad_jobs_are_refused_in_one_line(name, settings, flags, match, shell, slurm, tmp_path):
    result = submitted(name, tmp_path, slurm | settings, *flags, shell=shell)
    assert result.returncode == 2
    assert re.fullmatch(f"error: .*{match}.*\n", result.stderr)


@pytest.mark.parametrize("name", ["pretrain.sbatch", "finetune.sbatch", "prepare.sbatch"])
def test_jobs_submitted_elsewhere_are_refused(name, slurm, tmp_path):
    result = submitted(name, tmp_path, slurm, cwd=tmp_path)
    assert result.returncode == 2
    assert "is not the repository; submit from its top folder" in result.stderr


def shell_files():
    files = [path for kind in ("*.sh", "*.sbatch") for path in (ROOT / "scripts").rglob(kind)]
    return [*map(str, sorted(files)), str(ROOT / ".ci/run")]


def test_shellcheck_finds_nothing():
    beside_python = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        [shellcheck, "-x", *shell_files()], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "script", [*EXPERIMENTS, *SLURM.glob("*.sbatch")], ids=lambda path: path.parent.name + path.stem
)
def test_experiment_scripts_are_posix(script):
    assert script.read_text().startswith("#!/bin/sh\n")
