#!/usr/bin/env python3
"""Make the page of a run's folder, report.html, anew: for runs that are under way, were cut short, or are old.

python scripts/report.py results/inpainting
python scripts/report.py results/inpainting --inline 500 --save inpainting.html     # a single file to pass on
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import whole_number
from util.cli import Parser, add_debug, exit_status
from util.files import write_whole
from util.report import INLINED_MB, REPORT, report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder that sample_condition.py has written")
    parser.add_argument(
        "--inline",
        type=whole_number(0),
        default=INLINED_MB,
        metavar="MB",
        help="megabytes of pictures in the page itself; further ones stay where they are (default: %(default)s)",
    )
    parser.add_argument("--save", type=Path, metavar="HTML", help="where the page goes (default: RUN/report.html)")
    add_debug(parser)
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> None:
    """Write the page, and say where."""
    path = args.save or args.run / REPORT
    write_whole(path, report(args.run, args.inline, path.parent))
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(make, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
