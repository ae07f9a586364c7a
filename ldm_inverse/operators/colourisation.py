"""Colourisation: a grey picture is measured."""

from collections.abc import Sequence

from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


@OPERATORS.register("colourisation")
class Colourisation(Operator):
    """A(x) = 0.299 R + 0.587 G + 0.114 B: the grey picture (B, 1, H, W) in [-1, 1]."""

    linear = True
    colour_only = True

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        return (x * _weights(x)).sum(1, keepdim=True)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        return y * _weights(y)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the grey picture, as a picture without colour."""
        return y.expand(tuple(shape))


def _weights(like: Tensor) -> Tensor:
    return like.new_tensor(LUMA).view(1, 3, 1, 1)
