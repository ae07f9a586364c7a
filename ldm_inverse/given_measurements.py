"""The measurements that a person gives for restoration (`--measurement`), as a data set without truths."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.dataloader import refuse
from data.measured import MeasuredFolder, is_run_with_truth, made_by
from ldm_inverse.task import Measurement, Task
from util.errors import UserError
from util.measurement_file import read_measurement


def are_given(args: Namespace) -> bool:
    """Tell whether the command's arguments give measurements without a truth, rather than pictures.

    Raises:
        UserError: they give both, or would have the measurements resized.
    """
    path = args.measurement
    if path is None or is_run_with_truth(path):
        return False
    if args.data is not None:
        raise UserError(
            f"--data and --measurement exclude each other: {path} is no label/ folder of a run, so there is no truth"
        )
    if args.resize not in ("error", "pad"):
        raise UserError(f"--resize {args.resize} would change what was measured: with --measurement error or pad")
    return True


class GivenMeasurements(MeasuredFolder):
    """A `MeasuredFolder` of one task's measurements.

    Args:
        root: as `MeasuredFolder`.
        task: whose operator made them.
        limit: as `MeasuredFolder`.
    """

    def __init__(self, root: Path, task: Task, limit: int | None = None) -> None:
        super().__init__(root, limit)
        self._task = task

    def measured(self, name: str) -> tuple[Measurement, tuple[int, ...]]:
        """Return the measurement of a name, and the shape (1, 3, H, W) of the image that it is of.

        Raises:
            UserError: it cannot be read, or is none by the task's operator.
        """
        path = dict(self.pictures)[name]
        if made_by(path) is not None:
            tensors = read_measurement(path.parent, path.stem, self._task.settings)
        else:
            tensors = self.tensors(name)
        try:
            return self._task.given(name, tensors)
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from error

    def problems(self, fits: Callable[[str, int, int], Any]) -> dict[str, str]:
        """Return what is wrong with each measurement that cannot be used, by name; each is read.

        Args:
            fits: raises a UserError for a name, and a height and a width of its image, that cannot be used.
        """
        problems = {}
        for name, path in self.pictures:
            try:
                self._check_fit(name, path, fits)
            except UserError as error:
                problems[name] = str(error)
        return problems

    def _check_fit(self, name: str, path: Path, fits: Callable[[str, int, int], Any]) -> None:
        _, shape = self.measured(name)
        try:
            fits(name, *shape[-2:])
        except UserError as error:
            raise UserError(f"{str(path)!r}: the image of this measurement: {error}") from error

    def check(self, fits: Callable[[str, int, int], Any]) -> None:
        """Check every measurement; see `problems`.

        Raises:
            UserError: naming those that cannot be used, one a line.
        """
        refuse(list(self.problems(fits).values()))
