"""Pixels that are not there."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_inverse.baselines import interpolate
from ldm_inverse.operators.base import OPERATORS, Operator
from util.errors import UserError
from util.img_utils import MASK_TYPES, mask_generator


@OPERATORS.register("inpainting")
class Inpainting(Operator):
    """A(x) = mask * x: the mask is 1 where a pixel is kept and 0 where it is dropped.

    State: ``mask`` (B or 1, 1, H, W). The options are those of `util.img_utils.mask_generator`; without ``mask_type``
    nothing can be drawn, and a mask has to be given.

    Raises:
        UserError: an option out of range.
    """

    linear = True

    def __init__(
        self,
        mask_type: str | None = None,
        mask_len_range: Sequence[int] | None = None,
        mask_prob_range: Sequence[float] | None = None,
        image_size: int | None = None,
        margin: Sequence[int] = (16, 16),
    ) -> None:
        super().__init__()
        options = (mask_len_range, mask_prob_range, image_size, margin)
        self.masks = None if mask_type is None else mask_generator(mask_type, *options)

    def check_size(self, height: int, width: int) -> None:
        if self.masks is not None:
            self.masks.check_size(height, width)

    def check_draw(self) -> None:
        if self.masks is None:
            raise UserError(f"inpainting has no mask_type to draw masks of: known: {', '.join(sorted(MASK_TYPES))}")

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        self.check_draw()
        masks = [self.masks.draw(shape[-2], shape[-1], rng) for _ in range(shape[0])]
        return {"mask": torch.from_numpy(np.stack(masks))[:, None]}

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.to(x)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, *, mask: Tensor) -> Tensor:
        return y * mask.to(y)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, *, mask: Tensor) -> Tensor:
        return interpolate(y, mask)
