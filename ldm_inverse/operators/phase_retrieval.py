"""The magnitude of a Fourier transform."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_inverse.baselines import hybrid_input_output
from ldm_inverse.operators.base import OPERATORS, Operator
from util.settings import number


@OPERATORS.register("phase_retrieval")
class PhaseRetrieval(Operator):
    """A(x) = |F(pad(x))|: the magnitude of the centred, orthonormal Fourier transform, per channel.

    The image is padded with zeros on each side by int(oversample / 8 * 256) pixels, whatever its own size (256 is the
    published one). The measurement is (B, C, H + 2 pad, W + 2 pad), not negative, and not a picture.

    Args:
        oversample: from 0 to 16.
    """

    keeps_units = False

    def __init__(self, oversample: Annotated[float, number(0, 16)] = 2.0) -> None:
        super().__init__()
        self.pad = int(oversample / 8.0 * 256)

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        return measured[-2] - 2 * self.pad, measured[-1] - 2 * self.pad

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        padded = F.pad(x, (self.pad,) * 4)
        # Centring the image as well would only change the phase.
        return torch.fft.fftshift(torch.fft.fft2(padded, norm="ortho").abs(), dim=(-2, -1))

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return what hybrid input-output finds; which of the `equivalents` it is, is left to chance."""
        return hybrid_input_output(y, self.pad)

    def equivalents(self, x: Tensor) -> list[Tensor]:
        """Return x, its negative, and both turned by 180 degrees: all have the same magnitudes."""
        return [sign * image for image in (x, x.flip(-2, -1)) for sign in (1, -1)]

    def picture(self, y: Tensor) -> Tensor:
        """Return the logarithm of the magnitudes: from 0.001, black, to 10, white."""
        return y.clamp(1e-3, 10).log10() / 2 + 0.5
