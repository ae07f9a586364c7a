"""Train a first stage or a latent prior on any folder or zip of pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.argument_types import minutes, whole_number
from util.cli import Parser, add_debug, exit_status

EXAMPLES = """examples:
  python scripts/train.py --stage autoencoder --config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --data pictures/ --out train/first --max_minutes 60
  python scripts/train.py --stage diffusion --config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --data pictures/ --out train/prior --first_stage train/first/weights.safetensors --max_minutes 60

The same command again goes on where the last one stopped; --max_minutes counts training over all of them.
In OUT: weights.safetensors (moving average; for the diffusion stage with the first stage inside, ready for
sample_condition.py), log.csv, sheet.png (round trips, or unselected samples), state.pt (to resume)."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--stage", required=True, choices=("autoencoder", "diffusion"), help="what is trained")
    parser.add_argument("--config", required=True, type=Path, help="model YAML with a `training` block")
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="folders or zip files of pictures")
    parser.add_argument("--out", required=True, type=Path, help="folder for the weights, the log and the state")
    parser.add_argument("--max_minutes", type=minutes, default=60, help="minutes of training in all (default 60)")
    parser.add_argument("--val", type=Path, help="folder of pictures for the round-trip PSNR (default: 32 of --data)")
    parser.add_argument("--first_stage", type=Path, help="trained first stage (diffusion only, needed there)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the networks")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of weights and batches (default 0)")
    parser.add_argument("--save_minutes", type=minutes, default=5, help="minutes between saves (default 5)")
    add_debug(parser)
    args = parser.parse_args(argv)
    if (args.stage == "diffusion") != (args.first_stage is not None):
        parser.error("--first_stage goes with --stage diffusion, and is needed there")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(train, argv, parse, interrupted="interrupted: the same command goes on from the last save")


