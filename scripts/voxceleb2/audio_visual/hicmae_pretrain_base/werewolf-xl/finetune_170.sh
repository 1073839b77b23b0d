#!/bin/sh
# Fine-tune HiCMAE-B on Werewolf-XL: valence, arousal and dominance, 5 folds (published: 4 GPUs x 32, 30 epochs).
#
# Needs   saved/data/werewolf-xl/audio_visual/split0<k>/train.csv and test.csv for k = 1..5,
#         one line a clip: <folder of face frames> <audio.wav> <valence> <arousal> <dominance>
#         saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth
#         (from ../pretrain_base.sh; CHECKPOINT=FILE names another one, the released one loads too)
# Writes  saved/model/finetuning/werewolf-xl/audio_visual/voxceleb2_hicmae_pretrain_base/split0<k>/
#         and, after the folds, the table of PCC and CCC with the pooled Total.
# Start   sh scripts/voxceleb2/audio_visual/hicmae_pretrain_base/werewolf-xl/finetune_170.sh [more flags]
#         Variables such as GPUS and FOLDS, and what happens when it is started again: scripts/README.md.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../../../../.." && pwd -P)
# shellcheck source=scripts/lib/common.sh
. "$ROOT/scripts/lib/common.sh"
prepare_folds werewolf-xl/audio_visual
run_folds \
    --total_batch "${TOTAL_BATCH:-128}" --batch_size "${BATCH_SIZE:-32}" \
    --epochs "${EPOCHS:-30}" --warmup_epochs "${WARMUP_EPOCHS:-5}" --save_ckpt_freq 1000 \
    --lr 1e-3 --min_lr 1e-6 --opt_betas 0.9 0.999 --weight_decay 0.05 --layer_decay 0.75 --drop_path 0.1 \
    --model avit_dim512_patch16_160_a256 --depth 10 --depth_audio 10 --fusion_depth 2 \
    --task regression --nb_classes 3 --loss mse --val_metric ccc \
    --num_frames 16 --sampling_rate 3 --input_size 160 --input_size_audio 256 128 \
    --mixup 0 --cutmix 0 \
    --aa rand-m7-n4-mstd0.5-inc1 --reprob 0.25 --remode pixel --recount 1 --roll_mag_aug \
    --test_num_segment 2 --test_num_crop 2 --dist_eval "$@"
