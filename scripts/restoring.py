"""The command, run in a process of its own by a program that needs what it writes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from util.errors import Terminated

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = (130, 143)
PATIENCE = 20.0  # seconds that an interrupted command gets to save where it is


def restore(words: Sequence[str]) -> int:
    """Run `sample_condition.py` on these words, so that nothing of it is left in this process; return its status.

    What it prints at its end is dropped; its log and bars on stderr are shown.
    """
    process = subprocess.Popen([sys.executable, str(ROOT / "sample_condition.py"), *words], stdout=subprocess.DEVNULL)
    try:
        return process.wait()
    except Terminated:
        process.terminate()
        process.wait()
        raise
    except KeyboardInterrupt:  # a terminal sends it to both
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
