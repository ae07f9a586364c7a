"""One restoration: the command in a process of its own, which is watched and can be stopped."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 200  # of the terminal that the command believes to write to: room for its whole bar

_BAR = re.compile(r"sampling:.*?(\d+)/(\d+) \[([\d:]+)<([\d:?]+)")


class Job:
    """The command `sample_condition.py` on a photo, in a process of its own.

    Args:
        words: the command's, `--save_dir` among them.
        folder: the one that `--save_dir` names.

    Attributes:
        words: as given.
    """

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.words = list(words)
        self._folder = folder
        self._text = ""
        self._is_stopped = False
        leader, follower = pty.openpty()  # the command draws its bar, with the time left, for a terminal only
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "sample_condition.py", *self.words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=follower,
        )
        os.close(follower)
        self._reader = threading.Thread(target=self._read, args=(leader,), daemon=True)
        self._reader.start()

    def _read(self, leader: int) -> None:
        with contextlib.suppress(OSError), open(leader, "rb", buffering=0) as stream:  # OSError: nobody writes any more
            while chunk := stream.read(4096):
                self._text = (self._text + chunk.decode(errors="replace"))[-20_000:]

    def command(self) -> str:
        """Return the line that does the same again."""
        return shlex.join(["python", "sample_condition.py", *self.words])

    def is_running(self) -> bool:
        """Tell whether the command has not ended."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> None:
        """Wait until the command has ended, or so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def stop(self) -> None:
        """End the command, if it runs, as Ctrl-C does: what it has done so far stays."""
        if not self.is_running():
            return
        self._is_stopped = True
        self._process.terminate()
        self.wait(20)
        if self.is_running():
            self._process.kill()

    def progress(self) -> str:
        """Return how far it is, and how much time is left, in a few words."""
        found = _BAR.findall(self._text)
        if not found:
            return "loading the model"
        done, steps, elapsed, left = found[-1]
        return f"step {done} of {steps}, {elapsed} so far" + ("" if "?" in left else f", about {left} left")

    def estimate(self) -> Path | None:
        """Return the latest picture of what the photo may have been."""
        pictures = [*self._folder.glob("progress/*/step_*.png"), *self._folder.glob("recon/*.png")]
        return max(pictures, key=lambda path: path.stat().st_mtime_ns, default=None)

    def result(self) -> Path | None:
        """Return the restored picture, once it is there."""
        return next(self._folder.glob("recon/*.png"), None)

    def outcome(self) -> str:
        """Return how it went, once it has ended: the command's own line where it failed."""
        self._reader.join(5)
        if self._process.returncode == 0:
            return "done"
        if self._is_stopped:
            return "stopped"
        lines = [line.strip() for line in re.split(r"[\r\n]+", self._text) if line.strip()]
        errors = [line for line in lines if line.startswith("error: ") or "not restored" in line]
        return (errors or lines or ["the command failed"])[-1]
