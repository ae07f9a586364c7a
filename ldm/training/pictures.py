"""Batches of training pictures."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CARD_SHARE = 0.25  # of a card's free memory that a training set may take; the rest is for the networks


def to_model_range(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    batch = torch.from_numpy(np.array(pictures)) if isinstance(pictures, np.ndarray) else pictures
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def resident(data: np.ndarray, device: torch.device) -> Tensor:
    """A training set where batches of it are cut fastest: on a card with room for it, else mapped from its file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        mapped = torch.from_numpy(data)
    if device.type == "cuda" and data.nbytes < CARD_SHARE * torch.cuda.mem_get_info(device)[0]:
        return mapped.to(device)
    return mapped


class Crop(NamedTuple):
    """A square of a picture, or of its mirror image."""

    picture: int
    top: int
    left: int
    mirrored: bool


def random_crops(pictures: Tensor, batch_size: int, crop: int, rng: np.random.RandomState, grid: int = 1) -> list[Crop]:
    """Random pictures, places (multiples of ``grid``) and mirror images."""
    places = (pictures.shape[1] - crop) // grid + 1
    return [
        Crop(rng.randint(len(pictures)), grid * rng.randint(places), grid * rng.randint(places), rng.uniform() < 0.5)
        for _ in range(batch_size)
    ]


def cut(pictures: Tensor, crops: Sequence[Crop], side: int) -> Tensor:
    """The squares of uint8 pictures (N, H, W, 3): float32 (B, 3, side, side) in [-1, 1], channels last in memory."""
    squares = []
    for crop in crops:
        picture = pictures[crop.picture].flip(1) if crop.mirrored else pictures[crop.picture]
        squares.append(picture[crop.top : crop.top + side, crop.left : crop.left + side])
    return to_model_range(torch.stack(squares))
