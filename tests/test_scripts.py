"""The shell scripts: what they would run, what they refuse, and that they run it as promised."""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_runs import ROOT, until

FAMILY = ROOT / "scripts/voxceleb2/audio_visual/hicmae_pretrain_base"
PRETRAIN, MAFW = FAMILY / "pretrain_base.sh", FAMILY / "mafw/finetune_170.sh"
CREMAD = FAMILY / "cream-d/finetune_170.sh"
EXPERIMENTS = [PRETRAIN, *sorted(FAMILY.glob("*/finetune_170.sh"))]
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
every_shell = pytest.mark.parametrize("shell", SHELLS)

# Says what it is asked to run; waits for a signal with FAKE_SLEEP, fails on FAKE_FAIL.
FAKE_PYTHON = """#!/bin/sh
echo "args: $*"
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
def inputs(tmp_path):
    """Lists and a checkpoint in a folder with a blank in its name; returns their settings."""
    folder = tmp_path / "my data"
    for part in [f"split0{fold}/{name}" for fold in range(1, 6) for name in ("train", "test")]:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.csv").write_text("faces/a a.wav 0\n")
    (folder / "train.csv").write_text("a.mp4 0\n")
    (folder / "checkpoint-99.pth").write_bytes(b"weights")
    checkpoint, out = folder / "checkpoint-99.pth", tmp_path / "out put"
    return {"DATA_PATH": str(folder), "CHECKPOINT": str(checkpoint), "OUTPUT_DIR": str(out)}


@pytest.fixture
def fake(inputs, tmp_path):
    """The same settings, with a Python that trains nothing."""
    return inputs | {"PYTHON": write_program(tmp_path / "bin" / "fake_python", FAKE_PYTHON)}


def background(command, tmp_path, settings, cwd=None):
    """Start a script from a folder that is not the repository."""
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}
    env |= {name: str(value) for name, value in settings.items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], env=env, cwd=cwd or tmp_path, **pipes)


def ended(process, seconds=60):
    output, errors = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


def start(script, tmp_path, *flags, shell="sh", **settings):
    return ended(background([shell, script, *flags], tmp_path, settings))


def commands(result):
    """Return launcher flags, script and its flags of the runs that a dry run printed."""
    assert result.returncode == 0, result.stderr
    found = []
    for words in map(shlex.split, result.stdout.splitlines()):
        at = [k for k, word in enumerate(words) if re.search(r"run_\w+\.py$", word)]
        if at:
            first = 2 if words[1].endswith("launch.py") else 1
            found.append((words[first : at[0]], Path(words[at[0]]).stem, words[at[0] + 1 :]))
    return found


def value(flags, name):
    return flags[flags.index(name) + 1]


def check_flags(script, flags):
    """An entry script must know each of the flags."""
    importlib.import_module(script).build_parser().parse_args(flags)


PUBLISHED = {
    "hicmae_pretrain_base": "--total_batch 160 --batch_size 40 --epochs 100 --lr 3e-4 "
    "--min_lr 1e-5 --drop_path 0 --opt_betas 0.9 0.95 --sampling_rate 4 --mask_ratio 0.9",
    "cream-d": "--total_batch 56 --batch_size 14 --epochs 50 --nb_classes 6 --sampling_rate 4 "
    "--mixup 0.8",
    "mafw": "--total_batch 56 --batch_size 14 --epochs 100 --nb_classes 11 --sampling_rate 4 "
    "--cutmix 1.0",
    "werewolf-xl": "--total_batch 128 --batch_size 32 --epochs 30 --nb_classes 3 --sampling_rate 3 "
    "--mixup 0",
}
BOTH = "--weight_decay 0.05 --warmup_epochs 5 --num_frames 16 --device cuda --precision auto"
TUNED = "--lr 1e-3 --min_lr 1e-6 --layer_decay 0.75 --drop_path 0.1 --opt_betas 0.9 0.999"


@every_shell
@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_experiments_run_with_what_was_published(script, shell, inputs, tmp_path):
    settings = inputs | {"DRY_RUN": 1, "DATA_ROOT": "root", "EXTRA_ARGS": "--lr 1e-4"}
    result = start(script, tmp_path, "--seed", "3", shell=shell, **settings)
    entry = "run_pretraining" if script == PRETRAIN else "run_finetuning"
    folds = [""] if script == PRETRAIN else [f"/split0{fold}" for fold in range(1, 6)]
    lists = "/train.csv" if script == PRETRAIN else ""
    published = f" {PUBLISHED[script.parent.name]} {BOTH} {'' if script == PRETRAIN else TUNED}"
    for fold, (launcher, name, flags) in zip(folds, commands(result), strict=True):
        assert launcher == ["--standalone", "--nproc_per_node", "gpu"] and name == entry
        assert value(flags, "--data_path") == inputs["DATA_PATH"] + fold + lists
        assert value(flags, "--output_dir") == inputs["OUTPUT_DIR"] + fold
        assert value(flags, "--data_root") == f"{tmp_path}/root"
        assert flags[-4:] == ["--seed", "3", "--lr", "1e-4"], "the last flags win"
        for words in published.split(" --")[1:]:
            flag, *values = words.split()
            at = flags.index(f"--{flag}") + 1
            assert flags[at : at + len(values)] == values
        check_flags(entry, flags)
    page = start(script, tmp_path, "--help", shell=shell)
    assert page.returncode == 0 and "shellcheck" not in page.stdout
    assert {"Needs", "Writes", "Start", str(script.relative_to(ROOT))} <= {*page.stdout.split()}
    if script != PRETRAIN:
        last = shlex.split(result.stdout.splitlines()[-1])
        assert last[1:] == ["-m", "hicmae.report", inputs["OUTPUT_DIR"]]


@every_shell
def test_variables_change_a_run(shell, inputs, tmp_path):
    settings = inputs | {"DATA_PATH": "my data", "OUTPUT_DIR": "there", "GPUS": 2, "EPOCHS": 7}
    more = {"PRECISION": "fp32", "NUM_WORKERS": 5, "TOTAL_BATCH": 8, "DRY_RUN": 1}
    ((launcher, _, flags),) = commands(start(PRETRAIN, tmp_path, shell=shell, **settings, **more))
    assert launcher == ["--standalone", "--nproc_per_node", "2"]
    expected = {"data_path": f"{tmp_path}/my data/train.csv", "output_dir": f"{tmp_path}/there",
                "precision": "fp32", "num_workers": "5", "epochs": "7"}  # fmt: skip
    assert {name: value(flags, f"--{name}") for name in expected} == expected
    more |= {"DEVICE": "cpu", "FOLDS": "2 4"}
    two = commands(start(MAFW, tmp_path, shell=shell, **settings | more))
    assert [(value(flags, "--device"), launcher) for launcher, _, flags in two] == [("cpu", [])] * 2

    shards = Path(inputs["DATA_PATH"], "packed")
    for folder in (shards, *(shards / "split01" / part for part in ("train", "test"))):
        folder.mkdir(parents=True)
        (folder / "clips-000000.index.json").touch()
    settings = inputs | {"DATA_PATH": shards, "DRY_RUN": 1, "FOLDS": 1}  # they stand for lists
    for script, path in ((PRETRAIN, shards), (MAFW, shards / "split01")):
        ((_, _, flags),) = commands(start(script, tmp_path, shell=shell, **settings))
        assert value(flags, "--data_path") == str(path)


REFUSED = [
    (PRETRAIN, {"DATA_PATH": "nowhere"}, "no clip list at '.*nowhere.*'.* set DATA_PATH"),
    (PRETRAIN, {"PYTHON": "/no/python"}, "no Python at '/no/python'; run 'bash scripts/test.sh'"),
    (PRETRAIN, {"GPUS": "two"}, "GPUS must be a whole number above 0, got 'two'"),
    (MAFW, {"CHECKPOINT": "nowhere.pth"}, "no .*checkpoint at '.*nowhere.pth'; run .* first"),
    (MAFW, {"FOLDS": "1 6"}, "no clip list at '.*split06/train.csv'"),
]


@every_shell
@pytest.mark.parametrize(("script", "settings", "match"), REFUSED)
def test_bad_input_is_refused_in_one_line(script, settings, match, shell, inputs, tmp_path):
    result = start(script, tmp_path, shell=shell, **inputs | settings)
    assert result.returncode == 2
    assert re.search("error: " + match, result.stderr.splitlines()[-1]), result.stderr
    assert result.stdout == "" and not Path(inputs["OUTPUT_DIR"]).exists()


@every_shell
def test_folds_run_in_turn_and_the_table_follows(shell, fake, tmp_path):
    """A finished fold is skipped; a failed one ends the script with its exit code."""
    stopped = start(MAFW, tmp_path, shell=shell, FAKE_FAIL="split02", **fake)
    assert stopped.returncode == 7
    assert "split02" in stopped.stdout and "split03" not in stopped.stdout
    done = Path(fake["OUTPUT_DIR"], "split01/metrics_best.json")
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    result = start(MAFW, tmp_path, shell=shell, **fake)
    assert result.returncode == 0 and "fold 1 is finished" in result.stderr
    *runs, table = result.stdout.splitlines()
    assert [re.search(r"(?<=/split0)\d", line)[0] for line in runs] == [*"2345"]
    assert table == f"args: -m hicmae.report {fake['OUTPUT_DIR']}"


@every_shell
@pytest.mark.parametrize("script", [PRETRAIN, MAFW], ids=["pretrain", "finetune"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_reaches_the_run_which_may_save(script, number, code, shell, fake, tmp_path):
    started = tmp_path / "started"
    run = background([shell, script], tmp_path, fake | {"FAKE_SLEEP": started})
    until(started.exists)
    run.send_signal(number)
    result = ended(run, 20)
    assert result.returncode == code and result.stdout.endswith("saved\n")
    assert ("the same command goes on from there" in result.stderr) is (code == 75)


VENV_PYTHON = f"""#!/bin/sh
case "$1 $2" in
"-m pip") ;;
"-m pytest") echo "run: $*" ;;
*) exec '{sys.executable}' "$@" ;;
esac
"""
# Stands for whatever the demo starts: says so, fails on FAKE_FAIL, and leaves what a run does.
STAND_IN = """
import json, os, pathlib, sys
print("run:", *sys.argv, flush=True)
out = pathlib.Path(sys.argv[-1])
if os.environ.get("FAKE_FAIL", "nothing") in out.name:
    sys.exit(7)
