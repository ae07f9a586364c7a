#!/usr/bin/env python3
"""Restore by every combination of tasks, presets, settings and seeds, each in a folder of its own; then tabulate all
and plot quality against time.

All combinations are checked before the first is run. What is finished is not done again: the same command goes on
where it was stopped. Words after -- are for sample_condition.py.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import shard, whole_number
from util.cli import Parser, add_debug, exit_status
from util.errors import Terminated, UserError
from util.processes import share

if TYPE_CHECKING:
    from scripts.sweeps.points import Point

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = (130, 143)
PATIENCE = 20.0  # seconds that an interrupted command gets to save where it is

EXAMPLES = """examples:
  # how long the last optimisation and how many steps, on two tasks
  python scripts/sweep.py --task_dir configs/tasks/demo --tasks inpainting motion_deblur --presets demo --seeds 0 1 \\
      --save_dir results/sweep conditioning.resample.final.max_iters=18,36,72 ddim_steps=4,8 \\
      -- --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml --diffusion_config models/demo/model.safetensors \\
      --data data/demo --limit 4

  # a Slurm array: each job has its share of the combinations ...
  python scripts/sweep.py ... --shard $SLURM_ARRAY_TASK_ID/8
  # ... or of the pictures of each
  python scripts/sweep.py ... -- --shard $SLURM_ARRAY_TASK_ID/8

In SAVE_DIR: TASK/PRESET/SETTINGS/seed_N/, the tables of scripts/evaluate.py, tasks.md (tasks by settings, with what
they cost) and sweep.png."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `command` holds the words after --."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    # Settings first: behind an option that takes several words they would be taken for its own.
    own = sorted(argv[:end], key=lambda word: word.startswith("-") or "=" not in word)
    parser = Parser(prog="sweep.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("settings", nargs="*", metavar="key=value,value", help="settings, each with the values to try")
    parser.add_argument("--tasks", nargs="+", metavar="NAME|FILE", help="(default: every task in --task_dir)")
    parser.add_argument(
        "--task_dir", type=Path, default=ROOT / "configs/tasks", metavar="DIR", help="(default: configs/tasks)"
    )
    parser.add_argument("--presets", nargs="+", default=["reference"], metavar="NAME|FILE", help="(default: reference)")
    parser.add_argument("--seeds", nargs="+", type=whole_number(0), default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--save_dir", type=Path, default=Path("results/sweep"), help="(default: %(default)s)")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the combinations")
    parser.add_argument("--dry_run", action="store_true", help="list the combinations and their cost; write nothing")
    add_debug(parser)
    args = parser.parse_args(own)
    args.command = argv[end + 1 :]
    return args


def find_points(args: argparse.Namespace) -> list["Point"]:
    """Return all points, checked.

    Raises:
        UserError: there are none, or one that the command would refuse.
    """
    from scripts.sweeps.points import check, find_task, grid

    files = sorted(args.task_dir.glob("*.yaml"))
    tasks = [find_task(name, args.task_dir) for name in args.tasks] if args.tasks else files
    if not tasks:
        raise UserError(f"no tasks in {args.task_dir}")
    own = ("--task_config", "--preset", "--seed", "--save_dir", "--from", "--dry_run")
    taken = [word for word in args.command if word.partition("=")[0] in own]
    if taken:
        raise UserError(f"{taken[0]} after --: the sweep itself gives that")
    points = grid(tasks, args.presets, args.seeds, args.settings, args.save_dir, args.command)
    check(points)
    return points


def plan(points: Sequence["Point"], finished: Sequence[int]) -> str:
    """Return the points and what each costs, as text."""
    from scripts.sweeps.points import PASSES

    head = ["passes, at most", "restorations", "left", *PASSES.values()]
    rows, total = [], [0] * (len(head) - 1)
    for point, there in zip(points, finished, strict=True):
        left = point.restorations() - there
        numbers = [point.restorations(), left, *(left * count for count in point.passes().values())]
        rows.append([str(point.folder.relative_to(point.root)), *numbers])
        total = [sum(pair) for pair in zip(total, numbers, strict=True)]
    rows.append([f"{len(points)} combinations", *total])
    cells = [head, *([row[0], *(f"{number:,}" for number in row[1:])] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells)


def restore(point: "Point") -> int:
    """Run the command for a point in a process of its own, so that nothing is left of it; returns its status."""
    command = [sys.executable, str(ROOT / "sample_condition.py"), *point.command()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # its table: one of all follows
    try:
        return process.wait()
    except Terminated:
        process.terminate()
        process.wait()
        raise
    except KeyboardInterrupt:  # a terminal sends it to both
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise


def sweep(args: argparse.Namespace) -> int:
    """Run what is left to do, tabulate and plot; returns 1 where something failed."""
    from model_loader import require_checkpoint
    from scripts.sweeps.points import is_of, records

    points = find_points(args)
    if not args.dry_run:
        require_checkpoint(points[0].args.diffusion_config)
    wanted = records(points)
    current = [wanted is not None and is_of(point.folder, wanted[i]) for i, point in enumerate(points)]
    finished = [point.finished() if now else 0 for point, now in zip(points, current, strict=True)]
    if args.dry_run:
        print(plan(points, finished))
        return 0
    mine = set(share([point.folder for point in points], args.shard))
    statuses = {}
    for number, (point, there) in enumerate(zip(points, finished, strict=True), 1):
        if point.folder in mine and there < point.restorations():
            say(f"== {number}/{len(points)} {point.folder.relative_to(point.root)}")
            statuses[point.folder] = restore(point)
            if statuses[point.folder] in INTERRUPTED:
                return statuses[point.folder]
    failed = [folder for folder, status in statuses.items() if status]
    for folder in failed:
        say(f"not all restored: {folder}")
    shown = [p for p, record in zip(points, wanted, strict=True) if is_of(p.folder, record) and p.finished()]
    if not shown:
        raise UserError(f"nothing is finished in {args.save_dir}")
    tabulate(args.save_dir, shown)
    return int(bool(failed))


def say(line: str) -> None:
    """Tell how far the sweep is."""
    print(line, file=sys.stderr, flush=True)


def tabulate(folder: Path, points: Sequence["Point"]) -> None:
    """Write the tables of all points and draw the plot; of several tasks the table of tasks by settings is printed."""
    from scripts.evaluate import measure, write
    from scripts.evaluate import parse as parse_evaluation
    from scripts.evaluation.tables import as_text
    from scripts.sweeps.grid_table import grid_table
    from scripts.sweeps.plot import draw
    from scripts.sweeps.points import task_name
    from util.files import write_whole

    names = {point.folder: f"{task_name(point.task)}/{point.label}" for point in points}
    plugins = [word for path in points[0].args.plugin or () for word in ("--plugin", str(path))]
    evaluation = measure(parse_evaluation([*map(str, names), "--by_task", *plugins]), names)
    write(evaluation, folder)
    of = {str(point.folder): point for point in points}
    panels, baselines = {}, {}
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(sweep, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
