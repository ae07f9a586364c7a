#!/usr/bin/env python3
"""Time every part of a restoration, and compare it with a plain implementation of the published computation."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status, whole_number

ROOT = Path(__file__).resolve().parents[1]

PARTS = ("UNet forward", "decoder forward", "latent iteration", "sampling step", "time travel")
OPERATORS = ("gaussian_blur", "motion_blur", "super_resolution", "inpainting")

EXAMPLES = """examples:
  python scripts/benchmark.py                                  # FFHQ's architecture, random weights, all precisions
  python scripts/benchmark.py --config configs/latent-diffusion/demo-ldm-vq-4.yaml --precision fp32 bf16
  python scripts/benchmark.py --parts "UNet forward" --precision fp32
  python scripts/benchmark.py --demo demo paper --limit 4      # whole restorations by these presets
  python scripts/benchmark.py --restorations fastest fast --compile   # whole restorations in every mode
  python scripts/benchmark.py --restorations reference --operator super_resolution -- ddim_steps=20
  python scripts/benchmark.py --sizes 128 256 512 --config configs/latent-diffusion/demo-ldm-vq-4.yaml

Plain: contiguous layout, float32, dense kernels that ask for gradients, the graph kept through time travel. Times are
medians over rounds in which every mode has its turn; "of attainable" is relative to the best of a few large
convolutions and matrix products in the same number format. In OUT: benchmark.json and benchmark.md, or those of
demo, restorations or sizes."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/latent-diffusion/ffhq-ldm-vq-4.yaml")
    parser.add_argument("--checkpoint", type=Path, help="the model's weights (default: random ones)")
    parser.add_argument("--side", type=whole_number(1), help="of the images, in pixels (default: the model's)")
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "tf32", "bf16", "fp16"], help="(default: what the device has)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", help=f"time these alone: {', '.join(map(repr, PARTS))}"
    )
    parser.add_argument("--compile", action="store_true", help="time compiled networks as well")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all)")
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="rounds of each part (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"), help="(default: %(default)s)")
    whole = parser.add_argument_group("whole restorations with random weights")
    whole.add_argument("--restorations", nargs="+", metavar="PRESET", help="time restorations by these instead")
    whole.add_argument("--operator", choices=OPERATORS, help=f"that measures (default: {OPERATORS[0]})")
    sizes = parser.add_argument_group("how the cost grows")
    sizes.add_argument("--sizes", type=whole_number(1), nargs="+", metavar="SIDE", help="time images of these sides")
    sizes.add_argument("--batches", type=whole_number(1), nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    demo = parser.add_argument_group("whole restorations by the demo model")
    demo.add_argument("--demo", nargs="+", metavar="PRESET", help="time these presets instead")
    demo.add_argument("--limit", type=whole_number(1), default=4, help="pictures of each task (default: 4)")
    demo.add_argument("--tasks", type=Path, nargs="+", default=sorted((ROOT / "configs/tasks/demo").glob("*.yaml")))
    demo.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="settings for these presets or those of --restorations, after a --",
    )
    add_debug(parser)
    return parser.parse_args(argv)


def benchmark(args: argparse.Namespace) -> None:
    """Time what is asked for, and print the table."""
    from scripts.benchmarks.run import Benchmark  # needs torch, which --help does not

    print(Benchmark(**{key: value for key, value in vars(args).items() if key != "debug"}).run())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(benchmark, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
