"""A nonlinear blur that needs no download."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from data.sources import Origin
from ldm_inverse.operators.base import OPERATORS, Operator
from ldm_inverse.operators.blur import KernelSide, MotionBlur
from ldm_inverse.operators.kernels import Kernel
from util.settings import Unit

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
        kernel_is: as for `motion_blur`.

    Raises:
        UserError: a kernel that cannot be read or used.
    """

    state_names = MotionBlur.state_names

    def __init__(
        self,
        kernel_size: KernelSide = 31,
        intensity: Unit = 0.5,
        kernel: Kernel | None = None,
        kernel_is: Literal["correlation", "psf"] = "correlation",
    ) -> None:
        super().__init__()
        self.blur = MotionBlur(kernel_size, intensity, kernel, kernel_is)

    def check_size(self, height: int, width: int) -> None:
        self.blur.check_size(height, width)

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        return self.blur.draw(shape, rng)

    def check_image(self, origin: Origin, height: int, width: int) -> None:
        self.blur.check_image(origin, height, width)

    def draw_for(self, origin: Origin, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        return self.blur.draw_for(origin, shape, rng)

    def given_state(self, state: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
        return self.blur.given_state(state, shape)

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        # 1 + (exp(c) - 1) L = exp(c s), and the kernel's sum is one: the constants drop out.
        light = self.blur((CONTRAST / 2 * (x + 1)).exp(), **state)
        # The transforms' rounding errors could take the light of an impossibly dark scene (x below -6) under zero.
        value = light.clamp_min(1e-3).log() / CONTRAST
        return 2 * (value - F.softplus(value - 1, beta=SHOULDER)) - 1
