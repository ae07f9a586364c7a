"""A random search: trials are drawn, run on a few pictures, and the best of them on all."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from omegaconf import OmegaConf

from ldm_inverse.runs.presets import find_preset
from ldm_inverse.runs.results import cell, csv_of
from ldm_inverse.runs.settings import from_words
from model_loader import resolve_model
from scripts.evaluation.statistics import Summary, summarise
from scripts.restoring import INTERRUPTED, restore
from scripts.sweeps.points import Point, find_tasks, records, refuse_own, refuse_shared, task_name
from scripts.sweeps.run import OWN, say
from scripts.text_tables import aligned
from scripts.tuning.space import read_axis
from util.cli import split_word
from util.errors import UserError
from util.files import make_folder, write_whole
from util.yaml import load_yaml

FIRST_SHARE = 4  # one picture in so many, and one trial in so many goes on from these to all pictures
DRAWS = 200  # for a trial, until one is accepted
SHOWN = 10


@dataclass(frozen=True)
class Search:
    """A search for the settings that restore best. The attributes are the arguments of `scripts/tune.py`.

    Attributes:
        space: words, see `scripts.tuning.space.read_axis`.
        tasks: names in ``task_dir``, or files; None is all of that folder.
        max_passes: of all networks, forward and backward counted apart, that a restoration may take. The preset itself
            may take more: then it is what the trials are compared with, and no more.
        metric: the column of `metrics.csv` to raise.
        command: words for `sample_condition.py`.
    """

    space: Sequence[str]
    tasks: Sequence[str] | None
    task_dir: Path
    preset: str
    trials: int
    pictures: int
    max_passes: int | None
    metric: str
    seed: int
    save_dir: Path
    dry_run: bool
    command: Sequence[str]

    def run(self) -> int:
        """Run what is left to do, write the tables and the best settings; return the exit status.

        Raises:
            UserError: the search cannot be made so, or nothing could be restored by the preset itself.
        """
        drawn = self.settings()
        points = [self.points(settings) for settings in drawn]
        if self.dry_run:
            rows = [[" ".join(settings), f"{passes(own):,}"] for settings, own in zip(drawn, points, strict=True)]
            print(aligned([["trial", "passes, at most"], *rows]))
            return 0
        resolve_model(points[0][0].job.request.diffusion_config)
        every = [point for own in points for point in own]
        wanted = {point.folder: found for point, found in zip(every, records(every), strict=True)}
        few = math.ceil(self.pictures / FIRST_SHARE)
        scores = [self._score(number, few, points, wanted) for number in range(len(drawn))]
        order = sorted(range(1, len(drawn)), key=lambda number: -scores[number].mean)
        best = [number for number in order if math.isfinite(scores[number].mean)]
        left = math.ceil(len(best) / FIRST_SHARE)
        scores[0] = self._score(0, self.pictures, points, wanted)
        for number in best:
            if left:  # one that fails on other pictures gives its place to the next
                scores[number] = self._score(number, self.pictures, points, wanted)
                left -= math.isfinite(scores[number].mean)
        self._write(drawn, points, scores)
        return 0

    @cached_property
    def _tasks(self) -> list[Path]:
        return find_tasks(self.tasks, self.task_dir)

    def settings(self) -> list[tuple[str, ...]]:
        """Return the settings of each trial as words; those of the first are the preset's own.

        A trial's draws come from ``seed`` and its number alone. What the command would refuse is drawn again, and so is
        what takes more than ``max_passes``.

        Raises:
            UserError: there is nothing to search, no draw is accepted, or two trials would share a folder.
        """
        refuse_own(self.command, (*OWN, "--limit"), "the search itself gives that")
        refuse_own(self.command, ("--shard",), "a trial is scored by all of its pictures")
        axes = [read_axis(word) for word in self.space]
        fixed, free = [axis for axis in axes if axis.fixed], [axis for axis in axes if not axis.fixed]
        if not free:
            raise UserError("nothing to search: give key=LOW..HIGH, key=log:LOW..HIGH or key=value,value")
        own = tuple(axis.draw(np.random.RandomState(0)) for axis in fixed)
        _ = self.points(own)[0].job  # raises what the command would
        trials = [own]
        for number in range(1, self.trials + 1):
            rng = np.random.RandomState([self.seed, number])
            for _ in range(DRAWS):
                settings = (*own, *(axis.draw(rng) for axis in free))
                complaint = self._complaint(settings)
                if complaint is None:
                    break
            else:
                raise UserError(f"no trial out of {DRAWS} draws; the last: {complaint}")
            trials.append(settings)
        refuse_shared([point for settings in dict.fromkeys(trials) for point in self.points(settings)])
        return trials

    def _complaint(self, settings: tuple[str, ...]) -> str | None:
        """Return what is wrong with these settings; None if nothing is."""
        try:
            taken = passes(self.points(settings))
        except UserError as error:
            return str(error)
        return f"takes {taken:,} passes, above --max_passes" if self._is_dear(taken) else None

    def _is_dear(self, taken: int) -> bool:
        return self.max_passes is not None and taken > self.max_passes

    def points(self, settings: tuple[str, ...], pictures: int | None = None) -> list[Point]:
        """Return the run of each task by these settings."""
        words = (*self.command, "--limit", str(pictures or self.pictures))
        return [Point(task, self.preset, self.seed, settings, self.save_dir, words) for task in self._tasks]

    def _score(
        self,
        number: int,
        pictures: int,
        points: Sequence[Sequence[Point]],
        wanted: Mapping[Path, Mapping[str, Any] | None],
    ) -> Summary:
        """Run a trial on the first pictures of each task; return its gain over the preset on the same measurements.

        Args:
            number: of the trial.
            pictures: how many.
            points: of all trials, those of the preset first.
            wanted: the record of each point, by its folder.

        Returns:
            The gain over the pictures, each the mean of its restorations; its mean is minus infinity where one failed.
        """
        settings = points[number][0].settings
        gains: list[float] = []
        for own, preset in zip(self.points(settings, pictures), points[0], strict=True):
            if len(own.finished(wanted[own.folder])) < own.restorations():
                say(f"== trial {number}/{self.trials}, {task_name(own.task)}: {' '.join(settings)}")
                status = restore(own.command())
                if status in INTERRUPTED:
                    sys.exit(status)
                if status == 2:
                    raise UserError(f"trial {number}: the command refuses {own.folder}")
            mine, theirs = ([*point.finished(wanted[point.folder]).values()] for point in (own, preset))
            if len(mine) < own.restorations():
                if number == 0:
                    failed = own.folder / "failed.csv"
                    told = failed if failed.is_file() else own.folder / "log"
                    raise UserError(f"the preset itself does not restore all pictures: see {told}")
                return Summary(-math.inf, None, None, None, len(own.job.pictures.pictures))
            means = self._means(own.folder, mine), self._means(preset.folder, theirs)
            gains += [value - means[1][image] for image, value in means[0].items()]
        return summarise(gains)

    def _means(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the mean of the metric over the restorations of each image in a folder."""
        found: dict[str, list[float]] = {}
        try:
            for row in rows:
                found.setdefault(row["image"], []).append(float(row[self.metric]))
        except KeyError as error:
            raise UserError(f"{folder} has no {self.metric}: pictures with a truth are needed") from error
        return {image: float(np.mean(values)) for image, values in found.items()}

    def _write(
        self, drawn: Sequence[tuple[str, ...]], points: Sequence[Sequence[Point]], scores: Sequence[Summary]
    ) -> None:
        """Write `trials.csv` and `best.yaml`, and print the best trials.

        Raises:
            UserError: no trial has restored all pictures, and the preset itself takes too many passes.
        """

        def place(number: int) -> tuple[bool, int, float]:
            return not math.isfinite(scores[number].mean), -scores[number].n, -scores[number].mean

        order = sorted(range(len(drawn)), key=place)
        common = set(drawn[0])
        rows = [
            {
                "trial": number,
                "images": scores[number].n,
                "gain": scores[number].mean,
                "low": scores[number].low,
                "high": scores[number].high,
                "passes": passes(points[number]),
                "settings": " ".join(word for word in drawn[number] if word not in common) or "the preset's own",
            }
            for number in order
        ]
        make_folder(self.save_dir)
        write_whole(self.save_dir / "trials.csv", csv_of(list(rows[0]), rows))
        may_be = [number for number in order if number or not self._is_dear(passes(points[0]))]
        best = may_be[0]
        if not math.isfinite(scores[best].mean) or scores[best].n < scores[0].n:
            raise UserError(
                f"no trial restored all pictures: see {self.save_dir / 'trials.csv'}, and give more --trials"
            )
        preset = load_yaml(find_preset(self.preset))
        layers = [preset, from_words(map(split_word, drawn[best]))]
        if by_operator := preset.pop("by_operator", {}):
            layers.append({"by_operator": {name: _merged(own, layers[1]) for name, own in by_operator.items()}})
        head = f"# Trial {best} of {self.trials}: {scores[best].mean:+.3f} in {self.metric} over {self.preset}.\n"
        write_whole(self.save_dir / "best.yaml", (head + yaml.safe_dump(_merged(*layers), sort_keys=False)).encode())
        columns = ["settings", *(column for column in rows[0] if column != "settings")]
        print(aligned([columns, *([_told(row[column]) for column in columns] for row in rows[:SHOWN])]))
        print(
            f"\ngain: in {self.metric} over the preset's own settings, with its 95 % interval (low, high). "
            f"The best is chosen by these pictures: measure it on others. {self.save_dir / 'best.yaml'} is a preset; "
            f"all trials: {self.save_dir / 'trials.csv'}"
        )


def _told(value: Any) -> str:
    """Return a table's cell, a gain with three digits behind the point."""
    return f"{value:+.3f}" if isinstance(value, float) else cell(value)


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return settings with later ones laid over earlier ones."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(*layers)))


def passes(points: Sequence[Point]) -> int:
    """Return the most passes through the networks that a restoration of any of the tasks takes, forward and backward
    counted apart."""
    return max(network_passes(point.passes()) for point in points)


def network_passes(cost: dict[str, int]) -> int:
    """Return how many passes through networks are in a `Cost.table`, forward and backward counted apart."""
    return sum(
        (2 if "forward and backward" in kind else 1) * count for kind, count in cost.items() if "operator" not in kind
    )
