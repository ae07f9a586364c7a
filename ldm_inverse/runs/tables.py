"""A run's tables, its report, and the means that the command prints."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ldm_inverse.runs import results
from ldm_inverse.runs.report import REPORT
from ldm_inverse.runs.report.page import report
from ldm_inverse.runs.results import FAILED, METRICS, RATIO, columns_of, csv_of, has_failed, is_far
from util.logging import LOGGER

SHARE = 0.05  # of a process's time at most goes into bringing the tables up to date, however long they are


class RunTables:
    """The tables of a run.

    Args:
        root: the run's folder.
        rows: gives what there is of each restoration by now, in the tables' order.
        alone: keeps other processes from writing them.
        write: writes a file, of a name, whole.
    """

    def __init__(
        self,
        root: Path,
        rows: Callable[[], list[dict[str, Any]]],
        alone: Callable[[], AbstractContextManager[None]],
        write: Callable[[str, bytes], None],
    ) -> None:
        self._root, self._rows, self._alone, self._write = root, rows, alone, write
        self._due = 0.0  # on the monotonic clock

    def update(self) -> None:
        """Write the tables, unless that would take more than a small part of this process's time."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write `metrics.csv`, and `failed.csv` where something failed."""
        started = time.monotonic()
        with self._alone():  # else another's, made before ours, might be written after
            rows = self._rows()
            good, failed = ([row for row in rows if has_failed(row) == bad] for bad in (False, True))
            self._write("metrics.csv", csv_of(columns_of(good[0]) if good else METRICS, good))
            if failed:
                self._write("failed.csv", csv_of(FAILED, failed))
            else:
                (self._root / "failed.csv").unlink(missing_ok=True)
        ended = time.monotonic()
        self._due = ended + (ended - started) / SHARE

    def write_report(self) -> None:
        """Write `report.html`, the page of what is in the folder by now, after its tables."""
        with self._alone():
            self._write(REPORT, report(self._root))
        LOGGER.info("report: %s", self._root / REPORT)
        self.say_what_is_far()

    def say_what_is_far(self) -> None:
        """Warn of restorations that do not fit their measurements, or that fit the noise as well."""
        rows = [row for row in self._rows() if not has_failed(row)]
        far = [row for row in rows if is_far(row)]
        if far:
            worst = max(far, key=lambda row: abs(math.log(row[RATIO] or math.ulp(0.0))))
            LOGGER.warning(
                "%d of %d restorations have residuals far from the noise (%s: its residual is %.3g times the noise): "
                "the noise level, the values' range or the operator may be wrong, or the solver has too few steps; "
                "see %s in metrics.csv",
                *(len(far), len(rows), worst["image"], worst[RATIO], RATIO),
            )

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
