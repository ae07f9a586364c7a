"""Inpainting: some pixels are dropped."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor

from data.array_choice import path_text
from data.array_files import ARRAY_SUFFIXES
from data.mask_values import read_alpha
from data.sources import Origin
from ldm_inverse.baselines import interpolate
from ldm_inverse.operators.base import OPERATORS, Operator, needed
from ldm_inverse.operators.mask_files import ALPHA, GivenMasks
from util.errors import UserError
from util.img_utils import MASK_TYPES, LengthRange, Margin, ShareRange, mask_generator
from util.settings import Count, Text, Whole, number


@OPERATORS.register("inpainting")
class Inpainting(Operator):
    """A(x) = mask * x: the mask is 1 where a pixel is kept and 0 where it is dropped.

    State: ``mask`` (B or 1, 1, H, W). Masks are drawn, with the options of `util.img_utils.mask_generator`, or given,
    with those of `GivenMasks`: then nothing is drawn, and the options of what is drawn are not used. Without
    ``mask_type`` and ``mask_file`` a mask has to come with the measurement: as its state, or as its alpha channel.

    Args:
        mask_type, mask_len_range, mask_prob_range, image_size, margin: as for `mask_generator`.
        mask_file: the ``path`` of `GivenMasks`; its masks replace those that would be drawn.
        mask_keeps, mask_threshold, mask_dilate: ``keeps``, ``threshold`` and ``dilate`` of `GivenMasks`.

    Raises:
        UserError: a file that is no mask; options that do not go together.
    """

    linear = True
    state_names = ("mask",)

    def __init__(
        self,
        mask_type: str | None = None,
        mask_len_range: LengthRange | None = None,
        mask_prob_range: ShareRange | None = None,
        image_size: Count | None = None,
        margin: Margin = (16, 16),
        mask_file: Annotated[Text, AfterValidator(path_text)] | None = None,
        mask_keeps: Literal[0, 1] = 1,
        mask_threshold: Annotated[float, number(0, 1, above_low=True)] | None = None,
        mask_dilate: Whole = 0,
    ) -> None:
        super().__init__()
        options = (mask_keeps, mask_threshold, mask_dilate)
        self.given = None if mask_file is None else GivenMasks(mask_file, *options)
        self.alpha = GivenMasks(ALPHA, *options)
        self.masks: mask_generator | None = None
        if mask_type is not None and mask_file is None:
            self.masks = mask_generator(mask_type, mask_len_range, mask_prob_range, image_size, margin)

    def check_size(self, height: int, width: int) -> None:
        if self.masks is not None:
            self.masks.check_size(height, width)
        if self.given is not None and self.given.is_common:
            self.given.mask(height, width)

    def check_image(self, origin: Origin, height: int, width: int) -> None:
        if self.given is None:
            self.check_size(height, width)
        else:
            self.given.mask(height, width, origin)

    def check_draw(self) -> None:
        if self.masks is None and self.given is None:
            known = ", ".join(sorted(MASK_TYPES))
            raise UserError(f"inpainting has no mask_type to draw masks of, and no mask_file: known: {known}")

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        self.check_draw()
        height, width = shape[-2:]
        if self.masks is None:
            masks = [self.given.mask(height, width)] * shape[0] if self.given is not None else []
        else:
            masks = [self.masks.draw(height, width, rng) for _ in range(shape[0])]
        return {"mask": torch.from_numpy(np.stack(masks))[:, None]}

    def draw_for(self, origin: Origin, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        if self.given is None:
            return self.draw(shape, rng)
        return {"mask": torch.from_numpy(self.given.mask(shape[-2], shape[-1], origin))[None, None]}

    def brought(self, origin: Origin, shape: Sequence[int]) -> dict[str, Tensor]:
        """Return the mask that a degraded picture's alpha channel is, unless one is given."""
        if self.given is not None or origin.source is None or origin.source.suffix in ARRAY_SUFFIXES:
            return {}
        if read_alpha(origin.source) is None:
            return {}
        return {"mask": torch.from_numpy(self.alpha.mask(shape[-2], shape[-1], origin))[None, None]}

    def given_state(self, state: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
        mask = state.get("mask")
        if mask is None:
            return dict(state)
        if mask.numel() != shape[-2] * shape[-1]:
            raise UserError(f"mask: expected one of {shape[-2]} x {shape[-1]}, got shape {tuple(mask.shape)}")
        if not ((mask == 0) | (mask == 1)).all() or not mask.any():
            found = f"from {mask.min():g} to {mask.max():g}"
            raise UserError(f"mask: expected zeros and ones, not all of them zero, got values {found}")
        return {**state, "mask": mask.reshape(1, 1, shape[-2], shape[-1])}

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        return x * needed(state, "mask").to(x)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        return y * needed(state, "mask").to(y)

    def proximal(self, y: Tensor, x0: Tensor, weight: float, **state: Tensor) -> Tensor:
        mask = needed(state, "mask").to(x0)
        return (mask * y + weight * x0) / (mask.square() + weight)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the kept pixels, the others interpolated between them."""
        return interpolate(y, needed(state, "mask"))
