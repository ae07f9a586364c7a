"""scripts/check_card.sh, run with a stand-in for Python."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import benchmark
from tests.reference import on_card

ROOT = Path(__file__).resolve().parents[2]
# Finds a card, writes down what it is asked, and does what $FAIL does not name.
FAKE_PYTHON = """#!/usr/bin/env bash
[ "$1" != -c ] || exit 0
printf '%q ' "$TEST_CARD" "$@" >> "$LOG"; echo >> "$LOG"
case "$*" in
    *"$FAIL"*) echo trouble; exit 1 ;;
    *benchmark.py*) printf 'about\\n\\n| part | mode |\\n' > "${@: -1}/restorations.md" ;;
    *) echo first; echo "12 | passed" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Run the script; gives the status, the table's lines and the commands."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def check(fail="nothing"):
        log.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "check_card.sh"), str(tmp_path / "out")],
            env={**os.environ, "PYTHON": str(python), "LOG": str(log), "FAIL": fail},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout == (tmp_path / "out" / "table.md").read_text()
        return done.returncode, done.stdout.splitlines(), [shlex.split(line) for line in log.read_text().splitlines()]

    return check


def test_one_table_of_tests_values_and_times(check):
    status, table, commands = check()
    assert status == 0
    assert table[2] == "| part | mode |"
    assert table[3:] == [
        "| recorded values | | 12  passed | | | |",
        "| tests on the card | | 12  passed | | | |",
    ]
    assert all(command[0] == "cuda" for command in commands)
    values, tests, times = (command[1:] for command in commands)
    ((program, *parts),) = json.loads(values[2])
    assert program == on_card.__name__
    assert not parts
    assert (ROOT / tests[-1]).is_file()
    args = benchmark.parse(times[1:])
    assert (args.restorations, args.compile) == (["fastest", "fast"], True)
    assert args.precision == ["fp32", "tf32", "bf16"]


@pytest.mark.parametrize(("fail", "row"), [("test_card.py", "tests on the card"), ("benchmark.py", "restorations")])
def test_a_check_that_fails_is_told_and_the_others_go_on(check, fail, row):
    status, table, commands = check(fail)
    assert status == 1
    assert len(commands) == 3
    (line,) = (line for line in table if "FAILED" in line)
    assert line.startswith(f"| {row} |")
    assert Path(line.split("see ")[1].split()[0]).read_text() == "trouble\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "check_card.sh"), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA card" in done.stderr
    assert not (tmp_path / "out").exists()
