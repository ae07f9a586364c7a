#!/usr/bin/env python3
"""Is this checkpoint right? Load a model, say what it is, send pictures through its first stage, sample its prior, and
judge both in words.

Ends with status 0 where the model can be used as it is, and 1 where something looks wrong.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import whole_number
from util.cli import Parser, add_debug, exit_status
from util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.models.diffusion.ddpm import LatentDiffusion
    from scripts.model_checks.verdicts import Verdict
    from util.checkpoint import StoredTensor

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "latent-diffusion"
PICTURES = {128: "demo"}  # folders of data/ with pictures of a size; for all other sizes data/samples, cropped
KINDS = {"VQModelInterface": "VQ", "AutoencoderKL": "KL", "IdentityFirstStage": "no"}
COLUMNS = 8

EXAMPLES = """examples:
  python scripts/check_model.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --diffusion_config models/demo/model.safetensors
  python scripts/check_model.py --data my_pictures --samples 4 --steps 10      # models/ldm/model.ckpt, on a CPU

In SAVE_DIR: sheet.png with pictures, what the first stage makes of them, and samples. Look at it: no number sees what
an eye does."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "--ldm_config", type=Path, default=CONFIGS / "ffhq-ldm-vq-4.yaml", help="(default: ffhq-ldm-vq-4.yaml)"
    )
    parser.add_argument(
        "--diffusion_config", type=Path, default=Path("models/ldm/model.ckpt"), help="(default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR|FILE", help="pictures (default: those in data/ of its size)")
    parser.add_argument("--limit", type=whole_number(2), default=16, metavar="N", help="pictures (default: 16)")
    parser.add_argument("--samples", type=whole_number(2), default=8, metavar="N", help="to draw (default: 8)")
    parser.add_argument("--steps", type=whole_number(1), default=20, help="of DPM-Solver++ (default: 20)")
    parser.add_argument("--class_label", type=whole_number(0), metavar="L", help="of a class-conditional model")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: 0)")
    parser.add_argument("--save_dir", type=Path, default=Path("results/check_model"), help="(default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: auto)")
    parser.add_argument("--gpu", type=whole_number(0), default=0, metavar="N", help="which card")
    add_debug(parser)
    return parser.parse_args(argv)


def load(args: argparse.Namespace, use_ema: bool = False) -> "LatentDiffusion":
    """Load the model.

    Raises:
        UserError: it cannot be loaded; where another configuration of the project fits, that is named.
    """
    from model_loader import fits, get_model, load_yaml
    from util.checkpoint import read_checkpoint

    try:
        return get_model(args.ldm_config, args.diffusion_config, args.device, args.gpu, use_ema=use_ema)
    except UserError as error:
        if "does not fit the configuration" not in str(error):
            raise
        stored = read_checkpoint(args.diffusion_config)
        fitting = [str(path) for path in sorted(CONFIGS.glob("*.yaml")) if fits(load_yaml(path), stored)]
        if not fitting:
            raise
        first = str(error).splitlines()[0]
        raise UserError(f"{first}\nit fits {' and '.join(fitting)}: give that as --ldm_config") from error


def read_pictures(args: argparse.Namespace, side: int) -> "Tensor":
    """Return pictures (N, 3, side, side) in [-1, 1], cropped where they have another size.

    Raises:
        UserError: there are fewer than two, or one cannot be read.
    """
    import torch

    from data.dataloader import get_dataset

    root = args.data or ROOT / "data" / PICTURES.get(side, "samples")
    pictures = get_dataset("ffhq", root, size=side, resize="center_crop", limit=args.limit)
    if len(pictures) < 2:
        raise UserError(f"{root}: give two pictures or more")
    return torch.stack([pictures[index].image for index in range(len(pictures))])


