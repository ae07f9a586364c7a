"""DAPS (Zhang, Chu, Berner, Meng, Anandkumar and Song, Improving Diffusion Inverse Problem Solving with Decoupled Noise
Annealing, CVPR 2025, arXiv 2407.01521), over latents."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.models.diffusion.levels import Level, LevelTable, transfer
from ldm.models.diffusion.prior import LatentPrior
from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.optimise import Minimum
from ldm_inverse.solvers.problem import InverseProblem, latent_loss
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.settings import NOISELESS_EPS, CodebookSettings
from util.errors import UserError
from util.settings import BelowOne, Count, NotNegative, Positive

PROBE = 0.01  # of a latent, whose entries have a deviation of about 1


class DAPSSettings(CodebookSettings):
    """`conditioning.daps`; `configs/presets/solvers/daps.yaml` says what each does."""

    ode_steps: Count = 5
    iterations: Count = 100
    lr: Positive = 0.1
    momentum: BelowOne = 0.0
    deviation: Positive | None = 1.0
    decoder_error: NotNegative = 0.0

    def cost(self, steps: int) -> Cost:
        """Each step solves the flow's equation, then takes Langevin steps, whose length takes one pass to find."""
        return Cost(unet=steps * self.ode_steps, decoder=steps * (self.iterations + 1))

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """As `SamplerSettings.check_noise_level`; residuals need a deviation."""
        super().check_noise_level(noise_sigma)
        if noise_sigma is None and not self.decoder_error:
            raise UserError("the level of this measurement's noise is not known: give decoder_error a number above 0")

    def residual_deviation(self, noise_sigma: float | None) -> float:
        """Deviation of a residual's entries: of the noise, and of what the decoder cannot show."""
        return max(((noise_sigma or 0.0) ** 2 + self.decoder_error**2) ** 0.5, NOISELESS_EPS)


@register_sampler("daps", DAPSSettings)
def sample_daps(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: DAPSSettings, run: SamplerRun
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z; the paper's algorithm 1, a step for each noise level.

    The prior alone leads from z_t to a clean latent, Langevin steps lead on to one that fits the measurement too, and
    fresh noise leads to z_(t-1). So consecutive z depend on each other only through the clean latent.

    Raises:
        UserError: the noise's level is not known, and nothing takes its place.
    """
    for sigma in problem.sigmas(len(z)):
        settings.check_noise_level(sigma)
    table, schedule = LevelTable.of(prior.model.alphas_cumprod), run.schedule
    for step, index in run.steps():
        now = table.at(schedule.timesteps[index])
        clean = solve_flow(prior, table, z, now, settings.ode_steps)
        found = langevin(prior, problem, clean, now, settings)
        a = schedule.alphas_prev[index]
        z = a**0.5 * found.x + (1 - a) ** 0.5 * prior.noise_like(z) if index else found.x
        run.optimised(step, "langevin", found)
        run.finished(step, z, found.x)
    return z


def solve_flow(prior: LatentPrior, table: LevelTable, z: Tensor, now: Level, steps: int) -> Tensor:
    """The clean latent to which the probability flow leads from z at level ``now``: DDIM over even times."""
    levels = [table.at(now.timestep * (1 - done / steps)) for done in range(steps)]
    for here, there in zip(levels, [*levels[1:], None], strict=True):
        noise_estimate = prior.predict_noise(z, here.timestep)
        if there is None:
            return (z - here.sigma * noise_estimate) / here.alpha
        z = transfer(z, noise_estimate, here, there)
    raise AssertionError("steps is 1 or more")


def langevin(
    prior: LatentPrior, problem: InverseProblem, clean: Tensor, level: Level, settings: DAPSSettings
) -> Minimum:
    """Draws from ``N(x; clean, r^2) N(y; A(D(x)), s^2)`` by unadjusted Langevin steps from ``clean`` (equation 7).

    The paper sets r to sigma / alpha of the noise level. Where latents have a deviation d of their own, that is their
    distance from a given z only while it is small; in general ``1 / r^2 = (alpha / sigma)^2 + 1 / d^2``. The step is
    ``lr / (1 / r^2 + c)``, c being the curvature of the second factor's logarithm at ``clean`` (`curvature`): operators
    differ in it by a factor of hundreds. With ``momentum`` the steps have inertia, which takes them further along
    shallow directions (Chen, Fox and Guestrin, Stochastic Gradient Hamiltonian Monte Carlo, ICML 2014, equation 15).

    Returns:
        The last latents, and the mean squared residuals from before each step.
    """
    s = clean.new_tensor([settings.residual_deviation(sigma) for sigma in problem.sigmas(len(clean))])
    closeness = (level.alpha / level.sigma) ** 2 + (0 if settings.deviation is None else settings.deviation**-2)

    def misfit(x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared residuals, and the gradient of ``|| y - A(D(x)) ||^2 / 2 s^2``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = latent_loss(prior.model, problem, x, settings.quantise)
            energy = 0.5 * problem.entries * loss / s**2
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return loss.detach(), gradient

    x, velocity, losses, (loss, gradient) = clean, torch.zeros_like(clean), [], misfit(clean)
    heat = 2 * (1 - settings.momentum)
    size = settings.lr / (closeness + curvature(lambda x: misfit(x)[1], clean, gradient))
    for iteration in range(settings.iterations):
        if iteration:
            loss, gradient = misfit(x)
        losses.append(loss)
        velocity = settings.momentum * velocity - size * (gradient + closeness * (x - clean))
        velocity = velocity + (heat * size) ** 0.5 * prior.noise_like(x)
        x = x + velocity
    return Minimum(x, _by_sample(losses), ["limit"] * len(x), [None] * len(x))


def curvature(gradient_fn: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """``|| H g || / || g ||`` of each sample: H is a Hessian, g the gradient (B, ...) at x, both by ``gradient_fn``.

    It is a finite difference, over a distance of `PROBE` for each entry, and at most the largest of H's eigenvalues,
    of which the large ones weigh most. Where g is 0, so is the curvature.

    Returns:
        (B, 1, ...), to multiply x with.
    """

    def norm(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))

    distance = PROBE * x[0].numel() ** 0.5
    direction = gradient / norm(gradient).clamp_min(torch.finfo(x.dtype).tiny)
    return norm(gradient_fn(x + distance * direction) - gradient) / distance


def _by_sample(losses: Sequence[Tensor]) -> list[list[float]]:
    """Losses (B,) of each iteration as a list for each sample, read from the device once."""
    return torch.stack(list(losses), dim=1).tolist()
