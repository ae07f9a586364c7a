#!/usr/bin/env python3
"""Run a stated protocol with your weights and pictures, and show the result beside what papers report for ReSample.

The protocol restores the first 100 pictures of a folder by preset `reference` with S = 500 steps and seed 0. The
published figures come from papers; the authors of this program could not check them. The program lists conditions that
differ. It also writes a fingerprint of the run, by which two people can find where their runs begin to differ.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import GO_ON, Parser, add_debug, exit_status, whole_number
from util.errors import UserError

EXAMPLES = """examples:
  # is everything in place? two pictures, S = 20
  python scripts/verify.py --ldm_config configs/latent-diffusion/ffhq-ldm-vq-4.yaml \\
      --diffusion_config models/ldm/model.ckpt --task super_resolution --data FOLDER --quick

  # the noise of most tables, and a folder of results of its own
  python scripts/verify.py ... --task super_resolution --data FOLDER --save_dir results/verify_005 \\
      -- measurement.noise.sigma=0.05

  # where a friend's run and mine begin to differ
  python scripts/verify.py --compare results/verify/fingerprint.json friends.json

Words after -- go to sample_condition.py. The same command continues where it was stopped. In SAVE_DIR: run/, as
sample_condition.py writes it, and fingerprint.json. --compare ends with status 1 if the two runs had different
settings, weights, pictures or draws."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `command` holds the words after --."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(prog="verify.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--model", metavar="FILE|FOLDER", help="the model, if its architecture is known")
    parser.add_argument("--ldm_config", metavar="FILE", help="or the model's architecture ...")
    parser.add_argument("--diffusion_config", metavar="FILE", help="... and its weights")
    parser.add_argument("--task", metavar="NAME|FILE", help="a name in configs/tasks, or a file")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="pictures")
    parser.add_argument("--preset", default="reference", help="(default: %(default)s)")
    parser.add_argument("--steps", type=whole_number(1), help="S (default: 500, or 20 with --quick)")
    parser.add_argument("--images", type=whole_number(1), help="how many (default: 100, or 2 with --quick)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 images at S = 20")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--save_dir", type=Path, default=Path("results/verify"), help="(default: %(default)s)")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="compare this run's fingerprint with that of another run; with two files, compare these and run nothing",
    )
    add_debug(parser)
    args = parser.parse_args(argv[:end])
    args.command = argv[end + 1 :]
    if args.compare is not None and len(args.compare) > 2:
        raise UserError("--compare: give one fingerprint or two")
    if args.compare is None or len(args.compare) == 1:
        _check(args)
    args.steps = args.steps or (20 if args.quick else 500)
    args.images = args.images or (2 if args.quick else 100)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise UserError unless the arguments name a model, a task and pictures."""
    missing = [f"--{name}" for name in ("task", "data") if getattr(args, name) is None]
    if missing:
        raise UserError(f"give {' and '.join(missing)}")
    if (args.model is None) == (args.diffusion_config is None):
        raise UserError("give --model, or --ldm_config and --diffusion_config")


def verify(args: argparse.Namespace) -> int:
    """Run the protocol, compare, or both."""
    from scripts.verification.fingerprint import FINGERPRINT, compare, read_fingerprint  # need torch
    from scripts.verification.protocol import Verification

    given = [read_fingerprint(path) for path in args.compare or ()]
    status, mine = 0, None
    if len(given) < 2:
        model = {key: getattr(args, key) for key in ("model", "ldm_config", "diffusion_config")}
        words = [word for key, value in model.items() if value is not None for word in (f"--{key}", value)]
        shared = {key: getattr(args, key) for key in ("task", "data", "save_dir", "preset", "steps", "images", "seed")}
        status = Verification(model=words, **shared, device=args.device, command=args.command).run()
        mine = args.save_dir / FINGERPRINT
    if status or not given:
        return status
    lines, same = compare(given[0] if mine is None else read_fingerprint(mine), given[-1])
    print("\n".join(["", "Compared with the other fingerprint:", *(lines or ["no difference"])]))
    return 0 if same else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(verify, argv, parse, GO_ON)


if __name__ == "__main__":
    sys.exit(main())
