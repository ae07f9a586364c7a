"""What a restoration imports: what is slow to import, or large, and not needed is not."""

import subprocess
import sys
from pathlib import Path

from tests.test_sample_condition import place, words  # noqa: F401

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


def test_the_first_step_waits_for_no_library_that_it_does_not_need(place, tmp_path):  # noqa: F811
    command = [sys.executable, "-c", PROGRAM, *words(place, tmp_path / "out", "--quiet", "--limit", "1")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "first step: []", run.stderr


def test_the_published_setting_loads_no_compiler(place, tmp_path):  # noqa: F811
    code = "import sys, sample_condition as s; print(s.main(sys.argv[1:]), 'torch._dynamo' in sys.modules)"
    options = ["--quiet", "--limit", "1", "--preset", "reference", "low_memory=true"]
    command = [sys.executable, "-c", code, *words(place, tmp_path / "out", *options)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1:] == ["0 False"], run.stderr
