#!/bin/sh
# Pre-train HiCMAE-B on VoxCeleb2 (published: 4 GPUs x 40 clips, 100 epochs).
#
# Needs   saved/data/voxceleb2/train.csv   one line a clip: <video.mp4> 0
#         The wav of .../video/file/dev/mp4/<id>.mp4 is .../audio/file/dev/aac/<id>.wav, of any other
#         <name>.mp4 it is <name>.wav. Mono, 16 kHz. DATA_PATH may also be a folder of shards
#         (preprocess/pack_clips.py).
# Writes  saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/
#         checkpoint-99.pth is what the fine-tuning scripts beside this one start from.
# Start   sh scripts/voxceleb2/audio_visual/hicmae_pretrain_base/pretrain_base.sh [more flags]
#         Started again, it goes on from the newest checkpoint. One GPU, several, or several machines:
#         the total batch stays 160. Variables such as GPUS and DATA_PATH: scripts/README.md.
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../../../.." && pwd -P)
# shellcheck source=scripts/lib/common.sh
. "$ROOT/scripts/lib/common.sh"

DATA_PATH=$(absolute "${DATA_PATH:-$ROOT/saved/data/voxceleb2/train.csv}")
OUTPUT_DIR=$(absolute "${OUTPUT_DIR:-$ROOT/saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base}")
if [ -d "$DATA_PATH" ] && ! has_shards "$DATA_PATH"; then DATA_PATH=$DATA_PATH/train.csv; fi
need_list "$DATA_PATH"
start
train run_pretraining.py --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" \
    --total_batch "${TOTAL_BATCH:-160}" --batch_size "${BATCH_SIZE:-40}" \
    --epochs "${EPOCHS:-100}" --warmup_epochs "${WARMUP_EPOCHS:-5}" --save_ckpt_freq 10 \
    --lr 3e-4 --min_lr 1e-5 --opt_betas 0.9 0.95 --weight_decay 0.05 --drop_path 0 \
    --model pretrain_hicmae_dim512_patch16_160_a256 \
    --encoder_depth 10 --encoder_depth_audio 10 --encoder_fusion_depth 2 \
    --decoder_depth 4 --decoder_depth_audio 4 --return_intermediate_features 3 6 9 \
    --num_frames 16 --sampling_rate 4 --input_size 160 --input_size_audio 256 128 \
    --mask_ratio 0.9 --mask_ratio_audio 0.8 --roll_mag_aug \
    --use_frame_diff_as_target --frame_diff_group_size 2 \
    --normalize_target --normalize_target_audio \
    --loss_weight 0.0025 --inter_contrastive_temperature 0.07 "$@"
