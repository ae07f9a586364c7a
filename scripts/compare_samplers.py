#!/usr/bin/env python3
"""Compare samplers of a prior: how far their samples are from pictures of the kind it was trained on, by the number of
passes through the network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import GO_ON, Parser, add_debug, add_model, exit_status, split_word, whole_number
from util.errors import UserError

EXAMPLES = """The distance is the Fréchet distance between Gaussians fitted to features of both sets: mean and deviation
of each channel of the first stage's latent over each quarter of the picture, in units of the reference's deviation. It
says how near colours, layout and amount of detail are, and nothing about single pictures; it falls with the number of
samples, so only rows of one table compare. The first row is what as many of the reference's own pictures get, the
second what they get once encoded and decoded.

example:
  python scripts/compare_samplers.py --model models/demo/model.safetensors \\
      --reference FACES --n 512 --out results/samplers \\
      ddim:10 ddim:50 plms:10 dpm_solver:10 dpm_solver:10:order=3:spacing=log_snr

A run reads SAMPLER:STEPS, and more of the sampler's settings after colons. In OUT: a folder of samples for each, and
samplers.md. The same command continues where it was stopped; more runs or a larger --n add to the folder."""

RUNS = [
    *(f"ddim:{steps}" for steps in (5, 10, 20, 50)),
    *(f"dpm_solver:{steps}" for steps in (5, 10, 20)),
    *(f"plms:{steps}" for steps in (5, 10)),
    "ddpm:50",
]


class Run(NamedTuple):
    """The request in one word: a sampler, its steps and its own settings."""

    word: str
    sampler: str
    steps: int
    settings: Sequence[tuple[str, str]]


def run(word: str) -> Run:
    """Read SAMPLER:STEPS[:key=value...]."""
    sampler, _, rest = word.partition(":")
    steps, *settings = rest.split(":")
    if not steps.isdecimal() or int(steps) < 1:
        raise UserError(f"{word}: expected SAMPLER:STEPS with a whole number of steps, such as ddim:50")
    return Run(word, sampler, int(steps), [split_word(setting) for setting in settings])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--reference", required=True, nargs="+", type=Path, metavar="PICTURES", help="folders or zip files of pictures"
    )
    parser.add_argument("--n", type=whole_number(2), default=512, help="samples of each (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--no_codebook",
        action="store_true",
        help="decode the latents as they are, where the first stage has a codebook",
    )
    parser.add_argument("--out", required=True, type=Path, help="where samples and the table go")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--threads", type=whole_number(1, 1024), help="processor threads")
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="SAMPLER:STEPS[:key=value]", help="what to compare")
    add_debug(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(compare, argv, parse, GO_ON)


def compare(args: argparse.Namespace) -> None:
    """Sample, measure, write the table and print it."""
    from scripts.sampling.comparison import compare  # needs torch, which --help does not
    from scripts.sampling.samples import Samples

    keys = ("ldm_config", "diffusion_config", "n", "seed", "device", "threads", "no_codebook")
    shared = {key: getattr(args, key) for key in keys}
    runs = {
        word: Samples(
            **shared, sampler=sampler, steps=steps, settings=settings, save_dir=args.out / word.replace(":", "_")
        )
        for word, sampler, steps, settings in map(run, args.runs)
    }
    print(compare(list(runs.items()), args.reference, args.out))


if __name__ == "__main__":
    sys.exit(main())
