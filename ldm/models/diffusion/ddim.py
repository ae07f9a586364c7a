"""DDIM sampling (Song et al., 2021), and under the published names posterior sampling.

`DDIMSampler` is the one thing here that reaches up to `ldm_inverse`, inside its methods: outside code relies on it to
sample the posterior, and the prior has no other use for that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.prior import DDIMSchedule, DDIMStep, Generators, LatentPrior, standard_normal
from ldm.models.diffusion.prior_sampler import PriorSettings, register_prior_sampler
from util.errors import UserError
from util.logging import LOGGER
from util.settings import Settings, Share


class DDIMSettings(PriorSettings):
    """How DDIM steps: ``eta`` is the share of ancestral noise, from 0 (deterministic) to 1."""

    eta: Share = Fraction(0)


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

    def __init__(self, model: LatentDiffusion):
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
            LOGGER.info("DDIM timesteps: %s", self.schedule.timesteps)

    @property
    def ddim_timesteps(self) -> Sequence[int]:
        """The schedule's timesteps, ascending: a run counts down through them."""
        return self.schedule.timesteps

    def prior(
        self,
        conditioning: Tensor | None = None,
        unconditional_conditioning: Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
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
        prior.check_rows(batch_size)
        z = start(x_T, (batch_size, *shape), next(self.model.parameters()), generator)
        kept = Intermediates(S, log_every_t)
        for step, index in enumerate(tqdm(range(S - 1, -1, -1), desc="sampling", leave=None, disable=not verbose)):
            z, x0, _ = prior.ddim_step(z, index)
            kept.add(step, z, x0)
            if img_callback is not None:
                img_callback(x0, step)
            if callback is not None:
                callback(step)
        return z, kept.latents

    def posterior_sampler(
        self,
        measurement: Tensor,
        measurement_cond_fn: Callable[..., tuple[Tensor, Tensor]] | None,
        operator_fn: Callable[..., Tensor],
        S: int,
        batch_size: int,
        shape: Sequence[int],
        cond_method: str = "resample",
        conditioning: Tensor | None = None,
        callback: Callable[[Any], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        eta: float = 0.0,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Tensor | None = None,
        *,
        settings: Settings | None = None,
        generator: Generators = None,
        noise_sigma: float | Sequence[float] | None = None,
        initial: Tensor | None = None,
        operator_state: Mapping[str, Tensor] | None = None,
        **published: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample latents whose images explain a measurement ``y = A(x) + noise``.

        Computes in the measurement's dtype, on its device. Every sample of a batch has its own norm, losses and
        stopping, and with a generator of its own it ends as it would alone. Arguments as for `sample`, and:

        Args:
            measurement: y, (batch_size or 1, ...).
            measurement_cond_fn: the soft step (`InverseProblem.condition_fn`).
            operator_fn: A, differentiable: images to measurements.
            cond_method: name of a registered sampler: ``resample``, ``dps``, ``psld``, ``daps``, ``sitcom``.
            callback: receives a `StageEnded` for each thing done to each sample.
            settings: the sampler's own; None is its defaults, which for ``resample`` are the reference.
            generator: one for all samples, or a sequence of one for each.
            noise_sigma, initial, operator_state: as of `InverseProblem`.
            published: other keywords of the published method (`published.KEYWORDS`), with the values that have no
                effect there.

        Returns:
            The restored latents, and intermediate ones as `sample` gives.

        Raises:
            UserError: an unknown sampler or another's settings, a step count outside 1 to T, shapes that do not go
                together, or what the sampler itself refuses.
            TypeError: a keyword that the published method does not have.
        """
        from ldm_inverse.solvers.problem import InverseProblem
        from ldm_inverse.solvers.published import Callbacks, chosen_solver, sample_posterior

        solver = chosen_solver(cond_method, S, eta, settings, published)
        self.make_schedule(S, ddim_eta=eta)
        prior = self.prior(conditioning, unconditional_conditioning, unconditional_guidance_scale, generator)
        problem = InverseProblem(
            measurement, operator_fn, measurement_cond_fn, noise_sigma, initial, operator_state or {}
        )
        z = start(x_T, (batch_size, *shape), measurement, generator)
        kept = Intermediates(S, log_every_t)
        told = Callbacks(kept.add, callback, img_callback, verbose)
        return sample_posterior(prior, problem, z, solver, told), kept.latents

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
        callback: Callable[[int, Tensor], Any] | None = None,
    ) -> Tensor:
        """The image (B, 3, H, W) that explains the measurement, found from x_prime with the reference's settings.

        Args:
            eps: root mean squared residual to stop below.
            callback: receives the iteration and the mean squared residuals (B,), see `minimise`.
        """
        from ldm_inverse.solvers.published import optimised_image

        return optimised_image(measurement, x_prime, operator_fn, callback, eps=eps, max_iters=max_iters)

    def latent_optimization(
        self,
        measurement: Tensor,
        z_init: Tensor,
        operator_fn: Callable[[Tensor], Tensor],
        eps: float = 1e-3,
        max_iters: int = 500,
        lr: float | Tensor | None = None,
        callback: Callable[[int, Tensor], Any] | None = None,
    ) -> Tensor:
        """The latent (B, C, h, w) that explains the measurement, found from z_init; arguments as in
        `pixel_optimization`, and ``lr``: AdamW's step size, None the reference's."""
        from ldm_inverse.solvers.published import optimised_latent

        given = {"eps": eps, "max_iters": max_iters, **({} if lr is None else {"lr": float(lr)})}
        return optimised_latent(self.model, measurement, z_init, operator_fn, callback, **given)

    def stochastic_resample(
        self,
        pseudo_x0: Tensor,
        x_t: Tensor,
        a_t: float | Tensor,
        sigma: float | Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The clean latent pseudo_x0 at the noise level of x_t; see `resample.resample`."""
        from ldm_inverse.solvers.resample import resample

        noise = standard_normal(x_t.shape, x_t.dtype, x_t.device, generator)
        return resample(pseudo_x0, x_t, a_t, sigma, noise)


class Intermediates:
    """Latents of a run of S steps on their way: of the first step, and of every one whose index ``every`` divides.

    Attributes:
        latents: those after the steps ("x_inter"), and the estimates of the clean latents ("pred_x0").
    """

    def __init__(self, steps: int, every: int) -> None:
        self.latents: dict[str, list[Tensor]] = {"x_inter": [], "pred_x0": []}
        self._steps, self._every = steps, every

    def add(self, step: int, z: Tensor, x0: Tensor) -> None:
        """Keep those of a step, if it is one of these."""
        if step == 0 or (self._steps - 1 - step) % self._every == 0:
            self.latents["x_inter"].append(z)
            self.latents["pred_x0"].append(x0)


def start(x_T: Tensor | None, shape: Sequence[int], like: Tensor, generator: Generators) -> Tensor:
    """The noise of ``shape`` (B, C, h, w) that a run starts from: x_T, or drawn in the dtype and on the device of
    ``like``.

    Raises:
        UserError: x_T has another shape.
    """
    if x_T is None:
        return standard_normal(shape, like.dtype, like.device, generator)
    if tuple(x_T.shape) != tuple(shape):
        raise UserError(f"x_T has shape {tuple(x_T.shape)}: must be {tuple(shape)}")
    return x_T
