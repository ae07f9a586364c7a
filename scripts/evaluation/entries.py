"""What a table has a row for: a run, several that differ in their seed alone, a baseline, a folder of pictures."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.pictures import find_pictures
from ldm.training.pictures import to_model_range
from ldm_inverse.task import Measurement
from scripts.evaluation.finished import FinishedRun, read_pixels
from scripts.evaluation.quality import Networks, quality
from scripts.evaluation.statistics import Summary, summarise
from util.errors import UserError
from util.metrics import to_uint8
from util.record import differences

BASELINE = "baseline"


class Observation(NamedTuple):
    """What was measured on one restoration.

    Attributes:
        image: whose restoration it is.
        name: the restoration's own.
        measurement: its fingerprint; "" where it is not known.
        values: by column.
        pictures: functions that read truth and restoration, 8-bit (H, W, 3); None where there is no truth.
    """

    image: str
    name: str
    measurement: str
    values: dict[str, float]
    pictures: tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]] | None = None


@dataclass
class Entry:
    """A row of the table.

    Attributes:
        title: what it is called.
        observations: of all its restorations.
        folders: where they come from.
        task: the measurement's settings, equal for equal tasks.
        failed: how many images could not be restored.
        of_all: numbers that describe the whole set, by column.
    """

    title: str
    observations: list[Observation]
    folders: list[str] = field(default_factory=list)
    task: str = ""
    failed: int = 0
    of_all: dict[str, float] = field(default_factory=dict)

    def images(self, column: str) -> dict[str, float]:
        """Return the mean over each image's restorations, by the image's name."""
        found: dict[str, list[float]] = {}
        for observation in self.observations:
            if column in observation.values:
                found.setdefault(observation.image, []).append(observation.values[column])
        return {image: float(np.mean(values)) for image, values in found.items()}

    def summary(self, column: str) -> Summary | None:
        """Return the summary over images; None where nothing of the kind was measured."""
        if column in self.of_all:
            return Summary(self.of_all[column], None, None, None, len(self.images("psnr")))
        values = self.images(column)
        return summarise(values.values()) if values else None

    def measurements(self) -> dict[str, dict[str, list[Observation]]]:
        """Return the observations by image and measurement."""
        found: dict[str, dict[str, list[Observation]]] = {}
        for observation in self.observations:
            found.setdefault(observation.image, {}).setdefault(observation.measurement, []).append(observation)
        return found


def pooled(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Put runs together that differ in their seed and in nothing else that decides a result."""
    groups: list[list[FinishedRun]] = []
    for run in runs:
        for group in groups:
            seeds = {other.record["run"].get("seed") for other in group}
            lines = differences(group[0].record, run.record)
            if run.record["run"].get("seed") not in seeds and all(line.startswith("run.seed:") for line in lines):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def titles(groups: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """Name each group of runs by what its folders have in common, as far as others do not have it."""
    paths = [[os.path.abspath(run.folder) for run in group] for group in groups]
    common = [os.path.commonpath(folders) for folders in paths]
    if len(set(common)) < len(common):
        common = [folders[0] for folders in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in common])
    return [os.path.relpath(path, root) for path in common]


def entries_of(runs: Sequence[FinishedRun], networks: Networks, names: Mapping[Path, str] | None = None) -> list[Entry]:
    """Measure runs: an entry for each group of `pooled`, and one for the baseline of each set of measurements.

    Args:
        runs: what to measure.
        networks: of perceptual distances.
        names: what to call the run in each folder; None derives it from the folders (`titles`).

    Raises:
        UserError: something in a folder is damaged.
    """
    entries, measured = [], {}
    groups = pooled(runs)
    called = titles(groups) if names is None else [names[group[0].folder] for group in groups]
    for title, group in zip(called, groups, strict=True):
        entry = Entry(title, [], [str(run.folder) for run in group], _task(group[0]), sum(run.failed for run in group))
        for run in group:
            for name, row in run.rows.items():
                observation, baseline = _observe(run, name, row, networks)
                entry.observations.append(observation)
                key = (baseline.image, baseline.measurement)
                measured.setdefault(entry.task, {}).setdefault(key, baseline)
        entries.append(entry)
    baselines = [Entry(BASELINE, list(found.values()), task=task) for task, found in measured.items()]
    several = len(baselines) > 1
    for baseline in baselines:
        first = next(entry for entry in entries if entry.task == baseline.task)
        if several:
            baseline.title = f"{BASELINE} of {first.title}"
        entries.insert(entries.index(first), baseline)
    return entries


def _task(run: FinishedRun) -> str:
    return json.dumps(run.task.settings, sort_keys=True)


