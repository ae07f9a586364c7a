#!/usr/bin/env python3
"""Write report.html, the page of a run's folder, again: for runs that are in progress, were interrupted, or are old.

python scripts/report.py results/inpainting
python scripts/report.py results/inpainting --inline 500 --save inpainting.html     # a single file to pass on
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_inverse.runs.report import INLINED_MB, REPORT
from util.cli import Parser, add_debug, exit_status, whole_number


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
    from ldm_inverse.runs.report.page import report  # needs NumPy and torch, which --help does not
    from util.files import write_whole

    path = args.save or args.run / REPORT
    write_whole(path, report(args.run, args.inline, path.parent))
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(make, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
