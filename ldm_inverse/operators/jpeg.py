"""JPEG compression of a picture (ITU-T T.81, JFIF 1.02)."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator
from util.settings import whole

BLOCK = 8
SUBSAMPLING = {444: 1, 420: 2}  # pixels along each side that share a chroma sample

# Annex K.1, tables K.1 and K.2: divisors of the DCT coefficients at quality 50.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
# JFIF: (Y, Cb - 128, Cr - 128) of (R, G, B) in 0 to 255, from the luma weights of ITU-R BT.601.
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587), (1.0, 1.772, 0.0))
# How near to a half a number counts as one. An exact half (common: samples are whole numbers) must not be decided by
# the device's rounding errors; float32's errors in a coefficient are smaller, and luma comes in steps of 0.001.
TIE = 5e-4


@OPERATORS.register("jpeg")
class Jpeg(Operator):
    """A(x): the picture that a baseline JPEG file of x holds, (B, 3, H, W) in [-1, 1] at 8 bits.

    Colour transform, chroma samples that are means of 2x2 pixels, cosine transform of 8x8 blocks, rounding to multiples
    of the tables of Annex K scaled by the quality as the IJG's programs do, and all of that back, chroma interpolated
    linearly.

    A is a step function, whose own gradient is zero. The gradient here is that of `smooth`, the same without any
    rounding or clipping (straight-through: Bengio et al. 2013).

    Args:
        quality: from 5 to 95.
        subsampling: 420, a chroma sample for 2x2 pixels, or 444, one for each.
    """

    colour_only = True

    def __init__(self, quality: Annotated[int, whole(5, 95)] = 10, subsampling: Literal[420, 444] = 420) -> None:
        super().__init__()
        self.quality = quality
        self.step = SUBSAMPLING[subsampling]

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        smooth = self.smooth(x)
        with torch.no_grad():
            correction = self._compress(x) - smooth
        return smooth + correction

    def smooth(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return x with its chroma averaged and interpolated: all that a file without quantisation would change."""
        if self.step == 1:
            return x
        luma, chroma = _transform(x, TO_YCC).split((1, 2), dim=1)
        return _transform(torch.cat([luma, self._upsample(self._downsample(chroma), x)], dim=1), TO_RGB)

    def _compress(self, x: Tensor) -> Tensor:
        """Return what the file of x holds."""
        ycc = _round(_transform(_round(((x + 1) * 127.5).clamp(0, 255)), TO_YCC))
        luma = self._quantise(ycc[:, :1] - 128, LUMINANCE) + 128
        # As libjpeg, halves of a mean of four go down and up by turns, and so do those of an interpolation.
        # It repeats the last column before it averages, and the last row afterwards.
        wide = F.pad(ycc[:, 1:], (0, -x.shape[-1] % (BLOCK * self.step), 0, 0), mode="replicate")
        chroma = _round(self._downsample(wide), half_goes_up=(self.step == 1, True))
        chroma = self._quantise(chroma, CHROMINANCE)[..., : -(-x.shape[-1] // self.step)]
        chroma = _round(self._upsample(chroma, x), half_goes_up=(True, self.step == 1))
        return _round(_transform(torch.cat([luma, chroma], dim=1), TO_RGB)).clamp(0, 255) / 127.5 - 1

    def _quantise(self, samples: Tensor, table: tuple[int, ...]) -> Tensor:
        """Return what is left of 8-bit samples (B, C, h, w), less 128, after rounding to multiples of a table."""
        height, width = samples.shape[-2:]
        cosines = _cosine_matrix().to(samples)
        divisors = samples.new_tensor(quantisation_table(table, self.quality)).view(BLOCK, BLOCK)
        blocks = _pad(samples, BLOCK).unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
        multiples = cosines @ blocks @ cosines.T / divisors
        multiples = multiples.sign() * _round(multiples.abs())  # a half goes away from zero
        blocks = cosines.T @ (multiples * divisors) @ cosines
        joined = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]
        return _round(joined).clamp(-128, 127)

    def _downsample(self, chroma: Tensor) -> Tensor:
        return chroma if self.step == 1 else F.avg_pool2d(_pad(chroma, self.step), self.step)

    def _upsample(self, chroma: Tensor, like: Tensor) -> Tensor:
        if self.step == 1:
            return chroma
        full = F.interpolate(chroma, scale_factor=self.step, mode="bilinear", align_corners=False)
        return full[..., : like.shape[-2], : like.shape[-1]]


def quantisation_table(table: tuple[int, ...], quality: int) -> list[int]:
    """Return the divisors for a quality from 1 to 100: those of Annex K at 50, as the IJG's programs scale them."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [min(max((entry * percent + 50) // 100, 1), 255) for entry in table]


def _cosine_matrix() -> Tensor:
    """Return the orthonormal matrix (8, 8), float64, that takes 8 samples to their cosine coefficients."""
    position = torch.arange(BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / BLOCK * position[:, None] * (position + 0.5)) * (2 / BLOCK) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def _transform(picture: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Apply a matrix (3, 3) to the channels of each pixel of (B, 3, H, W)."""
    return (picture.new_tensor(matrix) @ picture.flatten(2)).unflatten(2, picture.shape[2:])


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples."""
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple), mode="replicate")


def _round(x: Tensor, half_goes_up: tuple[bool, bool] = (True, True)) -> Tensor:
    """Round to the nearest whole number, a half as said for (even, odd) columns."""
    offset = x.new_tensor([0.5 + TIE if up else 0.5 - TIE for up in half_goes_up])
    return (x + offset.repeat(-(-x.shape[-1] // 2))[: x.shape[-1]]).floor()
