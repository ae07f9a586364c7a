"""Log lines on stderr that leave progress bars intact."""

import logging
import sys

from tqdm import tqdm

# The packages whose INFO lines are for the user. Libraries only get through with warnings.
OURS = ("sample_condition", "model_loader", "data", "ldm", "ldm_inverse", "util")


class _BarHandler(logging.Handler):
    """Writes each record above whatever bars are drawn, on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


_HANDLER = _BarHandler()
_HANDLER.setFormatter(logging.Formatter("%(message)s"))


def set_up_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send the project's log lines to stderr: INFO and up, with `verbose` DEBUG too, with `quiet` only warnings."""
    root = logging.getLogger()
    if _HANDLER not in root.handlers:
        root.addHandler(_HANDLER)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for name in OURS:
        logging.getLogger(name).setLevel(level)
