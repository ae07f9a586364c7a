"""ReSample: latent diffusion with hard data consistency (Song et al., ICLR 2024).

A run is DDIM steps, each with a gradient step towards the measurement (`dps.soft_step`). At every ``interval``-th
index past the plain part of the run, hard consistency: look ahead a few steps for a clean latent, fit it to the
measurement, and map it back to the run's noise level by stochastic resampling.
"""

import torch
from torch import Tensor

from ldm.models.diffusion.prior import DDIMSchedule, DDIMStep, LatentPrior, standard_normal
from ldm_inverse.solvers.dps import soft_step
from ldm_inverse.solvers.fit import encoded, fit_latent, fit_pixel
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.proximal import proximal
from ldm_inverse.solvers.registry import register_sampler
from ldm_inverse.solvers.resample_settings import FitSettings, ResampleSettings
from ldm_inverse.solvers.sampler_run import SamplerRun

DRAWN_SHARE = 0.3  # of a noise level: the largest deviation of a draw that goes back to it
LEAST_DRAWN = 0.05  # in units of [-1, 1]: about what an autoencoder loses


@register_sampler("resample", ResampleSettings)
def sample_resample(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: ResampleSettings, run: SamplerRun
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z.

    Raises:
        UserError: a stage is to stop at the noise floor, and the noise's level is not known.
    """
    for sigma in problem.sigmas(len(z)):
        settings.check_noise_level(sigma)
    schedule = run.schedule
    first = settings.first_index(len(schedule))
    if first < len(schedule) - 1 and not run.done:
        z = diffused_guess(prior, problem, z, first)
    for step, index in run.steps(first):
        # DDIM step, towards the measurement.
        if settings.soft_step:
            scale = settings.soft_scale * schedule.alphas[index]
            z, x0, norm = soft_step(prior, problem, z, index, scale, settings.tweedie)
        else:
            (z, x0, _), norm = prior.ddim_step(z, index), None
        run.stepped(step, norm)

        # Hard consistency.
        if settings.stage_at(index, len(schedule)):
            z, x0 = hard_consistency(prior, problem, z, index, settings, run)
        run.finished(step, z, x0)

    if settings.final_stage is not None:
        abar = schedule.alphas_prev[settings.last_event(len(schedule))]
        follow = run.follow("final", *aim(settings.final_stage, problem, run.batch))
        minimum = fit_latent(prior.model, problem, z, settings.final_stage, abar, follow)
        z = minimum.x
        run.optimised(len(schedule), "final", minimum)
    return z


def aim(settings: FitSettings, problem: InverseProblem, batch: int) -> tuple[int, float | None]:
    """The most iterations that an optimisation has, and the loss that the first of a batch's stops below."""
    return settings.max_iters, settings.threshold(problem.noise_levels(batch)[0])


def diffused_guess(prior: LatentPrior, problem: InverseProblem, noise: Tensor, index: int) -> Tensor:
    """The first guess, diffused to the noise level of ``index`` (Chung et al., CVPR 2022: come closer, diffuse faster).

    Raises:
        UserError: there is no first guess.
    """
    a = prior.schedule.alphas[index]
    with torch.no_grad():
        return a**0.5 * prior.model.encode_mode(problem.guess()) + (1 - a) ** 0.5 * noise


def time_travel(prior: LatentPrior, z: Tensor, index: int, settings: ResampleSettings) -> DDIMStep:
    """Up to ``travel_length`` plain DDIM steps from z, the latent that the step from ``index`` led to; the last one.

    The network is told the latent's own timestep. In the reference the coefficients lag one index behind.
    """
    lag = 1 if settings.travel_index == "reference" else 0
    for own in range(index - 1, max(index - 1 - settings.travel_length, -1), -1):
        step = prior.ddim_step(z, own + lag, prior.schedule.timesteps[own], settings.tweedie)
        z = step.x_prev
    return step


def hard_consistency(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, index: int, settings: ResampleSettings, run: SamplerRun
) -> tuple[Tensor, Tensor]:
    """Look ahead from z, the latent that the step from ``index`` led to, fit that clean latent to the measurement, over
    images or over latents, and take it back to z's noise level.

    Returns:
        The latent, and the estimate of the clean latent that was fitted.
    """
    ahead = time_travel(prior, z, index, settings)
    stage = settings.stage_at(index, len(run.schedule))
    if stage == "latent":
        abar, follow = run.schedule.alphas_prev[index], run.follow("latent", *aim(settings.latent, problem, run.batch))
        minimum = fit_latent(prior.model, problem, ahead.pseudo_x0, settings.latent, abar, follow)
        clean = minimum.x
    else:
        image = prior.model.decode_first_stage(ahead.pseudo_x0, force_not_quantize=not settings.latent.quantise)
        if settings.pixel.method == "exact":
            if settings.draws_at(index, len(run.schedule)):
                noise = posterior_noise(prior, problem, image)
                minimum = proximal(problem, image, settings.pixel, noise, most_drawn(run.schedule.alphas_prev[index]))
            else:
                minimum = proximal(problem, image, settings.pixel)
        else:
            follow = run.follow("pixel", *aim(settings.pixel, problem, run.batch))
            minimum = fit_pixel(problem, image, settings.pixel, follow)
        clean = encoded(prior.model, minimum.x, settings.pixel.corrections)
    z = resample_at(prior, clean, z, index, settings)
    run.optimised(len(run.schedule) - 1 - index, stage or "pixel", minimum)
    return z, ahead.pred_x0


def most_drawn(abar: float) -> float:
    """The largest deviation, in units of [-1, 1], of a draw that goes back to a latent at cumulative product ``abar``.

    A draw adds noise where the measurement says little, and only a UNet that expects about as much takes it for noise.
    Where more stays, the next residual is larger, so the next estimate of the deviation, and so on until the picture is
    noise.
    """
    return max(DRAWN_SHARE * (1 - abar) ** 0.5, LEAST_DRAWN)


def posterior_noise(prior: LatentPrior, problem: InverseProblem, image: Tensor) -> tuple[Tensor, Tensor]:
    """The noise of a draw, of the shapes of images (B, C, H, W) and their measurements."""
    shapes = image.shape, (len(image), *problem.measurement.shape[1:])
    first, second = (standard_normal(shape, image.dtype, image.device, prior.generator) for shape in shapes)
    return first, second


def resample_at(prior: LatentPrior, clean: Tensor, z: Tensor, index: int, settings: ResampleSettings) -> Tensor:
    """Stochastic resampling of a clean latent to the noise level of z, to which the step from ``index`` led."""
    sigma = resample_sigma(prior.schedule, index, settings)
    return resample(clean, z, prior.schedule.alphas_prev[index], sigma, prior.noise_like(z))


def resample_sigma(schedule: DDIMSchedule, index: int, settings: ResampleSettings) -> float:
    """``gamma (1 - a_prev)/a (1 - a/a_prev)``; the reference divides by 1 - a in place of a."""
    a, a_prev = schedule.alphas[index], schedule.alphas_prev[index]
    divisor = a if settings.resample_variance == "paper" else 1 - a
    return settings.gamma * (1 - a_prev) / divisor * (1 - a / a_prev)


def resample(clean: Tensor, z: Tensor, a_prev: float | Tensor, sigma: float | Tensor, noise: Tensor) -> Tensor:
    """A draw from the product of ``N(sqrt(a) clean, (1-a) I)`` and ``N(z, sigma I)`` (the paper's proposition 1).

    Args:
        clean: the clean latent (B, C, h, w) that explains the measurement.
        z: the latent of the run, at cumulative product ``a_prev``.
        a_prev: in (0, 1).
        sigma: variance, above 0, with which z is believed.
        noise: standard normal, of z's shape.
    """
    total = sigma + 1 - a_prev
    mean = (sigma * a_prev**0.5 * clean + (1 - a_prev) * z) / total
    return mean + (sigma * (1 - a_prev) / total) ** 0.5 * noise
