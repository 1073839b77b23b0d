# shellcheck shell=sh
# What the experiment scripts share. POSIX sh only: they are started as `sh scripts/...`, which is
# dash on Debian and Ubuntu, bash elsewhere. Source it from a script below scripts/ that has set
# SCRIPT_DIR; functions read the settings of the caller in capitals.
#
# Settings that every experiment script takes from the environment:
#   GPUS         number of GPUs to use on each machine (default: all it shows; NPROC means the same)
#   DEVICE=cpu   run one process on the CPU of each machine
#   BATCH_SIZE   most clips on one GPU in one pass; the total batch stays as published
#   TOTAL_BATCH  clips in one optimisation step over all GPUs
#   EPOCHS       passes over the training list
#   PRECISION    fp32, fp16, bf16 or auto (default: bf16 where the GPU has it, else fp16; CPU: fp32)
#   DATA_PATH, DATA_ROOT, CHECKPOINT, OUTPUT_DIR   other places than the defaults
#   NUM_WORKERS  loader processes for each GPU (default: 16, under SLURM at most its share of the cores)
#   EXTRA_ARGS   more flags for the Python script, as are arguments after the script's name
# Several machines with equally many GPUs and one file system, each starting the same command:
#   NNODES       number of machines
#   NODE_RANK    number of this one, from 0; machine 0 prints and keeps the results
#   MASTER_ADDR, MASTER_PORT   name or IP of machine 0, and a port that is free there (default: 29500)
#   RDZV_ENDPOINT, RDZV_ID     instead: <host>:<port> of any of them, and a name of the run; torchrun
#                numbers the machines itself
#   JOIN_TIMEOUT seconds after which a machine gives up waiting for the others (default: 600)
# In a step of a SLURM job with one task a machine (srun --ntasks-per-node 1) all of these come from SLURM.
# Further:
#   BACKGROUND=1 detach after the checks; DRY_RUN=1 print the commands and start nothing
#   PYTHON       interpreter (default: the active environment, else .venv of the repository)

# Notes go to the error stream, so that the output of DRY_RUN=1 is a shell script.
say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Print the arguments as one line that a shell reads back unchanged.
quoted() {
    line=
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,@%+-]*)
            word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
            ;;
        esac
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# Paths in settings are relative to the folder the script was started from.
absolute() {
    case $1 in
    '' | /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$CALLER_DIR" "$1" ;;
    esac
}

need_number() { # need_number NAME VALUE: refuse what is not a whole number above 0
    case $2 in
    '' | *[!0-9]* | 0*) die "$1 must be a whole number above 0, got '$2'" ;;
    esac
}

