#!/usr/bin/env python3
"""Restore by every combination of tasks, presets, settings and seeds, each in a folder of its own; then tabulate all
and plot quality against time.

All combinations are checked before the first is run. Finished runs are not repeated, unless a picture, mask or kernel
has changed: the same command continues where it was stopped. Words after -- go to sample_condition.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import GO_ON, Parser, add_debug, exit_status, shard, whole_number

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = """examples:
  # the number of steps, and the correlation of errors in pixels, on two tasks
  python scripts/sweep.py --task_dir configs/tasks/demo --tasks inpainting motion_deblur --presets demo --seeds 0 1 \\
      --save_dir results/sweep ddim_steps=8,12 conditioning.resample.pixel.correlation=0.5,1,2 \\
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
    parser = Parser(prog="sweep.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("settings", nargs="*", metavar="key=value,value", help="settings, each with the values to try")
    add_tasks(parser)
    parser.add_argument("--presets", nargs="+", default=["reference"], metavar="NAME|FILE", help="(default: reference)")
    parser.add_argument("--seeds", nargs="+", type=whole_number(0), default=[0], metavar="N", help="(default: 0)")
    parser.add_argument("--save_dir", type=Path, default=Path("results/sweep"), help="(default: %(default)s)")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the combinations")
    parser.add_argument("--dry_run", action="store_true", help="list the combinations and their cost; write nothing")
    add_debug(parser)
    return parse_words(parser, argv)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name tasks: `tasks`, None for all, and `task_dir`."""
    parser.add_argument("--tasks", nargs="+", metavar="NAME|FILE", help="(default: every task in --task_dir)")
    parser.add_argument(
        "--task_dir", type=Path, default=ROOT / "configs/tasks", metavar="DIR", help="(default: configs/tasks)"
    )


def parse_words(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line of settings and arguments; `command` holds the words after --."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(settings_first(argv[:end]))
    args.command = argv[end + 1 :]
    return args


def settings_first(words: Sequence[str]) -> list[str]:
    """Return the words with the settings first: behind an option that takes several words they would be taken for its
    own. The word right behind an option is its value, even with an = in it."""
    flags = ("--dry_run", "--debug")
    values = {i + 1 for i, word in enumerate(words) if word.startswith("--") and word not in flags and "=" not in word}
    rest = [i for i, word in enumerate(words) if i in values or word.startswith("-") or "=" not in word]
    return [*(word for i, word in enumerate(words) if i not in rest), *(words[i] for i in rest)]


def sweep(args: argparse.Namespace) -> int:
    """Run what is left to do, tabulate and plot; returns 1 where something failed."""
    from scripts.sweeps.run import Sweep  # needs torch, which --help does not

    return Sweep(**{key: value for key, value in vars(args).items() if key != "debug"}).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(sweep, argv, parse, GO_ON)


if __name__ == "__main__":
    sys.exit(main())
