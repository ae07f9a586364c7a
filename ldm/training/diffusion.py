"""The loss of a latent prior, on latents that are encoded once."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from util.errors import UserError

UNIT_DEVIATION = (0.7, 1.4)


class DiffusionLoss:
    """Mean of ``w_t (eps - eps_theta(q_sample(z, t, eps), t))^2``, t uniform (Ho et al., 2020, equation 14).

    ``w_t`` is 1 / SNR = (1 - abar_t) / abar_t, between 1 and ``weight_cap``. With equal weights (a cap of 1) the
    noisiest steps, which decide layout and colour, hardly count: a network that ignores the picture is nearly right.

    Args:
        latents: (N, C, h, w), the first stage's times the model's ``scale_factor``.

    Raises:
        UserError: latents far from unit deviation, for which the noise schedule would be wrong.
    """

    def __init__(self, model: LatentDiffusion, latents: np.ndarray, weight_cap: float):
        deviation = float(np.std(latents[:256].astype(np.float32)))
        if not UNIT_DEVIATION[0] < deviation < UNIT_DEVIATION[1]:
            raise UserError(
                f"the latents' deviation is {deviation:.3g}, the schedule expects 1: scale_factor: {1 / deviation:.3g}"
            )
        self.model, self.latents = model, latents
        self.weights = (1 / model.alphas_cumprod - 1).clamp(1, weight_cap)

    def __call__(self, stage: dict, rng: np.random.RandomState) -> Tensor:
        size, device = stage["batch_size"], self.model.device
        chosen = rng.randint(len(self.latents), size=size)
        z = torch.from_numpy(self.latents[chosen].astype(np.float32)).to(device)
        t = torch.from_numpy(rng.randint(self.model.num_timesteps, size=size)).to(device)
        noise = torch.from_numpy(rng.standard_normal(z.shape).astype(np.float32)).to(device)
        noisy = self.model.q_sample(z, t, noise).contiguous(memory_format=torch.channels_last)
        errors = F.mse_loss(self.model.model(noisy, t).float(), noise, reduction="none").mean((1, 2, 3))
        return (self.weights[t] * errors).mean()
