"""Masks of pixels that are kept or dropped."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from util.errors import UserError
from util.settings import Count, Settings, Unit, Whole, read, whole
from util.words import unknown

MASK_TYPES = ("random", "box", "extreme", "both")


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError("expected two numbers, as [low, high]")
    return value[0], value[1]


def _below(low_to_high: tuple[int, int]) -> tuple[int, int]:
    if low_to_high[0] >= low_to_high[1]:
        raise ValueError("expected the first number below the second, which is excluded")
    return low_to_high


def _not_falling(low_to_high: tuple[float, float]) -> tuple[float, float]:
    if low_to_high[0] > low_to_high[1]:
        raise ValueError("expected [low, high], low not above high")
    return low_to_high


LengthRange = Annotated[tuple[Count, Annotated[int, whole(2)]], BeforeValidator(_pair), AfterValidator(_below)]
ShareRange = Annotated[tuple[Unit, Unit], BeforeValidator(_pair), AfterValidator(_not_falling)]
Margin = Annotated[tuple[Whole, Whole], BeforeValidator(_pair)]


class _MaskSettings(Settings):
    """The options of `mask_generator`."""

    mask_len_range: LengthRange | None
    mask_prob_range: ShareRange | None
    image_size: Count | None
    margin: Margin


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
        needed = {"random": ("prob",), "both": ("len", "prob")}.get(mask_type, ("len",))
        given = {
            "mask_len_range": mask_len_range if "len" in needed else None,
            "mask_prob_range": mask_prob_range if "prob" in needed else None,
        }
        for name in (f"mask_{key}_range" for key in needed):
            if given[name] is None:
                raise UserError(f"mask_type {mask_type!r} needs {name}")
        settings = read(_MaskSettings, {**given, "image_size": image_size, "margin": margin})
        self.mask_type = mask_type
        self.mask_len_range, self.mask_prob_range = settings.mask_len_range, settings.mask_prob_range
        self.margin, self.image_size = settings.margin, settings.image_size
        self.rng = np.random.RandomState() if rng is None else rng
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
        if self.mask_len_range is None:
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
        height, width = img.shape[-2:]
        masks = [self.draw(height, width, self.rng) for _ in range(img.shape[0])]
        return torch.from_numpy(np.stack(masks))[:, None].to(img)

    def draw(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        """Draw one mask (height, width), float32.

        Raises:
            UserError: masks of this size cannot be drawn.
        """
        self.check_size(height, width)
        mask = np.ones((height, width), dtype=np.float32)
        if self.mask_len_range is not None:
            mask = self._box(height, width, self.mask_len_range, rng)
        if self.mask_prob_range is not None:
            mask = mask * _scatter(height, width, self.mask_prob_range, rng)
        return 1 - mask if self.mask_type == "extreme" else mask

    def _box(self, height: int, width: int, sides: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
        box_height = rng.randint(*sides)
        box_width = rng.randint(*sides)
        top = rng.randint(self.margin[0], height - self.margin[0] - box_height)
        left = rng.randint(self.margin[1], width - self.margin[1] - box_width)
        mask = np.ones((height, width), dtype=np.float32)
        mask[top : top + box_height, left : left + box_width] = 0
        return mask


def _scatter(height: int, width: int, dropped: tuple[float, float], rng: np.random.RandomState) -> np.ndarray:
    share = rng.uniform(*dropped)
    mask = np.ones(height * width, dtype=np.float32)
    mask[rng.choice(mask.size, int(mask.size * share), replace=False)] = 0
    return mask.reshape(height, width)
