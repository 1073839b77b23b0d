# shellcheck shell=sh
# What the fine-tuning scripts share, on top of common.sh. Settings besides those named there:
#   FOLDS      folds to run (default: "1 2 3 4 5")
#   MODALITY   av, a or v
# The experiment's script sets DATASET (folder below saved/data), EPOCHS, and its flags.

# check_folds TOTAL LARGEST PUBLISHED (see choose_batch): every input of every fold, before the first one starts.
check_folds() {
    DATA_PATH=$(absolute "${DATA_PATH:-$ROOT/saved/data/$DATASET}")
    CHECKPOINT=$(absolute "${CHECKPOINT:-$ROOT/saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth}")
    OUTPUT_DIR=$(absolute "${OUTPUT_DIR:-$ROOT/saved/model/finetuning/$DATASET/voxceleb2_hicmae_pretrain_base}")
    # shellcheck disable=SC2034  # read by common.sh
    LOG_FILE=$OUTPUT_DIR/console-${SLURM_ARRAY_TASK_ID:+task$SLURM_ARRAY_TASK_ID-}node${NODE_RANK:-0}.log
    FOLDS=${FOLDS:-1 2 3 4 5}
    need_number EPOCHS "$EPOCHS"
    for fold in $FOLDS; do
        need_number "each of FOLDS" "$fold"
        need_list "$DATA_PATH/split0$fold/train.csv"
        need_list "$DATA_PATH/split0$fold/test.csv"
    done
    need_checkpoint "$CHECKPOINT"
    prepare "$@"
}

# run_folds FLAG...: train and test one fold after the other, then print the table.
run_folds() {
    enter_root
    set -f # EXTRA_ARGS is split into words, but * in it stays as it is
    for fold in $FOLDS; do
        folder=$OUTPUT_DIR/split0$fold
        if [ "${DRY_RUN:-0}" != 1 ] && [ -s "$folder/metrics_best.json" ]; then
            say "fold $fold is finished; delete '$folder' or set OUTPUT_DIR to train it again"
            continue
        fi
        say "fold $fold of '$FOLDS'"
        # shellcheck disable=SC2086
        train run_finetuning.py \
            --model avit_dim512_patch16_160_a256 --modality "${MODALITY:-av}" \
            --depth 10 --depth_audio 10 --fusion_depth 2 \
            --data_path "$DATA_PATH/split0$fold" ${DATA_ROOT:+--data_root "$(absolute "$DATA_ROOT")"} \
            --finetune "$CHECKPOINT" --output_dir "$folder" \
            --device "$DEVICE" --precision "$PRECISION" \
            --batch_size "$BATCH_SIZE" --accum_iter "$ACCUM" \
            --epochs "$EPOCHS" --warmup_epochs "${WARMUP_EPOCHS:-5}" --save_ckpt_freq 1000 \
            --lr 1e-3 --min_lr 1e-6 --opt_betas 0.9 0.999 --weight_decay 0.05 \
            --layer_decay 0.75 --drop_path 0.1 \
            --num_frames 16 --input_size 160 --input_size_audio 256 128 \
            --aa rand-m7-n4-mstd0.5-inc1 --reprob 0.25 --remode pixel --recount 1 --roll_mag_aug \
            --test_num_segment 2 --test_num_crop 2 --dist_eval \
            --num_workers "$NUM_WORKERS" "$@" ${EXTRA_ARGS:-}
    done
    # Of several machines, the first one holds the results.
    if [ "${NODE_RANK:-0}" = 0 ]; then
        run "$PYTHON" -m hicmae.report "$OUTPUT_DIR"
    fi
}
