"""The measurements that a person gives for restoration (`--measurement`), as a data set without truths."""

from pathlib import Path

from data.measured import MeasuredFolder, holds_saved, made_by
from data.named_pictures import Fits
from data.sources import Frames, Source
from ldm_inverse.measurement import Measurement
from ldm_inverse.runs.manifest import picture_folders, read_record
from ldm_inverse.runs.measurement_file import read_measurement
from ldm_inverse.runs.request import Request
from ldm_inverse.task import Task
from util.errors import UserError


class GivenMeasurements(MeasuredFolder):
    """A `MeasuredFolder` of one task's measurements.

    Args:
        root: as `MeasuredFolder`.
        task: whose operator made them.
        limit, frames, data_root: as `MeasuredFolder`.
        channels: of the images.
    """

    def __init__(
        self,
        root: Path,
        task: Task,
        limit: int | None = None,
        frames: Frames = "first",
        data_root: str | Path | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(root, limit, frames, data_root, task.span)
        self._task, self._channels = task, channels

    def measured(self, name: str) -> tuple[Measurement, tuple[int, ...]]:
        """Return the measurement of a name, and the shape (1, C, H, W) of the image that it is of.

        Raises:
            UserError: it cannot be read, or is not one of the task's operator.
        """
        source = self.source(name)
        path = source.path

        def say(level: int, text: str) -> None:
            self.say_once(level, f"{source}: {text}")

        is_saved = made_by(path) is not None
        settings = self._task.settings
        tensors = read_measurement(path.parent, path.stem, settings) if is_saved else self.tensors(name)
        try:
            return self._task.given(self.origin(name), tensors, self._channels, say, is_saved=is_saved)
        except UserError as error:
            raise UserError(f"{str(source)!r}: {error}") from error

    def _check_one(self, name: str, source: Source, fits: Fits | None) -> None:
        """Each is read."""
        _, shape = self.measured(name)
        try:
            if fits is not None:
                fits(name, *shape[-2:])
        except UserError as error:
            raise UserError(f"{str(source)!r}: the image of this measurement: {error}") from error


def given_measurements(request: Request, task: Task, channels: int) -> GivenMeasurements | None:
    """Return the measurements without a truth that a request gives, of images of so many channels.

    None where pictures are to be measured, or have been by an earlier run.

    Raises:
        UserError: it gives both, or would have the measurements resized; or there are none.
    """
    path = request.measurement
    if path is None or (holds_saved(path) and (request.data or _has_truths(path))):
        return None
    if request.data:
        raise UserError(
            f"--data and --measurement exclude each other: {path} is not the label/ folder of a run, so it has no truth"
        )
    if request.resize not in ("error", "pad"):
        raise UserError(
            f"--resize {request.resize} would change what was measured: with --measurement, use error or pad"
        )
    data = request.settings.data
    return GivenMeasurements(path, task, request.limit, data.frames, data.data_root, channels)


def _has_truths(label: Path) -> bool:
    """Tell whether a run's `label/` has measurements of pictures, which are beside it in the run's folder."""
    record = read_record(label.absolute().parent / "settings.yaml")
    return record is not None and any((label.absolute().parent / picture_folders(record)["truth"]).glob("*.png"))
