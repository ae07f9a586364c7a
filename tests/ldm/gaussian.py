"""A latent diffusion model of Gaussian latents: its noise network is known in closed form, its first stage trivial."""

import numpy as np
import torch
from torch import Tensor, nn

from ldm.models.diffusion.levels import LevelTable
from ldm.modules.diffusionmodules.util import make_beta_schedule


class GaussianLatents(nn.Module):
    """Independent latents z ~ N(mean, variance), seen as images by a first stage that is the identity.

    Its parameters count for nothing (a factor of 1) and ask for gradients, as those of an unfrozen network do.

    Attributes:
        calls: the timesteps of every call of the noise network.
        memory_format: layout of what the noise network returns.
    """

    alphas_cumprod: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor):
        super().__init__()
        abar = torch.from_numpy(make_beta_schedule("linear", 1000, 0.0015, 0.0195)).neg().add(1).cumprod(0)
        self.register_buffer("alphas_cumprod", abar.float())
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.gain = nn.Parameter(torch.ones((), dtype=mean.dtype))
        self.decoder_gain = nn.Parameter(torch.ones((), dtype=mean.dtype))
        self.calls: list[Tensor] = []
        self.memory_format = torch.contiguous_format
        self.cond_stage_model = None

    def marginal(self, abar: float) -> Tensor:
        """Variance of the diffused latent."""
        return abar * self.variance + 1 - abar

    def abar(self, t: Tensor) -> Tensor:
        """The cumulative product at timesteps, which may lie between two."""
        if not t.is_floating_point():
            return self.alphas_cumprod[t]
        table = LevelTable.of(self.alphas_cumprod).log_snr
        return torch.from_numpy(2 * np.interp(t.double(), np.arange(len(table)), table)).sigmoid()

    def apply_model(self, z: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The noise estimate: minus the score times the noise's deviation. A condition is added to it."""
        self.calls.append(t)
        a = self.abar(t).to(z.dtype).reshape(-1, 1, 1, 1)
        estimate = self.gain * (1 - a) ** 0.5 * (z - a**0.5 * self.mean) / (a * self.variance + 1 - a)
        estimate = estimate if cond is None else estimate + cond
        return estimate.contiguous(memory_format=self.memory_format)

    differentiable_apply_model = apply_model

    def encode_mode(self, x: Tensor) -> Tensor:
        return x

    def differentiable_decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        return self.decoder_gain * (z if force_not_quantize else self.quantize(z))

    def quantize(self, z: Tensor) -> Tensor:
        return z

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        return self.differentiable_decode_first_stage(z, force_not_quantize)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return len(self.mean), height, width


def soft_step_of(model, operator_fn):
    """The conditioning method: a step down the gradient of each sample's residual norm."""

    def conditioning(x_t, measurement, noisy_measurement, x_prev, x_0_hat, scale):
        residual = measurement - operator_fn(model.differentiable_decode_first_stage(x_0_hat))
        norm = residual.flatten(1).norm(dim=1)
        return x_t - scale * torch.autograd.grad(norm.sum(), x_prev)[0], norm

    return conditioning


def random_gaussian(shape: tuple[int, ...]) -> GaussianLatents:
    """Return a prior with a mean and a variance that differ from entry to entry, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, dtype=torch.float64, generator=generator)
    return GaussianLatents(mean, 0.05 + torch.rand(shape, dtype=torch.float64, generator=generator))
