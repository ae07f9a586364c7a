"""SITCOM (Alkhouri, Liang, Huang, Dai, Qu, Ravishankar and Wang, SITCOM: Step-wise Triple-Consistent Diffusion Sampling
for Inverse Problems, ICML 2025, arXiv 2410.04479), over latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.models.diffusion.checked_settings import Count, Flag, NotNegative
from ldm.models.diffusion.cost import Cost
from ldm.models.diffusion.optimise import Minimum, mean_squared_residual, minimise
from ldm.models.diffusion.passes import passes_of
from ldm.models.diffusion.posterior import InverseProblem, Watch, register_sampler
from ldm.models.diffusion.posterior_settings import PosteriorSettings
from ldm.models.diffusion.prior import LatentPrior
from ldm.models.diffusion.resample import for_rows, stop_rules
from ldm.models.diffusion.resample_settings import NOISE_FLOOR, Eps, PixelSettings


@dataclass(frozen=True)
class InputSettings(PixelSettings):
    """The optimisation over what the UNet is given: Adam, and when it stops."""

    weight_decay: NotNegative = 0.0
    max_iters: Count = 20
    eps: Eps = NOISE_FLOOR


@dataclass(frozen=True)
class SITCOMSettings(PosteriorSettings):
    """`conditioning.sitcom`; `configs/presets/solvers.yaml` says what each does."""

    input: InputSettings = field(default_factory=InputSettings)
    closeness: NotNegative = 1.0
    quantise: Flag = True

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """As `PosteriorSettings.check_noise_level`, and for the rule that ends an optimisation."""
        super().check_noise_level(noise_sigma)
        self.input.threshold(noise_sigma)


def sitcom_cost(settings: SITCOMSettings, steps: int) -> Cost:
    """Each iteration passes through UNet and decoder and back, and each step through the UNet once more."""
    iterations = steps * settings.input.max_iters
    return Cost(unet=iterations + steps, decoder=iterations, unet_backward=iterations)


@register_sampler("sitcom", SITCOMSettings, sitcom_cost)
def sample_sitcom(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: SITCOMSettings, watch: Watch
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z; the paper's algorithm 1.

    Consistent with the measurement, with the network, and with the forward process: each step moves z as little as
    makes the clean estimate explain the measurement, then diffuses that estimate to the next noise level.

    Raises:
        UserError: an optimisation is to stop at the noise floor, and the noise's level is not known.
    """
    for sigma in problem.sigmas(len(z)):
        settings.check_noise_level(sigma)
    schedule = prior.schedule
    for step, index in watch.steps():
        found = fit_input(prior, problem, z, index, settings)
        clean = prior.clean_estimate(found.x, schedule.timesteps[index], schedule.alphas[index])
        a = schedule.alphas_prev[index]
        z = a**0.5 * clean + (1 - a) ** 0.5 * prior.noise_like(z) if index else clean
        watch.optimised(step, "input", found)
        watch.finished(step, z, clean)
    return z


def fit_input(prior: LatentPrior, problem: InverseProblem, z: Tensor, index: int, settings: SITCOMSettings) -> Minimum:
    """Minimise ``|| y - A(D(z0(v))) ||^2 + closeness || v - z ||^2`` over v (B, C, h, w), from z (equation 10).

    z0 is Tweedie's estimate, and the gradient goes through the UNet. Both terms are divided by the number of entries of
    y, so that the first is the loss that is reported.
    """
    timestep, a = prior.schedule.timesteps[index], prior.schedule.alphas[index]
    select = for_rows(lambda rows: (prior.select(rows, len(z)), problem.select(rows, len(z)), z[list(rows)]))
    weight = settings.closeness / problem.measurement[0].numel()

    def loss_fn(v: Tensor, rows: Sequence[int]) -> Tensor:
        own_prior, own_problem, _ = select(rows)
        with passes_of(prior.model).counting_for(rows):
            clean = own_prior.clean_estimate(v, timestep, a, differentiable=True)
            image = prior.model.differentiable_decode_first_stage(clean, force_not_quantize=not settings.quantise)
        return mean_squared_residual(own_problem.measurement, own_problem.predict(image))

    def penalty_fn(v: Tensor, rows: Sequence[int]) -> Tensor:
        return weight * (v - select(rows)[2]).square().flatten(1).sum(1)

    rules = stop_rules(settings.input, problem.sigmas(len(z)))
    with torch.enable_grad():
        return minimise(loss_fn, z, rules, settings.input.lr, settings.input.weight_decay, penalty_fn=penalty_fn)
