"""A run's folder: which files lie where, each written whole or not at all, by any number of processes."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from data.picture_encoding import SUFFIX, SaveFormat, encode, encode_png
from data.pictures import read_picture
from ldm.acceleration.memory import peak_memory_text
from ldm_inverse.runs import measurement_file, results, sampler_state
from ldm_inverse.runs.countdown import Countdown
from ldm_inverse.runs.locks import FolderLocks
from ldm_inverse.runs.manifest import CIRCUMSTANCES, differences, read_record
from ldm_inverse.runs.ownership import SETTINGS, others_results, refuse_others, refuse_unwritable
from ldm_inverse.runs.report import REPORT
from ldm_inverse.runs.report.animation import animation
from ldm_inverse.runs.results import INPUTS, PASSES, Results, has_failed, restoration_name
from ldm_inverse.runs.sampler_state import Progress, state_path
from ldm_inverse.runs.spread import mean_and_deviation
from ldm_inverse.runs.tables import RunTables
from ldm_inverse.runs.trace import trace_files
from util.errors import ImageError, UserError
from util.files import write_whole
from util.logging import LOGGER
from util.metrics import to_uint8
from util.settings import Span

FOLDERS = ("results", "input", "label", "baseline", "recon", "spread", "progress")
SPREAD = ("mean", "std")
UNFINISHED = ".unfinished"  # the folder of files that are being written


class RunFolder:
    """The folder of a run.

    `input/`, `label/` and `recon/` hold one PNG for each restoration, of the same name in each: the truth, the
    measurement and the restoration. Where there is no truth, `baseline/` has the baseline in its place.
    `label/<image>.safetensors` is the exact measurement with the operator's random state. With several restorations of
    a measurement, `spread/<image>_mean.png` and `_std.png` have their mean and deviation. `progress/<restoration>/` has
    the evolving estimate and `trace.csv`. `results/<restoration>.json` is written last: if it exists, the other files
    of the restoration do too. `metrics.csv` and `failed.csv` are made of these, and `report.html` of everything;
    `settings.yaml` is for all; `log/` has one file for each process, and `.locks/` the locks (`FolderLocks`).

    Any number of processes may work in a folder. Two of them make equal files of an image, and every file appears
    whole, so it does no harm if both restore it.

    Args:
        root: the folder; it is made when the first file is written.
        images: names of all images, in the order of the tables.
        samples: restorations of each measurement.
        save_format: of restorations; those of floats are files beside the PNGs.
        span: the values of black and white in these (`data.picture_encoding.encode`).
        digest: gives the digest of an image's inputs (`Inputs.digest`), where results are to be told by them.

    Attributes:
        tables: the tables and the report of all restorations.
        was_left_last: whether this process has worked here, and no other did when it was done.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[str] = (),
        samples: int = 1,
        save_format: SaveFormat = "png",
        span: Span | None = None,
        digest: Callable[[str], str | None] = lambda image: None,
    ) -> None:
        self.save_format, self.span = save_format, span
        self.root, self.images, self.samples, self._digest = root, images, samples, digest
        self._image_of = {self.name(image, sample): image for image in images for sample in range(samples)}
        self._results = Results(root / "results")
        self._locks = FolderLocks(root / ".locks")
        self.was_left_last = False
        self._scratch: Path | None = None  # where files are written first, while this process works here
        self._countdown = Countdown(0)
        self.tables = RunTables(root, self.rows, self._locks.alone, self._write)

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
        """Check that the folder can be written and holds nothing with other settings, without writing.

        Args:
            record: of this run, see `ldm_inverse.runs.manifest.record`.
            overwrite: results with other settings may be replaced.

        Raises:
            UserError: it cannot, or it does.
        """
        refuse_unwritable(self.root)
        if not overwrite:
            refuse_others(self.root, record)

    @contextmanager
    def at_work(
        self, record: Mapping[str, Any], overwrite: bool = False, images: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Work in the folder inside the block: others may join, by the same settings, and none may overwrite it.

        `settings.yaml` is written, or found there, and then the run continues. Of ``images``, those that failed before
        their first step, such as unreadable ones, are to be tried again, and those whose inputs have changed are to be
        restored again. With ``overwrite``, results with other settings are deleted, unless another process works there.
        Other arguments and exceptions as for `check`.

        Args:
            images: those that this process is to restore; None is all. The others' results stay as they are: nobody
                might make them anew.

        Yields:
            The record in force: threads that were not given are those in the folder, or else torch's own.
        """
        try:
            with self._locks.alone():
                self._locks.join()
                self._scratch = self.root / UNFINISHED
                in_force = self._begin(record, overwrite, self.images if images is None else images)
            yield in_force
        finally:
            self._leave()

    def _begin(self, record: Mapping[str, Any], overwrite: bool, images: Sequence[str]) -> dict[str, Any]:
        if overwrite and others_results(self.root, record) is not None:
            self._refuse_company()
            self._clear()
        refuse_others(self.root, record)
        found = read_record(self.root / SETTINGS)
        record = dict(record)
        if found is not None:
            self._go_on(found, record, images)
            record |= {key: found[key] for key in ("device", "versions")}
        if record["threads"] is None:
            record["threads"] = found["threads"] if found else torch.get_num_threads()
        if found != record:
            content = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
            self._write(SETTINGS, content.encode())
        return record

    def _leave(self) -> None:
        with self._locks.alone():
            self.was_left_last = not self._locks.others()
            if self.was_left_last:  # what is there now is of processes that were killed
                shutil.rmtree(self.root / UNFINISHED, ignore_errors=True)
                for name in filter(self.is_done, self._names()):
                    with suppress(OSError):
                        (self.root / state_path(name)).unlink()
            self._locks.leave()
        self._scratch = None

    def _refuse_company(self) -> None:
        if others := self._locks.others():
            raise UserError(f"{self.root}: {others[0]} works there; stop it before --overwrite")

    def _clear(self) -> None:
        LOGGER.info("%s: the results with other settings are deleted", self.root)
        # The settings go last: as long as a result is there, they say whose it is. The results go first: without one,
        # all else of a restoration is made anew.
        for folder in FOLDERS:
            if (self.root / folder).is_dir():
                shutil.rmtree(self.root / folder)
        for file in ("metrics.csv", "failed.csv", REPORT, SETTINGS):
            (self.root / file).unlink(missing_ok=True)

    def _go_on(self, found: Mapping[str, Any], record: Mapping[str, Any], images: Sequence[str]) -> None:
        for line in differences(found, record, CIRCUMSTANCES):
            LOGGER.warning("%s was begun under other circumstances: %s", self.root, line)
        own = set(images)
        for name, row in self._results.read().items():
            image = self._image_of.get(name)
            if image is not None and image not in own:
                continue
            if has_failed(row) and row["step"] is None:
                self._forget(name, row["image"])
            elif row[INPUTS] and self._digest_of(name) not in (None, row[INPUTS]):
                LOGGER.warning("%s: its picture, measurement, mask or kernel has changed: it is restored again", name)
                self._forget(name, row["image"])
        LOGGER.info("%s: continuing; %d restorations are finished", self.root, len(self.rows()))

    def _forget(self, name: str, image: str) -> None:
        """Delete a restoration, so that nothing of it is beside the next one, or beside a failure.

        What it was made of stays: `input/` and `label/` may be the very folders that this run reads.
        """
        self._results.forget(name)
        shutil.rmtree(self.root / "progress" / name, ignore_errors=True)
        for suffix in set(SUFFIX.values()):
            (self.root / f"recon/{name}{suffix}").unlink(missing_ok=True)
        for kind in SPREAD:
            (self.root / f"spread/{image}_{kind}.png").unlink(missing_ok=True)

    # The images.

    def samples_left(self, image: str) -> list[int]:
        """Return which restorations of an image are neither finished nor failed."""
        return [sample for sample in range(self.samples) if not self._results.has(self.name(image, sample))]

    def is_done(self, name: str) -> bool:
        """Tell whether the restoration of a name is finished or has failed."""
        return self._results.has(name)

    def left(self, images: Sequence[str], batch_size: int = 1) -> Iterator[list[str]]:
        """Yield those of these images that are not finished, as many at a time as it takes for a batch of restorations.

        What another process has finished meanwhile is left out.
        """
        self._countdown = Countdown(sum(len(self.samples_left(image)) for image in images))
        waiting = (image for image in images if self.samples_left(image))
        while batch := list(islice(waiting, ceil(batch_size / self.samples))):
            yield batch

    @contextmanager
    def failures(self, image: str, samples: Sequence[int]) -> Iterator[None]:
        """Record an ImageError inside the block as the outcome of these restorations, and continue."""
        try:
            yield
        except ImageError as error:
            self.fail(image, samples, error)

    def fail(self, image: str, samples: Sequence[int], error: ImageError) -> None:
        """Record what ended these restorations of an image."""
        LOGGER.warning("%s: not restored: %s", image, error.reason)
        for sample in samples:
            self._write_spread(image, sample, is_lost=True)
            self._finish(image, sample, {"step": error.step, "reason": error.reason})

    # What is written for one.

    def write_restoration(self, image: str, sample: int, **pictures: Tensor) -> None:
        """Write the pictures of a restoration, each (1, C, h, w) in [-1, 1], by the name of their folder."""
        name = self.name(image, sample)
        for folder, picture in pictures.items():
            self.write_picture(folder, name, to_uint8(picture))
        if self.save_format != "png":
            restored = pictures["recon"][0].permute(1, 2, 0).cpu().numpy()
            content = encode(restored, self.save_format, self.span)
            self._write(f"recon/{name}{SUFFIX[self.save_format]}", content)
        estimates = sorted((self.root / "progress" / name).glob("step_*.png"))
        self._write(f"progress/{name}/estimate.webp", animation([*estimates, self.root / "recon" / f"{name}.png"]))

    def write_picture(self, folder: str, name: str, picture: np.ndarray) -> None:
        """Write 8-bit pixels (H, W, 3) or (H, W, 1) as `<folder>/<name>.png`."""
        self._write(f"{folder}/{name}.png", encode_png(picture))

    def write_measurement(self, image: str, tensors: Mapping[str, Tensor], made_by: Mapping[str, Any]) -> None:
        """Write `label/<image>.safetensors`, with the settings that made it in its header."""
        self._write(f"label/{image}.safetensors", measurement_file.encode(tensors, made_by))

    def write_trace(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what the sampler did (`trace_files`) beside the progress."""
        for file, content in trace_files(rows).items():
            self._write(f"progress/{name}/{file}", content)

    def _digest_of(self, name: str) -> str | None:
        """The digest of the inputs of a restoration's image; None where that is none of the run's."""
        image = self._image_of.get(name)
        return None if image is None else self._digest(image)

    def read_state(self, name: str, generator: torch.Generator) -> Progress | None:
        """Return the state in which an earlier process left a restoration of the same inputs; None if there is none."""
        return sampler_state.read(self.root / state_path(name), generator, self._digest_of(name))

    def write_state(self, name: str, progress: Progress) -> None:
        """Write the state of a restoration, from which a later process can continue."""
        self._write(state_path(name), sampler_state.encode(*progress, self._digest_of(name)))

    def add_metrics(
        self, image: str, sample: int, outcome: Mapping[str, float | None], passes: Sequence[int], seconds: float
    ) -> None:
        """Finish a restoration: what `METRICS` or `MEASURED` tell of it and the baseline, `PASSES`, and seconds."""
        self._write_spread(image, sample)
        self._finish(image, sample, {**outcome, **dict(zip(PASSES, passes, strict=True)), "seconds": seconds})
        found = results.line({**outcome, "seconds": seconds})
        how_far = self._countdown.one_more()
        LOGGER.info("%s: %s; %s, %s at most", self.name(image, sample), found, how_far, peak_memory_text())

    def _write_spread(self, image: str, last: int, is_lost: bool = False) -> None:
        """Write mean and deviation of an image's restorations, as soon as the last of several is there, or is lost."""
        if self.samples == 1 or any(sample != last for sample in self.samples_left(image)):
            return
        others = (sample for sample in range(self.samples) if sample != last and not self._has_failed(image, sample))
        names = [self.name(image, sample) for sample in sorted([*others, *([] if is_lost else [last])])]
        paths = (self.root / "recon" / f"{name}.png" for name in names)
        restored = [np.asarray(read_picture(path)) for path in paths if path.is_file()]
        if len(restored) > 1:
            for kind, picture in zip(SPREAD, mean_and_deviation(restored), strict=True):
                self.write_picture("spread", f"{image}_{kind}", picture)

    def _has_failed(self, image: str, sample: int) -> bool:
        row = self._results.row(self.name(image, sample))
        return row is not None and has_failed(row)

    def _finish(self, image: str, sample: int, outcome: Mapping[str, Any]) -> None:
        name = self.name(image, sample)
        (self.root / state_path(name)).unlink(missing_ok=True)
        row = {"image": image, "sample": sample, **outcome, INPUTS: self._digest(image)}
        self._write(f"results/{name}.json", results.encode(row))

    def _write(self, path: str, content: bytes) -> None:
        write_whole(self.root / path, content, self._scratch)

    def rows(self) -> list[dict[str, Any]]:
        """Return the row of each restoration that is finished or has failed, in the images' order."""
        found = self._results.read()
        return [found[name] for name in self._names() if name in found]
