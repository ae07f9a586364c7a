#!/usr/bin/env python3
"""Compare samplers of a prior: how far their samples are from pictures of the kind it was trained on, by the number of
passes through the network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import sample
from util.argument_types import whole_number
from util.cli import Parser, add_debug, exit_status

if TYPE_CHECKING:
    import numpy as np

    from ldm.models.diffusion.ddpm import LatentDiffusion

EXAMPLES = """The distance is the Fréchet distance between Gaussians fitted to features of both sets: mean and deviation
of each channel of the first stage's latent over each quarter of the picture, in units of the reference's deviation. It
says how near colours, layout and amount of detail are, and nothing about single pictures; it falls with the number of
samples, so only rows of one table compare. The first row is what as many of the reference's own pictures get.

example:
  python scripts/compare_samplers.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --diffusion_config models/demo/model.safetensors --reference FACES --n 512 --out results/samplers \\
      ddim:10 ddim:50 plms:10 dpm_solver:10 dpm_solver:10:order=3:spacing=log_snr

A run reads SAMPLER:STEPS, and more of the sampler's settings after colons. In OUT: a folder of samples for each, and
samplers.md. The same command again goes on where it was stopped; more runs or a larger --n add to what is there."""

RUNS = [
    *(f"ddim:{steps}" for steps in (5, 10, 20, 50)),
    *(f"dpm_solver:{steps}" for steps in (5, 10, 20)),
    *(f"plms:{steps}" for steps in (5, 10)),
    "ddpm:50",
]
AT_ONCE = 32


class Row(NamedTuple):
    """A row of the table: what was sampled, passes through the UNet for each sample, and the distance."""

    run: str
    passes: int | None
    distance: float


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--ldm_config", required=True, type=Path, help="the model's architecture")
    parser.add_argument("--diffusion_config", required=True, type=Path, help="its weights")
    parser.add_argument(
        "--reference", required=True, nargs="+", type=Path, metavar="PICTURES", help="folders or zip files of pictures"
    )
    parser.add_argument("--n", type=whole_number(2), default=512, help="samples of each (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="where samples and the table go")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--threads", type=whole_number(1, 1024), help="processor threads")
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="SAMPLER:STEPS[:key=value]", help="what to compare")
    add_debug(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(compare, argv, parse)


def compare(args: argparse.Namespace) -> None:
    """Sample, measure, write the table and print it."""
    from data.picture_array import load_pictures
    from model_loader import get_model
    from util.errors import UserError
    from util.files import make_folder, write_whole
    from util.frechet import frechet_distance

    runs = [sample.parse(sample_words(args, run)) for run in args.runs]
    jobs = [sample.prepare(run) for run in runs]
    model = get_model(args.ldm_config, args.diffusion_config, args.device)
    make_folder(args.out)
    pictures = load_pictures(args.reference, model.resolution, args.out / "reference.u8")
    if len(pictures) < 2 * args.n:
        raise UserError(f"--reference holds {len(pictures)} pictures: must be {2 * args.n} or more, twice --n")
    reference = features(model, pictures)
    held_out, reference = reference[: args.n], reference[args.n :]
    deviation = reference.std(0)

    def row(run: str, found: "np.ndarray", passes: int | None = None) -> Row:
        return Row(run, passes, frechet_distance(reference / deviation, found / deviation))

    rows = [row("pictures of the reference", held_out)]
    for text, run, job in zip(args.runs, runs, jobs, strict=True):
        sample.run(run)
        rows.append(row(text, features(model, sample.read(run)), job.settings.passes(run.steps)))
        write_whole(args.out / "samplers.md", table(rows, args.n).encode())
    print(table(rows, args.n))


def sample_words(args: argparse.Namespace, run: str) -> list[str]:
    """The words for `scripts/sample.py` that make a run's samples."""
    sampler, steps, *settings = [*run.split(":"), ""] if ":" not in run else run.split(":")
    words = ["--ldm_config", args.ldm_config, "--diffusion_config", args.diffusion_config, "--device", args.device]
    words += ["--sampler", sampler, "--steps", steps, "--n", args.n, "--seed", args.seed]
    words += ["--threads", args.threads] if args.threads else []
    return [*map(str, words), "--save_dir", str(args.out / run.replace(":", "_")), *settings]


def features(model: "LatentDiffusion", pictures: "np.ndarray") -> "np.ndarray":
    """Mean and deviation of each latent channel over each quarter of uint8 pictures (N, H, W, 3): (N, 8 C)."""
    import numpy as np
    import torch

    from ldm.training.pictures import to_model_range

    found = []
    with torch.no_grad():
        for first in range(0, len(pictures), AT_ONCE):
            images = to_model_range(pictures[first : first + AT_ONCE]).to(model.device)
            latents = model.encode_mode(images).float()
            cells = latents.unflatten(3, (2, -1)).unflatten(2, (2, -1)).transpose(3, 4).flatten(4)
            found.append(torch.cat([cells.mean(-1), cells.std(-1)], 1).flatten(1).cpu().double().numpy())
    return np.concatenate(found)


def table(rows: Sequence[Row], count: int) -> str:
    """The rows as Markdown."""
    lines = [f"| {count} samples of | passes each | distance |", "| --- | --- | --- |"]
    lines += [f"| {run} | {'' if passes is None else passes} | {distance:.2f} |" for run, passes, distance in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