def train(args: argparse.Namespace) -> None:
    """Build the model of the config, train the stage, write the weights."""
    import torch

    from data.picture_array import load_pictures
    from ldm.training.loop import LoopSettings
    from ldm.training.settings import read_training
    from ldm.util import instantiate_from_config
    from model_loader import build_model, load_yaml, resolve_device
    from util.files import make_folder
    from util.memory import keep_freed_memory

    keep_freed_memory()
    config = load_yaml(args.config)
    settings = read_training(config, args.stage)
    check(args, settings, build_model(config))
    loop = LoopSettings(
        max_minutes=args.max_minutes,
        save_minutes=args.save_minutes,
        bfloat16=args.precision == "bf16",
        learning_rate=settings.learning_rate,
        ema_decay=settings.ema_decay,
        stages=settings.stages,
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    make_folder(args.out)
    model = instantiate_from_config(config["model"]).to(resolve_device(args.device))
    side = model.first_stage_model.resolution
    pictures = load_pictures(args.data, side, args.out / "pictures.u8")
    validation = load_pictures([args.val], side, args.out / "validation.u8") if args.val else pictures[-32:]
    if args.stage == "autoencoder":
        train_first_stage(args, settings, loop, model.first_stage_model, pictures, validation)
    else:
        train_prior(args, settings, loop, model, pictures)


def check(args, settings, architecture) -> None:
    """Check that this is a model whose stage can be trained, before anything is written.

    Raises:
        UserError: it is not.
    """
    from ldm.models.autoencoder import IdentityFirstStage, VQModelInterface
    from util.errors import UserError

    if args.seed >= 2**32:
        raise UserError(f"--seed is {args.seed}: must be below 2^32")
    first_stage = architecture.first_stage_model
    if isinstance(first_stage, IdentityFirstStage):
        raise UserError(f"{args.config} has no first stage, which training needs")
    if args.stage == "autoencoder":
        if not isinstance(first_stage, VQModelInterface):
            raise UserError(f"{args.config}: its first stage is no VQModelInterface, the only one that can be trained")
        settings.check_crops(first_stage.resolution, first_stage.downsampling)


def train_first_stage(args, settings, loop, model, pictures, validation) -> None:
    """Initialise (once) and train the autoencoder."""
    import numpy as np
    import torch

    from ldm.training.autoencoder import AutoencoderLoss, DecoderLoss, round_trip_psnr
    from ldm.training.initialise import codebook_from_data, linear_encoder
    from ldm.training.latents import encode_pictures
    from ldm.training.loop import Training
    from util.checkpoint import write_checkpoint

    model.to(memory_format=torch.channels_last)
    if not (args.out / "state.pt").exists():
        if settings.init == "linear":
            linear_encoder(model, pictures, settings.whitening)
        codebook_from_data(model, pictures, np.random.RandomState(args.seed))

    def report() -> dict[str, float]:
        psnr, decoded = round_trip_psnr(model, validation)
        write_sheet(args.out / "sheet.png", decoded[:16])
        write_checkpoint(
            args.out / "weights.safetensors", contiguous(model.state_dict()), {"weights": "moving average"}
        )
        return {"psnr": psnr, "psnr_not_quantised": round_trip_psnr(model, validation, quantise=False)[0]}

    decoder_only = settings.trainable == "decoder"
    for module in (model.encoder, model.quant_conv, model.quantize):
        module.requires_grad_(not decoder_only)
    training = Training(model, loop, args.out, args.seed, report)
    if decoder_only:
        device = next(model.parameters()).device
        latents = encode_pictures(model.encode, pictures, args.out / "latents.f16", device)
        final = training.run(DecoderLoss(model, pictures, latents, float(settings.quantised_share)))
    else:
        final = training.run(AutoencoderLoss(model, pictures))
    print(f"round-trip PSNR {final['psnr']:.2f} dB")


def train_prior(args, settings, loop, model, pictures) -> None:
    """Encode the pictures (once) and train the UNet."""
    import torch

    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.training.diffusion import DiffusionLoss
    from ldm.training.latents import encode_pictures
    from ldm.training.loop import Training
    from util.checkpoint import write_checkpoint

    load_first_stage(model.first_stage_model, args.first_stage)
    model.requires_grad_(False)
    unet = model.model.diffusion_model.requires_grad_(True).to(memory_format=torch.channels_last)
    latents = encode_pictures(model.encode_mode, pictures, args.out / "latents.f16", model.device)

    def report() -> dict[str, float]:
        generator = torch.Generator().manual_seed(args.seed)
        side = latents.shape[-1]
        samples, _ = DDIMSampler(model).sample(50, 16, (model.channels, side, side), verbose=False, generator=generator)
        write_sheet(args.out / "sheet.png", torch.cat([model.decode_first_stage(z[None]).cpu() for z in samples]))
        keep = {k: v for k, v in model.state_dict().items() if k.startswith(("model.", "first_stage_model."))}
        write_checkpoint(args.out / "weights.safetensors", contiguous(keep), {"weights": "moving average"})
        return {}

    training = Training(unet, loop, args.out, args.seed, report)
    training.run(DiffusionLoss(model, latents, settings.weight_cap))


def load_first_stage(model, path: Path) -> None:
    """Give an autoencoder the weights that a training of it has written.

    Raises:
        UserError: the file is not readable, not safe, or not of this autoencoder.
    """
    from util.checkpoint import read_checkpoint
    from util.errors import UserError

    weights = {name: tensor.read() for name, tensor in read_checkpoint(path).items()}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN, infinity or {tensor.dtype} numbers")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{path} is not the first stage that the configuration describes: {first:.200}") from error


def contiguous(tensors: dict) -> dict:
    """The tensors in plain layout, as a file takes them."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_sheet(path: Path, images) -> None:
    """Images (N, 3, H, W) in [-1, 1] as one picture, four a row."""
    from torchvision.utils import save_image

    save_image(images.float().clamp(-1, 1), path, nrow=4, normalize=True, value_range=(-1, 1))


if __name__ == "__main__":
    sys.exit(main())
