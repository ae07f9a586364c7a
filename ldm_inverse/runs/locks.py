"""Locks of a run's folder: who works there, and one process at a time for what belongs to no single image."""

import contextlib
import os
import platform
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from util.errors import UserError

PATIENCE = 600.0  # seconds; the folder's lock is held for a moment only, so whoever holds it longer is stuck


class FolderLocks:
    """The locks of this process in a folder.

    The system releases a lock when its process dies, however it dies. `folder.lock` keeps others out (`alone`), and
    each process that works in the folder holds a file of its own for as long as it does (`join`). A process joins,
    looks for others and leaves under the folder's lock, so that nobody comes or goes between the look and what follows
    from it.

    Args:
        root: the folder of the locks. It stays: to delete a lock that another process waits for would break it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = FileLock(root / "folder.lock")
        self._own: FileLock | None = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other processes out of the block; a process may enter again inside it.

        Raises:
            UserError: there can be no locks, or another process holds this one for ever.
        """
        with self._errors_told():
            self.root.mkdir(parents=True, exist_ok=True)
            self._folder.acquire(timeout=PATIENCE)
        try:
            yield
        finally:
            self._folder.release()

    def join(self) -> None:
        """Hold a lock of this process's own from now on."""
        with self.alone(), self._errors_told():
            name = f"{platform.node()} process {os.getpid()} {uuid.uuid4().hex[:8]}.lock"
            self._own = FileLock(self.root / name)
            self._own.acquire(timeout=0)

    def others(self) -> list[str]:
        """Return the names of the other processes that hold their locks; what dead ones left is deleted."""
        found = []
        with self.alone(), self._errors_told():
            for path in sorted(self.root.glob("* process *.lock")):
                if self._own is not None and path == Path(self._own.lock_file):
                    continue
                lock = FileLock(path)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    found.append(path.stem.rpartition(" ")[0])
                    continue
                path.unlink(missing_ok=True)  # nobody waits for it: it is tried under the folder's lock only
                lock.release()
        return found

    def leave(self) -> None:
        """Release this process's own lock."""
        if self._own is not None:
            with self.alone(), self._errors_told():
                Path(self._own.lock_file).unlink(missing_ok=True)
                self._own.release()
            self._own = None

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise UserError(
                f"{self.root}: another process holds {Path(error.lock_file).name} and does not release it"
            ) from error
        except (OSError, NotImplementedError) as error:  # the latter: the file system knows no locks
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot lock files in {self.root}: {reason}") from error
