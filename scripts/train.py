#!/usr/bin/env python3
"""Train a first stage or a latent prior on any folder or zip of pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status, minutes, whole_number

EXAMPLES = """examples:
  python scripts/train.py --stage autoencoder --config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --data pictures/ --out train/first --max_minutes 60
  python scripts/train.py --stage diffusion --config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --data pictures/ --out train/prior --first_stage train/first/weights.safetensors --max_minutes 60

  # train a prior further
  python scripts/train.py --stage diffusion --config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --data pictures/ --out train/more --start models/demo/model.safetensors --max_steps 20000

  # let a network of the noise predict v (v.yaml: a copy with `parameterization: v`, a stage with `taught_below: [650]`)
  python scripts/train.py --stage diffusion --config v.yaml --data pictures/ --out train/v \\
      --start noise.safetensors --teacher noise.safetensors --teacher_config noise.yaml

  # on a GPU
  python scripts/train.py --stage diffusion --config configs/latent-diffusion/demo-ldm-vq-4.yaml --data pictures/ \\
      --first_stage train/first/weights.safetensors --out train/prior --precision bf16 --compile

The same command continues where the last one stopped; --max_minutes and --max_steps count the training of all of them
together. With --max_steps the result is the same each time; with --max_minutes it is not.
In OUT: weights.safetensors (moving average; for the diffusion stage with the first stage inside, ready for
sample_condition.py), log.csv, sheet.png (round trips, or unselected samples), state.pt (to resume). Where the settings
ask for several averages, each has its own weights and sheet, with its width in the name."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--stage", required=True, choices=("autoencoder", "diffusion"), help="what is trained")
    parser.add_argument("--config", required=True, type=Path, help="a model's YAML with a `training` block")
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="folders or zip files of pictures")
    parser.add_argument("--out", required=True, type=Path, help="folder for the weights, the log and the state")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max_minutes", type=minutes, default=60, help="minutes of training in all (default 60)")
    length.add_argument("--max_steps", type=whole_number(1), help="the same in steps, in place of minutes")
    parser.add_argument("--val", type=Path, help="folder of pictures for the round-trip PSNR (default: 32 of --data)")
    parser.add_argument(
        "--first_stage", type=Path, help="trained first stage, in place of the one in --start (diffusion only)"
    )
    parser.add_argument("--start", type=Path, help="checkpoint of the whole model, to train the stage further")
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints of trained models, for stages with `taught_below` (diffusion only)",
    )
    parser.add_argument(
        "--teacher_config", type=Path, nargs="+", default=[], help="the teachers' YAML files (default: --config)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the networks")
    parser.add_argument("--compile", action="store_true", help="compile the network first: much sooner done on a GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all)")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of weights and batches (default 0)")
    parser.add_argument("--save_minutes", type=minutes, default=5, help="minutes between saves (default 5)")
    add_debug(parser)
    args = parser.parse_args(argv)
    if args.stage == "diffusion" and not (args.first_stage or args.start):
        parser.error("--stage diffusion needs --first_stage or --start")
    if args.stage == "autoencoder" and args.teacher:
        parser.error("--teacher is for --stage diffusion")
    if args.teacher_config and len(args.teacher_config) != len(args.teacher):
        parser.error("--teacher_config: expected one for each --teacher")
    if args.stage == "autoencoder" and args.first_stage:
        parser.error("--first_stage is for --stage diffusion: --start trains a first stage further")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(train, argv, parse, interrupted="interrupted: the same command continues from the last save")


def train(args: argparse.Namespace) -> None:
    """Train the stage, and write the weights."""
    from scripts.training.run import StageTraining  # needs torch, which --help does not

    StageTraining(**{key: value for key, value in vars(args).items() if key != "debug"}).run()


if __name__ == "__main__":
    sys.exit(main())
