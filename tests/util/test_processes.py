"""How threads wait for each other."""

import os
import subprocess
import sys

import pytest

COMMAND = """
import os, sys
from util.cli import Parser, exit_status
assert "torch" not in sys.modules
exit_status(lambda args: print(os.environ.get("GOMP_SPINCOUNT")), [], lambda words: Parser().parse_args(words))
"""


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "400"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_a_command_says_how_long_threads_spin_unless_it_is_told(given, spins):
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", COMMAND], env=environment | given, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == spins
