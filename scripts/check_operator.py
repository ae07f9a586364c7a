#!/usr/bin/env python3
"""Check that a measurement operator has the properties that solvers rely on, and say what is wrong.

The operator is a built-in one, or comes from a file of your own (see docs/OPERATORS.md); key=value words are its
settings. The exit status is 0 if all properties hold, 1 if one does not, and 2 if the operator cannot be built.

examples:
  python scripts/check_operator.py my_operators.py:checkerboard
  python scripts/check_operator.py my_operators.py:haze strength=0.3
  python scripts/check_operator.py motion_blur kernel_size=31
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status, split_word
from util.errors import UserError, printable
from util.plugins import complaint, load_plugins


def check(build: Callable[[], Any], debug: bool = False) -> bool:
    """Print what each property of an operator finds; tells whether all hold."""
    from ldm_inverse.properties import PROPERTIES, PropertyError  # need torch, which --help does not

    good = True
    for name, test in PROPERTIES.items():
        try:
            verdict, told = "ok", test(build)
        except PropertyError as error:
            verdict, told = "FAILS", str(error)
        except Exception as error:  # its own code, which may raise anything
            verdict, told = "FAILS", complaint(error) or f"{type(error).__name__}: {error}"
            if debug:
                traceback.print_exc()
        good &= verdict == "ok"
        print(f"  {verdict:5s}  {name.replace('_', ' '):33s} {printable(' '.join(told.split()))}")
    return good


def run(args: argparse.Namespace) -> int:
    """Build the operator as a task would, and check it."""
    from ldm_inverse.operators.base import build_operator  # need torch, which --help does not
    from ldm_inverse.runs.settings import from_words

    file, _, name = args.operator.rpartition(":")
    if args.operator.endswith(".py"):
        raise UserError(f"{args.operator}: which operator? Give its name too, as in {args.operator}:NAME")
    load_plugins([file] if file else [])
    settings = from_words(args.settings)
    build = partial(build_operator, name, settings, f"operator {name!r}")
    operator = build()
    print(f"{args.operator} ({type(operator).__name__}, linear = {operator.linear}), settings {settings or 'none'}")
    good = check(build, args.debug)
    print("all properties hold" if good else "something is wrong: see FAILS above")
    return 0 if good else 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    summary, examples = __doc__.split("\n\nexamples:", 1)
    parser = Parser(description=summary, epilog=f"examples:{examples}")
    parser.add_argument("operator", metavar="[FILE:]NAME", help="a file that registers it, and its name")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the operator")
    add_debug(parser)
    args = parser.parse_args(argv)
    args.settings = [split_word(word) for word in args.settings]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(run, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
