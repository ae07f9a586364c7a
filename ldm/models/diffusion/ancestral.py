"""Ancestral sampling (Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020)."""

from itertools import pairwise

from torch import Tensor

from ldm.models.diffusion.levels import CLEAN, LevelTable
from ldm.models.diffusion.prior import LatentPrior
from ldm.models.diffusion.prior_sampler import PriorSettings, register_prior_sampler
from ldm.modules.diffusionmodules.util import make_ddim_timesteps


class AncestralSettings(PriorSettings):
    """Ancestral sampling has no settings."""


@register_prior_sampler("ddpm", AncestralSettings)
def sample_ancestral(prior: LatentPrior, z: Tensor, steps: int, settings: AncestralSettings) -> Tensor:
    """Algorithm 2 of the paper, with the posterior's variance ``beta~`` (its equation 7).

    With fewer steps than the model's T it is the same chain between the timesteps that are left (Nichol and Dhariwal,
    2021, section 4).
    """
    abar = prior.model.alphas_cumprod
    levels = LevelTable.of(abar).descending(make_ddim_timesteps("uniform", steps, len(abar)))
    for now, then in pairwise([*levels, CLEAN]):
        alpha = (now.alpha / then.alpha) ** 2  # of this step alone: 1 - beta
        noise_estimate = prior.predict_noise(z, now.timestep)
        mean = (z - (1 - alpha) / now.sigma * noise_estimate) / alpha**0.5
        deviation = then.sigma / now.sigma * (1 - alpha) ** 0.5
        z = mean + deviation * prior.noise_like(z)
    return z
