"""Resizing as matrix products."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Downsampling = Literal["bicubic", "area", "nearest", "lanczos"]
PILLOWS = {
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel of Keys (1981) with a = -1/2; it is zero from |x| = 2 on."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_matrix(n_in: int, n_out: int, scale: float) -> np.ndarray:
    """Return the matrix (n_out, n_in), float64, that resizes a row of pixels bicubically, as MATLAB's imresize does.

    Pixels are unit squares and both rows begin at the same place, so that pixel j of the resized row has its centre at
    (j + 1/2) / scale - 1/2. Downscaling stretches the kernel by 1 / scale, which is the antialiasing. Beyond the
    borders the row is mirrored, edge pixel repeated. The weights of each output pixel sum to one and are rounded to
    float32.

    Args:
        n_in: pixels of the row.
        n_out: pixels of the resized row.
        scale: size of an input pixel in output pixels; about n_out / n_in.
    """
    stretch = max(1.0, 1 / scale)
    centre = (np.arange(n_out) + 0.5) / scale - 0.5
    taps = int(np.ceil(4 * stretch)) + 2
    position = np.floor(centre - 2 * stretch)[:, None].astype(int) + np.arange(taps)
    weight = cubic((centre[:, None] - position) / stretch)
    weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    mirrored = np.concatenate([np.arange(n_in), np.arange(n_in)[::-1]])[position % (2 * n_in)]
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], mirrored), weight)
    return matrix


def pillow_matrix(n_in: int, n_out: int, kind: str) -> np.ndarray:
    """Return the matrix (n_out, n_in) that Pillow's resizing is, along a row: what it makes of each pixel alone."""
    pixels = Image.fromarray(np.eye(n_in, dtype=np.float32))
    return np.asarray(pixels.resize((n_out, n_in), PILLOWS[kind]), dtype=np.float64).T


class Resizer:
    """The linear map that resizes images (B, C, *size) to (B, C, *out_size), by a matrix along each side.

    Args:
        size: the images' (H, W).
        out_size: the resized images' (H, W).
        scale: as in `resize_matrix`.
        dtype: of the images to come.
        device: of the images to come.
        kind: bicubic (`resize_matrix`), or one of Pillow's (`pillow_matrix`).
    """

    def __init__(
        self,
        size: tuple[int, int],
        out_size: tuple[int, int],
        scale: float,
        dtype: torch.dtype,
        device: torch.device | str,
        kind: Downsampling = "bicubic",
    ) -> None:
        sides = zip(size, out_size, strict=True)
        rows, columns = (resize_matrix(*n, scale) if kind == "bicubic" else pillow_matrix(*n, kind) for n in sides)
        self.rows = torch.from_numpy(rows).to(dtype).to(device)
        self.columns = torch.from_numpy(columns).to(dtype).to(device)

    def apply(self, x: Tensor) -> Tensor:
        """Resize x."""
        return self.rows @ x @ self.columns.T

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint of `apply` to y."""
        return self.rows.T @ y @ self.columns
