#!/usr/bin/env bash
# Measure training and testing against the plain baseline; the figures go to saved/benchmarks/*.json.
#
#   bash scripts/benchmark.sh --device cpu     HiCMAE-T and -B, small batches (about half an hour)
#   bash scripts/benchmark.sh --device cuda    HiCMAE-B at the published and larger batches
#   bash scripts/benchmark.sh --device cpu --steps 3 --no-errors   any flags of the commands
#
# OUTPUT_DIR=DIR writes elsewhere. Then: python -m hicmae.benchmark table saved/benchmarks
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"

if [[ ${1:-} != --device || ! ${2:-} =~ ^(cpu|cuda)$ ]]; then
    echo "usage: benchmark.sh --device cpu|cuda [FLAGS]" >&2
    exit 2
fi
DEVICE=$2
shift 2
ensure_venv
cd "$ROOT"
OUT=${OUTPUT_DIR:-saved/benchmarks}

measure() { # NAME COMMAND FLAGS...
    local name=$1 command=$2
    shift 2
    echo "== $name"
    "$PYTHON" -m hicmae.benchmark "$command" --device "$DEVICE" --json "$OUT/${DEVICE}_$name.json" "$@"
}

if [[ $DEVICE == cpu ]]; then
    # All cores; threads that wait give the core away, as other programs may need it.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=passive
    measure pretrain_t pretrain --model t --batch_size 8 --steps 10 --warmup 1 "$@"
    measure pretrain_b pretrain --model b --batch_size 4 --steps 15 --warmup 2 "$@"
    measure finetune_t finetune --model t --batch_size 2 --steps 7 --warmup 1 "$@"
    measure finetune_b finetune --model b --batch_size 2 --steps 5 --warmup 1 "$@"
    measure infer_t infer --model t --batch_size 2 --steps 10 --warmup 1 "$@"
    measure infer_b infer --model b --batch_size 2 --steps 7 --warmup 1 "$@"
    measure pretrain_b_bf16 pretrain --model b --batch_size 4 --steps 7 --warmup 1 --precision bf16 "$@"
    measure infer_b_bf16 infer --model b --batch_size 2 --steps 7 --warmup 1 --precision bf16 "$@"
    measure pretrain_b_mkl pretrain --model b --batch_size 4 --steps 7 --warmup 1 --cpu_gemm mkl "$@"
    measure infer_b_mkl infer --model b --batch_size 2 --steps 7 --warmup 1 --cpu_gemm mkl "$@"
else
    LEVERS=(--compile --cuda_graphs --steps 40 --warmup 10)
    measure pretrain_b pretrain --model b --batch_size 40 "${LEVERS[@]}" "$@"
    measure pretrain_b_best pretrain --model b --batch_size 80 160 320 "${LEVERS[@]}" "$@"
    measure pretrain_b_eager pretrain --model b --batch_size 40 160 --steps 40 --warmup 10 "$@"
    measure pretrain_b_saving pretrain --model b --batch_size 320 --compile --checkpoint_activations --steps 20 --warmup 5 --no-plain "$@"
    measure pretrain_b_fp16 pretrain --model b --batch_size 40 --precision fp16 "${LEVERS[@]}" "$@"
    measure finetune_b finetune --model b --batch_size 14 "${LEVERS[@]}" "$@"
    measure finetune_b_best finetune --model b --batch_size 28 56 112 "${LEVERS[@]}" "$@"
    measure infer_b infer --model b --batch_size 14 "${LEVERS[@]}" "$@"
    measure infer_b_best infer --model b --batch_size 56 112 224 "${LEVERS[@]}" "$@"
fi
"$PYTHON" -m hicmae.benchmark table "$OUT"
