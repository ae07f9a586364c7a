#!/usr/bin/env python3
"""Time every part of a restoration beside a plain rendering of the published way of computing it."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import whole_number
from util.cli import Parser, add_debug, exit_status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = """examples:
  python scripts/benchmark.py                                  # FFHQ's architecture, random weights, all precisions
  python scripts/benchmark.py --config configs/latent-diffusion/demo-ldm-vq-4.yaml --precision fp32 bf16
  python scripts/benchmark.py --demo demo paper --limit 4      # whole restorations by these presets
  python scripts/benchmark.py --sizes 128 256 512 --config configs/latent-diffusion/demo-ldm-vq-4.yaml

Plain: contiguous layout, float32, dense kernels that ask for gradients, the graph kept through time travel. Times are
medians over rounds in which every mode has its turn; "of attainable" is relative to the best of a few large
convolutions and matrix products in the same number format. In OUT: benchmark.json and benchmark.md, or demo.json and
demo.md, or sizes.json and sizes.md."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/latent-diffusion/ffhq-ldm-vq-4.yaml")
    parser.add_argument("--checkpoint", type=Path, help="the model's weights (default: random ones)")
    parser.add_argument("--side", type=whole_number(1), help="of the images, in pixels (default: the model's)")
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "tf32", "bf16", "fp16"], help="(default: what the device has)"
    )
    parser.add_argument("--compile", action="store_true", help="time compiled networks as well")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all)")
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="rounds of each part (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"), help="(default: %(default)s)")
    sizes = parser.add_argument_group("how the cost grows")
    sizes.add_argument("--sizes", type=whole_number(1), nargs="+", metavar="SIDE", help="time images of these sides")
    sizes.add_argument("--batches", type=whole_number(1), nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    demo = parser.add_argument_group("whole restorations by the demo model")
    demo.add_argument("--demo", nargs="+", metavar="PRESET", help="time these presets instead")
    demo.add_argument("--limit", type=whole_number(1), default=4, help="pictures of each task (default: 4)")
    demo.add_argument("--tasks", type=Path, nargs="+", default=sorted((ROOT / "configs/tasks/demo").glob("*.yaml")))
    demo.add_argument("settings", nargs="*", metavar="key=value", help="settings for all presets, after a --")
    add_debug(parser)
    return parser.parse_args(argv)


def time_parts(args: argparse.Namespace) -> str:
    """Time the parts of a restoration, and write what came out; returns it as text."""
    import torch

    from model_loader import load_model_from_config, load_yaml, resolve_device
    from scripts.benchmarks import modes, report
    from scripts.benchmarks.parts import all_rows

    if args.threads:
        torch.set_num_threads(args.threads)
    device, config = resolve_device(args.device), load_yaml(args.config)
    chosen = modes.modes(device, args.precision, args.compile)
    if args.checkpoint:
        state = load_model_from_config(config, args.checkpoint).state_dict()
    else:
        state = modes.build_state(config)
    if args.sizes:
        return time_sizes(args, config, state, device)
    side = args.side or modes.build_model(config, state, torch.device("cpu")).resolution
    rows = list(all_rows(config, state, device, chosen, args.repeats, side))
    about = {"model": args.config.stem, "side": side, "repeats": args.repeats, **report.machine(device)}
    report.write(args.out, "benchmark.json", report.as_json(about, rows))
    text = report.as_markdown(about, rows)
    report.write(args.out, "benchmark.md", text)
    return text


def time_sizes(
    args: argparse.Namespace, config: Mapping[str, Any], state: Mapping[str, "Tensor"], device: "torch.device"
) -> str:
    """Time images of several sides, one and more at a time, and write what came out; returns it as text."""
    from scripts.benchmarks import report
    from scripts.benchmarks.sizes import size_markdown, size_table

    table = size_table(config, state, device, args.sizes, args.batches, args.repeats)
    about = {"model": args.config.stem, "repeats": args.repeats, **report.machine(device)}
    report.write(args.out, "sizes.json", json.dumps({**about, "rows": table}, indent=1) + "\n")
    text = f"{report.sentence(about)}\n\n{size_markdown(table)}"
    report.write(args.out, "sizes.md", text)
    return text


def time_presets(args: argparse.Namespace) -> str:
    """Time whole restorations, and write what came out; returns it as text."""
    from scripts.benchmarks import report
    from scripts.benchmarks.demo import demo_markdown, demo_table

    words = ["--limit", str(args.limit), *args.settings]
    table = demo_table(args.demo, args.tasks, args.out / "runs", words)
    report.write(args.out, "demo.json", json.dumps(table, indent=1) + "\n")
    text = demo_markdown(table)
    report.write(args.out, "demo.md", text)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda args: print(time_presets(args) if args.demo else time_parts(args)), argv, parse)


if __name__ == "__main__":
    sys.exit(main())
