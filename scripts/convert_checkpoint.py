#!/usr/bin/env python3
"""Turn a checkpoint into a clean safetensors file: the tensors that sampling uses and nothing else.

Reads .ckpt, .pt, .pth (nothing in them is run) and .safetensors files of latent diffusion models and of first stages.
Optimiser states, losses and moving averages stay behind. The new file appears complete or not at all.

examples:
  python scripts/convert_checkpoint.py models/ldm/model.ckpt models/ldm/model.safetensors
  python scripts/convert_checkpoint.py --half --ema models/ldm/celeba/model.ckpt celeba-ema-half.safetensors
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.checkpoint import moving_averages, read_checkpoint, write_checkpoint
from util.cli import Parser, add_debug, exit_status
from util.errors import UserError

# Names below these are for training only, in a whole model and in a first stage alone.
TRAINING_ONLY = re.compile(r"(first_stage_model\.)?(loss|model_ema)\.|logvar$")
# The networks. What is outside them, schedules and scales, is small and keeps its precision.
NETWORKS = re.compile(r"(model\.diffusion_model|(first|cond)_stage_model|encoder|decoder|(post_)?quant(ize|_conv))\.")


def converted(name: str, tensor: Tensor, half: bool) -> Tensor:
    """Return what the new file holds of a tensor.

    Raises:
        UserError: the tensor is not finite, or leaves the range of half precision.
    """
    if half and tensor.is_floating_point() and NETWORKS.match(name):
        tensor = tensor.half()
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN, infinity or, with --half, numbers above 65504")
    return tensor.clone(memory_format=torch.contiguous_format) if _shares(tensor) else tensor


def _shares(tensor: Tensor) -> bool:
    """Whether a tensor is only a part, or another order, of the numbers it is stored in."""
    return not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes


def convert(source: Path, target: Path, ema: bool = False, half: bool = False) -> tuple[int, int]:
    """Convert one file.

    Returns:
        How many tensors were written, and how many were left out.

    Raises:
        UserError: the source is not a readable checkpoint, a value does not fit, or the target cannot be written.
    """
    stored = read_checkpoint(source)
    wanted = {name: tensor for name, tensor in stored.items() if not TRAINING_ONLY.match(name)}
    if ema:
        wanted |= moving_averages(source, stored, [name for name in wanted if name.startswith("model.")])
    tensors = {name: converted(name, tensor.read(), half) for name, tensor in wanted.items()}
    write_checkpoint(target, tensors, {"weights": "moving average" if ema else "raw"})
    return len(wanted), len(stored) - len(wanted)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    summary, examples = __doc__.split("\n\nexamples:", 1)
    parser = Parser(description=summary, epilog=f"examples:{examples}")
    parser.add_argument("source", type=Path, help="the checkpoint to read")
    parser.add_argument("target", type=Path, help="the .safetensors file to write; it is replaced when it is there")
    parser.add_argument(
        "--ema", action="store_true", help="write the moving average of the UNet's weights as its weights"
    )
    parser.add_argument("--half", action="store_true", help="networks in half precision: half the size")
    add_debug(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert, and say what came out."""
    if args.target.suffix != ".safetensors":
        raise UserError(f"{args.target}: the new file's name must end in .safetensors")
    written, left_out = convert(args.source, args.target, args.ema, args.half)
    size = args.target.stat().st_size / 1e6
    print(f"{args.target}: {written} tensors, {size:.1f} MB; {left_out} that only training used were left out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(run, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
