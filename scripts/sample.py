#!/usr/bin/env python3
"""Sample pictures from a model's prior alone, without a measurement."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, add_model, exit_status, split_word, whole_number

EXAMPLES = """samplers, and their settings as key=value words:
  ddim         eta=0                   deterministic; eta=1 is ancestral (Song et al., ICLR 2021)
  ddpm                                 ancestral sampling; many steps (Ho et al., NeurIPS 2020)
  plms                                 pseudo linear multistep, 3 x 3 passes more than steps (Liu et al., ICLR 2022)
  dpm_solver   order=2                 1 to 3 (Lu et al., 2022: DPM-Solver++)
               method=multistep        or singlestep, which takes as many passes a step as the order
               spacing=time            of the levels: even in time, log_snr, or quadratic (in time's square root)
               prediction=x0           or eps: what is extrapolated (DPM-Solver)

examples:
  python scripts/sample.py --model models/demo/model.safetensors \\
      --sampler dpm_solver --steps 20 --save_dir results/samples

  python scripts/sample.py --model models/ldm/cin/model.ckpt \\
      --class_label 207 --scale 3 --save_dir results/retriever

In SAVE_DIR: samples/00000.png and so on, sheet.png of the first 64, settings.yaml. Each sample has a random stream of
its own, so --n and --batch_size leave the others as they are (to rounding). The same command again makes what is
missing."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_model(parser)
    parser.add_argument("--sampler", default="ddim", help="ddim, ddpm, plms or dpm_solver (default: %(default)s)")
    parser.add_argument("--steps", type=whole_number(1), default=50, help="sampling steps (default: %(default)s)")
    parser.add_argument("--n", type=whole_number(1), default=16, help="how many samples (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--class_label", type=whole_number(0), metavar="L", help="the class, for a class-conditional model"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="for models with prompts (default: the empty prompt)")
    parser.add_argument(
        "--negative_prompt", metavar="TEXT", help="what the pictures do not show; takes effect with --scale above 1"
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="W", help="classifier-free guidance; 1 is none")
    parser.add_argument("--batch_size", type=whole_number(1), default=16, help="samples at once (default: %(default)s)")
    parser.add_argument(
        "--no_codebook",
        action="store_true",
        help="decode the latents as they are, where the first stage has a codebook",
    )
    parser.add_argument("--save_dir", required=True, type=Path, help="where the pictures go")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--gpu", type=whole_number(0), default=0, metavar="N", help="which card")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the networks")
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), help="processor threads (default: as in save_dir, or else torch's)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the sampler's settings, see below")
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    args.settings = [split_word(word) for word in args.settings]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(sample, argv, parse)


def sample(args: argparse.Namespace) -> None:
    """Make the samples, and say where they are."""
    from scripts.sampling.samples import Samples  # needs torch, which --help does not

    samples = Samples(**{key: value for key, value in vars(args).items() if key != "debug"})
    samples.make()
    print(f"{args.n} samples by {samples.passes} passes each: {args.save_dir / 'sheet.png'}")


if __name__ == "__main__":
    sys.exit(main())
