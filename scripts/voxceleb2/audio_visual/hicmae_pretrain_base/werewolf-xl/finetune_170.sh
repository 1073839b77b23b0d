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
#         Started again, it skips finished folds and goes on with the others.
#         Settings: scripts/lib/common.sh and scripts/lib/finetune.sh.
set -eu
SCRIPT_DIR=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck disable=SC2034  # read by the libraries
SCRIPT=$SCRIPT_DIR/$(basename -- "$0") DATASET=werewolf-xl/audio_visual EPOCHS=${EPOCHS:-30}
# shellcheck source=scripts/lib/common.sh
. "$SCRIPT_DIR/../../../../lib/common.sh"
# shellcheck source=scripts/lib/finetune.sh
. "$SCRIPT_DIR/../../../../lib/finetune.sh"
find_root

check_folds 128 32 "4 GPUs x 32"
detach_if_asked "$@"
run_folds --task regression --nb_classes 3 --sampling_rate 3 --loss mse --val_metric ccc \
    --mixup 0 --cutmix 0 "$@"
