#!/usr/bin/env bash
# HiCMAE from nothing to scores, on the synthetic talking-face benchmark (preprocess/toy_av.py).
#
#   bash scripts/demo.sh              everything; safe to run again: finished steps are skipped
#   DRY_RUN=1 bash scripts/demo.sh    print the commands, start nothing
#
# Makes .venv if there is none. Reads nothing. Writes saved/data/toy_av/ and saved/demo/. Uses a GPU if
# there is one. A step whose command has changed starts over, with everything that depends on it.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"

# ---------------------------------------------------------------- settings of the demo
FOLDS=${FOLDS:-1 2}                       # of the four speaker-independent folds
DEVICE=${DEVICE:-auto}
SEED=0
DATA_FLAGS=(--seed "$SEED")
CLIP_FLAGS=(--num_frames 4 --sampling_rate 16 --input_size 64 --input_size_audio 128 128)
PRETRAIN_EPOCHS=10
PRETRAIN_FLAGS=(
    --model pretrain_hicmae_dim128_patch16_160_a256
    --encoder_depth 2 --encoder_depth_audio 2 --encoder_fusion_depth 1
    --decoder_depth 3 --decoder_depth_audio 3 --return_intermediate_features 0 1
    --batch_size 8 --num_samples 4 --epochs "$PRETRAIN_EPOCHS" --warmup_epochs 1 --lr 0.064 --min_lr 1e-3
    --mask_ratio 0.75 --mask_ratio_audio 0.75 --roll_mag_aug --clip_grad 1
)
FINETUNE_EPOCHS=40
FINETUNE_FLAGS=(
    --model avit_dim128_patch16_160_a256 --nb_classes 6
    --depth 2 --depth_audio 2 --fusion_depth 1
    --batch_size 32 --epochs "$FINETUNE_EPOCHS" --warmup_epochs 2 --lr 0.016 --min_lr 1e-4
    --layer_decay 1 --drop_path 0 --aa none --reprob 0 --crop_scale 1 1
    --mixup 0 --cutmix 0 --smoothing 0.1 --roll_mag_aug --clip_grad 1 --val_metric uar
)
# Half of the cores load clips, so that they and the arithmetic do not fight; bf16 is faster on CPUs too.
CORES=$(getconf _NPROCESSORS_ONLN)
RUN_FLAGS=(--device "$DEVICE" --seed "$SEED" --precision bf16 --num_workers "$((CORES < 16 ? (CORES + 1) / 2 : 8))")
export OMP_WAIT_POLICY=passive
# ---------------------------------------------------------------- end of the settings

DATA=$ROOT/saved/data/toy_av
DEMO=$ROOT/saved/demo
STEPS=$DEMO/steps # one file a step: the commands that it and the steps before it have run

minutes() { printf '%d min %02d s' "$(($1 / 60))" "$(($1 % 60))"; }

# step NAME PRODUCT COMMAND...: run the command unless it has made PRODUCT before with the same settings, which
# are all commands so far (HISTORY). A run left by other settings is removed; one cut off is gone on with.
HISTORY=
step() {
    local name=$1 product=$2 start=$SECONDS
    shift 2
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "$@"
        printf '\n'
        return
    fi
    HISTORY+=$'\n'"$*"
    if [ -e "$product" ] && [ "$(cat "$STEPS/$name.done" 2>/dev/null)" = "$HISTORY" ]; then
        echo "== $name: finished before" >&2
        return
    fi
    if [ -e "$STEPS/$name.started" ] && [ "$(cat "$STEPS/$name.started")" != "$HISTORY" ]; then
        echo "== $name: the settings have changed, starting over" >&2
        case $product in "$DEMO"/*/*) rm -rf -- "${product%/*}" ;; esac # the folder of a run, never $DEMO
    fi
    mkdir -p -- "$STEPS"
    rm -f -- "$STEPS/$name.done"
    printf '%s\n' "$HISTORY" >"$STEPS/$name.started"
    echo "== $name" >&2
    "$@"
    printf '%s\n' "$HISTORY" >"$STEPS/$name.done"
    echo "== $name: done in $(minutes $((SECONDS - start)))" >&2
}

if [ "${DRY_RUN:-0}" = 1 ]; then
    PYTHON=$ROOT/.venv/bin/python
else
    ensure_venv
fi
cd "$ROOT"
SECONDS=0 # installation does not count

step "data" "$DATA/pretrain.csv" "$PYTHON" preprocess/toy_av.py --output_dir "$DATA" "${DATA_FLAGS[@]}"

CHECKPOINT=$DEMO/pretrain/checkpoint-$((PRETRAIN_EPOCHS - 1)).pth
step "pre-training" "$CHECKPOINT" "$PYTHON" run_pretraining.py \
    --data_path "$DATA/pretrain.csv" --output_dir "$DEMO/pretrain" "${RUN_FLAGS[@]}" \
    "${CLIP_FLAGS[@]}" "${PRETRAIN_FLAGS[@]}"

PRETRAINED=$HISTORY
step "pictures: reconstruction" "$DEMO/reconstruction.png" "$PYTHON" -m hicmae.visualize reconstruction \
    --checkpoint "$CHECKPOINT" --data_path "$DATA/pretrain.csv" --out "$DEMO/reconstruction.png"

RUNS=() ALL=
for fold in $FOLDS; do
    HISTORY=$PRETRAINED # a fold does not depend on the others
    step "fine-tuning, fold $fold" "$DEMO/folds/fold$fold/metrics_best.json" "$PYTHON" run_finetuning.py \
        --data_path "$DATA/fold$fold" --output_dir "$DEMO/folds/fold$fold" --finetune "$CHECKPOINT" \
        "${RUN_FLAGS[@]}" "${CLIP_FLAGS[@]}" "${FINETUNE_FLAGS[@]}"
    RUNS+=("$DEMO/folds/fold$fold") ALL+=$HISTORY
done
HISTORY=$ALL

step "pictures: pre-training curves" "$DEMO/curves_pretrain.png" "$PYTHON" -m hicmae.visualize curves \
    "$DEMO/pretrain" --out "$DEMO/curves_pretrain.png"
step "pictures: fine-tuning curves" "$DEMO/curves.png" "$PYTHON" -m hicmae.visualize curves \
    "${RUNS[@]}" --out "$DEMO/curves.png"
step "pictures: confusion" "$DEMO/confusion.png" "$PYTHON" -m hicmae.visualize confusion \
    "${RUNS[@]/%//pred.csv}" --classes "$DATA/classes.txt" --out "$DEMO/confusion.png"

report=("$PYTHON" -m hicmae.report "$DEMO/folds" --classes "$DATA/classes.txt" --speaker_file "$DATA/meta.csv" --chance
    --ceilings "video only=50,audio only=33.3")
if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${report[@]}"
    printf '\n'
    exit
fi
"${report[@]}"
echo "pictures: saved/demo/reconstruction.png, curves.png, confusion.png; page: saved/demo/folds/report.html" >&2
echo "all of it took $(minutes "$SECONDS")" >&2
