#!/usr/bin/env python3
"""Check whether a checkpoint works: load the model, describe it, send pictures through its first stage, sample its
prior, and judge both in words.

The exit status is 0 if the model can be used as it is, and 1 if something looks wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, add_model, exit_status, whole_number

EXAMPLES = """examples:
  python scripts/check_model.py --model models/demo/model.safetensors
  python scripts/check_model.py --model CompVis/ldm-celebahq-256               # fetched by download_models.sh hf
  python scripts/check_model.py --model my.ckpt --ldm_config my.yaml --data my_pictures --samples 4 --steps 10

In SAVE_DIR: sheet.png with pictures, what the first stage makes of them, and samples. Look at it: no number sees what
an eye does."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_model(parser, default=Path("models/ldm/model.ckpt"))
    parser.add_argument("--data", type=Path, metavar="DIR|FILE", help="pictures (default: those in data/ of its size)")
    parser.add_argument("--limit", type=whole_number(2), default=16, metavar="N", help="pictures (default: 16)")
    parser.add_argument("--samples", type=whole_number(2), default=8, metavar="N", help="to draw (default: 8)")
    parser.add_argument("--steps", type=whole_number(1), default=20, help="of DPM-Solver++ (default: 20)")
    parser.add_argument("--class_label", type=whole_number(0), metavar="L", help="of a class-conditional model")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: 0)")
    parser.add_argument("--save_dir", type=Path, default=Path("results/check_model"), help="(default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: auto)")
    parser.add_argument("--gpu", type=whole_number(0), default=0, metavar="N", help="which card")
    add_debug(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> int:
    """Check the model; returns 1 where something looks wrong."""
    from scripts.model_checks.check import Check  # needs torch, which --help does not

    return Check(**{key: value for key, value in vars(args).items() if key != "debug"}).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(check, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
