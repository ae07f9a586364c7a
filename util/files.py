"""Files that appear complete or not at all, and whether one is still the same."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError

PART = ".part"  # the suffix of a file that is being written


def version_of(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Return numbers that change when a file is replaced or written to: time of change, inode, size.

    Raises:
        OSError: there is no such file, or it may not be asked.
    """
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ino, status.st_size


@contextlib.contextmanager
def whole_file(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; what was written there is flushed to disk and renamed to ``path`` at the block's end.

    After an error or an interruption inside the block, ``path`` is as it was before. A process that is killed inside it
    leaves a hidden file of the suffix `PART`.

    Args:
        path: the file; folders above it are made.
        scratch: the folder to write in meanwhile, on the same file system; None is the file's own.

    Raises:
        UserError: it cannot be written there.
    """
    folder = scratch or path.parent
    part = folder / f".{uuid.uuid4().hex}{PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Write a file in one piece; see `whole_file`."""
    with whole_file(path, scratch) as part:
        part.write_bytes(content)
