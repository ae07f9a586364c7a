"""A run's folder: what is written where, whole or not at all, by as many processes as share it."""

import io
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from util import measurement_file, results, sampler_state
from util.animation import animation
from util.claims import POLL, Claims
from util.errors import ImageError, UserError
from util.files import write_whole
from util.logger import LOGGER
from util.memory import peak_memory_text
from util.metrics import to_uint8
from util.pace import Pace
from util.record import CIRCUMSTANCES, differences, read_record
from util.report import REPORT
from util.residual_plot import residual_plot
from util.results import PASSES, Results, csv_of, has_failed, restoration_name
from util.run_tables import RunTables
from util.sampler_state import Progress

LOSSES = ("first_loss", "last_loss", "target", "noise_floor")
TRACE = ("step", "timestep", "stage", "iterations", *LOSSES, "stop", *PASSES, "seconds")
CURVE = ("step", "stage", "iteration", "loss")
FOLDERS = ("input", "label", "baseline", "recon", "progress", "results")
SETTINGS = "settings.yaml"
ALL = "run"  # the claim to what belongs to no single image


class RunFolder:
    """The folder of a run.

    `input/`, `label/` and `recon/` hold one PNG for each restoration, of the same name in each: the measurement, the
    truth and the restoration. Where there is no truth, `baseline/` has what one would do without a model in its place.
    `label/<image>.safetensors` is the exact measurement with what the operator drew for it;
    `progress/<restoration>/` the evolving estimate and `trace.csv`. `results/<restoration>.json` comes last: where it
    is, all else is there. `metrics.csv` and `failed.csv` are made of these, and `report.html` of everything;
    `settings.yaml` is for all; `log/` has one file for each process. `.claims/` says who works on what, while someone
    does.

    Args:
        root: the folder; it is made when the first file is written.
        images: names of all images, in the order of the tables.
        samples: restorations of each measurement.

    Attributes:
        tables: what is told of all restorations together.
    """

    def __init__(self, root: Path, images: Sequence[str] = (), samples: int = 1) -> None:
        self.root, self.images, self.samples = root, images, samples
        self._results = Results(root / "results")
        self._claims = Claims(root / ".claims")
        self._record: dict[str, Any] | None = None  # of the run that was begun
        self._scratch: Path | None = None  # where the files of the images in hand are written first
        self._pace = Pace((), ())
        self.tables = RunTables(root, self.rows, lambda: self._claims.wait(ALL))

    def name(self, image: str, sample: int) -> str:
        """Return the name of a restoration (`restoration_name`)."""
        return restoration_name(image, sample, self.samples)

    def _names(self) -> Iterator[str]:
        return (self.name(image, sample) for image in self.images for sample in range(self.samples))

    def log_path(self) -> Path:
        """Return a file for this process's log: one for each, as machines cannot append to one."""
        return self.root / "log" / f"{time.strftime('%Y%m%dT%H%M%S')}_{platform.node()}_{os.getpid()}.log"

    # Beginning, and going on.

    def check(self, record: Mapping[str, Any], overwrite: bool = False) -> None:
        """Check that the folder can be written and holds nothing by other settings, without writing.

        Args:
            record: of this run, see `util.record.record`.
            overwrite: results by other settings may be replaced.

        Raises:
            UserError: it cannot, or it does.
        """
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"cannot write to {self.root}: {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.root}: no permission to write in {there}")
        if not overwrite:
            self._refuse_others(record)

    def begin(self, record: Mapping[str, Any], overwrite: bool = False) -> dict[str, Any]:
        """Write `settings.yaml`, or find that it is there and say that the run goes on.

        Images that failed before their first step, such as unreadable ones, are to be tried again. With ``overwrite``
        results by other settings are deleted. Other arguments and exceptions as for `check`.

        Returns:
            The record in force: threads that were not given are those in the folder, or else torch's own.
        """
        with self._claims.wait(ALL) as scratch:
            found = read_record(self.root / SETTINGS)
            if found is not None and overwrite and differences(found, record):
                self._refuse_company()
                self._clear()
                found = None
            self._refuse_others(record)
            record = dict(record)
            if found is not None:
                self._go_on(found, record)
                record |= {key: found[key] for key in ("device", "versions")}
            if record["threads"] is None:
                record["threads"] = found["threads"] if found else torch.get_num_threads()
            if found != record:
                content = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
                write_whole(self.root / SETTINGS, content.encode(), scratch)
        self._record = record
        return record

    def _refuse_company(self) -> None:
        others = self._claims.others("images")
        if others:
            raise UserError(f"{self.root}: another process works there (on {others[0]}); stop it before --overwrite")

    def _require_own_settings(self) -> None:
        if self._record is None:
            return
        found = read_record(self.root / SETTINGS)
        if found is None or differences(found, self._record):
            raise UserError(f"{self.root} was taken over by a run with other settings (--overwrite): this one ends")

    def _refuse_others(self, record: Mapping[str, Any]) -> None:
        found = read_record(self.root / SETTINGS)
        lines = differences(found, record) if found is not None else []
        if lines:
            raise UserError(
                f"{self.root} holds a run by other settings; take another --save_dir, or --overwrite to delete it:\n"
                + "\n".join(f"  {line}" for line in lines)
            )

    def _clear(self) -> None:
        LOGGER.info("%s: the results by other settings are deleted", self.root)
        (self.root / SETTINGS).unlink()  # last to come, first to go: what is half deleted must not look like a run
        for folder in FOLDERS:
            if (self.root / folder).is_dir():
                shutil.rmtree(self.root / folder)
        for file in ("metrics.csv", "failed.csv", REPORT):
            (self.root / file).unlink(missing_ok=True)
        self._results = Results(self.root / "results")

    def _go_on(self, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        for line in differences(found, record, CIRCUMSTANCES):
            LOGGER.warning("%s was begun under other circumstances: %s", self.root, line)
        for name, row in list(self._results.read().items()):
            if has_failed(row) and row["step"] is None:
                self._results.forget(name)
        LOGGER.info("%s: going on; %d restorations are there", self.root, len(self.rows()))

    # The images.

    def samples_left(self, image: str) -> list[int]:
        """Return which restorations of an image neither are finished nor have failed."""
        return [sample for sample in range(self.samples) if not self._results.has(self.name(image, sample))]

    def is_done(self, name: str) -> bool:
        """Tell whether the restoration of a name is finished or has failed."""
        return self._results.has(name)

    def left(self, images: Sequence[str], batch_size: int = 1) -> Iterator[list[str]]:
        """Yield those of these images that are not finished, claimed while the caller has them, until all are.

        At a time come as many as it takes for a batch of restorations, or fewer.

        Those that another process works on are waited for, and taken when it dies. Close the iterator when leaving it
        early (`contextlib.closing`), so that its claims end.

        Raises:
            UserError: another run has taken the folder over.
        """
        waiting, count = list(images), ceil(batch_size / self.samples)
        wanted = [self.name(image, sample) for image in images for sample in range(self.samples)]
        self._pace = Pace(wanted, self._results.read())
        while waiting:
            others: list[str] = []
            found = iter(waiting)
            while True:
                with ExitStack() as claims:
                    batch = list(islice(self._claimed(found, claims, others), count))
                    if not batch:
                        break
                    self._require_own_settings()
                    yield batch
            if len(others) == len(waiting):
                time.sleep(POLL)
            waiting = others
        self._claims.sweep()

    def _claimed(self, images: Iterator[str], claims: ExitStack, others: list[str]) -> Iterator[str]:
        """Yield unfinished images and claim them until ``claims`` end; ``others`` collects those that others have."""
        for image in images:
            if not self.samples_left(image):
                continue
            scratch = claims.enter_context(self._claims.take(f"images/{image}"))
            if scratch is None:
                others.append(image)
            elif self.samples_left(image):
                self._scratch = scratch
                yield image

    @contextmanager
    def failures(self, image: str, samples: Sequence[int]) -> Iterator[None]:
        """Record an ImageError inside the block as the outcome of these restorations, and go on."""
        try:
            yield
        except ImageError as error:
            self.fail(image, samples, error)

    def fail(self, image: str, samples: Sequence[int], error: ImageError) -> None:
        """Record what ended these restorations of an image."""
        LOGGER.warning("%s: not restored: %s", image, error.reason)
        for sample in samples:
            self._finish(image, sample, {"step": error.step, "reason": error.reason})

    # What is written for one.

    def write_restoration(self, image: str, sample: int, **pictures: Tensor) -> None:
        """Write the pictures of a restoration, each (1, C, h, w) in [-1, 1], by the name of their folder."""
        name = self.name(image, sample)
        for folder, picture in pictures.items():
            self.write_picture(folder, name, to_uint8(picture))
        estimates = sorted((self.root / "progress" / name).glob("step_*.png"))
        self._write(f"progress/{name}/estimate.webp", animation([*estimates, self.root / "recon" / f"{name}.png"]))

    def write_picture(self, folder: str, name: str, picture: np.ndarray) -> None:
        """Write 8-bit pixels (H, W, 3) or (H, W, 1) as `<folder>/<name>.png`."""
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(buffer, format="png")
        self._write(f"{folder}/{name}.png", buffer.getvalue())

    def write_measurement(self, image: str, tensors: Mapping[str, Tensor], made_by: Mapping[str, Any]) -> None:
        """Write `label/<image>.safetensors`, with the settings that made it in its header."""
        self._write(f"label/{image}.safetensors", measurement_file.encode(tensors, made_by))

    def write_trace(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what the sampler did beside the progress: `trace.csv`, its rows' ``losses`` (pairs of an iteration and
        a loss) as `losses.csv`, and drawn as `residual.svg`."""
        self._write(f"progress/{name}/trace.csv", csv_of(TRACE, rows))
        points = (
            {"step": row["step"], "stage": row["stage"], "iteration": iteration, "loss": loss}
            for row in rows
            for iteration, loss in row["losses"]
        )
        self._write(f"progress/{name}/losses.csv", csv_of(CURVE, points))
        self._write(f"progress/{name}/residual.svg", residual_plot(rows).encode())

    def write_state(self, name: str, progress: Progress) -> None:
        """Write where a restoration stands, for a later process to go on from."""
        self._write(state_path(name), sampler_state.encode(*progress))

    def add_metrics(
        self,
        image: str,
        sample: int,
        outcome: Mapping[str, float | None],
        passes: Sequence[int],
        seconds: float,
    ) -> None:
        """Finish a restoration: what `METRICS` or `MEASURED` tell of it and the baseline, `PASSES`, and seconds."""
        self._finish(image, sample, {**outcome, **dict(zip(PASSES, passes, strict=True)), "seconds": seconds})
        found = results.line({**outcome, "seconds": seconds})
        pace = self._pace.text(self._results.read())
        LOGGER.info("%s: %s; %s, %s at most", self.name(image, sample), found, pace, peak_memory_text())

    def _finish(self, image: str, sample: int, outcome: Mapping[str, Any]) -> None:
        name = self.name(image, sample)
        (self.root / state_path(name)).unlink(missing_ok=True)
        self._write(f"results/{name}.json", results.encode({"image": image, "sample": sample, **outcome}))

    def _write(self, path: str, content: bytes) -> None:
        write_whole(self.root / path, content, self._scratch)

    def rows(self) -> list[dict[str, Any]]:
        """Return what there is of each restoration, in the images' order, whoever made it and when."""
        found = self._results.read()
        return [found[name] for name in self._names() if name in found]


def state_path(name: str) -> str:
    """Return where in a run's folder the state of a restoration in progress is."""
    return f"progress/{name}/state.safetensors"
