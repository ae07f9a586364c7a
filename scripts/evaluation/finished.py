"""Each restoration in a run's folder, read back."""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.picture_files import opened
from data.pictures import decode_picture
from ldm_inverse.measurement import Measurement
from ldm_inverse.runs.manifest import picture_folders, read_record, recorded_plugins
from ldm_inverse.runs.measurement_file import read_measurement
from ldm_inverse.runs.results import PASSES, Results, has_failed, text_of
from ldm_inverse.task import Task
from util.errors import UserError
from util.plugins import load_plugins


class FinishedRun:
    """The finished restorations in a folder that `sample_condition.py` has written, whether or not the run has ended.

    Args:
        folder: the run's.
        plugins: files of a person's own code that may be run to rebuild the task.
        names: of the restorations to take; None takes all that the run has. Of images that it had before, it may have
            results, and does not count them.

    Attributes:
        record: its `settings.yaml`.
        rows: what is known of each restoration, by its name.
        failed: how many could not be made.
        former: how many are left out, as the run has their images no longer.

    Raises:
        UserError: there is no run, or nothing is finished.
    """

    def __init__(self, folder: Path, plugins: Sequence[str] = (), names: Collection[str] | None = None) -> None:
        self.folder, self._plugins = folder, plugins
        record = read_record(folder / "settings.yaml")
        if record is None:
            raise UserError(f"no run in {folder}: looked for settings.yaml")
        self.record: Mapping[str, Any] = record
        results = Results(folder / "results").read()
        former = _former(folder, results) if names is None else results.keys() - set(names)
        self.former = len(former) if names is None else 0
        found = {name: row for name, row in sorted(results.items()) if name not in former}
        self.rows = {name: row for name, row in found.items() if not has_failed(row)}
        self.failed = len(found) - len(self.rows)
        if not self.rows:
            raise UserError(f"{folder} holds no finished restoration" + (": see failed.csv" if self.failed else ""))

    @cached_property
    def task(self) -> Task:
        """The task, rebuilt from the record.

        Raises:
            UserError: the record holds none, or it needs a plugin that may not be run or has changed.
        """
        recorded = recorded_plugins(self.folder)
        absent = [path for path in recorded if path not in self._plugins]
        if absent:
            raise UserError(
                f"{self.folder} was made with code of its own, which runs only on request: give --plugin {absent[0]}"
            )
        load_plugins(self._plugins, recorded)
        try:
            return recorded_task(self.record)
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.folder / 'settings.yaml'} lacks the measurement's settings: {error}") from error

    def path(self, kind: str, name: str) -> Path:
        """Return where the picture of a restoration's truth, measurement or restoration (``kind``) is."""
        return self.folder / picture_folders(self.record)[kind] / f"{name}.png"

    def pixels(self, kind: str, name: str) -> np.ndarray | None:
        """Return the 8-bit picture (H, W, C) at a `path`, C as in the model's images; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        path = self.path(kind, name)
        return read_pixels(path)[..., : channels_of(path)] if path.exists() else None

    def measurement(self, image: str, shape: tuple[int, ...]) -> Measurement:
        """Return the saved measurement of a picture of ``shape`` (1, C, H, W).

        Raises:
            UserError: there is none, or it cannot be one of such a picture.
        """
        return self.task.accept(self._saved(image), torch.zeros(shape))

    def fingerprint(self, image: str) -> str:
        """Return what is equal for equal measurements by equal operators, and for no others: a SHA-256."""
        digest = hashlib.sha256(json.dumps(self.task.settings, sort_keys=True).encode())
        for key, tensor in sorted(self._saved(image).items()):
            digest.update(f"{key} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def _saved(self, image: str) -> dict[str, Tensor]:
        return read_measurement(self.folder / "label", image, self.task.settings)

    def passes(self, name: str) -> dict[str, float]:
        """Return the passes through each network that the trace of a restoration counts; empty without a trace.

        Raises:
            UserError: the trace is damaged.
        """
        path = self.folder / "progress" / name / "trace.csv"
        try:
            rows = list(csv.DictReader(path.read_text().splitlines()))
            counted = [kind for kind in PASSES if not rows or kind in rows[0]]  # earlier versions count fewer
            return {kind: float(sum(int(row[kind]) for row in rows)) for kind in counted}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a readable trace: {error!r}") from error


def _former(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the names of the results that the run's tables leave out, though they were there when these were written.

    A newer one is of a run that still goes on, or was stopped before it wrote its tables again.
    """
    try:
        written = (folder / "metrics.csv").stat().st_mtime_ns
        tables = [folder / name for name in ("metrics.csv", "failed.csv") if (folder / name).is_file()]
        rows = [row for path in tables for row in csv.DictReader(io.StringIO(path.read_bytes().decode()))]
        told = {(text_of(row["image"]), row["sample"]) for row in rows}
        others = [name for name, row in results.items() if (row["image"], str(row["sample"])) not in told]
        return {name for name in others if (folder / "results" / f"{name}.json").stat().st_mtime_ns < written}
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # without its tables all of it counts


def recorded_task(record: Mapping[str, Any]) -> Task:
    """Return the task of a run's record.

    Raises:
        KeyError, TypeError: the record holds none.
    """
    measurement = dict(record["settings"]["measurement"])
    span = measurement.pop("range", None)
    return Task(**measurement, span=None if span is None else tuple(span))


def read_pixels(path: Path) -> np.ndarray:
    """Return a picture as 8-bit RGB (H, W, 3).

    Raises:
        UserError: it cannot be read.
    """
    try:
        return np.asarray(decode_picture(str(path), path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def channels_of(path: Path) -> int:
    """Return how many channels the images have whose pictures a run has written so: 1 where they are grey, else 3.

    Raises:
        UserError: it cannot be read.
    """
    with opened(path) as image:
        return 1 if image.mode in ("L", "I;16", "I") else 3
