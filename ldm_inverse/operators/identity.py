"""The operator of denoising."""

from collections.abc import Sequence

from torch import Tensor

from ldm_inverse.baselines import denoise
from ldm_inverse.operators.base import OPERATORS, Operator


@OPERATORS.register("noise")
class Identity(Operator):
    """A(x) = x: the measurement is the image and its noise."""

    linear = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        return y

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None) -> Tensor:
        """Return the measurement, denoised by non-local means."""
        return denoise(y, sigma)
