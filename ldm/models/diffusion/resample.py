"""ReSample: latent diffusion with hard data consistency (Song et al., ICLR 2024).

A run is DDIM steps, each with a gradient step towards the measurement (`dps.soft_step`). At every ``interval``-th
index past the plain part of the run, hard consistency: look ahead a few steps for a clean latent, fit it to the
measurement, and map it back to the run's noise level by stochastic resampling.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from ldm.models.diffusion.cost import most_passes
from ldm.models.diffusion.dps import soft_step
from ldm.models.diffusion.optimise import (
    IterationCallback,
    Minimum,
    SampleLosses,
    StopRule,
    mean_squared_residual,
    minimise,
)
from ldm.models.diffusion.passes import passes_of
from ldm.models.diffusion.posterior import InverseProblem, Watch, register_sampler
from ldm.models.diffusion.prior import DDIMSchedule, DDIMStep, LatentPrior
from ldm.models.diffusion.resample_settings import LatentSettings, PixelSettings, ResampleSettings
from util.errors import UserError

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

Chosen = TypeVar("Chosen")


@register_sampler("resample", ResampleSettings, most_passes)
def sample_resample(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, settings: ResampleSettings, watch: Watch
) -> Tensor:
    """The restored latent (B, C, h, w), from noise z.

    Raises:
        UserError: a stage is to stop at the noise floor, and the noise's level is not known.
    """
    for sigma in problem.sigmas(len(z)):
        settings.check_noise_level(sigma)
    first = settings.first_index(len(prior.schedule))
    if first < len(prior.schedule) - 1 and not watch.done:
        z = diffused_guess(prior, problem, z, first)
    for step, index in watch.steps(first):
        # DDIM step, towards the measurement.
        if settings.soft_step:
            scale = settings.soft_scale * prior.schedule.alphas[index]
            z, x0, norm = soft_step(prior, problem, z, index, scale, settings.tweedie)
        else:
            (z, x0, _), norm = prior.ddim_step(z, index), None
        watch.stepped(step, len(z), norm)

        # Hard consistency.
        stage = settings.stage_at(index, len(prior.schedule))
        if stage is not None:
            ahead = time_travel(prior, z, index, settings)
            abar = prior.schedule.alphas_prev[index]
            follow = watch.follow(stage, *aim(settings.pixel if stage == "pixel" else settings.latent, problem))
            clean, minimum = fit(prior.model, problem, ahead.pseudo_x0, stage, settings, abar, follow)
            z, x0 = resample_at(prior, clean, z, index, settings), ahead.pred_x0
            watch.optimised(step, stage, minimum)
        watch.finished(step, z, x0)

    if settings.final_stage is not None:
        abar = prior.schedule.alphas_prev[settings.last_event(len(prior.schedule))]
        follow = watch.follow("final", *aim(settings.final_stage, problem))
        minimum = fit_latent(prior.model, problem, z, settings.final_stage, abar, follow)
        z = minimum.x
        watch.optimised(len(prior.schedule), "final", minimum)
    return z


def diffused_guess(prior: LatentPrior, problem: InverseProblem, noise: Tensor, index: int) -> Tensor:
    """The first guess, diffused to the noise level of ``index`` (Chung et al., CVPR 2022: come closer, diffuse faster).

    Raises:
        UserError: there is no first guess.
    """
    if problem.initial is None:
        raise UserError("start is below 1, and this measurement has no first guess to start from: set start to 1")
    a = prior.schedule.alphas[index]
    with torch.no_grad():
        return a**0.5 * prior.model.encode_mode(problem.initial) + (1 - a) ** 0.5 * noise


def time_travel(prior: LatentPrior, z: Tensor, index: int, settings: ResampleSettings) -> DDIMStep:
    """Up to ``travel_length`` plain DDIM steps from z, the latent that the step from ``index`` led to; the last one.

    The network is told the latent's own timestep. In the reference the coefficients lag one index behind.
    """
    lag = 1 if settings.travel_index == "reference" else 0
    for own in range(index - 1, max(index - 1 - settings.travel_length, -1), -1):
        step = prior.ddim_step(z, own + lag, prior.schedule.timesteps[own], settings.tweedie)
        z = step.x_prev
    return step


def fit(
    model: "LatentDiffusion",
    problem: InverseProblem,
    p0: Tensor,
    stage: Literal["pixel", "latent"],
    settings: ResampleSettings,
    abar: float = 0.0,
    callback: IterationCallback | None = None,
) -> tuple[Tensor, Minimum]:
    """The clean latent near p0 that explains the measurement, found over images or over latents.

    ``abar`` is the cumulative product at the latent that p0 is the estimate of.
    """
    if stage == "latent":
        minimum = fit_latent(model, problem, p0, settings.latent, abar, callback)
        return minimum.x, minimum
    minimum = fit_pixel(problem, model.decode_first_stage(p0), settings.pixel, callback)
    with torch.no_grad():
        return model.encode_mode(minimum.x), minimum


def fit_pixel(
    problem: InverseProblem, image: Tensor, settings: PixelSettings, callback: IterationCallback | None = None
) -> Minimum:
    """Minimise ``mean((y - A(x))^2)`` over images x (B, 3, H, W), from ``image``."""

    loss_fn = residual_losses(problem, len(image), lambda x: x)
    rules = stop_rules(settings, problem.sigmas(len(image)))
    return minimise(loss_fn, image, rules, settings.lr, settings.weight_decay, callback)


def fit_latent(
    model: "LatentDiffusion",
    problem: InverseProblem,
    z: Tensor,
    settings: LatentSettings,
    abar: float = 0.0,
    callback: IterationCallback | None = None,
) -> Minimum:
    """Minimise ``mean((y - A(D(z)))^2)`` over latents (B, C, h, w), from z.

    With ``settings.anchor``, the negative logarithm of a posterior: z is the mean of a Gaussian prior of deviation
    ``anchor sqrt(1 - abar)``, and residuals have the variance of the noise plus ``decoder_error^2``. It is scaled so
    that the residual's part is the loss that is reported.
    """

    sigmas, passes = problem.sigmas(len(z)), passes_of(model)

    def decode(z: Tensor) -> Tensor:
        return model.differentiable_decode_first_stage(z, force_not_quantize=not settings.quantise)

    residuals = residual_losses(problem, len(z), decode)

    def loss_fn(z: Tensor, rows: Sequence[int]) -> Tensor:
        with passes.counting_for(rows):
            return residuals(z, rows)

    penalty_fn = None
    if settings.anchor is not None:
        scale = settings.anchor**2 * (1 - abar) * problem.measurement[0].numel()
        weights = z.new_tensor([((sigma or 0.0) ** 2 + settings.decoder_error**2) / scale for sigma in sigmas])

        select = for_rows(lambda rows: (z[list(rows)], weights[list(rows)]))

        def penalty_fn(moved: Tensor, rows: Sequence[int]) -> Tensor:
            start, weight = select(rows)
            return weight * (moved - start).square().flatten(1).sum(1)

    rules = stop_rules(settings, sigmas)
    return minimise(loss_fn, z, rules, settings.lr, settings.weight_decay, callback, penalty_fn)


def residual_losses(problem: InverseProblem, batch: int, decode: Callable[[Tensor], Tensor]) -> SampleLosses:
    """``mean((y - A(decode(x)))^2)`` of the samples that go on, as `minimise` takes it."""
    select = for_rows(lambda rows: problem.select(rows, batch))

    def loss_fn(x: Tensor, rows: Sequence[int]) -> Tensor:
        selected = select(rows)
        return mean_squared_residual(selected.measurement, selected.predict(decode(x)))

    return loss_fn


def for_rows(select: Callable[[Sequence[int]], Chosen]) -> Callable[[Sequence[int]], Chosen]:
    """``select``, called anew only when the samples that go on are others than at the last call.

    Selecting waits for the device, and operators keep what they worked out for a state as long as it is the same
    object.
    """
    known: Sequence[int] | None = None
    chosen: Chosen

    def selected(rows: Sequence[int]) -> Chosen:
        nonlocal known, chosen
        if rows is not known:
            known, chosen = rows, select(rows)
        return chosen

    return selected


def stop_rules(settings: PixelSettings, noise_sigmas: Sequence[float | None]) -> list[StopRule]:
    """The rule of these settings for each measurement, whose noise has this root mean square (None: not known)."""
    return [StopRule(settings.max_iters, settings.threshold(sigma), settings.window) for sigma in noise_sigmas]


def aim(settings: PixelSettings, problem: InverseProblem) -> tuple[int, float | None]:
    """The most iterations that an optimisation has, and the loss that the first measurement's stops below."""
    (rule, *_) = stop_rules(settings, problem.sigmas(1)[:1])
    return rule.max_iters, rule.threshold or None


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
