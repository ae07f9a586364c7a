"""The project's log lines, on stderr without tearing progress bars, and in a run's log file."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from util.errors import Terminated, UserError
from util.processes import rank

LOGGER = logging.getLogger("resample")  # the one logger that every module writes to


class _BarHandler(logging.Handler):
    """Writes each record above whatever bars are drawn, on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Writes each record with its time. A log that cannot be written (a full disk) must not end the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


_ON_STDERR = _BarHandler()


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send log lines to stderr: INFO and up, with ``verbose`` DEBUG too, with ``quiet`` only warnings."""
    LOGGER.addHandler(_ON_STDERR)
    _ON_STDERR.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


@contextmanager
def log_file(path: Path, title: str) -> Iterator[None]:
    """Keep the block's log lines (INFO and up, DEBUG where it goes to stderr) in a file too, and how the block ended.

    Args:
        path: the file; folders above it are made.
        title: its first line.

    Raises:
        UserError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    LOGGER.addHandler(handler)
    handler.handle(logging.makeLogRecord({"msg": title, "levelname": "INFO"}))
    ended: dict[str, Any] = {"msg": "finished", "levelname": "INFO"}
    try:
        yield
    except BaseException as error:
        expected = isinstance(error, UserError | Terminated | KeyboardInterrupt)
        ended = {"msg": f"ended by {type(error).__name__} {error}".strip(), "levelname": "ERROR"}
        ended["exc_info"] = None if expected else sys.exc_info()
        raise
    finally:
        handler.handle(logging.makeLogRecord(ended))
        LOGGER.removeHandler(handler)
        handler.close()


def progress_bar(total: int, what: str, quiet: bool = False) -> tqdm:
    """Return a bar on stderr; it is not drawn with ``quiet``, off a terminal, or by a launcher's further ranks."""
    return tqdm(total=total, desc=what, disable=quiet or rank() > 0 or None, dynamic_ncols=True)


class SayOnce:
    """Logs a line, and the same line never again: what is read twice, to check it and to use it, is told once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            LOGGER.log(level, text)
