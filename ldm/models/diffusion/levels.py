"""Noise levels between and beyond a model's timesteps, by time and by log-SNR."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

Spacing = Literal["log_snr", "time", "quadratic"]


@dataclass(frozen=True)
class Level:
    """A noise level: the latent is ``alpha z0 + sigma noise``, with ``alpha^2 + sigma^2 = 1``.

    Attributes:
        timestep: what the network is told, 0 to T - 1, whole or between two.
        alpha, sigma: square roots of ``abar`` and ``1 - abar``.
    """

    timestep: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """``lambda = log(alpha / sigma)``, half the logarithm of the signal-to-noise ratio (Lu et al., 2022)."""
        return math.log(self.alpha / self.sigma)


CLEAN = Level(0.0, 1.0, 0.0)  # where ancestral sampling ends


@dataclass(frozen=True)
class LevelTable:
    """The levels of a model's timesteps; lambda is interpolated linearly between them.

    Attributes:
        log_snr: lambda of each timestep, falling, (T,).
    """

    log_snr: np.ndarray

    @classmethod
    def of(cls, alphas_cumprod: Tensor) -> "LevelTable":
        """The table of a model with ``alphas_cumprod`` (T,), in float64."""
        abar = np.asarray(alphas_cumprod.cpu(), dtype=np.float64)
        return cls(0.5 * np.log(abar / (1 - abar)))

    def at(self, timestep: float) -> Level:
        """The level of a timestep from 0 to T - 1."""
        return _level(timestep, np.interp(timestep, np.arange(len(self.log_snr)), self.log_snr))

    def at_log_snr(self, log_snr: float) -> Level:
        """The level of a lambda between those of timesteps T - 1 and 0."""
        return _level(np.interp(-log_snr, -self.log_snr, np.arange(len(self.log_snr))), log_snr)

    def spaced(self, steps: int, spacing: Spacing) -> list[Level]:
        """``steps + 1`` levels from timestep T - 1 down to 0: even in lambda, in time, or in time's square root."""
        if spacing == "log_snr":
            return [self.at_log_snr(value) for value in np.linspace(self.log_snr[-1], self.log_snr[0], steps + 1)]
        last = len(self.log_snr) - 1
        power = 2 if spacing == "quadratic" else 1
        return [self.at(time) for time in np.linspace(last ** (1 / power), 0, steps + 1) ** power]

    def descending(self, timesteps: np.ndarray) -> list[Level]:
        """The levels of ascending whole timesteps (S,), the noisiest first."""
        return [self.at(timestep) for timestep in timesteps[::-1]]


def _level(timestep: float, log_snr: float) -> Level:
    return Level(float(timestep), (1 + math.exp(-2 * log_snr)) ** -0.5, (1 + math.exp(2 * log_snr)) ** -0.5)


def transfer(z: Tensor, noise_estimate: Tensor, now: Level, then: Level) -> Tensor:
    """The latent z at level ``now`` taken to ``then`` along a noise estimate: DDIM without noise (Song et al. 2021)."""
    return then.alpha * (z - now.sigma * noise_estimate) / now.alpha + then.sigma * noise_estimate


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """``weights[0] values[0] + weights[1] values[1] + ...``, of as many tensors as there are weights."""
    first, *others = (weight * value for weight, value in zip(weights, values, strict=True))
    return sum(others, start=first)
