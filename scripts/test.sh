#!/usr/bin/env bash
# Sets up, checks style and runs the tests.
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
exec .venv/bin/python -m pytest -m "$chosen" "$@"
