#!/usr/bin/env python3
"""Turn a checkpoint into a clean safetensors file: the tensors that sampling uses and nothing else.

Reads .ckpt, .pt, .pth (nothing in them is run) and .safetensors files of latent diffusion models and of first stages,
and folders in the diffusers layout. Optimiser states, losses and moving averages stay behind. A damaged file is noticed
where it has checksums. The new file appears complete or not at all. A folder's configuration, or the YAML of the
file's name beside it, is written beside the new file as NEW.yaml.

examples:
  python scripts/convert_checkpoint.py models/ldm/model.ckpt models/ldm/model.safetensors
  python scripts/convert_checkpoint.py --half --ema models/ldm/celeba/model.ckpt celeba-ema-half.safetensors
  python scripts/convert_checkpoint.py CompVis/ldm-celebahq-256 celebahq.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status
from util.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    summary, examples = __doc__.split("\n\nexamples:", 1)
    parser = Parser(description=summary, epilog=f"examples:{examples}")
    parser.add_argument("source", type=Path, help="the checkpoint to read, a folder, or the id of one from the hub")
    parser.add_argument("target", type=Path, help="the .safetensors file to write; it is replaced when it is there")
    parser.add_argument(
        "--ema", action="store_true", help="write the moving average of the UNet's weights as its weights"
    )
    parser.add_argument("--half", action="store_true", help="networks in half precision: half the size")
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert, and say what came out."""
    from scripts.converting import convert  # needs torch, which --help does not

    if args.target.suffix != ".safetensors":
        raise UserError(f"{args.target}: the new file's name must end in .safetensors")
    written, left_out = convert(args.source, args.target, args.ema, args.half)
    size = args.target.stat().st_size / 1e6
    print(f"{args.target}: {written} tensors, {size:.1f} MB; {left_out} that only training used were left out")
    if args.target.with_suffix(".yaml").is_file():
        print(f"{args.target.with_suffix('.yaml')}: its configuration")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(run, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
