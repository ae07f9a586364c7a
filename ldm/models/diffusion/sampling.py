"""Sampling the prior alone with any of the registered samplers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.models.diffusion import ancestral, ddim, dpm_solver, plms  # noqa: F401 (they register their samplers)
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.prior import Generators, LatentPrior, standard_normal
from ldm.models.diffusion.prior_sampler import PriorSettings, get_prior_sampler
from util.errors import UserError


@torch.no_grad()
def sample_prior(
    model: LatentDiffusion,
    sampler: str,
    steps: int,
    shape: Sequence[int],
    generator: Generators = None,
    settings: PriorSettings | None = None,
    conditioning: Tensor | None = None,
    unconditional_conditioning: Tensor | None = None,
    unconditional_guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sample latents of ``shape`` (B, C, h, w) with a registered sampler in ``steps`` steps.

    Args:
        sampler: ``ddim``, ``ddpm``, ``plms``, ``dpm_solver``, or another registered name.
        generator: source of all noise, one or one for each sample, which then does not depend on its neighbours.
        settings: the sampler's own; None is its defaults.
        conditioning, unconditional_conditioning, unconditional_guidance_scale: as for `DDIMSampler.sample`.
        dtype: of the latents.

    Raises:
        UserError: an unknown sampler, or a number of steps outside 1 to the model's T.
    """
    chosen = get_prior_sampler(sampler)
    check_steps(model, steps)
    z = standard_normal(shape, dtype, model.alphas_cumprod.device, generator)
    prior = LatentPrior(
        model,
        conditioning=conditioning,
        unconditional_conditioning=unconditional_conditioning,
        guidance_scale=unconditional_guidance_scale,
        generator=generator,
    )
    return chosen.sample(prior, z, steps, settings or chosen.settings())


def check_steps(model: LatentDiffusion, steps: int) -> None:
    """Check that a model can be sampled in so many steps.

    Raises:
        UserError: it cannot.
    """
    total = len(model.alphas_cumprod)
    if steps not in range(1, total + 1):
        raise UserError(f"steps: expected a whole number from 1 to {total}, got {steps}")
