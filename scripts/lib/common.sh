# shellcheck shell=sh
# What the experiment scripts share: places, folds, signals. POSIX sh. Source it with ROOT set to the repository.
# scripts/README.md describes every variable that may be set; --help shows the comment at the top of a script.
CALLER_DIR=$(pwd)
case ${1:-} in -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac

say() { printf '%s\n' "$*" >&2; } # stdout stays free for the commands of DRY_RUN=1
die() { say "error: $*"; exit 2; }

# Paths in variables are relative to the folder the script was started from.
absolute() {
    [ "${1#/}" != "$1" ] || set -- "$CALLER_DIR/$1"
    printf '%s\n' "$1"
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

# spelled FOLDER PLACE: FOLDER/PLACE, or where only that is there, what earlier versions called it.
spelled() {
    former=$1/cream-d/${2#crema-d/}
    if [ "$2" != "${2#crema-d/}" ] && [ ! -e "$1/$2" ] && [ -e "$former" ]; then
        say "note: taking '$former', which is spelled crema-d now; rename it"
        set -- "$1" "cream-d/${2#crema-d/}"
    fi
    printf '%s\n' "$1/$2"
}

# prepare_folds DATASET: places and inputs of every fold, checked before the first one starts.
prepare_folds() {
    DATA_PATH=$(absolute "${DATA_PATH:-$(spelled "$ROOT/saved/data" "$1")}")
    CHECKPOINT=$(absolute "${CHECKPOINT:-$ROOT/saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth}")
    OUTPUT_DIR=$(absolute "${OUTPUT_DIR:-$(spelled "$ROOT/saved/model/finetuning" "$1")/voxceleb2_hicmae_pretrain_base}")
    FOLDS=${FOLDS:-1 2 3 4 5}
    for fold in $FOLDS; do
        need_list "$DATA_PATH/split0$fold/train.csv"
        need_list "$DATA_PATH/split0$fold/test.csv"
    done
    [ -s "$CHECKPOINT" ] || die "no pre-training checkpoint at '$CHECKPOINT'; run scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh first, or set CHECKPOINT to a file"
    start
}

# start: find PYTHON, else that of the active environment or of .venv. Clip paths in lists may be relative to the repository.
start() {
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python3
        [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
        [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || PYTHON=python
    elif [ "$PYTHON" != "${PYTHON#*/}" ]; then
        PYTHON=$(absolute "$PYTHON")
    fi
    command -v "$PYTHON" >/dev/null 2>&1 ||
        die "no Python at '$PYTHON'; run 'bash scripts/test.sh' once to make .venv, or set PYTHON"
    cd "$ROOT" || exit
    [ "${DRY_RUN:-0}" != 1 ] || printf "cd '%s'\n" "$ROOT"
    set -f # EXTRA_ARGS is split into words, but * in it stays as it is
}

# await PROCESS: its exit code is then in `status`. A trapped signal ends `wait` early, while a run may still be saving.
await() {
    while status=0 && { wait "$1" || status=$?; } && kill -0 "$1" 2>/dev/null; do :; done
}

# run ARGUMENT...: Python with these arguments. Signals are passed on: SIGTERM and SIGUSR1 ask a run to save and
# stop. It then ends with 75, and so does the script: the same command, started again, goes on.
run() {
    "$PYTHON" "$@" &
    child=$! stopped_by=0
    trap 'stopped_by=130; kill -TERM "$child" 2>/dev/null' INT
    trap 'stopped_by=143; kill -TERM "$child" 2>/dev/null' TERM HUP
    trap 'kill -USR1 "$child" 2>/dev/null' USR1
    await "$child"
    trap - INT TERM HUP USR1
    if [ "$status" = 75 ]; then
        say "stopped and saved; the same command goes on from there"
        exit 75
    fi
    [ "$stopped_by" = 0 ] || exit "$stopped_by"
    return "$status"
}

# train SCRIPT FLAG...: start it where and how the variables say.
train() {
    script=$1
    shift
    # shellcheck disable=SC2086  # EXTRA_ARGS is several words
    run scripts/launch.py "$script" ${DATA_ROOT:+--data_root "$(absolute "$DATA_ROOT")"} --device "${DEVICE:-cuda}" \
        --precision "${PRECISION:-auto}" ${NUM_WORKERS:+--num_workers "$NUM_WORKERS"} "$@" ${EXTRA_ARGS:-}
}

# run_folds FLAG...: train and test one fold after the other, then print the table.
run_folds() {
    for fold in $FOLDS; do
        folder=$OUTPUT_DIR/split0$fold
        if [ "${DRY_RUN:-0}" != 1 ] && [ -s "$folder/metrics_best.json" ]; then
            say "fold $fold is finished; delete '$folder' or set OUTPUT_DIR to train it again"
            continue
        fi
        say "fold $fold of '$FOLDS'"
        train run_finetuning.py --data_path "$DATA_PATH/split0$fold" --output_dir "$folder" \
            --finetune "$CHECKPOINT" --modality "${MODALITY:-av}" "$@"
    done
    [ "${NODE_RANK:-${SLURM_NODEID:-0}}" = 0 ] || return 0 # of several machines, the first one has the results
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf "%s -m hicmae.report '%s'\n" "$PYTHON" "$OUTPUT_DIR"
    else
        run -m hicmae.report "$OUTPUT_DIR"
    fi
}
