"""The noise of measurements."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError
from util.registry import Registry
from util.settings import Flag, number

NOISES = Registry("noise")

RandomSource = torch.Generator | np.random.RandomState
Sigma = Annotated[float, number(0, 1000)] | Literal["estimate"]
Rate = Annotated[float, number(0, 1e6, above_low=True)]


class Noise:
    """Adds noise to a measurement: ``y = noise(A(x), rng, **state)``.

    Args:
        noise_on_dropped: also add it to pixels that a mask drops, as the reference does. No image can explain the noise
            there.
        rng: source of the draws of every call that gives none.

    Attributes:
        sigma: standard deviation in the measurement's units, or None when it depends on the signal or is not known yet.
        is_estimated: whether ``sigma`` is to be estimated from each measurement (`of`).
    """

    sigma: float | None = None
    is_estimated: bool = False

    def __init__(self, noise_on_dropped: Flag = False, rng: RandomSource | None = None) -> None:
        self.noise_on_dropped = noise_on_dropped
        self.rng = rng

    def __call__(self, x: Tensor, rng: RandomSource | None = None, **state: Tensor) -> Tensor:
        """Return the noisy measurement.

        Args:
            x: A(x), any shape.
            rng: source of the draws; None: torch's default stream. As many are made with a mask as without.
            state: what the operator has drawn; only ``mask`` matters, where there is one: 1 keeps a pixel, 0 drops it.
        """
        noisy = self.sample(x, self.rng if rng is None else rng)
        if "mask" not in state or self.noise_on_dropped:
            return noisy
        return torch.where(state["mask"].to(x.device) > 0, noisy, x)

    def sample(self, x: Tensor, rng: RandomSource | None) -> Tensor:
        """Return x with noise on every entry."""
        raise NotImplementedError

    def noisy_share(self, **state: Tensor) -> float:
        """Return the share of a measurement's entries that have noise: less than 1 where a ``mask`` drops some.

        The noise's root mean square over all entries is ``sigma`` times the root of it.
        """
        if "mask" not in state or self.noise_on_dropped:
            return 1.0
        return float((state["mask"] > 0).double().mean())

    def of(self, y: Tensor) -> "Noise":
        """Return the noise of a given measurement (1, C, H, W): this, or one with the level estimated from it."""
        return self

    def residual_norm(self, residual: Tensor, y: Tensor) -> Tensor:
        """Return the size of y - A(x) for each sample, (B,): here, its Euclidean norm."""
        return torch.linalg.vector_norm(residual.flatten(1), dim=1)


@NOISES.register("gaussian")
class Gaussian(Noise):
    """y = x + sigma n with n standard normal.

    Args:
        sigma: standard deviation in units of [-1, 1], from 0 to 1000; "estimate": that of each measurement, which is
            given then and not made.

    Raises:
        UserError: noise is to be added, and its level is to be estimated.
    """

    def __init__(self, sigma: Sigma, noise_on_dropped: Flag = False, rng: RandomSource | None = None) -> None:
        super().__init__(noise_on_dropped, rng)
        self.is_estimated = sigma == "estimate"
        self.sigma = None if sigma == "estimate" else sigma

    def of(self, y: Tensor) -> "Noise":
        return Gaussian(estimated_sigma(y), self.noise_on_dropped) if self.is_estimated else self

    def sample(self, x: Tensor, rng: RandomSource | None) -> Tensor:
        if self.sigma is None:
            raise UserError("sigma: estimate is for measurements that are given (--measurement): give a number")
        if isinstance(rng, np.random.RandomState):
            noise = torch.from_numpy(rng.standard_normal(tuple(x.shape))).to(x.dtype).to(x.device)
        else:
            # By shape, not "like": the layout of x must not change which entry gets which draw.
            device = x.device if rng is None else rng.device
            noise = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=device).to(x.device)
        return x + self.sigma * noise


@NOISES.register("clean")
class Clean(Gaussian):
    """y = x."""

    def __init__(self) -> None:
        super().__init__(sigma=0.0)

    def sample(self, x: Tensor, rng: RandomSource | None) -> Tensor:
        return x


@NOISES.register("poisson")
class Poisson(Noise):
    """Photon counts: with s = clamp((x + 1) / 2, 0, 1), y = clamp(2 Poisson(255 rate s) / (255 rate) - 1, -1, 1).

    Args:
        rate: photons of a grey level, above 0.
    """

    def __init__(self, rate: Rate, noise_on_dropped: Flag = False, rng: RandomSource | None = None) -> None:
        super().__init__(noise_on_dropped, rng)
        self.rate = rate

    def sample(self, x: Tensor, rng: RandomSource | None) -> Tensor:
        photons = 255.0 * self.rate
        mean = ((x.detach() + 1) / 2).clamp(0, 1) * photons
        if isinstance(rng, np.random.RandomState):
            counts = torch.from_numpy(rng.poisson(mean.cpu().double().numpy()))
        else:
            device = x.device if rng is None else rng.device
            counts = torch.poisson(mean.to(device).contiguous(), generator=rng)
        return (counts.to(x.dtype).to(x.device) / photons * 2 - 1).clamp(-1, 1)

    def residual_norm(self, residual: Tensor, y: Tensor) -> Tensor:
        """Return the Euclidean norm divided by |y|, averaged over y's entries: (B,).

        Entries of zero, where the reference divides by zero, count as none.
        """
        weight = torch.where(y == 0, 0, 1 / y.abs()).flatten(1).mean(1)
        return super().residual_norm(residual, y) * weight


def estimated_sigma(y: Tensor) -> float:
    """Estimate the deviation of white noise in a picture (1, C, H, W), in its units: the mean over channels of the
    median of the finest diagonal wavelet coefficients (Donoho and Johnstone 1994), as scikit-image has it.

    Raises:
        UserError: it is no picture.
    """
    from skimage.restoration import estimate_sigma  # slow to import

    if y.ndim != 4 or y.shape[0] != 1 or y.shape[1] not in (1, 3) or min(y.shape[-2:]) < 8:
        raise UserError(f"sigma: estimate needs a picture, and the measurement has shape {tuple(y.shape)}")
    try:
        return float(estimate_sigma(y[0].cpu().numpy(), average_sigmas=True, channel_axis=0))
    except ImportError as error:
        raise UserError("sigma: estimate needs PyWavelets: pip install PyWavelets") from error


def register_noise(name: str) -> Callable:
    """Return a decorator that files a noise under ``name``, for task files to use."""
    return NOISES.register(name)


def get_noise(name: str, **kwargs: Any) -> Noise:
    """Build the noise filed under ``name``.

    Raises:
        UserError: no such name, or a keyword that is unknown, missing or out of range.
    """
    return NOISES.build(name, **kwargs)