def _observe(run: FinishedRun, name: str, row: dict[str, Any], networks: Networks) -> tuple[Observation, Observation]:
    """Measure one restoration, and the baseline of the measurement that it is of."""
    image, restored, truth = row["image"], run.pixels("recon", name), run.pixels("label", name)
    if restored is None:
        raise UserError(f"{run.folder} lacks the picture of a finished restoration: recon/{name}.png")
    fingerprint = run.fingerprint(image)
    measurement = run.measurement(image, (1, 3, *restored.shape[:2]))
    baseline = to_uint8(run.task.baseline(measurement, (1, 3, *restored.shape[:2])))
    values = _values(run, measurement, truth, restored, networks)
    values |= {"seconds": float(row["seconds"]), **run.passes(name)}
    pictures = None
    if truth is not None:
        pictures = tuple(partial(run.pixels, kind, name) for kind in ("label", "recon"))
    return (
        Observation(image, name, fingerprint, values, pictures),
        Observation(image, name, fingerprint, _values(run, measurement, truth, baseline, networks)),
    )


def _values(
    run: FinishedRun, measurement: Measurement, truth: np.ndarray | None, picture: np.ndarray, networks: Networks
) -> dict[str, float]:
    values = {} if truth is None else quality(truth, picture, networks)
    values["residual"] = run.task.residual(measurement, to_model_range(picture[None]))
    noise = run.task.noise_level(measurement)
    return values if noise is None else {**values, "noise": noise}


def entry_of_folders(recon: Path, reference: Path, networks: Networks) -> tuple[Entry, int]:
    """Measure the pictures of a folder beside those of the same names in another.

    Returns:
        The entry, and how many pictures have no partner.

    Raises:
        UserError: no name is in both, or a picture cannot be read or is of another size than its partner.
    """
    found = [{picture.name: picture.path for picture in find_pictures(folder)} for folder in (recon, reference)]
    shared = [name for name in found[0] if name in found[1]]
    if not shared:
        raise UserError(f"no picture in {recon} has the name of one in {reference}")
    entry = Entry(recon.name or str(recon), [], [str(recon), str(reference)])
    for name in shared:
        images, truths = (partial(read_pixels, pictures[name]) for pictures in found)
        try:
            values = quality(truths(), images(), networks)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        entry.observations.append(Observation(name, name, "", values, (truths, images)))
    return entry, len(found[0]) + len(found[1]) - 2 * len(shared)


class Difference(NamedTuple):
    """An entry less another, on the images and measurements that both have.

    Attributes:
        entry, other: titles.
        columns: the summary of the differences, by column.
    """

    entry: str
    other: str
    columns: dict[str, Summary]


def compare(entries: Sequence[Entry], columns: Iterable[str], by_task: bool) -> list[Difference]:
    """Return each entry less the first run, over the images that the two share.

    Args:
        entries: of `entries_of`.
        columns: what to compare.
        by_task: compare entries of one task with each other and with no others.

    Raises:
        UserError: the measurements of a shared image differ.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.task if by_task else "", []).append(entry)
    found = []
    for group in groups.values():
        first = next(entry for entry in group if entry.folders)
        for entry in group:
            pairs = _pairs(entry, first) if entry is not first else []
            if pairs:
                found.append(Difference(entry.title, first.title, _summaries(pairs, columns)))
    return found


Pair = tuple[list[Observation], list[Observation]]


def _pairs(entry: Entry, other: Entry) -> list[list[Pair]]:
    """Return, for each image that two entries share, their observations of each measurement that they share."""
    mine, theirs = entry.measurements(), other.measurements()
    pairs = []
    for image in mine:
        if image not in theirs:
            continue
        shared = [key for key in mine[image] if key in theirs[image]]
        if not shared:
            # A baseline is made of other runs' measurements too.
            if not entry.folders:
                continue
            raise UserError(
                f"{entry.title} and {other.title} cannot be compared: their measurements of {image!r} differ\n"
                "--by_task puts runs of different tasks into one table, and compares those of the same task; the same "
                "measurements come from the same task and seed, or from --measurement"
            )
        pairs.append([(mine[image][key], theirs[image][key]) for key in shared])
    return pairs


def _summaries(pairs: list[list[Pair]], columns: Iterable[str]) -> dict[str, Summary]:
    found = {}
    for column in columns:
        values = []
        for image in pairs:
            means = [[_mean(observations, column) for observations in pair] for pair in image]
            values.append(float(np.mean([mine - theirs for mine, theirs in means])))
        if not np.isnan(values).any():
            found[column] = summarise(values)
    return found


def _mean(observations: list[Observation], column: str) -> float:
    return float(np.mean([observation.values.get(column, np.nan) for observation in observations]))
