"""Images and latents that are fitted to a measurement by gradient descent."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.models.diffusion.evaluations import counter_of
from ldm_inverse.solvers.optimise import IterationCallback, Minimum, SampleLosses, StopRule, minimise
from ldm_inverse.solvers.problem import InverseProblem, latent_loss
from ldm_inverse.solvers.resample_settings import FitSettings, LatentSettings, PixelSettings

Chosen = TypeVar("Chosen")


def fit_pixel(
    problem: InverseProblem, image: Tensor, settings: PixelSettings, callback: IterationCallback | None = None
) -> Minimum:
    """Minimise ``mean((y - A(x))^2)`` over images x (B, C, H, W), from ``image``."""
    select = for_rows(lambda rows: problem.select(rows, len(image)))

    def loss_fn(x: Tensor, rows: Sequence[int]) -> Tensor:
        return select(rows).loss(x)

    rules = stop_rules(settings, problem.noise_levels(len(image)))
    return minimise(loss_fn, image, rules, settings.lr, settings.weight_decay, callback)


def encoded(model: Any, image: Tensor, corrections: int) -> Tensor:
    """The latent (B, C, h, w) of images (B, C, H, W): E(x), and then so often ``z <- z - (E(D(z)) - E(x))``.

    What the encoder gives decodes to something else than the image; each correction takes off what that changed
    (decoder inversion without gradients: Hong et al., Gradient-free decoder inversion in latent diffusion models,
    NeurIPS 2024).
    """
    with torch.no_grad():
        target = z = model.encode_mode(image)
        for _ in range(corrections):
            z = z - (model.encode_mode(model.decode_first_stage(z, force_not_quantize=True)) - target)
    return z


def fit_latent(
    model: Any,
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

    passes, select = counter_of(model), for_rows(lambda rows: problem.select(rows, len(z)))

    def loss_fn(z: Tensor, rows: Sequence[int]) -> Tensor:
        with passes.counting_for(rows):
            return latent_loss(model, select(rows), z, settings.quantise)

    rules = stop_rules(settings, problem.noise_levels(len(z)))
    penalty_fn = anchored_to(z, problem, settings, abar)
    return minimise(loss_fn, z, rules, settings.lr, settings.weight_decay, callback, penalty_fn)


def anchored_to(z: Tensor, problem: InverseProblem, settings: LatentSettings, abar: float) -> SampleLosses | None:
    """The part of `fit_latent`'s objective that draws latents to z; None where nothing does."""
    if settings.anchor is None:
        return None
    scale = settings.anchor**2 * (1 - abar) * problem.entries
    variances = [(sigma or 0.0) ** 2 + settings.decoder_error**2 for sigma in problem.sigmas(len(z))]
    weights = z.new_tensor([variance / scale for variance in variances])
    select = for_rows(lambda rows: (z, weights) if len(rows) == len(z) else (z[list(rows)], weights[list(rows)]))

    def penalty_fn(moved: Tensor, rows: Sequence[int]) -> Tensor:
        start, weight = select(rows)
        return weight * (moved - start).square().flatten(1).sum(1)

    return penalty_fn


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


def stop_rules(settings: FitSettings, noise_sigmas: Sequence[float | None]) -> list[StopRule]:
    """The rule of these settings for each measurement, whose noise has this root mean square (None: not known)."""
    return [StopRule(settings.max_iters, settings.threshold(sigma), settings.window) for sigma in noise_sigmas]
