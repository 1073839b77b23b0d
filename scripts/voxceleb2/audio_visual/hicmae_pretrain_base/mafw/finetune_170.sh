#!/bin/sh
# Fine-tune HiCMAE-B on MAFW, 11 single classes, 5 official folds (published: 4 GPUs x 14, 100 epochs).
#
# Needs   saved/data/mafw/audio_visual/single/split0<k>/train.csv and test.csv for k = 1..5,
#         one line a clip: <folder of face frames> <audio.wav> <class 0..10>
#         saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth
#         (from ../pretrain_base.sh; CHECKPOINT=FILE names another one, the released one loads too)
# Writes  saved/model/finetuning/mafw/audio_visual/single/voxceleb2_hicmae_pretrain_base/split0<k>/
#         and, after the folds, the table of UAR and WAR with the pooled Total.
# Start   sh scripts/voxceleb2/audio_visual/hicmae_pretrain_base/mafw/finetune_170.sh [more flags]
#         Variables such as GPUS and FOLDS, and what happens when it is started again: scripts/README.md.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../../../../.." && pwd -P)
# shellcheck source=scripts/lib/common.sh
. "$ROOT/scripts/lib/common.sh"
prepare_folds mafw/audio_visual/single
run_folds \
    --total_batch "${TOTAL_BATCH:-56}" --batch_size "${BATCH_SIZE:-14}" \
    --epochs "${EPOCHS:-100}" --warmup_epochs "${WARMUP_EPOCHS:-5}" --save_ckpt_freq 1000 \
    --lr 1e-3 --min_lr 1e-6 --opt_betas 0.9 0.999 --weight_decay 0.05 --layer_decay 0.75 --drop_path 0.1 \
    --model avit_dim512_patch16_160_a256 --depth 10 --depth_audio 10 --fusion_depth 2 \
    --task classification --nb_classes 11 \
    --num_frames 16 --sampling_rate 4 --input_size 160 --input_size_audio 256 128 \
    --mixup 0.8 --cutmix 1.0 --mixup_switch_prob 0.5 --smoothing 0.1 \
    --aa rand-m7-n4-mstd0.5-inc1 --reprob 0.25 --remode pixel --recount 1 --roll_mag_aug \
    --test_num_segment 2 --test_num_crop 2 --dist_eval "$@"
