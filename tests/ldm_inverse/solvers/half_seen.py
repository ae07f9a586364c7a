"""A problem whose posterior is known: latents with a Gaussian prior, of which an operator sees the left half."""

import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.prior import DDIMSchedule, LatentPrior
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings
from tests.ldm.gaussian import soft_step_of

SHAPE = (3, 8, 8)
QUICK = {"pixel": PixelSettings(max_iters=5), "latent": LatentSettings(max_iters=5)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed))


def left_half(x):
    """An operator that sees the left half of an image."""
    return x[..., :4]


def restore(model, measurement, operator_fn=left_half, S=20, batch_size=1, settings=None, soft=True, **kwargs):
    sampler = DDIMSampler(model)
    condition_fn = soft_step_of(model, operator_fn) if soft else None
    kwargs = {"verbose": False, "generator": seeded(), **kwargs}
    return sampler.posterior_sampler(
        measurement, condition_fn, operator_fn, S, batch_size, SHAPE, settings=settings, **kwargs
    )[0]


def prior_of(model, S=40, **kwargs):
    return LatentPrior(model, DDIMSchedule.of(model.alphas_cumprod, S), generator=seeded(), **kwargs)
