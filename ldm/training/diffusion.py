"""The loss of a latent prior, on latents that are encoded once."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from util.errors import UserError

UNIT_DEVIATION = (0.7, 1.4)


class DiffusionLoss:
    """``|| eps - eps_theta(q_sample(z, t, eps), t) ||^2``, t uniform (Ho et al., 2020, equation 14), as a mean.

    Args:
        latents: (N, C, h, w), the first stage's times the model's ``scale_factor``.

    Raises:
        UserError: latents far from unit deviation, for which the noise schedule would be wrong.
    """

    def __init__(self, model: LatentDiffusion, latents: np.ndarray):
        deviation = float(np.std(latents[:256].astype(np.float32)))
        if not UNIT_DEVIATION[0] < deviation < UNIT_DEVIATION[1]:
            raise UserError(
                f"the latents' deviation is {deviation:.3g}, the schedule expects 1: scale_factor: {1 / deviation:.3g}"
            )
        self.model, self.latents = model, latents

    def __call__(self, stage: dict, rng: np.random.RandomState) -> Tensor:
        size, device = stage["batch_size"], self.model.device
        chosen = rng.randint(len(self.latents), size=size)
        z = torch.from_numpy(self.latents[chosen].astype(np.float32)).to(device)
        t = torch.from_numpy(rng.randint(self.model.num_timesteps, size=size)).to(device)
        noise = torch.from_numpy(rng.standard_normal(z.shape).astype(np.float32)).to(device)
        noisy = self.model.q_sample(z, t, noise).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(self.model.model(noisy, t).float(), noise)
