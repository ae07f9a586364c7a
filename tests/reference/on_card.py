"""The recorded values on a card, in float64: networks and their gradients, operators, a whole restoration."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import model_loader
from ldm.models.autoencoder import VQModelInterface
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_inverse.condition_methods import get_conditioning_method
from ldm_inverse.measurements import get_noise, get_operator
from tests.reference.recorded import HERE, fill_parameters, recorded, relative_error

BOUND = 1e-8  # that of a whole restoration on a processor
RANDN = torch.randn


def networks(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, what the card gives and what was recorded."""
    for name in sorted(path.stem for path in HERE.glob("unet_*.npz")):
        arrays, case = on(device, *recorded(name))
        model = fill_parameters(UNetModel(**case["params"]), case["weights_seed"]).to(device)
        x = arrays["input"].requires_grad_()
        extra = {key.removeprefix("in_"): value for key, value in arrays.items() if key.startswith("in_")}
        out = model(x, arrays["timesteps"], **extra)
        yield name, out, arrays["output"]
        yield f"{name}, gradient", gradient(out, x), arrays["grad_of_sum_of_squares"]
    arrays, case = on(device, *recorded("autoencoder_vq"))
    first_stage = fill_parameters(VQModelInterface(**case["params"]), case["weights_seed"]).to(device)
    z = arrays["z"].requires_grad_()
    out = first_stage.decode(z)
    yield "encoder", first_stage.encode(arrays["image"]), arrays["latent"]
    yield "decoder", out, arrays["decoded"]
    yield "decoder, gradient", gradient(out, z), arrays["grad_of_sum_of_squares"]


def operators(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, what the card gives and what was recorded."""
    arrays, _ = on(device, *recorded("operators"))
    blur = get_operator("gaussian_blur", kernel_size=61, intensity=3.0, device="cpu").double().to(device)
    yield "Gaussian blur", blur(arrays["image"]), arrays["gaussian_blur/61_3.0/output"]
    motion = get_operator("motion_blur", device="cpu").double().to(device)
    kernel = arrays["motion_blur/operator_61_0.5/kernel"][None, None]
    yield "motion blur", motion(arrays["image"], kernel=kernel), arrays["motion_blur/operator_61_0.5/output"]


def restorations(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, what the card gives and what was recorded."""
    arrays, about = on(device, *recorded("end_to_end"))
    model = fill_parameters(LatentDiffusion(**about["params"]), about["weights_seed"]).to(device)
    case = about["cases"]["gaussian"]
    degrade = get_operator(case["operator"], device="cpu", **case["kwargs"]).double().to(device)
    method = get_conditioning_method("ps", model, degrade, get_noise("gaussian", sigma=0.01), scale=0.5)
    torch.manual_seed(case["torch_seed"])
    with patch.object(torch, "randn", drawn_on_the_processor):
        latent, _ = DDIMSampler(model).posterior_sampler(
            measurement=arrays["gaussian/measurement"], measurement_cond_fn=method.conditioning, operator_fn=degrade,
            S=case["S"], batch_size=1, shape=[3, 8, 8], cond_method=case["sampler"], verbose=False, eta=case["eta"],
        )  # fmt: skip
    yield "restoration", latent, arrays["gaussian/latent"]
    yield "restoration, decoded", model.decode_first_stage(latent), arrays["gaussian/decoded"]


def on(device: torch.device, arrays: dict[str, Tensor], about: dict) -> tuple[dict[str, Tensor], dict]:
    """Return recorded arrays on a device, and what was told of them."""
    return {name: tensor.to(device) for name, tensor in arrays.items()}, about


def gradient(out: Tensor, x: Tensor) -> Tensor:
    """Return that of the sum of squares."""
    return torch.autograd.grad(out.square().sum(), x)[0]


def drawn_on_the_processor(shape: Sequence[int], *, device: torch.device, **more: Any) -> Tensor:
    """Draw the recording's noise, which a card's stream does not have."""
    return RANDN(shape, **more).to(device)


PARTS = {part.__name__: part for part in (networks, operators, restorations)}


def main(parts: Sequence[str] = ()) -> int:
    """Write every error, relative to the largest value, and a line about all; return how many are too large.

    ``parts`` are names of `PARTS`; none is all.
    """
    device, errors = model_loader.resolve_device(), {}
    with torch.random.fork_rng(devices=[]):
        for part in parts or PARTS:
            for name, got, want in PARTS[part](device):
                errors[name] = relative_error(got.cpu(), want.cpu())
                sys.stdout.write(f"{name:40} {errors[name]:.1e}\n")
    failed = [name for name, error in errors.items() if not error < BOUND]
    sys.stdout.write(f"{len(errors) - len(failed)} of {len(errors)} right, largest error {max(errors.values()):.1e}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
