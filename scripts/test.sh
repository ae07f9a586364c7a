#!/usr/bin/env bash
# Sets up, checks style and types, and runs the tests, on all cores.
#
#   bash scripts/test.sh [--slow] [pytest arguments; paths are relative to the project's root]
#
# Without --slow, tests marked slow are left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen="not slow"
if [ "${1:-}" = --slow ]; then
    chosen=""
    shift
fi

bash scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# A worker on each core, of one thread: the tests' models are too small for more.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n auto --dist loadfile -m "$chosen" "$@"
