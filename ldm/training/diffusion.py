"""The loss of a latent prior, on latents that are encoded once."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.pictures import resident
from ldm.training.settings import NoiseLevels, Stage
from util.errors import UserError

UNIT_DEVIATION = (0.7, 1.4)
# Of the timesteps drawn by noise level, this share is uniform, so that none is forgotten.
UNIFORM_SHARE = 0.1


def timestep_probabilities(alphas_cumprod: np.ndarray, timesteps: Literal["uniform"] | NoiseLevels) -> np.ndarray:
    """How often each timestep is drawn: float64 (T,), sum 1.

    With noise levels, ``log sigma``, ``sigma^2 = (1 - abar) / abar``, is normal but for a uniform tenth. In the
    variables of flow matching this is the logit-normal density (Esser et al., 2024); Karras et al. (2022) use it too.

    Raises:
        UserError: the schedule has no such noise levels.
    """
    count = len(alphas_cumprod)
    uniform = np.full(count, 1 / count)
    if timesteps == "uniform":
        return uniform
    log_sigma = 0.5 * np.log(1 / alphas_cumprod.astype(np.float64) - 1)
    density = np.exp(-0.5 * ((log_sigma - timesteps.mean) / timesteps.deviation) ** 2) * np.gradient(log_sigma)
    if not density.sum() > 0:
        raise UserError(
            f"timesteps.mean is {timesteps.mean:g}: the logarithm of sigma goes from {log_sigma[0]:.2f} to "
            f"{log_sigma[-1]:.2f} in this noise schedule"
        )
    return UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * density / density.sum()


def draw_timesteps(probabilities: np.ndarray, count: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw ``count`` timesteps, one from each equal slice of the probability (Kingma et al., 2021, appendix I.1)."""
    places = (rng.permutation(count) + rng.uniform(size=count)) / count
    return np.searchsorted(np.cumsum(probabilities), places, side="right").clip(max=len(probabilities) - 1)


class DiffusionLoss:
    """Mean of ``w_t (eps - eps_theta(q_sample(z, t, eps), t))^2`` (Ho et al., 2020, equation 14).

    ``w_t`` is 1 / abar_t = 1 + 1 / SNR, at most ``weight_cap``: without the cap this is the error of v (Salimans and
    Ho, 2022). With equal weights (a cap of 1) the noisiest steps, which decide layout and colour, hardly count: a
    network that ignores the picture is nearly right.

    With teachers, trained models of the same latents, their estimates are the target in place of ``eps``, each at the
    timesteps that ``stage.taught_below`` gives it. Target and estimate have nearly the same mean given ``z_t``, but
    ``eps`` varies about it and the estimate does not. So the network soon does as well (Salimans and Ho, 2022, teach a
    network of v so).

    Args:
        latents: (N, C, h, w), the first stage's times the model's ``scale_factor``.
        timesteps: which are drawn, see `timestep_probabilities`.

    Raises:
        UserError: latents far from unit deviation, for which the noise schedule would be wrong.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        latents: np.ndarray,
        weight_cap: float,
        timesteps: Literal["uniform"] | NoiseLevels = "uniform",
        teachers: Sequence[LatentDiffusion] = (),
    ):
        deviation = float(np.std(latents[:256].astype(np.float32)))
        if not UNIT_DEVIATION[0] < deviation < UNIT_DEVIATION[1]:
            raise UserError(
                f"the latents' deviation is {deviation:.3g}, the schedule expects 1: scale_factor: {1 / deviation:.3g}"
            )
        self.model, self.latents, self.teachers = model, resident(latents, model.device), teachers
        alphas_cumprod = model.get_buffer("alphas_cumprod")
        self.weights = (1 / alphas_cumprod).clamp(max=weight_cap)
        self.probabilities = timestep_probabilities(alphas_cumprod.cpu().numpy(), timesteps)

    def __call__(self, stage: Stage, rng: np.random.RandomState) -> Tensor:
        """The loss of a batch, a scalar; everything random comes from ``rng``."""
        size, device = stage.batch_size, self.model.device
        chosen = torch.from_numpy(rng.randint(len(self.latents), size=size)).to(self.latents.device)
        z = self.latents[chosen].to(device).float()
        t = torch.from_numpy(draw_timesteps(self.probabilities, size, rng)).to(device)
        # Where the network is: a processor takes longer to draw a large batch's noise than a GPU to learn from it.
        generator = torch.Generator(device).manual_seed(int(rng.randint(2**31)))
        noise = torch.randn(z.shape, generator=generator, device=device)
        noisy = self.model.q_sample(z, t, noise).contiguous(memory_format=torch.channels_last)
        estimate = self.model.differentiable_apply_model(noisy, t).float()  # whatever the UNet predicts
        for teacher, first, end in zip(self.teachers, (0, *stage.taught_below), stage.taught_below, strict=False):
            taught = (first <= t) & (t < end)
            if taught.any():
                noise[taught] = teacher.apply_model(noisy[taught], t[taught]).float()
        errors = F.mse_loss(estimate, noise, reduction="none").mean((1, 2, 3))
        return (self.weights[t] * errors).mean()