find_root() {
    CALLER_DIR=$(pwd)
    ROOT=$SCRIPT_DIR
    while [ ! -f "$ROOT/run_pretraining.py" ] && [ ! -f "$ROOT/pyproject.toml" ]; do
        [ "$ROOT" != / ] || die "no run_pretraining.py above '$SCRIPT_DIR'; keep scripts/ inside the repository"
        ROOT=$(dirname -- "$ROOT")
    done
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        case $PYTHON in */*) PYTHON=$(absolute "$PYTHON") ;; esac
    elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        PYTHON=python
    elif [ -x "$ROOT/.venv/bin/python" ]; then
        PYTHON=$ROOT/.venv/bin/python
    else
        PYTHON=python3
    fi
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "no Python at '$PYTHON'; run 'bash scripts/test.sh' once to make .venv, or set PYTHON"
    [ "${DRY_RUN:-0}" = 1 ] || "$PYTHON" -c '
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in ("torch", "timm", "tensorboardX")))
' || die "'$PYTHON' lacks the packages of requirements.txt; run '$PYTHON -m pip install -r $ROOT/requirements.txt', or set PYTHON"
}

# GPUs that CUDA would show on this machine: the smaller of what nvidia-smi and CUDA_VISIBLE_DEVICES say.
count_gpus() {
    found=0
    if command -v nvidia-smi >/dev/null 2>&1; then
        found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || found=0
    elif [ "${DRY_RUN:-0}" != 1 ]; then # some containers have the driver but not the tool
        found=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || found=0
    fi
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        visible=$(printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '[0-9A-Za-z]') || visible=0
        case $CUDA_VISIBLE_DEVICES in -1*) visible=0 ;; esac
        [ "$visible" -ge "$found" ] || found=$visible
    fi
    printf '%s\n' "$found"
}

# Where srun has started this script, SLURM knows the machines.
ask_slurm() {
    [ -n "${SLURM_STEP_ID:-}" ] && [ -z "${NNODES:-}" ] || return 0
    [ "${SLURM_STEP_NUM_TASKS:-1}" = "${SLURM_STEP_NUM_NODES:-1}" ] ||
        die "SLURM started ${SLURM_STEP_NUM_TASKS} tasks on ${SLURM_STEP_NUM_NODES} machine(s); use --ntasks-per-node=1, each starts a process for every GPU"
    NNODES=${SLURM_STEP_NUM_NODES:-1}
    [ "$NNODES" != 1 ] || return 0
    NODE_RANK=${SLURM_NODEID:-}
    if [ -z "${MASTER_ADDR:-}" ]; then
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
        [ -n "$MASTER_ADDR" ] ||
            die "'scontrol show hostnames $SLURM_STEP_NODELIST' names no machine; set NNODES, NODE_RANK and MASTER_ADDR"
    fi
    # Jobs that share a machine get different ports.
    MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
}

# Several machines have to know each other before any of them waits for the rest.
check_machines() {
    NNODES=${NNODES:-1} JOIN_TIMEOUT=${JOIN_TIMEOUT:-600}
    need_number NNODES "$NNODES"
    need_number JOIN_TIMEOUT "$JOIN_TIMEOUT"
    [ "$NNODES" != 1 ] || return 0
    if [ -n "${RDZV_ENDPOINT:-}" ]; then
        case $RDZV_ENDPOINT in
        ?*:[0-9]*) return 0 ;;
        *) die "RDZV_ENDPOINT must be <host>:<port>, got '$RDZV_ENDPOINT'" ;;
        esac
    fi
    [ -n "${MASTER_ADDR:-}" ] ||
        die "NNODES=$NNODES, but the machines have no place to meet; set MASTER_ADDR to the name or IP of machine 0 on all of them"
    need_number MASTER_PORT "${MASTER_PORT:-29500}"
    case ${NODE_RANK:-} in
    '' | *[!0-9]*) die "NODE_RANK must be this machine's number from 0 to $((NNODES - 1)), got '${NODE_RANK:-}'" ;;
    esac
    [ "$NODE_RANK" -lt "$NNODES" ] ||
        die "NODE_RANK must be this machine's number from 0 to $((NNODES - 1)), got '$NODE_RANK'"
}

# Sets GPUS (0 on the CPU), PROCESSES on each machine and WORLD, the number of processes on all machines.
choose_devices() {
    ask_slurm
    check_machines
    case ${DEVICE:-auto} in
    cpu)
        GPUS=0 GPUS_ASKED=1 PROCESSES=1 WORLD=$NNODES
        return
        ;;
    auto | cuda) DEVICE=cuda ;;
    *) die "DEVICE must be auto, cuda or cpu, got '$DEVICE'" ;;
    esac
    available=$(count_gpus)
    GPUS=${GPUS:-${NPROC:-}}
    GPUS_ASKED=1
    if [ -z "$GPUS" ]; then
        GPUS_ASKED=0
        [ "$available" -gt 0 ] ||
            die "no GPU found on this machine; set DEVICE=cpu to run (slowly) without, or start it where nvidia-smi lists one"
        GPUS=$available
    fi
    need_number GPUS "$GPUS"
    # A dry run on a login node, which has no GPU, may show the command of another machine.
    if [ "$GPUS" -gt "$available" ] && ! { [ "${DRY_RUN:-0}" = 1 ] && [ "$available" = 0 ]; }; then
        die "GPUS=$GPUS asked, but this machine shows $available; set GPUS to $available or less (DEVICE=cpu for none), the total batch is kept"
    fi
    PROCESSES=$GPUS
    WORLD=$((GPUS * NNODES))
}

# fits TOTAL PROCESSES: can so many processes share TOTAL clips equally, in passes of up to LARGEST clips?
# Sets BATCH_SIZE (the largest such pass) and ACCUM (passes in a step).
# A share such as 53 has no divisor between 1 and 53: too few clips in a pass to contrast or to be fast.
fits() {
    [ $(($1 % $2)) -eq 0 ] && [ "$1" -gt 0 ] || return 1
    share=$(($1 / $2))
    BATCH_SIZE=$LARGEST
    [ "$BATCH_SIZE" -le "$share" ] || BATCH_SIZE=$share
    while [ $((share % BATCH_SIZE)) -ne 0 ]; do
        BATCH_SIZE=$((BATCH_SIZE - 1))
    done
    ACCUM=$((share / BATCH_SIZE))
    [ "$ACCUM" = 1 ] || [ $((BATCH_SIZE * 4)) -ge "$LARGEST" ]
}

# choose_batch TOTAL LARGEST PUBLISHED: set BATCH_SIZE and ACCUM so that BATCH_SIZE x ACCUM x WORLD
# is TOTAL, or the user's TOTAL_BATCH. LARGEST is what one GPU held in the published run, or BATCH_SIZE.
choose_batch() {
    TOTAL_BATCH=${TOTAL_BATCH:-$1} LARGEST=${BATCH_SIZE:-$2}
    need_number TOTAL_BATCH "$TOTAL_BATCH"
    need_number BATCH_SIZE "$LARGEST"
    if ! fits "$TOTAL_BATCH" "$WORLD"; then
        problem="$WORLD GPU(s) cannot share a total batch of $TOTAL_BATCH clips in equal passes near $LARGEST"
        total=$TOTAL_BATCH
        while ! fits "$total" "$WORLD"; do total=$((total + 1)); done
        advice="set TOTAL_BATCH=$total, which scales the learning rate with it"
        fewer=$PROCESSES # on each machine: all of them keep working
        while [ "$fewer" -gt 0 ] && ! fits "$TOTAL_BATCH" $((fewer * NNODES)); do fewer=$((fewer - 1)); done
        used=$((fewer * NNODES))
        each=
        [ "$NNODES" = 1 ] || each=" on each of the $NNODES machines"
        [ "$fewer" = 0 ] || advice="use $used (GPUS=$fewer$each), or $advice"
        [ "$GPUS_ASKED" = 0 ] && [ "$fewer" -gt 0 ] || die "$problem; $advice"
        # Every machine comes to the same number, as they have equally many GPUs.
        GPUS=$fewer PROCESSES=$fewer WORLD=$used
        say "$problem; using $used of them"
    fi
    where="GPU(s)"
    [ "$GPUS" != 0 ] || where="process(es) on the CPU"
    say "total batch $TOTAL_BATCH = $WORLD $where x $BATCH_SIZE clips x $ACCUM accumulated (published: $3)"
    if [ "$BATCH_SIZE" -lt "$LARGEST" ] && [ "$ACCUM" -gt 1 ]; then
        say "clips in a pass lowered from $LARGEST to $BATCH_SIZE to keep the total exact"
    fi
}

# choose_workers: SLURM may give a GPU fewer cores than the 16 loader processes that are the default.
choose_workers() {
    if [ -z "${NUM_WORKERS:-}" ]; then
        NUM_WORKERS=16
        share=$((${SLURM_CPUS_PER_TASK:-1024} / PROCESSES))
        [ "$share" -ge 1 ] || share=1
        [ "$share" -ge "$NUM_WORKERS" ] || NUM_WORKERS=$share
    fi
}

choose_precision() {
    if [ -n "${PRECISION:-}" ]; then
        return
    elif [ "$GPUS" = 0 ]; then
        PRECISION=fp32
        return
    fi
    PRECISION=auto
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1)
    case $capability in
    [0-7].*) PRECISION=fp16 ;; # no fast bf16 below compute capability 8.0
    [0-9]*.*) PRECISION=bf16 ;;
    esac
}

# has_shards FOLDER: did preprocess/pack_clips.py write there?
has_shards() {
    set -- "$1"/*.index.json
    [ -f "$1" ]
}

# need_list FILE: a list has to be there and hold a line; shards in FILE without .csv stand for it.
need_list() {
    ! has_shards "${1%.csv}" || return 0
    [ -f "$1" ] || die "no clip list at '$1'; write it (README, 'Prepare data') or set DATA_PATH"
    [ -r "$1" ] || die "the clip list '$1' cannot be read; check its permissions"
    [ -s "$1" ] || die "the clip list '$1' is empty; write one clip a line (README, 'Prepare data')"
}

need_checkpoint() {
    [ -s "$1" ] || die "no pre-training checkpoint at '$1'; run scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh first, or set CHECKPOINT to a file"
}

# train SCRIPT FLAG...: the command of one run, under torchrun (launch.py) where there are several processes.
# Prints it (DRY_RUN=1) or runs it with its output on the terminal and in LOG_FILE.
train() {
    entry=$ROOT/$1
    shift
    if [ "$WORLD" = 1 ]; then
        set -- "$PYTHON" "$entry" "$@"
    elif [ "$NNODES" = 1 ] && [ -z "${MASTER_PORT:-}" ]; then
        set -- --standalone --nproc_per_node "$PROCESSES" "$entry" "$@"
    elif [ "$NNODES" != 1 ] && [ -n "${RDZV_ENDPOINT:-}" ]; then
        set -- --nnodes "$NNODES" --nproc_per_node "$PROCESSES" --rdzv_backend c10d \
            --rdzv_endpoint "$RDZV_ENDPOINT" --rdzv_id "${RDZV_ID:-hicmae}" \
            --rdzv_conf "join_timeout=$JOIN_TIMEOUT,read_timeout=$JOIN_TIMEOUT" "$entry" "$@"
    else
        set -- --nnodes "$NNODES" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$PROCESSES" \
            --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
            --rdzv_conf "timeout=$JOIN_TIMEOUT" "$entry" "$@"
    fi
    [ "$WORLD" = 1 ] || set -- "$PYTHON" "$ROOT/scripts/launch.py" "$@"
    run "$@"
}

run() {
    if [ "${DRY_RUN:-0}" = 1 ]; then
        quoted "$@"
        return
    fi
    mkdir -p -- "$(dirname -- "$LOG_FILE")" || die "cannot make the folder of '$LOG_FILE'; set OUTPUT_DIR"
    quoted "$@" >>"$LOG_FILE"
    logged "$@"
}

# logged COMMAND...: copy its output to LOG_FILE and return its own exit status, not that of tee.
# The command runs in the background of this shell so that a signal to the script reaches it. SIGTERM and
# SIGUSR1 ask a run to save and stop; it then ends with 75: the same command, started again, goes on.
logged() {
    pipes=$(mktemp -d "${TMPDIR:-/tmp}/hicmae.XXXXXX") || die "cannot make a folder in '${TMPDIR:-/tmp}'"
    mkfifo "$pipes/output"
    # tee outlives an interrupt, so that the last lines of the command are kept.
    (trap '' INT TERM HUP USR1; exec tee -a "$LOG_FILE") <"$pipes/output" &
    writer=$!
    "$@" >"$pipes/output" 2>&1 &
    child=$!
    interrupted=0
    trap 'interrupted=130; kill -TERM "$child" 2>/dev/null' INT
    trap 'interrupted=143; kill -TERM "$child" 2>/dev/null' TERM HUP
    trap 'kill -USR1 "$child" 2>/dev/null' USR1
    status=0
    wait "$child" || status=$?
    # A trapped signal ends `wait` early; the command may still be saving.
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    wait "$writer" || :
    trap - INT TERM HUP USR1
    rm -rf -- "$pipes"
    if [ "$status" = 75 ]; then
        say "stopped and saved; the same command goes on from there"
        [ "$interrupted" != 143 ] || exit 75
    fi
    [ "$interrupted" = 0 ] || exit "$interrupted"
    return "$status"
}

# With BACKGROUND=1, start the same script again without a terminal and leave. Call it after the checks.
detach_if_asked() {
    [ "${BACKGROUND:-0}" = 1 ] && [ "${DRY_RUN:-0}" != 1 ] || return 0
    mkdir -p -- "$(dirname -- "$LOG_FILE")" || die "cannot make the folder of '$LOG_FILE'; set OUTPUT_DIR"
    BACKGROUND=0 nohup sh "$SCRIPT" "$@" </dev/null >/dev/null 2>>"$LOG_FILE" &
    say "started in the background as process $!; follow it with: tail -f $(quoted "$LOG_FILE")"
    exit 0
}

# prepare TOTAL LARGEST PUBLISHED (see choose_batch): everything that does not depend on the experiment.
prepare() {
    find_python
    choose_devices
    choose_batch "$1" "$2" "$3"
    choose_workers
    choose_precision
    if [ "$GPUS" != 0 ]; then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; fi
}

# Leave for the repository and, in a dry run, say so: relative clip paths start from there.
enter_root() {
    cd "$ROOT" || exit
    [ "${DRY_RUN:-0}" = 1 ] || return 0
    quoted cd "$ROOT"
    [ -z "${OMP_NUM_THREADS:-}" ] || quoted export "OMP_NUM_THREADS=$OMP_NUM_THREADS"
}