def describe(args: argparse.Namespace, model: "LatentDiffusion", stored: Mapping[str, "StoredTensor"]) -> list[str]:
    """Return what a model is, how large, and what of its file was taken."""
    from model_loader import unused_tensors

    stage = model.first_stage_model
    kind = KINDS.get(type(stage).__name__, type(stage).__name__)
    codes = f", {stage.quantize.n_e:,} codes" if kind == "VQ" else ""
    classes = "unconditional" if model.cond_stage_model is None else f"{model.cond_stage_model.n_classes} classes"
    parts = {"UNet": model.model, "first stage": stage, "conditioning": model.cond_stage_model}
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items() if part is not None}
    taken = [name for name in model.state_dict() if name in stored]
    left = unused_tensors(model, stored)
    ignored = f" ({', '.join(f'{group} {count}' for group, count in left.most_common(6))})" if left else ""
    return [
        f"{args.diffusion_config}, {args.diffusion_config.stat().st_size / 1e6:.1f} MB, as {args.ldm_config} says:",
        f"latent diffusion at {model.resolution}x{model.resolution}, {classes}; {kind} first stage "
        f"(f = {stage.downsampling}, {model.channels} channels{codes})",
        f"parameters: {', '.join(f'{name} {size:.1f} million' for name, size in sizes.items() if size)}",
        f"tensors of the file: {len(taken)} matched, {left.total()} ignored{ignored}; "
        f"{len(model.state_dict()) - len(taken)} that it lacks were computed",
    ]


def guidance_of(args: argparse.Namespace, model: "LatentDiffusion", batch: int) -> dict[str, Any]:
    """Return the conditioning for a batch: of no class where that can be had, else of the class asked for, else 0."""
    from ldm.models.diffusion.guidance import NULL_CLASS, guidance

    label = args.class_label
    if label is None and model.cond_stage_model is not None and model.cond_stage_model.n_classes <= NULL_CLASS:
        label = 0
    return guidance(model, label, batch=batch)


def check(args: argparse.Namespace) -> int:
    """Look at the model, print what was found and write the sheet; returns 1 where something looks wrong."""
    import torch

    from scripts.model_checks import measures, verdicts
    from util.checkpoint import read_checkpoint
    from util.errors import printable

    model = load(args)
    images = read_pictures(args, model.resolution)
    guidance = guidance_of(args, model, args.samples)
    conditioning = guidance_of(args, model, 1).get("conditioning")
    stored = read_checkpoint(args.diffusion_config)
    print(printable("\n".join(describe(args, model, stored))), flush=True)
    trip = measures.round_trip(model, images)
    found = [verdicts.on_round_trip(trip.psnr)]
    codes = measures.codes_in_use(model, trip.latents)
    found += [verdicts.on_codebook(*codes)] if codes else []
    samples = measures.sample(model, args.samples, args.steps, args.seed, guidance)
    error = measures.relative_error(model, trip.latents, args.seed, conditioning)
    ratio = measures.spread(samples) / measures.spread(trip.latents)
    rescaled = measures.relative_error(model, trip.latents * ratio, args.seed, conditioning)
    found += verdicts.on_prior(error, rescaled, ratio, float(model.scale_factor))
    rows = {"pictures": images, "round trip": trip.decoded, "samples": model.decode_first_stage(samples).cpu()}
    if any(name.startswith("model_ema.") for name in stored):
        average = load(args, use_ema=True)
        averaged = measures.relative_error(average, trip.latents, args.seed, conditioning)
        found.append(verdicts.on_average(measures.distance(model, average), error, averaged))
        samples = measures.sample(average, args.samples, args.steps, args.seed, guidance)
        rows["samples of\nthe average"] = average.decode_first_stage(samples).cpu()
    else:
        found.append(verdicts.Verdict("average", "the file holds no moving average"))
    write_sheet(args.save_dir / "sheet.png", {name: torch.nan_to_num(row) for name, row in rows.items()})
    return tell(args, found)


def tell(args: argparse.Namespace, found: Sequence["Verdict"]) -> int:
    """Print the verdicts; returns 1 where one is bad."""
    bad = [verdict.about for verdict in found if not verdict.good]
    print()
    for verdict in found:
        print(f"{verdict.about:11s} {verdict.text}")
    print(f"{'samples':11s} look at {args.save_dir / 'sheet.png'}")
    print(f"\nverdict: {'not right: ' + ', '.join(bad) if bad else 'fine'}")
    return int(bool(bad))


def write_sheet(path: Path, rows: Mapping[str, "Tensor"]) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as a picture, a labelled block for each name."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from torchvision.utils import make_grid

    from util.files import write_whole
    from util.metrics import to_uint8

    grids = {name: to_uint8(make_grid(row[: 2 * COLUMNS], COLUMNS, pad_value=1)) for name, row in rows.items()}
    heights = [grid.shape[0] / grid.shape[1] for grid in grids.values()]
    figure, axes = pyplot.subplots(
        len(grids), figsize=(9, 8.2 * sum(heights) + 0.4), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (name, grid) in zip(axes[:, 0], grids.items(), strict=True):
        axis.imshow(grid, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    write_whole(path, content.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(check, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
