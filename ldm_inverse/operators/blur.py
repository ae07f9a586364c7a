"""Linear blurs: a known kernel, the same for every pixel, with reflected borders."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ldm_inverse.baselines import wiener
from ldm_inverse.operators.base import OPERATORS, Operator, linear_map
from ldm_inverse.operators.convolution import ReflectedCorrelation, too_small
from util.array_files import read_numbers
from util.checks import odd_number, real_number
from util.errors import UserError
from util.motion_blur import motion_blur_kernel

MAX_KERNEL_SIZE = 1023


class Blur(Operator):
    """Cross-correlation of each channel with a kernel, the image reflected at its borders (edge not repeated).

    Args:
        kernel: (kh, kw) with odd sides, rounded to float32 as the reference's; None when `draw` makes it.
    """

    linear = True

    def __init__(self, kernel: np.ndarray | None = None) -> None:
        super().__init__()
        self.register_buffer("kernel", None if kernel is None else as_state([kernel]))
        # The map of the last kernel and size: an optimisation calls the same one thousands of times.
        self._map: tuple[tuple, ReflectedCorrelation] | None = None

    def kernel_sides(self) -> tuple[int, int]:
        """Return the kernel's sides (kh, kw)."""
        return tuple(self.kernel.shape[-2:])

    def check_size(self, height: int, width: int) -> None:
        half_sides = [side // 2 for side in self.kernel_sides()]
        if height <= half_sides[0] or width <= half_sides[1]:
            raise too_small((height, width), half_sides)

    def forward(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        correlation = self._correlation(x, kernel)
        return linear_map(x, correlation.apply, correlation.adjoint)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, kernel: Tensor | None = None) -> Tensor:
        correlation = self._correlation(y, kernel)
        return linear_map(y, correlation.adjoint, correlation.apply)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, kernel: Tensor | None = None) -> Tensor:
        return wiener(self, y, sigma, {} if kernel is None else {"kernel": kernel})

    def _correlation(self, x: Tensor, kernel: Tensor | None) -> ReflectedCorrelation:
        kernel = self.kernel if kernel is None else kernel
        if kernel is None:
            raise TypeError("no kernel: pass the state that draw() returned")
        version = None if kernel.is_inference() else kernel._version  # counts changes in place
        key = (version, tuple(x.shape[-2:]), x.dtype, x.device)
        if self._map is None or self._map[0] is not kernel or self._map[1] != key:
            with torch.no_grad():
                self._map = (kernel, key, ReflectedCorrelation(kernel, key[1], x.dtype, x.device))
        return self._map[2]


@OPERATORS.register("gaussian_blur")
class GaussianBlur(Blur):
    """Gaussian blur, truncated at four standard deviations or the kernel's edge.

    Args:
        kernel_size: side of the square kernel in pixels, odd, from 3.
        intensity: standard deviation in pixels, above 0.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, kernel_size: int = 61, intensity: float = 3.0) -> None:
        size = odd_number("kernel_size", kernel_size, 3, MAX_KERNEL_SIZE)
        sigma = real_number("intensity", intensity, 0, MAX_KERNEL_SIZE, above_low=True)
        super().__init__(gaussian_kernel(size, sigma))


@OPERATORS.register("motion_blur")
class MotionBlur(Blur):
    """Blur by a camera in motion: a random kernel for each image, or one given kernel for all.

    State: ``kernel`` (B, 1, kernel_size, kernel_size), float32.

    Args:
        kernel_size: side of the kernels to draw in pixels, odd, from 3.
        intensity: how crooked the camera's path is, from 0 (nearly straight) to 1.
        kernel: a kernel for every image; then nothing is drawn and the other two are not used. An array (kh, kw) with
            odd sides, or the path of a .npy file, a .safetensors file of one array, or a picture (read as grey). It is
            divided by its sum. It is correlated with the image: of a point it makes the kernel turned by 180 degrees.

    Raises:
        UserError: a value out of range, or a kernel that cannot be read or used.
    """

    def __init__(
        self, kernel_size: int = 61, intensity: float = 0.5, kernel: ArrayLike | str | PathLike | None = None
    ) -> None:
        super().__init__(None if kernel is None else given_kernel(kernel))
        self.kernel_size = odd_number("kernel_size", kernel_size, 3, MAX_KERNEL_SIZE)
        self.intensity = real_number("intensity", intensity, 0, 1)

    def kernel_sides(self) -> tuple[int, int]:
        return (self.kernel_size, self.kernel_size) if self.kernel is None else super().kernel_sides()

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        if self.kernel is not None:
            return {}
        kernels = [motion_blur_kernel(self.kernel_size, self.intensity, rng) for _ in range(shape[0])]
        return {"kernel": as_state(kernels)}


def as_state(kernels: Sequence[np.ndarray]) -> Tensor:
    """Stack kernels (kh, kw) to a float32 tensor (B, 1, kh, kw)."""
    return torch.from_numpy(np.stack(kernels).astype(np.float32)[:, None])


def gaussian_kernel(size: int, sigma: float) -> np.ndarray:
    """Return what SciPy's Gaussian filter makes of a unit impulse in a square of ``size``: (size, size), sum one.

    Where four deviations reach beyond the square, the rest is reflected into it.
    """
    from scipy.ndimage import gaussian_filter  # slow to import

    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    return gaussian_filter(impulse, sigma)


def given_kernel(kernel: ArrayLike | str | PathLike) -> np.ndarray:
    """Return a person's kernel, an array or a path, as float64 (kh, kw) of sum one.

    Raises:
        UserError: it cannot be read, or is not a kernel.
    """
    name = "kernel"
    if isinstance(kernel, str | PathLike):
        name = f"kernel {kernel}"
        try:
            kernel = read_numbers(Path(kernel))
        except UserError as error:
            raise UserError(f"kernel {error}") from error
    try:
        array = np.asarray(kernel, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: expected an array of numbers") from error
    if array.ndim != 2 or any(side % 2 == 0 or side > MAX_KERNEL_SIZE for side in array.shape):
        raise UserError(f"{name}: expected two odd sides up to {MAX_KERNEL_SIZE}, got an array of shape {array.shape}")
    total = array.sum()
    if not np.isfinite(array).all() or (array < 0).any() or total <= 0:
        raise UserError(f"{name}: expected finite entries, none negative, not all zero")
    # A kernel rounded to float32 sums to one only nearly; dividing would round it a second time.
    return array if abs(total - 1) < 1e-5 else array / total
