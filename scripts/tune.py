#!/usr/bin/env python3
"""Search the settings of a solver at random for those that restore best, on the same measurements.

Every trial restores the first quarter of the pictures; the best quarter of the trials restore all of them. Each is
compared with the preset itself, image by image, by the mean of an image's restorations. Finished runs are not repeated,
unless a picture, mask or kernel has changed: the same command continues where it was stopped, and with more --trials it
tries more. Words after -- go to sample_condition.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.sweep import add_tasks, parse_words
from util.cli import GO_ON, Parser, add_debug, exit_status, whole_number

EXAMPLES = """examples:
  # DAPS on inpainting, with 200 passes through the networks at most
  python scripts/tune.py --task_dir configs/tasks/demo --tasks inpainting --preset daps --max_passes 200 \\
      --save_dir results/daps ddim_steps=5..50 conditioning.daps.iterations=1..20 \\
      conditioning.daps.lr=log:0.1..2 conditioning.daps.decoder_error=log:0.02..0.2 \\
      -- --model models/demo --data data/demo --threads 1

settings: key=LOW..HIGH (whole numbers where both are), key=log:LOW..HIGH (uniform in the logarithm), key=value,value
(one of these), key=value (for all trials, the preset's own included).
In SAVE_DIR: trials.csv, best.yaml (a preset), and the runs, TASK/PRESET/SETTINGS/seed_N/."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `command` holds the words after --."""
    parser = Parser(prog="tune.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("space", nargs="*", metavar="key=VALUES", help="settings, each with its values (below)")
    add_tasks(parser)
    parser.add_argument("--preset", required=True, metavar="NAME|FILE", help="where to begin, and what to compare with")
    parser.add_argument("--trials", type=whole_number(1), default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--pictures", type=whole_number(1), default=8, metavar="N", help="of each task (default: 8)")
    parser.add_argument(
        "--max_passes",
        type=whole_number(1),
        metavar="N",
        help="passes through the networks that a restoration may take; forward and backward passes count separately",
    )
    parser.add_argument("--metric", choices=["psnr", "ssim"], default="psnr", help="what to maximise (default: psnr)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of draws and runs (default: 0)")
    parser.add_argument("--save_dir", type=Path, default=Path("results/tune"), help="(default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="list the trials and their cost; write nothing")
    add_debug(parser)
    return parse_words(parser, argv)


def tune(args: argparse.Namespace) -> int:
    """Run what is left of the search; returns its exit status."""
    from scripts.tuning.search import Search  # needs torch, which --help does not

    return Search(**{key: value for key, value in vars(args).items() if key != "debug"}).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(tune, argv, parse, GO_ON)


if __name__ == "__main__":
    sys.exit(main())
