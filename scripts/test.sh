#!/usr/bin/env bash
# Run the test suite. Makes .venv and installs what is needed if it is not there yet.
#
#   bash scripts/test.sh                    everything but the slow tests
#   bash scripts/test.sh -m slow            the slow ones
#   bash scripts/test.sh tests/data -k mask any arguments of pytest
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/venv.sh
. "$ROOT/scripts/lib/venv.sh"
ensure_venv dev
cd "$ROOT"
# Three processes with one thread each: while one waits for its processes, the others have two cores.
# Each takes a third of the tests in order, so that what they share is made once, then helps others.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -q -n "${TEST_PROCESSES:-3}" --dist worksteal "$@"
