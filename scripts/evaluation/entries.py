"""Entries of a table: a run, several that differ in their seed alone, a baseline, a folder of pictures."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.picture_encoding import SUFFIX
from data.sources import Source, find_pictures
from ldm.training.pictures import to_model_range
from ldm_inverse.measurement import Measurement
from ldm_inverse.runs.manifest import differences
from ldm_inverse.runs.results import RATIO
from ldm_inverse.runs.spread import coverage
from scripts.evaluation.finished import FinishedRun, read_pixels
from scripts.evaluation.quality import Networks, quality
from scripts.evaluation.statistics import Summary, summarise
from util.errors import UserError
from util.metrics import to_uint8

BASELINE = "baseline"


class Known(NamedTuple):
    """Facts that a program knows of a run that it has made itself.

    Attributes:
        title: what it is called; runs of other titles never share a row.
        task: its name, which runs of other pictures do not have.
        restorations: the names of those that are to be measured.
    """

    title: str
    task: str
    restorations: Collection[str]


class Observation(NamedTuple):
    """The measures of one restoration.

    Attributes:
        image: whose restoration it is.
        name: the restoration's own.
        measurement: its fingerprint; "" where it is not known.
        values: by column.
        pictures: functions that read truth and restoration, 8-bit (H, W, 3); None where there is no truth.
        measured: reads its measurement; None for a baseline, and where no measurement is known.
    """

    image: str
    name: str
    measurement: str
    values: dict[str, float]
    pictures: tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]] | None = None
    measured: Callable[[], Measurement] | None = None


@dataclass
class Entry:
    """A row of the table.

    Attributes:
        title: what it is called.
        observations: of all its restorations; all are there before the first `summary` is asked for.
        folders: where they come from.
        task: equal for equal tasks: the measurement's settings, and the name that is `Known`.
        failed: how many restorations could not be made.
        former: how many are left out, as the run has their images no longer.
        of_all: numbers that describe the whole set, by column.
    """

    title: str
    observations: list[Observation]
    folders: list[str] = field(default_factory=list)
    task: str = ""
    failed: int = 0
    former: int = 0
    of_all: dict[str, float] = field(default_factory=dict)
    _known: dict[str, Summary | None] = field(default_factory=dict, repr=False, compare=False)  # bootstraps take long

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
        if column not in self._known:
            values = self.images(column)
            self._known[column] = summarise(values.values()) if values else None
        return self._known[column]

    def measurements(self) -> dict[str, dict[str, list[Observation]]]:
        """Return the observations by image and measurement."""
        found: dict[str, dict[str, list[Observation]]] = {}
        for observation in self.observations:
            found.setdefault(observation.image, {}).setdefault(observation.measurement, []).append(observation)
        return found


def pooled(runs: Sequence[FinishedRun], titles: Mapping[Path, str] | None = None) -> list[list[FinishedRun]]:
    """Put runs together that differ in their seed and in nothing else that decides a result, nor in their ``titles``,
    where these are given by folder."""
    called = titles or {}
    groups: list[list[FinishedRun]] = []
    for run in runs:
        for group in groups:
            seeds = {other.record["run"].get("seed") for other in group}
            lines = differences(group[0].record, run.record)
            same = all(line.startswith("run.seed:") for line in lines)
            same = same and called.get(run.folder) == called.get(group[0].folder)
            if same and run.record["run"].get("seed") not in seeds:
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


def entries_of(
    runs: Sequence[FinishedRun], networks: Networks, known: Mapping[Path, Known] | None = None
) -> list[Entry]:
    """Measure runs: an entry for each group of `pooled`, and one for the baseline of each set of measurements.

    Args:
        runs: what to measure.
        networks: of perceptual distances.
        known: of the run in each folder; None derives titles from the folders (`titles`).

    Raises:
        UserError: something in a folder is damaged.
    """
    entries: list[Entry] = []
    measured: dict[str, dict[tuple[str, str], Observation]] = {}
    names = {} if known is None else {folder: run.title for folder, run in known.items()}
    groups = pooled(runs, names)
    called = titles(groups) if known is None else [names[group[0].folder] for group in groups]
    for title, group in zip(called, groups, strict=True):
        entry = Entry(title, [], [str(run.folder) for run in group], _task(group[0], known))
        entry.failed, entry.former = sum(run.failed for run in group), sum(run.former for run in group)
        for run in group:
            for name, row in run.rows.items():
                observation, start = _observe(run, name, row, networks)
                entry.observations.append(observation)
                measured.setdefault(entry.task, {}).setdefault((start.image, start.measurement), start)
        _add_coverage(entry)
        entries.append(entry)
    baselines = [Entry(BASELINE, list(found.values()), task=task) for task, found in measured.items()]
    several = len(baselines) > 1
    for baseline in baselines:
        first = next(entry for entry in entries if entry.task == baseline.task)
        if several:
            baseline.title = f"{BASELINE} of {first.title}"
        entries.insert(entries.index(first), baseline)
    return entries


def _add_coverage(entry: Entry) -> None:
    """Measure on each image with several restorations of one measurement how often the truth is among them."""
    for found in entry.measurements().values():
        for observations in found.values():
            pictures = [observation.pictures for observation in observations if observation.pictures is not None]
            if len(pictures) > 1:
                share = coverage(pictures[0][0](), [restored() for _, restored in pictures])
                for observation in observations:
                    observation.values["coverage"] = share


def _task(run: FinishedRun, known: Mapping[Path, Known] | None) -> str:
    settings = json.dumps(run.task.settings, sort_keys=True)
    return settings if known is None else f"{known[run.folder].task}: {settings}"


def _observe(run: FinishedRun, name: str, row: dict[str, Any], networks: Networks) -> tuple[Observation, Observation]:
    """Measure one restoration, and the baseline of the measurement that it is of."""
    image, restored, truth = row["image"], run.pixels("restoration", name), run.pixels("truth", name)
    if restored is None:
        raise UserError(f"{run.folder} lacks the picture of a finished restoration: recon/{name}.png")
    fingerprint = run.fingerprint(image)
    if truth is None and run.task.operator.unknown_border:
        return _as_told(run, name, row, fingerprint)
    height, width, channels = restored.shape
    shape = (1, channels, height, width)
    measurement = run.measurement(image, shape)
    baseline = to_uint8(run.task.baseline(measurement, (1, channels, height, width)))
    values = _values(run, measurement, truth, restored, networks)
    values |= {"seconds": float(row["seconds"]), **run.passes(name)}
    paths = (run.path(kind, name) for kind in ("truth", "restoration"))
    reads, restores = (partial(read_pixels, path) for path in paths)
    pictures = None if truth is None else (reads, restores)
    return (
        Observation(image, name, fingerprint, values, pictures, partial(run.measurement, image, shape)),
        Observation(image, name, fingerprint, _values(run, measurement, truth, baseline, networks)),
    )


def _as_told(run: FinishedRun, name: str, row: dict[str, Any], fingerprint: str) -> tuple[Observation, Observation]:
    """Return the residuals that the run noted: its pictures lack the border that they depend on."""
    level = {} if row["noise"] is None else {"noise": float(row["noise"])}
    residual, baseline = ({"residual": float(row[key])} for key in ("residual", "baseline_residual"))
    values = {**residual, **level, "seconds": float(row["seconds"]), **run.passes(name)}
    first = Observation(row["image"], name, fingerprint, values, None)
    return first, Observation(row["image"], name, fingerprint, {**baseline, **level})


def _values(
    run: FinishedRun, measurement: Measurement, truth: np.ndarray | None, picture: np.ndarray, networks: Networks
) -> dict[str, float]:
    values = {} if truth is None else quality(truth, picture, networks)
    values["residual"] = run.task.residual(measurement, to_model_range(picture[None]))
    noise = run.task.noise_level(measurement)
    if noise is None:
        return values
    return {**values, "noise": noise, **({RATIO: values["residual"] / noise} if noise else {})}


def entry_of_folders(recon: Path, reference: Path, networks: Networks) -> tuple[Entry, int]:
    """Measure the pictures of a folder beside those of the same names in another.

    Returns:
        The entry, and how many pictures have no partner.

    Raises:
        UserError: no name is in both, or a picture cannot be read or is of another size than its partner.
    """
    listed = [dict(find_pictures(folder)) for folder in (recon, reference)]
    found = [_one_of_each(*listed), _one_of_each(*reversed(listed))]
    shared = [name for name in found[0] if name in found[1]]
    if not shared:
        raise UserError(f"no picture in {recon} has the name of one in {reference}")
    entry = Entry(recon.name or str(recon), [], [str(recon), str(reference)])
    for name in shared:
        images, truths = (partial(read_pixels, pictures[name].path) for pictures in found)
        try:
            values = quality(truths(), images(), networks)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        entry.observations.append(Observation(name, name, "", values, (truths, images)))
    return entry, len(found[0]) + len(found[1]) - 2 * len(shared)


def _one_of_each(mine: dict[str, Source], theirs: dict[str, Source]) -> dict[str, Source]:
    """Return a folder's pictures by name. A PNG with a TIFF beside it, as in `recon/` of some runs, is the one picture
    of both, by the name that it would have alone, where the other folder has that name."""
    groups: dict[str, dict[str, Source]] = {}
    for name, source in mine.items():
        groups.setdefault(source.stream_name, {})[name] = source
    found: dict[str, Source] = {}
    for name, group in groups.items():
        formats = {source.suffix: source for source in group.values()}
        stems = {source.own.with_suffix("") for source in group.values()}
        is_one = len(stems) == 1 and len(group) == 2 and formats.keys() == {SUFFIX["png"], SUFFIX["tiff"]}
        if is_one and name in theirs and not group.keys() & theirs.keys():
            group = {name: formats[SUFFIX["png"]]}
        found |= group
    return found
