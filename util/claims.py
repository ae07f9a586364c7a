"""Who works on what, told by files alone, so that processes on any number of machines can share a folder.

A claim is a folder with a file that names its holder. It ends when the holder says so. One whose holder is dead
expires: at once for whoever is on the holder's machine, elsewhere after a while in which the file was not touched.
A holder that was only asleep may so lose its claim and work beside another; nothing that it does may depend on being
alone, save the time that it takes.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import PART

EXPIRY = 60.0  # seconds; a holder touches its claims ten times as often
UNFILLED = 5.0  # seconds; the same for a claim that does not even say whose it is
POLL = 0.2  # seconds between looks at another's claim


class Claims:
    """The claims of this process in a folder.

    Args:
        root: the folder; made when needed, and removed with its last claim.
        expiry: seconds after which an untouched claim of a process on another machine has expired.
    """

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        self.root, self.expiry = root, expiry
        self._me = json.dumps({**(_identity(os.getpid()) or {}), "token": uuid.uuid4().hex}).encode()
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}  # a claim's last touch, and when this process first saw it
        self._beat: threading.Thread | None = None

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[Path | None]:
        """Claim a name (a relative path) for the block.

        Yields:
            A folder for the holder's unfinished files, or None: it is another's.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = self.root / name
        try:
            claimed = self._claim(folder / "claim")
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        if not claimed:
            yield None
            return
        try:
            yield folder
        finally:
            self._release(folder)

    @contextlib.contextmanager
    def wait(self, name: str) -> Iterator[Path]:
        """As `take`, once whoever has it is done."""
        while True:
            with self.take(name) as folder:
                if folder is not None:
                    yield folder
                    return
            time.sleep(POLL)

    def sweep(self) -> None:
        """Remove what dead holders have left."""
        for folder, _, files in os.walk(self.root, topdown=False):
            if "claim" in files:
                with self.take(os.path.relpath(folder, self.root)):
                    pass
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # unless there is something in it

    def others(self, folder: str) -> list[str]:
        """Return the names below a folder that are claimed, once dead holders have had the time to expire."""
        deadline = time.monotonic() + self.expiry
        while True:
            self.sweep()
            names = sorted(path.parent.name for path in (self.root / folder).glob("*/claim"))
            if not names or time.monotonic() > deadline:
                return names
            time.sleep(POLL)

    def _claim(self, path: Path) -> bool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # another's release took a folder away meanwhile
            return False
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_bytes()
            if self._is_dead(path, holder):
                _remove(path, holder)
        try:
            with open(path, "xb") as file:
                file.write(self._me)
        except (FileExistsError, FileNotFoundError):
            return False
        for part in path.parent.glob(f".*{PART}"):  # of a holder that was killed
            part.unlink(missing_ok=True)
        self._hold(path)
        return True

    def _hold(self, path: Path) -> None:
        self._held.add(path)
        if self._beat is None:
            self._beat = threading.Thread(target=self._touch_for_ever, daemon=True)
            self._beat.start()

    def _touch_for_ever(self) -> None:
        while True:
            time.sleep(self.expiry / 10)
            for path in tuple(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _release(self, folder: Path) -> None:
        claim = folder / "claim"
        self._held.discard(claim)
        with contextlib.suppress(OSError):
            if claim.read_bytes() == self._me:  # and not that of one who took this process for dead
                claim.unlink()
            while folder != self.root.parent:
                folder.rmdir()  # unless there is something in it
                folder = folder.parent

    def _is_dead(self, path: Path, holder: bytes) -> bool:
        """Tell whether the process that wrote ``holder`` into a claim is dead, as far as can be known."""
        try:
            who = json.loads(holder)
            if who["machine"] == _machine():
                return {key: who.get(key) for key in ("machine", "pid", "started")} != _identity(who["pid"])
            expiry = self.expiry
        except (ValueError, TypeError, KeyError):  # its holder was stopped between making and filling it
            expiry = min(self.expiry, UNFILLED)
        # Clocks of machines differ: what counts is for how long this process has seen the file untouched.
        touched, now = path.stat().st_mtime_ns, time.monotonic()
        if self._seen.get(path, (None, now))[0] != touched:
            self._seen[path] = touched, now
        return now - self._seen[path][1] > expiry


def _remove(path: Path, holder: bytes) -> None:
    """Remove a dead holder's claim; one that another has made in its place meanwhile is left."""
    aside = path.with_name(f".{uuid.uuid4().hex}{PART}")
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        if aside.read_bytes() != holder:
            os.link(aside, path)
        aside.unlink()


def _machine() -> str:
    """Name the running system so that no other one in the world, nor a container beside this, has the name."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _identity(pid: int) -> dict[str, Any] | None:
    """Return what tells a process of this machine from all others, earlier and later; None when it is dead."""
    started = None
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state[0] in "ZX":
            return None
        started = state[19]  # in ticks since the system's start
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # alive, and another user's
            pass
    return {"machine": _machine(), "pid": pid, "started": started}
