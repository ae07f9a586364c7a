"""Diffusion posterior sampling in the latent space (Chung et al., ICLR 2023): DDIM steps and measurement gradients."""

import torch
from torch import Tensor

from ldm.models.diffusion.posterior import InverseProblem, Watch, register_sampler
from ldm.models.diffusion.prior import LatentPrior
from ldm.models.diffusion.resample_settings import ResampleSettings


def soft_step(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, index: int, settings: ResampleSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """A DDIM step from ``index``, then a step down the gradient of the residual's norm:
    ``z <- z' - (soft_scale a) d/dz || y - A(D(p0(z))) ||_2``, the noise estimate held constant.

    Returns:
        The latent, the step's x0 (both detached), and the norm.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        step = prior.ddim_step(z, index, tweedie=settings.tweedie)
        z_next, norm = problem.condition_fn(
            x_t=step.x_prev.detach(),
            measurement=problem.measurement,
            noisy_measurement=problem.measurement,
            x_prev=z,
            x_0_hat=step.pseudo_x0,
            scale=settings.soft_scale * prior.schedule.alphas[index],
            **problem.state,
        )
    return z_next.detach(), step.pred_x0.detach(), norm


@register_sampler(name="dps")
def sample_dps(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: ResampleSettings, watch: Watch
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z. Of the settings, ``soft_scale`` and ``tweedie`` count."""
    for step, index in watch.steps():
        z, x0, norm = soft_step(prior, problem, z, index, settings)
        watch.stepped(step, len(z), norm)
        watch.finished(step, z, x0)
    return z
