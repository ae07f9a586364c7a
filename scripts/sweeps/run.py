"""A sweep: what is left of it is run, each point in a process of its own; then all is tabulated and plotted."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_loader import resolve_model
from scripts.evaluation.entries import Entry, Known
from scripts.evaluation.measuring import Request, measure, write
from scripts.evaluation.tables import as_text
from scripts.restoring import INTERRUPTED, restore
from scripts.sweeps.grid_table import grid_table
from scripts.sweeps.plot import draw
from scripts.sweeps.points import Point, check, find_tasks, grid, records, refuse_own, task_name
from scripts.text_tables import aligned
from util.errors import UserError
from util.files import write_whole
from util.processes import share

OWN = ("--task_config", "--preset", "--seed", "--save_dir", "--from", "--dry_run")


@dataclass(frozen=True)
class Sweep:
    """All combinations of tasks, presets, settings and seeds. The attributes are the arguments of `scripts/sweep.py`.

    Attributes:
        settings: words `key=value,value`.
        tasks: names in ``task_dir``, or files; None is all of that folder.
        command: words for `sample_condition.py`.
    """

    settings: Sequence[str]
    tasks: Sequence[str] | None
    task_dir: Path
    presets: Sequence[str]
    seeds: Sequence[int]
    save_dir: Path
    shard: tuple[int, int] | None
    dry_run: bool
    command: Sequence[str]

    def points(self) -> list[Point]:
        """Return all points, checked.

        Raises:
            UserError: there are none, or one that the command would refuse.
        """
        tasks = find_tasks(self.tasks, self.task_dir)
        refuse_own(self.command, OWN, "the sweep sets that itself")
        points = grid(tasks, self.presets, self.seeds, self.settings, self.save_dir, self.command)
        check(points)
        return points

    def run(self) -> int:
        """Run what is left to do, tabulate and plot; return the exit status, 1 where something failed."""
        points = self.points()
        if not self.dry_run:
            resolve_model(points[0].job.request.diffusion_config)
        wanted = records(points)
        finished = [len(point.finished(record)) for point, record in zip(points, wanted, strict=True)]
        if self.dry_run:
            print(plan(points, finished))
            return 0
        statuses = self._restore(points, finished)
        if interrupted := [status for status in statuses.values() if status in INTERRUPTED]:
            return interrupted[0]
        failed = [folder for folder, status in statuses.items() if status]
        for folder in failed:
            say(f"not all restored: {folder}")
        shown = {p: p.results(record) for p, record in zip(points, wanted, strict=True) if p.finished(record)}
        if not shown:
            raise UserError(f"nothing is finished in {self.save_dir}")
        tabulate(self.save_dir, shown)
        return int(bool(failed))

    def _restore(self, points: Sequence[Point], finished: Sequence[int]) -> dict[Path, int]:
        """Run this process's share of what is not finished; returns the statuses by folder, an interruption last."""
        mine = set(share([str(point.folder) for point in points], self.shard))
        statuses: dict[Path, int] = {}
        for number, (point, there) in enumerate(zip(points, finished, strict=True), 1):
            if str(point.folder) in mine and there < point.restorations():
                say(f"== {number}/{len(points)} {point.folder.relative_to(point.root)}")
                statuses[point.folder] = restore(point.command())
                if statuses[point.folder] in INTERRUPTED:
                    break
        return statuses


def plan(points: Sequence[Point], finished: Sequence[int]) -> str:
    """Return the points and what each costs, as text: a column for each kind of pass that any of them takes."""
    costs = [point.passes() for point in points]
    kinds = [kind for kind in costs[0] if any(cost[kind] for cost in costs)]
    head = ["passes, at most", "restorations", "left", *kinds]
    rows: list[tuple[str, list[int]]] = []
    for point, there, cost in zip(points, finished, costs, strict=True):
        left = point.restorations() - there
        numbers = [point.restorations(), left, *(left * cost[kind] for kind in kinds)]
        rows.append((str(point.folder.relative_to(point.root)), numbers))
    rows.append(
        (f"{len(points)} combinations", [sum(column) for column in zip(*(row[1] for row in rows), strict=True)])
    )
    return aligned([head, *([name, *(f"{number:,}" for number in numbers)] for name, numbers in rows)])


def say(line: str) -> None:
    """Tell how far the program is."""
    print(line, file=sys.stderr, flush=True)


def tabulate(folder: Path, results: Mapping[Point, Collection[str]]) -> None:
    """Write the tables of all points and draw the plot; of several tasks the table of tasks by settings is printed.

    Args:
        folder: the sweep's.
        results: the names of the restorations of each point.
    """
    points = list(results)
    known = {
        point.folder: Known(f"{task_name(point.task)}/{point.label}", task_name(point.task), names)
        for point, names in results.items()
    }
    plugin = [str(path) for path in points[0].job.request.plugin]
    evaluation = measure(Request(runs=list(known), by_task=True, plugin=plugin), known)
    write(evaluation, folder)
    of = {str(point.folder): point for point in points}
    panels: dict[str, list[tuple[str, Entry]]] = {}
    baselines: dict[str, Entry] = {}
    for entry in evaluation.entries:
        if entry.folders:
            point = of[entry.folders[0]]
            panels.setdefault(task_name(point.task), []).append((point.label, entry))
    for task, entries in panels.items():
        kinds = {entry.task for _, entry in entries}
        own = [entry for entry in evaluation.entries if not entry.folders and entry.task in kinds]
        if len(own) == 1:
            baselines[task] = own[0]
    write_whole(folder / "sweep.png", draw(panels, baselines))
    has_none = any(point.job.solver.sampler == "none" for point in points)  # which is the baseline
    grid = grid_table(panels, {} if has_none else baselines)
    write_whole(folder / "tasks.md", grid.encode())
    print(grid if len(panels) > 1 else as_text(evaluation))
    print(f"\nplot: {folder / 'sweep.png'}; tables: {folder / 'tasks.md'}, evaluation.*, images.csv, summary.csv")
