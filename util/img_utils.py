"""Masks of pixels that are kept or dropped."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from util.checks import pair, real_number, whole_number
from util.errors import UserError
from util.registry import unknown

MASK_TYPES = ("random", "box", "extreme", "both")


class mask_generator:  # noqa: N801 (the published name)
    """Draws masks: 1 keeps a pixel, 0 drops it.

    Args:
        mask_type: ``random`` drops scattered pixels; ``box`` drops a rectangle; ``extreme`` keeps only that rectangle;
            ``both`` drops a rectangle and scattered pixels (drawn in that order).
        mask_len_range: (low, high): a rectangle's height and width are drawn from low to high - 1 pixels.
        mask_prob_range: (low, high): the dropped share of scattered pixels is drawn between them, within [0, 1].
        image_size: side of the images; None leaves it to the images, which may then be of any height and width.
        margin: (vertical, horizontal): pixels from the borders that a rectangle keeps clear of.
        rng: source of every random choice of a call; None: a stream of its own, seeded by the system.

    Raises:
        UserError: an unknown type, a range that it needs and lacks, or a value out of range.
    """

    def __init__(
        self,
        mask_type: str,
        mask_len_range: Sequence[int] | None = None,
        mask_prob_range: Sequence[float] | None = None,
        image_size: int | None = None,
        margin: Sequence[int] = (16, 16),
        rng: np.random.RandomState | None = None,
    ) -> None:
        if mask_type not in MASK_TYPES:
            raise unknown("mask_type", mask_type, MASK_TYPES)
        self.mask_type = mask_type
        self.has_box = mask_type != "random"
        self.has_scatter = mask_type in ("random", "both")
        self.rng = np.random.RandomState() if rng is None else rng
        self.mask_len_range = _length_range(mask_len_range, mask_type) if self.has_box else None
        self.mask_prob_range = _share_range(mask_prob_range, mask_type) if self.has_scatter else None
        self.margin = tuple(whole_number("margin", side, 0) for side in pair("margin", margin, "two whole numbers"))
        self.image_size = None if image_size is None else whole_number("image_size", image_size, 1)
        if self.image_size is not None:
            self.check_size(self.image_size, self.image_size)

    def check_size(self, height: int, width: int) -> None:
        """Check that masks of this size can be drawn.

        Raises:
            UserError: they cannot; the message says which sizes can.
        """
        if self.image_size not in (None, height) or self.image_size not in (None, width):
            raise UserError(
                f"the mask is {self.image_size} x {self.image_size} (image_size) and the image {height} x {width}"
            )
        if not self.has_box:
            return
        need = [self.mask_len_range[1] + 2 * margin for margin in self.margin]
        if height < need[0] or width < need[1]:
            raise UserError(
                f"mask_len_range {list(self.mask_len_range)} with margin {list(self.margin)} does not fit an image of "
                f"{height} x {width}: {need[0]} x {need[1]} or more is needed"
            )

    def __call__(self, img: Tensor) -> Tensor:
        """Draw a mask for each image of a batch (B, C, H, W), one after the other.

        Returns:
            (B, 1, H, W) of zeros and ones, in the images' dtype and on their device.
        """
        masks = [self.draw(*img.shape[-2:], self.rng) for _ in range(img.shape[0])]
        return torch.from_numpy(np.stack(masks))[:, None].to(img)

    def draw(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        """Draw one mask (height, width), float32.

        Raises:
            UserError: masks of this size cannot be drawn.
        """
        self.check_size(height, width)
        mask = self._box(height, width, rng) if self.has_box else np.ones((height, width), dtype=np.float32)
        if self.mask_type == "extreme":
            return 1 - mask
        return mask * self._scatter(height, width, rng) if self.has_scatter else mask

    def _box(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        box_height = rng.randint(*self.mask_len_range)
        box_width = rng.randint(*self.mask_len_range)
        top = rng.randint(self.margin[0], height - self.margin[0] - box_height)
        left = rng.randint(self.margin[1], width - self.margin[1] - box_width)
        mask = np.ones((height, width), dtype=np.float32)
        mask[top : top + box_height, left : left + box_width] = 0
        return mask

    def _scatter(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        share = rng.uniform(*self.mask_prob_range)
        mask = np.ones(height * width, dtype=np.float32)
        mask[rng.choice(mask.size, int(mask.size * share), replace=False)] = 0
        return mask.reshape(height, width)


def _length_range(value: Sequence[int] | None, mask_type: str) -> tuple[int, int]:
    if value is None:
        raise UserError(f"mask_type {mask_type!r} needs mask_len_range")
    low, high = pair("mask_len_range", value, "two whole numbers")
    low, high = whole_number("mask_len_range", low, 1), whole_number("mask_len_range", high, 2)
    if low >= high:
        raise UserError(f"mask_len_range: expected the first below the second, which is left out, got {[low, high]}")
    return low, high


def _share_range(value: Sequence[float] | None, mask_type: str) -> tuple[float, float]:
    if value is None:
        raise UserError(f"mask_type {mask_type!r} needs mask_prob_range")
    low, high = pair("mask_prob_range", value, "two numbers")
    low, high = real_number("mask_prob_range", low, 0, 1), real_number("mask_prob_range", high, 0, 1)
    if low > high:
        raise UserError(f"mask_prob_range: expected the first no larger than the second, got {[low, high]}")
    return low, high
