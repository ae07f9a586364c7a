"""Measures of a latent diffusion model without a task: its first stage, its prior, and whether they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.autoencoder import VQModelInterface
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import sample_prior
from util.metrics import score
from util.seeds import torch_stream

# Where in the forward process (of 1) the noise estimate is tested: neither all signal nor all noise.
TIMES = (0.2, 0.4, 0.6)


@dataclass(frozen=True)
class RoundTrip:
    """The first stage's round trip of pictures.

    Attributes:
        psnr: of each, in decibels, as 8 bits.
        decoded: images (N, 3, H, W), about [-1, 1].
        latents: the diffusion model's, scaled (N, C, h, w).
    """

    psnr: Sequence[float]
    decoded: Tensor
    latents: Tensor


@torch.no_grad()
def round_trip(model: LatentDiffusion, images: Tensor) -> RoundTrip:
    """Encode and decode images (N, 3, H, W) in [-1, 1], one at a time."""
    latents = [model.encode_mode(image[None].to(model.device)) for image in images]
    decoded = [model.decode_first_stage(latent).cpu() for latent in latents]
    psnr = [score(image[None], back)[0] for image, back in zip(images, decoded, strict=True)]
    return RoundTrip(psnr, torch.cat(decoded), torch.cat(latents))


def codes_in_use(model: LatentDiffusion, latents: Tensor) -> tuple[int, int, int] | None:
    """Return how many codebook entries scaled latents use, of how many, at how many positions; None without one."""
    stage = model.first_stage_model
    if not isinstance(stage, VQModelInterface):
        return None
    flat = (latents / model.scale_factor).permute(0, 2, 3, 1).reshape(-1, stage.embed_dim)
    return len(stage.quantize.nearest(flat).unique()), stage.quantize.n_e, len(flat)


@torch.no_grad()
def relative_error(model: LatentDiffusion, latents: Tensor, seed: int, conditioning: Tensor | None = None) -> float:
    """Return the noise estimate's mean squared error on latents (N, C, h, w), relative to that of the best linear
    estimate which knows each channel's mean and variance v and nothing else, averaged over `TIMES`.

    That one has the error ``a v / (a v + 1 - a)``, a being the cumulative product of the schedule. 1 is no knowledge of
    how latents look; a prior that fits them is well below.
    """
    variance = latents.var(dim=(0, 2, 3))
    ratios = []
    for time in TIMES:
        step = round(time * (model.num_timesteps - 1))
        a = model.alphas_cumprod[step]
        linear = (a * variance / (a * variance + 1 - a)).mean()
        t = torch.full((1,), step, device=model.device)
        errors = []
        for index, latent in enumerate(latents):
            noise = torch.randn(latent[None].shape, generator=torch_stream(seed, str(index), f"noise {step}"))
            noise = noise.to(latent)
            estimate = model.apply_model(model.q_sample(latent[None], t, noise), t, conditioning)
            errors.append((estimate - noise).square().mean())
        ratios.append(torch.stack(errors).mean() / linear)
    return float(torch.stack(ratios).mean())


def sample(model: LatentDiffusion, count: int, steps: int, seed: int, guidance: dict[str, Any]) -> Tensor:
    """Sample latents (count, C, h, w) by DPM-Solver++, each from a stream of its own."""
    shape = (count, *model.latent_shape(model.resolution, model.resolution))
    streams = [torch_stream(seed, str(index), "sample", model.device) for index in range(count)]
    return sample_prior(model, "dpm_solver", steps, shape, streams, **guidance)


def spread(latents: Tensor) -> float:
    """Return the standard deviation of latents (N, C, h, w) about their channels' means."""
    return float(latents.var(dim=(0, 2, 3)).mean().sqrt())


def distance(model: LatentDiffusion, other: LatentDiffusion) -> float:
    """Return how far another model's UNet is from one's own: the norm of the difference by that of the weights."""
    pairs = list(zip(model.model.parameters(), other.model.parameters(), strict=True))
    apart, norm = (
        sum(float(term.double().square().sum()) for term in terms)
        for terms in ((b - a for a, b in pairs), (a for a, _ in pairs))
    )
    return (apart / norm) ** 0.5 if norm else float("inf")
