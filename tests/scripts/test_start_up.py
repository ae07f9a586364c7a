"""The programs answer a mistyped word at once, and tell in a line what befalls them while torch loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ("converting", "restoring", "text_tables")  # which programs import once they run
PROGRAMS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - {*HELPERS})

IMPORTED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"scripts.{name}")
print(sorted({"torch", "numpy", "matplotlib", "omegaconf", "pydantic", "PIL"} & sys.modules.keys()))
"""


def test_a_program_imports_nothing_heavy_before_it_runs():
    command = [sys.executable, "-c", IMPORTED, *PROGRAMS]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
@pytest.mark.parametrize("words", [["report.py", "x"], ["check_operator.py", "inpainting"]])
def test_too_little_memory_to_load_torch_is_a_line(words):
    limited = ["bash", "-c", 'ulimit -v 500000; exec "$@"', "bash", sys.executable, f"scripts/{words[0]}", *words[1:]]
    found = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: out of memory")
    assert found.stderr.count("\n") == 1
