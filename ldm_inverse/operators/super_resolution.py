"""Downscaling by a whole factor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator
from util.checks import whole_number
from util.errors import UserError
from util.resizer import Resizer


@OPERATORS.register("super_resolution")
class SuperResolution(Operator):
    """Bicubic downscaling with antialiasing and mirrored borders, as MATLAB's imresize; (H, W) to ceil(n / scale).

    Args:
        scale_factor: how many times smaller the measurement is, from 1.
        in_shape: the images' (B, 3, H, W), as published task files have it. Only checked against the factor: the size
            follows the image.

    Raises:
        UserError: a value out of range, or a factor above the image's sides.
    """

    linear = True

    def __init__(self, scale_factor: int = 4, in_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.scale_factor = whole_number("scale_factor", scale_factor, 1)
        if in_shape is not None:
            try:
                height, width = (whole_number("in_shape", side, 1) for side in tuple(in_shape)[-2:])
            except (TypeError, ValueError):
                raise UserError(f"in_shape: expected four whole numbers, got {in_shape!r}") from None
            self.check_size(height, width)
        # The resizer of the last size: an optimisation calls the same one thousands of times.
        self._resizer: tuple[tuple, Resizer] | None = None

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.scale_factor:
            raise UserError(
                f"an image of {height} x {width} is too small for scale_factor {self.scale_factor}: "
                f"sides of {self.scale_factor} or more are needed"
            )

    def image_size(self, measured: Sequence[int]) -> tuple[int, int]:
        return measured[-2] * self.scale_factor, measured[-1] * self.scale_factor

    def forward(self, x: Tensor) -> Tensor:
        return self._resize(x.shape[-2:], x).apply(x)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Return A^T y; ``shape`` is the image's, by default the measurement's sides times the factor."""
        size = self.image_size(y.shape) if shape is None else shape[-2:]
        return self._resize(size, y).adjoint(y)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None) -> Tensor:
        """Return the measurement, upscaled by bicubic interpolation."""
        size = (shape[-2], shape[-1])
        return Resizer(tuple(y.shape[-2:]), size, self.scale_factor, y.dtype, y.device).apply(y)

    def _resize(self, size: Sequence[int], like: Tensor) -> Resizer:
        height, width = size
        key = (height, width, like.dtype, like.device)
        if self._resizer is None or self._resizer[0] != key:
            self.check_size(height, width)
            small = (-(-height // self.scale_factor), -(-width // self.scale_factor))
            with torch.no_grad():
                resizer = Resizer((height, width), small, 1 / self.scale_factor, like.dtype, like.device)
            self._resizer = (key, resizer)
        return self._resizer[1]
