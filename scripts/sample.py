#!/usr/bin/env python3
"""Sample pictures from a model's prior alone, without a measurement."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import whole_number
from util.cli import Parser, add_debug, exit_status, split_word

if TYPE_CHECKING:
    import torch

    from ldm.models.diffusion.ddpm import LatentDiffusion

EXAMPLES = """samplers, and their settings as key=value words:
  ddim         eta=0                   deterministic; eta=1 is ancestral (Song et al., ICLR 2021)
  ddpm                                 ancestral sampling; many steps (Ho et al., NeurIPS 2020)
  plms                                 pseudo linear multistep, 3 x 3 passes more than steps (Liu et al., ICLR 2022)
  dpm_solver   order=2                 1 to 3 (Lu et al., 2022: DPM-Solver++)
               method=multistep        or singlestep, which takes as many passes a step as the order
               spacing=time            of the levels: even in time, log_snr, or quadratic (in time's square root)
               prediction=x0           or eps: what is extrapolated (DPM-Solver)

examples:
  python scripts/sample.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --diffusion_config models/demo/model.safetensors --sampler dpm_solver --steps 20 --save_dir results/samples

  python scripts/sample.py --ldm_config configs/latent-diffusion/cin256-v2.yaml \\
      --diffusion_config models/ldm/cin/model.ckpt --class_label 207 --scale 3 --save_dir results/retriever

In SAVE_DIR: samples/00000.png and so on, sheet.png of the first 64, settings.yaml. Each sample has a random stream of
its own, so --n and --batch_size leave the others as they are (to rounding). The same command again makes what is
missing."""

SHEET, COLUMNS = 64, 8


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--ldm_config", required=True, type=Path, help="the model's architecture")
    parser.add_argument("--diffusion_config", required=True, type=Path, help="its weights")
    parser.add_argument("--sampler", default="ddim", help="ddim, ddpm, plms or dpm_solver (default: %(default)s)")
    parser.add_argument("--steps", type=whole_number(1), default=50, help="sampling steps (default: %(default)s)")
    parser.add_argument("--n", type=whole_number(1), default=16, help="how many samples (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="(default: %(default)s)")
    parser.add_argument("--class_label", type=whole_number(0), metavar="L", help="of a class-conditional model")
    parser.add_argument("--scale", type=float, default=1.0, metavar="W", help="classifier-free guidance; 1 is none")
    parser.add_argument("--batch_size", type=whole_number(1), default=16, help="samples at once (default: %(default)s)")
    parser.add_argument("--save_dir", required=True, type=Path, help="where the pictures go")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--gpu", type=whole_number(0), default=0, metavar="N", help="which card")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the networks")
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), help="processor threads (default: as there, or torch's)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the sampler's settings, see below")
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    args.settings = [split_word(word) for word in args.settings]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(run, argv, parse)


class Job(NamedTuple):
    """What is to be sampled: the sampler's own settings, the device, and what `settings.yaml` is to say."""

    settings: Any
    device: "torch.device"
    record: dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Sample what is not there yet, then draw the sheet."""
    import torch

    from ldm.arithmetic import Arithmetic
    from model_loader import get_model
    from util.run import RunFolder

    job = prepare(args)
    torch.set_num_threads(job.record["threads"])
    model = get_model(args.ldm_config, args.diffusion_config, args.device, args.gpu, Arithmetic(args.precision))
    write_record(args.save_dir, job.record)
    folder = RunFolder(args.save_dir)
    for indices in batches(args):
        for index, picture in zip(indices, pictures(args, job, model, indices), strict=True):
            folder.write_picture("samples", name(index), picture)
    folder.write_picture(".", "sheet", sheet(args))
    print(f"{args.n} samples by {job.settings.passes(args.steps)} passes each: {args.save_dir / 'sheet.png'}")


def prepare(args: argparse.Namespace) -> Job:
    """Check all that can be checked without the weights.

    Raises:
        UserError: whatever would stop the run.
    """
    import torch

    from ldm.arithmetic import Arithmetic
    from ldm.models.diffusion.guidance import guidance
    from ldm.models.diffusion.prior_sampler import get_prior_sampler
    from ldm.models.diffusion.sampling import check_steps
    from model_loader import build_model, load_yaml, require_checkpoint, resolve_device
    from util.checks import real_number
    from util.record import made_by
    from util.settings import from_words

    own = get_prior_sampler(args.sampler).settings.from_config(from_words(args.settings), args.sampler)
    architecture = build_model(load_yaml(args.ldm_config))
    check_steps(architecture, args.steps)
    guidance(architecture, args.class_label, real_number("--scale", args.scale))
    require_checkpoint(args.diffusion_config)
    device = resolve_device(args.device, args.gpu)
    Arithmetic(args.precision).check(device)
    settings = {"sampler": args.sampler, "steps": args.steps, args.sampler: own.to_config()}
    settings |= {key: getattr(args, key) for key in ("class_label", "scale", "precision")}
    record = {"settings": settings, "run": {"seed": args.seed}, "threads": args.threads, **made_by(args, device)}
    record["threads"] = there(args.save_dir, record) or args.threads or torch.get_num_threads()
    return Job(own, device, record)


def there(folder: Path, record: dict[str, Any]) -> int | None:
    """Return the threads that the samples in a folder were made with; None where there are none.

    Raises:
        UserError: they are by other settings.
    """
    from util.errors import UserError
    from util.record import differences, read_record

    found = read_record(folder / "settings.yaml")
    lines = differences(found, record) if found else []
    if lines:
        more = [f"  and {len(lines) - 5} more"] if len(lines) > 5 else []
        lines = "\n".join([*(f"  {line}" for line in lines[:5]), *more])
        raise UserError(f"{folder} holds what other settings made; take another --save_dir:\n{lines}")
    return found["threads"] if found else None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `settings.yaml`."""
    import yaml

    from util.files import write_whole

    write_whole(folder / "settings.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode())


def name(index: int) -> str:
    """The name of a sample's picture."""
    return f"{index:05d}"


def path_of(args: argparse.Namespace, index: int) -> Path:
    """Where a sample's picture is."""
    return args.save_dir / "samples" / f"{name(index)}.png"


def batches(args: argparse.Namespace) -> Iterator[list[int]]:
    """Yield the samples that are not there yet, so many at a time, with a progress bar."""
    from tqdm import tqdm

    left = [index for index in range(args.n) if not path_of(args, index).is_file()]
    with tqdm(total=args.n, initial=args.n - len(left), unit="sample", disable=args.quiet or None) as bar:
        for first in range(0, len(left), args.batch_size):
            indices = left[first : first + args.batch_size]
            yield indices
            bar.update(len(indices))


def pictures(args: argparse.Namespace, job: Job, model: "LatentDiffusion", indices: Sequence[int]) -> Iterator[Any]:
    """Sample a batch, and yield each as 8-bit pixels (H, W, 3).

    Raises:
        UserError: a sample is not finite.
    """
    from ldm.models.diffusion.guidance import guidance
    from ldm.models.diffusion.sampling import sample_prior
    from util.errors import UserError
    from util.metrics import to_uint8
    from util.streams import torch_stream

    shape = (len(indices), *model.latent_shape(model.resolution, model.resolution))
    generators = [torch_stream(args.seed, name(index), "sample", job.device) for index in indices]
    keywords = guidance(model, args.class_label, args.scale, len(indices))
    latents = sample_prior(model, args.sampler, args.steps, shape, generators, job.settings, **keywords)
    for index, latent in zip(indices, latents, strict=True):
        image = model.decode_first_stage(latent[None])
        if not image.isfinite().all():
            raise UserError(f"sample {name(index)} is not finite: take more steps, less guidance or --precision fp32")
        yield to_uint8(image)


def read(args: argparse.Namespace, count: int | None = None) -> Any:
    """The first samples (None: all), as they were written: uint8 (N, H, W, 3)."""
    import numpy as np

    from data.pictures import read_picture

    return np.stack([np.asarray(read_picture(path_of(args, index))) for index in range(args.n)[:count]])


def sheet(args: argparse.Namespace) -> Any:
    """The first samples as one picture (H, W, 3)."""
    import torch
    from torchvision.utils import make_grid

    shown = torch.from_numpy(read(args, SHEET)).permute(0, 3, 1, 2)
    return make_grid(shown, nrow=COLUMNS, pad_value=255).permute(1, 2, 0).numpy()


if __name__ == "__main__":
    sys.exit(main())
