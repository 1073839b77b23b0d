# shellcheck shell=sh
# The folds of a fine-tuning script, on top of common.sh. FOLDS (default "1 2 3 4 5") says which.

# prepare_folds DATASET: places and inputs of every fold, checked before the first one starts.
prepare_folds() {
    DATA_PATH=$(absolute "${DATA_PATH:-$ROOT/saved/data/$1}")
    CHECKPOINT=$(absolute "${CHECKPOINT:-$ROOT/saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth}")
    OUTPUT_DIR=$(absolute "${OUTPUT_DIR:-$ROOT/saved/model/finetuning/$1/voxceleb2_hicmae_pretrain_base}")
    FOLDS=${FOLDS:-1 2 3 4 5}
    for fold in $FOLDS; do
        need_number "each of FOLDS" "$fold"
        need_list "$DATA_PATH/split0$fold/train.csv"
        need_list "$DATA_PATH/split0$fold/test.csv"
    done
    [ -s "$CHECKPOINT" ] || die "no pre-training checkpoint at '$CHECKPOINT'; run scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh first, or set CHECKPOINT to a file"
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
        train run_finetuning.py --data_path "$DATA_PATH/split0$fold" --output_dir "$folder" "$@"
    done
    # Of several machines, the first one holds the results.
    [ "${NODE_RANK:-0}" != 0 ] || run "$PYTHON" -m hicmae.report "$OUTPUT_DIR"
}
