"""High dynamic range: bright and dark parts are cut off."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator
from util.settings import number


@OPERATORS.register("high_dynamic_range")
class HighDynamicRange(Operator):
    """A(x) = clamp(scale x, -1, 1): a picture with more contrast than its range can hold.

    Where a pixel is cut off the gradient is zero, and the measurement only says on which side of 1 / scale it was.

    Args:
        scale: how many times more contrast, from 1 to 100.
    """

    def __init__(self, scale: Annotated[float, number(1, 100)] = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        return (self.scale * x).clamp(-1, 1)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the measurement with the contrast taken back; what was cut off stays flat."""
        return y / self.scale