if "--output_dir" in sys.argv:
    last = int(sys.argv[sys.argv.index("--epochs") + 1]) - 1 if "--epochs" in sys.argv else 0
    for name in ("meta.csv", f"checkpoint-{last}.pth", "metrics_best.json"):
        (out / name).touch()
if "--json" in sys.argv:
    score = {"uar": 0.5}
    runs = [{"title": t, "total": {"last": score}, "intervals": {"last": {"uar": [0.4, 0.6]}}}
            for t in ("random", "own", "shipped")]
    out.write_text(json.dumps({"runs": runs}))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the scripts beside an environment, with stand-ins for all that they start."""
    folder = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    write_program(folder / ".venv" / "bin" / "python", VENV_PYTHON)
    for name in ("preprocess/toy_av", "run_pretraining", "run_finetuning", "hicmae/__init__",
                 "hicmae/visualize", "hicmae/report", "hicmae/inference"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text("" if "__" in name else STAND_IN)
    return folder / "scripts"


def runs_of(result):
    """Return the runs that were started, as folder/name."""
    assert result.returncode == 0, result.stderr
    return re.findall(r"== (\S+): (?:starting|going on|the settings)", result.stderr)


def test_demo_goes_on_where_it_stopped_and_repeats_what_depends_on_other_settings(copy, tmp_path):
    script = copy / "demo.sh"
    shown = commands(start(script, tmp_path, shell="bash", DRY_RUN=1))
    assert len(shown) == 1 + 2 * 3
    for _, entry, flags in shown:
        check_flags(entry, flags)
    stopped = start(script, tmp_path, shell="bash", FAKE_FAIL="fold2")
    assert stopped.returncode == 7
    assert re.search("stopped with code 7; see '.*random/fold2/console.log'", stopped.stderr)
    again = start(script, tmp_path, shell="bash")
    assert runs_of(again) == ["random/fold2", "own/fold2", "shipped/fold2"]
    over = start(script, tmp_path, shell="bash")
    assert runs_of(over) == [] and "installing" not in over.stderr
    assert re.search(r"random weights +50.00  40.00 to 60.00", over.stdout)

    stale, text = copy.parent / "saved/demo/own/fold1/stale", (copy / "demo.py").read_text()
    stale.touch()
    text = re.sub(r"--layer_decay \S+", "--layer_decay 0.5", text)
    (copy / "demo.py").write_text(text)
    tuned = start(script, tmp_path, shell="bash", FOLDS=1)
    assert runs_of(tuned) == ["random/fold1", "own/fold1", "shipped/fold1"] and not stale.exists()
    assert "settings have changed, starting over" in tuned.stderr
    (copy / "demo.py").write_text(re.sub(r"--mask_ratio \S+", "--mask_ratio 0.5", text))
    first = start(script, tmp_path, shell="bash", FOLDS=1)
    assert runs_of(first) == ["demo/pretrain", "own/fold1"], "own starts from it"


@every_shell
def test_lists_in_the_former_folder_of_cremad_are_taken_with_a_note(shell, copy, inputs, tmp_path):
    script = copy / CREMAD.relative_to(ROOT / "scripts")
    settings = {"CHECKPOINT": inputs["CHECKPOINT"], "DRY_RUN": 1, "FOLDS": 1}
    for name in ("cream-d", "crema-d"):
        folder = copy.parent / "saved/data" / name / "audio_visual"
        shutil.copytree(inputs["DATA_PATH"], folder)
        result = start(script, tmp_path, shell=shell, **settings)
        ((_, _, flags),) = commands(result)
        assert value(flags, "--data_path") == f"{folder}/split01"
        assert "saved/model/finetuning/crema-d/audio_visual/" in value(flags, "--output_dir")
        assert ("cream-d" in result.stderr) is (name == "cream-d")


def test_test_script_passes_its_arguments_on(copy, tmp_path):
    result = start(copy / "test.sh", tmp_path, "-k", "a b", shell="bash")
    assert result.stdout.splitlines() == ["run: -m pytest -q -n 3 --dist worksteal -k a b"]


def test_unsupported_python_and_folders_that_cannot_be_written_end_in_one_line(copy, tmp_path):
    (copy.parent / "saved").touch()
    result = start(copy / "demo.sh", tmp_path, shell="bash")
    assert result.returncode == 1
    assert re.search("^error: '.*/saved.*': Not a directory$", result.stderr.splitlines()[-1])
    shutil.rmtree(copy.parent / ".venv")
    old = write_program(tmp_path / "bin" / "old_python", "#!/bin/sh\nexit 1\n")
    result = start(copy / "demo.sh", tmp_path, shell="bash", PYTHON=old)
    assert result.returncode == 1 and "error: no Python 3.10 to 3.13 found" in result.stderr


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
def slurm(inputs, tmp_path):
    """The settings of a job of two machines with 12 cores."""
    write_program(tmp_path / "bin" / "srun", FAKE_SRUN)
    write_program(tmp_path / "bin" / "scontrol", FAKE_SCONTROL)
    (tmp_path / "log").touch()
    job = {"JOB_ID": 1234567, "JOB_NUM_NODES": 2, "CPUS_PER_TASK": 12}
    job = {f"SLURM_{name}": number for name, number in job.items()}
    return inputs | job | {"FAKE_LOG": tmp_path / "log"}


def submit(tmp_path, settings, *flags, shell="sh", cwd=ROOT):
    """Run the batch script as SLURM does: a copy of it, from the folder it was submitted in."""
    script = shutil.copy(ROOT / "scripts/slurm/run.sbatch", tmp_path / "slurm_script")
    return background([shell, script, *flags], tmp_path, settings, cwd)


@every_shell
def test_slurm_job_starts_every_machine_with_its_number(shell, slurm, tmp_path):
    settings = slurm | {"DRY_RUN": 1}
    result = ended(submit(tmp_path, settings, PRETRAIN, "--seed", "3", shell=shell))
    for rank, (launcher, _, flags) in enumerate(commands(result)):
        meet = f"--node_rank {rank} --master_addr node7 --master_port 24567 --rdzv_conf timeout=600"
        assert launcher == ["--nnodes", "2", "--nproc_per_node", "gpu", *meet.split()]
        assert flags[-2:] == ["--seed", "3"]
    assert rank == 1
    assert "--ntasks-per-node=1 --cpus-per-task=12" in slurm["FAKE_LOG"].read_text()
    one = settings | {"SLURM_JOB_NUM_NODES": 1, "SLURM_ARRAY_TASK_ID": 4}
    ((launcher, _, flags),) = commands(ended(submit(tmp_path, one, MAFW, shell=shell)))
    assert launcher[0] == "--standalone", "it needs no address"
    assert value(flags, "--data_path").endswith("/split04"), "each task has its fold"


@every_shell
@pytest.mark.parametrize(
    ("code", "restarts", "exits", "queued"),
    [(75, 0, 0, True), (1, 0, 1, False), (75, 9, 75, False)],
)
def test_a_job_warned_of_its_end_is_queued_again_if_the_run_has_saved(
    code, restarts, exits, queued, shell, slurm, tmp_path
):
    started = tmp_path / "started"
    settings = slurm | {"FAKE_SLEEP": started, "FAKE_CODE": code, "MAX_REQUEUES": 9}
    settings["SLURM_RESTART_COUNT"] = restarts
    job = submit(tmp_path, settings, PRETRAIN, shell=shell)
    until(started.exists)
    job.send_signal(signal.SIGUSR1)
    result, log = ended(job, 20), slurm["FAKE_LOG"].read_text()
    assert result.returncode == exits and "srun got USR1" in log
    assert ("scontrol requeue 1234567" in log) is queued
    assert ("MAX_REQUEUES allows 9" in result.stderr) is (restarts == 9)


def test_a_run_that_stops_unasked_is_not_queued_again(slurm, tmp_path):
    """Cancelling a job lets the run save and end with 75 as well."""
    python = write_program(tmp_path / "bin" / "stopped", "#!/bin/sh\nexit 75\n")
    assert ended(submit(tmp_path, slurm | {"PYTHON": python}, PRETRAIN)).returncode == 75
    assert "scontrol requeue" not in slurm["FAKE_LOG"].read_text()


@every_shell
def test_bad_jobs_are_refused_in_one_line(shell, slurm, tmp_path):
    result = ended(submit(tmp_path, slurm, "dfew", shell=shell))
    assert result.returncode == 2
    assert re.fullmatch("error: name an experiment script, .*'dfew'\n", result.stderr)
    elsewhere = ended(submit(tmp_path, slurm, PRETRAIN, shell=shell, cwd=tmp_path))
    assert elsewhere.returncode == 2
    assert "is not the repository; submit from its top folder" in elsewhere.stderr


def test_shellcheck_finds_nothing_and_experiments_are_posix():
    beside_python = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    files = [*ROOT.glob("scripts/**/*.sh"), ROOT / "scripts/slurm/run.sbatch", ROOT / ".ci/run"]
    assert all(script.read_text().startswith("#!/bin/sh\n") for script in EXPERIMENTS)
    command = [shellcheck, "-x", *map(str, files)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
