"""Batches of training pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def to_model_range(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Crop(NamedTuple):
    """A square of a picture, or of its mirror image."""

    picture: int
    top: int
    left: int
    mirrored: bool


def random_crops(
    pictures: np.ndarray, batch_size: int, crop: int, rng: np.random.RandomState, grid: int = 1
) -> list[Crop]:
    """Random pictures, places (multiples of ``grid``) and mirror images."""
    places = (pictures.shape[1] - crop) // grid + 1
    return [
        Crop(rng.randint(len(pictures)), grid * rng.randint(places), grid * rng.randint(places), rng.uniform() < 0.5)
        for _ in range(batch_size)
    ]


def cut(pictures: np.ndarray, crops: Sequence[Crop], side: int) -> Tensor:
    """The squares of uint8 pictures (N, H, W, 3): float32 (B, 3, side, side) in [-1, 1], channels last in memory."""
    batch = np.empty((len(crops), side, side, 3), dtype=np.uint8)
    for row, crop in zip(batch, crops, strict=True):
        picture = pictures[crop.picture]
        picture = picture[:, ::-1] if crop.mirrored else picture
        row[:] = picture[crop.top : crop.top + side, crop.left : crop.left + side]
    return to_model_range(batch)
