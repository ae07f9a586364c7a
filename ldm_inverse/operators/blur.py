"""Linear blurs: a known kernel, the same for every pixel."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from data.sources import Origin
from ldm_inverse.baselines import wiener
from ldm_inverse.operators.base import OPERATORS, Latest, Operator, linear_map, needed, of_image
from ldm_inverse.operators.convolution import Boundary, Correlation, check_fit
from ldm_inverse.operators.kernels import (
    MAX_KERNEL_SIZE,
    Kernel,
    as_state,
    gaussian_kernel,
    given_kernel,
    kernel_folder,
    prepared,
    trimmed,
)
from ldm_inverse.operators.motion_kernels import motion_blur_kernel
from util.errors import UserError
from util.logging import SayOnce
from util.settings import Unit, number, whole

KernelSide = Annotated[int, whole(3, MAX_KERNEL_SIZE, odd=True)]


class Blur(Operator):
    """Cross-correlation of each channel with a kernel.

    Args:
        kernel: (kh, kw) with odd sides, rounded to float32 as the reference's; None when `draw` makes it.
        boundary: the values outside the image's borders. reflect, its mirror image (edge not repeated); circular, its
            own copies; zero, mid-grey; valid, unknown: only places where the kernel stays inside the image are
            measured, so the measurement is smaller than the image.
    """

    linear = True
    state_names = ("kernel",)
    kernel: Tensor | None

    def __init__(self, kernel: np.ndarray | None = None, boundary: Boundary = "reflect") -> None:
        super().__init__()
        if kernel is not None and boundary == "valid":
            kernel = trimmed(kernel)  # so that no more is unknown than need be
        self.register_buffer("kernel", None if kernel is None else as_state([kernel]))
        self.boundary = boundary
        self.unknown_border = boundary == "valid"
        self._map: Latest[Correlation] = Latest()

    def kernel_sides(self, **state: Tensor) -> tuple[int, int]:
        """Return the sides (kh, kw) of the kernel: that of a state, or the operator's own."""
        kernel = self._kernel(state)
        return kernel.shape[-2], kernel.shape[-1]

    def check_size(self, height: int, width: int) -> None:
        check_fit((height, width), self.kernel_sides(), self.boundary)

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        rows, columns = self._border(state)
        return measured[-2] + 2 * rows, measured[-1] + 2 * columns

    def inside(self, x: Tensor, **state: Tensor) -> Tensor:
        rows, columns = self._border(state)
        return x[..., rows : x.shape[-2] - rows, columns : x.shape[-1] - columns]

    def unmeasured(self, shape: Sequence[int], **state: Tensor) -> Tensor | None:
        """Return 1 less the sum of the weights with which each pixel enters the measurement."""
        if not self.unknown_border:
            return None
        (height, width), (rows, columns) = shape[-2:], self._border(state)
        ones = torch.ones(1, 1, height - 2 * rows, width - 2 * columns)
        like = next(iter(state.values()), self.kernel)
        weight = self.transpose(ones.to(like), shape=None, **state)
        return 1 - weight.clamp(0, 1)

    def _border(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return how many pixels at each border have no measurement: (rows, columns)."""
        height, width = self.kernel_sides(**state) if self.unknown_border else (0, 0)
        return height // 2, width // 2

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        correlation = self._correlation((x.shape[-2], x.shape[-1]), x, state)
        return linear_map(x, correlation.apply, correlation.adjoint)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        correlation = self._correlation(self.image_size(y.shape, **state), y, state)
        return linear_map(y, correlation.adjoint, correlation.apply)

    def proximal(self, y: Tensor, x0: Tensor, weight: float, **state: Tensor) -> Tensor | None:
        """Divide in Fourier space where the boundary is circular: a blurred point transforms to A's eigenvalues."""
        if self.boundary != "circular":
            return None
        point = x0.new_zeros(len(x0), 1, *x0.shape[-2:])
        point[..., 0, 0] = 1
        response = torch.fft.rfft2(self.forward(point, **state))
        explained = response.conj() * torch.fft.rfft2(y) + weight * torch.fft.rfft2(x0)
        return torch.fft.irfft2(explained / (response.abs().square() + weight), s=x0.shape[-2:])

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the Wiener estimate of each image."""
        return torch.cat([self._wiener(y[i : i + 1], shape, sigma, of_image(state, i)) for i in range(len(y))])

    def _wiener(self, y: Tensor, shape: Sequence[int], sigma: float | None, state: dict[str, Tensor]) -> Tensor:
        apply, adjoint = partial(self.forward, **state), partial(self.transpose, shape=None, **state)
        return wiener(apply, adjoint, y, sigma, shape[-2:], keeps_constants=self.boundary != "zero")

    def _kernel(self, state: Mapping[str, Tensor]) -> Tensor:
        own = {} if self.kernel is None else {"kernel": self.kernel}
        return needed({**own, **state}, "kernel")

    def _correlation(self, size: tuple[int, int], like: Tensor, state: Mapping[str, Tensor]) -> Correlation:
        kernel = self._kernel(state)
        version = None if kernel.is_inference() else kernel._version  # counts changes in place
        return self._map.get(
            (kernel, version, size, like.dtype, like.device),
            lambda: Correlation(kernel, size, self.boundary, like.dtype, like.device),
        )


@OPERATORS.register("gaussian_blur")
class GaussianBlur(Blur):
    """Gaussian blur, truncated at four standard deviations or the kernel's edge.

    Args:
        kernel_size: side of the square kernel in pixels, odd, from 3.
        intensity: standard deviation in pixels, above 0.
        boundary: as for `Blur`.
    """

    def __init__(
        self,
        kernel_size: KernelSide = 61,
        intensity: Annotated[float, number(0, MAX_KERNEL_SIZE, above_low=True)] = 3.0,
        boundary: Boundary = "reflect",
    ) -> None:
        super().__init__(gaussian_kernel(kernel_size, intensity), boundary)


@OPERATORS.register("motion_blur")
class MotionBlur(Blur):
    """Blur by a camera in motion, a random kernel for each image; or by a given kernel.

    State: ``kernel`` (B, 1, kh, kw), float32, where it is drawn or there is one for each picture.

    Args:
        kernel_size: side of the kernels to draw in pixels, odd, from 3.
        intensity: how crooked the camera's path is, from 0 (nearly straight) to 1.
        kernel: a kernel for every image, or one for each; then nothing is drawn and the other two are not used. It is
            an array (kh, kw), a file (`data.array_choice.read_array`; a picture is read as grey), or a folder with a
            file for each picture by its name; and it is divided by its sum.
        kernel_is: correlation, it is correlated with the image; psf, it is the picture of a point, and is turned by 180
            degrees first.
        boundary: as for `Blur`.

    Raises:
        UserError: a kernel that cannot be read or used.
    """

    def __init__(
        self,
        kernel_size: KernelSide = 61,
        intensity: Unit = 0.5,
        kernel: Kernel | None = None,
        kernel_is: Literal["correlation", "psf"] = "correlation",
        boundary: Boundary = "reflect",
    ) -> None:
        say, self._is_psf = SayOnce(), kernel_is == "psf"
        is_folder = isinstance(kernel, str | PathLike) and os.path.isdir(kernel)
        common = None if kernel is None or is_folder else given_kernel(kernel, self._is_psf, say)
        super().__init__(common, boundary)
        self.kernel_size, self.intensity, self._say = kernel_size, intensity, say
        self._folder = kernel if is_folder else None
        self._kernels = kernel_folder(Path(str(kernel)), self._is_psf, say) if is_folder else {}

    def kernel_sides(self, **state: Tensor) -> tuple[int, int]:
        if state or self.kernel is not None:
            return super().kernel_sides(**state)
        for kernel in self._kernels.values():  # of one size
            return kernel.shape[-2], kernel.shape[-1]
        return self.kernel_size, self.kernel_size

    def check_image(self, origin: Origin, height: int, width: int) -> None:
        self.check_size(height, width)
        if self._kernels:
            self._kernel_of(origin)

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        if self.kernel is not None:
            return {}
        if self._kernels:
            raise UserError(
                f"kernel {self._folder}: the folder has a kernel for each picture, and this one has no name"
            )
        kernels = [motion_blur_kernel(self.kernel_size, self.intensity, rng) for _ in range(shape[0])]
        return {"kernel": as_state(kernels)}

    def draw_for(self, origin: Origin, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        return {"kernel": self._kernel_of(origin)} if self._kernels else self.draw(shape, rng)

    def _kernel_of(self, origin: Origin) -> Tensor:
        if origin.name not in self._kernels:
            raise UserError(
                f"kernel {self._folder}: no kernel for {origin.name!r}: there are {', '.join(self._kernels)}"
            )
        return self._kernels[origin.name]

    def given_state(self, state: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
        if "kernel" not in state:
            return dict(state)
        kernel = prepared("kernel", state["kernel"].cpu().numpy(), self._is_psf, self._say)
        return {**state, "kernel": as_state([trimmed(kernel) if self.unknown_border else kernel])}
