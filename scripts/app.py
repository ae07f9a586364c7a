#!/usr/bin/env python3
"""Restore a photo on a page in the browser: say what is wrong with it, watch, compare, and save the result.

python scripts/app.py                   # then open http://127.0.0.1:7860
python scripts/app.py --port 8000

It runs sample_condition.py and shows the command line that repeats the result. Nothing leaves this machine. It needs
Gradio: pip install -r requirements-app.txt
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status, whole_number
from util.errors import UserError

PORT = 7860


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=PORT, metavar="N", help="on 127.0.0.1 (default: %(default)s)"
    )
    parser.add_argument(
        "--save_dir",
        type=Path,
        default=Path("results/app"),
        metavar="DIR",
        help="where photos and results are kept, each in a folder of its own (default: %(default)s)",
    )
    parser.add_argument("--browser", action="store_true", help="open the page in the browser")
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Show the page.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the page needs Gradio: pip install -r requirements-app.txt") from None
    from scripts.webapp.page import serve

    try:
        serve(args.port, args.save_dir, args.browser)
    except OSError as error:
        raise UserError(f"cannot listen on 127.0.0.1, port {args.port}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(run, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
