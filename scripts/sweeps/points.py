"""The points of a sweep: which settings each has, where its results go, and what of it is left to do."""

import hashlib
import itertools
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError
from util.registry import unknown

if TYPE_CHECKING:
    from ldm_inverse.job import Job

# What every reader of a folder's name would take for granted.
PREFIXES = ("conditioning.resample.", "conditioning.", "measurement.")
MAX_NAME_BYTES = 200  # of the usual limit of 255
# Kinds of passes (`ldm.models.diffusion.cost.Cost`), and what they are called where there is little room.
PASSES = {
    "UNet, forward": "UNet",
    "decoder, forward and backward": "decoder + gradient",
    "decoder, forward only": "decoder alone",
}


def split_values(word: str) -> tuple[str, list[str]]:
    """Return key and values of a word `key=value,value,...`; those in brackets, braces and quotes are no such commas.

    Raises:
        UserError: it is no such word, or a value is empty or there twice.
    """
    key, equals, text = word.partition("=")
    if not (key and equals):
        raise UserError(f"{word!r} is no setting: a setting reads key=value or key=value,value,...")
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
        raise UserError(f"{word}: expected values that differ, with a comma between each two")
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
        """What is chosen besides task and seed, in words."""
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
    def args(self) -> Namespace:
        """What the command reads in these words."""
        from util.cli import parse_args

        return parse_args(self.command())

    @cached_property
    def job(self) -> "Job":
        """What the command makes of them."""
        from ldm_inverse.job import prepare

        with _without_warnings():
            return prepare(self.args)

    def restorations(self) -> int:
        """Return how many there are to be."""
        return len(self.job.pictures.pictures) * self.args.n_samples_per_class

    def finished(self) -> int:
        """Return how many restorations are there already."""
        from util.results import Results, has_failed
        from util.run import RunFolder

        run = RunFolder(self.folder, samples=self.args.n_samples_per_class)
        samples = range(self.args.n_samples_per_class)
        wanted = {run.name(name, sample) for name, _ in self.job.pictures.pictures for sample in samples}
        return sum(
            name in wanted and not has_failed(row) for name, row in Results(self.folder / "results").read().items()
        )

    def passes(self) -> dict[str, int]:
        """Return the most passes that a restoration takes, by what they go through."""
        table = self.job.solver.cost().table()
        return {short: table[kind] for kind, short in PASSES.items()}


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
    seen: dict[Path, Point] = {}
    for point in points:
        if point.folder in seen:
            raise UserError(f"two points have the folder {point.folder}: name each task, preset, seed and value once")
        seen[point.folder] = point
    return points


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


def records(points: Sequence[Point]) -> list[Mapping[str, Any]] | None:
    """Return the record that the command would write for each point; None where the weights are not there."""
    from model_loader import resolve_device
    from util.record import record

    first = points[0].args
    if not first.diffusion_config.is_file():
        return None
    job = points[0].job
    base = record(first, job.settings, resolve_device(first.device, first.gpu), job.plugins)
    # The checkpoint is the same for all, and takes long to sum up.
    return [
        {**base, "settings": asdict(point.job.settings), "run": {**base["run"], "seed": point.seed}} for point in points
    ]


def is_of(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds the run of a record."""
    from util.record import differences, read_record

    found = read_record(folder / "settings.yaml")
    return found is not None and not differences(found, wanted)
