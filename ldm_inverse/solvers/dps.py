"""Diffusion posterior sampling in the latent space: DDIM steps, each with a step down the residual's gradient.

Chung, Kim, McCann, Klasky and Ye, Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023; over
latents as in Rout et al., NeurIPS 2023, section 3.1. The published ReSample code has a soft step of this form, in which
the noise estimate is held constant: no gradient goes through the UNet. That is the default here.
"""

from typing import Literal

import torch
from torch import Tensor

from ldm.models.diffusion.prior import LatentPrior
from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.settings import CodebookSettings
from util.errors import UserError
from util.settings import Flag, NotNegative


class DPSSettings(CodebookSettings):
    """`conditioning.dps`; `configs/presets/solvers/dps.yaml` says what each does."""

    scale: NotNegative = 0.5
    weight: Literal["abar", "constant"] = "abar"
    through_unet: Flag = False
    tweedie: Literal["reference", "exact"] = "reference"

    def cost(self, steps: int) -> Cost:
        """One pass of each network a step."""
        return Cost(unet=steps, decoder=steps, unet_backward=steps if self.through_unet else 0)


@register_sampler("dps", DPSSettings)
def sample_dps(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: DPSSettings, run: SamplerRun
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z."""
    for step, index in run.steps():
        scale = settings.scale * (run.schedule.alphas[index] if settings.weight == "abar" else 1)
        z, x0, norm = soft_step(
            prior, problem, z, index, scale, settings.tweedie, settings.through_unet, settings.quantise
        )
        run.stepped(step, norm)
        run.finished(step, z, x0)
    return z


def soft_step(
    prior: LatentPrior,
    problem: InverseProblem,
    z: Tensor,
    index: int,
    scale: float,
    tweedie: Literal["reference", "exact"] = "reference",
    through_unet: bool = False,
    quantise: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """A DDIM step from ``index`` to z', then a step down the gradient of the residual's norm:
    ``z' - scale d/dz || y - A(D(p0(z))) ||_2``.

    Args:
        tweedie: what p0 is, see `prior.ddim_step`.
        through_unet: the gradient takes the noise estimate's dependence on z into account; else it is held constant.
        quantise: D decodes through the codebook, where the model has one.

    Returns:
        The latent, the step's x0 (both detached), and the norm.

    Raises:
        UserError: the problem has no conditioning method.
    """
    if problem.condition_fn is None:
        raise UserError("a soft step needs a conditioning method, and this problem has none: set soft_step to false")
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        step = prior.ddim_step(z, index, tweedie=tweedie, differentiable=through_unet)
        z_next, norm = problem.condition_fn(
            x_t=step.x_prev.detach(),
            measurement=problem.measurement,
            noisy_measurement=problem.measurement,
            x_prev=z,
            x_0_hat=step.pseudo_x0,
            scale=scale,
            **({} if quantise else {"quantise": False}),  # methods of a plugin need not know it
            **problem.state,
        )
    return z_next.detach(), step.pred_x0.detach(), norm
