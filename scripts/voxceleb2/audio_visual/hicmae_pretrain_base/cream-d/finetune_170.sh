#!/bin/sh
# Fine-tune HiCMAE-B on CREMA-D, 6 classes, 5 speaker-independent folds (published: 4 GPUs x 14, 50 epochs).
#
# Needs   saved/data/cream-d/audio_visual/split0<k>/train.csv and test.csv for k = 1..5,
#         one line a clip: <folder of face frames> <audio.wav> <class 0..5>
#         saved/model/pretraining/voxceleb2/audio_visual/hicmae_pretrain_base/checkpoint-99.pth
#         (from ../pretrain_base.sh; CHECKPOINT=FILE names another one, the released one loads too)
# Writes  saved/model/finetuning/cream-d/audio_visual/voxceleb2_hicmae_pretrain_base/split0<k>/
#         and, after the folds, the table of UAR and WAR with the pooled Total.
# Start   sh scripts/voxceleb2/audio_visual/hicmae_pretrain_base/cream-d/finetune_170.sh [more flags]
#         Started again, it skips finished folds and goes on with the others.
#         Settings: scripts/lib/common.sh and scripts/lib/finetune.sh.
set -eu
SCRIPT_DIR=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck disable=SC2034  # read by the libraries
SCRIPT=$SCRIPT_DIR/$(basename -- "$0") DATASET=cream-d/audio_visual EPOCHS=${EPOCHS:-50}
# shellcheck source=scripts/lib/common.sh
. "$SCRIPT_DIR/../../../../lib/common.sh"
# shellcheck source=scripts/lib/finetune.sh
. "$SCRIPT_DIR/../../../../lib/finetune.sh"
find_root

check_folds 56 14 "4 GPUs x 14"
detach_if_asked "$@"
run_folds --task classification --nb_classes 6 --sampling_rate 4 \
    --mixup 0.8 --cutmix 1.0 --mixup_switch_prob 0.5 --smoothing 0.1 "$@"
