"""The operator of denoising."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ldm_inverse.baselines import denoise, total_variation
from ldm_inverse.operators.base import OPERATORS, Operator

BASELINES = {"non_local_means": denoise, "total_variation": total_variation}


@OPERATORS.register("noise")
class Identity(Operator):
    """A(x) = x: the measurement is the image and its noise.

    Args:
        baseline: how the measurement is denoised without a model.
    """

    linear = True

    def __init__(self, baseline: Literal["non_local_means", "total_variation"] = "non_local_means") -> None:
        super().__init__()
        self._denoise = BASELINES[baseline]

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        return y

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the measurement, denoised by non-local means or by total variation."""
        return self._denoise(y, sigma)
