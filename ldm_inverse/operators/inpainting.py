"""Pixels that are not there."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_inverse.baselines import interpolate
from ldm_inverse.operators.base import OPERATORS, Operator
from ldm_inverse.operators.mask_files import GivenMasks
from util.errors import UserError
from util.img_utils import MASK_TYPES, mask_generator


@OPERATORS.register("inpainting")
class Inpainting(Operator):
    """A(x) = mask * x: the mask is 1 where a pixel is kept and 0 where it is dropped.

    State: ``mask`` (B or 1, 1, H, W). Masks are drawn, with the options of `util.img_utils.mask_generator`, or read
    from files, with those of `GivenMasks` (``mask_file`` is its path, ``mask_keeps`` its keeps). Without ``mask_type``
    and ``mask_file`` nothing can be drawn, and a mask has to be given.

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
        mask_file: str | None = None,
        mask_keeps: int = 1,
    ) -> None:
        super().__init__()
        if mask_file is not None and mask_type is not None:
            raise UserError("mask_type draws masks and mask_file gives them: only one of them (mask_type=null)")
        self.given = None if mask_file is None else GivenMasks(mask_file, mask_keeps)
        options = (mask_len_range, mask_prob_range, image_size, margin)
        self.masks = None if mask_type is None else mask_generator(mask_type, *options)

    def check_size(self, height: int, width: int) -> None:
        masks = self.given or self.masks
        if masks is not None:
            masks.check_size(height, width)

    def check_image(self, name: str, height: int, width: int) -> None:
        self.check_size(height, width)
        if self.given is not None:
            self.given.mask(height, width, name)

    def check_draw(self) -> None:
        if self.masks is None and self.given is None:
            known = ", ".join(sorted(MASK_TYPES))
            raise UserError(f"inpainting has no mask_type to draw masks of, and no mask_file: known: {known}")

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        self.check_draw()
        masks = [(self.given or self.masks).draw(shape[-2], shape[-1], rng) for _ in range(shape[0])]
        return {"mask": torch.from_numpy(np.stack(masks))[:, None]}

    def draw_for(self, name: str, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        if self.given is None:
            return self.draw(shape, rng)
        return {"mask": torch.from_numpy(self.given.mask(shape[-2], shape[-1], name))[None, None]}

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.to(x)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, *, mask: Tensor) -> Tensor:
        return y * mask.to(y)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, *, mask: Tensor) -> Tensor:
        return interpolate(y, mask)
