"""A restoration imports nothing slow or large that it does not need."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import words

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
import sample_condition
from ldm.models.diffusion.prior import LatentPrior

def first_step(*_, **__):
    slow = {"skimage", "scipy", "torchvision", "matplotlib", "torch._dynamo"} & sys.modules.keys()
    sys.stdout.write(f"first step: {sorted(slow)}")
    sys.stdout.flush()
    raise SystemExit

LatentPrior.predict_noise = first_step
sample_condition.main(sys.argv[1:])
"""


def test_the_first_step_waits_for_no_library_that_it_does_not_need(place, tmp_path):
    command = [sys.executable, "-c", PROGRAM, *words(place, tmp_path / "out", "--quiet", "--limit", "1")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "first step: []", run.stderr


AFTERWARDS = """
import sys
import sample_condition

status = sample_condition.main(sys.argv[1:])
sys.stdout.write(f"\\n{status} {'torch._dynamo' in sys.modules}")
"""


@pytest.mark.parametrize("preset", [None, "light"])
def test_no_restoration_imports_torchs_compiler(preset, place, tmp_path):
    given = ["--preset", preset] if preset else []
    command = [sys.executable, "-c", AFTERWARDS, *words(place, tmp_path / "out", "--quiet", "--limit", "1", *given)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.endswith("0 False"), run.stderr
