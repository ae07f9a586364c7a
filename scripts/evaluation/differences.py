"""Entries of a table less the first run, image by image, on the measurements that they share."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from scripts.evaluation.entries import Entry, Observation
from scripts.evaluation.statistics import Summary, summarise
from util.errors import UserError


class Difference(NamedTuple):
    """An entry less another, on the images and measurements that both have.

    Attributes:
        entry, other: titles.
        columns: the summary of the differences, by column.
    """

    entry: str
    other: str
    columns: dict[str, Summary]


def compare(
    entries: Sequence[Entry], columns: Iterable[str], by_task: bool, strict: bool = True
) -> tuple[list[Difference], list[str]]:
    """Return each entry less the first run, over the images that the two share; and a line for each that cannot be
    compared, where that is not refused.

    Args:
        entries: of `entries_of`.
        columns: what to compare.
        by_task: compare entries of one task with each other and with no others.
        strict: refuse shared images whose measurements differ; else they are left out.

    Raises:
        UserError: the measurements of a shared image differ.
    """
    columns = list(columns)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.task if by_task else "", []).append(entry)
    found, notes = [], []
    for group in groups.values():
        first = next(entry for entry in group if entry.folders)
        for entry in group:
            if entry is first:
                continue
            if pairs := _pairs(entry, first, strict):
                found.append(Difference(entry.title, first.title, _summaries(pairs, columns)))
            elif entry.folders and not strict:
                notes.append(f"{entry.title} is not compared with {first.title}: they have no measurement in common")
    return found, notes


Pair = tuple[list[Observation], list[Observation]]


def _pairs(entry: Entry, other: Entry, strict: bool) -> list[list[Pair]]:
    """Return, for each image that two entries share, their observations of each measurement that they share.

    An image without such a measurement is left out, or refused where that is ``strict``.
    """
    mine, theirs = entry.measurements(), other.measurements()
    pairs = []
    for image in mine:
        if image not in theirs:
            continue
        shared = [key for key in mine[image] if key in theirs[image]]
        if not shared:
            # A baseline is made of other runs' measurements too.
            if not (entry.folders and strict):
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
        if known := [value for value in values if not np.isnan(value)]:  # an image without a truth has no PSNR
            found[column] = summarise(known)
    return found


def _mean(observations: list[Observation], column: str) -> float:
    return float(np.mean([observation.values.get(column, np.nan) for observation in observations]))
