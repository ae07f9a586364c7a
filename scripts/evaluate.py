#!/usr/bin/env python3
"""Measure finished runs, or any folder of pictures against a folder of truths, and compare runs image by image.

It measures PSNR and SSIM (by scikit-image), LPIPS (by the package lpips, if it and its backbones' weights are
installed), the residual of each restoration, time, and passes through the networks. Runs that differ only in their seed
share a row. The other runs are compared with the first, on the measurements that they share. If a run's images have no
truth, PSNR, SSIM and LPIPS are left out. Results of images that a run no longer has are not counted. Nothing is
downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status
from util.errors import UserError

EXAMPLES = """examples:
  python scripts/evaluate.py results/inpainting
  python scripts/evaluate.py results/paper results/demo --save_dir results/paper_or_demo   # the same measurements
  python scripts/evaluate.py results/all/* --by_task                                       # several tasks, one table
  python scripts/evaluate.py results/box/* --frechet FACES --model models/demo   # are holes filled as faces are?
  python scripts/evaluate.py --recon results/inpainting/recon --reference data/demo --lpips vgg --weights weights

In SAVE_DIR: images.csv (a row for each restoration), summary.csv, evaluation.json, evaluation.md, evaluation.tex."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="folders that sample_condition.py has written"
    )
    parser.add_argument("--recon", type=Path, metavar="DIR", help="pictures to measure, in place of runs")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="the truths, with the same names")
    parser.add_argument(
        "--by_task", action="store_true", help="compare only runs of the same task (default: compare all, or refuse)"
    )
    parser.add_argument(
        "--lpips", nargs="+", choices=["alex", "vgg"], help="backbones of LPIPS (default: those installed)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder with alexnet-*.pth, vgg16-*.pth, weights-inception-*.pth (default: torch.hub's)",
    )
    parser.add_argument("--fid", action="store_true", help="FID as well, by the package torch-fidelity")
    parser.add_argument(
        "--frechet",
        nargs="+",
        type=Path,
        metavar="PICTURES",
        help="Fréchet distance from these pictures (folders or zip files; not the truths), over features of --model",
    )
    parser.add_argument("--model", type=Path, metavar="FILE|FOLDER", help="the model whose first stage --frechet takes")
    parser.add_argument("--save_dir", type=Path, metavar="DIR", help="write tables here (default: only print)")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="the plugin file that the runs had; it is run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps, for LPIPS and FID (default: auto)")
    add_debug(parser)
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.recon) or bool(args.recon) != bool(args.reference):
        raise UserError("give either runs, or --recon DIR and --reference DIR")
    if bool(args.frechet) != bool(args.model) or (args.frechet and args.recon):
        raise UserError("--frechet is for runs, and --frechet PICTURES and --model FILE go together")
    return args


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write and print."""
    from scripts.evaluation.measuring import Request, measure, write  # need torch, which --help does not
    from scripts.evaluation.tables import FILES, as_text

    request = {key: value for key, value in vars(args).items() if key not in ("debug", "save_dir")}
    evaluation = measure(Request(**request))
    if args.save_dir is not None:
        write(evaluation, args.save_dir)
    print(as_text(evaluation))
    if args.save_dir is not None:
        print(f"\nin {args.save_dir}: {', '.join(FILES)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(evaluate, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
