"""Blurring with reflected borders, by Fourier transforms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from util.errors import UserError


class ReflectedCorrelation:
    """The linear map ``y[i] = sum_j kernel[j] x[i + j]``, per channel, x reflected at its borders (edge not repeated).

    Computed as a product of Fourier transforms. The period is at least image plus kernel, so nothing wraps around: the
    result is that of the dense correlation to rounding. Zeros around the kernel's support are cropped first (a 61x61
    Gaussian of deviation 3 is 25x25). From 9x9 up this was faster on CPUs than dense, separable and matrix-product
    forms of the same map, and about even with them below.

    Args:
        kernel: (1 or B, 1, kh, kw) with odd sides, real.
        size: the image's (H, W).
        dtype: of the images to come; half types are computed in float32.
        device: of the images to come.

    Raises:
        UserError: the kernel reaches further than the image is large.
    """

    def __init__(self, kernel: Tensor, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        half_sides = [side // 2 for side in kernel.shape[-2:]]
        if any(n <= half for n, half in zip(size, half_sides, strict=True)):
            raise too_small(size, half_sides)
        self.size = size
        self.dtype = torch.promote_types(dtype, torch.float32)
        rows, top, bottom = _support(kernel, -2)
        columns, left, right = _support(kernel, -1)
        self.padding = (left, right, top, bottom)
        self.period = (_fast_length(size[0] + top + bottom), _fast_length(size[1] + left + right))
        kernel = kernel[..., rows, columns].to(device, self.dtype)
        self._forward = torch.fft.rfft2(kernel, s=self.period).conj().resolve_conj()  # conjugate: not flipped
        self._adjoint = self._forward.conj().resolve_conj()

    def apply(self, x: Tensor) -> Tensor:
        """Correlate x (B, C, H, W)."""
        padded = F.pad(x.to(self.dtype), self.padding, mode="reflect")
        return self._multiply(padded, self._forward, self.size).to(x.dtype).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to y (B, C, H, W): convolve, then add what lies beyond the borders to what it reflects."""
        left, right, top, bottom = self.padding
        full = (self.size[0] + top + bottom, self.size[1] + left + right)
        padded = self._multiply(y.to(self.dtype), self._adjoint, full)
        return _fold(_fold(padded, top, bottom, -2), left, right, -1).to(y.dtype)

    def _multiply(self, x: Tensor, transfer: Tensor, size: tuple[int, int]) -> Tensor:
        product = torch.fft.rfft2(x, s=self.period).mul_(transfer)
        return torch.fft.irfft2(product, s=self.period)[..., : size[0], : size[1]]


def too_small(size: tuple[int, int], half_sides: list[int]) -> UserError:
    """Return the error for an image that a kernel of these half sides reaches beyond."""
    need = " x ".join(str(half + 1) for half in half_sides)
    have = " x ".join(str(2 * half + 1) for half in half_sides)
    return UserError(f"an image of {size[0]} x {size[1]} is too small for a kernel of {have}: {need} or more is needed")


def _support(kernel: Tensor, dim: int) -> tuple[slice, int, int]:
    """Return the part of a side that holds the nonzero entries and the centre, and its reach before and after it."""
    centre = kernel.shape[dim] // 2
    used = (kernel != 0).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()
    first, last = min([centre, *used]), max([centre, *used])
    return slice(first, last + 1), centre - first, last - centre


def _fast_length(n: int) -> int:
    """Return the next multiple of 4 without a prime factor above 5: other lengths can take three times as long."""
    n += -n % 4
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 4


def _fold(padded: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Apply the adjoint of reflection padding along one dimension."""
    n = padded.shape[dim] - before - after
    x = padded.narrow(dim, before, n).clone()
    x.narrow(dim, 1, before).add_(padded.narrow(dim, 0, before).flip(dim))
    x.narrow(dim, n - 1 - after, after).add_(padded.narrow(dim, before + n, after).flip(dim))
    return x
