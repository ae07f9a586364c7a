"""Blurring by Fourier transforms, for every kind of border."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from util.errors import UserError

Boundary = Literal["reflect", "circular", "valid", "zero"]


class Correlation:
    """The linear map ``y[i] = sum_j kernel[j] x[i + j]``, per channel, j from the kernel's centre.

    Outside its borders x is what ``boundary`` says: reflect, mirrored (edge not repeated); circular, repeated; zero; or
    valid, not defined, and then y has only the entries for which the kernel lies within the image.

    Computed as a product of Fourier transforms. The period is at least image plus kernel, so nothing wraps around: the
    result is that of the dense correlation to rounding. Zeros around the kernel's support are cropped first (a 61x61
    Gaussian of deviation 3 is 25x25). From 9x9 up this was faster on CPUs than dense, separable and matrix-product
    forms of the same map, and about even with them below.

    Args:
        kernel: (1 or B, 1, kh, kw) with odd sides, real.
        size: the image's (H, W).
        boundary: as said.
        dtype: of the images to come; half types are computed in float32.
        device: of the images to come.

    Raises:
        UserError: the kernel reaches further than the image is large.
    """

    def __init__(
        self, kernel: Tensor, size: tuple[int, int], boundary: Boundary, dtype: torch.dtype, device: torch.device
    ) -> None:
        sides = (kernel.shape[-2], kernel.shape[-1])
        check_fit(size, sides, boundary)
        self.boundary = boundary
        self.dtype = torch.promote_types(dtype, torch.float32)
        rows, top, bottom = _support(kernel, -2)
        columns, left, right = _support(kernel, -1)
        # What the support reaches beyond an entry of y, less, where the border is unknown, what is not measured.
        hidden = [side // 2 if boundary == "valid" else 0 for side in sides]
        self.padding = (left - hidden[1], right - hidden[1], top - hidden[0], bottom - hidden[0])
        self.size = (size[0] - 2 * hidden[0], size[1] - 2 * hidden[1])
        self.padded = (self.size[0] + top + bottom, self.size[1] + left + right)
        self.period = (_fast_length(self.padded[0]), _fast_length(self.padded[1]))
        kernel = kernel[..., rows, columns].to(device, self.dtype)
        self._forward = torch.fft.rfft2(kernel, s=self.period).conj().resolve_conj()  # conjugate: not flipped
        self._adjoint = self._forward.conj().resolve_conj()

    def apply(self, x: Tensor) -> Tensor:
        """Correlate x (B, C, H, W)."""
        mode = self.boundary if self.boundary in ("reflect", "circular") else "constant"
        padded = F.pad(x.to(self.dtype), self.padding, mode=mode)
        return self._multiply(padded, self._forward, self.size).to(x.dtype).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to y (B, C, h, w): convolve, then add what lies beyond the borders to what it copies."""
        left, right, top, bottom = self.padding
        padded = self._multiply(y.to(self.dtype), self._adjoint, self.padded)
        if self.boundary in ("valid", "zero"):
            return F.pad(padded, [-pad for pad in self.padding]).to(y.dtype)
        fold = _fold_mirrored if self.boundary == "reflect" else _fold_repeated
        return fold(fold(padded, top, bottom, -2), left, right, -1).to(y.dtype)

    def _multiply(self, x: Tensor, transfer: Tensor, size: tuple[int, int]) -> Tensor:
        product = torch.fft.rfft2(x, s=self.period).mul_(transfer)
        return torch.fft.irfft2(product, s=self.period)[..., : size[0], : size[1]]


def check_fit(size: tuple[int, int], sides: tuple[int, int], boundary: Boundary) -> None:
    """Check that an image (H, W) can be correlated with a kernel of these sides.

    Raises:
        UserError: the kernel reaches further than the border allows.
    """
    least = [{"reflect": side // 2 + 1, "circular": side // 2, "valid": side, "zero": 1}[boundary] for side in sides]
    if size[0] < least[0] or size[1] < least[1]:
        need = " x ".join(map(str, least))
        have = " x ".join(map(str, sides))
        raise UserError(
            f"an image of {size[0]} x {size[1]} is too small for a kernel of {have}: {need} or more is needed"
        )


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


def _fold_mirrored(padded: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Apply the adjoint of reflection padding along one dimension."""
    n = padded.shape[dim] - before - after
    x = padded.narrow(dim, before, n).clone()
    x.narrow(dim, 1, before).add_(padded.narrow(dim, 0, before).flip(dim))
    x.narrow(dim, n - 1 - after, after).add_(padded.narrow(dim, before + n, after).flip(dim))
    return x


def _fold_repeated(padded: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Apply the adjoint of circular padding along one dimension."""
    n = padded.shape[dim] - before - after
    x = padded.narrow(dim, before, n).clone()
    x.narrow(dim, n - before, before).add_(padded.narrow(dim, 0, before))
    x.narrow(dim, 0, after).add_(padded.narrow(dim, before + n, after))
    return x
