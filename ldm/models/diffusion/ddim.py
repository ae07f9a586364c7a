"""DDIM sampling (Song et al., 2021) and posterior sampling, under the published names."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ldm.models.diffusion import daps, dps, psld, resample, sitcom, unsolved  # noqa: F401 (they register their samplers)
from ldm.models.diffusion.checked_settings import CheckedSettings, Share
from ldm.models.diffusion.optimise import IterationCallback
from ldm.models.diffusion.passes import passes_of
from ldm.models.diffusion.posterior import InverseProblem, TraceEvent, Watch, get_sampler
from ldm.models.diffusion.posterior_settings import PosteriorSettings
from ldm.models.diffusion.prior import DDIMSchedule, DDIMStep, LatentPrior, standard_normal
from ldm.models.diffusion.prior_sampler import register_prior_sampler
from ldm.models.diffusion.resample_settings import LatentSettings, PixelSettings
from util.errors import UserError

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger("resample")


@dataclass(frozen=True)
class DDIMSettings(CheckedSettings):
    """How DDIM steps: ``eta`` is the share of ancestral noise, from 0 (deterministic) to 1."""

    eta: Share = Fraction(0)

    def passes(self, steps: int) -> int:
        """How often a run of ``steps`` steps passes through the UNet."""
        return steps


@register_prior_sampler("ddim", DDIMSettings)
def sample_ddim(prior: LatentPrior, z: Tensor, steps: int, settings: DDIMSettings) -> Tensor:
    """Equation 12 of Song, Meng and Ermon (ICLR 2021), over the published grid of timesteps, down to timestep 0."""
    schedule = DDIMSchedule.of(prior.model.alphas_cumprod, steps, float(settings.eta))
    prior = replace(prior, schedule=schedule)
    for index in reversed(range(steps)):
        z = prior.ddim_step(z, index).x_prev
    return z


class DDIMSampler:
    """Samples latents of a latent diffusion model, from the prior (`sample`) or given a measurement
    (`posterior_sampler`).

    Latents are (B, C, h, w), images (B, 3, H, W) in [-1, 1]. Where a ``generator`` can be given, None is torch's
    default stream.
    """

    def __init__(self, model: "LatentDiffusion"):
        self.model = model

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = False
    ) -> None:
        """Set the run's steps: ``ddim_num_steps`` of the model's timesteps, eta in [0, 1]; ``verbose`` logs them.

        Raises:
            UserError: a value outside its range.
        """
        if not 0 <= ddim_eta <= 1:
            raise UserError(f"ddim_eta is {ddim_eta}: must be from 0 to 1")
        self.schedule = DDIMSchedule.of(self.model.alphas_cumprod, ddim_num_steps, ddim_eta, ddim_discretize)
        if verbose:
            logger.info("DDIM timesteps: %s", self.schedule.timesteps)

    @property
    def ddim_timesteps(self) -> Sequence[int]:
        """The schedule's timesteps, ascending: a run counts down through them."""
        return self.schedule.timesteps

    def prior(
        self,
        conditioning: Tensor | None = None,
        unconditional_conditioning: Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> LatentPrior:
        """The model with the schedule in hand (`make_schedule`)."""
        return LatentPrior(
            self.model, self.schedule, conditioning, unconditional_conditioning, guidance_scale, generator
        )

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Tensor | None = None,
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        eta: float = 0.0,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample from the prior in S steps.

        Args:
            S: number of steps, 1 to T.
            batch_size, shape: number of latents, and (C, h, w).
            conditioning: what the model is conditioned on, one row a latent; None for an unconditional model.
            callback: receives each step (from 0).
            img_callback: receives the estimate of the clean latent and the step.
            eta: 0 is deterministic DDIM, 1 ancestral sampling.
            verbose: show a progress bar.
            x_T: the noise to start from; drawn where None.
            log_every_t: how often intermediate latents are kept.
            unconditional_guidance_scale, unconditional_conditioning: classifier-free guidance; 1 or None is none.
            generator: source of the noise: x_T, then one draw a step, whatever eta.

        Returns:
            The latents, and the intermediate ones as ``{"x_inter": [...], "pred_x0": [...]}``.
        """
        self.make_schedule(S, ddim_eta=eta)
        prior = self.prior(conditioning, unconditional_conditioning, unconditional_guidance_scale, generator)
        weight = next(self.model.parameters())
        z = _start(x_T, batch_size, shape, weight, conditioning, generator)
        watch = Watch(self.schedule, img_callback=img_callback, log_every_t=log_every_t, progress=verbose)
        with closing(watch):
            for step, index in watch.steps():
                z, x0, _ = prior.ddim_step(z, index)
                watch.finished(step, z, x0)
                if callback is not None:
                    callback(step)
        return z, watch.intermediates

    def posterior_sampler(
        self,
        measurement: Tensor,
        measurement_cond_fn: Callable[..., tuple[Tensor, Tensor]] | None,
        operator_fn: Callable[[Tensor], Tensor],
        S: int,
        batch_size: int,
        shape: Sequence[int],
        cond_method: str = "resample",
        conditioning: Tensor | None = None,
        eta: float = 0.0,
        verbose: bool = True,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        callback: Callable[[TraceEvent], Any] | None = None,
        settings: PosteriorSettings | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
        noise_sigma: float | Sequence[float] | None = None,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        initial: Tensor | None = None,
        operator_state: Mapping[str, Tensor] | None = None,
        done: int = 0,
        state_callback: Callable[[Tensor, int], Any] | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample latents whose images explain a measurement ``y = A(x) + noise``.

        Computes in the measurement's dtype, on its device. Every sample of a batch has its own norm, losses and
        stopping, and with a generator of its own it ends as it would alone. Arguments as for `sample`, and:

        Args:
            measurement: y, (batch_size or 1, ...).
            measurement_cond_fn: the soft step (`InverseProblem.condition_fn`).
            operator_fn: A, differentiable: images to measurements.
            cond_method: name of a registered sampler: ``resample``, ``dps``, ``psld``, ``daps``, ``sitcom``.
            callback: receives a TraceEvent for each thing done to each sample.
            settings: the sampler's own; None is its defaults, which for ``resample`` are the reference.
            generator: one for all samples, or a sequence of one for each.
            noise_sigma: root mean square of the noise over all entries of y, for ``eps: noise``: sigma where every
                entry has Gaussian noise, sigma times the root of the kept share where a mask drops entries. One number,
                or one for each measurement.
            initial: a first guess at the images, (batch_size or 1, 3, H, W), for settings with ``start`` below 1.
            operator_state: what the operator drew for each image, tensors (batch_size or 1, ...): keywords for
                operator_fn and measurement_cond_fn.
            done: how many steps an earlier call has done; x_T is then what they led to.
            state_callback: receives the latents and the number of steps done, once a step: with the generator's state
                all that a later call needs to go on to the same result.

        Returns:
            The restored latents, and intermediate ones as `sample` gives.

        Raises:
            UserError: an unknown sampler or another's settings, a step count outside 1 to T, shapes that do not go
                together, or what the sampler itself refuses.
        """
        sampler = get_sampler(cond_method)
        settings = settings or sampler.settings()
        if sampler.solve is None or not isinstance(settings, sampler.settings):
            raise UserError(f"sampler {cond_method!r} does not sample by {type(settings).__name__}")
        self.make_schedule(S, ddim_eta=eta)
        if len(measurement) not in (1, batch_size):
            raise UserError(f"{len(measurement)} measurements for a batch of {batch_size}: must be as many, or one")
        if isinstance(generator, Sequence) and len(generator) != batch_size:
            raise UserError(f"{len(generator)} generators for a batch of {batch_size}: must be one, or one each")
        z = _start(x_T, batch_size, shape, measurement, conditioning, generator)
        counter = passes_of(self.model)
        state = operator_state or {}
        problem = InverseProblem(measurement, operator_fn, measurement_cond_fn, noise_sigma, initial, state)
        watch = Watch(
            self.schedule, callback, img_callback, log_every_t, verbose, counter, done, state_callback, problem
        )
        prior = self.prior(conditioning, unconditional_conditioning, unconditional_guidance_scale, generator)
        with closing(watch):
            z = sampler.solve(prior, problem, z, settings, watch)
        return z, watch.intermediates

    def p_sample_ddim(
        self,
        x: Tensor,
        c: Tensor | None,
        t: Tensor,
        index: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
        generator: torch.Generator | None = None,
        tweedie: Literal["reference", "exact"] = "reference",
    ) -> DDIMStep:
        """One step with the coefficients of ``index``, the network being told the timesteps t (B,).

        Returns:
            (x_prev, pred_x0, pseudo_x0), see DDIMStep; each differentiable in x, the noise estimate held constant.
        """
        prior = self.prior(c, unconditional_conditioning, unconditional_guidance_scale, generator)
        return prior.ddim_step(x, index, t, tweedie)

    def pixel_optimization(
        self,
        measurement: Tensor,
        x_prime: Tensor,
        operator_fn: Callable[[Tensor], Tensor],
        eps: float = 1e-3,
        max_iters: int = 2000,
        callback: IterationCallback | None = None,
    ) -> Tensor:
        """The image (B, 3, H, W) that explains the measurement, found from x_prime with the reference's settings.

        Args:
            eps: root mean squared residual to stop below.
            callback: receives the iteration and the mean squared residuals (B,), see `minimise`.
        """
        settings = PixelSettings(eps=eps, max_iters=max_iters)
        return resample.fit_pixel(InverseProblem(measurement, operator_fn), x_prime, settings, callback).x

    def latent_optimization(
        self,
        measurement: Tensor,
        z_init: Tensor,
        operator_fn: Callable[[Tensor], Tensor],
        eps: float = 1e-3,
        max_iters: int = 500,
        lr: float | Tensor | None = None,
        callback: IterationCallback | None = None,
    ) -> Tensor:
        """The latent (B, C, h, w) that explains the measurement, found from z_init; arguments as in
        `pixel_optimization`, and ``lr``: AdamW's step size, None the reference's."""
        settings = LatentSettings(eps=eps, max_iters=max_iters, **({} if lr is None else {"lr": float(lr)}))
        problem = InverseProblem(measurement, operator_fn)
        return resample.fit_latent(self.model, problem, z_init, settings, callback=callback).x

    def stochastic_resample(
        self,
        pseudo_x0: Tensor,
        x_t: Tensor,
        a_t: float | Tensor,
        sigma: float | Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The clean latent pseudo_x0 at the noise level of x_t; see `resample.resample`."""
        noise = standard_normal(x_t.shape, x_t.dtype, x_t.device, generator)
        return resample.resample(pseudo_x0, x_t, a_t, sigma, noise)


def _start(
    x_T: Tensor | None,
    batch_size: int,
    shape: Sequence[int],
    like: Tensor,
    conditioning: Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """The noise a run starts from, in the dtype and on the device of ``like``."""
    if conditioning is not None and len(conditioning) != batch_size:
        raise UserError(f"conditioning has {len(conditioning)} rows for a batch of {batch_size}")
    size = (batch_size, *shape)
    if x_T is None:
        return standard_normal(size, like.dtype, like.device, generator)
    if tuple(x_T.shape) != size:
        raise UserError(f"x_T has shape {tuple(x_T.shape)}: must be {size}")
    return x_T
