#!/usr/bin/env bash
# HiCMAE from nothing to scores: makes .venv if there is none, and starts scripts/demo.py with it.
#
#   bash scripts/demo.sh              everything; safe to run again: finished steps are skipped
#   DRY_RUN=1 bash scripts/demo.sh    print the commands, start nothing
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"
[ "${DRY_RUN:-0}" = 1 ] || ensure_venv faces
exec "${PYTHON:-python3}" "$ROOT/scripts/demo.py"
