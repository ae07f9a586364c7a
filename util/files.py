"""Files that appear complete or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; what was written is flushed to disk and renamed at the block's end.

    After an error or an interruption inside the block, ``path`` is as it was before.

    Raises:
        UserError: it cannot be written there.
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one piece; see `whole_file`."""
    with whole_file(path) as beside:
        beside.write_bytes(content)
