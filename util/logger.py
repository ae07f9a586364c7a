"""The project's log lines, on stderr and without tearing progress bars."""

import logging
import sys

from tqdm import tqdm

LOGGER = logging.getLogger("resample")  # the one logger that every module writes to


class _BarHandler(logging.Handler):
    """Writes each record above whatever bars are drawn, on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send log lines to stderr: INFO and up, with ``verbose`` DEBUG too, with ``quiet`` only warnings."""
    if not LOGGER.handlers:
        LOGGER.addHandler(_BarHandler())
    LOGGER.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
