#!/usr/bin/env bash
# Checks this project on an NVIDIA card and prints one table: the tests of a card's paths, the recorded values in
# float64, and restorations of 256x256 pixels by presets fastest and fast with random weights, in every number format,
# with and without torch.compile, beside plain arithmetic. It takes about ten minutes and writes everything to OUT.
# The exit status is 2 without a card, and 1 if a check failed.
#
#   bash scripts/check_card.sh [OUT]                (default: results/card)
#   PYTHON=python3 bash scripts/check_card.sh       by another Python than that of .venv, with requirements.txt installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-.venv/bin/python}"
out="${1:-results/card}"

if ! "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 2)'; then
    echo "check_card.sh: torch finds no NVIDIA card here (bash scripts/setup.sh installs it): nothing is checked" >&2
    exit 2
fi
mkdir -p "$out"
export TEST_CARD=cuda
table="$out/table.md"
failed=0
rm -f "$table"

check() {  # name, file of what it prints, command: its last line is the result
    local name="$1" file="$out/$2.txt" result
    shift 2
    echo "== $name" >&2
    if "$@" >"$file" 2>&1; then
        result=$(tail -n 1 "$file")
    else
        failed=1 result="FAILED: see $file"
    fi
    checked+="| $name | | ${result//|/} | | | |"$'\n'
}

checked=""
check "recorded values" values "$python" -m tests.card '[["tests.reference.on_card"]]'
check "tests on the card" tests "$python" -m pytest -q -p no:cacheprovider tests/test_card.py
echo "== restorations" >&2
if "$python" scripts/benchmark.py --restorations fastest fast --device cuda --precision fp32 tf32 bf16 --compile \
    --repeats 1 --out "$out" >"$out/restorations.txt" 2>&1; then
    cat "$out/restorations.md" >"$table"
else
    failed=1
    printf '| check | | result | | | |\n| --- | --- | --- | --- | --- | --- |\n' >"$table"
    checked+="| restorations | | FAILED: see $out/restorations.txt | | | |"$'\n'
fi
printf '%s' "$checked" >>"$table"
cat "$table"
exit "$failed"
