"""While a run goes on, a person sees bars in a terminal and lines elsewhere."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sample_condition import main
from tests.runs import words

ROOT = Path(__file__).resolve().parents[1]


def test_a_line_for_each_image_tells_how_far_the_run_is(place, tmp_path, capsys):
    assert main(words(place, tmp_path, "--limit", "3", steps=2)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "baseline" in line]
    # Two steps with random weights end far from the noise.
    scores = r"-?\d+\.\d\d dB, baseline \d+\.\d\d dB, residual \d+ times the noise, \d+\.\d s"
    for place_, (line, name) in enumerate(zip(lines, ("a_jpg", "a_png", "b b"), strict=True), start=1):
        left = r", \d\d:\d\d left" if place_ < 3 else ""
        assert re.fullmatch(rf"{name}: {scores}; {place_} of 3{left}, \d+\.\d GB at most", line)


def test_in_a_terminal_bars_tell_the_stage_its_loss_and_its_target(place, tmp_path):
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    mine, terminal = pty.openpty()
    # Without a width it has no room for bars.
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    command = [sys.executable, "sample_condition.py", *words(place, tmp_path, "--limit", "2", steps=3)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        seen = b""
        try:
            while block := os.read(mine, 4096):
                seen += block
        except OSError:  # a terminal's way to say that nobody writes to it any more
            pass
        table = process.stdout.read().decode()
    assert process.returncode == 0
    shown = seen.decode()
    assert "images: 100%" in shown
    assert re.search(r"sampling: +\d+%.*\d\d:\d\d<", shown)
    assert re.search(r"final, loss \d\.\de-\d\d, target 1\.0e-06, \d+\.\d GB", shown)
    assert "2 restorations" in table
