#!/usr/bin/env python3
"""Show finished runs side by side: a table of their means, and a picture with a row for each.

    python scripts/overview.py results/demo/inpainting results/demo/motion_deblur --save results/demo/overview.png

Each row shows truth, measurement, baseline and restoration of one image; each run shows another image.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders that sample_condition.py has written"
    )
    parser.add_argument("--save", type=Path, required=True, metavar="PNG", help="where the picture goes")
    add_debug(parser)
    return parser.parse_args(argv)


def show(args: argparse.Namespace) -> None:
    """Draw the picture and print the table."""
    from scripts.evaluation.side_by_side import draw, read_run, table  # need torch, which --help does not

    runs = [read_run(folder) for folder in args.runs]
    draw(runs, args.save)
    print(table(runs))
    print(f"\npicture: {args.save}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(show, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
