"""What a run's folder says of all its restorations: its tables, its report, and the means that the command prints."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from util import results
from util.files import write_whole
from util.logger import LOGGER
from util.report import REPORT, report
from util.results import FAILED, METRICS, columns_of, csv_of, has_failed

SHARE = 0.05  # of a process's time at most goes into bringing the tables up to date, however long they are


class RunTables:
    """The tables of a run.

    Args:
        root: the run's folder.
        rows: gives what there is of each restoration by now, in the tables' order.
        alone: keeps other processes from writing them, and gives a folder for files that are not whole yet.
    """

    def __init__(
        self,
        root: Path,
        rows: Callable[[], list[dict[str, Any]]],
        alone: Callable[[], AbstractContextManager[Path]],
    ) -> None:
        self._root, self._rows, self._alone = root, rows, alone
        self._due = 0.0  # on the monotonic clock

    def update(self) -> None:
        """Write the tables, unless that would take more than a small part of this process's time."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write `metrics.csv`, and `failed.csv` where something failed."""
        started = time.monotonic()
        with self._alone() as scratch:  # else another's, made before ours, might be written after
            rows = self._rows()
            good, failed = ([row for row in rows if has_failed(row) == bad] for bad in (False, True))
            write_whole(self._root / "metrics.csv", csv_of(columns_of(good[0]) if good else METRICS, good), scratch)
            if failed:
                write_whole(self._root / "failed.csv", csv_of(FAILED, failed), scratch)
            else:
                (self._root / "failed.csv").unlink(missing_ok=True)
        ended = time.monotonic()
        self._due = ended + (ended - started) / SHARE

    def write_report(self) -> None:
        """Write `report.html`, the page of what is in the folder by now, after its tables."""
        with self._alone() as scratch:
            write_whole(self._root / REPORT, report(self._root), scratch)
        LOGGER.info("report: %s", self._root / REPORT)

    def has_failures(self, images: Sequence[str]) -> bool:
        """Tell whether a restoration of one of these images has failed."""
        of_interest = set(images)
        return any(has_failed(row) and row["image"] in of_interest for row in self._rows())

    def text(self) -> str:
        """Return the means over all restorations beside the baseline's, as text."""
        rows = self._rows()
        good = [row for row in rows if not has_failed(row)]
        more = f"\n{len(rows) - len(good)} failed: see {self._root / 'failed.csv'}" if len(good) < len(rows) else ""
        return f"{results.table(good)}, in {self._root}{more}"
