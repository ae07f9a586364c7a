"""Latents of the training pictures, encoded once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.training.pictures import to_model_range
from util.files import whole_file

PICTURES_AT_ONCE = 8


@torch.no_grad()
def encode_pictures(
    encode: Callable[[Tensor], Tensor], pictures: np.ndarray, cache: Path, device: torch.device
) -> np.ndarray:
    """Latents of uint8 pictures (N, H, W, 3), then of their mirror images: float16 of shape (2N, C, h, w).

    Memory-mapped from the file ``cache``, which is used again when it holds as many latents of this shape.

    Args:
        encode: images (B, 3, H, W) in [-1, 1] to latents (B, C, h, w).
    """
    shape = (2 * len(pictures), *encode(to_model_range(pictures[:1]).to(device)).shape[1:])
    if not cache.exists() or cache.stat().st_size != 2 * int(np.prod(shape)):
        with whole_file(cache) as beside:
            _write_latents(encode, pictures, np.memmap(beside, dtype=np.float16, mode="w+", shape=shape), device)
    return np.memmap(cache, dtype=np.float16, mode="r", shape=shape)


def _write_latents(
    encode: Callable[[Tensor], Tensor], pictures: np.ndarray, out: np.memmap, device: torch.device
) -> None:
    for first in tqdm(range(0, len(pictures), PICTURES_AT_ONCE), desc="encoding", disable=None):
        images = to_model_range(pictures[first : first + PICTURES_AT_ONCE]).to(device)
        for offset, version in ((0, images), (len(pictures), images.flip(3))):
            latents = encode(version).float().cpu().numpy()
            out[offset + first : offset + first + len(latents)] = latents
    out.flush()
