"""SITCOM (Alkhouri, Liang, Huang, Dai, Qu, Ravishankar and Wang, SITCOM: Step-wise Triple-Consistent Diffusion Sampling
for Inverse Problems, ICML 2025, arXiv 2410.04479), over latents."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ldm.models.diffusion.evaluations import counter_of
from ldm.models.diffusion.prior import LatentPrior
from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.fit import for_rows, stop_rules
from ldm_inverse.solvers.optimise import Minimum, minimise
from ldm_inverse.solvers.problem import InverseProblem, latent_loss
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.resample_settings import Eps, FitSettings
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.settings import CodebookSettings
from util.settings import Count, NotNegative


class InputSettings(FitSettings):
    """The optimisation over what the UNet is given: Adam, and when it stops."""

    weight_decay: NotNegative = 0.0
    max_iters: Count = 20
    eps: Eps = "noise"


class SITCOMSettings(CodebookSettings):
    """`conditioning.sitcom`; `configs/presets/solvers/sitcom.yaml` says what each does."""

    input: InputSettings = Field(default_factory=InputSettings)
    closeness: NotNegative = 1.0

    def cost(self, steps: int) -> Cost:
        """Each iteration passes through UNet and decoder and back, and each step through the UNet once more."""
        iterations = steps * self.input.max_iters
        return Cost(unet=iterations + steps, decoder=iterations, unet_backward=iterations)

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """As `SamplerSettings.check_noise_level`, and for the rule that ends an optimisation."""
        super().check_noise_level(noise_sigma)
        self.input.threshold(noise_sigma)


@register_sampler("sitcom", SITCOMSettings)
def sample_sitcom(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: SITCOMSettings, run: SamplerRun
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z; the paper's algorithm 1.

    Consistent with the measurement, with the network, and with the forward process: each step moves z as little as
    makes the clean estimate explain the measurement, then diffuses that estimate to the next noise level.

    Raises:
        UserError: an optimisation is to stop at the noise floor, and the noise's level is not known.
    """
    for sigma in problem.sigmas(len(z)):
        settings.check_noise_level(sigma)
    schedule = run.schedule
    for step, index in run.steps():
        found = fit_input(prior, problem, z, index, settings)
        clean = prior.clean_estimate(found.x, schedule.timesteps[index], schedule.alphas[index])
        a = schedule.alphas_prev[index]
        z = a**0.5 * clean + (1 - a) ** 0.5 * prior.noise_like(z) if index else clean
        run.optimised(step, "input", found)
        run.finished(step, z, clean)
    return z


def fit_input(prior: LatentPrior, problem: InverseProblem, z: Tensor, index: int, settings: SITCOMSettings) -> Minimum:
    """Minimise ``|| y - A(D(z0(v))) ||^2 + closeness || v - z ||^2`` over v (B, C, h, w), from z (equation 10).

    z0 is Tweedie's estimate, and the gradient goes through the UNet. Both terms are divided by the number of entries of
    y, so that the first is the loss that is reported.
    """
    timestep, a = prior.schedule.timesteps[index], prior.schedule.alphas[index]
    select = for_rows(lambda rows: (prior.select(rows, len(z)), problem.select(rows, len(z)), z[list(rows)]))
    weight = settings.closeness / problem.entries

    def loss_fn(v: Tensor, rows: Sequence[int]) -> Tensor:
        own_prior, own_problem, _ = select(rows)
        with counter_of(prior.model).counting_for(rows):
            clean = own_prior.clean_estimate(v, timestep, a, differentiable=True)
            return latent_loss(prior.model, own_problem, clean, settings.quantise)

    def penalty_fn(v: Tensor, rows: Sequence[int]) -> Tensor:
        return weight * (v - select(rows)[2]).square().flatten(1).sum(1)

    rules = stop_rules(settings.input, problem.noise_levels(len(z)))
    with torch.enable_grad():
        return minimise(loss_fn, z, rules, settings.input.lr, settings.input.weight_decay, penalty_fn=penalty_fn)
