"""PSLD (Rout, Raoof, Daras, Caramanis, Dimakis and Shakkottai, Solving Linear Inverse Problems Provably via Posterior
Sampling with Latent Diffusion Models, NeurIPS 2023): latent DPS with a term that glues measured and unmeasured parts.
"""

import torch
from torch import Tensor

from ldm.models.diffusion.prior import LatentPrior
from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.problem import InverseProblem, decode
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.settings import CodebookSettings
from util.settings import NotNegative


class PSLDSettings(CodebookSettings):
    """`conditioning.psld`; `configs/presets/solvers/psld.yaml` says what each does."""

    scale: NotNegative = 1.0
    gluing: NotNegative = 0.1

    def cost(self, steps: int) -> Cost:
        """One pass of each network a step, forward and backward."""
        return Cost(unet=steps, decoder=steps, unet_backward=steps, encoder=steps, encoder_backward=steps)


@register_sampler("psld", PSLDSettings)
def sample_psld(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: PSLDSettings, run: SamplerRun
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z; the paper's algorithm 2, steps along norms that are not squared.

    Each step is a DDIM step to z', then, z0 being Tweedie's estimate and both gradients going through the UNet,

        z' - scale d/dz || y - A(D(z0)) || - gluing d/dz || z0 - E(A^T y + (I - A^T A) D(z0)) ||
    """
    for step, index in run.steps():
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            after, z0, _ = prior.ddim_step(z, index, differentiable=True)
            image = decode(prior.model, z0, settings.quantise)
            residual = (problem.measurement - problem.predict(image)).flatten(1).norm(dim=1)
            seam = (z0 - prior.model.encode_mode(glued(problem, image))).flatten(1).norm(dim=1)
            objective = settings.scale * residual + settings.gluing * seam
            (gradient,) = torch.autograd.grad(objective.sum(), z)
        z = after.detach() - gradient
        run.stepped(step, residual)
        run.finished(step, z, z0.detach())
    return z


def glued(problem: InverseProblem, image: Tensor) -> Tensor:
    """``A^T y + (I - A^T A) x``: the image (B, 3, H, W) with what is measured from y, differentiable in the image.

    The adjoint is that of the operator's derivative, which for a linear operator is its own.
    """
    x = image.view_as(image)  # so that this gradient ends here, and the decoder's hooks do not take it for its own
    predicted = problem.predict(x)
    (correction,) = torch.autograd.grad(predicted, x, problem.measurement - predicted, create_graph=True)
    return x + correction
