"""The points of a sweep: which settings each has, where its results go, and what of it is left to do."""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm_inverse.runs.command_line import parse_args
from ldm_inverse.runs.job import Job, prepare
from ldm_inverse.runs.manifest import differences, read_record, record
from ldm_inverse.runs.request import read_request
from ldm_inverse.runs.results import INPUTS, Results, has_failed, restoration_name
from model_loader import resolve_device, resolve_model
from util.errors import UserError
from util.words import unknown

# What every reader of a folder's name would take for granted.
PREFIXES = ("conditioning.resample.", "conditioning.", "measurement.")
MAX_NAME_BYTES = 200  # of the usual limit of 255


def split_values(word: str) -> tuple[str, list[str]]:
    """Return key and values of a word `key=value,value,...`; those in brackets, braces and quotes are no such commas.

    Raises:
        UserError: it is no such word, or a value is empty or there twice.
    """
    key, equals, text = word.partition("=")
    if not (key and equals):
        raise UserError(f"{word!r} is not a setting: a setting reads key=value or key=value,value,...")
    values, depth, quote = [""], 0, ""
    for char in text:
        if char == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += char
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{") - (char in "]}")
    if "" in values or len(set(values)) < len(values):
        raise UserError(f"{word}: expected different values, separated by commas")
    return key, values


def find_task(name: str, folder: Path) -> Path:
    """Return the file of a task, given by its name in a folder (without `.yaml` or `_config.yaml`) or by its own path.

    Raises:
        UserError: neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    for path in (folder / f"{name}.yaml", folder / f"{name}_config.yaml"):
        if path.is_file():
            return path
    raise unknown("task", name, [task_name(path) for path in folder.glob("*.yaml")])


def find_tasks(names: Sequence[str] | None, folder: Path) -> list[Path]:
    """Return the files of tasks as `find_task`; None is all of the folder.

    Raises:
        UserError: there are none.
    """
    found = [find_task(name, folder) for name in names] if names else sorted(folder.glob("*.yaml"))
    if not found:
        raise UserError(f"no tasks in {folder}")
    return found


def refuse_own(command: Sequence[str], own: Sequence[str], reason: str) -> None:
    """Raise UserError, with the reason, where words for the command have an argument that the program gives itself."""
    taken = [word for word in command if word.partition("=")[0] in own]
    if taken:
        raise UserError(f"{taken[0]} after --: {reason}")


def task_name(path: Path) -> str:
    """Return the name of a task's file."""
    return path.stem.removesuffix("_config")


@dataclass(frozen=True)
class Point:
    """One run of the command.

    Attributes:
        task: the task's file.
        preset: name or file.
        seed: the run's.
        settings: the grid's words, each with one value.
        root: the sweep's folder.
        words: what else the command is told.
    """

    task: Path
    preset: str
    seed: int
    settings: tuple[str, ...]
    root: Path
    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """The choices besides task and seed, in words."""
        return "/".join([Path(self.preset).stem, *filter(None, [self._grid()])])

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.root / task_name(self.task) / self.label / f"seed_{self.seed}"

    def _grid(self) -> str:
        short = []
        for word in self.settings:
            prefix = next((prefix for prefix in PREFIXES if word.startswith(prefix)), "")
            short.append(word.removeprefix(prefix))
        text = ",".join(short).replace(os.sep, "_").replace(" ", "")
        if len(text.encode()) <= MAX_NAME_BYTES:
            return text
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{text.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"

    def command(self) -> list[str]:
        """Return the words for `sample_condition.py`."""
        own = {"task_config": self.task, "preset": self.preset, "seed": self.seed, "save_dir": self.folder}
        return [*(str(part) for key, value in own.items() for part in (f"--{key}", value)), *self.words, *self.settings]

    @cached_property
    def job(self) -> Job:
        """The job that the command makes of these words."""
        with _without_warnings():
            return prepare(read_request(parse_args(self.command())))

    def restorations(self) -> int:
        """Return how many there are to be."""
        return len(self.job.pictures.pictures) * self.job.request.n_samples_per_class

    def results(self, wanted: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Return the outcomes that are there already, by the restorations' names.

        Left out are those of another run than that of the record that is ``wanted`` (None: there is none yet), those of
        pictures that are not asked for, and those of files that have changed.
        """
        if not _is_of(self.folder, wanted):
            return {}
        images = {name for name, _ in self.job.pictures.pictures}
        samples = self.job.request.n_samples_per_class
        return {
            name: row
            for name, row in Results(self.folder / "results").read().items()
            if row["image"] in images
            and row["sample"] < samples
            and name == restoration_name(row["image"], row["sample"], samples)
            and (not row[INPUTS] or self.job.inputs.digest(row["image"]) in (None, row[INPUTS]))  # as the command does
        }

    def finished(self, wanted: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Return those of the `results` that did not fail: the command makes all others."""
        return {name: row for name, row in self.results(wanted).items() if not has_failed(row)}

    def passes(self) -> dict[str, int]:
        """Return the most passes that a restoration takes, by what they go through (`Cost.table`)."""
        return self.job.solver.cost(self.job.task.operator.unknown_border).table()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave warnings to the command, which says them again."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def grid(
    tasks: Sequence[Path],
    presets: Sequence[str],
    seeds: Sequence[int],
    words: Sequence[str],
    root: Path,
    command: Sequence[str],
) -> list[Point]:
    """Return a point for each combination; seeds vary fastest, tasks slowest.

    Raises:
        UserError: two of the points would share a folder, or a word has no values.
    """
    axes = [[f"{key}={value}" for value in values] for key, values in map(split_values, words)]
    points = [
        Point(task, preset, seed, settings, root, tuple(command))
        for task, preset, settings, seed in itertools.product(tasks, presets, itertools.product(*axes), seeds)
    ]
    refuse_shared(points)
    return points


def refuse_shared(points: Sequence[Point]) -> None:
    """Raise UserError where two points share a folder."""
    seen: set[Path] = set()
    for point in points:
        if point.folder in seen:
            raise UserError(f"two points have the folder {point.folder}: name each task, preset, seed and value once")
        seen.add(point.folder)


def check(points: Sequence[Point]) -> None:
    """Check every point as the command would, before any is run.

    Raises:
        UserError: the command would refuse one.
    """
    for point in points:
        try:
            _ = point.job
        except UserError as error:
            raise UserError(f"{point.folder.relative_to(point.root)}: {error}") from error


def records(points: Sequence[Point]) -> list[Mapping[str, Any] | None]:
    """Return the record that the command would write for each point; None each where the weights are not there."""
    first = points[0].job.request
    try:
        resolve_model(first.diffusion_config)
    except UserError:
        return [None] * len(points)
    base = record(first, first.settings, resolve_device(first.device, first.gpu), first.threads, first.plugins)
    # The checkpoint is the same for all, and takes long to sum up.
    return [
        {**base, "settings": point.job.request.settings.recorded(), "run": {**base["run"], "seed": point.seed}}
        for point in points
    ]


def _is_of(folder: Path, wanted: Mapping[str, Any] | None) -> bool:
    """Tell whether a folder holds the run of a record; None is no run's."""
    found = read_record(folder / "settings.yaml")
    return found is not None and wanted is not None and not differences(found, wanted)
