"""A latent diffusion model seen through S steps: its schedule, its noise estimate, one DDIM step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.evaluations import counter_of
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps
from util.errors import UserError

# The source of all noise: one, or one for each sample of a batch; None is torch's default stream.
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class DDIMSchedule:
    """S steps of a DDIM run, by index k = 0 .. S-1; a run counts down, and its last step has index 0.

    Coefficients are Python floats of the float32 cumulative products, so what is computed with them is in the latent's
    dtype, without a wait for the device.

    Attributes:
        timesteps: what the network is told, ascending.
        alphas: ``abar`` at each timestep.
        alphas_prev: ``abar`` where each step leads.
        sigmas: standard deviation of each step's noise.
    """

    timesteps: Sequence[int]
    alphas: Sequence[float]
    alphas_prev: Sequence[float]
    sigmas: Sequence[float]

    @classmethod
    def of(cls, alphas_cumprod: Tensor, steps: int, eta: float = 0.0, discretize: str = "uniform") -> "DDIMSchedule":
        """The schedule for ``steps`` from 1 to T steps of a model with ``alphas_cumprod`` (T,), eta in [0, 1].

        Raises:
            UserError: ``steps`` or ``discretize`` outside its range.
        """
        timesteps = make_ddim_timesteps(discretize, steps, len(alphas_cumprod))
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(alphas_cumprod, timesteps, eta)
        return cls(*(tuple(part.tolist()) for part in (timesteps, alphas, alphas_prev, sigmas)))

    def __len__(self) -> int:
        return len(self.timesteps)


NO_STEPS = DDIMSchedule((), (), (), ())


class DDIMStep(NamedTuple):
    """The results of a DDIM step, each (B, C, h, w)."""

    x_prev: Tensor  # the latent after the step
    pred_x0: Tensor  # the clean latent that the step assumes
    pseudo_x0: Tensor  # the clean latent that a measurement is compared with


def ddim_step(
    z: Tensor,
    noise_estimate: Tensor,
    schedule: DDIMSchedule,
    index: int,
    noise: Tensor,
    tweedie: Literal["reference", "exact"] = "reference",
) -> DDIMStep:
    """One DDIM step (Song et al., 2021, equation 12) from index ``index``, differentiable in z.

    ``pseudo_x0`` is Tweedie's formula when ``exact``; the reference has ``1 - a`` in it in place of ``sqrt(1 - a)``.
    """
    a, a_prev, sigma = schedule.alphas[index], schedule.alphas_prev[index], schedule.sigmas[index]
    x0 = (z - (1 - a) ** 0.5 * noise_estimate) / a**0.5
    # Never below 0 but by rounding, where eta is 1.
    direction = max(1 - a_prev - sigma**2, 0.0) ** 0.5 * noise_estimate
    x_prev = a_prev**0.5 * x0 + direction + sigma * noise
    return DDIMStep(x_prev, x0, x0 if tweedie == "exact" else (z - (1 - a) * noise_estimate) / a**0.5)


def standard_normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: Generators) -> Tensor:
    """Noise in contiguous layout (`randn_like` would follow a network's channels-last and order the draws by it).

    With several generators each sample of ``shape`` (B, ...) is drawn from its own, as it would be alone.
    """
    if isinstance(generator, Sequence):
        return torch.cat([standard_normal((1, *shape[1:]), dtype, device, own) for own in generator])
    return torch.randn(tuple(shape), dtype=dtype, device=device, generator=generator)


@dataclass(frozen=True)
class LatentPrior:
    """A model, a schedule and a noise source: all that a sampler knows of the prior.

    Attributes:
        model: predicts noise; its first stage maps latents (B, c, h, w) to images (B, C, H, W) in [-1, 1] and back.
        schedule: the steps of the run; none where the sampler has levels of its own.
        conditioning, unconditional_conditioning: what `model.apply_model` takes; None for an unconditional model.
        guidance_scale: classifier-free guidance; 1 is none.
        generator: source of all noise, one or one for each sample; None is torch's default stream.
    """

    model: LatentDiffusion
    schedule: DDIMSchedule = NO_STEPS
    conditioning: Tensor | None = None
    unconditional_conditioning: Tensor | None = None
    guidance_scale: float = 1.0
    generator: Generators = None

    def check_rows(self, batch: int) -> None:
        """Check that there is a condition for each latent of a batch.

        Raises:
            UserError: there are more or fewer.
        """
        for name in ("conditioning", "unconditional_conditioning"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != batch:
                raise UserError(f"{name} has {len(rows)} rows for a batch of {batch}")

    def predict_noise(self, z: Tensor, timestep: float | Tensor, differentiable: bool = False) -> Tensor:
        """The model's noise estimate for z at a timestep, guided (Ho and Salimans, 2022):
        ``e_uncond + guidance_scale (e_cond - e_uncond)``. Without gradient, unless it is asked for."""
        apply_model = self.model.differentiable_apply_model if differentiable else self.model.apply_model
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            t = timestep if torch.is_tensor(timestep) else torch.full((1,), timestep, device=z.device)
            t = t.to(z.device).expand(len(z))
            wanted, unwanted = self.conditioning, self.unconditional_conditioning
            if wanted is None or unwanted is None or self.guidance_scale == 1.0:
                return apply_model(z, t, wanted)
            both = torch.cat([unwanted, wanted])
            counter = counter_of(self.model)
            with counter.counting_for(counter.images_of(z)):
                e_uncond, e_cond = apply_model(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
            return e_uncond + self.guidance_scale * (e_cond - e_uncond)

    def clean_estimate(self, z: Tensor, timestep: float, a: float, differentiable: bool = False) -> Tensor:
        """Tweedie's formula: the mean of the clean latent given z at cumulative product ``a``."""
        return (z - (1 - a) ** 0.5 * self.predict_noise(z, timestep, differentiable)) / a**0.5

    def select(self, rows: Sequence[int], batch: int) -> "LatentPrior":
        """The prior of the latents at these positions of a batch. Noise is for whole batches, and not drawn from it."""
        if len(rows) == batch:
            return self
        conditions = (self.conditioning, self.unconditional_conditioning)
        own, none = (None if rows_of is None else rows_of[list(rows)] for rows_of in conditions)
        return replace(self, conditioning=own, unconditional_conditioning=none, generator=None)

    def noise_like(self, z: Tensor) -> Tensor:
        """Standard normal noise of z's shape, dtype and device, in contiguous layout."""
        return standard_normal(z.shape, z.dtype, z.device, self.generator)

    def ddim_step(
        self,
        z: Tensor,
        index: int,
        timestep: int | Tensor | None = None,
        tweedie: Literal["reference", "exact"] = "reference",
        differentiable: bool = False,
    ) -> DDIMStep:
        """One DDIM step from ``index``; ``timestep`` is what the network is told, the index's own where None.

        It is differentiable in z, the noise estimate held constant, or with ``differentiable`` through the UNet too.

        Noise is drawn also where none is added, so that eta does not move the stream.
        """
        timestep = self.schedule.timesteps[index] if timestep is None else timestep
        estimate = self.predict_noise(z, timestep, differentiable)
        return ddim_step(z, estimate, self.schedule, index, self.noise_like(z), tweedie)
