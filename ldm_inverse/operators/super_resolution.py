"""Downscaling by a whole factor."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator
from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Latest, Operator
from ldm_inverse.operators.blur import Blur
from ldm_inverse.operators.kernels import Kernel, given_kernel
from ldm_inverse.operators.resizer import Downsampling, Resizer
from util.errors import UserError
from util.logging import SayOnce
from util.settings import Count, Whole

Phase = Annotated[
    tuple[Whole, Whole], BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value)
]


@OPERATORS.register("super_resolution")
class SuperResolution(Operator):
    """Downscaling by a whole factor s, (H, W) to ceil(n / s); by default bicubic, as MATLAB's ``imresize(x, 1 / s)``.

    With a given kernel k, A(x) is (k * x)[p::s, q::s]: a blur with reflected borders, and then every s-th pixel.

    Args:
        scale_factor: s, from 1.
        in_shape: the images' (B, C, H, W), as published task files have it. Only checked against the factor: the size
            follows the image.
        downsampling: bicubic; or area, nearest or lanczos, which are Pillow's BOX, NEAREST and LANCZOS. Where s divides
            the sides, area is torch's ``interpolate(mode="area")``, the mean of s x s pixels.
        kernel: k, as for `motion_blur`, but no folder; takes the place of ``downsampling``.
        kernel_is: as for `motion_blur`.
        phase: (p, q), or one number for both, below s: the first pixel that is kept.

    Raises:
        UserError: the factor is above the image's sides, the phase is not below it, or the kernel cannot be used.
    """

    linear = True

    def __init__(
        self,
        scale_factor: Count = 4,
        in_shape: tuple[Count, Count, Count, Count] | None = None,
        downsampling: Downsampling = "bicubic",
        kernel: Kernel | None = None,
        kernel_is: Literal["correlation", "psf"] = "correlation",
        phase: Phase = (0, 0),
    ) -> None:
        super().__init__()
        self.scale_factor, self.downsampling, self.phase = scale_factor, downsampling, phase
        if kernel is not None and downsampling != "bicubic":
            raise UserError(f"a kernel replaces downsampling={downsampling}: give only one of them")
        if max(phase) >= scale_factor:
            raise UserError(f"phase: expected numbers below scale_factor ({scale_factor}), got {list(phase)}")
        if max(phase) > 0 and kernel is None:
            raise UserError("phase needs a kernel of your own: give kernel too")
        self.blur = None if kernel is None else Blur(given_kernel(kernel, kernel_is == "psf", SayOnce()))
        if in_shape is not None:
            self.check_size(*in_shape[-2:])
        self._resizer: Latest[Resizer] = Latest()

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.scale_factor:
            raise UserError(
                f"an image of {height} x {width} is too small for scale_factor {self.scale_factor}: "
                f"its sides must be {self.scale_factor} or more"
            )
        if self.blur is not None:
            self.blur.check_size(height, width)

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        return measured[-2] * self.scale_factor, measured[-1] * self.scale_factor

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        if self.blur is not None:
            return self._kept(self.blur(x)).contiguous()
        return self._resize((x.shape[-2], x.shape[-1]), x).apply(x)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        """Return A^T y; ``shape`` is the image's, by default the measurement's sides times the factor."""
        size = self.image_size(y.shape) if shape is None else (shape[-2], shape[-1])
        if self.blur is None:
            return self._resize(size, y).adjoint(y)
        spread = y.new_zeros((*y.shape[:2], *size))
        self._kept(spread).copy_(y)
        return self.blur.transpose(spread)

    def _kept(self, x: Tensor) -> Tensor:
        """Return every s-th pixel, as a view."""
        return x[..., self.phase[0] :: self.scale_factor, self.phase[1] :: self.scale_factor]

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the measurement, upscaled by bicubic interpolation; with a given kernel, the Wiener estimate."""
        if self.blur is not None:
            return super().baseline(y, shape, sigma, **state)
        size = (shape[-2], shape[-1])
        return Resizer((y.shape[-2], y.shape[-1]), size, self.scale_factor, y.dtype, y.device).apply(y)

    def _resize(self, size: tuple[int, int], like: Tensor) -> Resizer:
        self.check_size(*size)
        small = (-(-size[0] // self.scale_factor), -(-size[1] // self.scale_factor))
        return self._resizer.get(
            (size, like.dtype, like.device),
            lambda: Resizer(size, small, 1 / self.scale_factor, like.dtype, like.device, self.downsampling),
        )
