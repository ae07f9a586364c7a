#!/usr/bin/env python3
"""Measure finished runs, or any folder of pictures beside one of truths, and compare runs image by image.

PSNR and SSIM by scikit-image; LPIPS by the package lpips where it and its backbones' weights are there; how well each
restoration explains its measurement; time; passes through the networks. Runs that differ in their seed alone are one
row; the others are compared with the first, on the measurements that they share. A run whose images have no truth is
measured by the rest. Nothing is downloaded.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_debug, exit_status
from util.errors import UserError

if TYPE_CHECKING:
    import torch

    from scripts.evaluation.entries import Entry
    from scripts.evaluation.quality import Networks
    from scripts.evaluation.tables import Evaluation

EXAMPLES = """examples:
  python scripts/evaluate.py results/inpainting
  python scripts/evaluate.py results/paper results/demo --save_dir results/paper_or_demo   # the same measurements
  python scripts/evaluate.py results/all/* --by_task                                       # several tasks, one table
  python scripts/evaluate.py --recon results/inpainting/recon --reference data/demo --lpips vgg --weights weights

In SAVE_DIR: images.csv (a row for each restoration), summary.csv, evaluation.json, evaluation.md, evaluation.tex."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="folders that sample_condition.py has written"
    )
    parser.add_argument("--recon", type=Path, metavar="DIR", help="pictures to measure, in place of runs")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="their truths, of the same names")
    parser.add_argument(
        "--by_task", action="store_true", help="compare runs of the same task only (default: all, or refuse)"
    )
    parser.add_argument(
        "--lpips", nargs="+", choices=["alex", "vgg"], help="backbones of LPIPS (default: those that are there)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder with alexnet-*.pth, vgg16-*.pth, weights-inception-*.pth (default: torch.hub's)",
    )
    parser.add_argument("--fid", action="store_true", help="FID as well, by the package torch-fidelity")
    parser.add_argument("--save_dir", type=Path, metavar="DIR", help="write tables here (default: only print)")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="as the runs had, which is code of one's own"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps, for LPIPS and FID (default: auto)")
    add_debug(parser)
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.recon) or bool(args.recon) != bool(args.reference):
        raise UserError("give either runs, or --recon DIR and --reference DIR")
    return args


def measure(args: argparse.Namespace, names: Mapping[Path, str] | None = None) -> "Evaluation":
    """Measure what the arguments name; ``names`` says what to call the run in each folder (None: by the folders).

    Raises:
        UserError: it cannot be read, or not be compared.
    """
    from model_loader import resolve_device
    from scripts.evaluation.entries import compare, entries_of, entry_of_folders
    from scripts.evaluation.finished import FinishedRun
    from scripts.evaluation.quality import find_weights, lpips_networks, missing_weights
    from scripts.evaluation.tables import COMPARED, Evaluation
    from util.metrics import describe

    device = resolve_device(args.device)
    inception = find_weights("fid", args.weights) if args.fid else None
    if args.fid and inception is None:
        raise UserError(f"--fid: {missing_weights(['fid'], args.weights)}")
    networks, notes = lpips_networks(args.lpips, args.weights, device)
    notes = [describe(), *_lpips_notes(networks), *notes]
    if args.recon:
        entry, alone = entry_of_folders(args.recon, args.reference, networks)
        entries, differences = [entry], []
        notes += [f"{alone} pictures have no partner in the other folder and were left out"] if alone else []
    else:
        entries = entries_of([FinishedRun(folder, args.plugin) for folder in args.runs], networks, names)
        differences = compare(entries, [column.key for column in COMPARED], args.by_task)
        notes += [f"{entry.title}: {entry.failed} images could not be restored" for entry in entries if entry.failed]
    if inception is not None:
        notes += add_fid(entries, inception, device)
    return Evaluation(notes, entries, differences)


def _lpips_notes(networks: "Networks") -> list[str]:
    if not networks.distances:
        return []
    from importlib.metadata import version

    return [f"{', '.join(networks.distances)} by lpips {version('lpips')}, linear layers version 0.1"]


def add_fid(entries: Sequence["Entry"], weights: Path, device: "torch.device") -> list[str]:
    """Measure the FID of each entry that has truths; returns what a reader should know of it."""
    from importlib.metadata import version

    from scripts.evaluation.quality import FEW, fid

    counts = []
    for entry in entries:
        pictures = [found.pictures for found in entry.observations if found.pictures is not None]
        if len(pictures) > 1:
            entry.of_all["fid"] = fid(*zip(*pictures, strict=True), weights, device)
            counts.append(len(pictures))
    notes = [f"FID by torch-fidelity {version('torch-fidelity')}"]
    if counts and min(counts) < FEW:
        notes.append(f"FID of {min(counts)} pictures is far too high: compare it only with that of as many others")
    return notes


def write(evaluation: "Evaluation", folder: Path) -> None:
    """Write the tables into a folder."""
    from scripts.evaluation.tables import FILES
    from util.files import write_whole

    for name, content in FILES.items():
        write_whole(folder / name, content(evaluation))


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write and print."""
    from scripts.evaluation.tables import FILES, as_text

    evaluation = measure(args)
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
