# shellcheck shell=sh
# What the experiment scripts share: places, devices, torchrun, signals. POSIX sh, as they are started with sh.
# scripts/README.md describes every variable that may be set. Source it with SCRIPT and SCRIPT_DIR set.

say() { printf '%s\n' "$*" >&2; } # stdout stays free for the commands of DRY_RUN=1

die() {
    say "error: $*"
    exit 2
}

# Print the arguments as one line that a shell reads back unchanged.
quoted() {
    line=
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# Paths in variables are relative to the folder the script was started from.
absolute() {
    case $1 in
    '' | /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$CALLER_DIR" "$1" ;;
    esac
}

need_number() { # need_number NAME VALUE
    case $2 in
    '' | *[!0-9]* | 0*) die "$1 must be a whole number above 0, got '$2'" ;;
    esac
}

find_root() {
    CALLER_DIR=$(pwd) ROOT=$SCRIPT_DIR
    while [ ! -f "$ROOT/run_pretraining.py" ]; do
        [ "$ROOT" != / ] || die "no run_pretraining.py above '$SCRIPT_DIR'; keep scripts/ inside the repository"
        ROOT=$(dirname -- "$ROOT")
    done
}

# PYTHON, else the active environment, else .venv of the repository.
find_python() {
    case ${PYTHON:-} in
    */*) PYTHON=$(absolute "$PYTHON") ;;
    '')
        PYTHON=python3
        [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
        [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || PYTHON=python
        ;;
    esac
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "no Python at '$PYTHON'; run 'bash scripts/test.sh' once to make .venv, or set PYTHON"
    [ "${DRY_RUN:-0}" = 1 ] || "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "timm"))))' ||
        die "'$PYTHON' lacks the packages of requirements.txt; run '$PYTHON -m pip install -r $ROOT/requirements.txt', or set PYTHON"
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
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}
    MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a machine get different ones
}

# Several machines have to know each other before any of them waits for the rest.
check_machines() {
    NNODES=${NNODES:-1} JOIN_TIMEOUT=${JOIN_TIMEOUT:-600}
    need_number NNODES "$NNODES"
    need_number JOIN_TIMEOUT "$JOIN_TIMEOUT"
    [ "$NNODES" != 1 ] || return 0
    case ${RDZV_ENDPOINT:-} in
    '') ;;
    ?*:[0-9]*) return 0 ;;
    *) die "RDZV_ENDPOINT must be <host>:<port>, got '$RDZV_ENDPOINT'" ;;
    esac
    [ -n "${MASTER_ADDR:-}" ] ||
        die "NNODES=$NNODES, but the machines have no place to meet; set MASTER_ADDR to the name or IP of machine 0 on all of them"
    need_number MASTER_PORT "${MASTER_PORT:-29500}"
    case ${NODE_RANK:-} in '' | *[!0-9]*) rank=$NNODES ;; *) rank=$NODE_RANK ;; esac
    [ "$rank" -lt "$NNODES" ] ||
        die "NODE_RANK must be this machine's number from 0 to $((NNODES - 1)), got '${NODE_RANK:-}'"
}

# Set GPUS (0 on the CPU), PROCESSES on each machine, and DEVICE, PRECISION and NUM_WORKERS of the run.
choose_devices() {
    ask_slurm
    check_machines
    GPUS=${GPUS:-${NPROC:-}} available=0
    case ${DEVICE:-auto} in
    cpu) GPUS=0 ;;
    auto | cuda) DEVICE=cuda available=$(count_gpus) GPUS=${GPUS:-$available} ;;
    *) die "DEVICE must be auto, cuda or cpu, got '$DEVICE'" ;;
    esac
    if [ "$DEVICE" = cuda ]; then
        [ "$GPUS" != 0 ] || die "no GPU found on this machine; set DEVICE=cpu to run (slowly) without, or start it where nvidia-smi lists one"
        need_number GPUS "$GPUS"
        # A dry run on a login node, which has no GPU, may show the command of another machine.
        if [ "$GPUS" -gt "$available" ] && [ "${DRY_RUN:-0}$available" != 10 ]; then
            die "GPUS=$GPUS asked, but this machine shows $available; set GPUS to $available or less (DEVICE=cpu for none), the total batch is kept"
        fi
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    fi
    PROCESSES=$((GPUS > 0 ? GPUS : 1))
    if [ -z "${NUM_WORKERS:-}" ]; then # at most this GPU's share of the cores
        cores=${SLURM_CPUS_PER_TASK:-$(getconf _NPROCESSORS_ONLN)}
        NUM_WORKERS=$((cores / PROCESSES))
        NUM_WORKERS=$((NUM_WORKERS > 16 ? 16 : NUM_WORKERS < 1 ? 1 : NUM_WORKERS))
    fi
    if [ -z "${PRECISION:-}" ]; then
        PRECISION=auto
        [ "$GPUS" != 0 ] || PRECISION=fp32
        capability=$([ "$GPUS" = 0 ] || nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1)
        case $capability in [0-7].*) PRECISION=fp16 ;; esac # no fast bf16 below compute capability 8.0
    fi
}

has_shards() { # has_shards FOLDER: did preprocess/pack_clips.py write there?
    set -- "$1"/*.index.json
    [ -f "$1" ]
}

# need_list FILE: a list that holds a line; shards in FILE without .csv stand for it.
need_list() {
    [ -s "$1" ] || has_shards "${1%.csv}" ||
        die "no clip list at '$1', or an empty one; write it (preprocess/README.md) or set DATA_PATH"
}

# train SCRIPT FLAG...: one run, by scripts/launch.py (torchrun) where there are several processes.
train() {
    entry=$ROOT/$1
    shift
    if [ "$NNODES$PROCESSES" = 11 ]; then
        run "$PYTHON" "$entry" "$@"
        return
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
    run "$PYTHON" "$ROOT/scripts/launch.py" "$@"
}

# run COMMAND...: print it (DRY_RUN=1), or run it and pass signals on: SIGTERM and SIGUSR1 ask a run to save and
# stop. It then ends with 75, and so does the script: the same command, started again, goes on.
run() {
    if [ "${DRY_RUN:-0}" = 1 ]; then
        quoted "$@"
        return
    fi
    "$@" &
    child=$! stopped_by=0
    trap 'stopped_by=130; kill -TERM "$child" 2>/dev/null' INT
    trap 'stopped_by=143; kill -TERM "$child" 2>/dev/null' TERM HUP
    trap 'kill -USR1 "$child" 2>/dev/null' USR1
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a trapped signal ends `wait` early; the run may still be saving
        status=0
        wait "$child" || status=$?
    done
    trap - INT TERM HUP USR1
    if [ "$status" = 75 ]; then
        say "stopped and saved; the same command goes on from there"
        exit 75
    fi
    [ "$stopped_by" = 0 ] || exit "$stopped_by"
    return "$status"
}

# start FLAG...: everything but the experiment's own checks. With BACKGROUND=1 the script starts again without a
# terminal. Clip paths in lists may be relative to the repository.
start() {
    find_python
    choose_devices
    if [ "${BACKGROUND:-0}" = 1 ] && [ "${DRY_RUN:-0}" != 1 ]; then
        log=$OUTPUT_DIR/console-node${NODE_RANK:-0}.log
        mkdir -p -- "$OUTPUT_DIR" || die "cannot make the folder '$OUTPUT_DIR'; set OUTPUT_DIR"
        BACKGROUND=0 nohup sh "$SCRIPT" "$@" </dev/null >>"$log" 2>&1 &
        say "started in the background as process $!; follow it with: tail -f $(quoted "$log")"
        exit 0
    fi
    cd "$ROOT" || exit
    [ "${DRY_RUN:-0}" != 1 ] || quoted cd "$ROOT"
    set -f # EXTRA_ARGS is split into words, but * in it stays as it is
}
