"""A nonlinear blur that needs no download."""

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator
from ldm_inverse.operators.blur import MotionBlur

# The light of a pixel of value s in [0, 1] is (exp(CONTRAST s) - 1) / (exp(CONTRAST) - 1): a logarithmic camera
# response, which gives the pixel value 1/2 the same light, 0.218, as a display gamma of 2.2.
CONTRAST = 2 * math.log(1 / 0.218 - 1)
SHOULDER = 20.0


@OPERATORS.register("camera_blur")
class CameraBlur(Operator):
    r"""Motion blur in linear light, seen through a camera's response that saturates.

    With the pixel value s = (x + 1) / 2, its light L(s) = (exp(c s) - 1) / (exp(c) - 1) and a motion kernel k::

        y = 2 h(L^-1(k * L(s))) - 1,    h(v) = v - softplus(v - 1)

    Light adds up, pixel values do not: bright spots leave brighter trails than a blur of pixel values would. h is a
    soft shoulder (softplus of sharpness 20): v far below 1 stays as it is, and nothing exceeds 1. y is smooth in x on
    all of R.

    State: ``kernel``, as for `motion_blur`.

    Args:
        kernel_size: as for `motion_blur`.
        intensity: as for `motion_blur`.
        kernel: as for `motion_blur`.

    Raises:
        UserError: a value out of range, or a kernel that cannot be read or used.
    """

    def __init__(
        self, kernel_size: int = 31, intensity: float = 0.5, kernel: ArrayLike | str | PathLike | None = None
    ) -> None:
        super().__init__()
        self.blur = MotionBlur(kernel_size, intensity, kernel)

    def check_size(self, height: int, width: int) -> None:
        self.blur.check_size(height, width)

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        return self.blur.draw(shape, rng)

    def forward(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        # 1 + (exp(c) - 1) L = exp(c s), and the kernel's sum is one: the constants drop out.
        light = self.blur((CONTRAST / 2 * (x + 1)).exp(), kernel)
        # The transforms' rounding errors could take the light of an impossibly dark scene (x below -6) under zero.
        value = light.clamp_min(1e-3).log() / CONTRAST
        return 2 * (value - F.softplus(value - 1, beta=SHOULDER)) - 1
