"""Noise schedules, DDIM step selection and the timestep embedding."""

import math

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError
from util.logging import LOGGER

BETA_SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")
TIMESTEP_METHODS = ("uniform", "quad")


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> np.ndarray:
    """Betas of the forward process, float64 of shape (n_timestep,), each in [0, 1).

    ``linear`` squares an even grid between the square roots of the two ends (the CompVis convention), ``cosine`` is
    Nichol and Dhariwal (2021), ``sqrt_linear`` an even grid, ``sqrt`` the square root of an even grid.
    """
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep, dtype=np.float64) ** 2
    if schedule == "cosine":
        grid = np.arange(n_timestep + 1, dtype=np.float64) / n_timestep + cosine_s
        alpha_bar = np.cos(grid / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64) ** 0.5
    raise UserError(f"unknown beta_schedule {schedule!r}: one of {', '.join(BETA_SCHEDULES)}")


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = False
) -> np.ndarray:
    """The S = ``num_ddim_timesteps`` timesteps of a DDIM run, ascending, each in [0, T), T = ``num_ddpm_timesteps``.

    ``uniform`` is ``1 + floor(k T / S)`` (for S = T: ``k``), which is the published grid wherever S divides T and gives
    exactly S valid steps everywhere else. ``quad`` is ``int(linspace(0, sqrt(0.8 T), S)^2) + 1``.
    """
    steps, total = int(num_ddim_timesteps), int(num_ddpm_timesteps)
    if not 1 <= steps <= total:
        raise UserError(f"ddim_steps is {steps}: must be from 1 to {total}")
    if ddim_discr_method == "uniform":
        timesteps = np.arange(steps) * total // steps + (steps < total)
    elif ddim_discr_method == "quad":
        timesteps = (np.linspace(0, math.sqrt(0.8 * total), steps) ** 2).astype(int) + 1
    else:
        raise UserError(f"unknown DDIM discretisation {ddim_discr_method!r}: one of {', '.join(TIMESTEP_METHODS)}")
    if verbose:
        LOGGER.info("DDIM timesteps: %s", timesteps)
    return timesteps


def make_ddim_sampling_parameters(
    alphacums: Tensor | np.ndarray, ddim_timesteps: np.ndarray, eta: float, verbose: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(sigmas, alphas, alphas_prev)`` of a DDIM run, float64 of shape (S,); Song et al. (2021), equation 16.

    ``alphas[k]`` is the cumulative product at timestep k, ``alphas_prev[k] = alphas[k - 1]``, and
    ``alphas_prev[0]`` the cumulative product at timestep 0.
    """
    alpha_bar = np.asarray(alphacums.cpu() if torch.is_tensor(alphacums) else alphacums, dtype=np.float64)
    alphas = alpha_bar[ddim_timesteps]
    alphas_prev = np.concatenate([alpha_bar[:1], alphas[:-1]])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    if verbose:
        LOGGER.info("DDIM alphas: %s; alphas_prev: %s; sigmas for eta = %s: %s", alphas, alphas_prev, eta, sigmas)
    return sigmas, alphas, alphas_prev


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000, shift: float = 0) -> Tensor:
    """Sinusoidal embedding ``[cos, sin](t exp(-ln(max_period) k / (half - shift)))`` of timesteps (B,): (B, dim).

    An odd ``dim`` gets a last column of zeros. float32 whatever the model's dtype, as in training.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    args = timesteps[:, None].float() * torch.exp(-math.log(max_period) * steps / (half - shift))
    embedding = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """``a[t]`` for timesteps t (B,), shaped (B, 1, ..., 1) to broadcast against a tensor of shape ``x_shape``."""
    return a.gather(-1, t).reshape(-1, *(1,) * (len(x_shape) - 1))


class GroupNorm(torch.nn.GroupNorm):
    """GroupNorm whose statistics are never taken in half precision.

    Half precision loses digits in the sums, and torch's backward pass on a CPU is several times slower in it.
    """

    def __init__(self, channels: int, eps: float = 1e-5, groups: int = 32):
        super().__init__(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def zero_module(module: torch.nn.Module) -> torch.nn.Module:
    """Set every parameter to zero, so that a residual branch starts as the identity."""
    for p in module.parameters():
        torch.nn.init.zeros_(p)
    return module
